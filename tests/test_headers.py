"""The contract of the bytes that leave: every header of sections 1.2 and 1.3 as it was meant, whatever stands in the data (B-08, M-01 to
M-12, U-01, U-11)."""

from __future__ import annotations

import email
import re
from dataclasses import replace
from email import policy
from uuid import uuid4

import dkim
import pytest
from sqlalchemy import select, text

from app import models
from app.flow.deliver import run
from app.flow.dkim import activate_key, make_key
from app.flow.links import Links, load_keyring
from app.providers.memory import MemoryTransport
from app.providers.smtp import Smtp
from app.queue import Bells
from app.rules.relays import RELAYS
from tests.cast import HTML, LIFECYCLE, TEXT, Cast
from tests.conftest import NOW
from tests.faulty_smtp import FaultySmtp
from tests.test_dkim import QUICK

LONG = "https://mail.example.com/" + "a" * 230  # with /u/ and a token, 306 characters
INBOUND = "bounce.acorn.test"
# RFC 5322 3.6, and those that providers refuse when they stand twice.
SINGLE = [
    "Date", "From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Message-ID", "In-Reply-To", "References", "Subject", "MIME-Version",
    "Content-Type",
    "List-Unsubscribe", "List-Unsubscribe-Post", "List-Id", "Feedback-ID", "Precedence", "Auto-Submitted", "X-Nurture-Send",
]  # fmt: skip


@pytest.fixture
def everything(settings):
    """An installation that uses all there is."""
    return replace(settings, base_url=LONG, inbound_domain=INBOUND)


def deliver(engine, settings, transport=None, now=NOW):
    transport = transport or MemoryTransport()
    run(engine, settings, uuid4(), lambda: now, Bells(None), transport=transport, limits=QUICK)
    return transport


def letter_of(
    engine,
    settings,
    service=None,
    campaign=None,
    lifecycle=None,
    account=None,
    topic="product",
    subject="🦊 {{ contact.first_name }}",
    **contact,
):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, {**(campaign or {}), "steps": [{"id": "welcome", "email": "welcome.mjml", "subject": subject}]}, lifecycle)
        ident = cast.message(cast.contact("ada", cast.account(**(account or {})), **contact), topic=topic)
    [letter] = deliver(engine, settings, MemoryTransport(service=service)).letters
    return ident, letter


def parsed(data: bytes):
    found = email.message_from_bytes(data, policy=policy.default)
    assert not found.defects and not any(value.defects for value in found.values())
    return found


def plain(data: bytes) -> None:
    """S-07, M-07."""
    assert data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n") and 0 not in data and max(data) < 128
    assert max(map(len, data.split(b"\r\n"))) <= 998 and b"\n." not in data


def links(engine, settings) -> Links:
    with engine.connect() as conn:
        return Links(settings.base_url, load_keyring(conn))


@pytest.mark.parametrize("service", [None, *RELAYS])
def test_m08_every_header_of_the_fullest_mail_comes_back_as_it_was_meant(engine, everything, service):
    with engine.begin() as conn:
        records = {}
        for algorithm in ("rsa", "ed25519"):
            made = make_key(conn, everything, "acorn.test", NOW, algorithm=algorithm)
            activate_key(conn, everything, "acorn.test", made["selector"])
            records[f"{made['name']}.".encode()] = made["value"].encode()
    ident, letter = letter_of(engine, everything, RELAYS.get(service), first_name="Łucja „Lu“ 🦊", last_name="O'Neil, Jr.")
    plain(letter.data)
    mail, token = parsed(letter.data), links(engine, everything)
    found = {name: str(value) for name, value in mail.items() if name not in ("DKIM-Signature", "Content-Type")}
    if service:
        found.pop(RELAYS[service].header)
    unsubscribe = token.unsubscribe(ident)
    assert len(unsubscribe) > 300
    assert found == {
        "Date": "Mon, 02 Mar 2026 09:00:00 +0000",
        "From": "Acorn Reports <success@acorn.test>",
        "To": '"Łucja „Lu“ 🦊 O\'Neil, Jr." <ada@acorn.test>',
        "Subject": "🦊 Łucja „Lu“ 🦊",
        "Message-ID": f"<{ident.hex}@acorn.test>",
        "Reply-To": f"help@acorn.test, {token.mailbox(ident, 'reply', INBOUND)}",
        "List-Unsubscribe": f"<{unsubscribe}>, <mailto:{token.mailbox(ident, 'unsubscribe', INBOUND)}?subject=unsubscribe>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "List-Id": "Product <product.acorn.test>",
        "Precedence": "bulk",
        "X-Auto-Response-Suppress": "OOF, AutoReply",
        "Feedback-ID": "onboarding.first-value:1:email:acorn-test",
        "X-Nurture-Send": token.short_token(ident),
        "MIME-Version": "1.0",
    }
    raw = letter.data.decode()
    assert f"\r\nList-Unsubscribe: <{unsubscribe}>, <mailto:" in raw, "one line, not encoded (finding 1)"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    assert len(mail.get_all("DKIM-Signature")) == 2
    assert dkim.verify(letter.data, dnsfunc=lambda name, timeout=5: records[name])


