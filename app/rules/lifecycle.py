"""What `lifecycle.yaml` may say: everything that campaigns share."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from app.rules.conditions import Schema
from app.rules.fields import Address, Duration, Line, Misplaced, Name, Positive, Share, Strict, Website, nearest
from app.rules.timing import duration, zone

TRAIT_TYPES = ("text", "number", "boolean", "date", "list")
TRANSACTIONAL = "transactional"
DEFAULT = "default"  # the transport of SMTP_URL

# RFC 5321 4.5.4.1: after four or five days there is nothing left to hope for.
Trying = Annotated[Positive, Field(le=timedelta(days=5))]


class Brand(Strict):
    name: Line
    website: Website | None = None
    app_url: Website | None = None
    support_email: Address | None = None
    postal_address: Annotated[str, Field(min_length=1, max_length=500)]  # of several lines if need be
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#2f6f4f"


class Sender(Strict):
    """Who mail comes from. With `owner`, it comes in the name of the CSM who owns the account, and answers go to them; `name` and
    `email` are for accounts without an owner, and `email` for owners whose address is at another domain."""

    name: Line
    email: Address
    reply_to: Address | None = None
    owner: bool = False
    transport: Name | None = None  # what carries this sender's mail; wins over the topic's

    @property
    def domain(self) -> str:
        """The domain that mail comes from, whoever is the owner."""
        return self.email.rpartition("@")[2].lower()


class Topic(Strict):
    name: Line
    description: str = ""
    transport: Name | None = None  # what carries mail of this topic


class StageSpec(Strict):
    """A lifecycle stage. `exit_when` leads to `next` (by default the stage after it in the list); `enter_when` takes an account in
    from any other stage. After `at_most` the account is overdue in it: an event, and with `then: next` the end of the stage."""

    name: Name
    label: str | None = None
    enter_when: str | None = None
    exit_when: str | None = None
    next: Name | None = None
    at_most: Positive | None = None
    then: Literal["stay", "next"] = "stay"


class MilestoneSpec(Strict):
    label: str | None = None
    event: Line
    where: str | None = None
    expected_within: Positive | None = None


class MetricSpec(Strict):
    """A usage metric: how often `event` came. With `contacts`, it also knows how many different people it came from."""

    label: str | None = None
    event: Line
    where: str | None = None
    contacts: bool = False


class Traits(Strict):
    account: dict[str, Literal[TRAIT_TYPES]] = {}  # type: ignore[valid-type]
    contact: dict[str, Literal[TRAIT_TYPES]] = {}  # type: ignore[valid-type]


class Cap(Strict):
    """At most so many messages per person or per account within a rolling window, over all campaigns; of one topic, or of all but
    transactional mail."""

    topic: Name | None = None
    per: Literal["person", "account"] = "person"
    at_most: Annotated[int, Field(ge=1, le=1000)]
    within: Positive


class ComplaintBrake(Strict):
    """Of what was delivered within 24 hours or 7 days, so many complained. `delivered` is how much makes a rate worth stopping for."""

    warn: Share = 0.001
    pause: Share = 0.003
    delivered: Annotated[int, Field(ge=1)] = 1000

    @model_validator(mode="after")
    def _in_order(self) -> ComplaintBrake:
        if not 0 < self.warn <= self.pause <= 1:
            raise ValueError("warn must be above 0 and not above pause, and pause not above 100%")
        return self


class BounceBrake(Strict):
    """Of a campaign's `first` mails, once there are `after`, so many bounced for good."""

    pause: Share = 0.05
    first: Annotated[int, Field(ge=1, le=100_000)] = 500
    after: Annotated[int, Field(ge=1)] = 50

    @model_validator(mode="after")
    def _in_order(self) -> BounceBrake:
        if not 0 < self.pause <= 1 or self.after > self.first:
            raise ValueError("pause must be above 0 and not above 100%, and after not above first")
        return self


class Brakes(Strict):
    """When mail is stopped by itself. `tell` names the channel by which the operators hear of it."""

    complaints: ComplaintBrake = ComplaintBrake()
    bounces: BounceBrake = BounceBrake()
    tell: Name | None = None


class SurveyRules(Strict):
    quarantine: Positive = duration("90d")
    closes_after: Positive = duration("30d")


