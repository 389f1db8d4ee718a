"""Brakes: complaints pause a domain's mail, bounces pause a campaign, and both last until somebody releases them (1.1, B-04)."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text

from app import doctor
from app.cli import main
from app.config import CODE
from app.errors import InputError, NotFound
from app.flow import brakes, publish
from app.flow.channels import set_channel
from app.flow.check import check
from app.flow.deliver import run as deliver
from app.flow.steering import set_mode
from app.providers.memory import MemoryTransport
from app.queue import Bells, find_due
from app.rules import braking
from app.rules.braking import Count, provider_of
from app.rules.lifecycle import BounceBrake, ComplaintBrake, Lifecycle
from tests.cast import LIFECYCLE, Cast
from tests.conftest import NOW
from tests.test_dkim import QUICK

DAY = timedelta(days=1)
MANY = """
insert into message (id, enrollment_id, campaign_id, version_id, step_id, occurrence, account_id, contact_id, partition, kind, topic,
    priority, created_at, due_at, expires_at, state, dot_at, settled_at, attempts, person, message_header)
select gen_random_uuid(), %(enrollment)s, %(campaign)s, %(version)s, 'welcome', %(start)s + n, %(account)s, %(contact)s, 0, 'email', 'product',
    50, %(at)s, %(at)s, %(at)s, 'sent', %(at)s + n * interval '1 millisecond', %(at)s, 1, 'p' || n || '@' || %(to)s, '<' || n || '@' || %(domain)s || '>'