@pytest.mark.parametrize("topic", ["product", "transactional"])
def test_b08_no_header_stands_twice(engine, everything, topic):
    _, letter = letter_of(engine, everything, RELAYS["sendgrid"], {"topic": topic}, topic=topic)
    mail = parsed(letter.data)
    for name in {*SINGLE, *mail.keys()}:
        assert len(mail.get_all(name, [])) <= 1, name
    assert len(mail["From"].addresses) == 1


def test_m05_transactional_mail_says_that_it_is_automatic_and_has_no_list(engine, everything):
    _, letter = letter_of(engine, everything, campaign={"topic": "transactional"}, topic="transactional")
    mail = parsed(letter.data)
    assert mail["Auto-Submitted"] == "auto-generated"
    assert not {"List-Unsubscribe", "List-Unsubscribe-Post", "Precedence", "List-Id"} & set(mail.keys())


def test_m12_the_envelope_is_of_this_message_alone_and_fits(engine, everything):
    ident, letter = letter_of(engine, everything)
    local, _, domain = letter.sender.partition("@")
    assert domain == INBOUND and len(local) <= 64 and len(letter.sender) <= 254
    assert re.fullmatch(r"b\+[a-z2-7]{40}", local)
    assert links(engine, everything).read_mailbox(letter.sender) == ("bounce", ident)
    assert parsed(letter.data)["From"].addresses[0].addr_spec == "success@acorn.test"


def test_u11_the_mail_variant_names_the_message_too(engine, everything):
    ident, letter = letter_of(engine, everything)
    address = re.search(r"<mailto:(u\+[^?>]+)\?subject=unsubscribe>", str(parsed(letter.data)["List-Unsubscribe"]))[1]
    assert links(engine, everything).read_mailbox(address) == ("unsubscribe", ident)
    assert len(address.partition("@")[0]) <= 64


def test_without_an_inbound_domain_nothing_leads_there(engine, settings):
    _, letter = letter_of(engine, settings)
    mail = parsed(letter.data)
    assert letter.sender == "success@acorn.test" and "mailto:" not in mail["List-Unsubscribe"]
    assert mail["Reply-To"] == "help@acorn.test"


def test_answers_reach_the_sender_even_where_no_reply_address_is_set(engine, everything):
    senders = {"default": {"name": "Acorn", "email": "success@acorn.test"}}
    ident, letter = letter_of(engine, everything, lifecycle={"senders": senders})
    assert parsed(letter.data)["Reply-To"] == f"success@acorn.test, {links(engine, everything).mailbox(ident, 'reply', INBOUND)}"


def test_m01_a_retry_repeats_message_id_token_and_addresses(engine, everything):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        cast.message(cast.contact("ada"))
    transport = MemoryTransport()
    transport.fail("dot")
    deliver(engine, everything, transport)
    with engine.connect() as conn:
        due = conn.execute(select(models.message.c.due_at)).scalar_one()
    deliver(engine, everything, transport, due)
    first, second = (parsed(letter.data) for letter in transport.begun)
    for name in ("Message-ID", "X-Nurture-Send", "List-Unsubscribe", "Reply-To", "Feedback-ID", "List-Id"):
        assert first[name] == second[name]
    assert transport.begun[0].sender == transport.begun[1].sender


@pytest.mark.parametrize(
    ("address", "sent_to"), [("ada@münchen.example", "ada@xn--mnchen-3ya.example"), ("ada@點看.example", "ada@xn--c1yn36f.example")]
)
def test_m11_a_domain_of_other_letters_travels_as_a_labels(engine, everything, address, sent_to):
    _, letter = letter_of(engine, everything, address=address, person=address)
    assert letter.recipient == sent_to and f"<{sent_to}>" in letter.data.decode()


def test_m11_a_local_part_of_other_letters_ends_that_message_with_its_reason(engine, everything):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        cast.message(cast.contact("ada", address="ädä@acorn.test", person="ädä@acorn.test"))
    assert not deliver(engine, everything).letters
    with engine.connect() as conn:
        assert tuple(conn.execute(select(models.message.c.state, models.message.c.reason)).one()) == ("skipped", "eai_unsupported")


# What is in the data stays data --------------------------------------------------------------------------------------

