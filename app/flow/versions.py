"""The versions of a campaign: listed, compared, and gone back to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import unified_diff
from functools import cache
from hashlib import sha256
from io import StringIO
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from sqlalchemy import Connection, select

from app.errors import InputError, NotFound
from app.flow.check import Folder
from app.flow.publish import changed_mails, inside_older, keep_back, remember, went_back_from
from app.flow.steering import find_campaign
from app.models import campaign, campaign_version
from app.rules import definition, triggers
from app.rules.moving import Difference, difference


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Which version new enrollments enter again, which one they entered until now, and what that changes."""

    campaign: str
    number: int
    before: int
    difference: Difference
    inside: int


@dataclass(frozen=True, slots=True)
class Texts:
    """A version as text: `files` are its campaign.yaml and templates by name, `named` says which version it is. `looks` is a hash of the
    finished mail by step, into which blocks of the brand go, too."""

    named: str
    files: Mapping[str, str]
    looks: Mapping[str, str]


def list_versions(conn: Connection, key: str) -> list[dict[str, Any]]:
    """The versions of a campaign, the newest first: number, published_at, active (inside now), enrollments (ever), hash, current. Raises
    NotFound."""
    row = find_campaign(conn, key)
    found = conn.exec_driver_sql(_VERSIONS, {"campaign": row.id, "current": row.version_id})
    return [dict(one._mapping) for one in found]


def roll_back(conn: Connection, key: str, now: datetime, number: int | None = None, *, by: str = "command") -> RolledBack:
    """New enrollments enter version `number` from now on, or the one before the present one; nobody inside is moved.

    What the folder says stays out of force until it changes: publishing it for another campaign's sake, or starting up, does not undo a
    decision. The same with the number of before undoes it. Raises NotFound for a version that is not there, InputError for the present one.
    """
    row = find_campaign(conn, key, lock=True)
    found = conn.execute(
        select(campaign_version.c.id, campaign_version.c.number, campaign_version.c.definition, campaign_version.c.hash)
        .where(campaign_version.c.campaign_id == row.id)
        .order_by(campaign_version.c.number)
    ).all()
    present = next(one for one in found if one.id == row.version_id)
    earlier = [one for one in found if one.number < present.number]
    if number is None and not earlier:
        raise InputError(f"version {present.number} is the first: there is nothing to go back to")
    target = earlier[-1] if number is None else next((one for one in found if one.number == number), None)
    if target is None:
        raise NotFound(f"{key} has no version {number}; it has {', '.join(str(one.number) for one in found)}.")
    if target.id == present.id:
        raise InputError(f"new enrollments enter version {target.number} already")
    name = target.definition.get("name") or row.name
    conn.execute(campaign.update().where(campaign.c.id == row.id).values(version_id=target.id, name=name))
    remember(conn, row.id, now, by)
    kept = went_back_from(conn, key) or present.hash
    keep_back(conn, key, None if kept == target.hash else kept)
    inside = sum(one.count for one in inside_older(conn).get(key, ()))
    changes = difference(present.definition, target.definition, changed_mails(conn, present.id, target.id))
    return RolledBack(key, target.number, present.number, changes, inside)


# Comparing -----------------------------------------------------------------------------------------------------------


def texts_of(conn: Connection, key: str, number: int | None = None) -> Texts:
    """A published version (the one in force if no number is given) as text. Raises NotFound."""
    row = find_campaign(conn, key)
    wanted = campaign_version.c.id == row.version_id if number is None else campaign_version.c.number == number
    found = conn.execute(select(campaign_version).where(campaign_version.c.campaign_id == row.id, wanted)).one_or_none()
    if found is None:
        raise NotFound(f"{key} has no version {number}: nurture versions {key}")
    rows = conn.exec_driver_sql(_TEMPLATES, {"version": found.id}).all()
    files = {"campaign.yaml": written(found.definition)} | {path.removeprefix(f"{key}/"): source for path, source, *_ in rows}
    return Texts(f"version {found.number}", files, _looks((step, html, plain) for *_, step, html, plain in rows))


def texts_in(folder: Folder) -> Texts:
    """The folder on disk as text, in the same form."""
    files = {"campaign.yaml": written(folder.raw)}
    files |= {one.path.removeprefix(f"{folder.key}/"): one.source for one in folder.templates}
    return Texts("folder", files, _looks((one.step, one.compiled.html, one.compiled.text) for one in folder.templates))


def _looks(mails: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for step, html, plain in sorted(mails):
        found[step] = sha256("\x1f".join((found.get(step, ""), html, plain)).encode()).hexdigest()
    return found


def rebranded(old: Texts, new: Texts) -> list[str]:
    """The steps of both whose mail looks different though no file of the campaign changed: a block of the brand did."""
    if old.files != new.files:
        return []
    return [step for step, looks in new.looks.items() if old.looks.get(step, looks) != looks]


def unified(old: Texts, new: Texts) -> Iterator[str]:
    """The lines of a unified diff over all files of both; none where they are the same."""
    for name in sorted(old.files.keys() | new.files.keys()):
        before, after = (one.files.get(name, "").splitlines() for one in (old, new))
        yield from unified_diff(before, after, f"{old.named}/{name}", f"{new.named}/{name}", lineterm="")


def written(raw: Mapping[str, Any]) -> str:
    """A campaign.yaml in one fixed form, whatever the order in which its names came: the database keeps none, and comments neither."""
    writer, out = YAML(typ="safe", pure=True), StringIO()
    writer.default_flow_style, writer.sort_base_mapping_type_on_output, writer.width = False, False, 120
    writer.allow_unicode = True
    writer.dump(_ordered(raw), out)
    return out.getvalue()


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        ranks = _ranks()
        names = sorted(value, key=lambda name: (ranks.get(name, len(ranks)), name))
        return {name: _ordered(value[name]) for name in names}
    return [_ordered(one) for one in value] if isinstance(value, (list, tuple)) else value


@cache
def _ranks() -> dict[str, int]:
    """In which order names are written: as the definition's models have them; `id` before all, steps after what they belong to."""
    names: dict[str, None] = {"id": None}
    for module in (definition, triggers):
        models = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, BaseModel)]
        for model in (definition.Campaign, *models):
            names |= {(field.alias or name): None for name, field in model.model_fields.items()}
    for last in ("on_timeout", "steps", "else"):
        names.pop(last, None)
        names[last] = None
    return {name: rank for rank, name in enumerate(names)}


_TEMPLATES = """
select path, source, step_id, html, text from template where version_id = %(version)s order by path, step_id"""
_VERSIONS = """
select v.number, v.published_at, coalesce(e.active, 0) as active, coalesce(e.ever, 0) as enrollments, v.hash, v.id = %(current)s as current
from campaign_version v left join lateral (
    select count(*) filter (where state = 'active') as active, count(*) as ever from enrollment where version_id = v.id
) e on true where v.campaign_id = %(campaign)s order by v.number desc"""
