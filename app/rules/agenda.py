"""When an account is to be looked at next without anybody having said anything: its own timer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import ceil

from app.rules.facts import Milestone, renew
from app.rules.turn import Turn
from app.rules.watching import next_date

DAY = timedelta(days=1)


def next_look(turn: Turn) -> datetime:
    """The account's next timer: a milestone falls overdue, a candidate expires, a stage has lasted too long, a watched date comes; at
    the latest the daily look, which every account has, for time passing is news."""
    account = turn.account
    since = account.created_at or turn.now
    moments = [since + max(1, ceil((turn.now - since) / DAY + 1e-9)) * DAY]
    moments += [datetime.fromisoformat(candidate["expires_at"]) for candidate in account.candidates]
    moments += [due for due in (next_overdue(turn), stage_over_at(turn), next_date(turn)) if due is not None]
    return min(moments)


def next_overdue(turn: Turn) -> datetime | None:
    """When the next milestone falls overdue; None when all that have an expected time are reached or overdue already."""
    if turn.account.created_at is not None:
        for span, name in turn.book.expected:
            if still_expected(turn, name):
                return turn.account.created_at + span
    return None


def still_expected(turn: Turn, name: str) -> bool:
    known = turn.account.milestones.get(name)
    return known is None or not (known.reached_at or known.overdue_at)


def fall_overdue(turn: Turn) -> None:
    """The milestones whose time is up."""
    since = turn.account.created_at
    for span, name in turn.book.expected if since is not None else ():
        due = since + span
        if due > turn.now:
            return
        if still_expected(turn, name):
            turn.set_milestone(name, renew(turn.account.milestones.get(name, Milestone()), overdue_at=due))
            turn.derive("nurture.milestone_overdue", f"overdue:{turn.account.key}:{name}", {"milestone": name}, at=due)


def stage_over_at(turn: Turn) -> datetime | None:
    """When the account has been in its stage for too long; None where that has no limit, or was told."""
    account = turn.account
    rule = turn.book.stages.get(account.stage or "")
    if rule is None or rule.at_most is None or account.stage_entered_at is None:
        return None
    return None if account.watched.get("stage") == stage_mark(turn) else account.stage_entered_at + rule.at_most


def stage_mark(turn: Turn) -> str:
    """What `watched` remembers of a stage that has lasted too long."""
    return f"{turn.account.stage}@{turn.account.stage_entered_at.astimezone(UTC).isoformat()}"