HOSTILE = [
    "x\r\nBcc: evil@example.com",
    "x\nBcc: evil@example.com",
    "x\rBcc: evil@example.com",
    "x\r\n\r\n<script>",
    "x\x0bBcc: evil@example.com",
    "x\x85Bcc: y\u2028Bcc: z",
    'x" <evil@example.com>, "y',
    "x, evil@example.com",
    "=?utf-8?q?x=0D=0ABcc:_evil@example.com?=",
    "x\r\n.\r\nMAIL FROM:<evil@example.com>\r\n",
    "x\n.\nMAIL FROM:<evil@example.com>\n",
]
# Every input that reaches a header, and how a test gives it a value.
INPUTS = {
    "first name": lambda bad: {"first_name": bad},
    "last name": lambda bad: {"last_name": bad},
    "subject's value": lambda bad: {"subject": "Hi {{ contact.first_name }}", "first_name": bad},
    "account's name": lambda bad: {"subject": "Hi {{ account.name }}", "account": {"name": bad}},
    "subject itself": lambda bad: {"subject": bad},
    "owner's name": lambda bad: {"account": {"owner_name": bad, "owner_email": "olu@acorn.test"}, "lifecycle": OWNED},
    "owner's address": lambda bad: {"account": {"owner_name": "Olu", "owner_email": bad}, "lifecycle": OWNED},
    "owner's local part": lambda bad: {"account": {"owner_name": "Olu", "owner_email": f"{bad}@acorn.test"}, "lifecycle": OWNED},
    "topic's name": lambda bad: {"lifecycle": {"topics": {"product": {"name": bad}, "survey": {"name": "Surveys"}}}},
    "sender's name": lambda bad: {"lifecycle": {"senders": {"default": {"name": bad, "email": "success@acorn.test"}}}},
}
OF_FILES = ("subject itself", "topic's name", "sender's name")
OWNED = {"senders": {"default": {"name": "Acorn", "email": "success@acorn.test", "owner": True}}}
ALLOWED = {
    "Date", "From", "To", "Subject", "Message-ID", "Reply-To", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Id", "Precedence",
    "X-Auto-Response-Suppress", "Feedback-ID", "X-Nurture-Send", "MIME-Version", "Content-Type",
}  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", INPUTS)
def test_m09_no_input_adds_a_header_a_recipient_or_a_line(engine, everything, name, hostile):
    """Refused with a reason, by the check or when it is sent, or made harmless: never another header, and nobody else is written to."""
    given = INPUTS[name](hostile)
    lifecycle = given.pop("lifecycle", None)
    account, subject = given.pop("account", {}), given.pop("subject", "Hi {{ contact.first_name }}")
    step = {"id": "welcome", "email": "welcome.mjml", "subject": subject}
    with engine.begin() as conn:
        cast = Cast(conn, NOW, {"steps": [step]}, lifecycle)
        ident = cast.message(cast.contact("ada", cast.account(**account), **given))
    try:
        letters = deliver(engine, everything).letters
    except ValueError as refused:
        assert name in OF_FILES and "is one line of text" in str(refused), "what a file says is refused by the check"
        return
    if not letters:
        with engine.connect() as conn:
            row = conn.execute(select(models.message.c.state, models.message.c.reason).where(models.message.c.id == ident)).one()
        assert row.state == "skipped" and row.reason in ("bad_header", "bad_template", "render_failed", "eai_unsupported"), row
        return
    [letter] = letters
    plain(letter.data)
    mail = parsed(letter.data)
    assert set(mail.keys()) <= ALLOWED and letter.recipient == "ada@acorn.test"
    assert [one.addr_spec for one in mail["To"].addresses] == ["ada@acorn.test"]
    assert len(mail["From"].addresses) == 1 and mail["From"].addresses[0].domain == "acorn.test"
    assert "evil@example.com" not in [one.addr_spec for one in mail["Reply-To"].addresses]


def test_m09_a_nul_reaches_no_database_and_so_no_header(engine):
    """PostgreSQL stores none; what is rendered from elsewhere is covered by `test_mime`."""
    with engine.connect() as conn, pytest.raises(Exception, match="NUL"):
        conn.execute(text("select cast(:bad as text)"), {"bad": "x\x00y"})


@pytest.mark.parametrize(
    "hostile",
    ["x\r\n.\r\nMAIL FROM:<e@x.test>\r\nRCPT TO:<v@x.test>\r\nDATA\r\nx", "x\n.\nMAIL FROM:<e@x.test>\n", "x\r.\rDATA\r", ".\n.."],
)
def test_s07_no_value_smuggles_a_second_message_through_a_real_relay(engine, everything, hostile):
    """A value in both bodies, the subject and the name: the relay sees one message to one recipient, with CRLF line ends alone."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW, {"steps": [{"id": "welcome", "email": "welcome.mjml", "subject": "{{ contact.first_name }}"}]})
        cast.message(cast.contact("ada", first_name=hostile))
    with FaultySmtp() as server:
        deliver(engine, everything, Smtp(server.url, connections=2))
        assert sum(server.accepted.values()) == server.dots == len(server.messages) == 1
        assert [one for one in server.commands if one.upper().startswith("RCPT")] == ["RCPT TO:<ada@acorn.test>"]
        [raw] = server.messages
    assert raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r")


def test_the_cast_reads_what_these_tests_rely_on():
    assert "contact.first_name" in HTML and "contact.first_name" in TEXT and "default" in LIFECYCLE["senders"]
