"""Steering campaigns: their modes, what a pause has held up, and the events that take enrollments out or over.

A mode changes in one transaction with all that follows from it. Enrollments are never changed from here but for the time of an overdue
timer: events (`nurture.enrollment_steered`) say what is to become of them, and the rules interpret those like any event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select, text

from app.db import LOCK_PARTITION
from app.errors import InputError, NotFound
from app.flow import frozen, outcome
from app.flow.ingest import Own, raise_own
from app.flow.publish import book, including, remember
from app.models import campaign, installation
from app.rules.journey import STEERED
from app.rules.modes import OVERDUE, check_change

RAISED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Overdue:
    """What fell due at one step of a paused campaign: `timer` (an enrollment goes on to `then`, None for the end), `message` (it waits
    to be sent), or `alert`, `webhook`, `task` (it waits to be done). `oldest` is when the first of them fell due, or was made."""

    what: str
    step: str
    count: int
    oldest: datetime
    then: str | None = None


@dataclass(frozen=True, slots=True)
class ModeChange:
    """A mode that was changed, and what followed: enrollments that leave or skip, messages and effects that were skipped or are due
    now."""

    campaign: str
    before: str
    after: str
    overdue: str | None = None
    leaving: int = 0
    skipping: int = 0
    messages: int = 0
    effects: int = 0
    partitions: frozenset[int] = frozenset()


def find_campaign(conn: Connection, key: str, *, lock: bool = False) -> Row:
    """The campaign's row; `lock` keeps everybody else who steers it waiting. Raises NotFound, naming the campaigns there are."""
    # Not stronger: an enrollment that is written at the same time refers to the row.
    wanted = select(campaign).where(campaign.c.key == key.replace("\x00", ""))
    row = conn.execute(wanted.with_for_update(key_share=True) if lock else wanted).one_or_none()
    if row is None:
        there = conn.execute(select(campaign.c.key).order_by(campaign.c.key).limit(20)).scalars().all()
        raise NotFound(f"There is no campaign {key!r}. There are: {', '.join(there) or 'none'}.")
    return row


def overdue(conn: Connection, key: str, now: datetime) -> list[Overdue]:
    """What waits only because the campaign is paused, the longest overdue first. Empty for a campaign in another mode."""
    row = find_campaign(conn, key)
    if row.mode != "paused":
        return []
    found = [
        Overdue("message", step, count, oldest) for step, count, oldest in conn.exec_driver_sql(_WAITING, {"campaign": row.id, "now": now})
    ]
    found += [Overdue(kind, step, count, oldest) for kind, step, count, oldest in frozen.waiting(conn, row.id, now)]
    timers = conn.exec_driver_sql(_TIMERS, {"campaign": row.id, "now": now}).all()
    known = including(conn, book(conn), {version for version, *_ in timers}) if timers else None
    steps: dict[tuple[str, str | None], tuple[int, datetime]] = {}
    for version, step, count, oldest in timers:
        node = known.versions[version].nodes.get(step)
        then = node and (node.on_timeout if node.kind == "wait_for" else node.next)
        before = steps.get((step, then), (0, oldest))
        steps[step, then] = (before[0] + count, min(before[1], oldest))
    found += [Overdue("timer", step, count, oldest, then) for (step, then), (count, oldest) in steps.items()]
    return sorted(found, key=lambda one: (one.oldest, one.step, one.what))


