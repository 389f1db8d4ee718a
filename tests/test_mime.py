"""The bytes of a message: every header as it was meant, read back by the standard library; nothing that a relay would stumble on."""

from __future__ import annotations

import email
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from email import policy
from email.utils import parsedate_to_datetime
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RenderSkip
from app.flow.mime import address, assemble

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
MESSAGE = UUID("6f0c2c1e-5a41-4f3c-9d6e-0c9d1f0b7a11")
TOKEN = "aebagbaf" * 5
LONG_URL = "https://t.example.com/u/" + "aB3_-" * 60  # 324 characters


@dataclass
class Rendered:
    subject: str = "Your first report"
    html: str = "<p>Grüße 🦊 " + "x" * 12_000 + "</p>"
    text: str = "Grüße 🦊\n\nLine two\n"


def message(mail=None, **changes) -> bytes:
    fields = {
        "sender": ("Acorn Reports", "success@example.com"),
        "reply_to": "help@example.com",
        "to": ("Mara Fux", "mara@example.net"),
        "message_header": f"<{MESSAGE.hex}@example.com>",
        "date": NOW,
        "unsubscribe_url": LONG_URL,
        "list_id": "Getting more out of it <product.example.com>",
        "feedback_id": "onboarding.first-value:3:email:example-com",
        "token": TOKEN,
    }
    return assemble(mail or Rendered(), **{**fields, **changes})


def parsed(raw: bytes):
    found = email.message_from_bytes(raw, policy=policy.default)
    assert not found.defects and not any(part.defects for part in found.walk())
    assert not any(value.defects for value in found.values())
    return found


def raw_headers(raw: bytes) -> str:
    return raw.split(b"\r\n\r\n", 1)[0].decode("ascii")


def sound(raw: bytes) -> None:
    """M-07, S-07: CRLF alone, seven bits, no line over 998 octets, no NUL."""
    assert b"\r" not in raw.replace(b"\r\n", b"") and b"\n" not in raw.replace(b"\r\n", b"")
    assert max(raw) < 128 and 0 not in raw
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert b"\r\n." not in raw, "nothing to stuff"
    body = raw.split(b"Content-Transfer-Encoding: base64\r\n\r\n")[-1]
    assert max(map(len, body.split(b"\r\n"))) <= 76


def test_every_header_of_a_marketing_message():
    mail = Rendered(subject="Mara, dein erster Bericht in zehn Minuten 🦊 – und was danach kommt, wenn du magst")
    raw = message(mail, to=("Łukasz „Fux“ 🦊", "mara@example.net"), sender=("Acorn, Reports", "success@example.com"))
    sound(raw)
    found = parsed(raw)
    assert {name: str(value) for name, value in found.items()} == {
        "Date": "Mon, 02 Mar 2026 09:00:00 +0000",
        "From": '"Acorn, Reports" <success@example.com>',
        "To": "Łukasz „Fux“ 🦊 <mara@example.net>",
        "Subject": mail.subject,
        "Message-ID": f"<{MESSAGE.hex}@example.com>",
        "Reply-To": "help@example.com",
        "List-Unsubscribe": f"<{LONG_URL}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "List-Id": "Getting more out of it <product.example.com>",
        "Precedence": "bulk",
        "X-Auto-Response-Suppress": "OOF, AutoReply",
        "Feedback-ID": "onboarding.first-value:3:email:example-com",
        "X-Nurture-Send": TOKEN,
        "MIME-Version": "1.0",
        "Content-Type": found["Content-Type"],
    }
    assert found.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in found.iter_parts()] == ["text/plain", "text/html"]
    assert [part["Content-Type"].params["charset"] for part in found.iter_parts()] == ["utf-8", "utf-8"]
    assert [part.get_content().replace("\r\n", "\n").rstrip("\n") for part in found.iter_parts()] == [mail.text.rstrip("\n"), mail.html]


