"""Reading mail that comes in: every kind, every class, and whatever somebody sends who means no good (I-02 to I-06). No database."""

import time
from uuid import UUID

import pytest
from bounces import Sample, corpus, hostile, mail, multipart
from conftest import NOW
from hypothesis import given
from hypothesis import strategies as st

from app.flow.inbound.parse import DEPTH, PARTS, read
from app.flow.inbound.sort import KINDS, answer_of, sort
from app.flow.links import Keyring, Links
from app.rules.reports import classify

LINKS = Links("https://mail.example.com", Keyring({1: b"a" * 32}, 1))
LETTER = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")
TOKEN = LINKS.short_token(LETTER)
HEADER = f"<{LETTER.hex}@acorn.test>"
BOUNCE, UNSUBSCRIBE, REPLY = (LINKS.mailbox(LETTER, kind, "bounce.example.com") for kind in ("bounce", "unsubscribe", "reply"))
CORPUS = corpus(BOUNCE, TOKEN, HEADER)


def sorted_as(raw, **envelope):
    return sort(read(raw), NOW, "mail:1", **envelope)


@pytest.mark.parametrize("sample", CORPUS, ids=lambda one: one.name)
def test_each_mail_of_the_corpus(sample: Sample):
    found = sorted_as(sample.raw)
    assert found.kind == sample.kind
    if sample.kind in ("bounce", "delay"):
        (report,) = found.reports
        assert classify(report) == sample.sort
        assert sample.status is None or report.status == sample.status
        assert report.kind == {"bounce": "bounced", "delay": "deferred"}[sample.kind]
    for report in found.reports:
        named = {report.token and LINKS.read_mailbox(report.token), report.token and LINKS.read_short(report.token)}
        assert ({("bounce", LETTER), LETTER} & named) or report.message_header == HEADER, sample.by


def test_the_corpus_covers_every_row_of_the_table():
    assert {one.sort for one in CORPUS if one.sort} == {"hard", "host", "full", "soft", "block", "configuration"}
    assert {one.kind for one in CORPUS} == {"bounce", "delay", "delivery", "complaint", "feedback", "auto_reply"}
    assert {one.by for one in CORPUS} == {"address", "returned", "quoted", "envelope"}
    assert len({one.name for one in CORPUS}) == len(CORPUS) >= 60


def test_i02_the_fields_of_a_report():
    raw = multipart(
        {"From": "mailer-daemon@x.example", "To": BOUNCE, "Subject": "Delivery report"},
        "multipart/report; report-type=delivery-status",
        [
            ("text/plain", "see below"),
            (
                "message/delivery-status",
                "Reporting-MTA: dns; gate.example\n\n"
                "Original-Recipient: rfc822;Ada@example.org\n"
                "Final-Recipient: rfc822;a.lovelace@inner.example\nAction: failed\nStatus: 5.1.1\n"
                "Remote-MTA: dns; mx.example.org\nDiagnostic-Code: smtp; 550 5.1.1 gone\n\n"
                "Final-Recipient: rfc822;other@example.org\nAction: delayed\nStatus: 4.2.0\n"
                "Will-Retry-Until: Fri, 6 Mar 2026 10:00:00 +0000",
            ),
        ],
    )
    first, second = sorted_as(raw).reports
    assert (first.kind, first.status, first.code, first.recipient) == ("bounced", "5.1.1", 550, "ada@example.org")
    assert first.text == "550 5.1.1 gone" and first.detail == {"mta": "mx.example.org"}
    assert (second.kind, second.status, second.detail["until"]) == ("deferred", "4.2.0", "Fri, 6 Mar 2026 10:00:00 +0000")
    assert first.key != second.key


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("abuse", "complained"),
        ("fraud", "complained"),
        ("opt-out", "unsubscribed"),
        ("not-spam", "not_spam"),
        ("virus", None),
        ("other", None),
    ],
)
def test_i04_what_a_complaint_says(told, kind):
    raw = next(one.raw for one in CORPUS if one.name == f"arf, {told}")
    assert [one.kind for one in sorted_as(raw).reports] == ([kind] if kind else [])


# Unsubscribing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"Auto-Submitted": "auto-generated"}, {"Precedence": "bulk"}, {"Return-Path": "<>"}])
def test_u11_a_mail_to_the_address_unsubscribes_whoever_sent_it(more):
    raw = mail({"From": "Ada <ada@example.org>", "To": UNSUBSCRIBE.upper(), "Subject": "unsubscribe", **more}, "")
    found = sorted_as(raw)
    assert found.kind == "unsubscribe" and found.reports[0].kind == "unsubscribed"
    assert LINKS.read_mailbox(found.reports[0].token) == ("unsubscribe", LETTER)


def test_u11_what_comes_back_to_that_address_is_no_wish():
    raw = next(one.raw for one in CORPUS if one.name == "postfix, no such user").replace(BOUNCE.encode(), UNSUBSCRIBE.encode())
    assert [one.kind for one in sorted_as(raw).reports] == ["bounced"]


def test_the_envelope_goes_before_the_headers():
    raw = mail({"From": "ada@example.org", "To": "hello@acorn.test", "Subject": "unsubscribe"}, "")
    assert sorted_as(raw).kind == "other"
    assert sorted_as(raw, recipient=UNSUBSCRIBE).kind == "unsubscribe"
    assert sorted_as(mail({"Delivered-To": UNSUBSCRIBE, "To": "x@y.example"}, "")).kind == "unsubscribe"
    assert sorted_as(raw, recipient=UNSUBSCRIBE.partition("@")[0]).kind == "unsubscribe"


