"""Whether opens and clicks of a person may be recorded (P-06 to P-08, T-05, T-16). Pure.

The mode is the installation's, or that of the contact's country; within it the person's own last word counts.

    off            nothing is tracked, whatever was said
    consent        only after the person said yes
    list_hygiene   only the day of the last open is kept, unless the person said no; for opens alone
    on             unless the person said no
"""

from __future__ import annotations

import re
from typing import Any

from app.rules.lifecycle import Tracking

OFF, CONSENT, HYGIENE, ON = "off", "consent", "list_hygiene", "on"
NOTHING, DAY_ONLY, EVERYTHING = "nothing", "day_only", "everything"
_REGION = re.compile(r"^[A-Za-z]{2,3}(?:[-_][A-Za-z]{4})?[-_]([A-Za-z]{2})(?:[-_]|$)")


def country_of(trait: Any, locale: str | None) -> str | None:
    """The country of a contact as two capital letters: its trait `country`, else the region of its locale (de-AT); None if unknown."""
    if isinstance(trait, str) and re.fullmatch(r"[A-Za-z]{2}", trait.strip()):
        return trait.strip().upper()
    found = _REGION.match(locale or "")
    return found[1].upper() if found else None


def opens_kept(rules: Tracking, country: str | None, said: bool | None) -> str:
    """What may be kept of an open: nothing, day_only or everything. `said` is the person's last word about it, None if there is none."""
    mode = rules.opens_in.get(country or "", rules.opens)
    if mode == OFF or said is False or (mode == CONSENT and said is None):
        return NOTHING
    return DAY_ONLY if mode == HYGIENE else EVERYTHING


def clicks_kept(rules: Tracking, said: bool | None) -> str:
    """What may be kept of a click: nothing or everything."""
    return NOTHING if rules.clicks == OFF or said is False or (rules.clicks == CONSENT and said is None) else EVERYTHING
