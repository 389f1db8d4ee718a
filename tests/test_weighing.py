"""M-13: how large mails come out, encoded and with their links: a warning from 90 KB on, no publishing from 100 KB on."""

from __future__ import annotations

import email
import shutil
from email import policy

import pytest

from app.cli import main
from app.config import CODE
from app.errors import DefinitionError
from app.flow import mime
from app.flow.check import read
from app.flow.publish import publish
from app.flow.weighing import weigh
from tests.conftest import NOW
from tests.stories import group, identify, post, publish_campaigns, run
from tests.test_mime import Rendered, message, sound

STEP = "onboarding/first-value/welcome.mjml"
KB = 1024


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "campaigns"
    shutil.copytree(CODE / "campaigns", root)
    return root


def padded(root, words: str, count: int):
    """The welcome mail with so many more words, and its tests left out of account."""
    file = root / STEP
    file.write_text(file.read_text() + f"\n<mj-section><mj-column><mj-text>{words * count}</mj-text></mj-column></mj-section>\n")


def size_of(root) -> int:
    return max(len(one.compiled.html) for folder in read(root).folders for one in folder.templates if one.path == STEP)


def test_the_shipped_mails_are_light(folder):
    assert weigh(read(folder), NOW) == []


@pytest.mark.parametrize(("kilobytes", "severity"), [(60, None), (90, "warning"), (98, "error")])
def test_what_is_counted_is_encoded(folder, kilobytes, severity, capsys, tmp_path):
    """98 KB of HTML pass the compiler, and are more than 100 KB on the wire."""
    padded(folder, "plain words ", (kilobytes * KB - size_of(folder)) // 12)
    found = weigh(read(folder), NOW)
    assert [one.severity for one in found if one.file == STEP] == ([severity] if severity else [])
    code = main(["check", str(folder), "--home", str(tmp_path / "home")])
    shown = capsys.readouterr().out
    assert code == (severity == "error")
    assert ("[size]" in shown) == bool(severity) and ("warning: the finished mail" in shown) == (severity == "warning")


def test_what_mail_programs_cut_off_is_not_published(engine, folder):
    padded(folder, "plain words ", (98 * KB - size_of(folder)) // 12)
    with engine.begin() as conn, pytest.raises(DefinitionError, match="cut it off"):
        publish(conn, folder, NOW)


def test_a_contact_with_long_values_counts_as_well(engine, folder):
    padded(folder, "plain words ", (60 * KB - size_of(folder)) // 12)
    padded(folder, '{{ contact.first_name | default("there") }} ', 400)
    campaigns = read(folder)
    assert weigh(campaigns, NOW) == []
    post(engine, group(), identify(email="ada@acorn.test", first_name="Hubert " * 30))
    publish_campaigns(engine, folder.parent / "other", {"onboarding/other": OTHER})
    run(engine)
    with engine.connect() as conn:
        [problem] = [one for one in weigh(campaigns, NOW, conn) if one.severity == "error"]
    assert "ada of acorn" in problem.message and problem.file == STEP


OTHER = """
name: Other
stage: onboarding
topic: product
trigger: {event: never}
steps: [{id: only, email: only.mjml, subject: Hello}]
"""


# The encoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("html", "encoding"),
    [
        ("<p>" + "x" * 20 * KB + "</p>", "base64"),
        ("<p>" + "word " * 12 * KB + "</p>", "quoted-printable"),
        ("<p>" + ".dot\n.dot " * 10 * KB + "</p>", "quoted-printable"),
        ("<p>" + "слово " * 10 * KB + "</p>", "base64"),
    ],
)
def test_a_long_mail_is_encoded_as_it_is_shorter(html, encoding):
    raw = message(Rendered(html=html))
    part = email.message_from_bytes(raw, policy=policy.default).get_body(("html",))
    assert part["Content-Transfer-Encoding"] == encoding
    assert part.get_content().replace("\r\n", "\n").rstrip("\n") == html
    assert b"\r\n." not in raw and max(map(len, raw.split(b"\r\n"))) <= 998 and max(raw) < 128
    assert abs(mime.html_size(html) - len(part.get_payload())) <= 2
    if encoding == "base64":
        sound(raw)