def test_i01_an_address_that_only_looks_like_ours_is_passed_on_to_be_refused():
    for made_up in (f"b+{TOKEN[:-1]}a@bounce.example.com", f"b+{TOKEN[:20]}@bounce.example.com", "b+aaaaaaaaaaaa1111@bounce.example.com"):
        raw = next(one.raw for one in CORPUS if one.name == "postfix, no such user").replace(BOUNCE.encode(), made_up.encode())
        (report,) = sorted_as(raw).reports
        assert report.token == made_up.partition("@")[0] and report.message_header is None


# Answers -----------------------------------------------------------------------------------------------------------------

ANSWER = (
    "Yes, let us talk tomorrow.\nAda\n\nOn Mon, 2 Mar 2026 at 10:00, Acorn <success@acorn.test> wrote:\n> Hello Ada\n> Shall we talk?\n"
)


def test_i05_an_answer_by_its_address_or_by_what_it_answers():
    for more in ({"To": REPLY}, {"To": "olga@csm.test", "In-Reply-To": HEADER}, {"To": "olga@csm.test", "References": f"<a@b> {HEADER}"}):
        found = sorted_as(mail({"From": "Ada <Ada@Example.org>", "Subject": "Re: Welcome", "Auto-Submitted": "no", **more}, ANSWER))
        assert found.kind == "reply" and found.text == "Yes, let us talk tomorrow.\nAda"
        (report,) = found.reports
        assert report.kind == "replied" and report.sort is None and report.detail["from"] == "ada@example.org"


def test_i05_nobody_is_made_to_answer_by_a_machine():
    machines = [one for one in CORPUS if one.kind == "auto_reply"]
    assert len(machines) >= 7
    for one in machines:
        assert [(report.kind, report.sort) for report in sorted_as(one.raw).reports] == [("replied", "auto_reply")]
    told = mail({"From": "ada@example.org", "To": REPLY, "Subject": "Re: Welcome"}, ANSWER)
    assert sorted_as(told, sender="").kind == "auto_reply" and sorted_as(told, sender="ada@example.org").kind == "reply"


def test_i05_mail_that_answers_nothing_of_ours_is_kept_as_other():
    assert sorted_as(mail({"From": "a@b.example", "To": "hello@acorn.test", "Subject": "Offer"}, "Buy")).kind == "other"
    assert sorted_as(mail({"From": "a@b.example", "To": "x@y.example", "In-Reply-To": "<CA+x@mail.example>"}, "Hm")).reports == ()


def test_an_answer_in_html_is_words():
    raw = mail(
        {"From": "ada@example.org", "To": REPLY, "Content-Type": "text/html; charset=utf-8"},
        "<html><head><style>p {color: red}</style></head><body>"
        "<p>Yes, &lt;please&gt;</p><script>alert(1)</script><div>Ada</div></body></html>",
    )
    assert sorted_as(raw).text == "Yes, <please>\nAda"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ANSWER, "Yes, let us talk tomorrow.\nAda"),
        ("Ja, gerne.\n\nAm Mo., 2. März 2026 um 10:00 Uhr schrieb Acorn <success@acorn.test>:\n> Hallo", "Ja, gerne."),
        ("> only what was quoted", "> only what was quoted"),
        ("", ""),
        ("No quotes here", "No quotes here"),
    ],
)
def test_quotes_are_left_out_and_an_answer_never_is(text, said):
    assert answer_of(text) == said


# Hostile -----------------------------------------------------------------------------------------------------------------

HOSTILE = {
    **{f"bounce: {name}": raw for name, raw in hostile(BOUNCE).items()},
    **{f"reply: {name}": raw for name, raw in hostile(REPLY).items()},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_i06_nothing_raises_or_takes_long(name):
    began = time.process_time()
    found = sorted_as(HOSTILE[name])
    assert time.process_time() - began < 5
    assert found.kind in KINDS and len(found.reports) <= PARTS
    for text in (found.text, *(report.text for report in found.reports)):
        assert "\x00" not in text
        text.encode()


@given(st.binary(max_size=3000))
def test_i06_any_bytes_at_all(raw):
    assert sorted_as(raw).kind in KINDS


@given(st.data())
def test_i06_any_mail_with_some_bytes_changed(data):
    raw = bytearray(data.draw(st.sampled_from(CORPUS)).raw)
    for _ in range(data.draw(st.integers(1, 30))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    assert sorted_as(bytes(raw)).kind in KINDS


def test_i06_what_was_left_unread_is_said():
    found = hostile(BOUNCE)
    assert "50 parts and 10 levels" in " ".join(read(found["200 parts"]).problems) and (PARTS, DEPTH) == (50, 10)
    assert "too many parts" in " ".join(read(found["3000 levels"]).problems)
    assert "64 KB of the headers" in " ".join(read(found["a header of 200 KB"]).problems)
    assert "first 1024 KB" in " ".join(read(found["10 MB of one line"]).problems)
    assert read(found["no headers"]).problems and read(found["nothing"]).problems


def test_x05_nothing_of_inbound_html_is_kept_as_html():
    assert "<" not in sorted_as(hostile(REPLY)["html with a script"]).text
