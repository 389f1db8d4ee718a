"""Hostile definitions and templates through the whole check: an error with a line, quickly, and the process lives."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from app.cli import main
from app.errors import RenderSkip
from app.flow.check import check
from app.flow.compose import Mail
from app.flow.mime import assemble
from app.rules.fields import Problem
from tests.stories import LIFECYCLE, MAIL, START, write_campaigns

GOOD = """
name: Good
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
"""
KEY = "onboarding/x"


def folder(root: Path, campaign: str = GOOD, mail: str = MAIL, lifecycle: str = LIFECYCLE) -> Path:
    return write_campaigns(root / "c", {KEY: campaign}, mail=mail, lifecycle=lifecycle)


def quickly(root: Path) -> list[Problem]:
    """The problems below `root`, found within two seconds of computing, children's included."""
    begun, clock = sum(os.times()[:4]), time.perf_counter()
    problems = check(root)[1]
    assert sum(os.times()[:4]) - begun < 2
    assert time.perf_counter() - clock < 20
    assert all(one.line >= 1 and one.column >= 1 and "\n" not in str(one) for one in problems)
    return problems


def nested(depth: int) -> str:
    """A branch in a branch in a branch …, each on lines of its own."""
    opened = "".join(f"{'  ' * (3 * n + 1)}- id: b{n}\n{'  ' * (3 * n + 2)}branch:\n{'  ' * (3 * n + 3)}- else:\n" for n in range(depth))
    return opened + f"{'  ' * (3 * depth + 1)}- {{id: last, wait: 1d}}\n"


def flow_nested(depth: int) -> str:
    return "".join(f"{{id: b{n}, branch: [{{else: [" for n in range(depth)) + "{id: last, wait: 1d}" + "]}]}" * depth


LAUGHS = "b0: &b0 [x, x]\n" + "".join(f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]\n" for n in range(1, 30))
BEFORE = GOOD[: GOOD.index("  - {id")]
YAML = {
    "billion laughs": (LAUGHS, 1, "anchors (&) and aliases (*) are not used"),
    "5,000 nested steps in flow style": (BEFORE + "  - " + flow_nested(5_000), 7, "nested more than 60 deep"),
    "nested steps in block style": (BEFORE + nested(100), 51, "nested more than 60 deep"),
    "5,000 brackets": (GOOD + "audience: " + "[" * 5_000, 8, "nested more than 60 deep"),
    "50,000 dashes": ("- " * 50_000, 1, "nested more than 60 deep"),
    "an alias": (GOOD + "audience: *x", 8, "anchors (&) and aliases (*)"),
    "an anchor": (GOOD + "audience: &x account.seats > 1", 8, "anchors (&) and aliases (*)"),
    "a merge key": (GOOD + "<<: {priority: 3}", 8, "merge keys (<<)"),
    "a tag that makes an object": (GOOD + "audience: !!python/object/apply:os.system ['true']", 8, "tags (!)"),
    "a tag of one's own": (GOOD + "goal: !x {event: y}", 8, "tags (!)"),
    "a list as a key": (GOOD + "? [a, b]\n: c", 8, "a key is a word"),
    "a key twice": (GOOD + "name: Again", 8, "stands here twice, first in line 2"),
    "a key twice in a step": (GOOD.replace("{id: hello", "{id: hello, id: hello"), 7, "stands here twice, first in line 7"),
    "a second document": (GOOD + "---\nname: Other", 8, "one document"),
    "not a number": (GOOD + "priority: .nan", 8, ".nan is not a number that can be used"),
    "infinity": (GOOD + "holdout: .inf", 8, ".inf is not a number"),
    "a float that overflows": (GOOD + "holdout: 1e999", 8, "1e999 is not a number"),
    "a huge number": (GOOD + "priority: " + "9" * 100_000, 8, "at most 20 digits"),
    "a large number": (GOOD + "priority: 99999999999", 8, "less than or equal to 100"),
    "a negative number": (GOOD + "priority: -1", 8, "greater than or equal to 0"),
    "a share of everybody": (GOOD + "holdout: 100%", 8, "would hold everybody out"),
    "a huge duration": (GOOD + "expires: " + "9" * 1_000 + "d", 8, "is not a duration"),
    "control characters": (GOOD + "audience: \x01", 8, "special characters"),
    "a zero byte": (GOOD + "audience: \0", 8, "special characters"),
    "tabs": (GOOD + "\taudience: x", 8, "cannot start any token"),
    "many values": (GOOD + "".join(f"a{n}: [x, x, x]\n" for n in range(9_000)), 4_004, "more than 20000 values"),
    "a condition of 200 KB": (GOOD + "audience: " + "account.seats > 1 and " * 9_000 + "true", 8, "may have 4000 characters"),
    "9**(9**9)": (GOOD + "audience: 9**(9**9)", 8, "is not allowed"),
    "a call": (GOOD + "audience: account.name.upper()", 8, "is not allowed"),
    "attributes": (GOOD + "audience: account.__class__.__mro__", 8, "is not a name"),
    "parentheses": (GOOD + "audience: " + "(" * 1_900 + "1" + ")" * 1_900, 8, "nested too deeply"),
    "nots": (GOOD + "audience: " + "not " * 900 + "true", 8, "may have 400 parts"),
    "a condition that gets out": (GOOD + "audience: 'a }} {{ b'", 8, "not an expression"),
    "a subject with a line end": (GOOD.replace("subject: Hello", 'subject: "Hello\\r\\nBcc: x@example.com"'), 7, "is one line of text"),
    "a step id with a line end": (GOOD.replace("id: hello", 'id: "hello\\r\\nx"'), 7, "small letters, digits, - and _"),
    "a name with a line end": (GOOD.replace("name: Good", 'name: "Good\\nx"'), 2, "is one line of text"),
    "an exit with a line end": (GOOD + '  - {id: out, exit: "a\\nb"}', 8, "is one line of text"),
    "a template elsewhere": (GOOD.replace("hello.mjml", "../../brand/layout.mjml"), 7, "a file beside campaign.yaml"),
    "a template of the system": (GOOD.replace("hello.mjml", "/etc/passwd"), 7, "a file beside campaign.yaml"),
    "a campaign elsewhere": (GOOD.replace("{event: signed_up}", "{campaign: {campaign: ../../etc}}"), 5, "the campaign's folder"),
    "a zone elsewhere": (GOOD + "send_window: {days: mon-fri, hours: ../../etc/passwd}", 8, "is not a time of day"),
    "nothing": ("", 1, "valid dictionary"),
    "a word": ("x", 1, "valid dictionary"),
    "a list": ("- x", 1, "valid dictionary"),
}


