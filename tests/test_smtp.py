"""The SMTP client tells "certainly not sent" from "perhaps sent" in every phase, and no server can hang or drown it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.errors import SendError, SettingError
from app.providers import Letter
from app.providers.smtp import Smtp, Timeouts
from tests.faulty_smtp import FaultySmtp

SHORT = Timeouts(connect=2, command=0.4, body=0.4, dot=0.4)
MAIL = b"Message-ID: <one@acorn.test>\r\nSubject: hello\r\n\r\nA line.\r\n.\r\n..two dots\r\nThe end.\r\n"

# Table 2.1: phase, fault, then what the client must say: outcome and phase.
TABLE = [
    ("accept", ["close"], "temp", "connect"),
    ("accept", ["reply", "421 4.3.2 busy"], "temp", "connect"),
    ("accept", ["reply", "554 5.7.1 go away"], "temp", "connect"),
    ("accept", ["hang", 1], "temp", "connect"),
    ("ehlo", ["close"], "temp", "connect"),
    ("ehlo", ["reply", "421 4.3.2 busy"], "temp", "connect"),
    ("ehlo", ["hang", 1], "temp", "connect"),
    ("ehlo", ["raw", "250-half"], "temp", "connect"),
    ("mail", ["reply", "451 4.3.0 later"], "temp", "mail"),
    ("mail", ["reply", "550 5.7.1 not you"], "perm", "mail"),
    ("mail", ["close"], "temp", "mail"),
    ("mail", ["hang", 1], "temp", "mail"),
    ("mail", ["reply+close", "421 4.7.0 enough"], "temp", "mail"),
    ("rcpt", ["reply", "450 4.2.0 later"], "temp", "rcpt"),
    ("rcpt", ["reply", "550 5.1.1 no such user"], "perm", "rcpt"),
    ("rcpt", ["reply", "452 4.2.2 mailbox full"], "temp", "rcpt"),
    ("rcpt", ["reply", "553 5.1.3 bad address"], "perm", "rcpt"),
    ("rcpt", ["reply+close", "421 4.7.0 enough"], "temp", "rcpt"),
    ("rcpt", ["raw", "354 what\r\n"], "temp", "rcpt"),
    ("rcpt", ["close"], "temp", "rcpt"),
    ("rcpt", ["hang", 1], "temp", "rcpt"),
    ("data", ["reply", "451 4.3.0 later"], "temp", "data"),
    ("data", ["reply", "554 5.6.0 no"], "perm", "data"),
    ("data", ["reply", "250 2.0.0 already"], "temp", "data"),
    ("data", ["reply+close", "421 4.3.2 busy"], "temp", "data"),
    ("data", ["close"], "temp", "data"),
    ("data", ["hang", 1], "temp", "data"),
    ("body", ["close"], "temp", "body"),
    ("dot", ["reply", "451 4.3.0 later"], "temp", "dot"),
    ("dot", ["reply", "554 5.7.1 spam"], "perm", "dot"),
    ("dot", ["reply+close", "421 4.3.2 full"], "temp", "dot"),
    ("dot", ["reply+close", "550 5.7.1 no"], "perm", "dot"),
    ("dot", ["raw", "250-half a reply\r\n"], "unknown", "dot"),
    ("dot", ["close"], "unknown", "dot"),
    ("dot", ["hang", 1], "unknown", "dot"),
    ("dot", ["raw", "what?\r\n"], "unknown", "dot"),
    ("dot", ["reply", "354 more?"], "unknown", "dot"),
]


@pytest.mark.parametrize("way", ["pipelined", "one by one", "starttls", "implicit tls"])
@pytest.mark.parametrize(("phase", "fault", "outcome", "where"), TABLE)
def test_table_2_1(phase, fault, outcome, where, way, authority):
    """Every phase that can fail gives the class of table 2.1, and "temp before the dot" means that no dot was read."""
    with FaultySmtp({phase: [fault]}, pipelining=way != "one by one", **server_tls(way, authority)) as server:
        error = asyncio.run(failure(relay(server, way, authority), ended_before_the_dot=phase == "body"))
        assert (error.outcome, error.phase) == (outcome, where), error
        if fault[0].startswith("reply") and fault[1][0] in "45":
            assert str(error.code) == fault[1][:3]
        assert server.dots == (1 if phase == "dot" else 0)


# Before the envelope, with the ways in which each can be met: phase, fault, whether only another setting helps.
SIGN_IN = [
    ("auth", ["reply", "535 5.7.8 no"], True),
    ("auth", ["reply", "534 5.7.9 stronger"], True),
    ("auth", ["reply", "454 4.7.0 temporary"], False),
    ("auth", ["close"], False),
    ("auth", ["hang", 1], False),
    ("starttls", ["reply", "454 4.7.0 not now"], False),
    ("starttls", ["close"], False),
    ("starttls", ["hang", 1], False),
    ("starttls", ["raw", "220 go\r\nnonsense that is no TLS"], False),
]


@pytest.mark.parametrize("way", ["starttls", "implicit tls"])
@pytest.mark.parametrize(("phase", "fault", "setting"), SIGN_IN)
def test_table_2_1_before_the_envelope(phase, fault, setting, way, authority):
    """Connect, TLS and AUTH: always `temp` and about the relay; a refused sign-in is a wrong setting. Nothing of a letter goes out."""
    if phase == "starttls" and way == "implicit tls":
        way = "starttls"
    with FaultySmtp({phase: [fault]}, login=("me", "secret"), **server_tls(way, authority)) as server:
        scheme, query = ("smtps", "") if way == "implicit tls" else ("smtp", "?tls=starttls")
        timeouts = Timeouts(connect=0.6, command=0.4, body=0.4, dot=0.4)
        transport = Smtp(f"{scheme}://me:secret@127.0.0.1:{server.port}{query}", timeouts=timeouts, context=authority.client)
        error = asyncio.run(failure(transport))
        assert (error.outcome, error.phase, error.setting) == ("temp", "connect", setting), error
        assert not [command for command in server.commands if command.startswith(("MAIL", "RCPT", "DATA"))]


@pytest.mark.parametrize("way", ["starttls", "implicit tls"])
@pytest.mark.parametrize("wrong", ["unknown authority", "another name", "too old"])
def test_a_certificate_or_a_protocol_that_will_not_do_is_a_wrong_setting(wrong, way, authority, tmp_path):
    """S-17: verified, for this name, by TLS 1.2 at least; nothing is said in the clear instead."""
    server_side, client = authority.server, authority.client
    if wrong == "unknown authority":
        client = ssl.create_default_context()
    elif wrong == "another name":
        other = Authority(tmp_path, name="mail.acorn.test")
        server_side, client = other.server, other.client
    else:
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.load_cert_chain(authority.folder / "both.pem")
        with pytest.warns(DeprecationWarning):
            server_side.minimum_version, server_side.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        server_side.set_ciphers("DEFAULT:@SECLEVEL=0")
    options = {"tls": server_side, "implicit": way == "implicit tls"}
    with FaultySmtp(login=("me", "secret"), **options) as server:
        scheme, query = ("smtps", "") if way == "implicit tls" else ("smtp", "?tls=starttls")
        error = asyncio.run(failure(Smtp(f"{scheme}://me:secret@127.0.0.1:{server.port}{query}", timeouts=SHORT, context=client)))
        assert (error.outcome, error.phase, error.setting) == ("temp", "connect", wrong != "too old"), error
        assert not [command for command in server.commands if command.startswith(("MAIL", "AUTH"))]


@pytest.mark.parametrize("phase", ["mail", "rcpt", "data", "dot", "body", "command"])
def test_each_command_has_a_timeout_of_its_own(phase):
    """S-02: the one that is short ends the waiting, the others would go on."""
    patient = {"connect": 20, "command": 20, "body": 20, "dot": 20}
    timeouts = Timeouts(**{**patient, phase: 0.3})
    faults = {"body": {"body": [["sink"]]}, "command": {"ehlo": [["hang", 3]]}}.get(phase, {phase: [["hang", 3]]})
    data = MAIL if phase != "body" else b"Message-ID: <big@acorn.test>\r\n\r\n" + (b"x" * 70 + b"\r\n") * 120_000
    with FaultySmtp(faults, pipelining=False) as server:
        began = time.monotonic()
        error = asyncio.run(failure(Smtp(server.url, timeouts=timeouts), data))
        assert time.monotonic() - began < 3
        assert error.outcome == ("unknown" if phase == "dot" else "temp")


def test_the_final_dot_is_waited_for_longest():
    assert Timeouts().dot == 600 and all(Timeouts().of(phase) <= 180 for phase in ("connect", "command", "mail", "rcpt", "data", "body"))


def test_421_ends_a_connection_whatever_it_answers():
    async def story(transport):
        connection = await transport.open()
        await connection.begin(letter())
        with pytest.raises(SendError):
            await connection.finish()
        assert not connection.usable
        await connection.close()

    with FaultySmtp({"dot": [["reply", "421 4.3.2 closing"]]}) as server:
        asyncio.run(story(Smtp(server.url)))


def test_reset_can_be_switched_off():
    async def story(transport):
        connection = await transport.open()
        for _ in range(3):
            await connection.begin(letter())
            await connection.finish()
        await connection.close()

    with FaultySmtp() as server:
        asyncio.run(story(Smtp(server.url, reset=False)))
        assert "RSET" not in server.commands


async def resolved(host, port):
    return {"mail.example.com": ["93.184.216.34", "10.0.0.7"], "relay.internal": ["127.0.0.1"]}[host]


@pytest.mark.parametrize(
    ("url", "listed", "problem"),
    [
        ("smtp://mail.example.com", (), "10.0.0.7"),  # one of its addresses is not public
        ("smtp://169.254.169.254:25", (), "169.254.169.254"),
        ("smtp://[::ffff:10.0.0.1]:25", (), "not a public address"),
        ("smtp://relay.internal:25", (), "127.0.0.1"),
        ("smtp://93.184.216.34:6379", (), "port 6379"),
    ],
)
def test_a_transport_goes_to_public_places_only(url, listed, problem):
    """S-20: as for every call, unless the operator lists the place; it is a wrong setting, and nothing is connected to."""
    error = asyncio.run(failure(Smtp(url, listed=listed, resolve=resolved, timeouts=SHORT)))
    assert error.setting and problem in error.text


def test_a_place_that_is_listed_or_this_machine_may_be_used():
    with FaultySmtp() as server:
        listed = {("smtp", "relay.internal", server.port)}
        relay = Smtp(f"smtp://relay.internal:{server.port}?tls=none", listed=listed, resolve=resolved)
        assert asyncio.run(carry(relay, MAIL))
        assert asyncio.run(carry(Smtp(server.url, listed=()), MAIL))  # loopback


def test_the_next_address_is_tried_when_one_does_not_answer():
    with FaultySmtp() as server:

        async def two(host, port):
            return ["127.0.0.2", "127.0.0.1"]

        relay = Smtp(f"smtp://relay.internal:{server.port}?tls=none", resolve=two)
        assert asyncio.run(carry(relay, MAIL))


@pytest.mark.parametrize("way", ["pipelined", "one by one", "starttls", "implicit tls"])
def test_a_letter_arrives_byte_for_byte(way, authority):
    with FaultySmtp(pipelining=way != "one by one", **server_tls(way, authority)) as server:
        assert asyncio.run(carry(relay(server, way, authority), MAIL)) == ["250 2.0.0 queued as 4711"]
        assert server.messages == [MAIL]
        assert server.accepted == {"<one@acorn.test>": 1}


def test_250_counts_even_when_the_connection_then_drops():
    with FaultySmtp({"dot": [["reply+close", "250 2.0.0 ok"]]}) as server:
        assert asyncio.run(carry(Smtp(server.url), MAIL)) == ["250 2.0.0 ok"]


def test_a_connection_is_reused_with_a_reset_between_letters_and_not_beyond_its_limit():
    async def story(transport):
        connection = await transport.open()
        replies = []
        while connection.usable:
            await connection.begin(letter())
            replies.append(await connection.finish())
        await connection.close()
        return replies

    with FaultySmtp() as server:
        assert len(asyncio.run(story(Smtp(server.url, letters=3)))) == 3
        assert server.connections == 1
        assert [command for command in server.commands if command in ("RSET", "QUIT")] == ["RSET", "RSET", "QUIT"]


def test_a_refused_recipient_leaves_the_connection_good_for_the_next():
    async def story(transport):
        connection = await transport.open()
        with pytest.raises(SendError):
            await connection.begin(letter())
        assert connection.usable
        await connection.begin(letter())
        reply = await connection.finish()
        await connection.close()
        return reply

    with FaultySmtp({"rcpt": [["reply", "550 5.1.1 unknown"]]}) as server:
        assert asyncio.run(story(Smtp(server.url))).startswith("250")
        assert server.connections == 1 and server.dots == 1


def test_354_after_a_refused_recipient_ends_the_connection_without_a_dot():
    async def story(transport):
        connection = await transport.open()
        with pytest.raises(SendError) as caught:
            await connection.begin(letter())
        assert not connection.usable
        return caught.value

    # RCPT is refused and, out of step, DATA is accepted all the same.
    with FaultySmtp({"rcpt": [["raw", "550 5.1.1 unknown\r\n354 go on\r\n"]]}) as server:
        assert asyncio.run(story(Smtp(server.url))).code == 550
        assert server.dots == 0


def test_an_early_250_is_not_taken_for_the_answer_to_the_dot():
    async def story(transport):
        connection = await transport.open()
        await connection.begin(letter())
        await until(lambda: connection.wire.replies)
        with pytest.raises(SendError) as caught:
            await connection.finish()
        return caught.value

    with FaultySmtp({"data": [["raw", "354 go on\r\n250 2.0.0 queued already\r\n"]]}) as server:
        error = asyncio.run(story(Smtp(server.url)))
        assert (error.outcome, error.phase, server.dots) == ("temp", "body", 0)


def test_a_dropped_letter_never_gets_its_dot():
    async def story(transport):
        connection = await transport.open()
        await connection.begin(letter())
        connection.drop()
        connection.drop()
        assert not connection.usable

    with FaultySmtp() as server:
        asyncio.run(story(Smtp(server.url)))
        wait_for(lambda: "body" in server.reached)
        assert server.dots == 0 and not server.messages


@pytest.mark.parametrize("phase", ["accept", "ehlo", "rcpt", "dot"])
@pytest.mark.parametrize(
    "fault",
    [
        ["flood", 10_000_000],
        ["raw", "250-" + "x" * 400 + "\r\n" + ("250-" + "y" * 1000 + "\r\n") * 10_000],
        ["raw", "\x00\xff\xfe\x07\r\n"],
        ["raw", "250-one\r\n251 two\r\n"],
        ["raw", "999 no such code\r\n"],
    ],
    ids=["endless line", "10 MB reply", "garbage", "two codes", "no code"],
)
def test_a_hostile_server_costs_little(phase, fault):
    """Not a hang, not a heap: an error of the right phase within the deadline."""
    with FaultySmtp({phase: [fault]}) as server:
        tracemalloc.start()
        try:
            error = asyncio.run(failure(Smtp(server.url, timeouts=SHORT)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert error.outcome == ("unknown" if phase == "dot" else "temp")
        # The server runs in this process too: its chunk and the reply it repeats are part of the peak.
        assert peak < 16_000_000
        assert len(error.text) < 700


def test_a_server_that_dribbles_forever_meets_the_deadline():
    """A byte now and then does not restart the clock: the deadline is the command's, not the read's."""

    def dribble(listener):
        sock, _ = listener.accept()
        with sock:
            try:
                while True:
                    sock.sendall(b"220-still coming\r\n")
                    time.sleep(0.05)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=dribble, args=(listener,))
        thread.start()
        start = time.monotonic()
        error = asyncio.run(failure(Smtp(f"smtp://127.0.0.1:{listener.getsockname()[1]}", timeouts=SHORT)))
        assert time.monotonic() - start < 2
        assert (error.outcome, error.phase) == ("temp", "connect")
        thread.join(5)


def test_a_server_that_stops_reading_meets_the_deadline_of_the_body():
    big = b"Message-ID: <big@acorn.test>\r\n\r\n" + (b"x" * 70 + b"\r\n") * 120_000
    with FaultySmtp({"body": [["sink"]]}) as server:
        error = asyncio.run(failure(Smtp(server.url, timeouts=SHORT), big))
        assert (error.outcome, error.phase) == ("temp", "body")


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = asyncio.run(failure(Smtp(f"smtp://127.0.0.1:{port}")))
    assert (error.outcome, error.phase) == ("temp", "connect")


def test_lower_case_offers_and_mixed_replies_are_understood():
    with FaultySmtp(pipelining=False, extra=("pipelining", "size 100000")) as server:
        asyncio.run(carry(Smtp(server.url), MAIL))
        assert any(" SIZE=" in command for command in server.commands)


def test_the_size_limit_of_the_relay_is_honoured():
    with FaultySmtp(size=1000) as server:
        error = asyncio.run(failure(Smtp(server.url), b"Subject: x\r\n\r\n" + b"y" * 70 * 20 + b"\r\n"))
        assert (error.outcome, error.code) == ("perm", 552)
        assert not [command for command in server.commands if command.startswith("MAIL")]


@pytest.mark.parametrize("data", [b"a\nb\r\n", b"a\rb\r\n", b"a\r\n\n.\r\nMAIL FROM:<evil@x.test>\r\n", b"a\r"])
def test_a_bare_cr_or_lf_never_leaves(data):
    with FaultySmtp() as server:
        error = asyncio.run(failure(Smtp(server.url), data))
        assert (error.outcome, error.phase) == ("perm", "data")
        assert not [command for command in server.commands if command.startswith("MAIL")]


@pytest.mark.parametrize("address", ["a@b.test>\r\nRCPT TO:<c@d.test", "a b@c.test", "ä@b.test", "a@bü.test", "", "a" * 250 + "@b.test"])
def test_an_address_cannot_carry_commands(address):
    with FaultySmtp() as server:
        error = asyncio.run(failure(Smtp(server.url), recipient=address))
        assert (error.outcome, error.phase) == ("perm", "rcpt")
        assert not [command for command in server.commands if command.startswith(("MAIL", "RCPT"))]


def test_a_certificate_of_nobody_is_refused(authority):
    for way in ("starttls", "implicit tls"):
        with FaultySmtp(**server_tls(way, authority)) as server:
            scheme, query = ("smtps", "") if way == "implicit tls" else ("smtp", "?tls=starttls")
            error = asyncio.run(failure(Smtp(f"{scheme}://127.0.0.1:{server.port}{query}")))
            assert (error.outcome, error.phase) == ("temp", "connect")
            assert "certificate" in error.text.lower()
            assert not [command for command in server.commands if command.startswith(("MAIL", "AUTH"))]


def test_without_starttls_nothing_goes_in_the_clear():
    with FaultySmtp(login=("me", "secret")) as server:
        error = asyncio.run(failure(Smtp(f"smtp://me:secret@127.0.0.1:{server.port}?tls=starttls")))
        assert error.phase == "connect" and "STARTTLS" in error.text
        assert not [command for command in server.commands if command.startswith(("MAIL", "AUTH"))]


def test_words_before_the_handshake_are_not_believed(authority):
    with FaultySmtp({"starttls": [["raw", "220 go\r\n250 injected\r\n"]]}, tls=authority.server) as server:
        error = asyncio.run(failure(relay(server, "starttls", authority)))
        assert error.phase == "connect" and "before TLS" in error.text


def test_signing_in(authority):
    with FaultySmtp(tls=authority.server, login=("me@acorn.test", "pass:wörd")) as server:
        url = f"smtp://me%40acorn.test:pass%3Aw%C3%B6rd@127.0.0.1:{server.port}?tls=starttls"
        assert asyncio.run(carry(Smtp(url, context=authority.client), MAIL))
        wrong = f"smtp://me%40acorn.test:no@127.0.0.1:{server.port}?tls=starttls"
        error = asyncio.run(failure(Smtp(wrong, context=authority.client)))
        assert (error.outcome, error.phase, error.code) == ("temp", "connect", 535)


def test_how_the_url_chooses_tls():
    assert Smtp("smtps://mail.example.com").tls == "implicit"
    assert Smtp("smtp://mail.example.com").tls == "starttls"
    assert Smtp("smtp://mail.example.com?tls=none").tls == "none"
    assert Smtp("smtp://localhost").tls == "none"
    assert Smtp("smtp://127.0.0.1?tls=starttls").tls == "starttls"
    assert (Smtp("smtps://mail.example.com").port, Smtp("smtp://mail.example.com").port) == (465, 587)
    with pytest.raises(SettingError):
        Smtp("smtp://me:secret@mail.example.com?tls=none")
    context = Smtp("smtps://mail.example.com").context()
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


# How it is done -------------------------------------------------------------------------------------------------------


class Authority:
    """A certificate for 127.0.0.1, or another name, that signs itself, and the two contexts that use it."""

    def __init__(self, folder, name=None):
        self.folder = folder
        names = [x509.DNSName(name)] if name else [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nurture test")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "both.pem").write_bytes(pem + secret)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(folder / "both.pem")
        self.client = ssl.create_default_context(cadata=pem.decode())


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def server_tls(way, authority):
    return {"starttls": {"tls": authority.server}, "implicit tls": {"tls": authority.server, "implicit": True}}.get(way, {})


def relay(server, way, authority):
    scheme, query = {"starttls": ("smtp", "?tls=starttls"), "implicit tls": ("smtps", "")}.get(way, ("smtp", ""))
    return Smtp(f"{scheme}://127.0.0.1:{server.port}{query}", timeouts=SHORT, context=authority.client)


def letter(data=MAIL, recipient="ada@acorn.test"):
    return Letter(uuid4(), "success@nurture.test", recipient, data)


async def carry(transport, *datas, recipient="ada@acorn.test", ended_before_the_dot=False):
    connection = await transport.open()
    replies = []
    try:
        for data in datas:
            await connection.begin(letter(data, recipient))
            if ended_before_the_dot:
                await until(lambda: connection.wire.lost)
            replies.append(await connection.finish())
        await connection.close()
    finally:
        connection.drop()
        await asyncio.sleep(0)
    return replies


async def failure(transport, data=MAIL, **details):
    with pytest.raises(SendError) as caught:
        await carry(transport, data, **details)
    return caught.value


async def until(test, seconds=5):
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def wait_for(test, seconds=5):
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.005)
