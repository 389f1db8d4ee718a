"""Signatures of ours, verified by another's verifier, and the keys that make them (B-02, B-10, U-03)."""

from __future__ import annotations

import json
import re
import threading
from base64 import b64decode
from datetime import timedelta
from hashlib import sha256
from uuid import uuid4

import dkim
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import text

from app import doctor
from app.cli import main
from app.config import load
from app.errors import InputError, NotFound
from app.flow import couriers
from app.flow.deliver import run
from app.flow.dkim import activate_key, find_key, list_keys, make_key, retire_key
from app.flow.signing import Key, Signer
from app.providers.memory import MemoryTransport
from app.queue import Bells
from app.rules.delivery import Limits
from app.rules.relays import RELAYS, relay_of
from tests.cast import Cast
from tests.conftest import NOW
from tests.test_mime import Rendered, message, sound

QUICK = Limits(poll=0.02, gather=0.0, patience=(0.05,), back_off=1.0, heartbeat=0.2, farewell=0.5)
RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.generate()
LISTED = (
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "From",
    "Subject",
    "To",
    "Date",
    "Message-ID",
    "List-Id",
    "Feedback-ID",
    "Precedence",
)


def signed(*keys, unsigned=(), **changes) -> bytes:
    return Signer("example.com", keys or [Key("n1", RSA)]).sign(message(**changes), NOW, unsigned)


def public(private) -> bytes:
    from app.flow.dkim import _record

    return _record(private).encode()


def verifies(raw: bytes, private=RSA, which: int = 0) -> bool:
    """By dkimpy, which asks for the record in the DNS."""
    asked = []

    def answer(name, timeout=5):
        asked.append(name)
        return public(private)

    try:
        result = dkim.DKIM(raw, minkey=1024).verify(which, dnsfunc=answer)
    except dkim.ValidationError:
        return False
    assert asked and asked[0].decode().endswith("._domainkey.example.com.")
    return result


def tags(raw: bytes, which: int = 0) -> dict[str, str]:
    head = re.sub(rb"\r\n[ \t]+", b" ", raw.partition(b"\r\n\r\n")[0]).split(b"\r\n")
    line = [one for one in head if one.startswith(b"DKIM-Signature:")][which].partition(b":")[2].decode()
    return {name.strip(): value.replace(" ", "") for name, _, value in (tag.partition("=") for tag in line.split(";"))}


@pytest.mark.parametrize(
    "mail",
    [
        {},
        {"mail": Rendered(subject="Grüße 🦊 " * 12)},
        {"to": ("Łukasz „Fux“ 🦊", "mara@example.net"), "unsubscribe_mailto": "mailto:u+abc@b.example.com?subject=unsubscribe"},
        {"mail": Rendered(text=".dot\n\n\n\n")},
        {"transactional": True, "unsubscribe_url": None, "list_id": None},
        {"reply_to": ("help@example.com", "r+abc@b.example.com")},
    ],
)
def test_b10_a_signature_verifies_and_says_how_it_was_made(mail):
    raw = signed(**mail)
    sound(raw)
    assert verifies(raw)
    said = tags(raw)
    assert (said["a"], said["c"], said["d"], said["s"], said["t"]) == ("rsa-sha256", "relaxed/simple", "example.com", "n1", "1772442000")


def test_u03_everything_is_covered_and_what_must_stand_once_is_named_once_more():
    raw = signed()
    names = tags(raw)["h"].split(":")
    own = [
        line.partition(b":")[0].decode().lower() for line in message().partition(b"\r\n\r\n")[0].split(b"\r\n") if line[:1] not in b" \t"
    ]
    assert set(own) == set(names)
    more = {name for name in names if names.count(name) == 2}
    assert {"from", "list-unsubscribe", "list-unsubscribe-post", "subject", "to", "reply-to"} <= more
    assert all(len(line) <= 78 for line in raw.partition(b"Date:")[0].split(b"\r\n"))


