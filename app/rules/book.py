"""Definitions ready to run: nested steps as nodes that name their successors, conditions as closures.

A `Book` is everything in force: one lifecycle, all campaigns with their modes, all published versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from app.rules.conditions import Condition, Schema, compile_condition
from app.rules.definition import Campaign, WaitForSpec, goal_source, kind_of, walk
from app.rules.lifecycle import Lifecycle
from app.rules.triggers import listened


@dataclass(frozen=True, slots=True)
class Node:
    """A step with its successors by id. `arms` are (condition or None for else, first step or None for nothing)."""

    id: str
    kind: str
    step: Any
    next: str | None
    arms: tuple[tuple[Condition | None, str | None], ...] = ()
    on_timeout: str | None = None
    event: str | None = None  # what a wait_for listens to
    where: Condition | None = None


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

    def ahead(self, step: str | None) -> frozenset[str]:
        """The steps that may still come after `step`."""
        found: set[str] = set()
        open_ends = [step]
        while open_ends:
            node = self.nodes.get(open_ends.pop() or "")
            for following in (node.next, node.on_timeout, *(arm for _, arm in node.arms)) if node else ():
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
class StageRule:
    name: str
    exit_when: Condition | None
    following: str | None


@dataclass(frozen=True, slots=True)
class Book:
    """Everything in force. `triggers` and `listens` are looked up by event name, so that the cost of an event does not grow with
    the number of campaigns."""

    lifecycle: Lifecycle
    schema: Schema
    milestones: Mapping[str, tuple[MilestoneRule, ...]]  # by event name
    milestone_rules: Mapping[str, MilestoneRule]
    metrics: Mapping[str, tuple[tuple[str, Condition | None], ...]]  # by event name
    stages: Mapping[str, StageRule]
    standings: Mapping[str, Standing]
    versions: Mapping[int, Version]
    triggers: Mapping[str, tuple[Version, ...]] = field(default_factory=dict)

    @property
    def first_stage(self) -> str:
        return self.lifecycle.stages[0].name


def build_book(lifecycle: Lifecycle, standings: list[Standing], versions: Mapping[int, Version]) -> Book:
    """The book of `lifecycle` and the published `versions`."""
    schema = lifecycle.schema
    triggers: dict[str, list[Version]] = {}
    for standing in sorted(standings, key=lambda one: one.key):
        if standing.mode in ("live", "shadow") and standing.version in versions:
            version = versions[standing.version]
            triggers.setdefault(version.trigger_event, []).append(version)
    milestones: dict[str, list[MilestoneRule]] = {}
    rules = {}
    for name, spec in lifecycle.milestones.items():
        rules[name] = MilestoneRule(name, _maybe(spec.where, schema), spec.expected_within)
        milestones.setdefault(spec.event, []).append(rules[name])
    metrics: dict[str, list[tuple[str, Condition | None]]] = {}
    for name, metric in lifecycle.usage.items():
        metrics.setdefault(metric.event, []).append((name, _maybe(metric.where, schema)))
    following = [stage.name for stage in lifecycle.stages[1:]] + [None]
    stages = {
        stage.name: StageRule(stage.name, _maybe(stage.exit_when, schema), after)
        for stage, after in zip(lifecycle.stages, following, strict=True)
    }
    return Book(
        lifecycle=lifecycle,
        schema=schema,
        milestones={event: tuple(found) for event, found in milestones.items()},
        milestone_rules=rules,
        metrics={event: tuple(found) for event, found in metrics.items()},
        stages=stages,
        standings={standing.key: standing for standing in standings},
        versions=versions,
        triggers={event: tuple(found) for event, found in triggers.items()},
    )


def compile_version(id: int, key: str, number: int, campaign: Campaign, schema: Schema) -> Version:
    """The version ready to run. Raises ConditionError for a condition that does not compile (the check finds those first)."""
    nodes: dict[str, Node] = {}
    first = _link(campaign.steps, None, nodes, schema)
    event, where = listened(campaign.trigger)
    parts = {
        "trigger_where": _maybe(where, schema),
        "audience": _maybe(campaign.audience, schema),
        "exit_when": _maybe(campaign.exit_when, schema),
        "goal_when": _maybe(goal_source(campaign.goal), schema),
    }
    conditions = [*parts.values(), *(arm[0] for node in nodes.values() for arm in node.arms), *(node.where for node in nodes.values())]
    order = [step.id for _, step in walk(campaign.steps)]
    return Version(
        id=id,
        key=key,
        number=number,
        campaign=campaign,
        first=first,
        nodes=nodes,
        trigger_event=event,
        waits=tuple(nodes[step] for step in order if nodes[step].event),
        reads=frozenset(root for condition in conditions if condition for root in condition.roots),
        **parts,
    )


def _link(steps: list[Any], after: str | None, nodes: dict[str, Node], schema: Schema) -> str:
    """Adds the steps to `nodes`; whatever comes last goes on at `after`. Returns the first step's id."""
    ids = [step.id for step in steps] + [after]
    for index, step in enumerate(steps):
        following = ids[index + 1]
        kind = kind_of(step)
        if kind == "branch":
            arms = tuple(
                (
                    _maybe(arm.when, schema),
                    _link(inner, following, nodes, schema) if (inner := arm.steps or arm.otherwise) else following,
                )
                for arm in step.branch
            )
            nodes[step.id] = Node(step.id, kind, step, following, arms=arms)
        elif kind == "wait_for":
            event, where = _listened(step.wait_for)
            late = _link(step.on_timeout, following, nodes, schema) if step.on_timeout else following
            nodes[step.id] = Node(step.id, kind, step, following, on_timeout=late, event=event, where=_maybe(where, schema))
        else:
            nodes[step.id] = Node(step.id, kind, step, following)
    return ids[0]


def _listened(spec: WaitForSpec) -> tuple[str | None, str | None]:
    """The event that a wait_for listens to; None for the states, which are looked at whenever they change."""
    if spec.event:
        return spec.event, spec.where
    if spec.survey:
        return "nurture.survey_responded", f'event.properties.step == "{spec.survey}"'
    if spec.click:
        return "nurture.email_clicked", f'event.properties.step == "{spec.click}"'
    return None, None


def _maybe(source: str | None, schema: Schema) -> Condition | None:
    return compile_condition(source, schema) if source is not None else None