def set_mode(
    conn: Connection,
    key: str,
    mode: str,
    now: datetime,
    *,
    was: str | None = None,
    choice: str | None = None,
    leave: bool = False,
    by: str = "command",
) -> ModeChange:
    """Changes the mode of the campaign and what follows from that.

    `choice` (send, skip or exit) says what becomes of what fell due during a pause, and must be given where anything did. `leave` takes
    everybody out when the campaign is archived; otherwise those inside finish. Going live, archiving or going back to draft ends what ran
    in shadow. `was` is the mode that whoever decides believes in, `by` who that is. Raises NotFound, and InputError for a change that is
    not allowed, for an answer that is missing, and where the mode is not what it `was`.
    """
    if choice is not None and choice not in OVERDUE:
        raise InputError(f"must be one of {', '.join(OVERDUE)}", "overdue")
    row = find_campaign(conn, key, lock=True)
    if was is not None and row.mode != was:
        raise InputError(f"somebody has changed it meanwhile: it is {row.mode} now, not {was or 'known'}", "mode")
    check_change(row.mode, mode)
    if leave and mode != "archived":
        raise InputError("only archiving takes everybody out", "exit")
    steering = _Steering(conn, row, mode, now)
    if row.mode == "shadow":
        steering.end_shadow()
    elif leave:
        steering.end_all()
    elif row.mode == "paused":
        steering.stop_everybody()
        waiting = sum(one.count for one in overdue(conn, key, now))
        if waiting and choice is None:
            raise InputError(f"{waiting} are overdue: say whether to send, skip or exit them", "overdue")
        if waiting:
            steering.resume(choice)
    elif mode == "paused":
        frozen.freeze(conn, row.id, now)
    if row.mode == "paused":
        # Whoever ends a pause has seen why there was one.
        conn.exec_driver_sql(_RELEASE, {"campaign": row.id, "now": now})
    conn.execute(campaign.update().where(campaign.c.id == row.id).values(mode=mode, mode_at=now))
    remember(conn, row.id, now, by)
    return steering.done(choice if row.mode == "paused" and not leave else None)


class _Steering:
    """One change of a mode under way; everything happens in the transaction of `conn`."""

    def __init__(self, conn: Connection, row: Row, mode: str, now: datetime):
        self.conn, self.row, self.mode, self.now = conn, row, mode, now
        self.partitions = conn.execute(select(installation.c.partitions)).scalar_one()
        # What makes the events of this change its own: no campaign leaves a mode twice that it entered once.
        self.since = (row.mode_at or now).isoformat()
        self.leaving = self.skipping = self.messages = self.effects = 0
        self.ring: set[int] = set()

    def done(self, choice: str | None) -> ModeChange:
        counts = {name: getattr(self, name) for name in ("leaving", "skipping", "messages", "effects")}
        return ModeChange(self.row.key, self.row.mode, self.mode, choice, **counts, partitions=frozenset(self.ring))

    def end_shadow(self) -> None:
        reason = {"live": "went_live", "archived": "archived", "draft": "shadow_ended"}[self.mode]
        self.leaving = self._steer("exit", reason, self._inside("e.shadow"))

    def end_all(self) -> None:
        self.leaving = self._steer("exit", "archived", self._inside("true"))
        self.messages = self._skip_messages("archived", every=True)
        self.effects = frozen.skip(self.conn, self.row.id, "archived", self.now, every=True)

    def stop_everybody(self) -> None:
        """Locks all partitions: nobody else changes an enrollment until the pause has ended, and nobody who still believes in it makes
        an effect that would stay frozen."""
        for number in range(self.partitions):
            self.conn.execute(text("select pg_advisory_xact_lock(:space, :number)"), {"space": LOCK_PARTITION, "number": number})

    def resume(self, choice: str) -> None:
        """Whatever fell due during the pause is due now, and goes on counting from now. An event of this moment comes before a timer of
        this moment."""
        about = {"campaign": self.row.id, "now": self.now}
        late = self.conn.exec_driver_sql(_LATE, about).all()
        if choice == "send":
            self.messages = self.conn.exec_driver_sql(_SEND, about).rowcount
            self.effects = frozen.thaw(self.conn, self.row.id, self.now)
        elif choice == "skip":
            self.skipping = self._steer("skip", "skipped_on_resume", late)
            self.messages = self._skip_messages("skipped_on_resume")
            self.effects = frozen.skip(self.conn, self.row.id, "skipped_on_resume", self.now)
        else:
            late = {row.id: row for row in (*late, *self.conn.exec_driver_sql(_WAITERS, about))}
            self.leaving = self._steer("exit", "exited_on_resume", list(late.values()))
            self.messages = self._skip_messages("exited_on_resume")
            self.effects = frozen.skip(self.conn, self.row.id, "exited_on_resume", self.now)
        self.conn.exec_driver_sql(_DUE_NOW, about)

    def _inside(self, which: str) -> list[Row]:
        return self.conn.exec_driver_sql(_INSIDE.format(which=which), {"campaign": self.row.id}).all()

    def _steer(self, action: str, reason: str, rows: Sequence[Row]) -> int:
        self.ring |= steer(self.conn, [(row, {"action": action, "reason": reason}) for row in rows], self.since, self.now, self.partitions)
        return len(rows)

    def _skip_messages(self, reason: str, *, every: bool = False) -> int:
        count, places = outcome.skip_due(self.conn, self.row.id, reason, self.now, self.partitions, every=every)
        self.ring |= places
        return count


