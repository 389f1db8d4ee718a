"""The preference page: pause, subscribe again, what may be recorded, why the mail came, in the reader's language; and the log of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from cast_listening import BROWSER, LIFECYCLE, add_account, add_contact, add_message, path, publish
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app import models
from app.flow import consents, history, states, track
from app.flow.prepare import Facts
from app.flow.publish import book
from app.rules import tracking
from app.rules.lifecycle import Lifecycle, Tracking
from app.web.phrases import PHRASES, language

SENT = datetime.now(UTC) - timedelta(minutes=10)


class Reader:
    """Ada, with one mail, and the lifecycle's changes of a test."""

    def __init__(self, engine, client, lifecycle=None, **contact):
        self.engine, self.client = engine, client
        with engine.begin() as conn:
            cast = publish(conn, {**LIFECYCLE, **(lifecycle or {})})
            conn.execute(
                text("update campaign_version set definition = jsonb_set(definition, '{trigger}', '{\"event\": \"workspace_created\"}')")
            )
            self.account = add_account(conn)
            self.contact = add_contact(conn, self.account, **contact)
            conn.execute(models.membership.update().values(roles=["admin"]))
            self.sent = add_message(conn, cast, self.account, self.contact, sent_at=SENT)
        self.links = cast.links
        self.page = path(cast.links.preferences(self.sent))

    def press(self, action, **form):
        shown = self.client.get(self.page, headers=BROWSER)
        nonce = re.search(r'name="nonce" value="([0-9a-f]+)"', shown.text)[1]
        return self.client.post(self.page, data={"nonce": nonce, "action": action, **form}, headers=BROWSER)

    def all(self, statement):
        with self.engine.connect() as conn:
            return conn.execute(text(statement)).all()

    def hit(self, kind):
        url = self.links.open(self.sent) if kind == "open" else self.links.click(self.sent, 0)
        assert self.client.get(path(url), headers=BROWSER).status_code in (200, 302)
        return self.all("select kind from hit where kind in ('open', 'click')")


@pytest.fixture
def reader(engine, client):
    return Reader(engine, client)


def test_a_pause_holds_marketing_for_30_days_ends_by_itself_and_can_be_undone(reader, engine):
    answer = reader.press("pause")
    assert "Paused. Nothing comes until" in answer.text and 'value="resume"' in answer.text and 'value="pause"' not in answer.text
    [(person, until, created)] = reader.all("select person, until, created_at from hold")
    assert person == "ada@example.org" and until - created == timedelta(days=30)
    with engine.connect() as conn:
        held = {day: states.load(conn, ids=[reader.account], acting=True, now=created + timedelta(days=day)) for day in (0, 29, 31)}
        told = next(history.of_database(conn, until=created + timedelta(days=1)))
    assert [next(iter(one.values())).contacts["ada"].held for one in held.values()] == ["paused by the person"] * 2 + [None]
    assert [(one.contact, one.until) for one in told.holds] == [("ada", until)]  # a simulation knows it, too
    again = reader.press("pause")  # twice is once
    assert len(reader.all("select 1 from hold")) == 1 and again.status_code == 200
    with engine.begin() as conn:
        conn.execute(
            models.message.update().values(state="due", reason="held", due_at=datetime.now(UTC) + timedelta(hours=1), settled_at=None)
        )
    done = reader.press("resume")
    assert "The pause is over" in done.text and 'value="pause"' in done.text
    assert reader.all("select 1 from hold where released_at is null") == []
    assert reader.all("select 1 from message where due_at <= now()")  # what waited is due now
    assert reader.all("select purpose, granted from consent order by id") == [("pause", True), ("pause", False)]


def test_a_pause_counts_for_every_contact_of_the_person(reader, engine):
    with engine.begin() as conn:
        add_contact(conn, reader.account, "ada2", address="ada@example.org", person="ada@example.org")
    reader.press("pause")
    with engine.connect() as conn:
        [account] = states.load(conn, ids=[reader.account], acting=True, now=datetime.now(UTC)).values()
    assert {one.held for one in account.contacts.values()} == {"paused by the person"}


