"""What starts an enrollment. Every trigger is sugar for an event name and a condition on the event; some have somebody watch for it.

A watch is what makes an event of time passing or of values changing (`rules.watching`): its key names it in the event's `watch` property.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.rules.fields import CampaignKey, Duration, Line, Name, Plain, Positive, Share, Strict
from app.rules.reasons import span
from app.rules.timing import duration

SCALES = {"nps": (0, 10), "csat": (1, 5), "ces": (1, 7)}
BANDS = ("green", "yellow", "red")
ENROLL_REQUESTED = "nurture.enroll_requested"


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


class HealthTrigger(Strict):
    """The band is entered, or the score crosses a value downwards (`below`) or upwards (`above`)."""

    band: Literal[BANDS] | None = None  # type: ignore[valid-type]
    below: Annotated[float, Field(gt=0, le=100)] | None = None
    above: Annotated[float, Field(ge=0, lt=100)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"band": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> HealthTrigger:
        if sum(one is not None for one in (self.band, self.below, self.above)) != 1:
            raise ValueError("health is a band (green, yellow, red), or {below: 50}, or {above: 80}")
        return self


class DateTrigger(Strict):
    """So long before (negative offset) or after a date of the account or of each contact."""

    field: Plain
    offset: Duration = duration("0d")

    @property
    def key(self) -> str:
        return f"date:{self.field}:{int(self.offset.total_seconds())}"


class UsageTrigger(Strict):
    """A metric of whole days fell or rose by a share against the window before; `at_least` counts in the larger of the two."""

    metric: Name
    drop: Share | None = None
    rise: Share | None = None
    window: Positive = duration("7d")
    at_least: Annotated[int, Field(ge=1)] = 5

    @model_validator(mode="after")
    def _one_kind(self) -> UsageTrigger:
        if (self.drop is None) == (self.rise is None):
            raise ValueError("usage needs a metric and exactly one of drop, rise")
        if self.drop is not None and not 0 < self.drop <= 1:
            raise ValueError("usage.drop is a share up to 100%")
        if self.window.seconds or not 1 <= self.window.days <= 180:
            raise ValueError("usage.window is 1 to 180 whole days, such as 7d")
        return self

    @property
    def key(self) -> str:
        kind, share = ("drop", self.drop) if self.drop is not None else ("rise", self.rise)
        return f"usage:{self.metric}:{kind}:{share:g}:{self.window.days}:{self.at_least}"


class UtilizationTrigger(Strict):
    """The share of seats used by people seen in 30 days crosses a value upwards or downwards."""

    above: Share | None = None
    below: Share | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> UtilizationTrigger:
        if (self.above is None) == (self.below is None):
            raise ValueError("utilization needs exactly one of above, below, such as {above: 90%}")
        return self

    @property
    def key(self) -> str:
        return f"utilization:above:{self.above:g}" if self.above is not None else f"utilization:below:{self.below:g}"


class InactiveTrigger(Strict):
    """A contact (of that role) did nothing for so many days."""

    role: Name | None = None
    days: Annotated[int, Field(ge=1, le=730)]

    @property
    def key(self) -> str:
        return f"inactive:{self.role or '*'}:{self.days}"


class ContactAdded(Strict):
    """Somebody became a member of the account; with `roles`, with one of those."""

    roles: list[Name] = []


class CampaignTrigger(Strict):
    """An enrollment of another campaign met its goal, or ended: through all steps (`finished`), by leaving (`exited`), or either."""

    campaign: CampaignKey
    result: Literal["goal", "finished", "exited", "ended"] = "finished"


KINDS = (
    "event",
    "milestone",
    "milestone_overdue",
    "stage",
    "stage_overdue",
    "health",
    "date",
    "survey",
    "usage",
    "utilization",
    "inactive",
    "role_vacant",
    "contact_added",
    "campaign",
    "manual",
)


class Trigger(Strict):
    """What starts an enrollment. Exactly one kind, and perhaps a further condition on its event."""

    event: Line | None = None
    milestone: Name | None = None
    milestone_overdue: Name | None = None
    stage: Name | None = None
    stage_overdue: Name | None = None
    health: HealthTrigger | None = None
    date: DateTrigger | None = None
    survey: SurveyTrigger | None = None
    usage: UsageTrigger | None = None
    utilization: UtilizationTrigger | None = None
    inactive: InactiveTrigger | None = None
    role_vacant: Name | None = None
    contact_added: ContactAdded | Literal[True] | None = None
    campaign: CampaignTrigger | None = None
    manual: Literal[True] | None = None
    where: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Trigger:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"a trigger needs exactly one of {', '.join(KINDS)}")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def watch(self) -> str | None:
        """The key of what must be watched for it; None where events come by themselves."""
        if self.role_vacant:
            return f"vacant:{self.role_vacant}"
        spec = self.date or self.usage or self.utilization or self.inactive
        return spec.key if spec else None


def listened(trigger: Trigger) -> tuple[str, str | None]:
    """The event that a trigger waits for, and the condition on it."""
    name, condition = _sugar(trigger)
    if trigger.where and condition:
        return name, f"({condition}) and ({trigger.where}\n)"
    return name, trigger.where or condition


# The property in which the engine's own events say what a trigger asks for by name, by event name.
ASKED_IN = {
    "nurture.milestone_reached": "milestone",
    "nurture.milestone_overdue": "milestone",
    "nurture.stage_entered": "stage",
    "nurture.stage_overdue": "stage",
    "nurture.date_reached": "watch",
    "nurture.usage_changed": "watch",
    "nurture.utilization_crossed": "watch",
    "nurture.contact_inactive": "watch",
    "nurture.role_vacant": "watch",
    "nurture.goal_met": "campaign",
    "nurture.campaign_ended": "campaign",
    "nurture.survey_responded": "survey",
}


def asked(trigger: Trigger) -> str | None:
    """What the property of ASKED_IN must be for an event to be the trigger's; None where any event of the name may be."""
    if trigger.campaign:
        return trigger.campaign.campaign
    if trigger.survey:
        return trigger.survey.type
    return trigger.watch or trigger.milestone or trigger.milestone_overdue or trigger.stage or trigger.stage_overdue


