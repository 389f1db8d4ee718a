"""The numbers of the whole installation: for the console's first page and for /metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

DAYS = 7
STATES = ("due", "claimed", "in_dot", "sent", "unknown", "skipped", "ghosted", "shadow")
EFFECT_STATES = ("due", "frozen", "claimed", "on_wire", "done", "unknown", "failed", "skipped", "ghosted", "shadow")


def customers(conn: Connection) -> dict[str, Any]:
    """How many accounts there are: in all, by stage, by band (None is unknown); and how many contacts."""
    stages: dict[str | None, int] = {}
    bands: dict[str | None, int] = {}
    for row in conn.execute(text("select stage, health_band, count(*) as n from account where erased_at is null group by 1, 2")):
        stages[row.stage] = stages.get(row.stage, 0) + row.n
        bands[row.health_band] = bands.get(row.health_band, 0) + row.n
    people = conn.execute(text("select count(*) from contact where erased_at is null")).scalar_one()
    return {"accounts": sum(stages.values()), "contacts": people, "stages": stages, "bands": bands}


def mail_by_day(conn: Connection, now: datetime, days: int = DAYS) -> list[dict[str, Any]]:
    """For each of the last `days` days (UTC, today the last): {day, sent, clicked, answered}; days without mail included."""
    first = (now.astimezone(UTC) - timedelta(days=days - 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    rows = conn.execute(
        text(
            """select d.day, (select count(*) from message m where m.created_at >= :horizon and m.state = 'sent'
                              and m.settled_at >= d.day and m.settled_at < d.day + interval '1 day') as sent,
                 (select count(distinct h.message_id) from hit h join message m on m.id = h.message_id
                    where m.created_at >= :horizon and h.kind = 'click' and h.verdict = 'human'
                    and h.at >= d.day and h.at < d.day + interval '1 day') as clicked,
                 (select count(*) from response r where r.answered_at >= d.day and r.answered_at < d.day + interval '1 day') as answered
               from generate_series(cast(:first as timestamptz), cast(:now as timestamptz), interval '1 day') d(day) order by d.day"""
        ),
        {"first": first, "now": now, "horizon": first - timedelta(days=30)},
    )
    return [{**row._mapping, "day": row.day.astimezone(UTC).date()} for row in rows]


def mail_states(conn: Connection, since: datetime | None = None) -> dict[str, int]:
    """How many messages are in each state; only those made since then, if given."""
    condition = "where created_at >= :since" if since else ""
    return dict(conn.execute(text(f"select state, count(*) from message {condition} group by 1"), {"since": since}).all())


def effect_states(conn: Connection) -> dict[str, int]:
    """How many alerts and webhooks are in each state."""
    return dict(conn.execute(text("select state, count(*) from effect group by 1")).all())


def trouble(conn: Connection) -> dict[str, Any]:
    """What waits or needs a person: {pending, oldest_pending, waiting, oldest_due, claimed, unknown, parked, dead_workers}."""
    row = conn.execute(
        text(
            """select (select count(*) from (select 1 from event_pending limit 100000) p) as pending,
                 (select min(received_at) from event_pending) as oldest_pending,
                 (select count(*) from message where state = 'due') as waiting,
                 (select min(due_at) from message where state = 'due') as oldest_due,
                 (select count(*) from message where state in ('claimed', 'in_dot')) as claimed,
                 (select count(*) from message where state = 'unknown') as unknown,
                 (select count(*) from parked where released_at is null) as parked"""
        )
    ).one()
    return dict(row._mapping)


def measures(conn: Connection) -> dict[str, Any]:
    """What /metrics shows beyond `trouble`: totals that only grow as long as nothing is pruned."""
    row = conn.execute(
        text(
            """select (select coalesce(sum(refused), 0) from doubled) as doubled,
                 (select count(*) from account where erased_at is null) as accounts,
                 (select count(*) from enrollment where state = 'active') as active_enrollments,
                 (select count(*) from worker where stopped_at is null and heartbeat_at > now() - interval '60 seconds') as workers,
                 (select coalesce(max(id), 0) from event) as events,
                 (select coalesce(max(id), 0) from decision) as decisions,
                 (select coalesce(max(id), 0) from health_score) as assessments,
                 (select coalesce(max(id), 0) from hit) as hits,
                 (select count(*) from response) as responses,
                 (select min(due_at) from effect where state = 'due') as oldest_effect,
                 (select received_at from hook_call where state = 'waiting' order by id limit 1) as oldest_call,
                 (select count(*) from task where state = 'open') as open_tasks"""
        )
    ).one()
    return dict(row._mapping)


def held_up(conn: Connection, now: datetime) -> dict[str, Any]:
    """How many transports take no mail, and how many lanes to providers are paused or slowed."""
    row = conn.execute(
        text(
            """select (select count(*) from transport where not enabled or (paused_at is not null and coalesce(paused_until > :now, true)))
                   as transports_paused,
                 (select count(*) from lane where slow_until > :now or paused_until > :now) as lanes_held_up"""
        ),
        {"now": now},
    ).one()
    return dict(row._mapping)


def unknown_by_campaign(conn: Connection) -> dict[str, int]:
    """How many messages of each campaign have an unknown outcome just now."""
    found = conn.execute(
        text(
            "select k.key, count(*) from message m join campaign k on k.id = m.campaign_id where m.state = 'unknown' group by 1 order by 1"
        )
    )
    return dict(map(tuple, found))


def recent_rates(conn: Connection, now: datetime) -> dict[str, Any]:
    """The last five minutes: events received and messages sent per second, and how long sent messages had been due (seconds)."""
    row = conn.execute(
        text(
            """select (select count(*) from event where received_at > :since) / 300.0 as received,
                 count(*) / 300.0 as sent,
                 percentile_cont(0.5) within group (order by extract(epoch from settled_at - due_at)) as p50,
                 percentile_cont(0.99) within group (order by extract(epoch from settled_at - due_at)) as p99
               from message where state = 'sent' and settled_at > :since and created_at > :horizon"""
        ),
        {"since": now - timedelta(minutes=5), "horizon": now - timedelta(days=3)},
    ).one()
    return {name: None if value is None else float(value) for name, value in row._mapping.items()}