def steer(conn: Connection, wanted: Sequence[tuple[Any, dict[str, Any]]], since: str, now: datetime, partitions: int) -> set[int]:
    """Raises an event for each enrollment (a row with id, account and contact) that says what is to become of it. Returns the partitions
    to ring after the commit. The same with the same `since` changes nothing."""
    ring: set[int] = set()
    for start in range(0, len(wanted), RAISED_AT_ONCE):
        events = [
            Own(
                STEERED,
                f"{said['action']}:{row.id}:{since}",
                {"enrollment": str(row.id), **said},
                row.account,
                row.contact,
                now,
            )
            for row, said in wanted[start : start + RAISED_AT_ONCE]
        ]
        ring |= raise_own(conn, events, now, partitions)
    return ring


def being_steered(conn: Connection) -> set[UUID]:
    """The enrollments about which an event is still waiting to be interpreted."""
    return set(conn.exec_driver_sql(_BEING_STEERED, {"name": STEERED}).scalars())


_OF_CAMPAIGN = "version_id = any(array(select id from campaign_version where campaign_id = %(campaign)s)) and state = 'active'"
_ROW = """select e.id, a.external_id as account, c.external_id as contact from enrollment e join account a on a.id = e.account_id
    left join contact c on c.id = e.contact_id"""
_INSIDE = f"{_ROW} where e.{_OF_CAMPAIGN} and {{which}} order by e.id"
_LATE = f"{_ROW} where e.{_OF_CAMPAIGN} and e.due_at <= %(now)s order by e.due_at, e.id"
_HELD_UP = """m.campaign_id = %(campaign)s
    and (m.state = 'claimed' or (m.state = 'due' and (m.due_at <= %(now)s or m.reason = 'campaign_paused')))"""
_WAITERS = f"""{_ROW} where e.state = 'active' and e.id = any(array(select m.enrollment_id from message m where {_HELD_UP}
    union select enrollment_id from effect where {frozen.STOPPED} union select enrollment_id from task where {frozen.STOPPED_TASKS}))
    order by e.id"""
_WAITING = f"select m.step_id, count(*), min(m.created_at) from message m where {_HELD_UP} group by 1"
_TIMERS = f"""
select version_id, step_id, count(*), min(due_at) from enrollment where {_OF_CAMPAIGN} and due_at <= %(now)s group by 1, 2"""
_DUE_NOW = f"update enrollment set due_at = %(now)s where {_OF_CAMPAIGN} and due_at < %(now)s"
# A message that could not go during the pause has its whole time again: paused time is not waiting time.
_SEND = f"""
update message m set due_at = %(now)s, expires_at = greatest(m.expires_at, %(now)s + (m.expires_at - m.created_at))
where m.id = any(array(select m.id from message m where {_HELD_UP} order by m.id for update)) and m.state = 'due'"""
_BEING_STEERED = """
select (e.properties ->> 'enrollment')::uuid from event_pending p join event e on e.id = p.event_id where e.name = %(name)s"""
_RELEASE = "update brake set released_at = %(now)s, released_by = 'resumed' where campaign_id = %(campaign)s and released_at is null"
