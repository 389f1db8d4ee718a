"""The state machine: an account and its next occurrence go in, the account afterwards comes out, with decisions and reasons.

`react` is the only function that decides what happens to an account. Live runs, simulation, campaign tests and explanation all call
it. It has no clock (time is the occurrence's), no session and no network, and never changes what it is given.

Within one occurrence the order is: state → milestone → stage → goal → exit → waiting steps → triggers. Derived events follow at
once, at most 8 deep (DESIGN.md 4).
"""

from __future__ import annotations

from typing import Any

from app.rules import identity
from app.rules.agenda import fall_overdue, next_look, stage_mark, stage_over_at
from app.rules.book import Book, StageRule, Version
from app.rules.conditions import Condition
from app.rules.entry import candidates, requested, trigger
from app.rules.facts import (
    CLICK_WITHDRAWN,
    CLICKED,
    Account,
    Enrollment,
    Event,
    Health,
    Milestone,
    Occurrence,
    Reaction,
    Scope,
    Timer,
    Usage,
    renew,
    utc_day,
)
from app.rules.steps import over, passes, recipients, run, state_holds, steer, step_due
from app.rules.triggers import ENROLL_REQUESTED
from app.rules.turn import Turn
from app.rules.watching import look_at_people, look_daily

__all__ = ["STEERED", "needs", "react", "recipients"]

STEERED = "nurture.enrollment_steered"
# What somebody did with one mail: other enrollments wait for none of it.
OF_ONE_MAIL = frozenset({"nurture.survey_responded", "nurture.email_clicked", "nurture.email_replied"})


def react(book: Book, account: Account, occurrence: Occurrence) -> Reaction:
    """What follows from `occurrence` for `account`, by what `book` says. Raises nothing for any event; a rule that raises is a bug."""
    turn = Turn(book, account)
    if isinstance(occurrence, Timer):
        take_timer(turn, occurrence)
    else:
        take_event(turn, occurrence)
    while turn.queue:
        take_event(turn, turn.queue.popleft())
    return finish(turn)


def finish(turn: Turn) -> Reaction:
    account = turn.account
    if turn.changed or turn.looked or account is not turn.before:
        after: dict[str, Any] = {}
        if turn.changed:
            after["enrollments"] = tuple(turn.active.values())
        if turn.past:
            after["past"] = (*account.past, *turn.past)
        # A look that is due and has not been taken is not put off by what happens at the same instant.
        due = account.due_at
        if due is None or due > turn.now or turn.looked:
            due = next_look(turn)
        if due != account.due_at:
            after["due_at"] = due
        if after:
            account = renew(account, **after)
    return Reaction(
        account=account,
        enrollments=tuple(turn.changed.values()),
        messages=tuple(turn.messages),
        effects=tuple(turn.effects),
        decisions=tuple(turn.decisions),
        derived=tuple(turn.derived),
        usage=tuple(turn.usage),
        stages=tuple(turn.stages),
    )


def needs(book: Book, account: Account, occurrence: Occurrence) -> frozenset[str]:
    """What must be loaded before `react` may be asked: of `contacts` and `usage`. May name too much, never too little."""
    if isinstance(occurrence, Timer):
        return _BOTH
    name = occurrence.name
    if account.stage is None or account.candidates or occurrence.kind != "track" or occurrence.own:
        return _BOTH
    if name in book.triggers or name in book.milestones:
        return _BOTH
    if any(rule.where is not None and "contact" in rule.where.roots for rule in book.metrics.get(name, ())):
        return _BOTH
    for enrollment in account.enrollments:
        version = book.versions.get(enrollment.version)
        if version is None:
            continue
        if any(node.event == name for node in version.waits):
            return _BOTH
        for condition in (version.exit_when, version.goal_when):
            if condition and may_hold(book, account, enrollment, condition, occurrence):
                return _BOTH
        if version.campaign.goal and version.campaign.goal.event == name:
            return _BOTH
    stage = book.stages.get(account.stage or book.first_stage)
    for condition in (stage.exit_when if stage else None, *(rule.enter_when for rule in book.entering)):
        if condition and any(root.startswith("usage.") or root == "event" for root in condition.roots):
            return _BOTH
    return _NOTHING


def may_hold(book: Book, account: Account, enrollment: Enrollment, condition: Condition, event: Event) -> bool:
    """Whether the condition may take the enrollment out by this event, as far as can be said without people and usage."""
    if any(f"usage.{rule.name}" in condition.roots for rule in book.metrics.get(event.name, ())):
        return True
    if "event" not in condition.roots:
        return False
    if any(root in ("contact", "utilization") or root.startswith("usage.") for root in condition.roots):
        return True
    return condition.test(Scope(account, event.at, None, event, enrollment, enrollment.position.get("response")))


_BOTH = frozenset({"contacts", "usage"})
_NOTHING: frozenset[str] = frozenset()


