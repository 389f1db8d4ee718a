"""The kinds of values that definition files are made of, and what a problem in one looks like."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import time, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from app.rules.identity import normalise
from app.rules.timing import clock_time, duration, week_days

_SPAN = r"(\d{1,4}w)?(\d{1,5}d)?(\d{1,5}h)?(\d{1,6}m)?(\d{1,7}s)?$"


def _text(pattern: str, says: str, *examples: str) -> WithJsonSchema:
    """How an editor is told of a value that is text in the file and something else to us."""
    return WithJsonSchema({"type": "string", "pattern": pattern, "description": says, "examples": list(examples)})


Duration = Annotated[
    timedelta,
    BeforeValidator(duration),
    _text(rf"^-?(?=\d){_SPAN}", "A duration such as 3d, 36h, 90m or 2d12h; -90d lies before.", "3d", "36h", "-90d"),
]
Positive = Annotated[
    timedelta,
    BeforeValidator(lambda value: _positive(duration(value))),
    _text(rf"^(?=.*[1-9]){_SPAN}", "A duration longer than nothing, such as 3d, 36h, 90m or 2d12h.", "3d", "36h", "2d12h"),
]
Clock = Annotated[
    time, BeforeValidator(clock_time), _text(r"^(([01]?\d|2[0-3]):[0-5]\d|24:00)$", 'A time of day, in quotes, such as "09:00".', "09:00")
]
Days = Annotated[
    frozenset[int],
    BeforeValidator(week_days),
    _text(r"^\s*[A-Za-z]{3,9}\s*([-,]\s*[A-Za-z]{3,9}\s*)*$", "Days of the week, such as mon-fri or mon,wed.", "mon-fri", "mon,wed"),
]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
StepId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
CampaignKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}/[A-Za-z0-9_-]{1,100}$")]  # the folder, such as onboarding/first-value
Line = Annotated[str, BeforeValidator(lambda value: _line(value)), Field(min_length=1, max_length=500)]
Plain = Annotated[str, Field(pattern=r"^[a-z]+(\.[A-Za-z0-9_]+)+$")]  # a path such as account.renewal_date, without filters
Address = Annotated[Line, BeforeValidator(lambda value: _address(value))]
Website = Annotated[Line, BeforeValidator(lambda value: _website(value))]
_SHARE = WithJsonSchema(
    {
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*%?$"}],
        "description": "A share, such as 10% or 0.1.",
    }
)
Share = Annotated[float, BeforeValidator(lambda value: share(value)), Field(ge=0), _SHARE]
Part = Annotated[float, BeforeValidator(lambda value: _part(value)), _SHARE]  # a share that is less than everything

# What a text must look like, in words.
FORMS = {
    r"^[a-z][a-z0-9_]{0,62}$": "small letters, digits and _, a letter first",
    r"^[a-z][a-z0-9_-]{0,62}$": "small letters, digits, - and _, a letter first",
    r"^[A-Za-z0-9_-]{1,100}/[A-Za-z0-9_-]{1,100}$": "the campaign's folder, such as onboarding/first-value",
    r"^[a-z]+(\.[A-Za-z0-9_]+)+$": "one value without filters, such as account.renewal_date",
    r"^[a-z0-9][a-z0-9_-]*\.mjml$": "a file beside campaign.yaml, such as welcome.mjml",
    r"^#[0-9a-fA-F]{6}$": 'a color in quotes, such as "#2f6f4f"',
    r"^(account|contact)\.traits\.[A-Za-z0-9_]+$": "a trait, such as account.traits.plan",
    r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*$": "a language, such as de or pt-BR",
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a definition, with its place, both counted from 1. `fix` is the nearest right name, if there is one.

    A `severity` of warning says that it works, and hardly as it was meant.
    """

    file: str
    line: int
    column: int
    rule: str
    message: str
    fix: str | None = None
    severity: str = "error"

    def __str__(self) -> str:
        said = f"warning: {self.message}" if self.severity == "warning" else self.message
        fix = f" (did you mean {self.fix}?)" if self.fix else ""
        return f"{_shown(self.file)}:{self.line}:{self.column}: {_shown(said)}{fix} [{self.rule}]"


class Misplaced(ValueError):
    """A problem that stands deeper than the model that finds it: `place` leads there. `fix` is the nearest right name."""

    def __init__(self, problem: str, place: tuple, fix: str | None = None):
        super().__init__(problem)
        self.place = place
        self.fix = fix


def nearest(name: object, names: Iterable[str]) -> str | None:
    """The one of `names` that was most likely meant, if any is near; of several equally near, the one that begins alike."""
    word = str(name)[:100]
    by_lower = {one.lower(): one for one in names}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=3, cutoff=0.6)
    if not found:
        return None

    def likeness(one: str) -> tuple[float, int]:
        alike = next((at for at, (mine, its) in enumerate(zip(word.lower(), one, strict=False)) if mine != its), len(one))
        return difflib.SequenceMatcher(None, one, word.lower()).ratio(), alike

    return by_lower[max(found, key=likeness)]


def share(value: Any) -> float:
    """`10%` or `0.1` as 0.1. Raises ValueError that shows the form."""
    text = str(value).strip()
    try:
        found = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e6:
        raise ValueError(f"{value!r} is not a share; write it like 10%")
    return found


def _part(value: Any) -> float:
    found = share(value)
    if found >= 1:
        raise ValueError(f"{value!r} would hold everybody out; write it like 10%")
    return found


def _shown(text: str) -> str:
    """`text` on one line, whatever is in it."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def _line(value: Any) -> Any:
    """One line of text, as names and subjects are: they go into headers (M-09)."""
    if isinstance(value, str):
        value = value.strip()
        if found := re.search(r"[\x00-\x1f\x7f\u2028\u2029]", value):
            raise ValueError(f"is one line of text; it holds the character {found.group()!r}")
    return value


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
