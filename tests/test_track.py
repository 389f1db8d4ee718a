"""Clicks, opens and views: T-01 to T-13, the scanner signals of 4.3, and that fetching decides nothing."""

import dataclasses
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from cast_listening import BROWSER, LIFECYCLE, URLS, add_account, add_contact, add_letter, add_message, path, publish
from conftest import NOW
from sqlalchemy import text

from app import create_app
from app.config import load
from app.errors import SettingError
from app.flow import track
from app.flow.links import Links, load_keyring
from app.flow.reading.campaigns import campaigns
from app.flow.reading.messages import message as read_message
from app.flow.track import being_judged, record_hit, settle_due, truncated
from app.models import consent, delivery_event, message
from app.queue import Bells
from app.rules.facts import partition_of
from app.rules.networks import read_networks
from app.rules.signals import SENTENCES, WEIGHTS, Hit, Request, bursts, signals, sweeps, verdict
from tests import stories

SENT = NOW - timedelta(hours=1)
CHROME = BROWSER["User-Agent"]
PERSON = Request(CHROME, "en", "navigate", True, "192.0.2.0/24")
APPLE, GMAIL = "Mozilla/5.0", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/42.0.2311.135 Safari/537.36 Edge/12.246 Mozilla/5.0"
GOOGLE = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"


@pytest.fixture
def bells(redis_server):
    return Bells(redis_server)


@pytest.fixture
def cast(engine):
    with engine.begin() as conn:
        return publish(conn)


@pytest.fixture
def letter(engine, cast):
    with engine.begin() as conn:
        return add_letter(conn, cast, sent_at=SENT)


@pytest.fixture
def fresh(engine, cast):
    """A message sent an hour before the present, for requests over HTTP."""
    with engine.begin() as conn:
        return cast.links, add_letter(conn, cast, sent_at=datetime.now(UTC) - timedelta(hours=1))


def look(engine, message_id, at=NOW - timedelta(minutes=5)):
    """The mail's images are loaded by a person."""
    with engine.begin() as conn:
        assert record_hit(conn, message_id, "open", None, at, PERSON) == "human"


def hit(engine, message_id, link=0, at=NOW, kind="click", request=PERSON):
    with engine.begin() as conn:
        return record_hit(conn, message_id, kind, link, at, request)


def rows(engine, query, **values):
    with engine.connect() as conn:
        return [dict(row) for row in conn.execute(text(query), values).mappings()]


def hits(engine):
    return rows(engine, "select * from hit order by id")


def raised(engine):
    return rows(engine, "select * from event where source_id = 0 order by id")


def later(seconds=61):
    return lambda: NOW + timedelta(seconds=seconds)


# Over HTTP ----------------------------------------------------------------------------------------------------------------


def test_t10_a_click_goes_to_the_stored_destination(client, engine, fresh):
    links, letter = fresh
    for index, url in enumerate(URLS):
        answer = client.get(path(links.click(letter, index)) + "?url=https://evil.example&to=//evil", headers=BROWSER)
        assert answer.status_code == 302 and answer.headers["Location"] == url
        assert answer.headers["Referrer-Policy"] == "no-referrer" and answer.headers["Cache-Control"] == "no-store"  # T-12
        assert "noindex" in answer.headers["X-Robots-Tag"] and "Set-Cookie" not in answer.headers
    assert [(one["kind"], one["link"], one["verdict"]) for one in hits(engine)] == [("click", index, "human") for index in range(4)]


