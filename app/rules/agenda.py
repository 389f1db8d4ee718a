"""When an account is to be looked at next without anybody having said anything: its own timer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import ceil

from app.rules.facts import Milestone
from app.rules.turn import Turn
from app.rules.watching import dates_due

DAY = timedelta(days=1)


def next_look(turn: Turn) -> datetime:
    """The account's next timer: a milestone falls overdue, a candidate expires, a stage has lasted too long, a watched date comes; at
    the latest the daily look, which every account has, for time passing is news."""
    account = turn.account
    since = account.created_at or turn.now
    moments = [since + max(1, ceil((turn.now - since) / DAY + 1e-9)) * DAY]
    moments += [due for name in turn.book.milestone_rules if (due := overdue_at(turn, name)) is not None]
    moments += [datetime.fromisoformat(candidate["expires_at"]) for candidate in account.candidates]
    if (due := stage_over_at(turn)) is not None:
        moments.append(due)
    # What has passed already is looked at at once, not in the past.
    moments += [max(due, turn.now) for *_, due, _ in dates_due(turn)]
    return min(moments)


def overdue_at(turn: Turn, name: str) -> datetime | None:
    """When the milestone falls overdue; None when it is reached, overdue already or has no expected time."""
    span = turn.book.milestone_rules[name].expected_within
    known = turn.account.milestones.get(name)
    if span is None or turn.account.created_at is None or (known and (known.reached_at or known.overdue_at)):
        return None
    return turn.account.created_at + span


def fall_overdue(turn: Turn) -> None:
    """The milestones whose time is up."""
    for name in turn.book.milestone_rules:
        due = overdue_at(turn, name)
        if due is not None and due <= turn.now:
            turn.set_milestone(name, replace(turn.account.milestones.get(name, Milestone()), overdue_at=due))
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
