"""How much mail a person and an account get: rolling caps over all campaigns, and each step once per person. Pure.

A message that may go as far as the other gates say takes a place; the place counts from that moment, for what was sent, what may have
been sent (unknown) and what was ghosted, and is given back when the message is not sent after all. Shadow messages see all places but
take none from live ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.rules.book import Book, Version
from app.rules.lifecycle import Cap


@dataclass(frozen=True, slots=True)
class Place:
    """What a message takes, or wants. `account` names the account the same way in all places that are compared."""

    message: UUID
    person: str
    account: Any
    topic: str
    campaign: str
    step: str
    shadow: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no place: `no` for good, or `wait` until a moment that the evidence names. `filled_by` are the messages without any of
    which there would be a place."""

    gate: str
    verdict: str
    reason: str
    evidence: dict[str, Any]
    filled_by: tuple[UUID, ...] = ()


def refusal(book: Book, version: Version, wanted: Place, taken: Iterable[Place]) -> Refusal | None:
    """Why the message must not take its place, or None when it may.

    `taken` are the places of the same person or the same account, of any age and in any order; the message's own is left out of
    account. A cap that is full says until when: the moment when one of the places that fill it is old enough.
    """
    others = [one for one in taken if one.message != wanted.message and (wanted.shadow or not one.shadow)]
    if not version.campaign.per_account and (elsewhere := _elsewhere(version, wanted, others)):
        return Refusal("recipient", "no", "already_mailed", {"account": str(elsewhere.account), "at": elsewhere.at.isoformat()})
    full = [(until, cap, places) for cap in book.caps_for(wanted.topic) for until, places in [_full(cap, wanted, others)] if until]
    if not full:
        return None
    until, cap, places = max(full, key=lambda one: one[0])
    latest = places[-1]
    evidence = {
        "per": cap.per,
        "at_most": cap.at_most,
        "within_days": cap.within.total_seconds() / 86400,
        "until": until.isoformat(),
        "lost_to": f"{latest.campaign}/{latest.step}",
    }
    filled_by = tuple(one.message for one in places[-cap.at_most :])
    return Refusal("caps", "wait", "capped", evidence | ({"topic": cap.topic} if cap.topic else {}), filled_by)


def _elsewhere(version: Version, wanted: Place, others: list[Place]) -> Place | None:
    """The place of the same step that the person has at another account; of long ago it does not count where re-entry is allowed."""
    reentry = version.campaign.reentry
    for one in others:
        same = (one.person, one.campaign, one.step) == (wanted.person, wanted.campaign, wanted.step) and one.account != wanted.account
        if same and (reentry == "never" or one.at > wanted.at - reentry.after):
            return one
    return None


def _full(cap: Cap, wanted: Place, others: list[Place]) -> tuple[datetime | None, list[Place]]:
    mine = [
        one
        for one in others
        if (one.person == wanted.person if cap.per == "person" else one.account == wanted.account)
        and (cap.topic is None or one.topic == cap.topic)
        and wanted.at - cap.within < one.at
    ]
    mine.sort(key=lambda one: (one.at, one.message))
    return (mine[-cap.at_most].at + cap.within, mine) if len(mine) >= cap.at_most else (None, mine)
