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

from app.errors import DefinitionError, NotFound, RenderSkip
from app.flow import states
from app.flow.check import Campaigns, Folder, Template, check
from app.flow.compiling import Rendering, render_apart
from app.flow.compose import SCALES, Mail
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


def render(draft: Draft, facts: Mapping[str, Any], base_url: str) -> Mail:
    """The mail with these values, rendered in a process apart as it was compiled (X-04). Raises RenderSkip where a real message would be
    skipped."""
    base = base_url.rstrip("/")
    (found,) = render_apart(
        [rendering(draft, facts, Places(f"{base}/u/sample", f"{base}/p/sample", f"{base}/v/sample", f"{base}/s/sample"))]
    )
    if isinstance(found, RenderSkip):
        raise found
    return found


@dataclass(frozen=True, slots=True)
class Places:
    """Where the links of a draft lead; a score's is the survey's with the score behind a slash."""

    unsubscribe: str
    preferences: str
    view: str
    survey: str
    pixel: str | None = None
    click: str | None = None


def rendering(draft: Draft, facts: Mapping[str, Any], places: Places) -> Rendering:
    brand, name = draft.campaigns.lifecycle.brand, facts.get("account", {}).get("name")
    scale = SCALES[draft.step.survey] if isinstance(draft.step, SurveyStep) else None
    return Rendering(
        path=draft.template.path,
        compiled=draft.template.compiled,
        values=facts,
        brand=brand.model_dump(),
        why=f"You get this email because you use {brand.name}" + (f" at {name}." if name else "."),
        unsubscribe=places.unsubscribe,
        preferences=places.preferences,
        view=places.view,
        scores={score: f"{places.survey}/{score}" for score in range(scale.low, scale.high + 1)} if scale else {},
        pixel=places.pixel,
        click=places.click,
    )
