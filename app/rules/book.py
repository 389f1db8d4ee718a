"""Definitions ready to run: nested steps as nodes that name their successors, conditions as closures.

A `Book` is everything in force: one lifecycle, all campaigns with their modes, all published versions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from app.rules.conditions import Condition, Getter, Schema, compile_condition, paths_in, reader
from app.rules.definition import MAIL_KINDS, Campaign, WaitForSpec, goal_source, kind_of, walk
from app.rules.facts import Event
from app.rules.lifecycle import Cap, Lifecycle
from app.rules.triggers import ASKED_IN, DateTrigger, InactiveTrigger, UsageTrigger, UtilizationTrigger, asked, listened


@dataclass(frozen=True, slots=True)
class Node:
    """A step with its successors by id. `arms` are (condition or None for else, first step or None for nothing); `parts` are a split's
    (name, share, first step)."""

    id: str
    kind: str
    step: Any
    next: str | None
    arms: tuple[tuple[Condition | None, str | None], ...] = ()
    parts: tuple[tuple[str, float, str | None], ...] = ()
    on_timeout: str | None = None
    event: str | None = None  # what a wait_for listens to
    where: Condition | None = None
    until: Condition | None = None  # of a repeat
    reads: frozenset[str] = frozenset()  # what the texts of an alert, a task or a webhook read
    reminded: bool = False  # whether another step reminds of this one

    @property
    def follows(self) -> tuple[str | None, ...]:
        """Every step that may come right after it."""
        return (self.next, self.on_timeout, *(first for _, first in self.arms), *(first for *_, first in self.parts))


@dataclass(frozen=True, slots=True)
class Version:
    """A published campaign version, ready to be interpreted."""

    id: int
    key: str
    number: int
    campaign: Campaign
    first: str
    nodes: Mapping[str, Node]
    trigger_event: str
    trigger_where: Condition | None
    audience: Condition | None
    exit_when: Condition | None
    goal_when: Condition | None
    waits: tuple[Node, ...]  # the wait_for steps that listen to events, in reading order
    reads: frozenset[str]  # roots that any of its conditions reads

    def topic_of(self, node: Node) -> str:
        return getattr(node.step, "topic", None) or self.campaign.topic

    def recipients_of(self, node: Node) -> Any:
        return getattr(node.step, "recipients", None) or self.campaign.recipients

    def ahead(self, step: str | None) -> frozenset[str]:
        """The steps that may still come after `step`."""
        found: set[str] = set()
        open_ends = [step]
        while open_ends:
            node = self.nodes.get(open_ends.pop() or "")
            for following in node.follows if node else ():
                if following is not None and following not in found:
                    found.add(following)
                    open_ends.append(following)
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a campaign stands now: its row, its mode, and the version that new enrollments enter."""

    id: int
    key: str
    mode: str
    version: int


@dataclass(frozen=True, slots=True)
class MilestoneRule:
    name: str
    where: Condition | None
    expected_within: timedelta | None


@dataclass(frozen=True, slots=True)
class MetricRule:
    name: str
    where: Condition | None
    contacts: bool


@dataclass(frozen=True, slots=True)
class StageRule:
    """`following` is where leaving it leads; None at the end of the way."""

    name: str
    enter_when: Condition | None
    exit_when: Condition | None
    following: str | None
    at_most: timedelta | None
    moves_on: bool


@dataclass(frozen=True, slots=True)
class DateWatch:
    """A field whose dates are watched. It is read once for all the watches: `offsets` are (offset, key of the watch, spec), the smallest
    first, so that whoever looks for the next moment need not look further than that."""

    read: Getter
    of_contacts: bool
    offsets: tuple[tuple[timedelta, str, DateTrigger], ...]


@dataclass(frozen=True, slots=True)
class Watches:
    """What time passing and values changing are watched for: what the triggers of live and shadow campaigns ask, each once, by key."""

    dates: tuple[DateWatch, ...]
    usages: Mapping[str, UsageTrigger]
    utilizations: Mapping[str, UtilizationTrigger]
    inactives: Mapping[str, InactiveTrigger]
    vacancies: Mapping[str, str]  # roles


