"""What alerts, tasks and webhooks say: the texts of a step with its merge tags filled in, for people on our side.

Unlike a mail, a notice goes out with a hole: staff must be told even where a value was never set, which is shown as a dash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from app.errors import RenderSkip
from app.flow.composing.filters import one_line, plain
from app.flow.composing.templates import HOLE, Program
from app.rules.facts import Account, Contact, NewEffect

TEXT_LIMIT = 10_000
LINE_LIMIT = 500
SUBJECT_LIMIT = 200

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_TAGS = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_SOLE = re.compile(r"\s*\{\{\s*([a-z_]+(?:\.[A-Za-z0-9_]+)+)\s*\}\}\s*")


def fill(text: str, values: Mapping[str, Any]) -> str:
    """`text` with its merge tags filled in from nested plain `values`; one that is missing, or of a kind that cannot be shown, is a dash.

    Runs in the sandbox of mails (X-02) and never raises: a text that it refuses is given with dashes for its tags, so that somebody is
    told something. At most 10,000 characters; line ends are the text's own, never a value's.
    """
    if "{" in text:
        text = _filled(text, {root: plain(value) for root, value in values.items()})
    return _short(_CONTROLS.sub("", text.replace("\r\n", "\n")), TEXT_LIMIT)


def payload(effect: NewEffect, account: Account, campaign: str) -> dict[str, Any]:
    """What an alert or a webhook carries, as JSON can: to whom, and what. `campaign` is the campaign's name.

    Names are kept as they were when the step came. A channel's address is not in it: it is looked up when it is used, and is a secret.
    """
    return _alert(effect, account, campaign) if effect.kind == "alert" else _webhook(effect, account, campaign)


def notice(to: str, owner: tuple[str | None, str | None], text: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The payload of an alert that says `text`: its first line is the subject, after the account's name if that is not in it. `owner` is
    (name, address); `about` has the keys and names of account, contact and campaign, and the step."""
    text = _short(_CONTROLS.sub("", text.replace("\r\n", "\n")), TEXT_LIMIT)
    first, name = text.strip().partition("\n")[0], about["account_name"] or about["account"]
    return {
        "to": to,
        "owner": {"name": owner[0], "email": owner[1]},
        "subject": _short(one_line(first if name in first else f"{name}: {first}"), SUBJECT_LIMIT),
        "text": text,
        "about": dict(about),
    }


def task(effect: NewEffect, account: Account) -> dict[str, Any]:
    """The columns of a task that its step decides: what, whose, by when, and its state. An account without an owner gives it to nobody."""
    spec = effect.spec
    mine = spec["to"] == "owner"
    return {
        "title": _short(one_line(fill(spec["title"], effect.values)), LINE_LIMIT) or HOLE,
        "note": fill(spec["note"], effect.values),
        "assignee": account.owner_email if mine else spec["to"],
        "assignee_name": account.owner_name if mine else None,
        "due_at": effect.created_at + timedelta(seconds=spec["due"]),
        "state": "open" if effect.state == "due" else effect.state,
    }


def _alert(effect: NewEffect, account: Account, campaign: str) -> dict[str, Any]:
    about = {
        "account": account.key,
        "account_name": account.name,
        "contact": effect.contact,
        "contact_name": _name(account.contacts.get(effect.contact or "")),
        "campaign": effect.campaign,
        "campaign_name": campaign,
        "step": effect.step,
    }
    return notice(effect.spec["to"], (account.owner_name, account.owner_email), fill(effect.spec["text"], effect.values), about)


def _webhook(effect: NewEffect, account: Account, campaign: str) -> dict[str, Any]:
    contact = account.contacts.get(effect.contact or "")
    person = {"email": contact.address, "first_name": contact.first_name, "last_name": contact.last_name} if contact else {}
    data = {
        "account": {
            "id": account.key,
            "name": account.name,
            "stage": account.stage,
            "touch": account.touch,
            "owner": {"name": account.owner_name, "email": account.owner_email},
        },
        "contact": {"id": effect.contact, **person} if effect.contact else None,
        "campaign": {"key": effect.campaign, "name": campaign},
        "step": effect.step,
        "occurrence": effect.occurrence,
        "enrollment": str(effect.enrollment),
        "values": {_CONTROLS.sub("", name): _value(one, effect.values) for name, one in effect.spec["data"].items()},
    }
    return {"to": effect.spec["to"], "body": {"type": "campaign.step", "timestamp": effect.created_at.isoformat(), "data": data}}


def _value(value: Any, values: Mapping[str, Any]) -> Any:
    """A value for a program: a text that is one merge tag and nothing else keeps its kind, and is null where it was never set."""
    if not isinstance(value, str):
        return value
    if not (sole := _SOLE.fullmatch(value)):
        return fill(value, values)
    found: Any = values
    for part in sole[1].split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    found = plain(found)
    return found.isoformat() if isinstance(found, datetime) else found


def _filled(text: str, data: dict[str, Any]) -> str:
    try:
        return _program(text).run(data)
    except (RenderSkip, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return _TAGS.sub(lambda tag: HOLE if tag[0].startswith("{{") else "", text)


@lru_cache(maxsize=1024)
def _program(text: str) -> Program:
    return Program(text, html=False, holes=True)


def _name(contact: Contact | None) -> str | None:
    return (" ".join(name for name in (contact.first_name, contact.last_name) if name) or contact.address) if contact else None


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
