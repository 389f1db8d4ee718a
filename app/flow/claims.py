"""Who may send a message: claims with a fencing token, the last look before the final dot, heartbeats, recovery from the dead.

Every step is one conditional UPDATE for any number of messages. A message leaves `claimed` only through its token, so a worker that was
believed dead and wakes up can neither send nor settle what another has taken over (invariants 4 and 5).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, Row
from sqlalchemy.exc import DBAPIError

from app.flow import outcome
from app.queue import Bells
from app.rules.delivery import Limits
from app.rules.lifecycle import DEFAULT

RECOVERED_AT_ONCE = 5000

log = logging.getLogger("nurture.deliver")

# What the worker keeps of a message while it has it.
_CLAIMED = """m.id, m.claim, m.enrollment_id, m.campaign_id, m.version_id, m.step_id, m.occurrence, m.account_id, m.contact_id,
    m.kind, m.topic, m.priority, m.due_at, m.expires_at, m.attempts, m.reason, m.message_header, m.tried_at, m.resends"""

REGISTER = """
insert into worker (id, host, pid, started_at, heartbeat_at) values (%(id)s, %(host)s, %(pid)s, clock_timestamp(), clock_timestamp())
on conflict (id) do update set heartbeat_at = clock_timestamp(), stopped_at = null"""

_CLAIM = f"""
with durable as materialized (select set_config('synchronous_commit', 'on', true) as commit)
update message m set state = 'claimed', claim = gen_random_uuid(), worker_id = %(worker)s, claimed_at = %(now)s
from durable
where durable.commit = 'on' and m.state = 'due' and m.id = any(array(
    select id from message where state = 'due' and due_at <= %(now)s and transport = %(transport)s
    order by priority desc, due_at, id limit %(limit)s for update skip locked
))
returning {_CLAIMED}"""

_ANY_DUE = "select exists (select from message where state = 'due' and due_at <= %(now)s and transport = any(%(transports)s))"

# Invariant 6. What may not be sent any more, or not yet, does not come back, and its dot is never written.
_OPEN = """m.state = 'claimed' and m.claim = r.claim
    and not exists (select from campaign k where k.id = m.campaign_id and k.mode = 'paused')
    and exists (select from enrollment e where e.id = m.enrollment_id
                and (e.state = 'active' or (m.resends > 0 and e.state = 'finished')))
    and not exists (
        select from suppression s
        where s.person = r.person and s.lifted_at is null
          and (s.scope in ('bounced', 'complained', 'manual') or (m.topic <> 'transactional' and s.scope in ('all', m.topic)))
    )"""

_IN_DOT = f"""
with durable as materialized (select set_config('synchronous_commit', 'on', true) as commit)
update message m set state = 'in_dot', dot_at = %(now)s, person = r.person, message_header = coalesce(m.message_header, r.header),
    subject = r.subject, "values" = r.kept, links = r.links
from durable, jsonb_to_recordset(%(rows)s::jsonb)
    as r(id uuid, claim uuid, person text, header text, subject text, kept jsonb, links jsonb)
where durable.commit = 'on' and m.id = r.id and {_OPEN}
returning m.id"""

_WHY_NOT = """
select m.id, k.mode, e.end_reason, e.state as enrollment,
    array(select s.scope from suppression s where s.person = r.person and s.lifted_at is null) as scopes
from jsonb_to_recordset(%(rows)s::jsonb) as r(id uuid, claim uuid, person text)
join message m on m.id = r.id and m.claim = r.claim and m.state = 'claimed'
join enrollment e on e.id = m.enrollment_id
join campaign k on k.id = m.campaign_id"""

_DEAD = """select m.id from message m left join worker w on w.id = m.worker_id
    where m.state = %(state)s and (w.id is null or w.stopped_at is not null
        or w.heartbeat_at < clock_timestamp() - make_interval(secs => %(dead)s))
    limit %(limit)s for update of m skip locked"""

_GIVE_BACK = f"update message set state = 'due', claim = null, worker_id = null where id = any(array({_DEAD}))"

_UNFINISHED = "select exists (select from message where worker_id = %(worker)s and state in ('claimed', 'in_dot'))"
_FORGOTTEN = """
update message set state = 'due', claim = null, worker_id = null
where worker_id = %(worker)s and state = 'claimed' and claim <> all(%(kept)s)"""
_HANGING = "select id from message where worker_id = %(worker)s and state = 'in_dot'"


@dataclass(frozen=True, slots=True)
class Ready:
    """A message that may be sent as far as its gates say: what the last look compares, and what the message keeps of itself."""

    claimed: Row
    person: str
    header: str
    subject: str
    values: dict[str, Any]
    links: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the dead had: how many messages are due again, how many are unknown."""

    due: int
    unknown: int


def any_due(conn: Connection, now: datetime, transports: Sequence[str] = (DEFAULT,)) -> bool:
    """Whether a message for one of the transports is due and unclaimed."""
    return conn.exec_driver_sql(_ANY_DUE, {"now": now, "transports": list(transports)}).scalar()