@dataclass(frozen=True, slots=True)
class Book:
    """Everything in force. Whatever an event may concern is looked up by its name, and for the engine's own events by what they speak
    of (`triggered`), so that the cost of an event does not grow with the number of campaigns."""

    lifecycle: Lifecycle
    schema: Schema
    milestones: Mapping[str, tuple[MilestoneRule, ...]]  # by event name
    milestone_rules: Mapping[str, MilestoneRule]
    expected: tuple[tuple[timedelta, str], ...]  # the milestones with an expected time, the shortest first
    metrics: Mapping[str, tuple[MetricRule, ...]]  # by event name
    stages: Mapping[str, StageRule]
    entering: tuple[StageRule, ...]  # the stages with an `enter_when`
    standings: Mapping[str, Standing]
    versions: Mapping[int, Version]
    watches: Watches
    triggers: Mapping[str, tuple[Version, ...]] = field(default_factory=dict)  # by event name
    asking: Mapping[str, Mapping[str | None, tuple[Version, ...]]] = field(default_factory=dict)  # by event name and what is asked for
    sets_contacts: bool = False  # whether any step changes traits of a contact
    braked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # the sending domains that a brake is on for, with its numbers

    @property
    def first_stage(self) -> str:
        return self.lifecycle.stages[0].name

    def triggered(self, event: Event) -> tuple[Version, ...]:
        """The versions whose trigger the event may be, in the order of their campaigns. Their conditions are still to be tested."""
        by_value = self.asking.get(event.name)
        if by_value is None:
            return self.triggers.get(event.name, ())
        value = event.properties.get(ASKED_IN[event.name])
        return by_value.get(value, by_value[None]) if isinstance(value, str) else by_value[None]

    def transport_of(self, version: int, topic: str) -> str:
        """The name of what carries mail of this version and topic."""
        return self.lifecycle.transport_of(self.versions[version].campaign.sender, topic)

    def caps_for(self, topic: str) -> tuple[Cap, ...]:
        """The caps that a message of `topic` counts under; transactional mail counts under none."""
        if topic == "transactional":
            return ()
        return tuple(cap for cap in self.lifecycle.caps if cap.topic in (None, topic))


def build_book(
    lifecycle: Lifecycle,
    standings: list[Standing],
    versions: Mapping[int, Version],
    braked: Mapping[str, Mapping[str, Any]] | None = None,
) -> Book:
    """The book of `lifecycle` and the published `versions`; `braked` are the sending domains that a brake is on for."""
    schema = lifecycle.schema
    present = [
        versions[standing.version]
        for standing in sorted(standings, key=lambda one: one.key)
        if standing.mode in ("live", "shadow") and standing.version in versions
    ]
    triggers: dict[str, list[Version]] = {}
    for version in present:
        if not version.campaign.trigger.manual:
            triggers.setdefault(version.trigger_event, []).append(version)
    milestones: dict[str, list[MilestoneRule]] = {}
    rules = {}
    for name, spec in lifecycle.milestones.items():
        rules[name] = MilestoneRule(name, _maybe(spec.where, schema), spec.expected_within)
        milestones.setdefault(spec.event, []).append(rules[name])
    metrics: dict[str, list[MetricRule]] = {}
    for name, metric in lifecycle.usage.items():
        metrics.setdefault(metric.event, []).append(MetricRule(name, _maybe(metric.where, schema), metric.contacts))
    following = [stage.name for stage in lifecycle.stages[1:]] + [None]
    stages = {
        stage.name: StageRule(
            stage.name,
            _maybe(stage.enter_when, schema),
            _maybe(stage.exit_when, schema),
            stage.next or after,
            stage.at_most,
            stage.then == "next",
        )
        for stage, after in zip(lifecycle.stages, following, strict=True)
    }
    return Book(
        lifecycle=lifecycle,
        schema=schema,
        milestones={event: tuple(found) for event, found in milestones.items()},
        milestone_rules=rules,
        expected=tuple(sorted(((one.expected_within, one.name) for one in rules.values() if one.expected_within), key=lambda one: one[0])),
        metrics={event: tuple(found) for event, found in metrics.items()},
        stages=stages,
        entering=tuple(rule for rule in stages.values() if rule.enter_when is not None),
        standings={standing.key: standing for standing in standings},
        versions=versions,
        watches=_watches(present, schema),
        triggers={event: tuple(found) for event, found in triggers.items()},
        asking={event: _by_what_is_asked(found) for event, found in triggers.items() if event in ASKED_IN},
        sets_contacts=any(
            path.startswith("contact.")
            for version in versions.values()
            for node in version.nodes.values()
            if node.kind == "set"
            for path in node.step.set
        ),
        braked=braked or {},
    )


def only(book: Book, keys: Collection[str]) -> Book:
    """The book in which these campaigns are live, whatever their mode, and no other enrolls anybody."""
    standings = [replace(one, mode="live" if key in keys else "archived") for key, one in book.standings.items()]
    return build_book(book.lifecycle, standings, book.versions, book.braked)


def with_live(book: Book, keys: Collection[str]) -> Book:
    """The book in which these campaigns are live whatever their mode, and every other is in its own."""
    standings = [replace(one, mode="live") if key in keys else one for key, one in book.standings.items()]
    return build_book(book.lifecycle, standings, book.versions)


def _by_what_is_asked(versions: list[Version]) -> dict[str | None, tuple[Version, ...]]:
    """Under None those that ask for nothing in particular; they stand under every value as well."""
    wanted = {version.id: asked(version.campaign.trigger) for version in versions}
    return {value: tuple(one for one in versions if wanted[one.id] in (None, value)) for value in {None, *wanted.values()}}