def test_t10_a_bad_token_is_a_page_and_no_redirect(client, engine, fresh):
    links, letter = fresh
    good = path(links.click(letter, 0))
    for address in ("/c/x", good[:-1] + ("A" if good[-1] != "A" else "B"), path(links.unsubscribe(letter)).replace("/u/", "/c/")):
        answer = client.get(address)
        assert answer.status_code == 404 and "Location" not in answer.headers and "This link does not work" in answer.text
    assert client.get(path(links.click(letter, 99))).status_code == 404
    assert hits(engine) == []


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "//evil.example/x",
        "https://user:pass@evil.example/",
        "https://good.example\\@evil.example/",
        "ftp://files.example/",
        "https:///nohost",
        "https://a.example/\r\nSet-Cookie: x=1",
        " https://a.example/",
        "http://[::1",
        "",
        None,
        7,
    ],
)
def test_t11_a_stored_destination_that_is_not_safe_is_not_followed(client, engine, fresh, url):
    links, letter = fresh
    with engine.begin() as conn:
        conn.execute(message.update().values(links=[url]))
    answer = client.get(path(links.click(letter, 0)))
    assert answer.status_code == 404 and "Location" not in answer.headers


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("https://a.example/x y?n=Anna Maria", "https://a.example/x%20y?n=Anna%20Maria"),
        ("https://a.example/ü?n=é#ä", "https://a.example/%C3%BC?n=%C3%A9#%C3%A4"),
        ("http://127.0.0.1:8000/%2Fx?a=1&b=%26", "http://127.0.0.1:8000/%2Fx?a=1&b=%26"),
    ],
)
def test_destinations_are_written_as_headers_need_them(client, engine, fresh, url, location):
    links, letter = fresh
    with engine.begin() as conn:
        conn.execute(message.update().values(links=[url]))
    assert client.get(path(links.click(letter, 0))).headers["Location"] == location


def test_t01_the_pixel_is_43_bytes_for_everybody(client, engine, fresh):
    links, letter = fresh
    for address in (path(links.open(letter)), "/o/x.gif", "/o/" + "A" * 48 + ".gif", "/o/a/b"):
        answer = client.get(address)
        assert (answer.status_code, len(answer.data), answer.mimetype) == (200, 43, "image/gif")
        assert answer.headers["Cache-Control"] == "no-store, private" and "Set-Cookie" not in answer.headers
    assert [one["kind"] for one in hits(engine)] == ["open"]


def test_t15_the_host_of_the_links_shows_no_console_where_the_console_has_its_own(settings, fresh):
    links, letter = fresh
    app = create_app(dataclasses.replace(settings, console_url="https://console.example.com"))
    tracking, console = ({"base_url": one} for one in ("http://127.0.0.1:8000", "https://console.example.com"))
    for address in ("/", "/console", "/console/accounts", "/console/sign-in/x"):
        answer = app.test_client().get(address, **tracking)
        assert answer.status_code == 404 and "Set-Cookie" not in answer.headers, address
    assert app.test_client().get("/console", **console).status_code == 401
    assert app.test_client().get("/", **console).headers["Location"] == "/console/"
    clicked = app.test_client().get(path(links.click(letter, 0)), **tracking)
    assert clicked.status_code == 302 and "Set-Cookie" not in clicked.headers
    assert app.config["SESSION_COOKIE_NAME"] == "__Host-nurture", "a cookie of one host, never sent to another"
    app.extensions["nurture"].engine.dispose()


@pytest.mark.parametrize("url", ["console.example.com", "https://console.example.com/nurture", "ftp://console.example.com"])
def test_t15_an_address_of_the_console_that_cannot_be_is_named(tmp_path, url):
    with pytest.raises(SettingError, match="NURTURE_CONSOLE_URL"):
        load({"NURTURE_HOME": str(tmp_path), "NURTURE_CONSOLE_URL": url})


def test_t06_only_the_network_is_kept(client, engine, fresh):
    links, letter = fresh
    client.get(path(links.click(letter, 0)), environ_base={"REMOTE_ADDR": "203.0.113.77"})
    assert hits(engine)[0]["network"] == "203.0.113.0/24"
    assert truncated("2001:db8:1:2::3") == "2001:db8:1::/48" and truncated("::ffff:192.0.2.9") == "192.0.2.0/24"
    assert truncated("fe80::1%eth0") == "fe80::/48" and truncated("unix:") is None and truncated(None) is None


