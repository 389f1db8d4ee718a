"""Doing the steps of a campaign: mail, wait, listen, branch, tell staff, leave. Every step moves on or leaves behind what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.rules.book import Node, Version
from app.rules.conditions import value_of, values
from app.rules.definition import MAIL_KINDS
from app.rules.facts import Account, Contact, Enrollment, Event, Milestone, NewEffect, NewMessage, hash_id, hash_share, renew
from app.rules.lifecycle import TRANSACTIONAL
from app.rules.moving import due_again, plan
from app.rules.timing import at_wall_clock, days_later, next_open, zone_for
from app.rules.turn import Turn

CLICK_GRACE = timedelta(seconds=90)  # a click is judged for 60 s; a timeout waits for the verdict
BECAUSE = 12  # clauses that a branch without a fitting arm names
# What an enrollment remembers from step to step: events that came early, the answer, the arms it drew, who got what.
KEPT = ("heard", "response", "arms", "got")


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
    run(turn, turn.put(renew(enrollment, step=step, occurrence=1, position=kept(enrollment), due_at=None)))


def kept(enrollment: Enrollment) -> dict[str, Any]:
    return {name: enrollment.position[name] for name in KEPT if name in enrollment.position}


def step_due(turn: Turn, enrollment: Enrollment) -> None:
    """The current step's time has come."""
    node = turn.node(enrollment)
    if node is None:
        turn.end(enrollment, "exited", "step_gone")
    elif enrollment.position.get("kind") == "repeat":
        once_more(turn, enrollment, node)
    elif node.kind == "wait":
        go(turn, enrollment, node.next)
    elif node.kind == "wait_for":
        turn.decide("wait_for", "no", "timed_out", enrollment=enrollment, step=node.id)
        go(turn, enrollment, node.on_timeout)
    else:
        turn.decide("recipient", "no", "nobody_reachable", enrollment=enrollment, step=node.id)
        over(turn, enrollment, node)


