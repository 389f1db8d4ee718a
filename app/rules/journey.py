"""The state machine: an account and its next occurrence go in, the account afterwards comes out, with decisions and reasons.

`react` is the only function that decides what happens to an account. Live runs, simulation, campaign tests and explanation all call
it. It has no clock (time is the occurrence's), no session and no network, and never changes what it is given.

Within one occurrence the order is: state → milestone → stage → goal → exit → waiting steps → triggers. Derived events follow at
once, at most 8 deep (DESIGN.md 4).
"""

from __future__ import annotations

from dataclasses import replace

from app.rules import identity
from app.rules.book import Book, Version
from app.rules.conditions import Condition
from app.rules.entry import candidates, trigger
from app.rules.facts import (
    Account,
    Enrollment,
    Event,
    Health,
    Milestone,
    Occurrence,
    Reaction,
    Timer,
    Usage,
)
from app.rules.steps import go, passes, recipients, run, state_holds, step_due
from app.rules.turn import Turn

__all__ = ["needs", "react", "recipients"]


def react(book: Book, account: Account, occurrence: Occurrence) -> Reaction:
    """What follows from `occurrence` for `account`, by what `book` says. Raises nothing for any event; a rule that raises is a bug."""
    turn = Turn(book, account)
    if isinstance(occurrence, Timer):
        take_timer(turn, occurrence)
    else:
        take_event(turn, occurrence)
    while turn.queue:
        take_event(turn, turn.queue.popleft())
    return turn.finish()


def needs(book: Book, account: Account, occurrence: Occurrence) -> frozenset[str]:
    """What must be loaded before `react` may be asked: of `contacts` and `usage`. May name too much, never too little."""
    if isinstance(occurrence, Timer):
        return _BOTH
    name = occurrence.name
    if occurrence.kind != "track" or name in book.triggers or name in book.milestones or name.startswith("nurture.") or account.candidates:
        return _BOTH
    if any(where is not None and "contact" in where.roots for _, where in book.metrics.get(name, ())):
        return _BOTH
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
    stage = book.stages.get(account.stage or book.first_stage)
    if stage and stage.exit_when and any(root.startswith("usage.") or root == "event" for root in stage.exit_when.roots):
        return _BOTH
    return _NOTHING


_BOTH = frozenset({"contacts", "usage"})
_NOTHING: frozenset[str] = frozenset()


def take_event(turn: Turn, event: Event) -> None:
    turn.now = event.at
    roots = {"event"}
    learn(turn, event, roots)
    reach_milestones(turn, event, roots)
    move_stage(turn, event, roots)
    for enrollment in list(turn.active.values()):
        settle(turn, enrollment, event, roots)
    candidates(turn, roots)
    for version in turn.book.triggers.get(event.name, ()):
        trigger(turn, version, event)


def take_timer(turn: Turn, timer: Timer) -> None:
    turn.now = timer.at
    if timer.enrollment is None:
        account_timer(turn)
        return
    enrollment = turn.active.get(timer.enrollment)
    if enrollment is None or enrollment.due_at is None or enrollment.due_at > timer.at:
        return
    if not leaves(turn, enrollment, None):
        step_due(turn, enrollment)


def account_timer(turn: Turn) -> None:
    """What time alone brings: overdue milestones, candidates that expire, the daily look at goals and exits."""
    turn.looked = True
    for rule in turn.book.milestone_rules.values():
        due = turn.overdue_at(rule.name)
        if due is not None and due <= turn.now:
            turn.set_milestone(rule.name, replace(turn.account.milestones.get(rule.name, Milestone()), overdue_at=due))
            turn.derive("nurture.milestone_overdue", f"overdue:{turn.account.key}:{rule.name}", {"milestone": rule.name}, at=due)
    move_stage(turn, None, {"now"})
    for enrollment in list(turn.active.values()):
        leaves(turn, enrollment, None)
    candidates(turn, {"now"})


def learn(turn: Turn, event: Event, roots: set[str]) -> None:
    """The values that the event carries."""
    if event.kind in ("identify", "group"):
        turn.account, learnt = identity.learn(turn.account, event)
        roots |= learnt
    elif event.name == "nurture.health_changed":
        score, band = event.properties.get("score"), event.properties.get("band")
        turn.account = replace(turn.account, health=Health(score, band, event.occurred_at))
        roots.add("health")
    for metric, where in turn.book.metrics.get(event.name, ()):
        if event.kind == "track" and (where is None or where.test(turn.scope(event=event))):
            turn.usage.append(metric)
            count(turn, metric, event)
            roots.add(f"usage.{metric}")
    if turn.account.stage is None:
        enter_stage(turn, turn.book.first_stage, "first", event)
        roots.add("stage")


def count(turn: Turn, metric: str, event: Event) -> None:
    known = turn.account.usage.get(metric)
    if known is None and not turn.account.usage:
        return  # not loaded: nothing that could act reads it
    known = known or Usage()
    day = event.occurred_at.date().toordinal()
    days = dict(known.days)
    days[day] = days.get(day, 0) + 1
    last = max(known.last_at or event.occurred_at, event.occurred_at)
    usage = Usage(tuple(sorted(days.items(), reverse=True)), last)
    turn.account = replace(turn.account, usage={**turn.account.usage, metric: usage})