def test_everything_stopped_can_be_taken_up_again(reader):
    assert 'value="all"' in reader.press("everything").text
    answer = reader.press("all")
    assert answer.text.count(" checked") >= 2 and 'value="everything"' in answer.text
    assert reader.all("select 1 from suppression where lifted_at is null") == []


def test_get_and_head_change_nothing_and_the_page_needs_no_script(reader):
    for method in ("get", "head"):
        for _ in range(20):
            assert getattr(reader.client, method)(reader.page, headers=BROWSER).status_code == 200
    assert reader.all("select 1 from consent union all select 1 from suppression union all select 1 from hold") == []
    shown = reader.client.get(reader.page, headers=BROWSER).text
    assert "<script" not in shown and shown.count("<label") == 4 and 'lang="en"' in shown


def test_why_the_mail_came(reader):
    shown = re.sub(r"\s+", " ", reader.client.get(reader.page, headers=BROWSER).text)
    assert "It belongs to “First value”. It came because this happened in your account: workspace created." in shown
    assert "You get it as a member of Acme. Your role there: Runs the workspace. It began on" in shown


def test_p06_opens_and_clicks_are_each_for_themselves(reader):
    reader.press("privacy", clicks="on")
    assert reader.all("select purpose, granted from consent") == [("open_tracking", False)]
    assert reader.hit("open") == [] and reader.hit("click") == [("click",)]
    reader.press("save", topic=["product", "survey"])
    assert len(reader.all("select 1 from consent")) == 1  # choosing topics says nothing about tracking


def test_t05_t16_what_was_sent_before_the_withdrawal_is_not_recorded_either(reader):
    assert len(reader.hit("open")) == 1
    reader.press("privacy")
    assert len(reader.hit("open")) == 1 and len(reader.hit("click")) == 1
    reader.press("privacy", opens="on", clicks="on")
    assert len(reader.hit("click")) == 2


@pytest.mark.parametrize(
    ("mode", "hits", "active", "offered"),
    [("off", 0, False, False), ("consent", 0, False, True), ("list_hygiene", 0, True, True), ("on", 1, False, True)],
)
def test_p07_the_modes_at_the_pixel(engine, client, mode, hits, active, offered):
    reader = Reader(engine, client, {"tracking": {"opens": mode}})
    assert len(reader.hit("open")) == hits
    assert bool(reader.all("select 1 from contact where last_active_at is not null")) == active
    shown = client.get(reader.page, headers=BROWSER).text
    assert ('name="opens"' in shown) == offered
    assert ('name="opens" value="on" checked' in shown) == (mode in ("list_hygiene", "on"))  # a consent is never ticked beforehand
    if offered:
        reader.press("privacy", opens="on", clicks="on")
        assert len(reader.hit("open")) == (2 if mode == "on" else 1 if mode == "consent" else 0)


def test_p07_list_hygiene_keeps_a_day_and_nothing_else(engine, client):
    reader = Reader(engine, client, {"tracking": {"opens": "list_hygiene"}})
    reader.hit("open")
    [(at,)] = reader.all("select last_active_at from contact")
    assert (at.hour, at.minute, at.second) == (0, 0, 0)
    assert reader.all("select 1 from hit union all select 1 from delivery_event") == []
    with engine.begin() as conn:
        conn.execute(models.contact.update().values(last_active_at=None))
    client.get(path(reader.links.open(reader.sent)), headers={"User-Agent": "Mozilla/5.0"})  # a machine's fetch is no activity
    assert reader.all("select last_active_at from contact") == [(None,)]


