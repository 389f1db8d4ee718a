"""Lanes: how fast mail may go to one provider over one transport, and what slows or stops it (S-15, S-19). Pure: times are arguments.

A provider is who runs a mailbox, as far as the address tells: a group of domains, or the domain itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

SLOW_FOR = timedelta(minutes=90)
STRIKES = 3  # so many refusals of us, one after another, pause a lane
PAUSED_FOR = timedelta(hours=1)
AFTER_PAUSE = STRIKES - 1  # the first refusal after a pause pauses again
BURST = 0.25  # seconds of unused rate that may be made up for

# Domains by who runs their mailboxes. Country domains are told by their first label: hotmail.fr, outlook.co.uk.
GROUPS: Mapping[str, frozenset[str]] = {
    "google": frozenset({"gmail", "googlemail"}),
    "microsoft": frozenset({"outlook", "hotmail", "live", "msn"}),
    "yahoo": frozenset({"yahoo", "ymail", "rocketmail", "aol", "aim"}),
    "apple": frozenset({"icloud", "me", "mac"}),
}
_ONLY_COM = frozenset({"gmail", "googlemail", "icloud", "me", "mac", "msn", "ymail", "rocketmail", "aim"})
_BY_LABEL = {label: group for group, labels in GROUPS.items() for label in labels}
_COUNTRY = re.compile(r"com|[a-z]{2}|com?\.[a-z]{2}")
# How providers say that they take less from us than we send, not that they will not take this mail.
_REPUTATION = re.compile(
    r"reputation|unusual rate|unsolicited mail|rate.?limited|unexpected volume|user complaints|\bTSS?0\d\b|\b4\.7\.(28|32|650)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Pace:
    """Messages per second and connections at once; None is no limit."""

    rate: float | None = None
    connections: int | None = None

    @property
    def limits(self) -> bool:
        return self.rate is not None or self.connections is not None

    def at_most(self, other: Pace) -> Pace:
        """The narrower of both."""
        return Pace(_least(self.rate, other.rate), _least(self.connections, other.connections))


SLOW = Pace(1 / 60, 1)


@dataclass(frozen=True, slots=True)
class Providers:
    """How one transport tells providers and what it allows each: domains the operator added to a provider, and their limits."""

    paces: Mapping[str, Pace] = field(default_factory=dict)
    domains: Mapping[str, str] = field(default_factory=dict)

    def of(self, address: str) -> str:
        """The provider of an address: a known group's name, one that the operator made, or the domain."""
        domain = address.rpartition("@")[2].lower().rstrip(".")
        return self.domains.get(domain) or group_of(domain) or domain

    def pace(self, provider: str) -> Pace:
        return self.paces.get(provider, Pace())


def group_of(domain: str) -> str | None:
    """The known group that a domain belongs to."""
    label, _, rest = domain.partition(".")
    group = _BY_LABEL.get(label)
    if group is None or not (rest == "com" or (label not in _ONLY_COM and _COUNTRY.fullmatch(rest))):
        return None
    return group


def is_reputation(outcome: str, text: str) -> bool:
    """Whether a refusal for now is about how much or what we send: the lane is slowed then (S-15)."""
    return outcome == "temp" and bool(_REPUTATION.search(text))


def strikes(before: int, refused: Iterable[bool]) -> int:
    """How many refusals of us stand one after another, after these results in their order: True is one, False a message taken."""
    for one in refused:
        before = before + 1 if one else 0
    return before


class Meter:
    """A rate as a generic cell rate algorithm: for each message the moment it may go, no earlier than now.

    Times are seconds of any clock, the same for all calls. A meter begins empty: whoever loses what it knew may not make up for the past.
    """

    def __init__(self, rate: float, now: float):
        self.interval = 1 / rate
        self.ahead = now + BURST + self.interval

    def slot(self, now: float) -> float:
        """When the next message may go."""
        return max(now, self.ahead - BURST)

    def take(self, now: float) -> None:
        self.ahead = max(self.ahead, now) + self.interval

    def pace(self, rate: float) -> None:
        self.interval = 1 / rate


def _least(one: float | None, other: float | None):
    return other if one is None else one if other is None else min(one, other)