def test_the_unsubscribe_headers_are_byte_for_byte():
    """U-01 and finding 1: one line, not folded, not encoded, whatever its length."""
    lines = raw_headers(message()).split("\r\n")
    assert lines.count(f"List-Unsubscribe: <{LONG_URL}>") == 1
    assert lines.count("List-Unsubscribe-Post: List-Unsubscribe=One-Click") == 1
    both = raw_headers(message(unsubscribe_mailto="mailto:u+abc@b.example.com?subject=unsubscribe"))
    assert f"\r\nList-Unsubscribe: <{LONG_URL}>, <mailto:u+abc@b.example.com?subject=unsubscribe>\r\n" in both
    # Development runs on http; the header is there all the same.
    assert "\r\nList-Unsubscribe: <http://127.0.0.1:8000/u/T>\r\n" in raw_headers(message(unsubscribe_url="http://127.0.0.1:8000/u/T"))


def test_single_headers_appear_once():
    names = [line.split(":")[0].lower() for line in raw_headers(message()).split("\r\n") if not line.startswith(" ")]
    assert len(names) == len(set(names))


def test_transactional_mail_has_no_list_headers():
    found = parsed(message(transactional=True))
    assert found["Auto-Submitted"] == "auto-generated"
    assert not {"List-Unsubscribe", "List-Unsubscribe-Post", "List-Id", "Precedence", "X-Auto-Response-Suppress"} & set(found.keys())
    assert parsed(message())["Auto-Submitted"] is None


def test_the_same_arguments_give_the_same_bytes():
    assert message() == message()
    other = message(message_header="<other@example.com>")
    boundary = re.search(rb'boundary="([^"]+)"', message()).group(1)
    assert boundary not in other


def test_the_date_is_in_utc():
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    assert parsedate_to_datetime(parsed(message(date=elsewhere))["Date"]) == NOW


def test_short_ascii_text_goes_as_it_is_and_other_text_stays_readable():
    plain = message(Rendered(text="Hello\n\nFine\n"))
    assert b"Content-Transfer-Encoding: 7bit\r\n\r\nHello\r\n\r\nFine\r\n" in plain
    assert b"Content-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BC=C3=9Fe" in message()
    long = message(Rendered(text="x" * 5_000))
    sound(long)
    assert next(parsed(long).iter_parts()).get_content().strip() == "x" * 5_000


def test_size_stays_near_the_content():
    mail = Rendered()
    content = len(mail.html.encode()) + len(mail.text.encode())
    assert len(message(mail)) < 1.4 * content + 2_000


@pytest.mark.parametrize(
    ("given_address", "found"),
    [
        ("mara@example.net", "mara@example.net"),
        ("mara@münchen.example", "mara@xn--mnchen-3ya.example"),
        ("Mara.Fux+tag@Example.NET", "Mara.Fux+tag@Example.NET"),
        ("a@faß.example", "a@xn--fa-hia.example"),
        ("a@點看.example", "a@xn--c1yn36f.example"),
    ],
)
def test_domains_travel_as_a_labels(given_address, found):
    assert address(given_address, "To") == found
    assert f"<{found}>" in raw_headers(message(to=("Mara", given_address)))


@pytest.mark.parametrize("bad", ["mära@example.net", "用户@example.net"])
def test_a_local_part_beyond_ascii_is_named(bad):
    with pytest.raises(RenderSkip) as caught:
        message(to=("Mara", bad))
    assert caught.value.reason == "eai_unsupported"


INJECTIONS = ["\r\nBcc: x@example.com", "\nx", "\rx", "\x00", "\x0b", "\x7f", "\u2028x"]


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize(
    "field", ["reply_to", "message_header", "unsubscribe_url", "unsubscribe_mailto", "list_id", "feedback_id", "token", "metadata"]
)
def test_control_characters_are_refused_in_every_structured_value(field, injection):
    """M-09."""
    values = {
        "reply_to": f"help@example.com{injection}y",
        "message_header": f"<a{injection}@example.com>",
        "unsubscribe_url": f"https://t.example.com/u/{injection}y",
        "unsubscribe_mailto": f"mailto:u@example.com{injection}y",
        "list_id": f"Name <product{injection}.example.com>",
        "feedback_id": f"a:b{injection}:c",
        "token": f"6f0c{injection}",
        "metadata": ("X-Mailgun-Variables", f"a{injection}b"),
    }
    with pytest.raises(RenderSkip) as caught:
        message(**{field: values[field]})
    assert caught.value.reason == "bad_header"
    for one in ("sender", "to"):
        with pytest.raises(RenderSkip):
            message(**{one: ("Mara", f"mara{injection}@example.net")})