@pytest.mark.parametrize(("values", "hits"), [({"locale": "fr-FR"}, 0), ({"locale": "en-GB"}, 1), ({"traits": {"country": "fr"}}, 0)])
def test_p07_a_country_may_have_its_own_mode(engine, client, values, hits):
    reader = Reader(engine, client, {"tracking": {"opens": "on", "opens_in": {"FR": "consent"}}}, **values)
    assert len(reader.hit("open")) == hits


def test_p01_p07_the_modes_when_a_mail_is_made(engine, client):
    reader = Reader(engine, client, {"tracking": {"opens": "consent", "clicks": "on"}})
    with engine.connect() as conn:
        rows = conn.execute(select(models.message)).all()
        facts = Facts(conn, book(conn), rows, (), SENT, False)
        contact = facts.of(rows[0])[2]
        assert facts.may_track(contact, transactional=False) == (False, True)
        assert facts.may_track(contact, transactional=True) == (False, False)
    reader.press("privacy", opens="on")
    with engine.connect() as conn:
        assert Facts(conn, book(conn), rows, (), SENT, False).may_track(contact, transactional=False) == (True, False)


def test_the_country_of_a_contact():
    assert tracking.country_of("de", "fr-FR") == "DE" and tracking.country_of(None, "zh-Hant-TW") == "TW"
    assert tracking.country_of(7, "pt_BR") == "BR" and tracking.country_of("Germany", "de") is None
    assert tracking.clicks_kept(Tracking(clicks="consent"), None) == tracking.NOTHING
    assert Lifecycle.model_validate(LIFECYCLE).tracking.opens == "on"


def test_the_page_speaks_the_language_of_the_contact(engine, client):
    reader = Reader(engine, client, locale="de-AT")
    answer = reader.press("pause")
    assert 'lang="de"' in answer.text and "Pausiert. Bis zum" in answer.text and "Warum habe ich diese E-Mail bekommen?" in answer.text
    [(locale, words)] = reader.all("select w.locale, w.text from consent c join wording w on w.hash = c.wording")
    assert locale == "de" and words == PHRASES["de"]["pause_text"]
    assert "Abmelden" in client.get(path(reader.links.unsubscribe(reader.sent)), headers=BROWSER).text


def test_every_language_says_the_same_things():
    keys = set(PHRASES["en"])
    for name, phrases in PHRASES.items():
        assert set(phrases) == keys, name
        for key, words in phrases.items():
            assert set(re.findall(r"{(\w+)", words)) == set(re.findall(r"{(\w+)", PHRASES["en"][key])), (name, key)
    assert language(None, "da, de;q=0.8, en") == "de" and language("fr-FR", "de") == "en" and language("DE_ch") == "de"


def test_p05_a_line_of_the_log_has_all_that_proves_it(reader, engine):
    reader.press("save", topic=["survey"])
    with engine.connect() as conn:
        [line] = consents.read(conn, ["ada@example.org"])
    assert (line["person"], line["purpose"], line["granted"], line["method"], line["actor"]) == (
        "ada@example.org",
        "product",
        False,
        "page",
        "contact",
    )
    assert line["source"] == "http://127.0.0.1:8000/p/ (form 2)" and line["network"] == "127.0.0.0/24"
    assert line["words"].startswith("Getting more out of the product: ") and line["locale"] == "en" and len(line["wording"]) == 16
    assert line["evidence"] == {"message": str(reader.sent), "campaign": "onboarding/first-value", "step": "welcome"}


@pytest.mark.parametrize("change", ["update consent set granted = true", "delete from consent", "truncate consent"])
def test_p05_the_log_is_append_only(reader, engine, change):
    reader.press("everything")
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as conn:
        conn.execute(text(change))
    assert len(reader.all("select 1 from consent")) == 1


def test_a_scanner_opens_the_pixel_of_an_unknown_message(engine):
    with engine.begin() as conn:
        assert (
            track.record_hit(conn, "00000000-0000-0000-0000-000000000000", "open", None, SENT, track.Request("x", "", "", False, None))
            is None
        )