def test_t05_after_withdrawal_nothing_is_recorded_of_mails_already_sent(client, engine, fresh):
    links, letter = fresh
    with engine.begin() as conn:
        for purpose in ("open_tracking", "click_tracking"):
            conn.execute(consent.insert().values(person="ada@example.org", purpose=purpose, granted=False, at=NOW, method="page"))
    assert client.get(path(links.open(letter))).status_code == 200
    assert client.get(path(links.click(letter, 0)), headers=BROWSER).headers["Location"] == URLS[0]
    assert hits(engine) == []


def test_the_message_in_the_browser(client, engine, fresh):
    links, letter = fresh
    answer = client.get(path(links.view(letter)))
    assert answer.status_code == 200 and "Hello Ada" in answer.text and "Acme &lt;b&gt;" in answer.text
    assert links.click(letter, 0) in answer.text and links.unsubscribe(letter) in answer.text
    assert "/o/" not in answer.text and "script" not in answer.headers["Content-Security-Policy"]


def test_the_message_is_gone_when_its_snapshot_is(client, engine, fresh):
    links, letter = fresh
    with engine.begin() as conn:
        conn.execute(message.update().values(values=None, links=None))
    assert client.get(path(links.view(letter))).status_code == 410
    assert client.get(path(links.click(letter, 0))).location == URLS[0]  # the same for everybody: as it was written
    with engine.begin() as conn:
        conn.execute(text("""update template set links = jsonb_set(links, '{0,url}', '"https://x.example/{{ account.id }}"')"""))
    gone = client.get(path(links.click(letter, 0)))
    assert gone.status_code == 410 and "no longer kept" in gone.text


def test_a_link_of_a_message_that_was_erased_is_not_found(client, engine, fresh):
    links, letter = fresh
    with engine.begin() as conn:
        conn.execute(text("delete from account"))
    for address in (links.click(letter, 0), links.unsubscribe(letter), links.preferences(letter), links.view(letter), links.survey(letter)):
        assert client.get(path(address)).status_code == 404
    assert client.get(path(links.open(letter))).status_code == 200


def test_a_key_that_came_after_the_start_is_found(client, engine, app, fresh):
    links, letter = fresh
    assert client.get(path(links.view(letter))).status_code == 200
    with engine.begin() as conn:
        conn.execute(text("insert into token_key (kid, secret, created_at) values (2, '\\x6e6e', now() + interval '1 day')"))
        newer = Links("http://127.0.0.1:8000", load_keyring(conn))
    app.extensions["nurture.links"]["at"] -= 60
    assert client.get(path(newer.view(letter))).status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_invariant_9_get_decides_nothing(client, engine, bells, cast, method):
    """A scanner that fetches everything of a mail, over and over: nobody is unsubscribed, nothing answered, no click counted."""
    with engine.begin() as conn:
        account_id = add_account(conn)
        contact_id = add_contact(conn, account_id)
        sent_at = datetime.now(UTC) - timedelta(hours=1)
        mail = add_message(conn, cast, account_id, contact_id, sent_at=sent_at)
        asked = add_message(conn, cast, account_id, contact_id, "ask", sent_at=sent_at)
    links = cast.links
    addresses = [links.click(mail, index) for index in range(4)] + [links.click(asked, index) for index in range(4)]
    addresses += [make(one) for one in (mail, asked) for make in (links.open, links.unsubscribe, links.preferences, links.view)]
    addresses += [links.survey(asked)] + [links.survey(asked, score) for score in range(11)]
    for _ in range(5):
        for address in addresses:
            # A scanner at its best: it looks like a browser in every header.
            answer = client.open(path(address), method=method, headers=BROWSER)
            assert answer.status_code in (200, 302), address
            assert "Set-Cookie" not in answer.headers
            assert method == "GET" or not answer.data
    settle_due(engine, lambda: datetime.now(UTC) + timedelta(seconds=61), bells)
    for table in ("suppression", "consent", "response", "response_revision", "event", "event_pending"):
        assert rows(engine, f"select * from {table}") == [], table
    assert rows(engine, "select * from delivery_event where kind <> 'opened'") == []
    found = hits(engine)
    assert {one["verdict"] for one in found if one["kind"] != "open"} == ({"scanner"} if method == "GET" else set())
    assert len(found) == (5 * len(addresses) if method == "GET" else 0)  # T-13


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_t13_other_methods_are_answered_and_never_recorded(client, engine, fresh, method):
    links, letter = fresh
    for address in (links.click(letter, 0), links.open(letter), links.view(letter)):
        assert client.open(path(address), method=method).status_code in (200, 405)
    assert hits(engine) == []


