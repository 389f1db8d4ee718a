"""Doing the steps of a campaign: mail, wait, listen, branch, leave. Every step moves on or leaves behind what it waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from app.rules.book import Node, Version
from app.rules.conditions import value_of
from app.rules.facts import Account, Contact, Enrollment, Milestone, NewMessage, hash_id
from app.rules.lifecycle import TRANSACTIONAL
from app.rules.timing import days_later, next_open, zone_for
from app.rules.turn import Turn

CLICK_GRACE = timedelta(seconds=90)  # a click is judged for 60 s; a timeout waits for the verdict


def run(turn: Turn, enrollment: Enrollment) -> None:
    """Does the current step. Every step either moves on, or leaves a due time or an open message behind."""
    node = turn.node(enrollment)
    if node is None:
        turn.end(enrollment, "exited", "step_gone")
        return
    _DO[node.kind](turn, enrollment, node)


def go(turn: Turn, enrollment: Enrollment, step: str | None) -> None:
    """Moves to `step`, or ends when there is none."""
    if step is None:
        turn.end(enrollment, "finished", "finished")
        return
    kept = {name: enrollment.position[name] for name in ("heard", "response") if name in enrollment.position}
    run(turn, turn.put(replace(enrollment, step=step, occurrence=1, position=kept, due_at=None)))


def step_due(turn: Turn, enrollment: Enrollment) -> None:
    """The current step's time has come."""
    node = turn.node(enrollment)
    if node is None:
        turn.end(enrollment, "exited", "step_gone")
    elif node.kind == "wait":
        go(turn, enrollment, node.next)
    elif node.kind == "wait_for":
        turn.decide("wait_for", "no", "timed_out", enrollment=enrollment, step=node.id)
        go(turn, enrollment, node.on_timeout)
    else:
        turn.decide("recipient", "no", "nobody_reachable", enrollment=enrollment, step=node.id)
        go(turn, enrollment, node.next)


def passes(turn: Turn, enrollment: Enrollment, node: Node, evidence: dict[str, Any]) -> None:
    turn.decide("wait_for", "yes", "event_came", enrollment=enrollment, step=node.id, evidence=evidence)
    used, heard = evidence.get("message_id"), enrollment.position.get("heard", {})
    heard = {wait: left for wait, ids in heard.items() if wait != node.id and (left := [one for one in ids if one != used])}
    go(turn, turn.put(replace(enrollment, position={**enrollment.position, "heard": heard})), node.next)


def state_holds(turn: Turn, node: Node) -> bool:
    spec = node.step.wait_for
    if spec.milestone:
        return turn.account.milestones.get(spec.milestone, Milestone()).reached_at is not None
    return turn.account.stage == spec.stage if spec.stage else turn.account.health.band == spec.health


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


def do_email(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    version = turn.book.versions[enrollment.version]
    topic = version.topic_of(node)
    reached, not_reached = recipients(version, turn.account, enrollment.contact, topic)
    if enrollment.position.get("kind") != "recipient":
        for contact, reason in not_reached:
            turn.decide("recipient", "no", reason, enrollment=enrollment, step=node.id, contact=contact.key)
    if not reached:
        wait_for_recipient(turn, enrollment, node, version)
        return
    made = [write(turn, enrollment, node, version, topic, contact) for contact in reached]
    position = {name: value for name, value in enrollment.position.items() if name in ("heard", "response")}
    turn.put(replace(enrollment, position={**position, "open": [str(one.id) for one in made]}, due_at=None))


do_survey = do_email


def write(turn: Turn, enrollment: Enrollment, node: Node, version: Version, topic: str, contact: Contact) -> NewMessage:
    campaign = version.campaign
    due = turn.now
    ident = hash_id("message", enrollment.id, node.id, enrollment.occurrence, contact.key)
    if campaign.send_window is not None and topic != TRANSACTIONAL:
        window = campaign.send_window
        where, whose = zone_for(turn.account, contact, turn.book.lifecycle.timezone)
        due = next_open(turn.now, window.days, window.opens, window.closes, where, ident)
        if due != turn.now:
            evidence = {"until": due.isoformat(), "zone": str(where), "zone_of": whose}
            about = {"enrollment": enrollment, "step": node.id, "contact": contact.key, "message": ident}
            turn.decide("window", "wait", "window_closed", **about, evidence=evidence)
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
        created_at=turn.now,
        due_at=due,
        expires_at=due + campaign.expires,
    )
    turn.messages.append(message)
    turn.decide("recipient", "yes", "queued", enrollment=enrollment, step=node.id, contact=contact.key, message=ident)
    return message