@pytest.mark.parametrize("header", LISTED)
def test_u03_a_changed_a_missing_and_a_second_header_break_the_signature(header):
    raw = signed()
    assert verifies(raw)
    name = header.encode()
    value = re.search(rb"\r\n" + name + rb": (.+?)\r\n(?![ \t])", raw, re.S)
    assert value
    start, end = value.span(1)
    assert not verifies(raw[:start] + b"x" + raw[start:])
    assert not verifies(raw[: value.start()] + raw[end:])
    if header in ("List-Unsubscribe", "List-Unsubscribe-Post", "From", "Subject", "To"):
        forged = name + b": <https://evil.example/u>\r\n"
        assert not verifies(forged + raw), "one in front"
        assert not verifies(raw.replace(b"\r\nDate:", b"\r\n" + forged + b"Date:", 1)), "one in the middle"


def test_a_changed_body_breaks_the_signature_and_what_relays_add_in_front_does_not():
    raw = signed()
    assert not verifies(raw.replace(b"Line two", b"Line too"))
    assert not verifies(raw + b"x\r\n")
    assert verifies(b"Received: from a by b;\r\n Mon, 02 Mar 2026 09:00:01 +0000\r\nReturn-Path: <b@b.example.com>\r\n" + raw)
    folded = raw.replace(b"Precedence: bulk", b"Precedence:\r\n   bulk  ")
    assert folded != raw and verifies(folded), "relaxed: white space may change"


def test_headers_that_a_relay_takes_out_or_writes_anew_are_not_covered():
    ses = RELAYS["ses"]
    raw = signed(metadata=(ses.header, ses.value("abc")), unsigned=ses.unsigned)
    names = tags(raw)["h"].split(":")
    assert not {"message-id", "date", "x-ses-message-tags"} & set(names) and "from" in names
    rewritten = re.sub(rb"\r\nX-SES-MESSAGE-TAGS: [^\r]*", b"", raw)
    rewritten = re.sub(rb"\r\n(Date|Message-ID): [^\r]*", rb"\r\n\1: other", rewritten)
    assert rewritten != raw and verifies(rewritten)


def test_b10_an_ed25519_signature_stands_second_with_its_own_selector():
    raw = signed(Key("e1", ED), Key("n1", RSA))
    assert (tags(raw, 0)["a"], tags(raw, 0)["s"]) == ("rsa-sha256", "n1")
    assert (tags(raw, 1)["a"], tags(raw, 1)["s"]) == ("ed25519-sha256", "e1")
    assert verifies(raw) and ed_verifies(raw, 1, ED.public_key())
    assert not ed_verifies(raw.replace(b"bulk", b"bulb"), 1, ED.public_key())
    assert not ed_verifies(raw, 1, ed25519.Ed25519PrivateKey.generate().public_key())


def ed_verifies(raw: bytes, which: int, key: ed25519.Ed25519PublicKey) -> bool:
    """RFC 8463 as it is written, as dkimpy verifies Ed25519 only with another library. Relaxed headers, simple body."""
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = re.split(rb"\r\n(?![ \t])", head)
    said = tags(raw, which)
    if b64decode(said["bh"]) != sha256(body).digest():
        return False

    def relaxed(field: bytes) -> bytes:
        name, _, value = field.partition(b":")
        return name.strip().lower() + b":" + re.sub(rb"[ \t]+", b" ", value.replace(b"\r\n", b"")).strip() + b"\r\n"

    left = [(field.partition(b":")[0].strip().lower().decode(), field) for field in fields]
    data = b""
    for name in said["h"].lower().split(":"):
        place = next((number for number in reversed(range(len(left))) if left[number][0] == name), None)
        if place is not None:
            data += relaxed(left.pop(place)[1])
    own = [field for field in fields if field.startswith(b"DKIM-Signature:")][which]
    data += relaxed(re.sub(rb"b=[A-Za-z0-9+/=\s]+$", b"b=", own)).removesuffix(b"\r\n")
    try:
        key.verify(b64decode(said["b"]), sha256(data).digest())
    except InvalidSignature:
        return False
    return True