# Judging ------------------------------------------------------------------------------------------------------------------


def test_a_human_click_is_told_after_a_minute_and_once(engine, bells, letter):
    look(engine, letter)
    assert hit(engine, letter, 1) == "human"
    assert hit(engine, letter, 1, NOW + timedelta(seconds=20)) == "human"
    assert settle_due(engine, later(59), bells) == 1  # the open
    assert raised(engine) == []
    assert settle_due(engine, later(60), bells) == 1
    assert settle_due(engine, later(100), bells) == 1
    assert settle_due(engine, later(100), bells) == 0
    assert [(one["name"], one["message_id"], one["account_key"], one["contact_key"], one["occurred_at"]) for one in raised(engine)] == [
        ("nurture.email_clicked", f"click:{letter}:1", "acme", "ada", NOW)
    ]
    enrollment = rows(engine, "select enrollment_id from message")[0]["enrollment_id"]
    assert raised(engine)[0]["properties"] == {
        "campaign": "onboarding/first-value",
        "step": "welcome",
        "message": str(letter),
        "enrollment": str(enrollment),
        "link": 1,
        "url": URLS[1],
        "label": "Read the guide",
    }
    assert len(rows(engine, "select * from event_pending")) == 1
    kinds = [(one["kind"], one["key"]) for one in rows(engine, "select * from delivery_event order by id")]
    assert kinds == [("opened", "first"), ("clicked", "link:1")]


def test_a_burst_is_known_for_all_of_it_afterwards(engine, bells, letter):
    look(engine, letter)
    assert [hit(engine, letter, link, NOW + timedelta(seconds=link * 2)) for link in range(3)] == ["human"] * 3
    settle_due(engine, later(100), bells)
    clicks = [one for one in hits(engine) if one["kind"] == "click"]
    assert {one["verdict"] for one in clicks} == {"scanner"} and all(one["signals"]["burst"] == 80 for one in clicks)
    assert raised(engine) == []


def test_a_click_that_comes_to_light_as_part_of_a_burst_is_reclassified_and_undoes_nothing(engine, bells, letter):
    look(engine, letter)
    hit(engine, letter, 0)
    settle_due(engine, later(61), bells)
    assert len(raised(engine)) == 1
    # Clocks of two web workers that differ: the others were written down later than they happened.
    hit(engine, letter, 1, NOW + timedelta(seconds=1))
    hit(engine, letter, 2, NOW + timedelta(seconds=2))
    settle_due(engine, later(70), bells)
    assert {one["verdict"] for one in hits(engine) if one["kind"] == "click"} == {"scanner"}
    assert [one["name"] for one in raised(engine)] == ["nurture.email_clicked", "nurture.email_click_withdrawn"]


def test_a_person_may_follow_two_links_and_come_back(engine, bells, letter):
    look(engine, letter)
    for link, second in ((0, 0), (1, 3), (0, 4), (2, 600)):
        hit(engine, letter, link, NOW + timedelta(seconds=second))
    settle_due(engine, later(700), bells)
    assert {one["verdict"] for one in hits(engine)} == {"human"}
    assert [one["properties"]["link"] for one in raised(engine)] == [0, 1, 2]


def test_most_of_a_mail_within_half_a_minute_is_a_burst(engine, bells, letter):
    look(engine, letter)
    for link in range(3):  # of four
        hit(engine, letter, link, NOW + timedelta(seconds=link * 12))
    settle_due(engine, later(100), bells)
    assert {one["verdict"] for one in hits(engine) if one["kind"] == "click"} == {"scanner"}


@pytest.mark.parametrize(("seconds", "found"), [(0.5, {"at_once": 50}), (2, {"at_once": 50}), (9, {"soon": 30}), (11, {})])
def test_the_time_since_sending(engine, letter, seconds, found):
    hit(engine, letter, None, SENT + timedelta(seconds=0.1), "open")
    hit(engine, letter, 0, SENT + timedelta(seconds=seconds))
    assert hits(engine)[-1]["signals"] == found


