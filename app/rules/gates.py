"""The gates in their order, each with what it saw: which passed, which was the first that did not, which were never asked.

Verdicts come from the ledger, or from the functions that decide (`rules.entry`, `rules.consent`) asked again; here they are only put
in order, and the gates that passed get their inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from app.rules.book import Book, Node, Version
from app.rules.conditions import Condition, ConditionError, compile_condition
from app.rules.facts import Account, Contact, Enrollment, Event, Scope, hash_share
from app.rules.lifecycle import TRANSACTIONAL
from app.rules.reasons import GATES, gate_name, sentence, span
from app.rules.timing import zone_for
from app.rules.triggers import Trigger

NOT_ASKED = "not asked"
# What is decided on the way is no gate of a mail.
ORDER = tuple(gate for gate in GATES if gate not in ("wait", "wait_for", "branch", "split", "repeat", "effect", "account"))
FAILED = ("no", "wait")


@dataclass(frozen=True, slots=True)
class Line:
    """One gate's answer: `verdict` is yes, no, wait or not asked. `version` is the number of the campaign's version whose rule it was.
    `stored` is False where it was recomputed."""

    gate: str
    verdict: str
    reason: str
    at: datetime | None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    step: str | None = None
    version: int | None = None
    stored: bool = True

    @property
    def gate_name(self) -> str:
        return gate_name(self.gate)

    @property
    def text(self) -> str:
        return sentence(self.reason, self.evidence)


@dataclass(frozen=True, slots=True)
class Look:
    """What the gates looked at: a campaign's version, and all that was known at one moment. `account` None says that this can no longer
    be known. `node` is the mail step in question."""

    book: Book
    version: Version
    at: datetime
    account: Account | None
    contact: Contact | None = None
    event: Event | Mapping[str, Any] | None = None
    enrollment: Enrollment | None = None
    node: Node | None = None
    surveyed_at: datetime | None = None

    @property
    def scope(self) -> Scope:
        position = self.enrollment.position if self.enrollment else {}
        return Scope(self.account, self.at, self.contact, self.event, self.enrollment, position.get("response"))


def ladder(look: Look, failed: Sequence[Line], said: Iterable[Line] = (), *, until: str = "send", early: bool = False) -> tuple[Line, ...]:
    """All gates in order. `failed` are those that said no or not yet; before the first of them every gate passed, after it none was
    asked. `said` are lines of the ledger for gates that passed. Without a failure, gates after `until` were not asked. `early` says that
    the failed gate was asked right after the trigger, whatever its place."""
    shut = {line.gate: line for line in reversed(failed)}
    known = {line.gate: line for line in said if line.verdict == "yes"}
    first = first_failed(failed)
    last = ORDER.index(until)
    found = []
    for place, gate in enumerate(ORDER):
        if gate in shut:
            found.append(shut[gate])
        elif (first is not None and (place > ORDER.index(first.gate) or (early and place > 0))) or (first is None and place > last):
            found.append(Line(gate, NOT_ASKED, "not_asked", None, version=look.version.number, stored=False))
        else:
            found.append(known.get(gate) or _passed(look, gate))
    return tuple(found)


def first_failed(lines: Iterable[Line]) -> Line | None:
    """The first in the order of the gates that said no or not yet."""
    shut = [line for line in lines if line.verdict in FAILED and line.gate in ORDER]
    return min(shut, key=lambda line: ORDER.index(line.gate), default=None)


def _passed(look: Look, gate: str) -> Line:
    reason, evidence = _INPUTS[gate](look)
    step = look.node.id if look.node is not None and gate not in _OF_ENTRY else None
    return Line(gate, "yes", reason, look.at, evidence, step, look.version.number, stored=False)


# What a gate that passed saw -----------------------------------------------------------------------------------------

_Said = tuple[str, Mapping[str, Any]]
_OF_ENTRY = frozenset({"trigger", "campaign", "enrollment", "goal", "exit", "audience"})


def _condition(look: Look, condition: Condition | None, passed: str, want: bool) -> _Said:
    if condition is None:
        return "no_rule", {}
    if look.account is None:
        return passed, {"rule": condition.source}
    evidence = condition.evidence(look.scope)
    # What was known then may have been a little different, within one moment: then the inputs are left out rather than wrong.
    return passed, {"rule": condition.source, **evidence} if condition.test(look.scope) is want else {"rule": condition.source}


def _trigger(look: Look) -> _Said:
    event = look.event
    if event is None:
        return "triggered", {"event": look.version.trigger_event}
    of = event.get if isinstance(event, Mapping) else lambda name: getattr(event, name, None)
    found = {"event": of("name"), "message_id": of("message_id")}
    if look.version.trigger_where is not None and look.account is not None:
        found |= _condition(replace(look, enrollment=None), look.version.trigger_where, "", True)[1]
    return "triggered", found


def _campaign(look: Look) -> _Said:
    standing = look.book.standings.get(look.version.key)
    return "campaign_running", {"mode": standing.mode if standing else None}


def _enrollment(look: Look) -> _Said:
    if look.enrollment is None:
        return "free_to_enter", {
            "reentry": look.version.campaign.reentry if isinstance(look.version.campaign.reentry, str) else "after a while"
        }
    return "enrollment_active", {"entered_at": look.enrollment.entered_at.isoformat()}


def _goal(look: Look) -> _Said:
    goal = look.version.campaign.goal
    if goal is not None and goal.event:
        return "goal_open", {"event": goal.event}
    return _condition(look, look.version.goal_when, "goal_open", False)


def _hold(look: Look) -> _Said:
    if look.node is not None and look.version.topic_of(look.node) == TRANSACTIONAL:
        return "exempt", {"topic": TRANSACTIONAL}
    return "not_held", {}


def _recipient(look: Look) -> _Said:
    wanted = look.version.recipients_of(look.node) if look.node else look.version.campaign.recipients
    return "reachable", {"wanted": list(wanted.roles), "has": sorted(look.contact.roles) if look.contact else []}


def _suppression(look: Look) -> _Said:
    topic = look.version.topic_of(look.node) if look.node else look.version.campaign.topic
    return "not_suppressed", {"topic": topic, "closed": sorted(look.contact.suppressed) if look.contact else []}


def _quarantine(look: Look) -> _Said:
    if look.node is None or look.node.kind != "survey":
        return "no_rule", {}
    asked = look.surveyed_at
    return "not_quarantined", {"asked_at": asked.isoformat() if asked else None}


def _window(look: Look) -> _Said:
    window = look.version.campaign.send_window
    if window is None:
        return "no_rule", {}
    if look.node is not None and look.version.topic_of(look.node) == TRANSACTIONAL:
        return "exempt", {"topic": TRANSACTIONAL}
    if look.account is None:
        return "window_open", {}
    where, whose = zone_for(look.account, look.contact, look.book.lifecycle.timezone)
    return "window_open", {"zone": str(where), "zone_of": whose, "local": look.at.astimezone(where).strftime("%a %H:%M")}


def _caps(look: Look) -> _Said:
    topic = look.version.topic_of(look.node) if look.node else look.version.campaign.topic
    if topic == TRANSACTIONAL:
        return "exempt", {"topic": topic}
    caps = [{"at_most": cap.at_most, "within": span(cap.within), "per": cap.per} for cap in look.book.caps_for(topic)]
    return ("under_caps", {"caps": caps}) if caps else ("no_rule", {})


def _holdout(look: Look) -> _Said:
    holdout = look.version.campaign.holdout
    if not holdout or look.account is None:
        return ("no_rule" if not holdout else "not_held_out"), {}
    return "not_held_out", {"holdout": holdout, "place": round(hash_share("holdout", look.version.key, look.account.key), 4)}


_INPUTS = {
    "trigger": _trigger,
    "campaign": _campaign,
    "enrollment": _enrollment,
    "goal": _goal,
    "exit": lambda look: _condition(look, look.version.exit_when, "exit_open", False),
    "audience": lambda look: _condition(look, look.version.audience, "in_audience", True),
    "hold": _hold,
    "recipient": _recipient,
    "suppression": _suppression,
    "quarantine": _quarantine,
    "window": _window,
    "brake": lambda _: ("no_brake", {}),
    "caps": _caps,
    "render": lambda _: ("rendered", {}),
    "holdout": _holdout,
    "send": lambda _: ("sent", {}),
}


# How near a trigger is that never came -------------------------------------------------------------------------------


def nearness(trigger: Trigger, look: Look) -> list[dict[str, Any]]:
    """What the trigger that never came waits for, held against what is known: as a condition's shortfall. Empty where nothing can be
    said, or where what it waits for holds already (it begins with a change)."""
    source = _equivalent(trigger)
    if source is None or look.account is None:
        return []
    try:
        condition = compile_condition(source, look.book.schema)
    except ConditionError:
        return []
    scope = Scope(look.account, look.at, look.contact)
    return [] if condition.test(scope) else condition.evidence(scope)["because"]


def _equivalent(trigger: Trigger) -> str | None:
    kind = trigger.kind
    if kind == "milestone_overdue":
        return f"milestone.{trigger.milestone_overdue}.overdue"
    if kind == "stage":
        return f'stage.name == "{trigger.stage}"'
    if kind == "stage_overdue":
        return f'stage.name == "{trigger.stage_overdue}"'
    if kind == "health":
        spec = trigger.health
        if spec.band:
            return f'health.band == "{spec.band}"'
        return f"health.score < {spec.below}" if spec.below is not None else f"health.score > {spec.above}"
    if kind == "date":
        days = trigger.date.offset.total_seconds() / 86400
        return f"{trigger.date.field} | days_until <= {-days:g}" if days <= 0 else f"{trigger.date.field} | days_since >= {days:g}"
    if kind == "usage":
        spec = trigger.usage
        change = f"usage.{spec.metric}.change_{spec.window.days}d"
        return f"{change} <= -{spec.drop}" if spec.drop is not None else f"{change} >= {spec.rise}"
    if kind == "utilization":
        above, below = trigger.utilization.above, trigger.utilization.below
        return f"utilization > {above}" if above is not None else f"utilization < {below}"
    return None
