"""What alerts, tasks and webhooks say: the texts of a step with its merge tags filled in, for people on our side.

Unlike a mail, a notice goes out with a hole: staff must be told even where a value was never set, which is shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

from app.errors import RenderSkip
from app.flow.composing.filters import plain
from app.flow.composing.templates import Program
from app.rules.facts import Account, NewEffect

HOLE = "–"
HOLES = 50  # in one text


def fill(text: str, values: Mapping[str, Any]) -> str:
    """`text` with its merge tags filled in from nested plain `values`; a missing one is shown as a dash.

    Runs in the sandbox of mails. A text that it refuses, or that cannot be rendered, is given as it stands: nobody is told nothing.
    """
    if "{" not in text:
        return text
    data = {root: plain(value) for root, value in values.items()}
    for _ in range(HOLES):
        try:
            return _program(text).run(data)
        except RenderSkip as skip:
            path = skip.evidence.get("path")
            if not isinstance(path, str) or not _fill_hole(data, path.split(".")):
                return text
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return text
    return text


def payload(effect: NewEffect, account: Account, campaign: str) -> dict[str, Any]:
    """What an alert or a webhook carries, as JSON can: to whom, and what. `campaign` is the campaign's name."""
    about = {
        "account": account.key,
        "account_name": account.name,
        "contact": effect.contact,
        "campaign": effect.campaign,
        "campaign_name": campaign,
        "step": effect.step,
        "occurrence": effect.occurrence,
        "enrollment": str(effect.enrollment),
    }
    if effect.kind == "alert":
        owner = {"owner": {"name": account.owner_name, "email": account.owner_email}} if effect.spec["to"] == "owner" else {}
        return {"to": effect.spec["to"], "text": fill(effect.spec["text"], effect.values), **owner, **about}
    data = {name: fill(value, effect.values) if isinstance(value, str) else value for name, value in effect.spec["data"].items()}
    return {
        "to": effect.spec["to"],
        "body": {"type": "campaign.step", "timestamp": effect.created_at.isoformat(), "data": {**about, **data}},
    }


def task(effect: NewEffect, account: Account) -> dict[str, Any]:
    """The columns of a task that its step decides: what, whose, by when, and its state."""
    spec = effect.spec
    mine = spec["to"] == "owner"
    return {
        "title": fill(spec["title"], effect.values)[:500],
        "note": fill(spec["note"], effect.values),
        "assignee": account.owner_email if mine else spec["to"],
        "assignee_name": account.owner_name if mine else None,
        "due_at": effect.created_at + timedelta(seconds=spec["due"]),
        "state": "open" if effect.state == "due" else effect.state,
    }


@lru_cache(maxsize=1024)
def _program(text: str) -> Program:
    return Program(text, html=False)


def _fill_hole(data: dict[str, Any], path: list[str]) -> bool:
    """Puts a dash at `path`. False where it cannot be put there."""
    place: Any = data
    for part in path[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict) or place.get(path[-1]) is not None:
        return False
    place[path[-1]] = HOLE
    return True