def reach_milestones(turn: Turn, event: Event, roots: set[str]) -> None:
    for rule in turn.book.milestones.get(event.name, ()):
        known = turn.account.milestones.get(rule.name, Milestone())
        if known.reached_at is not None:
            continue
        if rule.where is not None and not rule.where.test(turn.scope(event=event)):
            continue
        turn.set_milestone(rule.name, replace(known, reached_at=event.occurred_at))
        roots.add("milestone")
        properties = {"milestone": rule.name, "overdue": known.overdue_at is not None}
        turn.derive("nurture.milestone_reached", f"milestone:{turn.account.key}:{rule.name}", properties, cause=event)


def move_stage(turn: Turn, event: Event | None, roots: set[str]) -> None:
    changed: set[str] | None = roots
    while (rule := turn.book.stages.get(turn.account.stage or "")) and rule.exit_when is not None and rule.following is not None:
        if not touches(turn, rule.exit_when, changed) or not rule.exit_when.test(turn.scope(event=event)):
            return
        enter_stage(turn, rule.following, "exit_when", event)
        roots.add("stage")
        changed = None  # a stage just entered may be over already, whatever changed


def enter_stage(turn: Turn, stage: str, why: str, event: Event | None) -> None:
    at = event.occurred_at if event else turn.now
    properties = {"stage": stage, "previous": turn.account.stage}
    turn.account = replace(turn.account, stage=stage, stage_entered_at=at)
    turn.stages.append((stage, at, why))
    cause = event.message_id if event else at.isoformat()
    turn.derive("nurture.stage_entered", f"stage:{turn.account.key}:{stage}:{cause}", properties, cause=event)


def settle(turn: Turn, enrollment: Enrollment, event: Event, roots: set[str]) -> None:
    """What the event means to one enrollment."""
    version = turn.book.versions.get(enrollment.version)
    if version is None:
        return
    own = event.name.startswith("nurture.") and event.properties.get("enrollment") == str(enrollment.id)
    if own and event.name == "nurture.survey_responded":
        answer = {name: event.properties.get(name) for name in ("score", "comment", "survey")}
        enrollment = turn.put(replace(enrollment, position={**enrollment.position, "response": answer}))
        roots = roots | {"response"}
    if leaves(turn, enrollment, event, roots):
        return
    if own and event.name == "nurture.message_settled":
        message_settled(turn, enrollment, event)
        return
    hear(turn, version, turn.active[enrollment.id], event, own)
    waiting = turn.active.get(enrollment.id)
    if waiting is not None and waiting.position.get("kind") == "recipient" and not roots.isdisjoint(("account", "contact")):
        run(turn, waiting)


def leaves(turn: Turn, enrollment: Enrollment, event: Event | None, roots: set[str] | None = None) -> bool:
    """Whether the goal or `exit_when` takes the enrollment out. Without `roots` both are looked at whatever changed."""
    version = turn.book.versions.get(enrollment.version)
    if version is None:
        return False
    goal = version.campaign.goal
    if goal is not None and enrollment.goal_at is None and goal_met(turn, version, enrollment, event, roots):
        within = goal.within is None or turn.now <= enrollment.entered_at + goal.within
        if within:
            enrollment = turn.put(replace(enrollment, goal_at=turn.now))
            turn.decide("goal", "yes", "goal_met", enrollment=enrollment)
        if goal.then == "exit":
            turn.end(enrollment, "exited", "goal_met" if within else "goal_met_late")
            return True
    condition = version.exit_when
    if condition is not None and touches(turn, condition, roots) and condition.test(turn.scope(enrollment, event)):
        turn.decide("exit", "yes", "exit_when", enrollment=enrollment, evidence=condition.seen(turn.scope(enrollment, event)))
        turn.end(enrollment, "exited", "exit_when")
        return True
    return False


def goal_met(turn: Turn, version: Version, enrollment: Enrollment, event: Event | None, roots: set[str] | None) -> bool:
    goal = version.campaign.goal
    if goal.event:
        return event is not None and event.name == goal.event and counts(enrollment, event)
    condition = version.goal_when
    return touches(turn, condition, roots) and condition.test(turn.scope(enrollment, event))


def touches(turn: Turn, condition: Condition, roots: set[str] | None) -> bool:
    return roots is None or not condition.roots.isdisjoint(roots) or ("now" in roots and condition.with_time)


def message_settled(turn: Turn, enrollment: Enrollment, event: Event) -> None:
    """An email step is over when all its messages are settled; what follows counts from then."""
    open_messages = [one for one in enrollment.position.get("open", ()) if one != event.properties.get("message")]
    if open_messages == list(enrollment.position.get("open", ())):
        return
    enrollment = turn.put(replace(enrollment, position={**enrollment.position, "open": open_messages}))
    if not open_messages:
        go(turn, enrollment, turn.node(enrollment).next)


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
            enrollment = turn.put(replace(enrollment, position={**enrollment.position, "heard": heard}))
    if node is not None and node.event is None and node.kind == "wait_for" and state_holds(turn, node):
        passes(turn, enrollment, node, {"state": "reached"})


def listens(enrollment: Enrollment, event: Event, own: bool) -> bool:
    if event.mark is not None and event.name != "nurture.milestone_reached":
        return False
    private = event.name in ("nurture.survey_responded", "nurture.email_clicked")
    return (own or not private) and counts(enrollment, event)


def counts(enrollment: Enrollment, event: Event) -> bool:
    """Whether the event is one for this enrollment: since it was entered, and for a contact's not what another contact did."""
    if enrollment.contact is not None and event.contact not in (None, enrollment.contact):
        return False
    return event.occurred_at >= enrollment.entered_at