class Tracking(Strict):
    """Whether opens and clicks are recorded, see `rules.tracking`. `opens_in` holds the mode of countries that have their own, by their
    two letters. Transactional mail is tracked only where it says so (P-01)."""

    opens: Literal["off", "consent", "list_hygiene", "on"] = "on"
    opens_in: dict[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], Literal["off", "consent", "list_hygiene", "on"]] = {}
    clicks: Literal["off", "consent", "on"] = "on"
    transactional: bool = False


class Retention(Strict):
    """How long things are kept (P-11). What is older is taken away every night."""

    hits: Positive = duration("90d")  # who fetched a link
    networks: Positive = duration("30d")  # the truncated address and the browser of a hit
    rendered: Positive = duration("30d")  # the values a mail was rendered with, and mail in the outbox
    links: Positive = duration("365d")  # rendered destinations of links; those that are the same for everybody work for good
    events: Positive = duration("730d")
    decisions: Positive = duration("365d")
    webhooks: Positive = duration("30d")  # raw bodies of providers' webhooks
    inbound: Positive = duration("30d")  # raw mail that came back


class Sending(Strict):
    """How long mail that is put off is tried again, counted from its first attempt, and how long evidence of an unknown outcome is
    waited for."""

    marketing: Trying = duration("48h")
    transactional: Trying = duration("4h")
    unknown: Trying = duration("6h")


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
    """A `lifecycle.yaml`. The first stage is where every account starts."""

    timezone: str = "UTC"
    brand: Brand
    senders: dict[str, Sender]
    topics: dict[Name, Topic]
    roles: dict[Name, str] = {}
    stages: Annotated[list[StageSpec], Field(min_length=1)]
    milestones: dict[Name, MilestoneSpec] = {}
    traits: Traits = Traits()
    usage: dict[Name, MetricSpec] = {}
    caps: list[Cap] = []
    jitter: Duration = duration("15m")  # how far a send window's opening is spread
    channels: dict[Name, str] = {}  # where alerts and webhooks go; `nurture channels set` gives each its address
    survey: SurveyRules = SurveyRules()
    brakes: Brakes = Brakes()
    tracking: Tracking = Tracking()
    retention: Retention = Retention()
    sending: Sending = Sending()
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
            raise Misplaced("senders needs one called default", ("senders",))
        if TRANSACTIONAL in self.topics:
            raise Misplaced("the topic transactional exists always and has no opt-out; do not declare it", ("topics", TRANSACTIONAL))
        if "owner" in self.channels:
            raise Misplaced("the channel owner exists always; do not declare it", ("channels", "owner"))
        names = [stage.name for stage in self.stages]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise Misplaced(f"the stage {name} is declared twice; every stage needs a name of its own", ("stages", number, "name"))
        for number, stage in enumerate(self.stages):
            if stage.next is not None and (stage.next not in names or stage.next == stage.name):
                others = [name for name in names if name != stage.name]
                problem = f"{stage.name} leads to {stage.next}, which is not another stage; there are: {', '.join(others)}"
                raise Misplaced(problem, ("stages", number, "next"), nearest(stage.next, others))
        for number, cap in enumerate(self.caps):
            if cap.topic is not None and cap.topic not in self.topics:
                problem = f"{cap.topic} is not a topic with an opt-out; there are: {', '.join(self.topics)}"
                raise Misplaced(problem, ("caps", number, "topic"), nearest(cap.topic, self.topics))
        if self.brakes.tell is not None and self.brakes.tell not in self.channels:
            problem = f"{self.brakes.tell} is not a declared channel; there are: {', '.join(self.channels) or 'none'}"
            raise Misplaced(problem, ("brakes", "tell"), nearest(self.brakes.tell, self.channels))
        return self

    def sender_of(self, name: str) -> Sender:
        """The sender of that name; the default one where it is not declared any more."""
        return self.senders.get(name) or self.senders["default"]

    def transport_of(self, sender: str, topic: str) -> str:
        """The name of what carries mail of this sender and topic: the sender's word counts before the topic's."""
        chosen = self.senders.get(sender) or self.senders["default"]
        about = self.topics.get(topic)
        return chosen.transport or (about.transport if about else None) or DEFAULT

    @property
    def transports(self) -> frozenset[str]:
        """Every transport that is named, and the default one."""
        named = {one.transport for one in (*self.senders.values(), *self.topics.values()) if one.transport}
        return frozenset(named | {DEFAULT})

    @property
    def schema(self) -> Schema:
        people = frozenset(name for name, metric in self.usage.items() if metric.contacts)
        return Schema(dict(self.traits.account), dict(self.traits.contact), frozenset(self.milestones), frozenset(self.usage), people)