def test_what_must_not_be_signed_raises():
    with pytest.raises(ValueError, match="too short"):
        Signer("example.com", [Key("n1", rsa.generate_private_key(65537, 1024))]) and Signer("example.com", [Key("n1", short_key())])
    signer = Signer("example.com", [Key("n1", RSA)])
    with pytest.raises(ValueError, match="twice"):
        signer.sign(b"Subject: other\r\n" + message(), NOW)
    with pytest.raises(ValueError, match="From"):
        signer.sign(b"Subject: other\r\n\r\nx\r\n", NOW)


def short_key():
    """OpenSSL makes none any more: an old one of 512 bits."""
    numbers = rsa.RSAPrivateNumbers
    p, q, e = 2**255 + 95, 2**256 - 189, 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    return numbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(e, p * q)).private_key(
        unsafe_skip_rsa_key_validation=True
    )


# Keys ------------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_activated_replaced_and_retired(engine, settings):
    with engine.begin() as conn:
        one = make_key(conn, settings, "Acorn.Test.", NOW)
        assert (one["domain"], one["selector"], one["state"], one["bits"]) == ("acorn.test", "n202603r", "waiting", 2048)
        assert one["name"] == "n202603r._domainkey.acorn.test" and one["value"].startswith("v=DKIM1; k=rsa; p=MIIB")
        two = make_key(conn, settings, "acorn.test", NOW + timedelta(days=40))
        ed = make_key(conn, settings, "acorn.test", NOW, algorithm="ed25519")
        assert ed["selector"] == "n202603e" and len(b64decode(ed["value"].partition("p=")[2])) == 32
        for selector in (one["selector"], ed["selector"], two["selector"]):
            activate_key(conn, settings, "acorn.test", selector)
        assert {row["selector"]: row["state"] for row in list_keys(conn)} == {
            "n202603r": "waiting",
            "n202603e": "active",
            "n202604r": "active",
        }
        assert retire_key(conn, "acorn.test", "n202603r", NOW)["state"] == "retired"
        assert conn.execute(text("select count(*) from dkim_key where sealed is null")).scalar() == 1
        with pytest.raises(InputError, match="retired"):
            activate_key(conn, settings, "acorn.test", "n202603r")
        stored = conn.execute(text("select sealed from dkim_key where active")).scalars().all()
        assert not any("PRIVATE" in one or "MII" in one for one in stored)


def test_b10_what_is_no_good_key_is_refused(engine, settings):
    def pem(private):
        return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with engine.begin() as conn:
        for options in (
            {"bits": 512},
            {"bits": 8192},
            {"algorithm": "rsa-sha1"},
            {"selector": "a b"},
            {"selector": "x" * 64},
            {"pem": b"nonsense"},
            {"pem": pem(ec.generate_private_key(ec.SECP256R1()))},
        ):
            with pytest.raises(InputError):
                make_key(conn, settings, "acorn.test", NOW, **options)
        for domain in ("", "a b", "x\r\ny.test", "x@y.test"):
            with pytest.raises(InputError):
                make_key(conn, settings, domain, NOW)
        made = make_key(conn, settings, "münchen.example", NOW, selector="mine", pem=pem(RSA))
        assert (made["domain"], made["value"]) == ("xn--mnchen-3ya.example", public(RSA).decode())
        with pytest.raises(InputError, match="already"):
            make_key(conn, settings, "münchen.example", NOW, selector="mine")
        with pytest.raises(NotFound):
            find_key(conn, "münchen.example", "other")


