"""Accounts with a contact each and enrollments in any number, loaded by one statement per table: a million in a minute or two.

Account `a<n>` has the one contact `u<n>`, n from 0. What they are follows from n, so that every run measures the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, Engine, text

from app.rules.facts import partition_of

PARTITIONS = 64
BLOCK = 10_000  # rows that are handed to COPY at a time


def load(engine: Engine, now: datetime, number: int) -> None:
    """Loads `number` accounts with a contact each into an installation that has none. Commits.

    They have been customers for a while: seen on an earlier day, to be assessed and looked at within the next, with some usage, a
    milestone, and a renewal to come. The role needs to be a superuser's: foreign keys are not checked row by row.
    """
    with engine.begin() as conn:
        _prepare(conn)
        conn.execute(text("insert into source (name) values ('bench')"))
        conn.execute(text("create temporary table place (n int, key text, partition smallint) on commit drop"))
        with conn.connection.driver_connection.cursor() as cursor, cursor.copy("copy place from stdin") as copy:
            for start in range(0, number, BLOCK):
                block = range(start, min(start + BLOCK, number))
                copy.write("".join(f"{n}\ta{n}\t{partition_of(f'a{n}', PARTITIONS)}\n" for n in block))
        for table, statement in _LOAD.items():
            with _without_indexes(conn, table):
                conn.exec_driver_sql(statement, {"now": now})
        for table in ("account", "contact"):
            conn.execute(text(f"select setval(pg_get_serial_sequence('{table}', 'id'), :number)"), {"number": number})


def enroll(engine: Engine, now: datetime, inside: Sequence[str], *, each: int = 2, due: datetime | None = None) -> None:
    """Puts every account into `each` campaigns, dealt out over those with the keys `inside`, which have been published. Commits.

    The enrollments wait at the step `pause` until `due`, or for some day of the coming year.
    """
    with engine.begin() as conn:
        _prepare(conn)
        found = conn.execute(text("select id, version_id from campaign where key = any(:keys) order by id"), {"keys": list(inside)}).all()
        values = {
            "now": now,
            "due": due,
            "each": each,
            "apart": max(1, len(found) // each),
            "campaigns": [ident for ident, _ in found],
            "versions": [version for _, version in found],
        }
        with _without_indexes(conn, "enrollment"):
            conn.exec_driver_sql(_ENROLL, values)


def tidy(engine: Engine) -> None:
    """What autovacuum and the checkpointer would do sooner or later, done before anything is measured."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("vacuum analyze"))
        conn.execute(text("checkpoint"))


def _prepare(conn: Connection) -> None:
    conn.execute(text("set local session_replication_role = replica"))
    conn.execute(text("set local work_mem = '256MB'"))
    conn.execute(text("set local maintenance_work_mem = '512MB'"))


@contextmanager
def _without_indexes(conn: Connection, table: str) -> Iterator[None]:
    """The indexes of `table` that stand for no constraint are made after its rows: sorting is quicker than finding every place."""
    indexes = conn.execute(text(_INDEXES), {"table": table}).all()
    for name, _ in indexes:
        conn.execute(text(f'drop index "{name}"'))
    yield
    for _, definition in indexes:
        conn.execute(text(definition))


_INDEXES = """
select i.indexname, i.indexdef from pg_indexes i
where i.tablename = :table and i.schemaname = 'public'
  and not exists (select from pg_constraint c where c.conname = i.indexname)"""
# By table, in this order. Row ids are n + 1, so that nothing has to be looked up.
_LOAD = {
    "account": """
insert into account (id, external_id, partition, name, touch, seats, customer_since, renewal_date, revenue, traits, stage, stage_entered_at,
                     created_at, last_event_at, assess_at, due_at)
select n + 1, key, partition, 'Account ' || n, 'smb', 5 + n %% 200, %(now)s - interval '200 days',
       %(now)s + make_interval(days => 100 + n %% 265), 1000 + n %% 50000, jsonb_build_object('plan', 'pro', 'industry', 'bakery'),
       'onboarding', %(now)s - interval '20 days', %(now)s + make_interval(days => -21, mins => 1 + n %% 1439),
       %(now)s - make_interval(hours => 2 + n %% 70), %(now)s + make_interval(mins => 1 + n %% 1439),
       %(now)s + make_interval(mins => 1 + n %% 1439)
from place order by n""",
    "contact": """
insert into contact (id, external_id, address, person, first_name, last_name, created_at, last_seen_at)
select n + 1, 'u' || n, 'u' || n || '@example.com', 'u' || n || '@example.com', 'Sample', 'Contact ' || n, %(now)s - interval '20 days',
       date_trunc('day', %(now)s::timestamptz) - make_interval(hours => 2 + n %% 70)
from place order by n""",
    "membership": """
insert into membership (account_id, contact_id, roles, joined_at)
select n + 1, n + 1, '{admin}', %(now)s - interval '20 days' from place order by n""",
    "milestone": """
insert into milestone (account_id, name, reached_at) select n + 1, 'signed', %(now)s - interval '20 days' from place order by n""",
    "usage_day": """
insert into usage_day (account_id, metric, day, count, last_at)
select n + 1, 'logins', %(now)s::date - d, 1 + n %% 7, date_trunc('day', %(now)s::timestamptz) - make_interval(days => d - 1, hours => 3)
from place, generate_series(1, 3) d order by n, d desc""",
}
_ENROLL = """
insert into enrollment (id, campaign_id, version_id, account_id, partition, state, step_id, entry, entered_at, due_at)
select md5(a.id || ':' || turn)::uuid, (%(campaigns)s::bigint[])[rank], (%(versions)s::bigint[])[rank], a.id, a.partition,
       'active', 'pause', jsonb_build_object('name', 'seed', 'properties', '{}'::jsonb, 'occurred_at', %(now)s::timestamptz,
       'received_at', %(now)s::timestamptz, 'message_id', 'seed', 'contact', null), %(now)s - interval '10 days',
       coalesce(%(due)s, %(now)s + make_interval(days => 1 + (a.id %% 365)::int))
from account a, generate_series(0, %(each)s - 1) turn,
lateral (select 1 + (a.id + turn * %(apart)s) %% cardinality(%(campaigns)s::bigint[]) as rank) r
order by a.id, turn"""