def take_event(turn: Turn, event: Event) -> None:
    turn.now = turn.seen = event.at
    turn.event = event
    roots = {"event"}
    learn(turn, event, roots)
    reach_milestones(turn, event, roots)
    move_stage(turn, event, roots)
    for enrollment in list(turn.active.values()):
        if enrollment.id in turn.active:
            settle(turn, turn.active[enrollment.id], event, roots)
    candidates(turn, roots)
    if event.name == ENROLL_REQUESTED:
        requested(turn, event)
    for version in turn.book.triggered(event):
        trigger(turn, version, event)


def take_timer(turn: Turn, timer: Timer) -> None:
    turn.now, turn.seen = timer.at, timer.seen or timer.at
    if timer.enrollment is None:
        account_timer(turn)
        return
    enrollment = turn.active.get(timer.enrollment)
    if enrollment is None or enrollment.due_at is None or enrollment.due_at > timer.at:
        return
    if not leaves(turn, enrollment, None):
        step_due(turn, turn.active[enrollment.id])


def account_timer(turn: Turn) -> None:
    """What time alone brings: overdue milestones, stages that last too long, watched dates and silence, candidates that expire, the
    daily look at goals and exits."""
    turn.looked = True
    fall_overdue(turn)
    stage_over(turn)
    look_daily(turn)
    move_stage(turn, None, {"now"})
    for enrollment in list(turn.active.values()):
        leaves(turn, enrollment, None)
    candidates(turn, {"now"})


def learn(turn: Turn, event: Event, roots: set[str]) -> None:
    """The values that the event carries."""
    if event.kind in ("identify", "group"):
        known = turn.account.contacts.get(event.contact or "")
        turn.account, learnt = identity.learn(turn.account, event)
        roots |= learnt
        if "contact" in learnt and (known is None or known.joined_at is None):
            joined(turn, event)
        if learnt:
            look_at_people(turn)
    elif event.name == "nurture.health_changed":
        known = turn.account.health.at
        if known is None or known <= event.occurred_at:  # what was found since is known already
            found = Health(event.properties.get("score"), event.properties.get("band"), event.occurred_at)
            if found != turn.account.health:
                turn.account = renew(turn.account, health=found)
        roots.add("health")
    if event.kind == "track":
        if event.contact and event.mark is None and not event.own:
            seen(turn, event)
        withdrawn = event.own and event.name == CLICK_WITHDRAWN
        for rule in turn.book.metrics.get(CLICKED if withdrawn else event.name, ()):
            if rule.where is None or rule.where.test(turn.scope(event=event)):
                turn.usage.append(rule.name)
                count(turn, rule.name, event, event.contact if rule.contacts else None, -1 if withdrawn else 1)
                roots.add(f"usage.{rule.name}")
    if turn.account.stage is None:
        enter_stage(turn, turn.book.first_stage, "first", event)
        roots.add("stage")


def joined(turn: Turn, event: Event) -> None:
    """Somebody became a member: told if a campaign listens to that."""
    if "nurture.contact_added" in turn.book.triggers and event.contact:
        roles = sorted(turn.account.contacts[event.contact].roles)
        ident = f"joined:{turn.account.key}:{event.contact}"
        turn.derive("nurture.contact_added", ident, {"roles": roles}, cause=event, contact=event.contact)


def seen(turn: Turn, event: Event) -> None:
    """When the contact was last seen, kept to the UTC day as the database keeps it."""
    contact = turn.account.contacts.get(event.contact)
    if contact is not None and (contact.last_seen_at is None or utc_day(contact.last_seen_at) < utc_day(event.occurred_at)):
        fresh = renew(contact, last_seen_at=event.occurred_at)
        turn.account = renew(turn.account, contacts={**turn.account.contacts, contact.key: fresh})


def count(turn: Turn, metric: str, event: Event, person: str | None, by: int) -> None:
    known = turn.account.usage.get(metric)
    if known is None and not turn.account.usage:
        return  # not loaded: nothing that could act reads it
    known = known or Usage()
    day = utc_day(event.occurred_at)
    last = max(known.last_at or event.occurred_at, event.occurred_at)
    people = known.people if person is None or (day, person) in known.people else (*known.people, (day, person))
    usage = Usage(_with_day(known.days, day, by), last, people)
    turn.account = renew(turn.account, usage={**turn.account.usage, metric: usage})


def _with_day(days: tuple[tuple[int, int], ...], day: int, by: int) -> tuple[tuple[int, int], ...]:
    """One more (or less) on that day. Nearly always it is the newest, which stands first."""
    later = next((place for place, (one, _) in enumerate(days) if one <= day), len(days))
    there = later < len(days) and days[later][0] == day
    return (*days[:later], (day, (days[later][1] if there else 0) + by), *days[later + there :])


