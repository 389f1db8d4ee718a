"""One call of `react`: the working values while an occurrence is decided, and the ledger lines and effects so far.

The phases (`rules.journey`, `rules.entry`, `rules.steps`) are functions over a Turn; only a Turn is ever changed, never the facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any
from uuid import UUID

from app.rules.book import Book, Node
from app.rules.facts import Account, Decision, Enrollment, Event, Milestone, NewMessage, Past, Reaction, Scope

DEEPEST = 8


class Turn:
    """The account as it becomes, `active` enrollments by id, and all that `finish` hands back."""

    def __init__(self, book: Book, account: Account):
        self.book = book
        self.account = account
        self.active = {enrollment.id: enrollment for enrollment in account.enrollments}
        self.before = account
        self.ended: dict[UUID, Enrollment] = {}
        self.changed: dict[UUID, Enrollment] = {}
        self.messages: list[NewMessage] = []
        self.decisions: list[Decision] = []
        self.derived: list[Event] = []
        self.queue: deque[Event] = deque()
        self.usage: list[str] = []
        self.stages: list[tuple[str, datetime, str]] = []
        self.past: list[Past] = []
        self.now: datetime  # of the occurrence in hand
        self.looked = False

    def scope(self, enrollment: Enrollment | None = None, event: Event | None = None) -> Scope:
        """What a condition of `enrollment` sees. A given event is the present one; else it is the one it entered by."""
        if enrollment is None:
            return Scope(self.account, self.now, self.account.contacts.get(event.contact or "") if event else None, event)
        contact = self.account.contacts.get(enrollment.contact or enrollment.entry.get("contact") or "")
        return Scope(self.account, self.now, contact, event or enrollment.entry, enrollment, enrollment.position.get("response"))

    def node(self, enrollment: Enrollment) -> Node | None:
        return self.book.versions[enrollment.version].nodes.get(enrollment.step or "")

    def put(self, enrollment: Enrollment) -> Enrollment:
        self.active[enrollment.id] = self.changed[enrollment.id] = enrollment
        return enrollment

    def end(self, enrollment: Enrollment, state: str, reason: str) -> None:
        ended = replace(enrollment, state=state, end_reason=reason, ended_at=self.now, due_at=None, step=None)
        self.active.pop(enrollment.id, None)
        self.changed[enrollment.id] = ended
        self.past.append(Past(ended.campaign, ended.contact, ended.shadow, self.now))
        self.decide("exit", "yes", reason if reason != "exit_when" else "left", enrollment=enrollment)

    def decide(
        self,
        gate: str,
        verdict: str,
        reason: str,
        *,
        enrollment: Enrollment | None = None,
        step: str | None = None,
        contact: str | None = None,
        message: UUID | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        self.decisions.append(
            Decision(
                gate=gate,
                verdict=verdict,
                reason=reason,
                at=self.now,
                campaign=enrollment.campaign if enrollment else None,
                version=enrollment.version if enrollment else None,
                enrollment=enrollment.id if enrollment else None,
                step=step or (enrollment.step if enrollment else None),
                contact=contact or (enrollment.contact if enrollment else None),
                message=message,
                evidence=evidence or {},
            )
        )

    def derive(
        self, name: str, message_id: str, properties: dict[str, Any], *, cause: Event | None = None, at: datetime | None = None
    ) -> None:
        """An own event that follows at once. It inherits the time and the mark of its cause."""
        depth = (cause.depth if cause else 0) + 1
        if depth > DEEPEST:
            self.decide("trigger", "no", "loop", evidence={"event": name, "depth": depth})
            return
        event = Event(
            name=name,
            properties=properties,
            occurred_at=cause.occurred_at if cause else at or self.now,
            received_at=self.now,
            message_id=message_id,
            contact=cause.contact if cause else None,
            mark=cause.mark if cause else None,
            depth=depth,
        )
        self.derived.append(event)
        self.queue.append(event)

    def set_milestone(self, name: str, value: Milestone) -> None:
        self.account = replace(self.account, milestones={**self.account.milestones, name: value})

    def overdue_at(self, name: str) -> datetime | None:
        """When the milestone falls overdue; None when it is reached, overdue already or has no expected time."""
        span = self.book.milestone_rules[name].expected_within
        known = self.account.milestones.get(name)
        if span is None or self.account.created_at is None or (known and (known.reached_at or known.overdue_at)):
            return None
        return self.account.created_at + span

    def finish(self) -> Reaction:
        account = self.account
        if self.changed or self.looked or account is not self.before:
            account = replace(
                account,
                enrollments=tuple(self.active.values()),
                past=(*account.past, *self.past) if self.past else account.past,
            )
            account = replace(account, due_at=self.next_look(account))
        return Reaction(
            account=account,
            enrollments=tuple(self.changed.values()),
            messages=tuple(self.messages),
            decisions=tuple(self.decisions),
            derived=tuple(self.derived),
            usage=tuple(self.usage),
            stages=tuple(self.stages),
        )

    def next_look(self, account: Account) -> datetime | None:
        """The account's next timer: the first milestone to fall overdue, the first candidate to expire, the daily look."""
        self.account = account
        moments = [due for name in self.book.milestone_rules if (due := self.overdue_at(name)) is not None]
        moments += [datetime.fromisoformat(candidate["expires_at"]) for candidate in account.candidates]
        for enrollment in account.enrollments:
            version = self.book.versions.get(enrollment.version)
            if version and any(one is not None and one.with_time for one in (version.exit_when, version.goal_when)):
                moments.append(self.daily(enrollment.entered_at))
        stage = self.book.stages.get(account.stage or "")
        if stage and stage.following and stage.exit_when is not None and stage.exit_when.with_time:
            moments.append(self.daily(account.stage_entered_at or account.created_at or self.now))
        return min(moments, default=None)

    def daily(self, since: datetime) -> datetime:
        """The next moment that lies whole days after `since`."""
        days = ceil((self.now - since) / timedelta(days=1) + 1e-9)
        return since + timedelta(days=max(days, 1))