@pytest.mark.parametrize("name", YAML)
def test_definitions(tmp_path, name):
    text, line, said = YAML[name]
    root = folder(tmp_path)
    (root / KEY / "campaign.yaml").write_text(text.lstrip("\n") if not text.startswith(GOOD[:6]) else text)
    problems = quickly(root)
    assert any(one.line == line and said in one.message and one.file == f"{KEY}/campaign.yaml" for one in problems), problems
    assert len(problems) <= 3


LIFECYCLES = {
    "laughs": (LAUGHS, 1, "anchors"),
    "a sender's name with a line end": (
        LIFECYCLE.replace("{name: Sample, email", '{name: "S\\r\\nBcc: x", email'),
        4,
        "is one line of text",
    ),
    "a sender's address with a line end": (LIFECYCLE.replace("hello@example.com", '"a@b.example\\r\\nBcc: x"'), 4, "is not an address"),
    "a topic with a line end": (LIFECYCLE.replace("{name: Product}", '{name: "P\\nList-Id: x"}'), 5, "is one line of text"),
    "a zone elsewhere": (LIFECYCLE.replace("timezone: UTC", "timezone: ../../etc/passwd"), 2, "is not a time zone"),
    "a stage of many letters": (LIFECYCLE.replace("{name: adoption}", "{name: " + "a" * 5_000 + "}"), 9, "a letter first"),
    "a weight without end": (LIFECYCLE + "health: {groups: [{name: a, weight: .inf, measures: []}]}", 15, "is not a number"),
    "javascript": (LIFECYCLE.replace('"1 Sample Street"}', '"x", website: "javascript:alert(1)"}'), 3, "is not a web address"),
}


@pytest.mark.parametrize("name", LIFECYCLES)
def test_lifecycles(tmp_path, name):
    text, line, said = LIFECYCLES[name]
    root = folder(tmp_path)
    (root / "lifecycle.yaml").write_text(text)
    problems = quickly(root)
    assert any(one.line == line and said in one.message and one.file == "lifecycle.yaml" for one in problems), problems


def section(content: str) -> str:
    return f"<mj-section>\n<mj-column>\n<mj-text>{content}</mj-text>\n</mj-column>\n</mj-section>"