def reach_milestones(turn: Turn, event: Event, roots: set[str]) -> None:
    for rule in turn.book.milestones.get(event.name, ()):
        known = turn.account.milestones.get(rule.name, Milestone())
        if known.reached_at is not None:
            continue
        if rule.where is not None and not rule.where.test(turn.scope(event=event)):
            continue
        turn.set_milestone(rule.name, renew(known, reached_at=event.occurred_at))
        roots.add("milestone")
        properties = {"milestone": rule.name, "overdue": known.overdue_at is not None}
        turn.derive("nurture.milestone_reached", f"milestone:{turn.account.key}:{rule.name}", properties, cause=event)


def move_stage(turn: Turn, event: Event | None, roots: set[str]) -> None:
    """Leaves the stage, or takes another that the account belongs in. No stage is come to twice by one occurrence."""
    changed: set[str] | None = roots
    been = {turn.account.stage}
    while found := next_stage(turn, event, changed):
        stage, why = found
        if stage in been:
            turn.decide("account", "no", "stage_loop", evidence={"stage": stage, "from": turn.account.stage})
            return
        been.add(stage)
        enter_stage(turn, stage, why, event)
        roots.add("stage")
        changed = None  # a stage just entered may be over already, whatever changed


def next_stage(turn: Turn, event: Event | None, changed: set[str] | None) -> tuple[str, str] | None:
    rule = turn.book.stages.get(turn.account.stage or "")
    if rule and rule.following and rule.exit_when is not None and applies(turn, rule.exit_when, event, changed):
        return rule.following, "exit_when"
    for other in turn.book.entering:
        if other is not rule and applies(turn, other.enter_when, event, changed) and not over_already(turn, other, event):
            return other.name, "enter_when"
    return None


def applies(turn: Turn, condition: Condition, event: Event | None, changed: set[str] | None) -> bool:
    return touches(turn, condition, changed) and condition.test(turn.scope(event=event))


def over_already(turn: Turn, rule: StageRule, event: Event | None) -> bool:
    """Whether the account would leave the stage at once: then there is no point in entering it."""
    return rule.exit_when is not None and rule.following is not None and rule.exit_when.test(turn.scope(event=event))


def stage_over(turn: Turn) -> None:
    """The stage has lasted longer than it should: said once, and if the stage says so, the end of it."""
    due = stage_over_at(turn)
    if due is None or due > turn.now:
        return
    account, rule = turn.account, turn.book.stages[turn.account.stage]
    mark = stage_mark(turn)
    turn.account = renew(account, watched={**account.watched, "stage": mark})
    properties = {"stage": rule.name, "entered_at": account.stage_entered_at.isoformat()}
    turn.derive("nurture.stage_overdue", f"stage_overdue:{account.key}:{mark}", properties, at=due)
    if rule.moves_on and rule.following:
        enter_stage(turn, rule.following, "at_most", None)


def enter_stage(turn: Turn, stage: str, why: str, event: Event | None) -> None:
    at = event.occurred_at if event else turn.now
    properties = {"stage": stage, "previous": turn.account.stage}
    turn.account = renew(turn.account, stage=stage, stage_entered_at=at)
    turn.stages.append((stage, at, why))
    cause = event.message_id if event else at.isoformat()
    turn.derive("nurture.stage_entered", f"stage:{turn.account.key}:{stage}:{cause}", properties, cause=event)


def settle(turn: Turn, enrollment: Enrollment, event: Event, roots: set[str]) -> None:
    """What the event means to one enrollment."""
    version = turn.book.versions.get(enrollment.version)
    if version is None:
        return
    own = event.own and event.properties.get("enrollment") == str(enrollment.id)
    if own and event.name in OF_ONE_MAIL:
        enrollment = turn.put(renew(enrollment, position=answered(version, enrollment, event)))
        roots = roots | {"response"}
    if own and event.name == STEERED:
        steer(turn, enrollment, event)
        return
    if leaves(turn, enrollment, event, roots):
        return
    if own and event.name == "nurture.message_settled":
        message_settled(turn, enrollment, event)
        return
    hear(turn, version, turn.active[enrollment.id], event, own)
    waiting = turn.active.get(enrollment.id)
    if waiting is not None and waiting.position.get("kind") == "recipient" and not roots.isdisjoint(("account", "contact")):
        run(turn, waiting)


def answered(version: Version, enrollment: Enrollment, event: Event) -> dict:
    """The position after an answer or a click: what a survey was answered, and who needs no reminder any more."""
    position = dict(enrollment.position)
    if event.name == "nurture.survey_responded":
        position["response"] = {name: event.properties.get(name) for name in ("score", "comment", "survey")} | {"contact": event.contact}
    step = event.properties.get("step")
    node = version.nodes.get(step) if isinstance(step, str) else None
    if node is not None and node.reminded and event.contact:
        silent = dict(position.get("got", {}))
        silent[step] = {contact: at for contact, at in silent.get(step, {}).items() if contact != event.contact}
        position["got"] = silent
    return position


