"""The bulk statements write what they are given, whatever its type."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from app.db import connect, insert_rows, lock, update_rows
from app.models import account, worker


def test_rows_survive_the_round_trip(engine):
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    with engine.begin() as conn:
        rows = [{"external_id": "ä😀", "partition": 3, "traits": {"a": [1, None]}, "created_at": at}]
        [(found,)] = insert_rows(conn, account, rows, returning=["id"])
        assert insert_rows(conn, account, rows, conflict="do nothing", returning=["id"]) == []
        assert update_rows(conn, account, [{"id": found, "name": "Acorn", "due_at": at}]) == 1
        row = conn.execute(select(account)).one()
    assert (row.external_id, row.traits, row.created_at, row.name, row.due_at) == ("ä😀", {"a": [1, None]}, at, "Acorn", at)


def test_times_and_days_are_utc_whatever_the_servers_zone(engine):
    """Days of usage are UTC days; a database of a company in Auckland must not count them otherwise."""
    name = engine.url.database
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql(f"alter database \"{name}\" set timezone to 'Pacific/Auckland'")
    elsewhere = connect(engine.url.render_as_string(hide_password=False))
    try:
        with elsewhere.connect() as conn:
            assert conn.exec_driver_sql("select current_setting('timezone')").scalar() == "UTC"
            at = conn.exec_driver_sql("select timestamptz '2026-01-02 23:30+00'").scalar()
        assert (at.utcoffset(), at.day) == (timedelta(0), 2)
    finally:
        elsewhere.dispose()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql(f'alter database "{name}" reset timezone')


def test_uuids_and_times_are_typed(engine):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    one = {"id": uuid4(), "host": "h", "pid": 1, "started_at": at, "heartbeat_at": at}
    with engine.begin() as conn:
        insert_rows(conn, worker, [one])
        assert conn.execute(select(worker.c.id)).scalar_one() == one["id"]


def test_nobody_waits_for_a_process_that_is_frozen_with_a_lock_in_its_hands(engine):
    """Invariant 5: whoever is stopped in the middle of a batch, and wakes up much later, has lost his transaction."""
    first = engine.connect()
    try:
        assert lock(first, 1, 7, idle_ms=100)
        with engine.begin() as second:
            assert lock(second, 1, 7, wait_ms=5000)
        with pytest.raises(OperationalError, match="idle-in-transaction timeout"):
            first.exec_driver_sql("select 1")
    finally:
        first.close()
    with engine.begin() as conn:
        assert lock(conn, 1, 7)
        assert conn.exec_driver_sql("show idle_in_transaction_session_timeout").scalar() == "30s"
    with engine.begin() as conn:
        assert conn.exec_driver_sql("show idle_in_transaction_session_timeout").scalar() == "0", "the limit ends with the transaction"


def test_a_busy_lock_is_said_and_leaves_the_transaction_alive(engine):
    with engine.begin() as first, engine.begin() as second:
        assert lock(first, 1, 7)
        assert not lock(second, 1, 7)
        assert not lock(second, 1, 7, wait_ms=20)
        assert second.exec_driver_sql("select 1").scalar() == 1
