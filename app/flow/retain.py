"""Retention: what is older than `lifecycle.yaml` says is taken away every night (P-11).

In bounded batches with a transaction each, oldest first, so that nobody waits for a lock and a killed run goes on where it was: what is
left is what is still there. The keys by which events count once are never pruned (invariant 1), nor is the consent log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from app.flow.respond import lifecycle_in_force
from app.rules.lifecycle import Retention
from app.rules.reasons import span

BATCH = 2000
NIGHT = 3  # from this hour of UTC on, a day's run is due


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of thing that is kept for a time: `setting` names the time in `lifecycle.yaml`; `take` takes at most `:limit` of those from
    before `:until`. A table that this database does not have is passed over."""

    name: str
    setting: str
    table: str
    take: str
    what: str


def _of(table: str, key: str, where: str, order: str, change: str = "") -> str:
    """Deletes a batch, or changes it by `change`: then what was changed stays, and the next batch begins where this one ended."""
    place = f"cast(:after as {'bigint' if order == 'id' else 'timestamptz'})"
    # What is deleted needs no order: without one the oldest, which stand together, are found by the index of their times.
    going_on = f" and (cast(:after as text) is null or {order} >= {place}) order by {order}" if change else ""
    found = f"select {key} from {table} where {where}{going_on} limit :limit"
    return f"{change or f'delete from {table}'} where {key} = any(array({found})) returning {order if change else 'null'}"


_WAITS = "exists (select from event_pending p where p.event_id = event.id)"
RULES: tuple[Rule, ...] = (
    Rule(
        "networks",
        "networks",
        "hit",
        _of(
            "hit",
            "id",
            "at < :until and settled_at is not null and (network is not null or user_agent is not null)",
            "id",
            "update hit set network = null, user_agent = null",
        ),
        "the network and the browser of fetched links",
    ),
    Rule("hits", "hits", "hit", _of("hit", "id", "at < :until and settled_at is not null", "id"), "fetched links"),
    Rule(
        "rendered",
        "rendered",
        "message",
        _of(
            "message",
            "id",
            'created_at < :until and "values" is not null and settled_at < :until',
            "created_at",
            'update message set "values" = null, reply = null',
        ),
        "what mails were rendered with",
    ),
    Rule(
        "links",
        "links",
        "message",
        _of(
            "message",
            "id",
            "created_at < :until and links is not null and settled_at < :until",
            "created_at",
            "update message set links = null",
        ),
        "where the links of mails led",
    ),
    Rule("outbox", "rendered", "outbox", _of("outbox", "id", "captured_at < :until", "id"), "mail in the outbox"),
    Rule(
        "effects",
        "rendered",
        "effect",
        _of(
            "effect",
            "id",
            "created_at < :until and settled_at < :until and payload <> '{}'",
            "created_at",
            "update effect set payload = '{}', reply = null",
        ),
        "what alerts and webhooks said",
    ),
    Rule("events", "events", "event", _of("event", "id", f"received_at < :until and not {_WAITS}", "id"), "events"),
    Rule("decisions", "decisions", "decision", _of("decision", "id", "at < :until", "id"), "lines of the ledger"),
    Rule(
        "webhooks",
        "webhooks",
        "hook_call",
        _of("hook_call", "id", "received_at < :until and processed_at is not null", "id"),
        "raw webhooks",
    ),
    Rule(
        "inbound",
        "inbound",
        "inbound_mail",
        _of("inbound_mail", "id", "received_at < :until and processed_at is not null", "id"),
        "raw mail",
    ),
)


def due(conn: Connection, now: datetime) -> bool:
    """Whether today's run has not finished yet, and it is night or later."""
    return conn.execute(DUE, {"now": now}).scalar_one()


def work(engine: Engine, clock: Callable[[], datetime], *, until: datetime | None = None) -> dict[str, int]:
    """Takes away what is too old, until nothing is left of it or until that moment. Returns how many by name. What was taken is noted with
    every batch, in the row of the day. Safe to run anywhere at the same time."""
    now = clock()
    day = now.astimezone(UTC).date()
    with engine.begin() as conn:
        found = lifecycle_in_force(conn)
        conn.execute(_START, {"day": day, "now": now})
        here = {rule.name: rule for rule in RULES if conn.execute(text("select to_regclass(:name)"), {"name": rule.table}).scalar()}
    rules = found[1].retention if found else Retention()
    taken = dict.fromkeys(here, 0)
    for name, rule in here.items():
        oldest, after = now - getattr(rules, rule.setting), None
        while until is None or clock() < until:
            with engine.begin() as conn:
                conn.exec_driver_sql("set local synchronous_commit = off")
                conn.exec_driver_sql("set local lock_timeout = '2s'")
                given = {"until": oldest, "limit": BATCH} | ({"after": after} if ":after" in rule.take else {})
                places = conn.execute(text(rule.take), given).scalars().all()
                number = len(places)
                after = str(max(places)) if places and places[0] is not None else None
                if number:
                    conn.execute(_NOTE, {"day": day, "name": name, "number": number})
            taken[name] += number
            if number < BATCH:
                break
        else:
            return taken
    with engine.begin() as conn:
        conn.execute(_FINISH, {"day": day, "now": clock()})
    return taken


def state(conn: Connection, now: datetime) -> dict[str, Any]:
    """For people: what is kept how long, and the last runs with what they took."""
    found = lifecycle_in_force(conn)
    rules = found[1].retention if found else Retention()
    kept = [
        {
            "name": rule.name,
            "what": rule.what,
            "setting": f"retention.{rule.setting}",
            "keeps": span(getattr(rules, rule.setting)),
            "days": getattr(rules, rule.setting).total_seconds() / 86400,
        }
        for rule in RULES
        if conn.execute(text("select to_regclass(:name)"), {"name": rule.table}).scalar()
    ]
    rows = conn.execute(text("select day, started_at, finished_at, counts from retention_run order by day desc limit 30"))
    return {"kept": kept, "runs": [dict(row._mapping) for row in rows], "due": due(conn, now)}


DUE = text(f"""
    select extract(hour from cast(:now as timestamptz) at time zone 'utc') >= {NIGHT} and not exists (
      select from retention_run where day = (cast(:now as timestamptz) at time zone 'utc')::date and finished_at is not null)
""")
_START = text("insert into retention_run (day, started_at) values (:day, :now) on conflict (day) do nothing")
_NOTE = text("""
    update retention_run set counts = jsonb_set(counts, array[:name], to_jsonb(coalesce((counts ->> :name)::bigint, 0) + :number))
     where day = :day
""")
_FINISH = text("update retention_run set finished_at = :now where day = :day and finished_at is null")