def over(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    """The step has done its work for this time: it goes on, or comes again if it repeats.

    Times are counted from the first one, so there is no drift, and what an outage missed is made up for once: the next time is the
    first that has not passed when this is really looked at.
    """
    repeat = getattr(node.step, "repeat", None)
    if repeat is None:
        go(turn, enrollment, node.next)
        return
    if enrollment.occurrence >= repeat.at_most or stops_repeating(turn, enrollment, node):
        turn.decide("repeat", "yes", "repeated_enough", enrollment=enrollment, step=node.id, evidence={"times": enrollment.occurrence})
        go(turn, enrollment, node.next)
        return
    since = enrollment.position.get("since") or turn.now.isoformat()
    first = datetime.fromisoformat(since)
    due = first + ((max(turn.now, turn.seen) - first) // repeat.every + 1) * repeat.every
    turn.put(renew(enrollment, position={**kept(enrollment), "since": since, "kind": "repeat"}, due_at=due))


def once_more(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    if stops_repeating(turn, enrollment, node):
        turn.decide("repeat", "yes", "repeated_enough", enrollment=enrollment, step=node.id, evidence={"times": enrollment.occurrence})
        go(turn, enrollment, node.next)
        return
    position = {**kept(enrollment), "since": enrollment.position["since"]}
    run(turn, turn.put(renew(enrollment, occurrence=enrollment.occurrence + 1, position=position, due_at=None)))


def stops_repeating(turn: Turn, enrollment: Enrollment, node: Node) -> bool:
    return node.until is not None and node.until.test(turn.scope(enrollment))


def steer(turn: Turn, enrollment: Enrollment, event: Event) -> None:
    """What an operator decided about an enrollment: it ends, goes on now, leaves out what is overdue, or moves to another version.

    What the event names and does not exist (a version, a step) changes nothing but the ledger.
    """
    action, reason = event.properties.get("action"), str(event.properties.get("reason") or "steered")[:100]
    node = turn.node(enrollment)
    if action == "exit":
        turn.end(enrollment, "exited", reason)
    elif action == "move":
        move(turn, enrollment, event, reason)
    elif action == "go" and node is not None and node.kind in ("wait", "wait_for"):
        turn.decide("enrollment", "yes", reason, enrollment=enrollment, step=node.id)
        go(turn, enrollment, node.next)
    elif action == "skip" and node is not None:
        skip(turn, enrollment, node, reason)
    else:
        turn.decide("enrollment", "no", "cannot_steer", enrollment=enrollment, evidence={"action": str(action)[:100]})


def skip(turn: Turn, enrollment: Enrollment, node: Node, reason: str) -> None:
    """Leaves the present wait and the mail right behind it, or the mail that it is at; of a step that repeats, this one time. What was
    waited for in vain did not come: the way goes on where a timeout leads."""
    if enrollment.position.get("kind") == "repeat":
        turn.decide("enrollment", "no", reason, enrollment=enrollment, step=node.id)
        over(turn, turn.put(renew(enrollment, occurrence=enrollment.occurrence + 1)), node)
        return
    if node.kind in MAIL_KINDS and enrollment.position.get("open"):
        return  # its messages are settled one by one, and the step with the last of them
    following, step = node.next, node
    if node.kind == "wait_for":
        turn.decide("wait_for", "no", "timed_out", enrollment=enrollment, step=node.id)
        following = node.on_timeout
    if node.kind not in MAIL_KINDS:
        step = turn.book.versions[enrollment.version].nodes.get(following or "")
    if step is not None and step.kind in MAIL_KINDS:
        turn.decide("enrollment", "no", reason, enrollment=enrollment, step=step.id)
        following = step.next
    go(turn, enrollment, following)


def move(turn: Turn, enrollment: Enrollment, event: Event, reason: str) -> None:
    """Goes on in another version: at the same step it keeps waiting, with its time as that version has it; another step is done now.

    The event names the step that was planned, and the one that the enrollment was at then (`from`). Whoever has gone on meanwhile is
    planned anew, so that nothing is done twice.
    """
    version_id, step, planned_at = (event.properties.get(name) for name in ("version", "step", "from"))
    new = turn.book.versions.get(version_id) if isinstance(version_id, int) else None
    if new is None or new.key != enrollment.campaign or not (step is None or (isinstance(step, str) and step in new.nodes)):
        evidence = {"version": str(version_id)[:50], "step": str(step)[:70]}
        turn.decide("enrollment", "no", "cannot_steer", enrollment=enrollment, evidence=evidence)
        return
    before, old = turn.node(enrollment), turn.book.versions[enrollment.version]
    if planned_at is not None and planned_at != enrollment.step:
        step = plan(old, new, enrollment.step).step
    after = new.nodes.get(step or "")
    stays = before is not None and after is not None and (before.id, before.kind) == (after.id, after.kind)
    if stays and old.id == new.id:
        return  # moved already
    turn.decide("enrollment", "yes", reason, enrollment=enrollment, evidence={"from": old.number, "to": new.number, "step": step})
    moved = turn.put(renew(enrollment, version=new.id))
    if after is None:
        turn.end(moved, "exited", reason)
    elif stays:
        keep_waiting(turn, moved, before, after)
    else:
        go(turn, moved, after.id)


def keep_waiting(turn: Turn, enrollment: Enrollment, before: Node, after: Node) -> None:
    """The same step in the words of another version: what is overdue by these goes on now, what it waits for may hold already."""
    if after.kind == "wait_for" and after.event is None and state_holds(turn, after):
        passes(turn, enrollment, after, {"state": "reached already"})
        return
    if enrollment.due_at is None:
        return
    contact = turn.account.contacts.get(enrollment.contact or enrollment.entry.get("contact") or "")
    where, _ = zone_for(turn.account, contact, turn.book.lifecycle.timezone)
    due = due_again(before, after, enrollment.due_at, where)
    if due is None:
        run(turn, turn.put(renew(enrollment, due_at=None)))
    elif due != enrollment.due_at:
        turn.put(renew(enrollment, due_at=max(due, turn.now)))


def passes(turn: Turn, enrollment: Enrollment, node: Node, evidence: dict[str, Any]) -> None:
    turn.decide("wait_for", "yes", "event_came", enrollment=enrollment, step=node.id, evidence=evidence)
    used, heard = evidence.get("message_id"), enrollment.position.get("heard", {})
    heard = {wait: left for wait, ids in heard.items() if wait != node.id and (left := [one for one in ids if one != used])}
    go(turn, turn.put(renew(enrollment, position={**enrollment.position, "heard": heard})), node.next)


def state_holds(turn: Turn, node: Node) -> bool:
    spec = node.step.wait_for
    if spec.milestone:
        return turn.account.milestones.get(spec.milestone, Milestone()).reached_at is not None
    return turn.account.stage == spec.stage if spec.stage else turn.account.health.band == spec.health


def recipients(version: Version, account: Account, enrollment: Enrollment, node: Node) -> tuple[list[Contact], list[tuple[Contact, str]]]:
    """Who gets a step's mail: (those who do, those who would but cannot be reached, with the reason).

    A contact's enrollment mails that contact. An account's mails the members who have one of the roles, in the order of the roles,
    then of joining; `pick: first` takes the first who can be reached, `responder` whoever gave the latest answer. A reminder goes to
    those who got the mail that it reminds of and have not answered or clicked.
    """
    topic = version.topic_of(node)
    wanted = version.recipients_of(node)
    if enrollment.contact is not None:
        members = [account.contacts[enrollment.contact]] if enrollment.contact in account.contacts else []
    else:
        members = [one for one in account.contacts.values() if one.joined_at is not None and _rank(one, wanted.roles) is not None]
        members.sort(key=lambda one: (_rank(one, wanted.roles), one.joined_at, one.key))
    reminds = getattr(node.step, "reminds", None)
    if reminds:
        silent = enrollment.position.get("got", {}).get(reminds, {})
        members = [one for one in account.contacts.values() if one.key in silent]
        members.sort(key=lambda one: one.key)
    elif wanted.pick == "responder":
        answered = (enrollment.position.get("response") or {}).get("contact")
        members = [account.contacts[answered]] if answered in account.contacts else []
    everybody = reminds or wanted.pick != "first" or enrollment.contact is not None
    reached, not_reached, persons = [], [], set()
    for member in members:
        if reason := member.unreachable(topic):
            not_reached.append((member, reason))
        elif member.person not in persons:
            reached.append(member)
            persons.add(member.person)
            if not everybody:
                break
    return reached, not_reached


def _rank(contact: Contact, roles: Sequence[str]) -> int | None:
    if not roles:
        return 0
    return next((index for index, role in enumerate(roles) if role in contact.roles), None)


def do_email(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    version = turn.book.versions[enrollment.version]
    reached, not_reached = recipients(version, turn.account, enrollment, node)
    if enrollment.position.get("kind") != "recipient":
        for contact, reason in not_reached:
            turn.decide("recipient", "no", reason, enrollment=enrollment, step=node.id, contact=contact.key)
    if not reached:
        if node.step.reminds:
            turn.decide("recipient", "no", "nobody_to_remind", enrollment=enrollment, step=node.id)
            over(turn, enrollment, node)
        else:
            wait_for_recipient(turn, enrollment, node, version)
        return
    made = [write(turn, enrollment, node, version, contact) for contact in reached]
    position = {**kept(enrollment), "open": [str(one.id) for one in made]}
    if node.step.repeat:
        position["since"] = enrollment.position.get("since") or turn.now.isoformat()
    if node.reminded:
        got = position.get("got", {})
        position["got"] = {**got, node.id: {**got.get(node.id, {}), **{one.contact: one.occurrence for one in made}}}
    turn.put(renew(enrollment, position=position, due_at=None))


def write(turn: Turn, enrollment: Enrollment, node: Node, version: Version, contact: Contact) -> NewMessage:
    campaign, topic = version.campaign, version.topic_of(node)
    due = turn.now
    ident = message_id(enrollment.id, node.id, enrollment.occurrence, contact.key)
    if campaign.send_window is not None and topic != TRANSACTIONAL:
        window = campaign.send_window
        where, whose = zone_for(turn.account, contact, turn.book.lifecycle.timezone)
        due = next_open(turn.now, window.days, window.opens, window.closes, where, turn.book.lifecycle.jitter, ident)
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


def message_id(enrollment: UUID, step: str, occurrence: int, contact: str) -> UUID:
    """The id of a message: one for a step of an enrollment, its occurrence and a contact (invariant 3)."""
    return hash_id("message", enrollment, step, occurrence, contact)


def wait_for_recipient(turn: Turn, enrollment: Enrollment, node: Node, version: Version) -> None:
    if enrollment.position.get("kind") == "recipient":
        return
    if not version.campaign.recipient_wait:
        turn.decide("recipient", "no", "nobody_reachable", enrollment=enrollment, step=node.id)
        over(turn, enrollment, node)
        return
    until = turn.now + version.campaign.recipient_wait
    turn.decide("recipient", "wait", "nobody_reachable", enrollment=enrollment, step=node.id, evidence={"until": until.isoformat()})
    turn.put(renew(enrollment, position={**enrollment.position, "kind": "recipient"}, due_at=until))


def do_wait(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    spec = node.step.wait
    if spec.span is not None:
        turn.put(renew(enrollment, due_at=turn.now + spec.span))
        return
    contact = turn.account.contacts.get(enrollment.contact or enrollment.entry.get("contact") or "")
    where, whose = zone_for(turn.account, contact, turn.book.lifecycle.timezone)
    if spec.days is not None:
        until(turn, enrollment, node, days_later(turn.now, spec.days, spec.at, where), {"zone": str(where), "zone_of": whose})
        return
    moment = value_of(tuple(spec.until.split(".")), turn.scope(enrollment), turn.book.schema)
    if not isinstance(moment, datetime):
        turn.decide("wait", "no", "moment_missing", enrollment=enrollment, step=node.id, evidence={"path": spec.until})
        past_moment(turn, enrollment, node, spec.if_past)
        return
    moment += spec.offset
    if spec.at is not None:
        moment = at_wall_clock(moment.astimezone(where).date(), spec.at, where)
    if moment > turn.now:
        until(turn, enrollment, node, moment, {"path": spec.until} | ({"zone": str(where), "zone_of": whose} if spec.at else {}))
    else:
        turn.decide("wait", "no", "moment_passed", enrollment=enrollment, step=node.id, evidence={"moment": moment.isoformat()})
        past_moment(turn, enrollment, node, spec.if_past)


def until(turn: Turn, enrollment: Enrollment, node: Node, moment: datetime, evidence: dict[str, Any]) -> None:
    """Waits for a moment of the calendar; the ledger says which, and by whose clock."""
    evidence = {"until": moment.isoformat(), **evidence}
    turn.decide("wait", "wait", "waits_until", enrollment=enrollment, step=node.id, evidence=evidence)
    turn.put(renew(enrollment, due_at=moment))


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
        turn.put(renew(enrollment, due_at=turn.now + node.step.wait_for.timeout + grace))


def do_branch(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    scope = turn.scope(enrollment)
    for number, (condition, step) in enumerate(node.arms):
        if condition is None or condition.test(scope):
            evidence = {"arm": number + 1, "when": condition.source if condition else "else"}
            evidence |= condition.evidence(scope) if condition else {}
            turn.decide("branch", "yes", "branch_taken", enrollment=enrollment, step=node.id, evidence=evidence)
            go(turn, enrollment, step)
            return
    evidence: dict[str, Any] = {"because": []}
    for condition, _ in node.arms:
        read = condition.evidence(scope)
        evidence |= read | {"because": [*evidence["because"], *read["because"]][:BECAUSE]}
    turn.decide("branch", "no", "no_branch_matched", enrollment=enrollment, step=node.id, evidence=evidence)
    go(turn, enrollment, node.next)


def do_split(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    """The arm follows from the subject alone: the same account or contact draws the same one each time."""
    drawn = hash_share("split", enrollment.campaign, node.id, turn.account.key, enrollment.contact)
    edge = 0.0
    name, _, step = node.parts[-1]
    for arm, part, first in node.parts:
        edge += part
        if drawn < edge:
            name, step = arm, first
            break
    turn.decide("split", "yes", "arm_drawn", enrollment=enrollment, step=node.id, evidence={"arm": name})
    arms = {**enrollment.position.get("arms", {}), node.id: name}
    go(turn, turn.put(renew(enrollment, position={**enrollment.position, "arms": arms})), step)


def do_effect(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    """An alert, a task or a webhook: a row for whoever does it. Whoever is held out or in the shadow has it kept instead, and while the
    campaign is paused it waits."""
    scope = turn.scope(enrollment)
    standing = turn.book.standings.get(enrollment.campaign)
    paused = standing is not None and standing.mode == "paused"
    state = "shadow" if enrollment.shadow else "ghosted" if enrollment.held_out else "frozen" if paused else "due"
    turn.effects.append(
        NewEffect(
            id=hash_id("effect", enrollment.id, node.id, enrollment.occurrence, enrollment.contact),
            kind=node.kind,
            enrollment=enrollment.id,
            campaign=enrollment.campaign,
            version=enrollment.version,
            step=node.id,
            occurrence=enrollment.occurrence,
            contact=enrollment.contact,
            spec=spec_of(node),
            values=values(scope, node.reads, turn.book.schema),
            created_at=turn.now,
            state=state,
        )
    )
    if state == "frozen":
        turn.decide("campaign", "wait", "campaign_paused", enrollment=enrollment, step=node.id)
    elif not not_done(turn, enrollment, node):
        turn.decide("effect", "yes", f"{node.kind}_made", enrollment=enrollment, step=node.id)
    over(turn, enrollment, node)


def spec_of(node: Node) -> dict[str, Any]:
    """What the step says, as JSON can carry it; a time to do it by in seconds."""
    spec = getattr(node.step, node.kind).model_dump()
    return spec | ({"due": spec["due"].total_seconds()} if "due" in spec else {})


def not_done(turn: Turn, enrollment: Enrollment, node: Node) -> bool:
    """Says in the ledger why an effect is only kept: shadow or holdout."""
    if enrollment.shadow:
        turn.decide("campaign", "no", "shadow", enrollment=enrollment, step=node.id)
    elif enrollment.held_out:
        turn.decide("holdout", "no", "held_out", enrollment=enrollment, step=node.id)
    return enrollment.shadow or enrollment.held_out


def do_set(turn: Turn, enrollment: Enrollment, node: Node) -> None:
    """Traits, as if the product had said so: by an event, so that they take part in whatever is told later or earlier."""
    contact = enrollment.contact or enrollment.entry.get("contact")
    told: dict[str, dict[str, Any]] = {"account": {}, "contact": {}}
    for path, value in node.step.set.items():
        root, _, trait = path.split(".")
        told[root][trait] = value
    if not not_done(turn, enrollment, node):
        if told["contact"] and contact not in turn.account.contacts:
            turn.decide("effect", "no", "no_contact", enrollment=enrollment, step=node.id)
            told["contact"] = {}
        for root, kind in (("account", "group"), ("contact", "identify")):
            if told[root]:
                whom = contact if root == "contact" else None
                ident = f"set:{enrollment.id}:{node.id}:{enrollment.occurrence}:{root}"
                turn.derive(kind, ident, told[root], cause=turn.event, at=turn.now, contact=whom, kind=kind)
                turn.decide("effect", "yes", "set_made", enrollment=enrollment, step=node.id, evidence={"set": told[root]})
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
    "split": do_split,
    "alert": do_effect,
    "task": do_effect,
    "webhook": do_effect,
    "set": do_set,
    "exit": do_exit,
}
