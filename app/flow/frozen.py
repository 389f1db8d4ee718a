"""Effects on staff and other systems while their campaign is paused: they freeze like its messages, until somebody ends the pause.

    due | made during the pause ──▶ frozen ──▶ due (a task: open) | skipped

What is on the wire already is let go; what was done is done, and a task that somebody had before the pause stays his to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from app.db import insert_rows
from app.models import decision


def freeze(conn: Connection, campaign_id: int, now: datetime) -> None:
    """The campaign is paused from now on: what nobody has claimed waits. The caller has locked the campaign's row."""
    done = conn.exec_driver_sql(_FREEZE, {"campaign": campaign_id}).all()
    _note(conn, done, now, "campaign", "wait", "campaign_paused")


def freeze_claimed(conn: Connection, effect: Row, now: datetime) -> None:
    """Has a claimed effect wait if its campaign is paused, and voids the claim; otherwise, and where the claim is void already, nothing.

    Whoever ends the pause at this moment is waited for, so that nothing freezes that nobody will thaw.
    """
    if conn.exec_driver_sql(_PAUSED, {"campaign": effect.campaign_id}).all():
        done = conn.exec_driver_sql(_FREEZE_CLAIMED, {"id": effect.id, "claim": effect.claim}).all()
        _note(conn, done, now, "campaign", "wait", "campaign_paused")


def waiting(conn: Connection, campaign_id: int, now: datetime) -> list[Row]:
    """What waits only because the campaign is paused: rows of (kind, step, count, oldest)."""
    return conn.exec_driver_sql(_WAITING, {"campaign": campaign_id, "now": now}).all()


def thaw(conn: Connection, campaign_id: int, now: datetime) -> int:
    """All of it goes now. Paused time is not waiting time: what is called is called for a whole day again, and a task has its whole time.
    Returns how many."""
    about = {"campaign": campaign_id, "now": now}
    effects = conn.exec_driver_sql(_THAW, about).rowcount
    tasks = conn.exec_driver_sql(_OPEN, about).all()
    _note(conn, tasks, now, "effect", "yes", "task_made")
    return effects + len(tasks)


def skip(conn: Connection, campaign_id: int, reason: str, now: datetime, *, every: bool = False) -> int:
    """None of it goes (`every`: nor what is due later), for that reason. A worker that has claimed one finds its token void. Returns how
    many."""
    about = {"campaign": campaign_id, "now": now, "reason": reason, "every": every}
    done = [*conn.exec_driver_sql(_SKIP, about).all(), *conn.exec_driver_sql(_SKIP_TASKS, about).all()]
    _note(conn, done, now, "campaign", "no", reason)
    return len(done)


def _note(conn: Connection, rows: Iterable[Row], at: datetime, gate: str, verdict: str, reason: str) -> None:
    insert_rows(conn, decision, [_line(row._mapping, at, gate, verdict, reason) for row in rows])


def _line(row: Mapping[str, Any], at: datetime, gate: str, verdict: str, reason: str) -> dict[str, Any]:
    about = {name: row[name] for name in ("account_id", "contact_id", "campaign_id", "version_id", "enrollment_id", "step_id")}
    evidence = {"effect": str(row["id"]), "kind": row["kind"]}
    return {"at": at, **about, "gate": gate, "verdict": verdict, "reason": reason, "evidence": evidence}


STOPPED = "campaign_id = %(campaign)s and (state in ('frozen', 'claimed') or (state = 'due' and due_at <= %(now)s))"
STOPPED_TASKS = "campaign_id = %(campaign)s and state = 'frozen'"

_ABOUT = "id, account_id, contact_id, campaign_id, version_id, enrollment_id, step_id"
_FREEZE = f"""
update effect set state = 'frozen', reason = 'campaign_paused' where state = 'due' and id = any(array(
    select id from effect where campaign_id = %(campaign)s and state = 'due' order by id for update))
returning {_ABOUT}, kind"""
_PAUSED = "select from campaign where id = %(campaign)s and mode = 'paused' for share"
_FREEZE_CLAIMED = f"""
update effect set state = 'frozen', reason = 'campaign_paused', claim = null, worker_id = null
where id = %(id)s and claim = %(claim)s and state = 'claimed' returning {_ABOUT}, kind"""
_WAITING = f"""
select kind, step_id, count(*), min(created_at) from effect where {STOPPED} group by 1, 2
union all select 'task', step_id, count(*), min(created_at) from task where {STOPPED_TASKS} group by 2"""
_THAW = f"""
update effect set state = 'due', reason = null, due_at = %(now)s, resumed_at = %(now)s where state in ('due', 'frozen')
and id = any(array(select id from effect where {STOPPED} order by id for update))"""
_OPEN = f"""
update task set state = 'open', due_at = due_at + (%(now)s - created_at) where {STOPPED_TASKS} returning {_ABOUT}, 'task' as kind"""
_SKIP = f"""
update effect set state = 'skipped', reason = %(reason)s, settled_at = %(now)s, claim = null, worker_id = null
where state in ('due', 'frozen', 'claimed') and id = any(array(
    select id from effect where {STOPPED} or (%(every)s and campaign_id = %(campaign)s and state = 'due') order by id for update))
returning {_ABOUT}, kind"""
_SKIP_TASKS = f"""
update task set state = 'skipped', closed_at = %(now)s where {STOPPED_TASKS} returning {_ABOUT}, 'task' as kind"""