def claim(conn: Connection, worker_id: UUID, now: datetime, limit: int, transports: Sequence[str] = (DEFAULT,)) -> list[Row]:
    """Claims up to `limit` due messages for the transports, of each those of the highest priority and then those due longest, each with a
    fresh token.

    Registers the worker in the same transaction, so that no claim is ever without somebody whose heart can be listened to. The caller
    commits before anything of a message reaches the wire; the commit waits for the disk whatever the database's default.
    """
    rows: list[Row] = []
    for name in transports:
        if len(rows) < limit:
            rows += conn.exec_driver_sql(_CLAIM, {"worker": worker_id, "now": now, "limit": limit - len(rows), "transport": name})
    if rows:
        conn.exec_driver_sql(REGISTER, {"id": worker_id, "host": socket.gethostname(), "pid": os.getpid()})
    return sorted(rows, key=lambda row: (-row.priority, row.due_at, row.id))


def commit_dots(conn: Connection, batch: Sequence[Ready], now: datetime) -> tuple[set[UUID], dict[UUID, tuple[str, str, dict]]]:
    """The last look: moves to `in_dot` what is still ours, wanted and enrolled, in a campaign that is not paused, and returns (those
    ids, the refused with their reason).

    A reason is (gate, code, evidence). A message in neither was taken from us and is none of our business any more. One statement, which
    the caller commits before it writes any dot, and whose commit waits for the disk whatever the database's default.
    """
    rows = to_json(
        [
            {
                "id": one.claimed.id,
                "claim": one.claimed.claim,
                "person": one.person,
                "header": one.header,
                "subject": one.subject,
                "kept": one.values,
                "links": one.links,
            }
            for one in batch
        ]
    ).decode()
    allowed = {found for (found,) in conn.exec_driver_sql(_IN_DOT, {"rows": rows, "now": now})}
    if len(allowed) == len(batch):
        return allowed, {}
    topics = {one.claimed.id: one.claimed.topic for one in batch}
    found = conn.exec_driver_sql(_WHY_NOT, {"rows": rows}).all()
    return allowed, {row.id: _why_not(row, topics[row.id]) for row in found if row.id not in allowed}


def forget(conn: Connection, worker_id: UUID, kept: Sequence[UUID]) -> int:
    """Gives back what this worker claimed and does not know of: a claim whose commit was answered by a broken connection.

    `kept` are the tokens it does know. Returns how many messages are due again.
    """
    return conn.exec_driver_sql(_FORGOTTEN, {"worker": worker_id, "kept": list(kept)}).rowcount


def begin(conn: Connection, worker_id: UUID, now: datetime) -> set[int]:
    """Puts right what an earlier run of this worker left unfinished when its database was away. Returns the partitions to ring."""
    if not conn.exec_driver_sql(_UNFINISHED, {"worker": worker_id}).scalar():
        return set()
    forget(conn, worker_id, [])
    hanging = conn.exec_driver_sql(_HANGING, {"worker": worker_id}).scalars().all()
    return outcome.settle_unknown(conn, hanging, now)


def stop(conn: Connection, worker_id: UUID) -> None:
    """The worker has ended in good order; what it may still have is free for recovery at once."""
    conn.exec_driver_sql("update worker set stopped_at = clock_timestamp() where id = %(id)s", {"id": worker_id})


def recover(engine: Engine, clock: Callable[[], datetime], bells: Bells, *, dead_after: float = Limits.dead_after) -> Recovered:
    """Takes over what dead workers had claimed: not yet at the dot → due again; at the dot → `unknown`, never sent again.

    Dead is a heartbeat older than `dead_after` seconds by the database's clock, or a worker that stopped (invariant 5). The token of an
    unknown message stays, so that a worker that wakes up after all may still say what became of it.
    """
    due = unknown = 0
    while True:
        with engine.begin() as conn:
            at = {"dead": dead_after, "limit": RECOVERED_AT_ONCE}
            given_back = conn.exec_driver_sql(_GIVE_BACK, {**at, "state": "claimed"}).rowcount
            lost = conn.exec_driver_sql(_DEAD, {**at, "state": "in_dot"}).scalars().all()
            partitions = outcome.settle_unknown(conn, lost, clock())
        due, unknown = due + given_back, unknown + len(lost)
        bells.advance(partitions)
        if max(given_back, len(lost)) < RECOVERED_AT_ONCE:
            break
    if due or unknown:
        log.warning("recovered from dead workers: %d messages are due again, %d are unknown", due, unknown)
    if due:
        bells.deliver()
    return Recovered(due, unknown)


class Heartbeat:
    """Signs of life of one worker every `seconds`, from a thread and a database connection of its own, until the `with` ends.

    A database that is away is tried again at the next beat: whoever cannot show that he lives is dead to the others, and finds his
    claims fenced off.
    """

    def __init__(self, engine: Engine, worker_id: UUID, seconds: float = Limits.heartbeat):
        self._engine, self._worker_id, self._seconds = engine, worker_id, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(self._seconds):
            try:
                with self._engine.begin() as conn:
                    conn.exec_driver_sql("update worker set heartbeat_at = clock_timestamp() where id = %(id)s", {"id": self._worker_id})
            except DBAPIError as error:
                log.warning("no heartbeat: %s", error.orig)


def _why_not(row: Row, topic: str) -> tuple[str, str, dict]:
    if row.mode == "paused":
        return "campaign", "campaign_paused", {}
    if row.enrollment != "active":
        return "enrollment", "enrollment_ended", {"reason": row.end_reason}
    scopes = set(row.scopes)
    if "all" in scopes and topic != "transactional":
        return "suppression", "opted_out", {"topic": topic}
    if not scopes.isdisjoint(("bounced", "complained", "manual")):
        return "suppression", "suppressed", {"topic": topic}
    return "suppression", "topic_opted_out", {"topic": topic}
