"""What `lifecycle.yaml` and a campaign's `campaign.yaml` may say. Read strictly: every problem at once, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import time, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from app.rules.conditions import Schema
from app.rules.identity import normalise
from app.rules.timing import clock_time, duration, week_days, zone

Duration = Annotated[timedelta, BeforeValidator(duration)]
Positive = Annotated[timedelta, BeforeValidator(lambda value: _positive(duration(value)))]
Clock = Annotated[time, BeforeValidator(clock_time)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
StepId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Line = Annotated[str, Field(min_length=1, max_length=500)]
Address = Annotated[Line, BeforeValidator(lambda value: _address(value))]
Website = Annotated[Line, BeforeValidator(lambda value: _website(value))]
MODES = ("draft", "shadow", "live", "paused", "archived")
TRAIT_TYPES = ("text", "number", "boolean", "date", "list")
SCALES = {"nps": (0, 10), "csat": (1, 5), "ces": (1, 7)}
TRANSACTIONAL = "transactional"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a definition, with its place and, where there is one, a fix."""

    file: str
    line: int
    column: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message} [{self.rule}]"


# lifecycle.yaml ------------------------------------------------------------------------------------------------------


class Brand(Strict):
    name: Line
    website: Website | None = None
    app_url: Website | None = None
    support_email: Address | None = None
    postal_address: Line
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#2f6f4f"


class Sender(Strict):
    name: Line
    email: Address
    reply_to: Address | None = None


class Topic(Strict):
    name: Line
    description: str = ""


class StageSpec(Strict):
    name: Name
    label: str | None = None
    exit_when: str | None = None


class MilestoneSpec(Strict):
    label: str | None = None
    event: Line
    where: str | None = None
    expected_within: Positive | None = None


class MetricSpec(Strict):
    label: str | None = None
    event: Line
    where: str | None = None


class Traits(Strict):
    account: dict[str, Literal[TRAIT_TYPES]] = {}  # type: ignore[valid-type]
    contact: dict[str, Literal[TRAIT_TYPES]] = {}  # type: ignore[valid-type]


class SurveyRules(Strict):
    quarantine: Positive = timedelta(days=90)
    closes_after: Positive = timedelta(days=30)


class Measure(Strict):
    name: Name
    label: str | None = None
    metric: Line
    worst: float
    best: float
    weight: Annotated[float, Field(gt=0)] = 1.0
    half_life: Positive | None = None

    @model_validator(mode="after")
    def _a_range(self) -> Measure:
        if self.worst == self.best:
            raise ValueError("worst and best must differ; worst is 0 points, best is 100")
        return self


class MeasureGroup(Strict):
    name: Name
    label: str | None = None
    weight: Annotated[float, Field(gt=0)]
    measures: Annotated[list[Measure], Field(min_length=1)]


class HealthModel(Strict):
    minimum_coverage: Annotated[float, Field(ge=0, le=1)] = 0.5
    groups: Annotated[list[MeasureGroup], Field(min_length=1)]


class Lifecycle(Strict):
    """What all campaigns share. The first stage is where every account starts."""

    timezone: str = "UTC"
    brand: Brand
    senders: dict[str, Sender]
    topics: dict[Name, Topic]
    roles: dict[Name, str] = {}
    stages: Annotated[list[StageSpec], Field(min_length=1)]
    milestones: dict[Name, MilestoneSpec] = {}
    traits: Traits = Traits()
    usage: dict[Name, MetricSpec] = {}
    survey: SurveyRules = SurveyRules()
    health: HealthModel | None = None

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        if zone(value) is None:
            raise ValueError(f"{value!r} is not a time zone; write it like Europe/Berlin")
        return value

    @model_validator(mode="after")
    def _names(self) -> Lifecycle:
        if "default" not in self.senders:
            raise ValueError("senders needs one called default")
        if TRANSACTIONAL in self.topics:
            raise ValueError("the topic transactional exists always and has no opt-out; do not declare it")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("stages: every stage needs a name of its own")
        return self

    @property
    def schema(self) -> Schema:
        return Schema(dict(self.traits.account), dict(self.traits.contact), frozenset(self.milestones), frozenset(self.usage))


# campaign.yaml -------------------------------------------------------------------------------------------------------


class SurveyTrigger(Strict):
    """An answer of that kind with a score in that range, both ends included."""

    type: Literal["nps", "csat", "ces"] = "nps"
    score: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _in_scale(self) -> SurveyTrigger:
        low, high = SCALES[self.type]
        if self.score and not low <= self.score[0] <= self.score[1] <= high:
            raise ValueError(f"score is a range within {low} and {high}, such as [{low}, {high - 1}]")
        return self


