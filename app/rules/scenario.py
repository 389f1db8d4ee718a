"""What a `tests.yaml` may say: an account, what happens to it, and what a campaign is expected to do about that, at which time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from app.rules.fields import CampaignKey, Duration, Line, Name, Positive, StepId, Strict
from app.rules.timing import at_wall_clock, clock_time, duration
from app.rules.triggers import BANDS

Key = Annotated[str, Field(min_length=1, max_length=100)]
_DATE = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?"
WEEK_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class LocalTime(Strict):
    """A time by the account's own clock. `day` is a weekday, the first one on which `time` is not before the start, or a number: so many
    calendar days after that of the start."""

    day: Annotated[int, Field(ge=0, le=3660)] | Literal[WEEK_DAYS] = Field(  # type: ignore[valid-type]
        description="A weekday, the first one not before the start, or a number of calendar days after the start."
    )
    time: str = Field(pattern=r"^([01]?\d|2[0-3]):[0-5]\d$", description="A time of day by the clock of the account.")

    def after(self, start: datetime, where: ZoneInfo) -> datetime:
        """The moment, for a story that starts at `start` and an account whose clock is that of `where`."""
        first, clock = start.astimezone(where).date(), clock_time(self.time)
        if isinstance(self.day, int):
            return at_wall_clock(first + timedelta(days=self.day), clock, where)
        first += timedelta(days=(WEEK_DAYS.index(self.day) - first.weekday()) % 7)
        found = at_wall_clock(first, clock, where)
        return found if found >= start else at_wall_clock(first + timedelta(days=7), clock, where)


_WHEN = {
    "type": "string",
    "pattern": rf"^((?=\d)(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?|{_DATE})$",
    "description": "So long after the start, such as 2d4h, or a date such as 2026-03-05 09:00.",
    "examples": ["3d", "2d4h", "2026-03-05 09:00"],
}
When = Annotated[
    timedelta | datetime | LocalTime,
    BeforeValidator(lambda value: _when(value)),
    WithJsonSchema({"anyOf": [_WHEN, {name: part for name, part in LocalTime.model_json_schema().items() if name != "title"}]}),
]
Moment = Annotated[
    datetime, WithJsonSchema({"type": "string", "pattern": f"^{_DATE}$", "description": "A date, such as 2026-03-02 09:00 (UTC)."})
]
# Dates in which no clock overflows, and a run that is over soon whatever a campaign repeats.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
LONGEST = timedelta(days=3660)
MONDAY = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
HAPPENINGS = ("track", "group", "identify", "answer", "click", "reply", "bounce", "unsubscribe", "health", "hold", "enroll")
EXPECTATIONS = ("mail", "skip", "alert", "task", "webhook", "ended", "reason", "stage", "milestone", "trait")


class Given(Strict):
    """Who it is about. `account` are the traits that a group event would carry; `contacts` by id, each with the traits of an identify
    event, `roles` among them. A contact without an address gets one at example.com; `email: null` leaves it without. `stage` and
    `milestones` are where the account stands; `suppressions` what is closed to whom: a topic, `all`, `bounced`, `complained`, `manual`."""

    account: dict[str, Any] = {}
    contacts: dict[Key, dict[str, Any]] = {"ada": {"first_name": "Ada", "roles": ["admin"]}}
    stage: Name | None = None
    milestones: list[Name] = []
    suppressions: dict[Key, Annotated[list[Name], Field(min_length=1)]] = {}


class Health(Strict):
    score: Annotated[float, Field(ge=0, le=100)]
    band: Literal[BANDS]  # type: ignore[valid-type]
    previous_score: float | None = None
    previous_band: Literal[BANDS] | None = None  # type: ignore[valid-type]


class Happening(Strict):
    """One thing that happens: an event of the product (`track`, `group`, `identify`), what somebody does with a mail of a step
    (`answer`, `click`, `reply`, `bounce`, `unsubscribe`, `after` it was sent), a `health` that was assessed, a `hold`, an `enroll`ment by
    hand.

    `at` is how long after the start, or a date. `by` is the contact; the first one if none is named."""

    at: When = timedelta(0)
    by: Key | None = None
    track: Line | None = None
    properties: dict[str, Any] = {}
    group: dict[str, Any] | None = None
    identify: dict[str, Any] | None = None
    answer: StepId | None = None
    score: int | None = None
    comment: str | None = None
    click: StepId | None = None
    reply: StepId | None = None
    bounce: StepId | None = None
    unsubscribe: StepId | None = None
    after: Duration = duration("1h")
    health: Health | None = None
    hold: Positive | None = None
    enroll: Literal[True] | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> Happening:
        if sum(getattr(self, kind) is not None for kind in HAPPENINGS) != 1:
            raise ValueError(f"exactly one thing happens: one of {', '.join(HAPPENINGS)}")
        if (self.answer is None) != (self.score is None):
            raise ValueError("an answer has a step and a score: {answer: ask, score: 9}")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in HAPPENINGS if getattr(self, kind) is not None)


class Expectation(Strict):
    """One thing that is expected: a `mail` (or `skip`ped mail) of a step, an `alert`, a `task` or a `webhook` of a step, that it `ended`
    (finished, or the reason it left for), that the ledger gives a `reason`, or what is so in the end (`stage`, `milestone`, `trait`)."""

    mail: StepId | None = None
    skip: StepId | None = None
    alert: StepId | None = None
    task: StepId | None = None
    webhook: StepId | None = None
    ended: Line | None = None
    reason: Line | None = None
    stage: Name | None = None
    milestone: Name | None = None
    trait: dict[str, Any] | None = None
    to: Key | None = None
    at: When | None = None
    subject: str | None = None  # a part of it
    text: str | None = None  # a part of it
    why: Line | None = None  # the reason of a skip

    @model_validator(mode="after")
    def _one_thing(self) -> Expectation:
        if sum(getattr(self, kind) is not None for kind in EXPECTATIONS) != 1:
            raise ValueError(f"an expectation is exactly one of {', '.join(EXPECTATIONS)}")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in EXPECTATIONS if getattr(self, kind) is not None)


class Scenario(Strict):
    """One test. Mails, alerts, tasks and webhooks are compared as a whole: what is not expected must not come. Other campaigns are off,
    unless `along` names them; theirs are not compared."""

    name: Line
    given: Given = Given()
    start: Moment = MONDAY
    events: list[Happening] = []
    along: list[CampaignKey] = []
    until: Positive = duration("365d")
    expect: list[Expectation] = []

    @field_validator("start", mode="before")
    @classmethod
    def _moment(cls, value: Any) -> datetime:
        found = _date(value)
        if found is None:
            raise ValueError(f"{value!r} is not a date; write it like 2026-03-02 09:00")
        return found

    @field_validator("until")
    @classmethod
    def _not_for_ever(cls, value: timedelta) -> timedelta:
        if value > LONGEST:
            raise ValueError(f"a test lasts at most {LONGEST.days}d")
        return value


class Scenarios(Strict):
    """A `tests.yaml`."""

    tests: Annotated[list[Scenario], Field(min_length=1, max_length=500)]


def _when(value: Any) -> Any:
    if isinstance(value, (timedelta, datetime, dict, LocalTime)):
        return value
    if (found := _date(value)) is not None:
        return found
    try:
        return duration(value)
    except ValueError:
        raise ValueError(f'{value!r} is no time; write it like 3d, 2d4h, 2026-03-05 09:00 or {{day: monday, time: "09:00"}}') from None


def _date(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        found = value
    else:
        try:
            found = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            return None
    if found is None:
        return None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if not EARLIEST <= found <= LATEST:
        raise ValueError(f"{value!r} is too far away; dates of tests lie between {EARLIEST.year} and {LATEST.year}")
    return found
