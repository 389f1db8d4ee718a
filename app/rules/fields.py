"""The kinds of values that definition files are made of, and what a problem in one looks like."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import time, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.rules.identity import normalise
from app.rules.timing import clock_time, duration

Duration = Annotated[timedelta, BeforeValidator(duration)]
Positive = Annotated[timedelta, BeforeValidator(lambda value: _positive(duration(value)))]
Clock = Annotated[time, BeforeValidator(clock_time)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
StepId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
CampaignKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}/[A-Za-z0-9_-]{1,100}$")]  # the folder, such as onboarding/first-value
Line = Annotated[str, Field(min_length=1, max_length=500)]
Plain = Annotated[str, Field(pattern=r"^[a-z]+(\.[A-Za-z0-9_]+)+$")]  # a path such as account.renewal_date, without filters
Address = Annotated[Line, BeforeValidator(lambda value: _address(value))]
Website = Annotated[Line, BeforeValidator(lambda value: _website(value))]
Share = Annotated[float, BeforeValidator(lambda value: share(value)), Field(ge=0)]


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