class Trigger(Strict):
    """What starts an enrollment. Exactly one kind; all are sugar for an event name and a test of its properties."""

    event: Line | None = None
    where: str | None = None
    milestone: Name | None = None
    milestone_overdue: Name | None = None
    stage: Name | None = None
    health: Literal["green", "yellow", "red"] | None = None
    survey: SurveyTrigger | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Trigger:
        kinds = [
            kind for kind in ("event", "milestone", "milestone_overdue", "stage", "health", "survey") if getattr(self, kind) is not None
        ]
        if len(kinds) != 1:
            raise ValueError("a trigger needs exactly one of event, milestone, milestone_overdue, stage, health, survey")
        if self.where is not None and self.event is None:
            raise ValueError("`where` belongs to `event`")
        return self


class Recipients(Strict):
    roles: list[Name] = []
    pick: Literal["first", "all"] = "first"


class Reentry(Strict):
    after: Positive


class Goal(Strict):
    milestone: Name | None = None
    event: Line | None = None
    stage: Name | None = None
    when: str | None = None
    within: Positive | None = None
    then: Literal["exit", "continue"] = "exit"

    @model_validator(mode="after")
    def _one_kind(self) -> Goal:
        if sum(getattr(self, kind) is not None for kind in ("milestone", "event", "stage", "when")) != 1:
            raise ValueError("a goal needs exactly one of milestone, event, stage, when")
        return self


class SendWindow(Strict):
    days: Annotated[frozenset[int], BeforeValidator(week_days)] = frozenset(range(7))
    hours: str = "00:00-24:00"

    @field_validator("hours")
    @classmethod
    def _hours(cls, value: str) -> str:
        opens, _, closes = value.partition("-")
        if clock_time(opens.strip()) == clock_time(closes.strip()):
            raise ValueError("a window that opens and closes at the same time never opens")
        return value

    @property
    def opens(self) -> time:
        return clock_time(self.hours.partition("-")[0].strip())

    @property
    def closes(self) -> time:
        return clock_time(self.hours.partition("-")[2].strip())


class WaitSpec(Strict):
    """`3d`, or calendar days with a clock time, or until a moment of the account."""

    days: Annotated[int, Field(ge=0, le=3650)] | None = None
    at: Clock | None = None
    until: Annotated[str, Field(pattern=r"^[a-z]+(\.[A-Za-z0-9_]+)+$")] | None = None  # a plain path
    offset: Duration = timedelta(0)
    if_past: Literal["continue", "skip", "exit"] | None = None
    span: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"span": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> WaitSpec:
        if sum(one is not None for one in (self.span, self.days, self.until)) != 1:
            raise ValueError('a wait is a duration like 2d, or {days: 2, at: "09:00"}, or {until: account.renewal_date, if_past: skip}')
        if self.until is not None and self.if_past is None:
            raise ValueError("a wait until a moment must say what happens when it has passed: if_past: continue, skip or exit")
        return self


class WaitForSpec(Strict):
    milestone: Name | None = None
    stage: Name | None = None
    health: Literal["green", "yellow", "red"] | None = None
    event: Line | None = None
    where: str | None = None
    survey: StepId | None = None
    click: StepId | None = None
    timeout: Positive

    @model_validator(mode="after")
    def _one_kind(self) -> WaitForSpec:
        if sum(getattr(self, kind) is not None for kind in ("milestone", "stage", "health", "event", "survey", "click")) != 1:
            raise ValueError("wait_for needs exactly one of milestone, stage, health, event, survey, click")
        return self


class Base(Strict):
    id: StepId


class EmailStep(Base):
    email: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*\.mjml$")]
    subject: Line
    topic: Name | None = None


class SurveyStep(EmailStep):
    survey: Literal["nps", "csat", "ces"]
    question: Line


class WaitStep(Base):
    wait: WaitSpec


class WaitForStep(Base):
    wait_for: WaitForSpec
    on_timeout: list[Step] = []


class Arm(Strict):
    when: str | None = None
    steps: list[Step] | None = None
    otherwise: list[Step] | None = Field(default=None, alias="else")

    @model_validator(mode="after")
    def _form(self) -> Arm:
        if (self.when is None) == (self.otherwise is None) or (self.when is not None) != (self.steps is not None):
            raise ValueError("a branch arm is {when: …, steps: […]} or {else: […]}")
        return self