def leaves(turn: Turn, enrollment: Enrollment, event: Event | None, roots: set[str] | None = None) -> bool:
    """Whether the goal or `exit_when` takes the enrollment out. Without `roots` both are looked at whatever changed."""
    version = turn.book.versions.get(enrollment.version)
    if version is None:
        return False
    goal = version.campaign.goal
    if goal is not None and enrollment.goal_at is None and goal_met(turn, version, enrollment, event, roots):
        within = goal.within is None or turn.now <= enrollment.entered_at + goal.within
        if within:
            evidence = met_by(turn, version, enrollment, event)
            enrollment = turn.put(renew(enrollment, goal_at=turn.now))
            turn.decide("goal", "yes", "goal_met", enrollment=enrollment, evidence=evidence)
            turn.tell(enrollment, "nurture.goal_met", f"goal:{enrollment.id}", {})
        if goal.then == "exit":
            turn.end(enrollment, "exited", "goal_met" if within else "goal_met_late")
            return True
    condition = version.exit_when
    if condition is not None and touches(turn, condition, roots) and condition.test(turn.scope(enrollment, event)):
        turn.decide("exit", "yes", "exit_when", enrollment=enrollment, evidence=condition.evidence(turn.scope(enrollment, event)))
        turn.end(enrollment, "exited", "exit_when")
        return True
    return False


def goal_met(turn: Turn, version: Version, enrollment: Enrollment, event: Event | None, roots: set[str] | None) -> bool:
    goal = version.campaign.goal
    if goal.event:
        return event is not None and event.name == goal.event and counts(enrollment, event)
    condition = version.goal_when
    return touches(turn, condition, roots) and condition.test(turn.scope(enrollment, event))


def met_by(turn: Turn, version: Version, enrollment: Enrollment, event: Event | None) -> dict[str, Any]:
    """What met the goal: the event, or what its condition read."""
    if version.campaign.goal.event:
        return {"event": event.name, "message_id": event.message_id}
    return version.goal_when.evidence(turn.scope(enrollment, event))


def touches(turn: Turn, condition: Condition, roots: set[str] | None) -> bool:
    return roots is None or not condition.roots.isdisjoint(roots) or ("now" in roots and condition.with_time)


def message_settled(turn: Turn, enrollment: Enrollment, event: Event) -> None:
    """An email step is over when all its messages are settled; what follows counts from then."""
    open_messages = [one for one in enrollment.position.get("open", ()) if one != event.properties.get("message")]
    if open_messages == list(enrollment.position.get("open", ())):
        return
    enrollment = turn.put(renew(enrollment, position={**enrollment.position, "open": open_messages}))
    if not open_messages:
        over(turn, enrollment, turn.node(enrollment))


def hear(turn: Turn, version: Version, enrollment: Enrollment, event: Event, own: bool) -> None:
    """Wait-for steps, the present one and those still to come: one event satisfies one occurrence of one of them.

    An event that comes early is kept for every wait it fits, since nobody knows yet which arm will be taken; the first that is
    reached uses it up. States pass when they hold, whatever mark the event has that brought them.
    """
    node = turn.node(enrollment)
    if any(waiting.event == event.name for waiting in version.waits) and listens(enrollment, event, own):
        fits = [
            waiting.id
            for waiting in version.waits
            if waiting.event == event.name and (waiting.where is None or waiting.where.test(turn.scope(enrollment, event)))
        ]
        if node is not None and node.id in fits:
            passes(turn, enrollment, node, {"event": event.name, "message_id": event.message_id})
            return
        ahead = version.ahead(enrollment.step)
        heard = dict(enrollment.position.get("heard", {}))
        for wait in fits:
            if wait in ahead and len(heard.get(wait, ())) < len(version.waits):
                heard[wait] = [*heard.get(wait, ()), event.message_id]
        if heard != enrollment.position.get("heard", {}):
            enrollment = turn.put(renew(enrollment, position={**enrollment.position, "heard": heard}))
    if node is not None and node.event is None and node.kind == "wait_for" and state_holds(turn, node):
        passes(turn, enrollment, node, {"state": "reached"})


def listens(enrollment: Enrollment, event: Event, own: bool) -> bool:
    if event.mark is not None and event.name != "nurture.milestone_reached":
        return False
    return (own or event.name not in OF_ONE_MAIL) and counts(enrollment, event)


def counts(enrollment: Enrollment, event: Event) -> bool:
    """Whether the event is one for this enrollment: since it was entered, and for a contact's not what another contact did."""
    if enrollment.contact is not None and event.contact not in (None, enrollment.contact):
        return False
    return event.occurred_at >= enrollment.entered_at