TEMPLATES = {
    "a script": (section("<script>alert(1)</script>"), 3, 10, "<script> does not belong"),
    "javascript": (section('<a href="javascript:alert(1)">x</a>'), 3, 13, "javascript: is not for mails"),
    "hidden javascript": (section('<a href="java&#x73;cript:alert(1)">x</a>'), 3, 13, "javascript: is not for mails"),
    "data": (section('<img alt="" src="data:text/html,<script>">'), 3, 22, "write &lt; in src"),
    "a handler": (section('<p onclick="x()">x</p>'), 3, 13, "may not have the attribute onclick"),
    "9**(9**9)": (section("a {{ 9**(9**9) }}"), 3, 15, "templates do not know **"),
    "an infinite loop": (section("{% for a in range(10**9) %}x{% endfor %}"), 3, 13, "a loop runs over a list of the data"),
    "a macro that calls itself": (section("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), 3, 13, "{% macro %}"),
    "a system file": (section("{% include '/etc/passwd' %}"), 3, 13, "{% include %}"),
    "an include of a file": ('<mj-section>\n<mj-include path="../../../etc/passwd" />\n</mj-section>', 2, 1, "there is no block"),
    "classes": (section("\n{{ ''.__class__ }}"), 4, 4, "a value is named by a path"),
    "an expression of 200 KB": (section("{{ 1" + " + 1" * 50_000 + " }}"), 3, None, "more than 40000 words and signs"),
    "braces": (section("{{ " * 60_000), 3, None, "merge tags are nested too deeply"),
    "5,000 nested tags": (section("<div>" * 5_000 + "</div>" * 5_000), 3, 260, "HTML may be nested 50 deep"),
    "5,000 nested sections": ("<mj-wrapper>" * 5_000 + "</mj-wrapper>" * 5_000, 1, 13, "does not belong into <mj-wrapper>"),
    "a style that fetches": ("<mj-style>\n  @import url(x);</mj-style>" + section("x"), 2, 3, "@import"),
    "a tag nobody knows": ("<mj-section>\n  <mj-columm>\n  </mj-columm>\n</mj-section>", 2, 3, "MJML has no <mj-columm>"),
    "an attribute nobody knows": (
        '<mj-section>\n<mj-column>\n<mj-text colr="red">x</mj-text>\n</mj-column>\n</mj-section>',
        3,
        10,
        "no attribute colr",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(tmp_path, name):
    source, line, column, said = TEMPLATES[name]
    problems = quickly(folder(tmp_path, mail=source))
    mine = [one for one in problems if one.file == f"{KEY}/hello.mjml" and one.line == line and said in one.message]
    assert any(column in (None, one.column) for one in mine), problems


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"a.mjml": '<mj-include path="brand/a.mjml" />'}, "includes itself"),
        ({"a.mjml": '\n<mj-include path="brand/b.mjml" />', "b.mjml": '<mj-include path="brand/a.mjml" />'}, "includes itself"),
        ({f"{chr(97 + n)}.mjml": f'<mj-include path="brand/{chr(98 + n)}.mjml" />' * 3 for n in range(20)}, "nested 8 deep"),
    ],
)
def test_blocks_that_include_each_other(tmp_path, blocks, said):
    root = folder(tmp_path, mail='<mj-include path="brand/a.mjml" />')
    for name, text in blocks.items():
        (root / "brand" / name).write_text(text)
    problems = quickly(root)
    assert any(said in one.message and one.file.startswith("brand/") for one in problems), problems


def test_a_notice_is_held_against_the_same_rules(tmp_path):
    step = '  - {id: tell, alert: {text: "{% for a in account.traits.l recursive %}{{ loop(a) }}{% endfor %}"}}\n'
    problems = quickly(folder(tmp_path, GOOD + step))
    assert {one.line for one in problems} == {8} and any("recursive" in one.message for one in problems)


