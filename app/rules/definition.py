"""What a campaign's `campaign.yaml` may say. Read strictly: every problem at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import time
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from app.rules.fields import Address, Clock, Days, Duration, Line, Name, Part, Plain, Positive, StepId, Strict
from app.rules.timing import clock_time, duration
from app.rules.triggers import BANDS, Trigger

MODES = ("draft", "shadow", "live", "paused", "archived")
Scalar = str | bool | int | float | None


class Recipients(Strict):
    """Members with one of the roles, in that order: the first who can be reached, all of them, or whoever answered the survey."""

    roles: list[Name] = []
    pick: Literal["first", "all", "responder"] = "first"


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
    days: Days = frozenset(range(7))
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


# The steps -----------------------------------------------------------------------------------------------------------


class WaitSpec(Strict):
    """`3d`, or calendar days with a clock time, or until a moment of the account, at a clock time if one is given."""

    days: Annotated[int, Field(ge=0, le=3650)] | None = None
    at: Clock | None = None
    until: Plain | None = None
    offset: Duration = duration("0d")
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
    health: Literal[BANDS] | None = None  # type: ignore[valid-type]
    event: Line | None = None
    where: str | None = None
    survey: StepId | None = None
    click: StepId | None = None
    reply: StepId | None = None
    timeout: Positive

    @model_validator(mode="after")
    def _one_kind(self) -> WaitForSpec:
        kinds = ("milestone", "stage", "health", "event", "survey", "click", "reply")
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError(f"wait_for needs exactly one of {', '.join(kinds)}")
        return self


class Repeat(Strict):
    """Again every so often, counted from the first time: no drift, and what an outage missed is made up for once."""

    every: Positive
    until: str | None = None
    at_most: Annotated[int, Field(ge=2, le=1000)] = 52


class AlertSpec(Strict):
    """A notice to staff: to the account's owner, to a channel of lifecycle.yaml, or to an address."""

    to: Literal["owner"] | Name | Address = "owner"
    text: Annotated[str, Field(min_length=1, max_length=4000)]


class TaskSpec(Strict):
    """Something for a person to do, with a date to do it by."""

    title: Line
    note: Annotated[str, Field(max_length=4000)] = ""
    to: Literal["owner"] | Address = "owner"
    due: Positive = duration("3d")


class WebhookSpec(Strict):
    """A signed call of a channel of lifecycle.yaml. `data` goes with it, its texts with merge tags filled in."""

    to: Name
    data: dict[str, Scalar] = {}


class Base(Strict):
    id: StepId


class EmailStep(Base):
    """`reminds` names an earlier mail step: this one goes to who got that one and has not answered or clicked."""

    email: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*\.mjml$")]
    subject: Line
    subjects: dict[Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*$")], Line] = {}  # by language
    topic: Name | None = None
    recipients: Recipients | None = None
    reminds: StepId | None = None
    repeat: Repeat | None = None


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


class SplitArm(Strict):
    name: Name
    weight: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    steps: list[Step] = []


class SplitStep(Base):
    split: Annotated[list[SplitArm], Field(min_length=2)]

    @field_validator("split")
    @classmethod
    def _names(cls, arms: list[SplitArm]) -> list[SplitArm]:
        if len({arm.name for arm in arms}) != len(arms):
            raise ValueError("every arm of a split needs a name of its own")
        return arms


class AlertStep(Base):
    alert: AlertSpec
    repeat: Repeat | None = None


class TaskStep(Base):
    task: TaskSpec
    repeat: Repeat | None = None


class WebhookStep(Base):
    webhook: WebhookSpec
    repeat: Repeat | None = None


class SetStep(Base):
    """Traits of the account or of the contact, as if the product had said so."""

    set: Annotated[dict[Annotated[str, Field(pattern=r"^(account|contact)\.traits\.[A-Za-z0-9_]+$")], Scalar], Field(min_length=1)]


class ExitStep(Base):
    exit: Line


STEP_KINDS = ("survey", "email", "wait_for", "wait", "branch", "split", "alert", "task", "webhook", "set", "exit")
MAIL_KINDS = ("email", "survey")


def kind_of(step: Any) -> str | None:
    """The kind of a step as written or as read: one of STEP_KINDS."""
    names = step if isinstance(step, Mapping) else getattr(type(step), "model_fields", {})
    return next((kind for kind in STEP_KINDS if kind in names), None)


Step = Annotated[
    Annotated[SurveyStep, Tag("survey")]
    | Annotated[EmailStep, Tag("email")]
    | Annotated[WaitForStep, Tag("wait_for")]
    | Annotated[WaitStep, Tag("wait")]
    | Annotated[BranchStep, Tag("branch")]
    | Annotated[SplitStep, Tag("split")]
    | Annotated[AlertStep, Tag("alert")]
    | Annotated[TaskStep, Tag("task")]
    | Annotated[WebhookStep, Tag("webhook")]
    | Annotated[SetStep, Tag("set")]
    | Annotated[ExitStep, Tag("exit")],
    Discriminator(
        kind_of,
        custom_error_type="step_kind",
        custom_error_message="a step needs an id and one of email, survey, wait, wait_for, branch, split, alert, task, webhook, set, exit",
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
    per_account: bool = False  # whether a person in several accounts gets a step once for each
    reentry: Literal["never"] | Reentry = "never"
    goal: Goal | None = None
    exit_when: str | None = None
    holdout: Part = 0.0
    send_window: SendWindow | None = None
    sender: str = "default"
    expires: Positive = duration("3d")
    recipient_wait: Duration = duration("3d")
    steps: Annotated[list[Step], Field(min_length=1)]


for _model in (WaitForStep, Arm, BranchStep, SplitArm, SplitStep, Campaign):
    _model.model_rebuild()


def walk(steps: list[Any], place: tuple = ("steps",)) -> Iterator[tuple[tuple, Any]]:
    """Every step, nested ones included, in reading order, with its place in the file."""
    for index, step in enumerate(steps):
        here = (*place, index)
        yield here, step
        for inner, nested in inside(step):
            yield from walk(nested, (*here, *inner))


def inside(step: Any) -> Iterator[tuple[tuple, list[Any]]]:
    """The lists of steps that stand in a step, each with its place in it."""
    if isinstance(step, WaitForStep):
        yield ("on_timeout",), step.on_timeout
    elif isinstance(step, BranchStep):
        for number, arm in enumerate(step.branch):
            yield ("branch", number, "steps" if arm.otherwise is None else "else"), arm.steps or arm.otherwise or []
    elif isinstance(step, SplitStep):
        for number, arm in enumerate(step.split):
            yield ("split", number, "steps"), arm.steps


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
    if campaign.trigger.date:
        yield ("trigger", "date", "field"), campaign.trigger.date.field
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
        if (repeat := getattr(step, "repeat", None)) and repeat.until:
            yield (*place, "repeat", "until"), repeat.until