def test_a_scanner_quicker_than_the_relays_answer(engine, letter):
    with engine.begin() as conn:
        conn.execute(message.update().values(state="in_dot", settled_at=None, dot_at=NOW))
    assert hit(engine, letter, 0, NOW + timedelta(seconds=1)) == "suspected"
    assert hits(engine)[0]["signals"] == {"at_once": 50, "no_image": 10}


def test_two_recipients_swept_from_one_network(engine, bells, cast):
    with engine.begin() as conn:
        account_id = add_account(conn)
        two = [add_message(conn, cast, account_id, add_contact(conn, account_id, key), sent_at=SENT) for key in ("ada", "bob")]
    for number, one in enumerate(two):
        look(engine, one)
        for link in range(4):
            hit(engine, one, link, NOW + timedelta(seconds=number * 2 + link * 16))
    settle_due(engine, later(150), bells)
    clicks = [one for one in hits(engine) if one["kind"] == "click"]
    assert {one["signals"].get("sweep") for one in clicks} == {60}
    assert {one["verdict"] for one in clicks} == {"suspected"} and raised(engine) == []


@pytest.mark.parametrize(("agent", "found"), [(APPLE, "machine"), (GMAIL, "machine"), (GOOGLE, "proxy"), ("YahooMailProxy; x", "proxy")])
def test_t02_opens_by_mailbox_providers(engine, bells, letter, agent, found):
    assert hit(engine, letter, None, kind="open", request=Request(agent, "", "", True, None)) == found
    settle_due(engine, later(), bells)
    assert len(rows(engine, "select * from delivery_event where kind = 'opened'")) == (found == "proxy")
    assert raised(engine) == []


def test_t02_reports_show_the_opens_of_machines_apart(engine, bells, cast):
    with engine.begin() as conn:
        account_id = add_account(conn)
        contact_id = add_contact(conn, account_id)
        letters = [add_message(conn, cast, account_id, contact_id, sent_at=SENT, created_at=NOW) for _ in range(5)]
    machine, proxy = (Request(agent, "", "", True, "17.0.0.0/24") for agent in (APPLE, GOOGLE))
    for letter, requests in zip(letters, ([machine], [machine, PERSON], [proxy], [Request("curl/8", "", "", True, None)], []), strict=True):
        for request in requests:
            hit(engine, letter, None, kind="open", request=request)
    settle_due(engine, later(), bells)
    with engine.connect() as conn:
        [numbers] = campaigns(conn, NOW + timedelta(hours=1))
        shown = [one["verdict"] for one in read_message(conn, str(letters[1]))["hits"]]
    assert (numbers["sent"], numbers["opened"], numbers["machine_opened"], numbers["clicked"]) == (5, 2, 1, 0)
    assert shown == ["machine", "human"]


@pytest.mark.parametrize(
    "agent",
    [
        "",
        "curl/8.5.0",
        "python-requests/2.32",
        "Go-http-client/2.0",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/120.0 Safari/537.36",
        "TelegramBot (like TwitterBot)",
        "Slackbot-LinkExpanding 1.0",
        "Mozilla/5.0",
        "BarracudaCentral",
        GOOGLE,
    ],
)
def test_known_scanners_and_libraries(agent):
    request = Request(agent, "en", "navigate", True, None)
    found = signals("click", request, since_sent=timedelta(hours=1), image_loaded=True)
    assert found["scanner_agent"] == 100 and verdict("click", found, agent) == "scanner"