def in_words(trigger: Trigger) -> str:
    """What the campaign waits for, as a person would say it."""
    kind = trigger.kind
    if kind == "event":
        return f"the event {trigger.event} comes"
    if kind == "health":
        spec = trigger.health
        if spec.band:
            return f"the health becomes {spec.band}"
        return f"the health score falls below {spec.below:g}" if spec.below is not None else f"the health score rises above {spec.above:g}"
    if kind == "date":
        offset = trigger.date.offset
        when = "it is" if not offset else f"{span(abs(offset))} {'before' if offset < duration('0d') else 'after'}"
        return f"{when} {trigger.date.field}"
    if kind == "survey":
        return "a survey is answered within its range of scores"
    if kind == "usage":
        spec = trigger.usage
        what = f"falls by {spec.drop:.0%}" if spec.drop is not None else f"rises by {spec.rise:.0%}"
        return f"{spec.metric} {what} within {span(spec.window)}"
    if kind == "utilization":
        above, below = trigger.utilization.above, trigger.utilization.below
        return f"more than {above:.0%} of the seats are used" if above is not None else f"less than {below:.0%} of the seats are used"
    if kind == "inactive":
        spec = trigger.inactive
        return f"a contact{f' with the role {spec.role}' if spec.role else ''} is silent for {spec.days} days"
    if kind == "campaign":
        ends = {"goal": "meets its goal", "finished": "is gone through", "exited": "is left", "ended": "ends"}
        return f"the campaign {trigger.campaign.campaign} {ends[trigger.campaign.result]}"
    simple = {
        "milestone": "the milestone {} is reached",
        "milestone_overdue": "the milestone {} falls overdue",
        "stage": "the account enters the stage {}",
        "stage_overdue": "the account has been in the stage {} for too long",
        "role_vacant": "nobody has the role {} any more",
        "contact_added": "somebody joins the account",
        "manual": "somebody enrolls by hand",
    }
    return simple[kind].format(getattr(trigger, kind))


def _sugar(trigger: Trigger) -> tuple[str, str | None]:
    if trigger.watch:
        names = {
            "date": "nurture.date_reached",
            "usage": "nurture.usage_changed",
            "utilization": "nurture.utilization_crossed",
            "inactive": "nurture.contact_inactive",
            "role_vacant": "nurture.role_vacant",
        }
        return names[trigger.kind], f'event.properties.watch == "{trigger.watch}"'
    if trigger.event:
        return trigger.event, None
    if trigger.milestone:
        return "nurture.milestone_reached", f'event.properties.milestone == "{trigger.milestone}"'
    if trigger.milestone_overdue:
        return "nurture.milestone_overdue", f'event.properties.milestone == "{trigger.milestone_overdue}"'
    if trigger.stage:
        return "nurture.stage_entered", f'event.properties.stage == "{trigger.stage}"'
    if trigger.stage_overdue:
        return "nurture.stage_overdue", f'event.properties.stage == "{trigger.stage_overdue}"'
    if trigger.health:
        return "nurture.health_changed", _health(trigger.health)
    if trigger.contact_added:
        roles = getattr(trigger.contact_added, "roles", [])
        return "nurture.contact_added", " or ".join(f'"{role}" in event.properties.roles' for role in roles) or None
    if trigger.campaign:
        spec = trigger.campaign
        if spec.result == "goal":
            return "nurture.goal_met", f'event.properties.campaign == "{spec.campaign}"'
        ended = f'event.properties.campaign == "{spec.campaign}"'
        return "nurture.campaign_ended", ended if spec.result == "ended" else f'{ended} and event.properties.state == "{spec.result}"'
    if trigger.manual:
        return ENROLL_REQUESTED, None
    kind = trigger.survey.type
    low, high = trigger.survey.score or SCALES[kind]
    return (
        "nurture.survey_responded",
        f'event.properties.survey == "{kind}" and event.properties.score >= {low} and event.properties.score <= {high}',
    )


def _health(spec: HealthTrigger) -> str:
    score, before = "event.properties.score", "event.properties.previous_score"
    if spec.band:
        return f'event.properties.band == "{spec.band}" and event.properties.band_changed == true'
    if spec.below is not None:
        return f"{score} < {spec.below:g} and ({before} >= {spec.below:g} or {before} is missing)"
    return f"{score} > {spec.above:g} and ({before} <= {spec.above:g} or {before} is missing)"
