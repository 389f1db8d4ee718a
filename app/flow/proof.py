"""A mail as a marketer wants to see it before anybody gets it: from the files as they are, with sample or stored values.

Sends nothing, stores nothing, tracks nothing: links lead where they lead, and those of a message are inert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from app.errors import DefinitionError, NotFound
from app.flow import states
from app.flow.check import Campaigns, Folder, Template, check
from app.flow.compose import SCALES, Addresses, Composer, Mail
from app.rules.conditions import values
from app.rules.definition import SurveyStep, walk
from app.rules.facts import Contact, Scope

SAMPLE: Mapping[str, Any] = {
    "account.id": "acct-1",
    "account.name": "Birch & Sons",
    "account.touch": "smb",
    "account.timezone": "Europe/Berlin",
    "account.owner.name": "Jonas Lind",
    "account.owner.email": "jonas@example.com",
    "account.seats": 12,
    "account.revenue": 4800,
    "contact.id": "user-1",
    "contact.email": "mara@example.net",
    "contact.first_name": "Mara",
    "contact.last_name": "Fuchs",
    "contact.roles": ["admin"],
    "contact.timezone": "Europe/Berlin",
    "contact.locale": "en",
    "health.score": 72,
    "health.band": "yellow",
    "response.comment": "The import failed twice.",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A mail of a campaigns folder, ready to be rendered: published or not."""

    campaigns: Campaigns
    folder: Folder
    template: Template

    @property
    def step(self) -> Any:
        return next(step for _, step in walk(self.folder.campaign.steps) if step.id == self.template.step)


def draft(root: Path, campaign: str, step: str, locale: str = "") -> Draft:
    """The mail of `step` in the folder `campaign` (such as onboarding/first-value) below `root`.

    Raises DefinitionError with the problems of that folder (and of what all folders share), NotFound with the names there are.
    """
    campaigns, problems = check(root)
    folder = next((one for one in campaigns.folders if one.key == campaign), None) if campaigns else None
    if folder is None:
        mine = [one for one in problems if one.file.startswith((f"{campaign}/", "brand/", "lifecycle.yaml"))]
        if mine or campaigns is None:
            raise DefinitionError(mine or problems)
        raise NotFound(f"there is no campaign {campaign}; there are: {', '.join(one.key for one in campaigns.folders)}")
    found = next((one for one in folder.templates if one.step == step and one.locale == locale), None)
    if found is None:
        names = ", ".join(one.step + (f" ({one.locale})" if one.locale else "") for one in folder.templates)
        raise NotFound(f"{campaign} has no mail {step}{f' in {locale}' if locale else ''}; its mails are: {names}")
    return Draft(campaigns, folder, found)


def sample_values(draft: Draft, now: datetime) -> dict[str, Any]:
    """Likely values for every path that the mail reads."""
    traits = draft.campaigns.lifecycle.traits
    kinds = {f"{root}.traits.{name}": kind for root in ("account", "contact") for name, kind in getattr(traits, root).items()}
    by_kind = {"text": "sample", "number": 42, "boolean": True, "date": now, "list": ["one", "two"]}
    found: dict[str, Any] = {}
    for read in sorted(draft.template.compiled.reads):
        _put(found, read.split("."), SAMPLE.get(read, by_kind[kinds[read]] if read in kinds else _likely(read, draft, now)))
    return found


def _likely(read: str, draft: Draft, now: datetime) -> Any:
    last = read.rpartition(".")[2]
    if read == "now":
        return now
    if last in ("reached", "overdue"):
        return True
    if last.endswith("_date"):
        return now + timedelta(days=90)
    if last.endswith("_at"):
        return now - timedelta(days=30)
    if read.startswith("usage."):
        return 7
    if read == "response.score":
        return SCALES["nps"].high
    if read == "stage.name":
        return draft.folder.campaign.stage
    return "sample"


def _put(place: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        place = place.setdefault(part, {})
    place[path[-1]] = value


def stored_values(conn: Connection, draft: Draft, account: str, contact: str | None, now: datetime) -> dict[str, Any]:
    """What is known of a stored account and one of its contacts (by default the one whom the campaign would write to first).

    Raises NotFound. Only events and answers, which belong to an enrollment, are sample values.
    """
    reads = draft.template.compiled.reads
    metrics = {read.split(".")[1] for read in reads if read.startswith("usage.")}
    known = states.load(conn, keys=[account], acting=True, metrics=metrics, now=now).get(account)
    if known is None:
        raise NotFound(f"there is no account {account}")
    chosen = known.contacts.get(contact) if contact else _first(known.contacts.values(), draft.folder.campaign.recipients.roles)
    if contact and chosen is None:
        raise NotFound(f"{contact} is not a contact of {account}; there are: {', '.join(sorted(known.contacts)) or 'none'}")
    found = values(Scope(known, now, chosen), reads, draft.campaigns.lifecycle.schema)
    samples = sample_values(draft, now)
    return {**found, **{root: samples[root] for root in ("event", "response", "enrollment") if root in samples}}


def _first(contacts: Iterable[Contact], roles: list[str]) -> Contact | None:
    """The member with the first of the roles; of several the one with the lowest id."""
    ranked = [(next((at for at, role in enumerate(roles) if role in one.roles), len(roles)), one.key, one) for one in contacts]
    return min(ranked, key=lambda one: one[:2])[2] if ranked else None


def render(draft: Draft, facts: Mapping[str, Any], base_url: str, addresses: Addresses | None = None) -> Mail:
    """The mail with these values; its links are inert unless `addresses` are given. Raises RenderSkip where a real message would be
    skipped."""
    brand = draft.campaigns.lifecycle.brand
    base = base_url.rstrip("/")
    addresses = addresses or Addresses(
        unsubscribe=f"{base}/u/sample",
        preferences=f"{base}/p/sample",
        view=f"{base}/v/sample",
        pixel=None,
        clicks=None,
        score=(lambda score: f"{base}/s/sample/{score}") if isinstance(draft.step, SurveyStep) else None,
    )
    name = facts.get("account", {}).get("name")
    why = f"You get this email because you use {brand.name}" + (f" at {name}." if name else ".")
    return Composer().render(draft.template.path, draft.template.compiled, facts, addresses, brand.model_dump(), why)