# Files and folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lifecycle.yaml", f"{KEY}/campaign.yaml", f"{KEY}/hello.mjml", "brand/layout.mjml"])
@pytest.mark.parametrize("what", ["100 MB", "not UTF-8", "a link out", "a link to nothing", "a link in a circle", "a folder", "a pipe"])
def test_files(tmp_path, name, what):
    root = folder(tmp_path)
    path = root / name
    path.unlink()
    said, line = {
        "100 MB": ("is larger than 256 KB", 1),
        "not UTF-8": ("is not UTF-8 text", 2),
        "a link out": ("leads out of the campaigns folder", 1),
        "a link to nothing": ("cannot be read", 1),
        "a link in a circle": ("", 1),
        "a folder": ("", 1),
        "a pipe": ("is not a file", 1),
    }[what]
    if what == "100 MB":
        with path.open("wb") as file:
            file.truncate(100 * 2**20)
    elif what == "not UTF-8":
        path.write_bytes(b"name: x\nstage: \xff\xfe")
    elif what == "a link out":
        (tmp_path / "secret").write_text(GOOD)
        path.symlink_to(tmp_path / "secret")
    elif what == "a link to nothing":
        path.symlink_to(root / "nothing")
    elif what == "a link in a circle":
        path.symlink_to(path)
    elif what == "a folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    problems = quickly(root)
    if what == "a folder" and name.endswith("campaign.yaml"):
        assert problems == []  # a folder of that name is no definition
    else:
        assert any(one.file == name and one.line == line and said in one.message for one in problems), problems


def test_a_link_within_the_folder_is_followed(tmp_path):
    root = folder(tmp_path)
    (root / "shared.mjml").write_text(MAIL)
    (root / KEY / "hello.mjml").unlink()
    (root / KEY / "hello.mjml").symlink_to(root / "shared.mjml")
    (tmp_path / "link").symlink_to(root)
    assert quickly(tmp_path / "link") == []


@pytest.mark.parametrize("name", ["on boarding", "onboarding\r\nx", "ünder", "a" * 120, "a;b", "$(x)", "-\u202ex"])
def test_folders_whose_name_is_no_key(tmp_path, name):
    root = folder(tmp_path)
    bad = root / "onboarding" / name
    bad.mkdir()
    (bad / "campaign.yaml").write_text(GOOD)
    [problem] = quickly(root)
    assert "the name of the folder" in problem.message and str(problem).isprintable()


def test_a_name_that_is_not_text(tmp_path):
    root = folder(tmp_path)
    bad = os.fsencode(root / "onboarding") + b"/\xff\xfe"
    os.mkdir(bad)
    with open(bad + b"/campaign.yaml", "w") as file:
        file.write(GOOD)
    [problem] = quickly(root)
    assert "the name of the folder" in problem.message and str(problem).isprintable()


def test_languages_that_are_none(tmp_path):
    root = folder(tmp_path)
    (root / KEY / "hello.$(x).mjml").write_text(MAIL)
    [problem] = quickly(root)
    assert "$(x) is not a language" in problem.message


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["check", str(tmp_path / "nowhere"), "--home", str(tmp_path / "home")]) == 2
    assert "nowhere" in capsys.readouterr().err
    [problem] = quickly(tmp_path / "nowhere")
    assert str(problem) == "lifecycle.yaml:1:1: cannot be read: No such file or directory [file]"


def test_many_problems_are_cut_off(tmp_path):
    steps = "".join(f"  - {{id: s{n}, wait_for: {{milestone: m{n}, timeout: 1d}}}}\n" for n in range(1_500))
    assert len(quickly(folder(tmp_path, GOOD + steps))) == 1_000


# Names of customers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Mara\r\nBcc: x@example.com", "\r\n\r\n<html>", "a\nX-Y: z", "\u2028Bcc: x", "=?utf-8?q?=0d=0aBcc: x?="])
def test_a_customer_cannot_write_headers(name):
    about = {"message_header": "<a@b.example>", "date": START, "unsubscribe_url": "https://n.example/u/T", "token": "m"}
    try:
        data = assemble(
            Mail(f"Hello {name}", "<p>x</p>", "x", ()),
            sender=(name, "success@example.com"),
            reply_to=None,
            to=(name, "mara@example.net"),
            list_id=f"{name} <product.example.com>",
            feedback_id="a:1:email:example-com",
            **about,
        )
    except RenderSkip as skip:
        assert skip.reason == "bad_header"
        return
    head = data.partition(b"\r\n\r\n")[0].decode("ascii")
    names = {line.partition(":")[0] for line in head.split("\r\n") if not line.startswith((" ", "\t"))}
    assert names <= {
        "Date", "From", "To", "Subject", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "List-ID", "List-Id", "Feedback-ID",
        "X-Nurture-Send", "MIME-Version", "Content-Type", "X-Auto-Response-Suppress", "Precedence",
    }  # fmt: skip