@pytest.mark.parametrize(
    "agent",
    [
        CHROME,
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/604.1",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:143.0) Gecko/20100101 Firefox/143.0",
        "Mozilla/5.0 (Linux; Android 13; CUBOT_X18) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Mobile Safari/537.36",
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0",
    ],
)
def test_browsers_are_people_and_must_look_whole(agent):
    whole = Request(agent, "en", "navigate", True, None)
    assert signals("click", whole, since_sent=timedelta(hours=1), image_loaded=True) == {}
    for bare in (Request(agent, "", "navigate", True, None), Request(agent, "en", "", True, None)):
        assert signals("click", bare, since_sent=None, image_loaded=True) == {"bare_request": 30}
    # Over plain http browsers send no Sec-Fetch headers.
    assert signals("click", Request(agent, "en", "", False, None), since_sent=None, image_loaded=True) == {}


def test_bursts_do_not_depend_on_the_order_given():
    found = [Hit(number, "m", "click", number, NOW + timedelta(seconds=number)) for number in range(4)]
    lone = Hit(9, "m", "click", 3, NOW + timedelta(minutes=5))
    assert bursts([*found, lone], {"m": 9}) == bursts([lone, *reversed(found)], {"m": 9}) == {0, 1, 2, 3}
    assert bursts([Hit(n, "m", "open", n, NOW) for n in range(9)], {"m": 9}) == set()
    assert bursts([Hit(n, n, "click", n, NOW) for n in range(9)], {}) == set()


def test_a_sweep_needs_two_whole_mails_of_one_domain():
    def clicks(message, domain, network="n", links=2):
        return [Hit(hash((message, link)), message, "click", link, NOW, network, domain) for link in range(links)]

    of = {"a": 2, "b": 2, "c": 1, "d": 1}
    assert len(sweeps(clicks("a", "x") + clicks("b", "x"), of)) == 4
    assert sweeps(clicks("a", "x") + clicks("b", "y"), of) == set()
    assert sweeps(clicks("a", "x") + clicks("b", "x", "other"), of) == set()
    assert sweeps(clicks("a", "x") + clicks("b", "x", links=1), of) == set()
    assert sweeps(clicks("c", "x", links=1) + clicks("d", "x", links=1), of) == set()


def test_a_delivery_that_is_reported_late_is_seen_within_ten_minutes_and_undoes_nothing(engine, bells, letter):
    """The relay kept the mail for an hour; its scanner came a second after it had let it go, and the report came minutes later."""
    look(engine, letter)
    assert hit(engine, letter, 1, NOW) == "human"
    settle_due(engine, later(60), bells)
    assert [one["name"] for one in raised(engine)] == ["nurture.email_clicked"]
    with engine.begin() as conn:
        at = NOW - timedelta(seconds=1)
        conn.execute(delivery_event.insert().values(message_id=letter, kind="delivered", at=at, detail={}, key="report:1"))
    assert settle_due(engine, later(300), bells) == 1  # the image, which came five minutes earlier
    assert settle_due(engine, later(599), bells) == 0
    assert settle_due(engine, later(600), bells) == 1
    click = hits(engine)[-1]
    assert (click["verdict"], click["signals"], click["score"]) == ("suspected", {"at_once": 50}, 50)
    assert [(one["name"], one["message_id"]) for one in raised(engine)] == [
        ("nurture.email_clicked", f"click:{letter}:1"),
        ("nurture.email_click_withdrawn", f"withdrawn:{letter}:1"),
    ]
    told = rows(engine, "select detail from delivery_event where kind = 'clicked'")
    assert [(one["detail"]["link"], one["detail"]["verdict"], one["detail"]["withdrawn"]) for one in told] == [(1, "suspected", True)]
    assert settle_due(engine, later(6000), bells) == 0


def test_a_withdrawn_click_leaves_the_usage_that_it_was_counted_in(engine, bells):
    lifecycle = {
        **LIFECYCLE,
        "usage": {**LIFECYCLE["usage"], "clicks": {"event": "nurture.email_clicked", "where": "event.properties.link < 9"}},
    }
    with engine.begin() as conn:
        cast = publish(conn, lifecycle)
        account_id = add_account(conn, partition=partition_of("acme", 64))
        letter = add_message(conn, cast, account_id, add_contact(conn, account_id), sent_at=SENT)
    look(engine, letter)
    hit(engine, letter, 0)
    hit(engine, letter, 1, NOW + timedelta(seconds=50))
    settle_due(engine, later(110), bells)
    stories.run(engine, later(110)())
    assert [one["count"] for one in rows(engine, "select * from usage_day where metric = 'clicks'")] == [2]
    for link in (2, 3):  # written down late
        hit(engine, letter, link, NOW + timedelta(seconds=link))
    settle_due(engine, later(120), bells)
    stories.run(engine, later(120)())
    assert [one["count"] for one in rows(engine, "select * from usage_day where metric = 'clicks'")] == [1]
    assert rows(engine, "select * from parked") == []
    assert rows(engine, "select assess_at from unassessed") != [], "the score follows"