def test_the_command(engine, settings, capsys, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    where = ["--home", str(settings.home), "--json"]

    def nurture(*words):
        assert main([*words, *where]) == 0
        return json.loads(capsys.readouterr().out)

    made = nurture("dkim", "make", "acorn.test", "--selector", "one", "--bits", "1024")
    assert made["type"] == "TXT" and made["state"] == "waiting"
    assert nurture("dkim", "record", "acorn.test", "one")["value"] == made["value"]
    assert nurture("dkim", "activate", "acorn.test", "one")["state"] == "active"
    assert [one["selector"] for one in nurture("dkim", "list")] == ["one"]
    assert nurture("dkim", "retire", "acorn.test", "one")["state"] == "retired"
    assert main(["dkim", "record", "acorn.test", "other", *where]) == 2
    assert main(["dkim", "make", "acorn.test", "--home", str(settings.home)]) == 0
    shown = capsys.readouterr().out
    strings = re.findall(r'^  "([^"]+)"$', shown, re.M)
    assert len(strings) == 2 and max(map(len, strings)) == 255 and "".join(strings).startswith("v=DKIM1; k=rsa; p=")


# Sending ---------------------------------------------------------------------------------------------------------------


def deliver(engine, settings, transport=None, now=NOW):
    transport = transport or MemoryTransport()
    run(engine, settings, uuid4(), lambda: now, Bells(None), transport=transport, limits=QUICK)
    return transport


def keyed(conn, settings, *algorithms):
    for algorithm in algorithms or ("rsa",):
        made = make_key(conn, settings, "acorn.test", NOW, algorithm=algorithm)
        activate_key(conn, settings, "acorn.test", made["selector"])
    return {row["name"] + ".": row["value"].encode() for row in list_keys(conn)}


def test_mail_of_a_domain_with_an_active_key_is_signed_in_threads_of_its_own(engine, settings, monkeypatch):
    threads = set()
    plainly = couriers._signed

    def watched(*arguments):
        threads.add(threading.current_thread().name)
        return plainly(*arguments)

    monkeypatch.setattr(couriers, "_signed", watched)
    with engine.begin() as conn:
        records = keyed(conn, settings, "rsa", "ed25519")
        cast = Cast(conn, NOW)
        acorn = cast.account()
        for number in range(40):
            cast.message(cast.contact(f"p{number}", acorn))
    letters = deliver(engine, settings).letters
    assert len(letters) == len({letter.recipient for letter in letters}) == 40
    for letter in letters:
        said = tags(letter.data)
        assert said["d"] == "acorn.test" and tags(letter.data, 1)["a"] == "ed25519-sha256"
        assert dkim.verify(letter.data, dnsfunc=lambda name, timeout=5: records[name.decode()])
    assert threads and all(name.startswith("sign") for name in threads)


def test_without_an_active_key_of_the_from_domain_the_relay_signs(engine, settings):
    with engine.begin() as conn:
        make_key(conn, settings, "acorn.test", NOW)
        other = make_key(conn, settings, "mail.acorn.test", NOW)
        activate_key(conn, settings, "mail.acorn.test", other["selector"])
        cast = Cast(conn, NOW)
        cast.message(cast.contact("ada"))
    [letter] = deliver(engine, settings).letters
    assert b"DKIM-Signature" not in letter.data


def test_a_key_that_is_activated_or_retired_counts_from_the_next_batch_on(engine, settings):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        cast.message(cast.contact("ada"))
    assert b"DKIM-Signature" not in deliver(engine, settings).letters[0].data
    with engine.begin() as conn:
        [name] = keyed(conn, settings)
        Cast.of(conn, NOW).message(Cast.of(conn, NOW).contact("bob", Cast.of(conn, NOW).account("birch")))
    assert b"DKIM-Signature" in deliver(engine, settings).letters[0].data
    with engine.begin() as conn:
        retire_key(conn, "acorn.test", name.partition(".")[0], NOW)
        Cast.of(conn, NOW).message(Cast.of(conn, NOW).contact("cleo", Cast.of(conn, NOW).account("cedar")))
    assert b"DKIM-Signature" not in deliver(engine, settings).letters[0].data


def test_mail_that_cannot_be_signed_as_its_key_is_sealed_waits(engine, settings, tmp_path):
    other = load({"NURTURE_HOME": str(tmp_path / "other"), "DATABASE_URL": settings.database_url, "NURTURE_SECRET_KEY": "o" * 40})
    with engine.begin() as conn:
        keyed(conn, other)
        cast = Cast(conn, NOW)
        ident = cast.message(cast.contact("ada"))
    assert not deliver(engine, settings).letters
    with engine.connect() as conn:
        row = conn.execute(text("select state, reason, due_at, attempts from message where id = :id"), {"id": ident}).one()
        said = conn.execute(text("select gate, verdict, evidence from decision where message_id = :id"), {"id": ident}).one()
    assert (row.state, row.reason, row.attempts, row.due_at) == ("due", "sealed_key", 0, NOW + timedelta(minutes=15))
    assert (said.gate, said.verdict) == ("send", "wait") and "NURTURE_SECRET_KEY" in said.evidence["problem"]
    [found] = [one for one in doctor.examine(settings, engine, NOW) if one.what == "dkim"]
    assert not found.good and "acorn.test" in found.seen
    assert [one for one in doctor.examine(other, engine, NOW) if one.what == "dkim"][0].seen == "signs for acorn.test"
    with engine.begin() as conn:
        keyed(conn, settings, "ed25519")
        conn.execute(text("update dkim_key set active = algorithm = 'ed25519'"))
    assert len(deliver(engine, settings, now=NOW + timedelta(minutes=15)).letters) == 1


def test_a_letter_that_cannot_be_signed_is_tried_again_and_holds_nobody_up(engine, settings, monkeypatch):
    plainly = Signer.sign

    def failing(self, data, at, unsigned=()):
        if b"bob@" in data:
            raise RuntimeError("no pen")
        return plainly(self, data, at, unsigned)

    monkeypatch.setattr(Signer, "sign", failing)
    with engine.begin() as conn:
        keyed(conn, settings)
        cast = Cast(conn, NOW)
        acorn = cast.account()
        for name in ("ada", "bob", "cleo"):
            cast.message(cast.contact(name, acorn))
    assert sorted(letter.recipient for letter in deliver(engine, settings).letters) == ["ada@acorn.test", "cleo@acorn.test"]
    with engine.connect() as conn:
        assert conn.execute(text("select state, reason, count(*) from message group by 1, 2 order by 1")).all() == [
            ("due", "render_failed", 1),
            ("sent", None, 2),
        ]


# Relays ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("email-smtp.eu-west-1.amazonaws.com", "ses"),
        ("SMTP.SendGrid.net.", "sendgrid"),
        ("smtp.eu.mailgun.org", "mailgun"),
        ("smtp.postmarkapp.com", "postmark"),
        ("smtp-broadcasts.postmarkapp.com", "postmark"),
        ("relay.example.com", None),
        ("evilamazonaws.com", None),
        ("", None),
        (None, None),
    ],
)
def test_the_email_service_is_known_by_its_host(host, name):
    found = relay_of(host)
    assert (found.name if found else None) == name