class BranchStep(Base):
    branch: Annotated[list[Arm], Field(min_length=1)]

    @field_validator("branch")
    @classmethod
    def _else_last(cls, arms: list[Arm]) -> list[Arm]:
        if any(arm.otherwise is not None for arm in arms[:-1]):
            raise ValueError("`else` must be the last arm")
        return arms


class ExitStep(Base):
    exit: Line


_KINDS = ("survey", "email", "wait_for", "wait", "branch", "exit")


def kind_of(step: Any) -> str | None:
    """The kind of a step as written or as read: survey, email, wait_for, wait, branch or exit."""
    names = step if isinstance(step, Mapping) else getattr(type(step), "model_fields", {})
    return next((kind for kind in _KINDS if kind in names), None)


Step = Annotated[
    Annotated[SurveyStep, Tag("survey")]
    | Annotated[EmailStep, Tag("email")]
    | Annotated[WaitForStep, Tag("wait_for")]
    | Annotated[WaitStep, Tag("wait")]
    | Annotated[BranchStep, Tag("branch")]
    | Annotated[ExitStep, Tag("exit")],
    Discriminator(
        kind_of,
        custom_error_type="step_kind",
        custom_error_message="a step needs an id and one of email, survey, wait, wait_for, branch, exit",
    ),
]


class Campaign(Strict):
    """A `campaign.yaml`."""

    name: Line
    description: str = ""
    stage: Name
    topic: Name
    mode: Literal[MODES] = "live"  # type: ignore[valid-type]
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    enrolls: Literal["account", "contact"] = "account"
    trigger: Trigger
    audience: str | None = None
    recipients: Recipients = Recipients()
    reentry: Literal["never"] | Reentry = "never"
    goal: Goal | None = None
    exit_when: str | None = None
    holdout: float = 0.0
    send_window: SendWindow | None = None
    sender: str = "default"
    expires: Positive = timedelta(days=3)
    recipient_wait: Duration = timedelta(days=3)
    steps: Annotated[list[Step], Field(min_length=1)]

    @field_validator("holdout", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> float:
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            raise ValueError(f"{value!r} is not a share; write it like 10%")
        return share


for _model in (WaitForStep, Arm, BranchStep, Campaign):
    _model.model_rebuild()


def walk(steps: list[Any], place: tuple = ("steps",)) -> Iterator[tuple[tuple, Any]]:
    """Every step, nested ones included, in reading order, with its place in the file."""
    for index, step in enumerate(steps):
        here = (*place, index)
        yield here, step
        if isinstance(step, WaitForStep):
            yield from walk(step.on_timeout, (*here, "on_timeout"))
        elif isinstance(step, BranchStep):
            for number, arm in enumerate(step.branch):
                inner = "steps" if arm.otherwise is None else "else"
                yield from walk(arm.steps or arm.otherwise or [], (*here, "branch", number, inner))


def goal_source(goal: Goal | None) -> str | None:
    """The condition that says whether the goal is met; None where an event meets it."""
    if goal is None or goal.event:
        return None
    if goal.milestone:
        return f"milestone.{goal.milestone}.reached"
    return f'stage.name == "{goal.stage}"' if goal.stage else goal.when


def conditions_of(campaign: Campaign) -> Iterator[tuple[tuple, str]]:
    """Every condition of the file with its place, for the check."""
    if campaign.trigger.where:
        yield ("trigger", "where"), campaign.trigger.where
    for name in ("audience", "exit_when"):
        if source := getattr(campaign, name):
            yield (name,), source
    if campaign.goal and campaign.goal.when:
        yield ("goal", "when"), campaign.goal.when
    for place, step in walk(campaign.steps):
        if isinstance(step, BranchStep):
            for number, arm in enumerate(step.branch):
                if arm.when is not None:
                    yield (*place, "branch", number, "when"), arm.when
        elif isinstance(step, WaitForStep) and step.wait_for.where:
            yield (*place, "wait_for", "where"), step.wait_for.where
        elif isinstance(step, WaitStep) and step.wait.until:
            yield (*place, "wait", "until"), step.wait.until


def _address(value: Any) -> Any:
    if normalise(value) is None or not str(value).isascii():
        raise ValueError(f"{value!r} is not an address that mail can come from; write it like success@example.com")
    return value


def _website(value: Any) -> Any:
    if not isinstance(value, str) or not re.match(r"https?://[^\s/@]", value):
        raise ValueError(f"{value!r} is not a web address; write it like https://www.example.com/")
    return value


def _positive(span: timedelta) -> timedelta:
    if span <= timedelta(0):
        raise ValueError("a duration here must be longer than nothing")
    return span
