"""The state machine: an account and its next occurrence go in, the account afterwards comes out, with decisions and reasons.

`react` is the only function that decides what happens to an account. Live runs, simulation, campaign tests and explanation all call
it. It has no clock (time is the occurrence's), no session and no network, and never changes what it is given.

Within one occurrence the order is: state → milestone → stage → goal → exit → waiting steps → triggers. Derived events follow at
once, at most 8 deep (DESIGN.md 4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from math import ceil
from typing import Any
from uuid import UUID

from app.rules import identity
from app.rules.conditions import Condition, value_of
from app.rules.definition import TRANSACTIONAL, Book, Node, Version
from app.rules.facts import (
    Account,
    Contact,
    Decision,
    Enrollment,
    Event,
    Health,
    Milestone,
    NewMessage,
    Occurrence,
    Past,
    Reaction,
    Scope,
    Timer,
    Usage,
    hash_id,
    hash_share,
)
from app.rules.timing import days_later, next_open, zone_for

DEEPEST = 8
CANDIDATE_LIFE = timedelta(minutes=30)
CLICK_GRACE = timedelta(seconds=90)  # a click is judged for 60 s; a timeout waits for the verdict


def react(book: Book, account: Account, occurrence: Occurrence) -> Reaction:
    """What follows from `occurrence` for `account`, by what `book` says. Raises nothing for any event; a rule that raises is a bug."""
    turn = _Turn(book, account)
    if isinstance(occurrence, Timer):
        turn.timer(occurrence)
    else:
        turn.event(occurrence)
    while turn.queue:
        turn.event(turn.queue.popleft())
    return turn.finish()


def needs(book: Book, account: Account, occurrence: Occurrence) -> frozenset[str]:
    """What must be loaded before `react` may be asked: of `contacts` and `usage`. May name too much, never too little."""
    if isinstance(occurrence, Timer):
        return _BOTH
    name = occurrence.name
    if occurrence.kind != "track" or name in book.triggers or name in book.milestones or name.startswith("nurture.") or account.candidates:
        return _BOTH
    found = _NOTHING
    for enrollment in account.enrollments:
        version = book.versions.get(enrollment.version)
        if version is None:
            continue
        if any(node.event == name for node in version.waits):
            return _BOTH
        for condition in (version.exit_when, version.goal_when):
            if condition and (metrics := [root for root in condition.roots if root.startswith("usage.")]):
                fed = {f"usage.{metric}" for metric, _ in book.metrics.get(name, ())}
                if fed.intersection(metrics) or "event" in condition.roots:
                    return _BOTH
            if condition and "contact" in condition.roots and "event" in condition.roots:
                return _BOTH
        if version.campaign.goal and version.campaign.goal.event == name:
            return _BOTH
    stage = book.stages.get(account.stage or "")
    if stage and stage.exit_when and any(root.startswith("usage.") or root == "event" for root in stage.exit_when.roots):
        return _BOTH
    return found


_BOTH = frozenset({"contacts", "usage"})
_NOTHING: frozenset[str] = frozenset()


def entry_of(event: Event) -> dict[str, Any]:
    """What an enrollment remembers of the event it entered by, as JSON can carry it."""
    return {
        "name": event.name,
        "properties": event.properties,
        "occurred_at": event.occurred_at.isoformat(),
        "received_at": event.received_at.isoformat(),
        "message_id": event.message_id,
        "contact": event.contact,
    }


def recipients(version: Version, account: Account, contact: str | None, topic: str) -> tuple[list[Contact], list[tuple[Contact, str]]]:
    """Who gets a step's mail: (those who do, those who would but cannot be reached, with the reason).

    A contact's enrollment mails that contact. An account's mails the members who have one of the roles, in the order of the roles,
    then of joining; `pick: first` takes the first who can be reached.
    """
    wanted = version.campaign.recipients
    if contact is not None:
        members = [account.contacts[contact]] if contact in account.contacts else []
    else:
        members = [one for one in account.contacts.values() if one.joined_at is not None and _rank(one, wanted.roles) is not None]
        members.sort(key=lambda one: (_rank(one, wanted.roles), one.joined_at, one.key))
    reached, not_reached, persons = [], [], set()
    for member in members:
        if reason := member.unreachable(topic):
            not_reached.append((member, reason))
        elif member.person not in persons:
            reached.append(member)
            persons.add(member.person)
            if wanted.pick == "first" and contact is None:
                break
    return reached, not_reached


def _rank(contact: Contact, roles: list[str]) -> int | None:
    if not roles:
        return 0
    return next((index for index, role in enumerate(roles) if role in contact.roles), None)


class _Turn:
    """One call of `react`: the working values, and what has been decided so far."""

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

    # One event or timer ------------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        self.now = event.at
        roots = {"event"}
        self.learn(event, roots)
        self.reach_milestones(event, roots)
        self.move_stage(event, roots)
        for enrollment in list(self.active.values()):
            self.settle(enrollment, event, roots)
        self.candidates(roots)
        for version in self.book.triggers.get(event.name, ()):
            self.trigger(version, event)

    def timer(self, timer: Timer) -> None:
        self.now = timer.at
        if timer.enrollment is None:
            self.account_timer()
            return
        enrollment = self.active.get(timer.enrollment)
        if enrollment is None or enrollment.due_at is None or enrollment.due_at > timer.at:
            return
        if not self.leaves(enrollment, None):
            self.step_due(enrollment)

    def account_timer(self) -> None:
        """What time alone brings: overdue milestones, candidates that expire, the daily look at goals and exits."""
        self.looked = True
        for rule in self.book.milestone_rules.values():
            due = self.overdue_at(rule.name)
            if due is not None and due <= self.now:
                self.set_milestone(rule.name, replace(self.account.milestones.get(rule.name, Milestone()), overdue_at=due))
                self.derive("nurture.milestone_overdue", f"overdue:{self.account.key}:{rule.name}", {"milestone": rule.name}, at=due)
        self.move_stage(None, {"now"})
        for enrollment in list(self.active.values()):
            self.leaves(enrollment, None)
        self.candidates({"now"})

    # State -> milestone -> stage ---------------------------------------------------------------------------------

    def learn(self, event: Event, roots: set[str]) -> None:
        """The values that the event carries."""
        if event.kind in ("identify", "group"):
            self.account, learnt = identity.learn(self.account, event)
            roots |= learnt
        elif event.name == "nurture.health_changed":
            score, band = event.properties.get("score"), event.properties.get("band")
            self.account = replace(self.account, health=Health(score, band, event.occurred_at))
            roots.add("health")
        for metric, where in self.book.metrics.get(event.name, ()):
            if event.kind == "track" and (where is None or where.test(self.scope(event=event))):
                self.usage.append(metric)
                self.count(metric, event)
                roots.add(f"usage.{metric}")
        if self.account.stage is None:
            self.enter_stage(self.book.first_stage, "first", event)
            roots.add("stage")

    def count(self, metric: str, event: Event) -> None:
        known = self.account.usage.get(metric)
        if known is None and not self.account.usage:
            return  # not loaded: nothing that could act reads it
        known = known or Usage()
        day = event.occurred_at.date().toordinal()
        days = dict(known.days)
        days[day] = days.get(day, 0) + 1
        last = max(known.last_at or event.occurred_at, event.occurred_at)
        usage = Usage(tuple(sorted(days.items(), reverse=True)), last)
        self.account = replace(self.account, usage={**self.account.usage, metric: usage})

    def reach_milestones(self, event: Event, roots: set[str]) -> None:
        for rule in self.book.milestones.get(event.name, ()):
            known = self.account.milestones.get(rule.name, Milestone())
            if known.reached_at is not None:
                continue
            if rule.where is not None and not rule.where.test(self.scope(event=event)):
                continue
            self.set_milestone(rule.name, replace(known, reached_at=event.occurred_at))
            roots.add("milestone")
            properties = {"milestone": rule.name, "overdue": known.overdue_at is not None}
            self.derive("nurture.milestone_reached", f"milestone:{self.account.key}:{rule.name}", properties, cause=event)

    def set_milestone(self, name: str, value: Milestone) -> None:
        self.account = replace(self.account, milestones={**self.account.milestones, name: value})

    def overdue_at(self, name: str) -> datetime | None:
        """When the milestone falls overdue; None when it is reached, overdue already or has no expected time."""
        span = self.book.milestone_rules[name].expected_within
        known = self.account.milestones.get(name)
        if span is None or self.account.created_at is None or (known and (known.reached_at or known.overdue_at)):
            return None
        return self.account.created_at + span

    def move_stage(self, event: Event | None, roots: set[str]) -> None:
        rule = self.book.stages.get(self.account.stage or "")
        if rule is None or rule.exit_when is None or rule.following is None:
            return
        if self.touches(rule.exit_when, roots) and rule.exit_when.test(self.scope(event=event)):
            self.enter_stage(rule.following, "exit_when", event)
            roots.add("stage")

    def enter_stage(self, stage: str, why: str, event: Event | None) -> None:
        at = event.occurred_at if event else self.now
        properties = {"stage": stage, "previous": self.account.stage}
        self.account = replace(self.account, stage=stage, stage_entered_at=at)
        self.stages.append((stage, at, why))
        cause = event.message_id if event else at.isoformat()
        self.derive("nurture.stage_entered", f"stage:{self.account.key}:{stage}:{cause}", properties, cause=event)

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

    # Goal -> exit -> waiting steps -------------------------------------------------------------------------------

    def settle(self, enrollment: Enrollment, event: Event, roots: set[str]) -> None:
        """What the event means to one enrollment."""
        version = self.book.versions.get(enrollment.version)
        if version is None:
            return
        own = event.name.startswith("nurture.") and event.properties.get("enrollment") == str(enrollment.id)
        if own and event.name == "nurture.survey_responded":
            answer = {name: event.properties.get(name) for name in ("score", "comment", "survey")}
            enrollment = self.put(replace(enrollment, position={**enrollment.position, "response": answer}))
            roots = roots | {"response"}
        if self.leaves(enrollment, event, roots):
            return
        if own and event.name == "nurture.message_settled":
            self.message_settled(enrollment, event)
            return
        if event.mark is None or event.name == "nurture.milestone_reached":
            self.hear(version, self.active[enrollment.id], event, own)
        waiting = self.active.get(enrollment.id)
        if waiting is not None and waiting.position.get("kind") == "recipient" and not roots.isdisjoint(("account", "contact")):
            self.run(waiting)

    def leaves(self, enrollment: Enrollment, event: Event | None, roots: set[str] | None = None) -> bool:
        """Whether the goal or `exit_when` takes the enrollment out. Without `roots` both are looked at whatever changed."""
        version = self.book.versions.get(enrollment.version)
        if version is None:
            return False
        goal = version.campaign.goal
        if goal is not None and enrollment.goal_at is None and self.goal_met(version, enrollment, event, roots):
            within = goal.within is None or self.now <= enrollment.entered_at + goal.within
            if within:
                enrollment = self.put(replace(enrollment, goal_at=self.now))
                self.decide("goal", "yes", "goal_met", enrollment=enrollment)
            if goal.then == "exit":
                self.end(enrollment, "exited", "goal_met" if within else "goal_met_late")
                return True
        condition = version.exit_when
        if condition is not None and self.touches(condition, roots) and condition.test(self.scope(enrollment, event)):
            self.decide("exit", "yes", "exit_when", enrollment=enrollment, evidence=condition.seen(self.scope(enrollment, event)))
            self.end(enrollment, "exited", "exit_when")
            return True
        return False

    def goal_met(self, version: Version, enrollment: Enrollment, event: Event | None, roots: set[str] | None) -> bool:
        goal = version.campaign.goal
        if goal.event:
            return event is not None and event.name == goal.event and event.occurred_at >= enrollment.entered_at
        condition = version.goal_when
        return self.touches(condition, roots) and condition.test(self.scope(enrollment, event))

    def touches(self, condition: Condition, roots: set[str] | None) -> bool:
        return roots is None or not condition.roots.isdisjoint(roots) or ("now" in roots and condition.with_time)

    def message_settled(self, enrollment: Enrollment, event: Event) -> None:
        """An email step is over when all its messages are settled; what follows counts from then."""
        open_messages = [one for one in enrollment.position.get("open", ()) if one != event.properties.get("message")]
        if open_messages == list(enrollment.position.get("open", ())):
            return
        enrollment = self.put(replace(enrollment, position={**enrollment.position, "open": open_messages}))
        if not open_messages:
            self.go(enrollment, self.node(enrollment).next)

    def hear(self, version: Version, enrollment: Enrollment, event: Event, own: bool) -> None:
        """Wait-for steps, the present one and those still to come: one event satisfies one occurrence of one of them."""
        node = self.node(enrollment)
        if node is not None and node.event is None and node.kind == "wait_for":
            if self.state_holds(node):
                self.passes(enrollment, node, {"state": "reached"})
            return
        private = event.name in ("nurture.survey_responded", "nurture.email_clicked")
        if (private and not own) or event.occurred_at < enrollment.entered_at:
            return
        heard = enrollment.position.get("heard", {})
        for waiting in version.waits:
            if waiting.event != event.name or waiting.id in heard:
                continue
            if waiting.where is not None and not waiting.where.test(self.scope(enrollment, event)):
                continue
            if node is not None and waiting.id == node.id:
                self.passes(enrollment, node, {"event": event.name, "message_id": event.message_id})
            else:
                self.put(replace(enrollment, position={**enrollment.position, "heard": {**heard, waiting.id: event.message_id}}))
            return

    def passes(self, enrollment: Enrollment, node: Node, evidence: dict[str, Any]) -> None:
        self.decide("wait_for", "yes", "event_came", enrollment=enrollment, step=node.id, evidence=evidence)
        heard = {**enrollment.position.get("heard", {}), node.id: evidence.get("message_id", "")}
        self.go(self.put(replace(enrollment, position={**enrollment.position, "heard": heard})), node.next)

    def state_holds(self, node: Node) -> bool:
        spec = node.step.wait_for
        if spec.milestone:
            return self.account.milestones.get(spec.milestone, Milestone()).reached_at is not None
        return self.account.stage == spec.stage if spec.stage else self.account.health.band == spec.health

    # Triggers ----------------------------------------------------------------------------------------------------

    def trigger(self, version: Version, event: Event) -> None:
        """Whether the event starts an enrollment in `version`. Every no that follows a matching trigger is in the ledger."""
        contact = self.account.contacts.get(event.contact or "")
        scope = Scope(self.account, self.now, contact, event)
        if version.trigger_where is not None and not version.trigger_where.test(scope):
            if paths := version.trigger_where.missing(scope):
                self.open_candidate(version, event, paths)
            return
        if event.mark is not None:
            self.refuse(version, event, "trigger", event.mark, {"occurred_at": event.occurred_at.isoformat()})
            return
        self.consider(version, event, entry_of(event))

    def consider(self, version: Version, event: Event, entry: Mapping[str, Any], *, again: bool = False) -> bool:
        """The gates of entry. `again` says that this is a candidate's further chance: then a value that is still missing keeps it
        open. Returns whether the candidate is done with."""
        campaign = version.campaign
        subject = event.contact if campaign.enrolls == "contact" else None
        standing = self.book.standings[version.key]
        shadow = standing.mode == "shadow"
        contact = self.account.contacts.get(event.contact or "")
        if campaign.enrolls == "contact" and contact is None:
            self.refuse(version, event, "recipient", "no_contact", {})
            return True
        if any(one.campaign == version.key and one.contact == subject and one.shadow == shadow for one in self.active.values()):
            self.refuse(version, event, "trigger", "already_enrolled", {})
            return True
        if reason := self.reentry(version, subject, shadow):
            self.refuse(version, event, "trigger", *reason)
            return True
        scope = Scope(self.account, self.now, contact, event)
        for condition, gate, reason in ((version.goal_when, "goal", "goal_already_met"), (version.exit_when, "exit", "exit_already_met")):
            if condition is not None and condition.test(scope):
                self.refuse(version, event, gate, reason, condition.seen(scope))
                return True
        if version.audience is not None and not version.audience.test(scope):
            if paths := version.audience.missing(scope):
                if not again:
                    self.open_candidate(version, event, paths)
                return False
            self.refuse(version, event, "audience", "not_in_audience", version.audience.seen(scope))
            return True
        self.enroll(version, event, entry, subject, shadow)
        return True

    def reentry(self, version: Version, contact: str | None, shadow: bool) -> tuple[str, dict[str, Any]] | None:
        mine = (version.key, contact, shadow)
        ends = [one.ended_at for one in (*self.account.past, *self.past) if (one.campaign, one.contact, one.shadow) == mine]
        if not ends:
            return None
        rule = version.campaign.reentry
        last = max(ends)
        if rule == "never":
            return "no_reentry", {"ended_at": last.isoformat()}
        if self.now < last + rule.after:
            return "reentry_too_soon", {"ended_at": last.isoformat(), "again_from": (last + rule.after).isoformat()}
        return None

    def enroll(self, version: Version, event: Event, entry: Mapping[str, Any], contact: str | None, shadow: bool) -> None:
        enrollment = Enrollment(
            id=hash_id("enrollment", version.key, self.account.key, contact, shadow, event.message_id),
            campaign=version.key,
            version=version.id,
            contact=contact,
            shadow=shadow,
            held_out=hash_share("holdout", version.key, self.account.key) < version.campaign.holdout,
            step=version.first,
            occurrence=1,
            position={},
            entry=entry,
            entered_at=self.now,
            due_at=None,
        )
        self.decide("trigger", "yes", "enrolled", enrollment=enrollment, evidence={"event": event.name, "message_id": event.message_id})
        self.run(self.put(enrollment))

    def refuse(self, version: Version, event: Event, gate: str, reason: str, evidence: Mapping[str, Any]) -> None:
        self.decisions.append(
            Decision(
                gate=gate,
                verdict="no",
                reason=reason,
                at=self.now,
                campaign=version.key,
                version=version.id,
                contact=event.contact,
                evidence={"event": event.name, "message_id": event.message_id, **evidence},
            )
        )

    # Candidates: triggers that read a value which was never set --------------------------------------------------

    def open_candidate(self, version: Version, event: Event, paths: list[str]) -> None:
        if event.mark is not None:
            self.refuse(version, event, "trigger", event.mark, {"occurred_at": event.occurred_at.isoformat()})
            return
        expires = self.now + CANDIDATE_LIFE
        candidate = {"campaign": version.key, "version": version.id, "entry": entry_of(event), "missing": paths}
        candidate["expires_at"] = expires.isoformat()
        self.account = replace(self.account, candidates=(*self.account.candidates, candidate))
        evidence = {"event": event.name, "message_id": event.message_id, "paths": paths, "until": expires.isoformat()}
        self.decisions.append(
            Decision("audience", "wait", "missing", self.now, version.key, version.id, contact=event.contact, evidence=evidence)
        )

    def candidates(self, roots: set[str]) -> None:
        """Open candidates have another chance when the account or a contact changed, and end when their time is up."""
        if not self.account.candidates or ("now" not in roots and roots.isdisjoint(("account", "contact"))):
            return
        kept = []
        for candidate in self.account.candidates:
            version = self.book.versions.get(candidate["version"])
            if version is None:
                continue
            event = _event_of(candidate["entry"])
            contact = self.account.contacts.get(event.contact or "")
            scope = Scope(self.account, self.now, contact, event)
            where = version.trigger_where
            if where is not None and not where.test(scope):
                done = not where.missing(scope)
            else:
                done = self.consider(version, event, candidate["entry"], again=True)
            if not done and self.now >= datetime.fromisoformat(candidate["expires_at"]):
                self.refuse(version, event, "audience", "missing", {"paths": candidate["missing"]})
                done = True
            if not done:
                kept.append(candidate)
        self.account = replace(self.account, candidates=tuple(kept))

    # Steps -------------------------------------------------------------------------------------------------------

    def go(self, enrollment: Enrollment, step: str | None) -> None:
        """Moves to `step`, or ends when there is none."""
        if step is None:
            self.end(enrollment, "finished", "finished")
            return
        kept = {name: enrollment.position[name] for name in ("heard", "response") if name in enrollment.position}
        self.run(self.put(replace(enrollment, step=step, occurrence=1, position=kept, due_at=None)))

    def run(self, enrollment: Enrollment) -> None:
        """Does the current step. Every step either moves on, or leaves a due time or an open message behind."""
        node = self.node(enrollment)
        if node is None:
            self.end(enrollment, "exited", "step_gone")
            return
        getattr(self, "do_" + node.kind)(enrollment, node)

    def do_email(self, enrollment: Enrollment, node: Node) -> None:
        version = self.book.versions[enrollment.version]
        topic = version.topic_of(node)
        reached, not_reached = recipients(version, self.account, enrollment.contact, topic)
        if enrollment.position.get("kind") != "recipient":
            for contact, reason in not_reached:
                self.decide("recipient", "no", reason, enrollment=enrollment, step=node.id, contact=contact.key)
        if not reached:
            self.wait_for_recipient(enrollment, node, version)
            return
        made = [self.write(enrollment, node, version, topic, contact) for contact in reached]
        position = {name: value for name, value in enrollment.position.items() if name in ("heard", "response")}
        self.put(replace(enrollment, position={**position, "open": [str(one.id) for one in made]}, due_at=None))

    do_survey = do_email

    def write(self, enrollment: Enrollment, node: Node, version: Version, topic: str, contact: Contact) -> NewMessage:
        campaign = version.campaign
        due = self.now
        ident = hash_id("message", enrollment.id, node.id, enrollment.occurrence, contact.key)
        if campaign.send_window is not None and topic != TRANSACTIONAL:
            window = campaign.send_window
            where, whose = zone_for(self.account, contact, self.book.lifecycle.timezone)
            due = next_open(self.now, window.days, window.opens, window.closes, where, ident)
            if due != self.now:
                evidence = {"until": due.isoformat(), "zone": str(where), "zone_of": whose}
                about = {"enrollment": enrollment, "step": node.id, "contact": contact.key, "message": ident}
                self.decide("window", "wait", "window_closed", **about, evidence=evidence)
        message = NewMessage(
            id=ident,
            enrollment=enrollment.id,
            campaign=enrollment.campaign,
            version=enrollment.version,
            step=node.id,
            occurrence=enrollment.occurrence,
            contact=contact.key,
            kind=node.kind,
            topic=topic,
            priority=campaign.priority,
            created_at=self.now,
            due_at=due,
            expires_at=due + campaign.expires,
        )
        self.messages.append(message)
        self.decide("recipient", "yes", "queued", enrollment=enrollment, step=node.id, contact=contact.key, message=ident)
        return message

    def wait_for_recipient(self, enrollment: Enrollment, node: Node, version: Version) -> None:
        if enrollment.position.get("kind") == "recipient":
            return
        until = self.now + version.campaign.recipient_wait
        self.decide("recipient", "wait", "nobody_reachable", enrollment=enrollment, step=node.id, evidence={"until": until.isoformat()})
        self.put(replace(enrollment, position={**enrollment.position, "kind": "recipient"}, due_at=until))

    def do_wait(self, enrollment: Enrollment, node: Node) -> None:
        spec = node.step.wait
        if spec.span is not None:
            self.put(replace(enrollment, due_at=self.now + spec.span))
            return
        contact = self.account.contacts.get(enrollment.contact or enrollment.entry.get("contact") or "")
        where, _ = zone_for(self.account, contact, self.book.lifecycle.timezone)
        if spec.days is not None:
            self.put(replace(enrollment, due_at=days_later(self.now, spec.days, spec.at, where)))
            return
        moment = value_of(tuple(spec.until.split(".")), self.scope(enrollment), self.book.schema)
        if not isinstance(moment, datetime):
            self.decide("wait", "no", "moment_missing", enrollment=enrollment, step=node.id, evidence={"path": spec.until})
            self.past_moment(enrollment, node, spec.if_past)
        elif (moment := moment + spec.offset) > self.now:
            self.put(replace(enrollment, due_at=moment))
        else:
            self.decide("wait", "no", "moment_passed", enrollment=enrollment, step=node.id, evidence={"moment": moment.isoformat()})
            self.past_moment(enrollment, node, spec.if_past)

    def past_moment(self, enrollment: Enrollment, node: Node, choice: str) -> None:
        if choice == "exit":
            self.end(enrollment, "exited", "moment_passed")
        elif choice == "skip" and node.next is not None:
            self.go(enrollment, self.book.versions[enrollment.version].nodes[node.next].next)
        else:
            self.go(enrollment, node.next)

    def do_wait_for(self, enrollment: Enrollment, node: Node) -> None:
        heard = enrollment.position.get("heard", {})
        if node.event is None and self.state_holds(node):
            self.passes(enrollment, node, {"state": "reached already"})
        elif node.id in heard:
            self.passes(enrollment, node, {"event": node.event, "message_id": heard[node.id]})
        else:
            grace = CLICK_GRACE if node.step.wait_for.click else timedelta(0)
            self.put(replace(enrollment, due_at=self.now + node.step.wait_for.timeout + grace))

    def do_branch(self, enrollment: Enrollment, node: Node) -> None:
        scope = self.scope(enrollment)
        for number, (condition, step) in enumerate(node.arms):
            if condition is None or condition.test(scope):
                evidence = {"arm": number + 1, "when": condition.source if condition else "else"}
                evidence |= condition.seen(scope) if condition else {}
                self.decide("branch", "yes", "branch_taken", enrollment=enrollment, step=node.id, evidence=evidence)
                self.go(enrollment, step)
                return
        self.decide("branch", "no", "no_branch_matched", enrollment=enrollment, step=node.id)
        self.go(enrollment, node.next)

    def do_exit(self, enrollment: Enrollment, node: Node) -> None:
        self.decide("exit", "yes", "exit_step", enrollment=enrollment, step=node.id, evidence={"reason": node.step.exit})
        self.end(enrollment, "exited", "exit_step")

    def step_due(self, enrollment: Enrollment) -> None:
        """The current step's time has come."""
        node = self.node(enrollment)
        if node is None:
            self.end(enrollment, "exited", "step_gone")
        elif node.kind == "wait":
            self.go(enrollment, node.next)
        elif node.kind == "wait_for":
            self.decide("wait_for", "no", "timed_out", enrollment=enrollment, step=node.id)
            self.go(enrollment, node.on_timeout)
        else:
            self.decide("recipient", "no", "nobody_reachable", enrollment=enrollment, step=node.id)
            self.go(enrollment, node.next)

    # The ledger and the end --------------------------------------------------------------------------------------

    def node(self, enrollment: Enrollment) -> Node | None:
        return self.book.versions[enrollment.version].nodes.get(enrollment.step or "")

    def scope(self, enrollment: Enrollment | None = None, event: Event | None = None) -> Scope:
        """What a condition of `enrollment` sees. A given event is the present one; else it is the one it entered by."""
        if enrollment is None:
            return Scope(self.account, self.now, self.account.contacts.get(event.contact or "") if event else None, event)
        contact = self.account.contacts.get(enrollment.contact or enrollment.entry.get("contact") or "")
        return Scope(self.account, self.now, contact, event or enrollment.entry, enrollment, enrollment.position.get("response"))

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
                days = ceil((self.now - enrollment.entered_at) / timedelta(days=1) + 1e-9)
                moments.append(enrollment.entered_at + timedelta(days=max(days, 1)))
        return min(moments, default=None)


def _event_of(entry: Mapping[str, Any]) -> Event:
    return Event(
        name=entry["name"],
        properties=entry["properties"],
        occurred_at=datetime.fromisoformat(entry["occurred_at"]),
        received_at=datetime.fromisoformat(entry["received_at"]),
        message_id=entry["message_id"],
        contact=entry.get("contact"),
    )