@pytest.mark.parametrize("name", RELAYS)
def test_m02_p13_a_known_service_gets_the_token_in_its_own_header_and_nothing_else(engine, settings, name):
    with engine.begin() as conn:
        records = keyed(conn, settings)
        cast = Cast(conn, NOW)
        ident = cast.message(cast.contact("ada"))
    [letter] = deliver(engine, settings, MemoryTransport(service=RELAYS[name])).letters
    head = letter.data.partition(b"\r\n\r\n")[0].decode()
    token = re.search(r"^X-Nurture-Send: ([a-z2-7]{40})\r$", head + "\r", re.M)[1]
    value = re.search(rf"^{RELAYS[name].header}: (.*)\r$", head + "\r", re.M)[1]
    assert (
        value
        in {
            "ses": f"nurture_send={token}",
            "sendgrid": json.dumps({"unique_args": {"nurture_send": token}}),
            "mailgun": json.dumps({"nurture_send": token}),
            "postmark": token,
        }[name]
    )
    assert RELAYS[name].header.lower() not in tags(letter.data)["h"]
    assert dkim.verify(letter.data, dnsfunc=lambda one, timeout=5: records[one.decode()])
    for other in RELAYS.values():
        assert (other.header in head) == (other.name == name)
    assert str(ident) not in value


def test_an_unknown_relay_is_told_nothing(engine, settings):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        cast.message(cast.contact("ada"))
    [letter] = deliver(engine, settings).letters
    assert not any(one.header.encode() in letter.data for one in RELAYS.values())