def test_a_click_is_withdrawn_only_when_no_person_made_it_too(engine, bells, letter):
    look(engine, letter)
    hit(engine, letter, 0)
    hit(engine, letter, 0, NOW + timedelta(minutes=3))
    settle_due(engine, later(300), bells)
    hit(engine, letter, 1, NOW + timedelta(seconds=1))
    hit(engine, letter, 2, NOW + timedelta(seconds=2))
    settle_due(engine, later(400), bells)
    assert [one["verdict"] for one in hits(engine) if one["kind"] == "click"] == ["scanner", "human", "scanner", "scanner"]
    assert [one["name"] for one in raised(engine)] == ["nurture.email_clicked"]


def test_the_images_that_a_burst_loads_are_the_scanners_too(engine, bells, letter):
    hit(engine, letter, None, kind="open")
    for link in range(3):
        hit(engine, letter, link, NOW + timedelta(seconds=link))
    other = Request(CHROME, "en", "navigate", True, "198.51.100.0/24")
    hit(engine, letter, None, NOW + timedelta(seconds=2), kind="open", request=other)
    settle_due(engine, later(100), bells)
    assert [one["verdict"] for one in hits(engine) if one["kind"] == "open"] == ["scanner", "human"]


def test_the_honeypot_gives_away_everything_that_its_network_fetches(client, engine, bells, fresh):
    links, letter = fresh
    here, there = ({"REMOTE_ADDR": address} for address in ("203.0.113.77", "198.51.100.1"))
    for url, sender in ((links.open(letter), here), (links.click(letter, 0), here), (links.click(letter, 0), there)):
        client.get(path(url), headers=BROWSER, environ_base=sender)
    answer = client.get(path(links.honeypot(letter)), headers=BROWSER, environ_base=here)
    assert answer.status_code == 404 and "Location" not in answer.headers
    assert client.head(path(links.honeypot(letter))).status_code == 404
    settle_due(engine, lambda: datetime.now(UTC) + timedelta(seconds=61), bells)
    assert [(one["kind"], one["verdict"], one["signals"].get("honeypot")) for one in hits(engine)] == [
        ("open", "scanner", 100),
        ("click", "scanner", 100),
        ("click", "human", None),
        ("honeypot", "scanner", 100),
    ]
    assert [one["properties"]["link"] for one in raised(engine)] == [0]


def test_a_network_of_the_operators_list_is_suspected(settings, engine, fresh, tmp_path):
    links, letter = fresh
    file = tmp_path / "networks.txt"
    file.write_text("# scanners of data centres\n203.0.113.64/26, 2001:db8::/32\n")
    app = create_app(dataclasses.replace(settings, scanner_networks=file))
    for address in ("203.0.113.77", "203.0.113.7", "2001:db8::9"):
        app.test_client().get(path(links.click(letter, 0)), headers=BROWSER, environ_base={"REMOTE_ADDR": address})
    app.extensions["nurture"].engine.dispose()
    assert [(one["signals"].get("listed"), one["verdict"]) for one in hits(engine)] == [
        (40, "suspected"),
        (None, "human"),
        (40, "suspected"),
    ]


