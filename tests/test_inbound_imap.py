"""Fetching from an IMAP server: a real one, in a process of its own (pymap), over TLS and plainly on this machine."""

import imaplib
import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from urllib.request import Request, urlopen

import pytest
from bounces import corpus, mail
from conftest import NOW
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from processes import eventually
from sqlalchemy import text
from test_inbound import Post
from test_up import Engine, free_port

from app import home
from app.config import CODE, load
from app.db import connect
from app.errors import MailboxError, SettingError
from app.flow.access import create_key
from app.flow.inbound import poll as flow
from app.flow.inbound.poll import AFTER_TROUBLE, BEGINNING, EVERY, poll, remember
from app.flow.links import Links, load_keyring
from app.providers.imap import folder_of, open_folder
from app.queue import Bells, find_due

PASSWORD = "p@ss/w%rd"
QUOTED = "p%40ss%2Fw%25rd"


class Server:
    """pymap, with one empty mailbox in memory; `seed` puts mails there as a mail server would."""

    def __init__(self, port, *options):
        self.port = port
        command = [
            sys.executable,
            "-c",
            "import sys; from pymap.main import main; sys.exit(main())",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        backend = ["dict", "--demo-user", "nurture", "--demo-password", PASSWORD]
        self.process = subprocess.Popen([*command, *options, *backend], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ready(self):
        def answers():
            try:
                with imaplib.IMAP4("127.0.0.1", self.port, timeout=5) as conn:
                    return bool(conn.welcome)
            except OSError:
                return False

        assert eventually(answers, 20)
        return self

    def session(self):
        conn = imaplib.IMAP4("127.0.0.1", self.port, timeout=10)
        conn.login("nurture", PASSWORD)
        return conn

    def seed(self, *mails):
        with self.session() as conn:
            for raw in mails:
                status, said = conn.append("INBOX", None, None, raw)
                assert status == "OK", said

    def flags(self):
        with self.session() as conn:
            conn.select("INBOX", readonly=True)
            return [line for line in conn.fetch("1:*", "(FLAGS)")[1] if line]

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server():
    made = Server(free_port(), "--no-tls").ready()
    yield made
    made.close()


@pytest.fixture
def post(engine):
    return Post(engine)


class Mailbox:
    """What a worker knows: settings with the folder, and a clock that may be put forward."""

    def __init__(self, post, settings, url):
        self.post, self.now = post, NOW
        self.settings = load({"NURTURE_HOME": str(settings.home), "DATABASE_URL": settings.database_url, "NURTURE_IMAP_URL": url})
        self.tell()

    def tell(self):
        with self.post.engine.begin() as conn:
            remember(conn, self.settings, self.now)

    def poll(self, later=EVERY, **options):
        self.now += later
        return poll(self.post.engine, self.settings, lambda: self.now, Bells(None), **options)

    def state(self):
        ((last, error, leased, due),) = self.post.rows("select last_uid, error, leased_until, due_at from mailbox")
        return last, error, leased, due


def url(port, more="", scheme="imap"):
    return f"{scheme}://nurture:{QUOTED}@127.0.0.1:{port}/INBOX{more}"


@pytest.fixture
def mailbox(post, settings, server):
    return Mailbox(post, settings, url(server.port))


def numbered(count, start=0):
    return [f"Subject: {number}\r\n\r\nHello {number}\r\n".encode() for number in range(start, start + count)]


def test_new_mail_is_fetched_once_and_byte_for_byte(post, server, mailbox):
    assert mailbox.poll() == 0
    raw = post.samples["postfix, no such user"].raw
    server.seed(raw, *numbered(3))
    assert mailbox.poll() == 4 and mailbox.poll() == 0
    assert [bytes(one) for (one,) in post.mails("raw")] == [raw, *numbered(3)]
    places = post.mails("via", "place")
    assert [via for via, _ in places] == ["imap"] * 4 and len({place for _, place in places}) == 4
    server.seed(*numbered(2, 3))
    assert mailbox.poll() == 2
    post.work()
    assert post.suppressed() == [("ada@example.org", "bounced", "bounced")]


def test_the_mailbox_is_left_as_it_was(server, mailbox):
    server.seed(*numbered(2))
    before = server.flags()
    assert mailbox.poll() == 2
    assert server.flags() == before and not any(b"Seen" in line for line in before)


def test_what_was_taken_is_removed_where_that_is_asked_for(post, settings, server):
    mailbox = Mailbox(post, settings, url(server.port, "?after=delete"))
    server.seed(*numbered(3))
    assert mailbox.poll() == 3
    assert all(b"Deleted" in line for line in server.flags())  # or gone
    assert mailbox.poll() == 0


def test_it_is_looked_into_every_minute_by_one_at_a_time(post, mailbox, server):
    with post.engine.connect() as conn:
        assert find_due(conn, NOW).mailboxes
    server.seed(*numbered(1))
    assert mailbox.poll() == 1
    server.seed(*numbered(1, 1))
    assert mailbox.poll(timedelta(seconds=30)) == 0  # not due yet
    with post.engine.begin() as conn:
        assert not find_due(conn, mailbox.now).mailboxes
        conn.execute(text("update mailbox set leased_until = :at"), {"at": mailbox.now + timedelta(minutes=3)})
    assert mailbox.poll() == 0  # somebody is at it
    assert mailbox.poll(timedelta(minutes=5)) == 1  # who died


def test_another_uidvalidity_fetches_everything_again_and_stores_nothing_twice(post, mailbox, server):
    server.seed(*numbered(3))
    assert mailbox.poll() == 3
    with post.engine.begin() as conn:
        conn.execute(text("update mailbox set uidvalidity = uidvalidity - 1, last_uid = 999999"))
    server.seed(*numbered(1, 3))
    assert mailbox.poll() == 1
    assert len(post.mails("id")) == 4


def test_a_mail_over_the_limit_is_kept_by_its_beginning(post, mailbox, server, monkeypatch):
    """With a smaller limit, as the server under test keeps all in memory."""
    monkeypatch.setattr(flow, "LIMIT", 2 * BEGINNING)
    bounce = post.samples["postfix, no such user"].raw
    server.seed(bounce + b"x" * (3 * BEGINNING))
    assert mailbox.poll() == 1
    ((size, kept),) = post.mails("size", "length(raw)")
    assert size == len(bounce) + 3 * BEGINNING and kept == BEGINNING
    post.work()
    assert post.mails("kind", "message_id") == [("bounce", post.sent)]
    assert "were fetched" in post.mails("detail")[0][0]["notes"][0]


def test_a_server_that_is_away_or_refuses_is_noted_and_tried_again(post, settings, server):
    wrong = Mailbox(post, settings, url(server.port).replace(QUOTED, "wrong"))
    assert wrong.poll() == 0
    last, error, leased, due = wrong.state()
    assert error and "wrong" not in error and leased is None and due == wrong.now + AFTER_TROUBLE
    right = Mailbox(post, settings, url(server.port))
    right.now = wrong.now
    server.seed(*numbered(1))
    assert right.poll(AFTER_TROUBLE) == 1 and right.state()[1] is None
    server.close()
    assert right.poll() == 0 and right.state()[1]


def test_a_folder_that_the_settings_name_no_more_is_not_looked_into(post, settings, mailbox):
    other = Mailbox(post, settings, "")
    with post.engine.connect() as conn:
        assert not find_due(conn, NOW + timedelta(days=1)).mailboxes
    assert other.poll() == 0


def test_a_folder_that_is_not_there_is_an_error_with_a_name(settings, server):
    with pytest.raises(MailboxError, match=r"127\.0\.0\.1"), open_folder(folder_of(url(server.port).replace("INBOX", "No such"))):
        pass


@pytest.mark.processes
def test_a_worker_that_dies_between_fetching_and_keeping_loses_nothing(post, mailbox, server, settings):
    """The fetched mail cannot be written as the table is locked; then the worker is killed."""
    server.seed(*numbered(3))
    program = (
        "from datetime import UTC, datetime; from app.config import load; from app.db import connect; from app.queue import Bells;"
        "from app.flow.inbound.poll import poll; s = load();"
        "print(poll(connect(s.database_url), s, lambda: datetime.now(UTC), Bells(None)), flush=True)"
    )
    env = {**os.environ, "NURTURE_HOME": str(settings.home), "DATABASE_URL": settings.database_url, "NURTURE_IMAP_URL": url(server.port)}
    with post.engine.begin() as conn:
        conn.execute(text("lock table inbound_mail in exclusive mode"))
        worker = subprocess.Popen([sys.executable, "-c", program], cwd=CODE, env=env, stdout=subprocess.DEVNULL)
        waits = text(
            "select count(*) from pg_locks l join pg_class c on c.oid = l.relation where c.relname = 'inbound_mail' and not l.granted"
        )
        assert eventually(lambda: conn.execute(waits).scalar() == 1, 30)
        worker.kill()
        worker.wait()
    assert mailbox.state()[0] == 0 and post.mails("id") == []
    mailbox.now = datetime.now(UTC)
    assert mailbox.poll(timedelta(minutes=6)) == 3
    assert [bytes(one) for (one,) in post.mails("raw")] == numbered(3)


# TLS -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)
    return folder


@pytest.fixture
def tls_port(server, certificate):
    """The same server behind TLS from the first byte."""
    program = (
        "import asyncio, ssl, sys\n"
        "port, inner, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(folder + '/cert.pem', folder + '/key.pem')\n"
        "async def copy(a, b):\n"
        "    while data := await a.read(65536):\n"
        "        b.write(data); await b.drain()\n"
        "    b.close()\n"
        "async def serve(a, b):\n"
        "    c, d = await asyncio.open_connection('127.0.0.1', inner)\n"
        "    await asyncio.gather(copy(a, d), copy(c, b), return_exceptions=True)\n"
        "async def main():\n"
        "    async with await asyncio.start_server(serve, '127.0.0.1', port, ssl=context) as s: await s.serve_forever()\n"
        "asyncio.run(main())\n"
    )
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", program, str(port), str(server.port), str(certificate)], stderr=subprocess.DEVNULL)
    yield port
    process.kill()
    process.wait()


def test_certificates_are_verified(post, settings, server, tls_port, certificate):
    server.seed(*numbered(2))
    mailbox = Mailbox(post, settings, url(tls_port, scheme="imaps"))
    assert eventually(lambda: mailbox.poll(AFTER_TROUBLE) == 0 and "certificate" in (mailbox.state()[1] or "").lower(), 20)
    assert post.mails("id") == []
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    assert mailbox.poll(AFTER_TROUBLE, context=trusting) == 2


# The setting ---------------------------------------------------------------------------------------------------------------


def test_the_parts_of_the_address():
    folder = folder_of("imaps://a%40b.example:p%2Fw@mail.example.com/Bounces%2FNew?after=delete")
    assert (folder.host, folder.port, folder.user, folder.password) == ("mail.example.com", 993, "a@b.example", "p/w")
    assert (folder.folder, folder.tls, folder.after) == ("Bounces/New", True, "delete")
    assert folder_of("imap://a:b@localhost").folder == "INBOX" and "p/w" not in folder.name


@pytest.mark.parametrize(
    "wrong",
    [
        "imaps://host/x",
        "imaps://user@host",
        "imap://a:b@mail.example.com/",
        "pop3://a:b@h",
        "imaps://a:b@h:x/",
        "imaps://a:b@h/?x=y",
        "nonsense",
    ],
)
def test_a_bad_address_stops_the_start(tmp_path, wrong):
    with pytest.raises(SettingError, match="NURTURE_IMAP_URL"):
        load({"NURTURE_HOME": str(tmp_path), "NURTURE_IMAP_URL": wrong})


def test_an_answer_comes_all_the_way(post, server, mailbox):
    server.seed(mail({"From": "Ada <ada@example.org>", "To": post.reply, "Subject": "Re: Welcome"}, "Yes, please.\n"))
    assert mailbox.poll() == 1 and post.work() == 1
    assert post.events() == [("nurture.email_replied",)]


# The whole engine ----------------------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_bounce_finds_its_way_through_the_running_engine(server, tmp_path):
    """From the mailbox, and handed in by HTTP, to the address that gets nothing any more."""
    running = Engine(tmp_path / "home", "--sample", NURTURE_IMAP_URL=url(server.port), NURTURE_INBOUND_DOMAIN="bounce.example.com")
    try:
        running.ready()
        eventually(lambda: running.query("select count(*) from message where state = 'sent'") >= 2, 60)
        engine = connect(home.running(running.home).database_url, pool_size=1)
        with engine.begin() as conn:
            first, second = conn.execute(
                text("select distinct on (person) id from message where state = 'sent' order by person limit 2")
            ).scalars()
            links = Links("", load_keyring(conn))
            key = create_key(conn, "mail server", "inbound", datetime.now(UTC))
        engine.dispose()
        first_mail, second_mail = (
            next(one.raw for one in corpus(links.mailbox(letter, "bounce", "bounce.example.com"), "", "<x@y>") if one.status == "5.1.1")
            for letter in (first, second)
        )
        handed = Request(f"http://127.0.0.1:{running.port}/inbound/{key.split('_')[1]}", second_mail, {"Authorization": f"Bearer {key}"})
        with urlopen(handed, timeout=10) as answer:
            assert answer.status == 200
        eventually(lambda: running.query("select count(*) from suppression where reason = 'bounced'") == 1, 30)
        server.seed(first_mail)
        running.query("with soon as (update mailbox set due_at = now() returning 1) select count(*) from soon")
        eventually(lambda: running.query("select count(*) from suppression where reason = 'bounced'") == 2, 60)
        assert running.query("select count(*) from inbound_mail where state = 'done' and kind = 'bounce' and problem is null") == 2
        assert running.query("select error is null and read_at is not null from mailbox")
    finally:
        running.close()