def compile_version(id: int, key: str, number: int, campaign: Campaign, schema: Schema) -> Version:
    """The version ready to run. Raises ConditionError for a condition that does not compile (the check finds those first)."""
    order = [step for _, step in walk(campaign.steps)]
    reminded = frozenset(step.reminds for step in order if getattr(step, "reminds", None))
    nodes: dict[str, Node] = {}
    first = _Linker(nodes, schema, reminded).link(campaign.steps, None)
    event, where = listened(campaign.trigger)
    parts = {
        "trigger_where": _maybe(where, schema),
        "audience": _maybe(campaign.audience, schema),
        "exit_when": _maybe(campaign.exit_when, schema),
        "goal_when": _maybe(goal_source(campaign.goal), schema),
    }
    conditions = [*parts.values(), *(arm[0] for node in nodes.values() for arm in node.arms)]
    conditions += [condition for node in nodes.values() for condition in (node.where, node.until)]
    return Version(
        id=id,
        key=key,
        number=number,
        campaign=campaign,
        first=first,
        nodes=nodes,
        trigger_event=event,
        waits=tuple(nodes[step.id] for step in order if nodes[step.id].event),
        reads=frozenset(root for condition in conditions if condition for root in condition.roots),
        **parts,
    )


class _Linker:
    """Makes nodes of steps: each knows what comes next."""

    def __init__(self, nodes: dict[str, Node], schema: Schema, reminded: frozenset[str]):
        self.nodes, self.schema, self.reminded = nodes, schema, reminded

    def link(self, steps: list[Any], after: str | None) -> str:
        """Adds the steps; whatever comes last goes on at `after`. Returns the first step's id."""
        ids = [step.id for step in steps] + [after]
        for index, step in enumerate(steps):
            kind = kind_of(step)
            more = getattr(self, f"_{kind}", self._plain)(step, ids[index + 1])
            self.nodes[step.id] = Node(step.id, kind, step, ids[index + 1], **more)
        return ids[0]

    def _inner(self, steps: list[Any] | None, after: str | None) -> str | None:
        return self.link(steps, after) if steps else after

    def _branch(self, step: Any, after: str | None) -> dict[str, Any]:
        arms = tuple((_maybe(arm.when, self.schema), self._inner(arm.steps or arm.otherwise, after)) for arm in step.branch)
        return {"arms": arms}

    def _split(self, step: Any, after: str | None) -> dict[str, Any]:
        whole = sum(arm.weight for arm in step.split)
        return {"parts": tuple((arm.name, arm.weight / whole, self._inner(arm.steps, after)) for arm in step.split)}

    def _wait_for(self, step: Any, after: str | None) -> dict[str, Any]:
        event, where = _awaited(step.wait_for)
        return {"on_timeout": self._inner(step.on_timeout, after), "event": event, "where": _maybe(where, self.schema)}

    def _plain(self, step: Any, after: str | None) -> dict[str, Any]:
        repeat = getattr(step, "repeat", None)
        return {
            "until": _maybe(repeat.until, self.schema) if repeat else None,
            "reads": frozenset(read for text in texts_of(step) for read in paths_in(text)),
            "reminded": kind_of(step) in MAIL_KINDS and step.id in self.reminded,
        }


def texts_of(step: Any) -> Iterable[str]:
    """The texts with merge tags of an alert, a task or a webhook."""
    kind = kind_of(step)
    if kind == "alert":
        yield step.alert.text
    elif kind == "task":
        yield from (step.task.title, step.task.note)
    elif kind == "webhook":
        yield from (value for value in step.webhook.data.values() if isinstance(value, str))


def _watches(versions: list[Version], schema: Schema) -> Watches:
    specs = [version.campaign.trigger for version in versions]
    return Watches(
        dates=_dates({one.date.key: one.date for one in specs if one.date}, schema),
        usages={one.usage.key: one.usage for one in specs if one.usage},
        utilizations={one.utilization.key: one.utilization for one in specs if one.utilization},
        inactives={one.inactive.key: one.inactive for one in specs if one.inactive},
        vacancies={one.watch: one.role_vacant for one in specs if one.role_vacant},
    )


def _dates(specs: Mapping[str, DateTrigger], schema: Schema) -> tuple[DateWatch, ...]:
    fields: dict[str, list[tuple[timedelta, str, DateTrigger]]] = {}
    for key, spec in specs.items():
        fields.setdefault(spec.field, []).append((spec.offset, key, spec))
    return tuple(
        DateWatch(reader(tuple(field.split(".")), schema), field.startswith("contact."), tuple(sorted(offsets, key=lambda one: one[0])))
        for field, offsets in fields.items()
    )


def _awaited(spec: WaitForSpec) -> tuple[str | None, str | None]:
    """The event that a wait_for listens to; None for the states, which are looked at whenever they change."""
    if spec.event:
        return spec.event, spec.where
    if spec.survey:
        return "nurture.survey_responded", f'event.properties.step == "{spec.survey}"'
    if spec.click:
        return "nurture.email_clicked", f'event.properties.step == "{spec.click}"'
    if spec.reply:
        return "nurture.email_replied", f'event.properties.step == "{spec.reply}"'
    return None, None


def _maybe(source: str | None, schema: Schema) -> Condition | None:
    return compile_condition(source, schema) if source is not None else None
