"""The inbox: what comes from outside is stored, each event once; what the engine says itself comes in here too.

`accept` and `raise_own` store by one statement for any number of events and never commit: the entry point does, answers after that,
and only then rings the partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection

from app.flow.items import Item
from app.rules.facts import TRIGGER_MAX_AGE, partition_of

OWN_SOURCE = 0


@dataclass(frozen=True, slots=True)
class Own:
    """An event that the engine raises itself. Its `message_id` follows from what it says, so that saying it again changes nothing."""

    name: str
    message_id: str
    properties: Mapping[str, Any]
    account_key: str | None
    contact_key: str | None
    occurred_at: datetime
    mark: str | None = None
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """How many events were new, how many were known already, and the partitions to ring after the commit."""

    fresh: int
    refused: int
    partitions: frozenset[int]


def accept(
    conn: Connection, source_id: int, items: Sequence[Item], received_at: datetime, partitions: int, mark: str | None = None
) -> Accepted:
    """Stores the items that `source_id` has not posted before, in their order, and puts them before `advance`. One statement.

    `mark` is `backfill` for imported history; else an item that was older than TRIGGER_MAX_AGE on arrival is marked `too_old`.
    Items already known are counted, not stored, whatever else they say (invariant 1).
    """
    oldest = received_at - TRIGGER_MAX_AGE
    return _store(
        conn,
        source_id,
        (
            (i.message_id, i.kind, i.name, i.account_key, i.contact_key, i.properties, i.occurred_at, mark or _too_old(i, oldest), 0)
            for i in items
        ),
        received_at,
        partitions,
    )


def raise_own(conn: Connection, events: Sequence[Own], now: datetime, partitions: int) -> set[int]:
    """Stores the engine's own events, those already raised excepted. Returns the partitions to ring after the commit."""
    rows = ((e.message_id, "track", e.name, e.account_key, e.contact_key, e.properties, e.occurred_at, e.mark, e.depth) for e in events)
    return set(_store(conn, OWN_SOURCE, rows, now, partitions).partitions)


def key_of(message_id: str) -> str:
    """What `event_key` keeps of a message id, as hex: the first 16 bytes of its BLAKE2b."""
    return blake2b(message_id.encode()).hexdigest()[:32]


def _too_old(item: Item, oldest: datetime) -> str | None:
    return "too_old" if item.occurred_at < oldest else None


# One statement: what is not there yet goes into all three tables, in the order given, and what is there already is counted. The keys
# are inserted in the order of their values, so that two batches with the same events cannot wait for each other in a circle.
_STORE = """
with item as materialized (
    select r.*, row_number() over () as place from jsonb_to_recordset(%(rows)s::jsonb)
        as r(k uuid, m text, t text, n text, a text, c text, p jsonb, o timestamptz, x text, d smallint, s smallint)
), fresh as (
    insert into event_key (source_id, key) select %(source)s, k from item order by k on conflict do nothing returning key
), numbered as materialized (
    select nextval('event_id_seq') as id, o.* from (select item.* from item join fresh on fresh.key = item.k order by place) o
), stored as (
    insert into event (id, source_id, message_id, kind, name, account_key, contact_key, properties, occurred_at, received_at, mark, depth)
    select id, %(source)s, m, t, n, a, c, p, o, %(at)s, x, d from numbered
), pending as (
    insert into event_pending (event_id, partition, account_key, contact_key, received_at) select id, s, a, c, %(at)s from numbered
), counted as (
    insert into doubled (source_id, refused)
    select %(source)s, %(given)s - count(*) from fresh having count(*) < %(given)s
    on conflict (source_id) do update set refused = doubled.refused + excluded.refused
)
select s, count(*) from numbered group by s"""


def _store(conn: Connection, source_id: int, rows: Iterable[tuple], received_at: datetime, partitions: int) -> Accepted:
    given, unique, places = 0, {}, {}
    for given, (message_id, kind, name, account, contact, properties, at, mark, depth) in enumerate(rows, 1):  # noqa: B007
        if message_id in unique:
            continue
        owner = account or contact or ""
        if (place := places.get(owner)) is None:
            place = places[owner] = partition_of(owner, partitions)
        unique[message_id] = {
            "k": key_of(message_id),
            "m": message_id,
            "t": kind,
            "n": name,
            "a": account,
            "c": contact,
            "p": properties,
            "o": at,
            "x": mark,
            "d": depth,
            "s": place,
        }
    if not unique:
        return Accepted(0, 0, frozenset())
    values = {"rows": to_json(list(unique.values())).decode(), "source": source_id, "at": received_at, "given": given}
    found = conn.exec_driver_sql(_STORE, values).all()
    fresh = sum(number for _, number in found)
    return Accepted(fresh, given - fresh, frozenset(place for place, _ in found))
