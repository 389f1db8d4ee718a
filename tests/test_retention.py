"""Retention (P-11): what is too old goes, in batches, every night; what must outlive it does."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from cast_listening import LIFECYCLE, add_letter, publish
from sqlalchemy import func, insert, select, text

from app import models
from app.cli import main
from app.flow import retain
from app.flow.ingest import accept
from app.flow.items import Item
from app.flow.past import rebuild
from app.queue import find_due
from tests.conftest import NOW


def at(days):
    return NOW - timedelta(days=days)


@pytest.fixture
def old(engine):
    """One thing of every kind, 1,000 days old, 40 days old and of today."""
    with engine.begin() as conn:
        cast = publish(conn, LIFECYCLE)
        first = add_letter(conn, cast, sent_at=at(1000))
        for days in (1000, 40, 0):
            hit = {
                "message_id": first,
                "kind": "click",
                "link": 0,
                "signals": {},
                "score": 0,
                "verdict": "human",
                "network": "192.0.2.0/24",
            }
            conn.execute(models.hit.insert().values(**hit, at=at(days), user_agent="B", settled_at=at(days)))
            conn.execute(models.decision.insert().values(at=at(days), gate="send", verdict="no", reason="expired"))
            conn.execute(models.outbox.insert().values(message_id=uuid4(), sender="a", recipient="b", raw=b"", captured_at=at(days)))
            key = uuid4().hex
            accept(conn, 1, [Item(key, "track", "x", "acme", "ada", {}, at(days))], at(days), 64)
        conn.execute(text("delete from event_pending"))
        conn.execute(text("update account set created_at = :at"), {"at": at(1001)})
    return first


def count(engine, table, where="true"):
    with engine.connect() as conn:
        return conn.execute(select(func.count()).select_from(table).where(text(where))).scalar_one()


def test_what_is_too_old_goes_and_the_rest_stays(engine, old):
    taken = retain.work(engine, lambda: NOW)
    assert taken == {
        "networks": 2,
        "hits": 1,
        "rendered": 1,
        "links": 1,
        "outbox": 2,
        "effects": 0,
        "events": 1,
        "decisions": 1,
        "inbound": 0,
        "webhooks": 0,
    }
    assert (count(engine, models.hit), count(engine, models.hit, "network is not null or user_agent is not null")) == (2, 1)
    assert (count(engine, models.event), count(engine, models.decision), count(engine, models.outbox)) == (2, 2, 1)
    assert count(engine, models.event_key) == 3  # invariant 1: the keys outlive the events
    assert count(engine, models.message, "\"values\" is null and links is null and subject is not null and state = 'sent'") == 1
    assert retain.work(engine, lambda: NOW) == dict.fromkeys(taken, 0)
    with engine.connect() as conn:
        assert conn.execute(select(models.retention_run.c.counts)).scalar_one()["events"] == 1
        assert rebuild(conn, "acme", at(1001), [NOW], NOW).problem == "events_pruned"


def test_an_event_that_comes_again_after_it_was_pruned_counts_once(engine, old):
    with engine.begin() as conn:
        item = Item("same", "track", "x", "acme", "ada", {}, at(1000))
        assert accept(conn, 1, [item], at(1000), 64).fresh == 1
        conn.execute(text("delete from event_pending"))
    retain.work(engine, lambda: NOW)
    with engine.begin() as conn:
        assert accept(conn, 1, [item], NOW, 64).fresh == 0


def test_what_still_waits_is_not_pruned(engine, old):
    with engine.begin() as conn:
        accept(conn, 1, [Item("waits", "track", "x", "acme", "ada", {}, at(900))], at(900), 64)
        conn.execute(text("update message set state = 'due', settled_at = null"))
    retain.work(engine, lambda: NOW)
    assert count(engine, models.event, "message_id = 'waits'") == 1
    assert count(engine, models.message, '"values" is not null') == 1


def test_batches_and_a_run_that_goes_on(engine, old, monkeypatch):
    monkeypatch.setattr(retain, "BATCH", 10)
    with engine.begin() as conn:
        rows = [{"at": at(500), "gate": "send", "verdict": "no", "reason": "expired"} for _ in range(95)]
        conn.execute(insert(models.decision), rows)
        same = {"message_id": old, "kind": "open", "signals": {}, "score": 0, "verdict": "human", "network": "x", "settled_at": at(60)}
        conn.execute(insert(models.hit), [{**same, "at": at(60)} for _ in range(35)])
    ticks = iter(range(1000))
    until = NOW + timedelta(seconds=6)
    retain.work(engine, lambda: NOW + timedelta(seconds=next(ticks)), until=until)
    with engine.connect() as conn:
        assert conn.execute(select(models.retention_run.c.finished_at)).scalar_one() is None and retain.due(conn, NOW)
    retain.work(engine, lambda: NOW)
    assert count(engine, models.decision) == 2 and count(engine, models.hit, "network = 'x'") == 0
    with engine.connect() as conn:
        counts = conn.execute(select(models.retention_run.c.counts)).scalar_one()
        assert counts["decisions"] == 96 and counts["networks"] == 37


def test_it_is_due_once_a_night(engine, old):
    night = NOW.replace(hour=2)
    with engine.connect() as conn:
        assert not find_due(conn, night).tidying and find_due(conn, NOW).tidying
    retain.work(engine, lambda: NOW)
    with engine.connect() as conn:
        assert not find_due(conn, NOW + timedelta(hours=10)).tidying and find_due(conn, NOW + timedelta(days=1)).tidying


def test_the_times_are_settings(engine, old):
    with engine.begin() as conn:
        publish_again = LIFECYCLE | {"retention": {"decisions": "30d", "hits": "3650d"}}
        conn.execute(models.lifecycle_version.insert().values(hash="new", definition=publish_again, published_at=NOW))
    taken = retain.work(engine, lambda: NOW)
    assert (taken["decisions"], taken["hits"]) == (2, 0)


def test_the_consent_log_is_never_pruned(engine, old):
    with engine.begin() as conn:
        conn.execute(
            models.consent.insert().values(person="a@b.org", purpose="all", granted=False, at=at(5000), method="page", network="x")
        )
    retain.work(engine, lambda: NOW)
    assert count(engine, models.consent, "network = 'x'") == 1


def test_the_command(engine, settings, monkeypatch, capsys, old):
    for name, value in {"NURTURE_HOME": settings.home, "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["retention", "--run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["days"] for one in found["kept"]}["hits"] == 90
    assert found["runs"][0]["day"] == datetime.now(UTC).date().isoformat() and found["runs"][0]["finished_at"]
    assert main(["retention"]) == 0 and "fetched links: 90 days" in capsys.readouterr().out.lower()