def test_a_wrong_line_of_the_list_stops_the_start_and_is_named(settings, tmp_path):
    file = tmp_path / "networks.txt"
    file.write_text("192.0.2.0/24\n\n10.0.0.0/40\n")
    with pytest.raises(SettingError, match="NURTURE_SCANNER_NETWORKS.*line 3: '10.0.0.0/40'"):
        create_app(dataclasses.replace(settings, scanner_networks=file))
    told = {"NURTURE_HOME": str(tmp_path), "NURTURE_SCANNER_NETWORKS": str(tmp_path / "none.txt")}
    with pytest.raises(SettingError, match="NURTURE_SCANNER_NETWORKS"):
        load(told)
    with pytest.raises(SettingError, match="NURTURE_TRUSTED_PROXIES.*'everybody'"):
        load({"NURTURE_HOME": str(tmp_path), "NURTURE_TRUSTED_PROXIES": "10.0.0.1, everybody"})


@pytest.mark.parametrize(
    ("trusted", "remote", "told", "network"),
    [
        ("", "10.0.0.1", "203.0.113.9", "10.0.0.0/24"),
        ("10.0.0.0/8", "10.0.0.1", "203.0.113.9", "203.0.113.0/24"),
        ("10.0.0.0/8", "10.0.0.1", "192.0.2.66, 203.0.113.9, 10.0.0.2", "203.0.113.0/24"),
        ("10.0.0.0/8", "198.51.100.1", "203.0.113.9", "198.51.100.0/24"),
        ("10.0.0.0/8", "", "2001:db8:1:2::9", "2001:db8:1::/48"),
        ("10.0.0.0/8", "10.0.0.1", "", "10.0.0.0/24"),
        ("10.0.0.0/8", "10.0.0.1", "nonsense", None),
    ],
)
def test_only_our_own_proxies_say_who_they_speak_for(settings, engine, fresh, trusted, remote, told, network):
    links, letter = fresh
    app = create_app(dataclasses.replace(settings, trusted_proxies=trusted))
    headers = {**BROWSER, "X-Forwarded-For": told} if told else BROWSER
    app.test_client().get(path(links.click(letter, 0)), headers=headers, environ_base={"REMOTE_ADDR": remote})
    app.extensions["nurture"].engine.dispose()
    assert hits(engine)[0]["network"] == network


def test_a_long_list_is_asked_in_microseconds():
    networks = read_networks("\n".join(f"{high}.{low}.0.0/17" for high in range(1, 200) for low in range(0, 256, 2)))
    start = time.perf_counter()
    assert sum(f"77.{low}.5.5" in networks for low in range(256)) == 128
    assert time.perf_counter() - start < 0.1
    assert not read_networks("# nothing") and None not in networks and "x" not in networks


def test_every_signal_has_a_weight_and_is_explained():
    assert WEIGHTS.keys() == SENTENCES.keys()


def test_a_click_being_judged_is_found(engine, bells, cast, letter):
    enrollment = rows(engine, "select enrollment_id from message")[0]["enrollment_id"]
    look(engine, letter)
    with engine.connect() as conn:
        assert being_judged(conn, [enrollment]) == {}
    hit(engine, letter)
    with engine.connect() as conn:
        assert being_judged(conn, [enrollment]) == {enrollment: NOW + timedelta(seconds=60)}
    settle_due(engine, later(), bells)
    with engine.connect() as conn:
        assert being_judged(conn, [enrollment]) == {}


def test_a_link_that_is_fetched_without_end_does_not_fill_the_disk(engine, letter):
    assert [hit(engine, letter) for _ in range(track.HITS_PER_MESSAGE + 5)].count(None) == 5
    assert len(hits(engine)) == track.HITS_PER_MESSAGE


def test_settling_in_several_places_at_once_tells_each_click_once(engine, bells, cast):
    with engine.begin() as conn:
        account_id = add_account(conn)
        contact_id = add_contact(conn, account_id)
        letters = [add_message(conn, cast, account_id, contact_id, sent_at=SENT) for _ in range(40)]
    for one in letters:
        look(engine, one)
        hit(engine, one, 2)
    failures = []

    def settle():
        try:
            settle_due(engine, later(), bells)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=settle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle_due(engine, later(), bells)
    assert failures == []
    assert sorted(one["message_id"] for one in raised(engine)) == sorted(f"click:{one}:2" for one in letters)
    assert rows(engine, "select * from hit where settled_at is null") == []