@pytest.mark.parametrize(
    "bad",
    ["", "mara", "@example.net", "mara@", "ma ra@example.net", "a@b@example.net", "<a@example.net>", "a@-x.example", "a,b@example.net"],
)
def test_what_is_no_address_is_refused(bad):
    with pytest.raises(RenderSkip):
        message(to=("Mara", bad))


@pytest.mark.parametrize(
    "bad",
    [
        "https://t.example.com/a b",
        "https://t.example.com/<>",
        "ftp://t.example.com/",
        "https://t.example.com/" + "x" * 990,
        "https://t.example.com/ü",
    ],
)
def test_an_unsubscribe_url_is_one_plain_line(bad):
    with pytest.raises(RenderSkip):
        message(unsubscribe_url=bad)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_names_and_subjects_with_control_characters_become_one_line(injection):
    raw = message(Rendered(subject=f"Hi{injection} there"), to=(f"Mara{injection} Fux", "mara@example.net"))
    sound(raw)
    found = parsed(raw)
    assert "Bcc" not in found and found["To"].addresses[0].addr_spec == "mara@example.net"
    assert found["Subject"].startswith("Hi ")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300), st.text(max_size=300))
def test_any_subject_and_any_name_come_back(subject, name):
    """Whatever is in them: the message stays whole, and what can be shown comes back."""
    raw = message(Rendered(subject=subject, html="<p>x</p>", text="x\n"), to=(name, "mara@example.net"))
    sound(raw)
    headers = raw_headers(raw)
    assert all(len(line) <= 78 or line.startswith(("List-", "Feedback-", "X-")) for line in headers.split("\r\n"))
    names = [line.split(":")[0] for line in headers.split("\r\n") if not line.startswith(" ")]
    assert len(names) == 15
    found = parsed(raw)
    assert found["To"].addresses[0].addr_spec == "mara@example.net"
    assert found["X-Nurture-Send"] == TOKEN


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.characters(min_codepoint=33, exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Zs"]), min_size=1, max_size=180),
    st.integers(0, 40),
)
def test_visible_subjects_come_back_exactly(subject, at):
    subject = (subject[:at] + " " + subject[at:]).strip()
    assert parsed(message(Rendered(subject=subject)))["Subject"] == subject


@pytest.mark.parametrize(
    "subject",
    ["a" * 70, "word " * 40 + "end", "b" * 400, "=?utf-8?q?x?=", "  two  spaces", "🦊" * 120, "é" * 300, "a" * 60 + " " + "b" * 90],
)
def test_long_and_odd_subjects(subject):
    raw = message(Rendered(subject=subject))
    sound(raw)
    assert all(len(line) <= 78 for line in raw_headers(raw).split("\r\n") if not line.startswith(("List-", "X-", "Feedback")))
    assert parsed(raw)["Subject"] == subject.strip()


@settings(deadline=None)
@given(st.lists(st.sampled_from([".", "..", "\n", "\r", "\r\n", "From ", "a", " ", "ä", "=", "x" * 80, "x" * 1200])).map("".join))
def test_any_text_goes_without_a_line_that_needs_stuffing(text):
    """Dots, lone line ends and long lines: the wire sees CRLF only, and no line begins with a dot."""
    raw = message(Rendered(text=text))
    sound(raw)
    found = parsed(raw).get_body(("plain",)).get_content().replace("\r\n", "\n")
    assert found.rstrip("\n") == text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
