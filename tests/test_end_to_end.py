"""The whole way with real processes: events through the unmodified client libraries, a real SMTP server, the link taken from the mail
that arrived, the answer posted, the health read back from the reading API."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from base64 import b64encode
from collections import Counter
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psycopg
import pytest
import redis
from aiosmtpd.controller import Controller

from tests.processes import eventually
from tests.test_clients import posting
from tests.test_up import Engine, command, environment, free_port

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


class Inbox:
    """What a real SMTP server received."""

    def __init__(self):
        self.mails: list[EmailMessage] = []
        self.lock = threading.Lock()

    async def handle_DATA(self, server, session, envelope):
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert [mail["To"].addresses[0].addr_spec] == envelope.rcpt_tos
        with self.lock:
            self.mails.append(mail)
        return "250 2.0.0 accepted"

    def of(self, campaign: str, to: str) -> list[EmailMessage]:
        with self.lock:
            return [mail for mail in self.mails if mail["Feedback-ID"].startswith(campaign) and to in mail["To"]]


class Forms(HTMLParser):
    """The first form's action and hidden fields."""

    def __init__(self, page: str):
        super().__init__()
        self.action, self.fields = None, {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "form" and self.action is None:
            self.action = given.get("action")
        if tag == "input" and given.get("type") == "hidden":
            self.fields[given["name"]] = given.get("value", "")


@pytest.fixture
def inbox():
    handler = Inbox()
    port = free_port()
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    handler.url = f"smtp://127.0.0.1:{port}"
    yield handler
    controller.stop()


@pytest.fixture
def engine_up(tmp_path, inbox):
    engine = Engine(tmp_path / "a home", SMTP_URL=inbox.url).ready()
    yield engine
    engine.close()


def key_of(engine: Engine, scope: str) -> str:
    what = command("keys", "create", f"test-{scope}", "--scope", scope, "--json", "--home", engine.home)
    done = subprocess.run(what, env=environment({}), capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)["key"]


def ask(engine: Engine, path: str, key: str):
    with urlopen(Request(f"http://127.0.0.1:{engine.port}{path}", headers={"Authorization": f"Bearer {key}"}), timeout=10) as answer:
        return json.load(answer)


def fetch(url: str, data: dict | None = None) -> tuple[int, str]:
    headers = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Accept-Language": "en"}
    body = urlencode(data).encode() if data is not None else None
    try:
        with urlopen(Request(url, body, headers), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def html(mail: EmailMessage) -> str:
    return mail.get_body(("html",)).get_content()


def test_from_the_first_event_to_the_health_that_an_answer_changed(engine_up, inbox):
    write, read = key_of(engine_up, "write"), key_of(engine_up, "read")
    with posting("segment", engine_up.port, write) as client:
        client.group("ada", "acorn", {"name": "Acorn GmbH", "touch": "smb", "seats": 10})
        client.identify("ada", {"email": "ada@acorn.example", "first_name": "Ada", "roles": ["admin"]}, context={"groupId": "acorn"})
        client.track("ada", "workspace_created", {"plan": "pro"}, context={"groupId": "acorn"})
    [welcome] = eventually(lambda: inbox.of("onboarding.first-value", "ada@acorn.example"), 20)
    assert "Ada" in welcome["Subject"]
    assert welcome["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert welcome["List-Unsubscribe"].startswith(f"<http://127.0.0.1:{engine_up.port}/u/")
    assert welcome.get_body(("plain",)).get_content().strip()

    # The milestone ends onboarding, and the survey follows; it comes through the other client library.
    with posting("rudderstack", engine_up.port, write) as client:
        client.track("ada", "report_shared", {}, context={"groupId": "acorn"})
    eventually(lambda: ask(engine_up, "/api/v1/accounts/acorn", read)["stage"] == "adoption", 20)
    before = eventually(lambda: ask(engine_up, "/api/v1/accounts/acorn", read)["health"], 20)
    [asked] = eventually(lambda: inbox.of("onboarding.onboarding-survey", "ada@acorn.example"), 20)
    [link] = re.findall(r'href="(http://127\.0\.0\.1:\d+/s/[\w-]+/9)"', html(asked))

    status, page = fetch(link)
    assert status == 200
    assert responses(engine_up, read) == [], "a GET answers nothing"
    form = Forms(page)
    status, page = fetch(
        f"http://127.0.0.1:{engine_up.port}{form.action}" if form.action else link, form.fields | {"score": "9", "comment": "Quick!"}
    )
    assert status == 200, page
    [answer] = eventually(lambda: responses(engine_up, read), 10)
    assert (answer["score"], answer["comment"]) == (9, "Quick!")

    def with_the_answer():
        health = ask(engine_up, "/api/v1/accounts/acorn", read)["health"]
        return health if any(one["measure"] == "nps" for one in health["contributions"]) else None

    health = eventually(with_the_answer, 20)
    assert health["score"] is not None and health["score"] != before["score"]
    assert sum(one["contribution"] for one in health["contributions"]) == pytest.approx(health["score"], abs=1e-9)
    explained = subprocess.run(
        command("explain", "ada", "--home", engine_up.home), env=environment({}), capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert "first-value" in explained and "onboarding-survey" in explained


def test_unsubscribing_by_one_click_holds_for_what_comes_after(engine_up, inbox):
    write = key_of(engine_up, "write")
    with posting("segment", engine_up.port, write) as client:
        client.identify("bo", {"email": "bo@bolt.example", "roles": "admin"}, context={"groupId": "bolt"})
        client.track("bo", "workspace_created", context={"groupId": "bolt"})
    [welcome] = eventually(lambda: inbox.of("onboarding.first-value", "bo@bolt.example"), 20)
    url = welcome["List-Unsubscribe"].strip("<>")
    for _ in range(2):
        status, _ = fetch(url, {"List-Unsubscribe": "One-Click"})
        assert status == 200
    with posting("segment", engine_up.port, write) as client:
        client.track("bo", "report_shared", context={"groupId": "bolt"})
        client.track("bo", "feature_used", {"feature": "reports"}, context={"groupId": "bolt"})
    key = key_of(engine_up, "read")
    reasons = eventually(lambda: [one for one in decisions(engine_up, "bo", key) if one["reason"] == "topic_opted_out"], 20)
    assert reasons[0]["gate"] in ("recipient", "suppression")
    assert [len(inbox.of(key, "bo@bolt.example")) for key in ("onboarding.first-value", "adoption.")] == [1, 0]


def test_an_emptied_redis_in_the_middle_loses_nothing_and_doubles_nothing(engine_up, inbox):
    write = key_of(engine_up, "write")
    urls = urls_of(engine_up)
    doorbells = redis.from_url(urls["redis_url"])
    people = [f"p{number}" for number in range(60)]
    for start in range(0, 60, 10):
        with posting("segment", engine_up.port, write) as client:
            for person in people[start : start + 10]:
                client.identify(person, {"email": f"{person}@flush.example", "roles": "admin"}, context={"groupId": f"a-{person}"})
                client.track(person, "workspace_created", context={"groupId": f"a-{person}"}, message_id=f"created-{person}")
        doorbells.flushall()
    doorbells.close()
    eventually(lambda: len(inbox.mails) >= 60, 40)
    eventually(lambda: unsettled(urls["database_url"]) == 0, 20)
    assert sorted(mail["To"] for mail in inbox.mails) == sorted(f"{person}@flush.example" for person in people)


def test_a_storm_over_the_whole_engine_loses_nothing_and_doubles_nothing(engine_up, inbox):
    """Events keep coming while workers, Redis, PostgreSQL and single backends are killed. Every event that was answered with 200 is
    processed, every mail is accepted once; a worker killed right at its dot may leave a message `unknown`, never twice sent."""
    write, answered = key_of(engine_up, "write"), []
    over = threading.Event()

    def post_steadily():
        for number in range(400):
            if over.is_set():
                break
            person = f"s{number}"
            who = {"userId": person, "context": {"groupId": f"storm-{person}"}}
            items = [
                {"type": "identify", **who, "messageId": f"i{number}", "traits": {"email": f"{person}@storm.example", "roles": "admin"}},
                {"type": "track", **who, "messageId": f"t{number}", "event": "workspace_created"},
            ]
            while not over.is_set():  # as the client libraries do: again, with the same message ids, until it is answered
                try:
                    if post(engine_up, write, items) == 200:
                        answered.append(person)
                        break
                except OSError:
                    pass
                time.sleep(0.05)

    poster = threading.Thread(target=post_steadily)
    poster.start()
    database = urls_of(engine_up)["database_url"]
    for what in ("worker.py deliver", "backend", "worker.py advance", "postgres", "redis-server", "backend", "worker.py clock", "backend"):
        time.sleep(1.2)
        if what == "backend":
            terminate_a_backend(database)
        else:
            engine_up.child(what).kill()
    poster.join(60)
    over.set()
    eventually(lambda: quiet(database), 90)
    accepted = Counter(mail["X-Nurture-Send"] for mail in inbox.mails)
    assert [send for send, times in accepted.items() if times > 1] == []
    with connected(database) as conn:
        states = Counter(dict(conn.execute("select state, count(*) from message group by 1").fetchall()))
        doubled = conn.execute("select count(*) from (select account_id from message group by 1 having count(*) > 1) d").fetchone()[0]
    assert len(answered) == 400
    assert doubled == 0
    assert states["sent"] + states["unknown"] == 400, states
    assert len(accepted) >= states["sent"]
    assert states["unknown"] <= 32, "no more than the dots that were in flight at the kills"


def post(engine: Engine, key: str, items: list[dict]) -> int:
    basic = b64encode(f"{key}:".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    try:
        with urlopen(
            Request(f"http://127.0.0.1:{engine.port}/v1/batch", json.dumps({"batch": items}).encode(), headers), timeout=10
        ) as answer:
            return answer.status
    except HTTPError as error:
        with error:
            return error.code


def terminate_a_backend(database: str) -> None:
    sql = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() limit 1"
    with contextlib.suppress(psycopg.OperationalError), connected(database) as conn:  # the whole server may be away just now
        conn.execute(sql)


def quiet(database: str) -> bool:
    try:
        return unsettled(database) == 0
    except psycopg.OperationalError:
        return False


def urls_of(engine: Engine) -> dict:
    return json.loads((engine.home / "urls.json").read_text())


def connected(database: str) -> psycopg.Connection:
    return psycopg.connect(database.replace("postgresql+psycopg://", "postgresql://"), autocommit=True)


def unsettled(database: str) -> int:
    with connected(database) as conn:
        sql = "select (select count(*) from event_pending) + (select count(*) from message where state in ('due', 'claimed', 'in_dot'))"
        return conn.execute(sql).fetchone()[0]


def responses(engine: Engine, key: str) -> list[dict]:
    return listed(ask(engine, "/api/v1/surveys", key))


def decisions(engine: Engine, contact: str, key: str) -> list[dict]:
    found: list[dict] = []

    def gather(value):
        if isinstance(value, dict):
            if "gate" in value and "reason" in value:
                found.append(value)
            for inner in value.values():
                gather(inner)
        elif isinstance(value, list):
            for inner in value:
                gather(inner)

    gather(ask(engine, f"/api/v1/contacts/{contact}/explain", key))
    return found


def listed(answer) -> list[dict]:
    return answer if isinstance(answer, list) else next(value for value in answer.values() if isinstance(value, list))
