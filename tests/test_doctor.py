"""`nurture doctor` finds what is wrong, says what to do about it, and lets parked occurrences be tried again."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from app import doctor
from app.db import insert_rows
from app.errors import InputError, NotFound
from app.models import event_pending, parked
from tests.cast import Cast
from tests.conftest import NOW
from tests.faulty_smtp import FaultySmtp


def examine(settings, engine, now: datetime | None = None) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(settings, engine, now or datetime.now(UTC))}


def park(engine, *keys: str) -> list[int]:
    row = {"partition": 1, "occurrence": "event:1", "error": "ZeroDivisionError: x", "traceback": "t", "parked_at": NOW}
    with engine.begin() as conn:
        return [found.id for found in insert_rows(conn, parked, [row | {"account_key": key} for key in keys], returning=["id"])]


def pend(engine, received_at: datetime, key: str = "a") -> None:
    with engine.begin() as conn:
        insert_rows(conn, event_pending, [{"event_id": 1, "partition": 1, "account_key": key, "received_at": received_at}])


def test_a_healthy_installation_has_no_problem(settings, engine):
    assert [str(finding) for finding in examine(settings, engine).values() if not finding.good] == []


def test_events_that_wait_too_long_are_a_problem_unless_their_account_is_parked(settings, engine):
    pend(engine, datetime.now(UTC) - timedelta(minutes=1))
    assert examine(settings, engine)["pending events"].good
    late = examine(settings, engine, datetime.now(UTC) + timedelta(minutes=6))["pending events"]
    assert not late.good and "Do the workers run?" in late.seen
    park(engine, "a")
    assert examine(settings, engine, datetime.now(UTC) + timedelta(minutes=6))["pending events"].good


def test_parked_occurrences_are_listed_and_tried_again(settings, engine):
    first, second, third = park(engine, "a", "b", "c")
    found = [finding for finding in doctor.examine(settings, engine, datetime.now(UTC)) if finding.what == "parked"]
    assert [finding.good for finding in found] == [False, False, False]
    assert f"nurture doctor --retry {first}" in found[0].seen and "ZeroDivisionError" in found[0].seen
    with engine.begin() as conn:
        assert doctor.retry(conn, str(second), NOW) == 1
        with pytest.raises(NotFound):
            doctor.retry(conn, str(second), NOW)
        with pytest.raises(InputError):
            doctor.retry(conn, "1; drop table parked", NOW)
        assert doctor.retry(conn, "all", NOW) == 2
        rows = conn.execute(select(parked.c.id, parked.c.released_at, parked.c.retries).order_by(parked.c.id)).all()
    assert [tuple(row) for row in rows] == [(first, NOW, 1), (second, NOW, 1), (third, NOW, 1)]


def test_clocks_that_differ_are_a_problem(settings, engine):
    assert not examine(settings, engine, datetime.now(UTC) - timedelta(seconds=30))["clocks"].good


def test_a_redis_and_a_relay_that_are_away_are_problems(settings, engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused
        port = taken.getsockname()[1]
        away = replace(settings, redis_url=f"redis://127.0.0.1:{port}/0", smtp_url=f"smtp://127.0.0.1:{port}")
        found = examine(away, engine)
        assert (found["redis"].good, found["relay"].good) == (False, False)
    with FaultySmtp() as server:
        assert examine(replace(away, redis_url=None, smtp_url=server.url), engine)["relay"].good


def test_alerts_that_failed_are_told_by_channel_and_reason(settings, engine):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        person = cast.contact("ada")
        cast.effect(person, to="team", state="failed", reason="no_channel", settled_at=NOW)
        cast.effect(person, to="team", step="later", state="due", due_at=NOW - timedelta(hours=1))
    said = [one.seen for one in doctor.examine(settings, engine, NOW) if one.what == "alerts, webhooks" and not one.good]
    assert len(said) == 2 and said[0].startswith("the oldest has waited for 3600 s") and said[1].startswith("1 to team in the last day: ")