def wait_for_recipient(turn: Turn, enrollment: Enrollment, node: Node, version: Version) -> None:
    if enrollment.position.get("kind") == "recipient":
        return
    until = turn.now + version.campaign.recipient_wait
    turn.decide("recipient", "wait", "nobody_reachable", enrollment=enrollment, step=node.id, evidence={"until": until.isoformat()})
    turn.put(replace(enrollment, position={**enrollment.position, "kind": "recipient"}, due_at=until))


def do_wait(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    spec = node.step.wait
    if spec.span is not None:
        turn.put(replace(enrollment, due_at=turn.now + spec.span))
        return
    contact = turn.account.contacts.get(enrollment.contact or enrollment.entry.get("contact") or "")
    where, _ = zone_for(turn.account, contact, turn.book.lifecycle.timezone)
    if spec.days is not None:
        turn.put(replace(enrollment, due_at=days_later(turn.now, spec.days, spec.at, where)))
        return
    moment = value_of(tuple(spec.until.split(".")), turn.scope(enrollment), turn.book.schema)
    if not isinstance(moment, datetime):
        turn.decide("wait", "no", "moment_missing", enrollment=enrollment, step=node.id, evidence={"path": spec.until})
        past_moment(turn, enrollment, node, spec.if_past)
    elif (moment := moment + spec.offset) > turn.now:
        turn.put(replace(enrollment, due_at=moment))
    else:
        turn.decide("wait", "no", "moment_passed", enrollment=enrollment, step=node.id, evidence={"moment": moment.isoformat()})
        past_moment(turn, enrollment, node, spec.if_past)


def past_moment(turn: Turn, enrollment: Enrollment, node: Node, choice: str) -> None:
    if choice == "exit":
        turn.end(enrollment, "exited", "moment_passed")
    elif choice == "skip" and node.next is not None:
        go(turn, enrollment, turn.book.versions[enrollment.version].nodes[node.next].next)
    else:
        go(turn, enrollment, node.next)


def do_wait_for(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    heard = enrollment.position.get("heard", {})
    if node.event is None and state_holds(turn, node):
        passes(turn, enrollment, node, {"state": "reached already"})
    elif heard.get(node.id):
        passes(turn, enrollment, node, {"event": node.event, "message_id": heard[node.id][0]})
    else:
        grace = CLICK_GRACE if node.step.wait_for.click else timedelta(0)
        turn.put(replace(enrollment, due_at=turn.now + node.step.wait_for.timeout + grace))


def do_branch(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    scope = turn.scope(enrollment)
    for number, (condition, step) in enumerate(node.arms):
        if condition is None or condition.test(scope):
            evidence = {"arm": number + 1, "when": condition.source if condition else "else"}
            evidence |= condition.seen(scope) if condition else {}
            turn.decide("branch", "yes", "branch_taken", enrollment=enrollment, step=node.id, evidence=evidence)
            go(turn, enrollment, step)
            return
    turn.decide("branch", "no", "no_branch_matched", enrollment=enrollment, step=node.id)
    go(turn, enrollment, node.next)


def do_exit(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    turn.decide("exit", "yes", "exit_step", enrollment=enrollment, step=node.id, evidence={"reason": node.step.exit})
    turn.end(enrollment, "exited", "exit_step")


_DO: dict[str, Callable[[Turn, Enrollment, Node], None]] = {
    "email": do_email,
    "survey": do_email,
    "wait": do_wait,
    "wait_for": do_wait_for,
    "branch": do_branch,
    "exit": do_exit,
}
