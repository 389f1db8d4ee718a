"""One call of `react`: the working values while an occurrence is decided, and the ledger lines and effects so far.

The phases (`rules.journey`, `rules.entry`, `rules.steps`) are functions over a Turn; only a Turn is ever changed, never the facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from app.rules.book import Book, Node
from app.rules.facts import Account, Decision, Enrollment, Event, Milestone, NewEffect, NewMessage, Past, Scope, renew

DEEPEST = 8


class Turn:
    """The account as it becomes, `active` enrollments by id, and all that the reaction will hold."""

    def __init__(self, book: Book, account: Account):
        self.book = book
        self.account = account
        self.active = {enrollment.id: enrollment for enrollment in account.enrollments}
        self.before = account
        self.ended: dict[UUID, Enrollment] = {}
        self.changed: dict[UUID, Enrollment] = {}
        self.messages: list[NewMessage] = []
        self.effects: list[NewEffect] = []
        self.decisions: list[Decision] = []
        self.derived: list[Event] = []
        self.queue: deque[Event] = deque()
        self.usage: list[str] = []
        self.stages: list[tuple[str, datetime, str]] = []
        self.past: list[Past] = []
        self.now: datetime  # of the occurrence in hand
        self.seen: datetime  # when it is really looked at: later than `now` after an outage
        self.event: Event | None = None  # the one in hand
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
        ended = renew(enrollment, state=state, end_reason=reason, ended_at=self.now, due_at=None, step=None)
        self.active.pop(enrollment.id, None)
        self.changed[enrollment.id] = ended
        self.past.append(Past(ended.campaign, ended.contact, ended.shadow, self.now))
        self.decide("exit", "yes", reason if reason != "exit_when" else "left", enrollment=enrollment)
        self.tell(enrollment, "nurture.campaign_ended", f"ended:{enrollment.id}", {"state": state, "reason": reason})

    def tell(self, enrollment: Enrollment, name: str, message_id: str, properties: dict[str, Any]) -> None:
        """An event about an enrollment, if a campaign listens to such. What happens in the shadow is told to nobody."""
        if name in self.book.triggers and not enrollment.shadow:
            about = {"campaign": enrollment.campaign, "enrollment": str(enrollment.id), **properties}
            contact = enrollment.contact or enrollment.entry.get("contact")
            self.derive(name, message_id, about, cause=self.event, contact=contact)

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
        self,
        name: str,
        message_id: str,
        properties: dict[str, Any],
        *,
        cause: Event | None = None,
        at: datetime | None = None,
        mark: str | None = None,
        contact: str | None = None,
        kind: str = "track",
    ) -> None:
        """An own event that follows at once. It inherits the time, the mark and the contact of its cause, unless they are given."""
        depth = (cause.depth if cause else 0) + 1
        if depth > DEEPEST:
            self.decide("trigger", "no", "loop", evidence={"event": name, "depth": depth})
            return
        event = Event(
            name=name,
            properties=properties,
            occurred_at=at or (cause.occurred_at if cause else self.now),
            received_at=self.now,
            message_id=message_id,
            kind=kind,
            contact=contact or (cause.contact if cause and kind == "track" else None),
            mark=mark or (cause.mark if cause else None),
            depth=depth,
        )
        self.derived.append(event)
        self.queue.append(event)

    def set_milestone(self, name: str, value: Milestone) -> None:
        self.account = renew(self.account, milestones={**self.account.milestones, name: value})
