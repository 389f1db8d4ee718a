"""Unknown messages: evidence settles them, else marketing mail counts as sent and transactional mail goes once more (S-05)."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import select, text, update

from app import models
from app.cli import main
from app.errors import InputError
from app.flow import unknown
from app.flow.deliver import run
from app.flow.hear import hear
from app.flow.unknown import resolve_due
from app.providers.memory import MemoryTransport
from app.providers.smtp import Smtp
from app.queue import Bells, find_due
from app.rules.reports import Report
from tests.cast import Cast
from tests.conftest import NOW
from tests.faulty_smtp import FaultySmtp
from tests.test_deliver import QUICK, Clock, decisions, events, message, settled

HOLD = timedelta(hours=6)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lost(engine, settings, clock):
    """Makes one message whose final dot got no answer; returns its id."""

    def lost(**values):
        with engine.begin() as conn:
            cast = Cast(conn, NOW)
            message_id = cast.message(cast.contact("ada"), **values)
        with FaultySmtp({"dot": [["close"]]}) as server:
            run(engine, settings, uuid4(), clock, Bells(None), transport=Smtp(server.url), limits=QUICK)
        assert message(engine, message_id).state == "unknown"
        return message_id

    return lost


def deliver(engine, settings, clock, **failures):
    transport = MemoryTransport()
    for phase, outcome in failures.items():
        transport.fail(phase, outcome, "no answer", None)
    run(engine, settings, uuid4(), clock, Bells(None), transport=transport, limits=QUICK)
    return transport


def resolve(engine, clock):
    with engine.connect() as conn:
        due = find_due(conn, clock.now).hits
    count = resolve_due(engine, clock, Bells(None))
    assert bool(count) == due  # the clock rings exactly when there is something to settle
    return count


def heard(engine, message_id, kind):
    with engine.begin() as conn:
        hear(conn, [Report(kind, NOW, "1", token=str(message_id))], "postmark", NOW)


def test_it_is_held_for_six_hours_and_marketing_then_counts_as_sent(engine, settings, clock, lost):
    message_id = lost()
    row = message(engine, message_id)
    assert row.unknown_until == NOW + HOLD
    clock.now = NOW + HOLD - timedelta(seconds=1)
    assert resolve(engine, clock) == 0
    assert not deliver(engine, settings, clock).begun  # not retried meanwhile
    clock.now = NOW + HOLD
    assert resolve(engine, clock) == 1
    row = message(engine, message_id)
    assert (row.state, row.reason, row.resends, row.settled_at) == ("sent", "assumed_sent", 0, NOW)
    assert not deliver(engine, settings, clock).begun
    assert [said["outcome"] for said in settled(engine)] == ["unknown"]  # its campaign has gone on long since
    assert decisions(engine)[-1] == ("send", "yes", "assumed_sent")


@pytest.mark.parametrize("kind", ["delivered", "complained", "unsubscribed", "bounced", "rejected"])
@pytest.mark.parametrize("topic", ["product", "transactional"])
def test_evidence_settles_it_at_once(engine, settings, clock, lost, kind, topic):
    """Mail that came back or was refused later was taken by the relay, too: it is not sent again."""
    message_id = lost(topic=topic)
    heard(engine, message_id, kind)
    assert (message(engine, message_id).state, message(engine, message_id).reason) == ("sent", "proved_sent")
    clock.now = NOW + HOLD
    assert resolve(engine, clock) == 0 and not deliver(engine, settings, clock).begun


@pytest.mark.parametrize("topic", ["product", "transactional"])
def test_evidence_that_nobody_noticed_counts_before_time_does(engine, settings, clock, lost, topic):
    """A report that was written in the very moment in which the message became unknown."""
    message_id, detail = lost(topic=topic), {"source": "mail"}
    with engine.begin() as conn:
        conn.execute(models.delivery_event.insert().values(message_id=message_id, kind="delivered", at=NOW, key="1", detail=detail))
    clock.now = NOW + HOLD
    assert resolve(engine, clock) == 1
    assert (message(engine, message_id).state, message(engine, message_id).reason) == ("sent", "proved_sent")
    assert not deliver(engine, settings, clock).begun


def test_a_link_that_was_fetched_is_evidence_whoever_fetched_it(engine, clock, lost):
    message_id = lost()
    with engine.begin() as conn:
        conn.execute(
            models.hit.insert().values(message_id=message_id, kind="open", at=NOW, signals={}, score=100, verdict="scanner", settled_at=NOW)
        )
    assert resolve_due(engine, clock, Bells(None)) == 1
    assert message(engine, message_id).reason == "proved_sent"


def test_transactional_mail_goes_once_more_under_the_same_message_id(engine, settings, clock, lost):
    message_id = lost(topic="transactional")
    header = message(engine, message_id).message_header
    clock.now = NOW + HOLD
    assert resolve(engine, clock) == 1
    row = message(engine, message_id)
    assert (row.state, row.reason, row.due_at, row.resends, row.claim) == ("due", "sent_again", clock.now, 1, None)
    [letter] = deliver(engine, settings, clock).letters
    assert f"Message-ID: {header}\r\n".encode() in letter.data
    row = message(engine, message_id)
    assert (row.state, row.attempts, row.message_header) == ("sent", 2, header)
    assert events(engine, message_id) == [("unknown", "attempt:1"), ("sent", "attempt:2")]


def test_it_goes_although_its_enrollment_went_through_all_steps_meanwhile(engine, settings, clock, lost):
    lost(topic="transactional")
    with engine.begin() as conn:
        conn.execute(update(models.enrollment).values(state="finished", end_reason="finished"))
    clock.now = NOW + HOLD
    resolve(engine, clock)
    assert len(deliver(engine, settings, clock).letters) == 1


def test_it_does_not_go_when_its_enrollment_was_left_meanwhile(engine, settings, clock, lost):
    """S-12: its moment has passed."""
    message_id = lost(topic="transactional")
    with engine.begin() as conn:
        conn.execute(update(models.enrollment).values(state="exited", end_reason="goal_met"))
    clock.now = NOW + HOLD
    resolve(engine, clock)
    assert not deliver(engine, settings, clock).begun
    assert (message(engine, message_id).state, message(engine, message_id).reason) == ("skipped", "enrollment_ended")


def test_it_goes_once_more_and_not_twice_more(engine, settings, clock, lost):
    message_id = lost(topic="transactional")
    clock.now = NOW + HOLD
    resolve(engine, clock)
    deliver(engine, settings, clock, dot="unknown")
    assert message(engine, message_id).state == "unknown"
    clock.now += HOLD
    assert resolve(engine, clock) == 1
    assert (message(engine, message_id).state, message(engine, message_id).reason) == ("sent", "assumed_sent")


def test_what_has_expired_or_became_unknown_before_this_rule_is_not_sent_again(engine, clock, lost):
    message_id = lost(topic="transactional", expires_at=NOW + timedelta(hours=1))
    clock.now = NOW + HOLD
    resolve(engine, clock)
    assert message(engine, message_id).reason == "assumed_sent"
    with engine.begin() as conn:
        conn.execute(
            text("update message set state = 'unknown', unknown_until = null, expires_at = :far"), {"far": NOW + timedelta(days=9)}
        )
    resolve(engine, clock)
    assert message(engine, message_id).reason == "assumed_sent"


def test_the_old_token_is_fenced_off_from_what_is_sent_again(engine, settings, clock, lost):
    """A worker that wakes up after the resend was decided can neither settle nor send it."""
    from app.flow import claims, outcome
    from app.flow.outcome import Outcome
    from app.rules.delivery import SENT

    message_id = lost(topic="transactional")
    token = message(engine, message_id).claim
    clock.now = NOW + HOLD
    resolve(engine, clock)
    with engine.begin() as conn:
        [row] = claims.claim(conn, uuid4(), clock.now, 10)
        assert row.claim != token
        stale = type("Row", (), {**row._mapping, "claim": token})()
        outcome.settle(conn, [Outcome(stale, SENT, clock.now, reply="250 late")], clock.now, 64)
    assert message(engine, message_id).state == "claimed"


@pytest.mark.parametrize(("verdict", "state", "reason"), [("sent", "sent", "said_sent"), ("not_sent", "due", "sent_again")])
def test_somebody_who_looked_decides(engine, settings, clock, lost, verdict, state, reason):
    message_id = lost()
    with engine.begin() as conn:
        [found] = unknown.unknown(conn)
        assert (found["id"], found["address"], found["campaign"]) == (str(message_id), "ada@acorn.test", "onboarding/first-value")
        assert unknown.unknown(conn, campaign="another/one") == []
        assert unknown.decide(conn, [str(message_id), str(uuid4())], verdict, NOW) == [message_id]
        assert unknown.decide(conn, [str(message_id)], verdict, NOW) == []
    assert (message(engine, message_id).state, message(engine, message_id).reason) == (state, reason)
    assert len(deliver(engine, settings, clock).letters) == (verdict == "not_sent")


def test_what_is_no_id_or_no_verdict_is_named(engine):
    with engine.begin() as conn:
        with pytest.raises(InputError, match="message"):
            unknown.decide(conn, ["nothing"], "sent", NOW)
        with pytest.raises(InputError, match="verdict"):
            unknown.decide(conn, [], "perhaps", NOW)


def test_the_hold_is_a_setting(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle={"sending": {"unknown": "30m", "transactional": "1h"}})
        message_id = cast.message(cast.contact("ada"))
    deliver(engine, settings, clock, dot="unknown")
    assert message(engine, message_id).unknown_until == NOW + timedelta(minutes=30)


def test_how_long_mail_is_tried_is_a_setting_and_shorter_for_transactional(engine, settings, clock):
    """S-10: 48 hours for marketing, 4 for transactional, counted from the first attempt."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        acorn = cast.account()
        far = NOW + timedelta(days=30)
        ids = {topic: cast.message(cast.contact(topic, acorn), topic=topic, expires_at=far) for topic in ("product", "transactional")}
    transport = MemoryTransport()
    transport.fail("rcpt", "temp", "4.2.0 later", 450, times=100)
    last = {}
    for _ in range(40):
        waiting = {topic: row for topic, row in ((topic, message(engine, ident)) for topic, ident in ids.items()) if row.state == "due"}
        if not waiting:
            break
        clock.now = min(row.due_at for row in waiting.values())
        run(engine, settings, uuid4(), clock, Bells(None), transport=transport, limits=QUICK)
        for topic, ident in ids.items():
            last.setdefault(topic, clock.now if message(engine, ident).state == "skipped" else None)
            if last[topic] is None and message(engine, ident).state == "skipped":
                last[topic] = clock.now
    assert {message(engine, ident).reason for ident in ids.values()} == {"expired"}
    assert timedelta(hours=1) < last["transactional"] - NOW <= timedelta(hours=4)
    assert timedelta(hours=36) < last["product"] - NOW <= timedelta(hours=48)


def test_the_commands(database, settings, engine, lost, monkeypatch, capsys):
    message_id = lost()
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("NURTURE_HOME", str(settings.home))

    def nurture(*words):
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert [row["id"] for row in nurture("unknown", "list", "--campaign", "onboarding/first-value")] == [str(message_id)]
    assert nurture("unknown", "resolve", "--not-sent", str(message_id)) == {"resolved": [str(message_id)]}
    assert nurture("unknown", "list") == []
    with engine.connect() as conn:
        assert conn.execute(select(models.message.c.state)).scalar_one() == "due"


def test_the_count_is_shown_for_each_campaign(engine, lost, client):
    lost()
    from app.flow.reading.campaigns import campaigns

    with engine.connect() as conn:
        [found] = campaigns(conn, NOW)
    assert found["unknown"] == 1
    shown = client.get("/metrics").text
    assert "nurture_unknown_messages 1.0" in shown
    assert 'nurture_campaign_unknown_messages{campaign="onboarding/first-value"} 1.0' in shown
