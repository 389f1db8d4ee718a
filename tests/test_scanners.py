"""Mail scanners, in short: `make scanners` is the long form against a running installation. And a person, who must not be taken for one."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy

import pytest
from sqlalchemy import text
from werkzeug.serving import make_server

from app import create_app
from app.config import load
from app.flow.track import settle_due
from app.queue import Bells
from tests import stories
from tests.browser import Chromium, Mailbox, installed
from tests.processes import eventually
from tests.scanning import CHROME, DISGUISES, addresses, follow, untouched
from tests.test_shipped_campaigns import World

BASE = "http://127.0.0.1:8000"
CLICK = "<script>setTimeout(() => document.querySelector('a[href*=\"/c/\"]').click(), 500)</script>"


def people(number: int, start: int = 0) -> list[dict]:
    """Half of them begin, half have reached their first value: the first get a mail with links, the others a question with scores."""
    items = []
    for one in range(start, start + number):
        person, account = f"p{one}", f"a{one}"
        items += [
            stories.group(account, person, name=f"Account {one}", touch="smb"),
            stories.identify(person, account, email=f"{person}@d{one % 7}.example", first_name="Mara", roles=["admin"]),
            stories.track("workspace_created" if one % 2 else "report_shared", person, account),
        ]
    return items


def counter(engine):
    def count(query: str) -> int:
        with engine.connect() as conn:
            return conn.execute(text(query)).scalar_one()

    return count


@pytest.mark.timeout(300)
def test_a_hundred_mails_that_scanners_follow_at_once_change_nothing(engine, settings, app):
    world = World(engine, settings, datetime.now(UTC) - timedelta(seconds=1))
    world.post(*people(100))
    mails = [letter.data for letter in world.transport.letters]
    assert Counter(step for step, _ in world.mails) == {"welcome": 50, "ask": 50}
    answers: Counter[tuple[str, str, int]] = Counter()
    lock = threading.Lock()

    def scan(number: int) -> None:
        client, headers = app.test_client(), DISGUISES[number % len(DISGUISES)]

        def fetch(method: str, url: str) -> tuple[int, str]:
            answer = client.open(url.removeprefix(BASE), method=method, headers=headers)
            assert "Set-Cookie" not in answer.headers, url
            page = answer.get_data(as_text=True) if answer.mimetype == "text/html" else ""
            answer.close()
            return answer.status_code, page

        for method, url, status in follow(addresses(mails[number], BASE), BASE, fetch):
            with lock:
                answers[method, url.removeprefix(BASE)[1], status] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(scan, range(len(mails))))
    settle_due(engine, lambda: datetime.now(UTC) + timedelta(seconds=61), Bells(None))
    world.later(minutes=10)
    assert untouched(counter(engine)) == {}
    assert len(world.transport.letters) == 100, "nothing was sent because of it"
    assert {kind for _, kind, _ in answers} == set("coupsv"), "every kind of link was followed"
    assert {status for _, _, status in answers} == {200, 302}
    gets = sum(times for (method, kind, _), times in answers.items() if method == "GET")
    assert counter(engine)("select count(*) from hit") == gets, "each GET is evidence, no HEAD is"


@pytest.mark.skipif(not installed(), reason="no Chromium on this machine")
@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_person_who_clicks_in_a_browser_half_a_minute_later_is_a_person(engine, settings, tmp_path):
    """A real browser shows the mail, loads its picture and follows one link; it is told a minute later, once."""
    app = create_app(settings)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    base = f"http://127.0.0.1:{server.server_port}"
    told = {"NURTURE_HOME": str(tmp_path), "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "NURTURE_BASE_URL": base}
    threading.Thread(target=server.serve_forever).start()
    world = World(engine, load(told), datetime.now(UTC) - timedelta(seconds=31))
    world.post(*people(1, start=1))
    [letter] = world.transport.letters
    page = message_from_bytes(letter.data, policy=policy.default).get_body(("html",)).get_content()
    mailbox, browser = Mailbox({"/mail": page.replace("</body>", CLICK + "</body>")}), Chromium(CHROME)
    try:
        browser.open(mailbox.url + "/mail")
        eventually(lambda: counter(engine)("select count(*) from hit where kind = 'click'"), 60)
    finally:
        browser.close()
        mailbox.close()
        server.shutdown()
        server.server_close()
        app.extensions["nurture"].engine.dispose()
    with engine.connect() as conn:
        hits = conn.execute(text("select kind, verdict, score, signals, at from hit order by at")).all()
    assert [(one.kind, one.verdict, one.signals) for one in hits] == [("open", "human", {}), ("click", "human", {})]
    clicked = hits[-1].at

    settle_due(engine, lambda: clicked + timedelta(seconds=59), Bells(None))
    assert counter(engine)("select count(*) from event where name = 'nurture.email_clicked'") == 0
    for _ in range(2):
        settle_due(engine, lambda: clicked + timedelta(seconds=60), Bells(None))
        assert counter(engine)("select count(*) from event where name = 'nurture.email_clicked'") == 1