from generate_series(1, %(count)s) n returning id"""  # noqa: E501 — one insert


class Past:
    """Mail that was sent, and what became of it."""

    def __init__(self, conn, cast: Cast):
        self.conn, self.cast = conn, cast
        self.person = cast.contact("past", cast.account("past"))
        self.start = 1000

    def sent(self, count, to="gmail.com", at=NOW - timedelta(hours=2), domain="acorn.test"):
        about = {"enrollment": self.person.enrollment, "campaign": self.cast.campaign_id, "version": self.cast.version_id}
        about |= {"account": self.person.account_id, "contact": self.person.id, "start": self.start}
        self.start += count
        found = self.conn.exec_driver_sql(MANY, {**about, "count": count, "to": to, "at": at, "domain": domain})
        return found.scalars().all()

    def told(self, ids, kind="complained", at=NOW - timedelta(hours=1), **detail):
        rows = [{"id": one, "kind": kind, "at": at, "detail": json.dumps(detail)} for one in ids]
        if rows:
            self.conn.execute(
                text(
                    "insert into delivery_event (message_id, kind, at, detail, key) values (:id, :kind, :at, cast(:detail as jsonb), :kind)"
                ),
                rows,
            )


@pytest.fixture
def past(engine):
    with engine.begin() as conn:
        yield Past(conn, Cast(conn, NOW))


def look(past, at=NOW):
    return brakes.look(past.conn, at)[0]


def on(past):
    return [(one["action"], one["domain"], one["provider"]) for one in reversed(brakes.list_brakes(past.conn))]


# Complaints ------------------------------------------------------------------------------------------------------------


def test_b04_three_in_a_thousand_pause_the_domain_and_one_warns(past):
    ids = past.sent(1000)
    past.told(ids[:1])
    look(past)
    assert set(on(past)) == {("warn", "acorn.test", "Google"), ("warn", "acorn.test", None)}
    past.told(ids[1:3])
    [made] = look(past)
    found = next(one for one in brakes.list_brakes(past.conn) if one["id"] == made)
    assert (found["action"], found["domain"], found["kind"]) == ("pause", "acorn.test", "complaints")
    assert found["numbers"] == {
        "complained": 3,
        "delivered": 1000,
        "rate": 0.003,
        "limit": 0.003,
        "provider": found["numbers"]["provider"],
        "hours": 24,
        "since": (NOW - DAY).isoformat(),
    }
    assert "3 complaints" in brakes.sentence(found) and "0.30%" in brakes.sentence(found)
    assert look(past) == [], "once"


@pytest.mark.parametrize(
    ("delivered", "complained", "bounced", "action"),
    [
        (999, 999, 0, "warn"),  # too little delivered to stop for
        (1000, 2, 0, "warn"),
        (1000, 3, 0, "pause"),
        (1003, 3, 3, "pause"),  # what bounced was not delivered
        (1000, 3, 1, "warn"),
        (2000, 1, 0, None),
        (1000, 0, 0, None),
    ],
)
def test_b04_the_limits_exactly(past, delivered, complained, bounced, action):
    ids = past.sent(delivered, to="birch.test")
    past.told(ids[:complained])
    past.told(ids[-bounced:] if bounced else [], "bounced", sort="block")
    look(past)
    actions = {one["action"] for one in brakes.list_brakes(past.conn)}
    assert actions == ({action} if action else set())


def test_one_mailbox_provider_is_enough_and_its_domains_count_together(past):
    past.sent(5000, to="birch.test")
    for domain in ("gmail.com", "googlemail.com"):
        past.told(past.sent(500, to=domain)[:2])
    past.told(past.sent(500, to="gmx.de")[:1], at=NOW - DAY * 3)
    look(past)
    [paused] = [one for one in brakes.list_brakes(past.conn) if one["action"] == "pause"]
    assert (paused["numbers"]["provider"], paused["numbers"]["complained"], paused["numbers"]["delivered"]) == ("Google", 4, 1000)


def test_seven_days_count_as_well_as_one_and_older_mail_does_not(past):
    past.told(past.sent(1000, at=NOW - DAY * 9)[:50], at=NOW - DAY * 8)
    assert look(past) == []
    past.told(past.sent(1000, at=NOW - DAY * 5)[:4], at=NOW - DAY * 4)
    look(past)
    [paused] = [one for one in brakes.list_brakes(past.conn) if one["action"] == "pause"]
    assert paused["numbers"]["hours"] == 168


def test_another_domain_is_not_held_to_account(past):
    past.told(past.sent(1000, domain="other.test")[:10])
    past.told(past.sent(5000)[:1])
    look(past)
    assert {one["domain"] for one in brakes.list_brakes(past.conn)} == {"other.test"}


def test_after_a_release_only_what_happens_from_then_on_counts(past):
    past.told(past.sent(1000)[:5])
    look(past)
    [ident] = [one["id"] for one in brakes.list_brakes(past.conn) if one["action"] == "pause"]
    brakes.release(past.conn, ident, NOW)
    assert not [one for one in brakes.list_brakes(past.conn) if one["action"] == "pause"]
    assert look(past, NOW + timedelta(minutes=1)) == []
    later = NOW + timedelta(hours=1)
    past.told(past.sent(1000, at=later)[:3], at=later)
    made = look(past, later + timedelta(minutes=1))
    assert [one["action"] for one in brakes.list_brakes(past.conn) if one["id"] in made and one["action"] == "pause"] == ["pause"]
    with pytest.raises(NotFound):
        brakes.release(past.conn, ident, NOW)
    assert [one["released_by"] for one in brakes.list_brakes(past.conn, every=True) if one["id"] == ident] == ["hand"]


def test_a_warning_ends_when_the_rate_falls(past):
    past.told(past.sent(1000)[:1])
    assert look(past)
    past.sent(200)
    look(past)
    assert on(past), "not at once: 0.083% is nearly the limit"
    past.sent(300)
    look(past)
    assert on(past) == []
    assert {one["released_by"] for one in brakes.list_brakes(past.conn, every=True)} == {"rate"}


def test_rules_sum_by_provider_and_window():
    counts = [Count("a.test", to, DAY, NOW, 600, 1) for to in ("gmail.com", "googlemail.com", "gmx.de")]
    sums = {one.provider: (one.delivered, one.complained) for one in braking.together(counts)}
    assert sums == {"Google": (1200, 2), "United Internet": (600, 1), None: (1800, 3)}
    assert [one.action for one in braking.complaints([Count("a.test", None, DAY, NOW, 0, 1)], ComplaintBrake())] == ["warn"]
    assert (provider_of("GMAIL.com"), provider_of("birch.test"), provider_of("")) == ("Google", "birch.test", "unknown")


# What a brake does -----------------------------------------------------------------------------------------------------


def braked(past):
    past.told(past.sent(1000)[:3])
    look(past)


def test_mail_of_a_braked_domain_waits_with_the_numbers_until_it_expires(engine, settings):
    with engine.begin() as conn:
        past = Past(conn, Cast(conn, NOW))
        braked(past)
        acorn = past.cast.account()
        waits = past.cast.message(past.cast.contact("ada", acorn))
        conn.execute(text("update message set expires_at = :at where id = :id"), {"at": NOW + timedelta(minutes=20), "id": waits})
    assert send(engine, settings, NOW) == []
    with engine.connect() as conn:
        row = conn.execute(text("select state, reason, due_at, attempts from message where id = :id"), {"id": waits}).one()
        said = conn.execute(text("select gate, verdict, reason, evidence from decision where message_id = :id"), {"id": waits}).one()
        assert (row.state, row.reason, row.due_at, row.attempts) == ("due", "braked", NOW + timedelta(minutes=15), 0)
        assert (said.gate, said.verdict, said.reason) == ("brake", "wait", "braked")
        assert (said.evidence["complained"], said.evidence["delivered"], said.evidence["rate"]) == (3, 1000, 0.003)
    send(engine, settings, NOW + timedelta(minutes=20))
    with engine.connect() as conn:
        row = conn.execute(text("select state, reason from message where id = :id"), {"id": waits}).one()
        last = conn.execute(text("select gate, verdict from decision where message_id = :id order by id desc limit 1"), {"id": waits}).one()
    assert (row.state, row.reason) == ("skipped", "braked"), "it expires as usual, and says what it waited for"
    assert (last.gate, last.verdict) == ("brake", "no")


def test_transactional_mail_is_not_braked_nor_is_another_sender(engine, settings):
    senders = {**LIFECYCLE["senders"], "other": {"name": "Other", "email": "other@birch.test"}}
    for campaign in ({"topic": "transactional"}, {"sender": "other"}):
        with engine.begin() as conn:
            conn.execute(text("truncate lifecycle_version, campaign, account, contact, brake restart identity cascade"))
            past = Past(conn, Cast(conn, NOW, campaign, {"senders": senders}))
            braked(past)
            assert [one for one in brakes.list_brakes(conn) if one["action"] == "pause"]
            topic = campaign.get("topic", "product")
            past.cast.message(past.cast.contact("ada", past.cast.account("fir")), topic=topic)
        assert [letter.recipient for letter in send(engine, settings, NOW)] == ["ada@fir.test"]


def send(engine, settings, now):
    transport = MemoryTransport()
    deliver(engine, settings, uuid4(), lambda: now, Bells(None), transport=transport, limits=QUICK)
    return transport.letters


def test_releasing_lets_waiting_mail_go_at_once(engine, settings):
    with engine.begin() as conn:
        past = Past(conn, Cast(conn, NOW))
        braked(past)
        past.cast.message(past.cast.contact("ada", past.cast.account()))
    assert not send(engine, settings, NOW)
    with engine.begin() as conn:
        ident = next(one["id"] for one in brakes.list_brakes(conn) if one["action"] == "pause")
        done = brakes.release(conn, ident, NOW)
    assert (done["messages"], done["domain"], done["campaign"]) == (1, "acorn.test", None)
    assert [letter.recipient for letter in send(engine, settings, NOW)] == ["ada@acorn.test"]


def test_the_gates_ask_no_query_for_a_message(engine, settings):
    """The brake is part of the book, which one small look at the start of a batch finds unchanged."""
    with engine.begin() as conn:
        past = Past(conn, Cast(conn, NOW))
        before = publish.book(conn)
        assert before.braked == {} and publish.book(conn) is before
        braked(past)
        book = publish.book(conn)
        assert book.braked["acorn.test"]["complained"] == 3 and publish.book(conn) is book
        assert publish.including(conn, book, book.versions) is book


# Bounces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "bounced", "sort", "paused"),
    [(50, 3, "hard", True), (49, 49, "hard", False), (500, 25, "hard", True), (500, 24, "hard", False), (500, 500, "block", False)],
)
def test_a_campaign_whose_first_mails_bounce_is_paused(past, sent, bounced, sort, paused):
    ids = past.sent(sent)
    past.told(ids[: bounced // 2], "bounced", sort=sort)
    past.told(ids[bounced // 2 : bounced], "rejected", sort=sort)
    look(past)
    mode = past.conn.execute(text("select mode from campaign")).scalar_one()
    assert mode == ("paused" if paused else "live")
    found = [one for one in brakes.list_brakes(past.conn) if one["kind"] == "bounces"]
    assert len(found) == paused
    if paused:
        assert found[0]["campaign"] == past.cast.campaign_key
        assert found[0]["numbers"] == {"sent": sent, "bounced": bounced, "rate": bounced / sent, "limit": 0.05}
        assert "bounced for good" in brakes.sentence(found[0])


def test_only_the_first_mails_count(past):
    past.sent(500)
    past.told(past.sent(500, at=NOW - timedelta(minutes=30)), "bounced", at=NOW - timedelta(minutes=1), sort="hard")
    look(past)
    assert past.conn.execute(text("select mode from campaign")).scalar_one() == "live"


def test_releasing_a_campaigns_brake_ends_its_pause_and_it_is_not_paused_again(past):
    past.told(past.sent(100)[:50], "bounced", sort="hard")
    [ident] = look(past)
    past.cast.message(past.cast.contact("ada"))
    with pytest.raises(InputError, match="overdue"):
        brakes.release(past.conn, ident, NOW)
    brakes.release(past.conn, ident, NOW, choice="send")
    assert past.conn.execute(text("select mode from campaign")).scalar_one() == "live"
    assert brakes.list_brakes(past.conn) == []
    assert look(past) == []


def test_resuming_the_campaign_releases_its_brake(past):
    past.told(past.sent(100)[:50], "bounced", sort="hard")
    [ident] = look(past)
    set_mode(past.conn, past.cast.campaign_key, "live", NOW)
    assert [(one["id"], one["released_by"]) for one in brakes.list_brakes(past.conn, every=True)] == [(ident, "resumed")]
    with pytest.raises(NotFound):
        brakes.release(past.conn, ident, NOW)


# When it looks, and whom it tells --------------------------------------------------------------------------------------


def test_it_looks_only_when_something_came_back_and_at_most_once_a_minute(engine, settings):
    with engine.begin() as conn:
        assert not find_due(conn, NOW).brakes
        past = Past(conn, Cast(conn, NOW))
        past.told(past.sent(1000)[:3])
        assert find_due(conn, NOW).brakes
    assert brakes.run(engine, settings, lambda: NOW, Bells(None))
    with engine.begin() as conn:
        assert not find_due(conn, NOW + timedelta(seconds=30)).brakes
        assert find_due(conn, NOW + timedelta(minutes=3)).brakes
        conn.execute(text("update brake set released_at = :now"), {"now": NOW})
    assert brakes.run(engine, settings, lambda: NOW + timedelta(seconds=30), Bells(None)) == []
    with engine.connect() as conn:
        assert not find_due(conn, NOW + timedelta(days=8)).brakes


def test_before_anything_is_published_it_does_nothing(engine):
    with engine.begin() as conn:
        assert brakes.look(conn, NOW) == ([], frozenset())


@pytest.fixture
def telling(engine, settings):
    with engine.begin() as conn:
        more = {"channels": {"ops": "Operations"}, "brakes": {"tell": "ops"}}
        past = Past(conn, Cast(conn, NOW, None, more))
        past.told(past.sent(1000, to="birch.test")[:3])
    return settings


def run(engine, settings, transport, now=NOW):
    return brakes.run(engine, settings, lambda: now, Bells(None), transport=transport)


def test_the_operators_are_told_once_with_the_numbers(engine, telling):
    with engine.begin() as conn:
        set_channel(conn, telling, "ops", "email", "ops@acorn.test", NOW)
    transport = MemoryTransport()
    run(engine, telling, transport)
    run(engine, telling, transport, NOW + timedelta(hours=1))
    mails = [letter.data.decode() for letter in transport.letters]
    assert len(mails) == 1 and transport.letters[0].recipient == "ops@acorn.test"
    assert "paused: acorn.test" in mails[0] and "3 complaints" in mails[0] and "nurture brakes release" in mails[0]


def test_telling_is_tried_again_only_where_nothing_was_taken(engine, telling):
    with engine.begin() as conn:
        set_channel(conn, telling, "ops", "email", "ops@acorn.test", NOW)
    transport = MemoryTransport()
    transport.fail("rcpt")
    run(engine, telling, transport)
    assert not transport.letters
    run(engine, telling, transport, NOW + timedelta(minutes=5))
    assert len(transport.letters) == 1
    with engine.begin() as conn:
        conn.execute(text("update brake set told_at = null"))
    transport.fail("dot", "unknown", "lost", None)
    run(engine, telling, transport, NOW + timedelta(minutes=10))
    run(engine, telling, transport, NOW + timedelta(minutes=15))
    assert len(transport.letters) == 1, "it may have arrived, so it is not told again"


def test_without_a_channel_the_doctor_says_it(engine, telling):
    run(engine, telling, MemoryTransport())
    findings = {one.what: one for one in doctor.examine(telling, engine, NOW)}
    assert not findings["brakes"].good and "3 complaints" in findings["brakes"].seen and "nurture brakes release" in findings["brakes"].seen


def test_the_command(engine, settings, capsys, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    where = ["--home", str(settings.home), "--json"]
    with engine.begin() as conn:
        past = Past(conn, Cast(conn, NOW))
        past.told(past.sent(1000, to="birch.test")[:3])
        past.told(past.sent(100, domain="b.test", to="birch.test")[:50], "bounced", sort="hard")
        conn.execute(text("update message set dot_at = dot_at - interval '1 day' where message_header like '%b.test>'"))
        brakes.look(conn, NOW)

    def nurture(*words, code=0):
        assert main([*words, *where]) == code
        said = capsys.readouterr()
        return json.loads(said.out) if said.out else said.err

    listed = nurture("brakes", "list")
    by_kind = {one["kind"]: one for one in listed if one["action"] == "pause"}
    assert by_kind["bounces"]["numbers"]["bounced"] == 50 and by_kind["complaints"]["domain"] == "acorn.test"
    assert nurture("brakes", "release", str(by_kind["complaints"]["id"]))["domain"] == "acorn.test"
    assert nurture("brakes", "release", str(by_kind["bounces"]["id"]))["campaign"] == "onboarding/first-value"
    assert "no brake" in nurture("brakes", "release", "99999", code=2)
    assert nurture("brakes", "list") == []
    assert len(nurture("brakes", "list", "--all")) == len(listed)
    assert main(["brakes", "list", "--home", str(settings.home)]) == 0
    assert "No brake is on." in capsys.readouterr().out


# lifecycle.yaml --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"complaints": {"warn": "1%", "pause": "0.5%"}},
        {"complaints": {"delivered": 0}},
        {"complaints": {"pause": "200%"}},
        {"bounces": {"after": 600}},
        {"bounces": {"pause": 0}},
        {"tell": "nowhere"},
        {"speed": 1},
    ],
)
def test_limits_are_checked(wrong):
    with pytest.raises(ValueError):
        Lifecycle.model_validate({**LIFECYCLE, "brakes": wrong})


def test_limits_are_what_the_file_says(past):
    read = Lifecycle.model_validate({**LIFECYCLE, "brakes": {"complaints": {"warn": "0.2%", "pause": "0.4%", "delivered": 10}}})
    assert (read.brakes.complaints.warn, read.brakes.complaints.pause, read.brakes.bounces) == (0.002, 0.004, BounceBrake())
    past.conn.execute(
        text("insert into lifecycle_version (hash, definition, published_at) values ('2', cast(:d as jsonb), :at)"),
        {"d": json.dumps({**LIFECYCLE, "brakes": {"complaints": {"warn": "20%", "pause": "40%", "delivered": 10}}}), "at": NOW},
    )
    past.told(past.sent(10)[:4])
    look(past)
    assert ("pause", "acorn.test", None) in on(past)


def test_a_wrong_limit_is_named_with_its_line(tmp_path):
    shutil.copytree(CODE / "campaigns", tmp_path / "campaigns")
    file = tmp_path / "campaigns" / "lifecycle.yaml"
    file.write_text(file.read_text() + "\nbrakes:\n  tell: nowhere\n")
    _, problems = check(tmp_path / "campaigns")
    [problem] = [one for one in problems if "nowhere" in one.message]
    assert problem.line == len(file.read_text().splitlines())
