"""Publishing: a campaigns folder becomes immutable versions, and the book of what is in force is read back.

A published version never changes. Someone inside a campaign stays on the version they entered (invariant 7).
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection, func, literal, select, text

from app.db import LOCK_MIGRATION, insert_rows
from app.errors import DefinitionError, NotFound
from app.flow.audience import blocking, prove
from app.flow.check import Campaigns, Folder, read
from app.flow.weighing import errors, weigh
from app.models import campaign, campaign_change, campaign_version, lifecycle_version, setting, template
from app.rules.book import Book, Standing, Version, build_book, compile_version
from app.rules.conditions import ConditionError, Schema
from app.rules.definition import Campaign
from app.rules.fields import Problem
from app.rules.lifecycle import Lifecycle
from app.rules.moving import Difference, difference, kinds


@dataclass(frozen=True, slots=True)
class Inside:
    """How many are inside a version that new enrollments do not enter any more, and at which step they are."""

    version: int
    step: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing did for one campaign: `new`, `changed`, `unchanged` or `rolled back`, and the version's number.

    `rolled back` says that the folder still has the content that somebody went back from: it stays out of force until the folder changes
    or somebody goes forward again (`flow.versions.roll_back`).

    `before` is the number of the version that new enrollments entered until now, `difference` what changes against it. `inside` says who
    stays on which older version: nobody is moved.
    """

    key: str
    what: str
    number: int
    mode: str
    before: int | None = None
    difference: Difference = Difference()
    inside: tuple[Inside, ...] = ()


def publish(conn: Connection, root: Path, now: datetime) -> list[Published]:
    """Publishes every campaign below `root` whose content changed; new enrollments enter the new versions.

    All or nothing: one wrong file raises DefinitionError with every problem and changes nothing. Campaigns whose folder is gone are
    left as they are. The mode of a campaign that exists already is not touched: going live, pausing and archiving are decisions of
    their own (`flow.steering`).
    """
    return publish_read(conn, read(root), now, root)


def publish_read(conn: Connection, campaigns: Campaigns, now: datetime, root: Path | None = None) -> list[Published]:
    """Publishes campaigns that are read already. `root`, if given, is where problems are looked for in the files."""
    conn.execute(text("select pg_advisory_xact_lock(:space, 1)"), {"space": LOCK_MIGRATION})
    known = {row.key: row for row in conn.execute(select(campaign))}
    _refuse_reused_steps(conn, campaigns, known, root)
    _refuse_holes(conn, campaigns, known, now)
    _publish_lifecycle(conn, campaigns, now)
    done = [_publish_folder(conn, folder, known.get(folder.key), now) for folder in campaigns.folders]
    _reroute(conn)
    inside = inside_older(conn)
    return [replace(one, inside=tuple(inside.get(one.key, ()))) for one in done]


def inside_older(conn: Connection) -> dict[str, list[Inside]]:
    """By campaign: who is inside another version than the one that new enrollments enter, oldest version first."""
    found: dict[str, list[Inside]] = {}
    for key, *values in conn.exec_driver_sql(_INSIDE_OLDER):
        found.setdefault(key, []).append(Inside(*values))
    return found


_INSIDE_OLDER = """
select k.key, v.number, e.step_id, e.count from campaign k join campaign_version v on v.campaign_id = k.id and v.id <> k.version_id
cross join lateral (
    select step_id, count(*) from enrollment where version_id = v.id and state = 'active' group by step_id order by step_id
) e order by k.key, v.number"""


# The book ------------------------------------------------------------------------------------------------------------


def book(conn: Connection) -> Book:
    """What is in force: the newest lifecycle, all campaigns with their modes, the versions that new enrollments enter, and those older
    ones that this process was asked for (`including`). Cached by what is in the database.

    Raises NotFound when nothing has been published yet.
    """
    if known := _books.known(conn, conn.exec_driver_sql(_MARK).scalar_one()):
        return known
    mark, newest, rows = conn.exec_driver_sql(_IN_FORCE).one()
    if newest is None:
        raise NotFound("nothing is published yet: run `nurture publish`")
    return _books.make(conn, mark, newest, rows)


def including(conn: Connection, known: Book, versions: Iterable[int]) -> Book:
    """The book with these versions in it, too: whoever is about to ask the rules about enrollments names their versions first.

    Of many hundred versions only those are compiled that somebody is inside of. Ids that do not exist are left out.
    """
    missing = {version for version in versions if version not in known.versions}
    return _books.widen(conn, known, missing) if missing else known


# One small look at the start of every batch: what it finds is the key of the cached book, one value for any number of campaigns.
_MARK_OF = """
concat((select max(id) from lifecycle_version), ' ',
       (select md5(string_agg(concat_ws(' ', id, key, mode, coalesce(version_id, 0)), ',' order by id)) from campaign), ' ',
       (select string_agg(id::text, ',' order by id) from brake where domain is not null and action = 'pause' and released_at is null))"""
_MARK = f"select {_MARK_OF}"
_IN_FORCE = f"""
select {_MARK_OF}, (select max(id) from lifecycle_version),
       (select coalesce(jsonb_agg(jsonb_build_array(id, key, mode, version_id) order by id), '[]') from campaign)"""


class _Books:
    """The books of this process: one per database, kept until something is published or changes its mode."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: dict[str, tuple[str, int, Book]] = {}

    def known(self, conn: Connection, mark: str) -> Book | None:
        with self.lock:
            kept = self.kept.get(conn.engine.url.render_as_string(hide_password=True))
        return kept[2] if kept is not None and kept[0] == mark else None

    def make(self, conn: Connection, mark: str, lifecycle_id: int, rows: Sequence[Sequence]) -> Book:
        where = conn.engine.url.render_as_string(hide_password=True)
        with self.lock:
            kept = self.kept.get(where)
        definition = conn.execute(select(lifecycle_version.c.definition).where(lifecycle_version.c.id == lifecycle_id)).scalar_one()
        lifecycle = Lifecycle.model_validate(definition)
        standings = [Standing(ident, key, mode, version) for ident, key, mode, version in rows if version is not None]
        wanted = {standing.version for standing in standings}
        # A version is compiled against the lifecycle in force, so a new lifecycle compiles all of them anew.
        same = kept[2].versions if kept and kept[1] == lifecycle_id else {}
        versions = {version: same[version] for version in wanted & same.keys()}
        versions |= _compiled(conn, wanted - versions.keys(), lifecycle.schema)
        made = build_book(lifecycle, standings, versions, dict(map(tuple, conn.exec_driver_sql(_BRAKES_ON))))
        with self.lock:
            self.kept[where] = (mark, lifecycle_id, made)
        return made

    def widen(self, conn: Connection, known: Book, missing: set[int]) -> Book:
        versions = {**known.versions, **_compiled(conn, missing, known.schema)}
        wider = build_book(known.lifecycle, list(known.standings.values()), versions, known.braked)
        where = conn.engine.url.render_as_string(hide_password=True)
        with self.lock:
            kept = self.kept.get(where)
            if kept is not None and kept[2] is known:
                self.kept[where] = (kept[0], kept[1], wider)
        return wider


_books = _Books()


_BRAKES_ON = "select domain, numbers from brake where domain is not null and action = 'pause' and released_at is null"


def _compiled(conn: Connection, wanted: Iterable[int], schema: Schema) -> dict[int, Version]:
    found: dict[int, Version] = {}
    rows = conn.exec_driver_sql(_DEFINITIONS, {"ids": list(wanted)}).all() if wanted else ()
    ever: Schema | None = None
    for ident, key, number, definition in rows:
        about = (ident, key, number, Campaign.model_validate(definition))
        try:
            found[ident] = compile_version(*about, schema)
        except ConditionError:
            # The newest lifecycle has lost a name that this version reads. Whoever is inside goes on with what the name meant.
            ever = ever or _ever_declared(conn)
            found[ident] = compile_version(*about, ever)
    return found


_DEFINITIONS = """
select v.id, k.key, v.number, v.definition from campaign_version v join campaign k on k.id = v.campaign_id where v.id = any(%(ids)s)"""


def _ever_declared(conn: Connection) -> Schema:
    """Every name that any published lifecycle has declared, with its newest type."""
    account, contact, milestones, metrics = {}, {}, set(), set()
    for definition in conn.execute(select(lifecycle_version.c.definition).order_by(lifecycle_version.c.id)).scalars():
        schema = Lifecycle.model_validate(definition).schema
        account |= schema.account_traits
        contact |= schema.contact_traits
        milestones |= schema.milestones
        metrics |= schema.metrics
    return Schema(account, contact, frozenset(milestones), frozenset(metrics))


def _publish_lifecycle(conn: Connection, campaigns: Campaigns, now: datetime) -> None:
    digest = hashlib.sha256(to_json(campaigns.raw_lifecycle)).hexdigest()
    newest = conn.execute(select(lifecycle_version.c.hash).order_by(lifecycle_version.c.id.desc()).limit(1)).scalar()
    if newest == digest:
        return
    # The same content may come back: the newest row is the one in force, so it is written again under a new id.
    conn.execute(lifecycle_version.delete().where(lifecycle_version.c.hash == digest))
    conn.execute(lifecycle_version.insert().values(hash=digest, definition=dict(campaigns.raw_lifecycle), published_at=now))


def _reroute(conn: Connection) -> None:
    """Mail that is due and unclaimed goes over the transport that `lifecycle.yaml` says now."""
    rows = conn.exec_driver_sql(_ROUTES).all()
    known = including(conn, book(conn), {row.version_id for row in rows}) if rows else None
    changes = [
        {"version_id": row.version_id, "topic": row.topic, "transport": row.transport, "wanted": wanted}
        for row in rows
        if (wanted := known.transport_of(row.version_id, row.topic)) != row.transport
    ]
    if changes:
        conn.exec_driver_sql(_REROUTE, {"rows": to_json(changes).decode()})


_ROUTES = "select distinct version_id, topic, transport from message where state = 'due'"
_REROUTE = """
update message m set transport = r.wanted
from jsonb_to_recordset(%(rows)s::jsonb) as r(version_id bigint, topic text, transport text, wanted text)
where m.state = 'due' and m.version_id = r.version_id and m.topic = r.topic and m.transport = r.transport"""


def _publish_folder(conn: Connection, folder: Folder, known, now: datetime) -> Published:
    if known is None:
        mode = folder.campaign.mode
        ident = conn.execute(
            campaign.insert().values(key=folder.key, name=folder.campaign.name, mode=mode).returning(campaign.c.id)
        ).scalar_one()
        current = None
    else:
        ident, mode, current = known.id, known.mode, known.version_id
    same = conn.execute(
        select(campaign_version.c.id, campaign_version.c.number).where(
            campaign_version.c.campaign_id == ident, campaign_version.c.hash == folder.hash
        )
    ).first()
    if same is not None and current is not None and went_back_from(conn, folder.key) == folder.hash:
        number = conn.execute(select(campaign_version.c.number).where(campaign_version.c.id == current)).scalar_one()
        return Published(folder.key, "rolled back", number, mode, number)
    version_id, number = same if same is not None else _write_version(conn, folder, ident, now)
    keep_back(conn, folder.key, None)
    conn.execute(campaign.update().where(campaign.c.id == ident).values(version_id=version_id, name=folder.campaign.name))
    if current != version_id:
        remember(conn, ident, now, "publish")
    if current is None:
        return Published(folder.key, "new", number, mode)
    if current == version_id:
        return Published(folder.key, "unchanged", number, mode, number)
    before = conn.execute(select(campaign_version.c.number, campaign_version.c.definition).where(campaign_version.c.id == current)).one()
    changes = difference(before.definition, folder.raw, changed_mails(conn, current, version_id))
    return Published(folder.key, "changed", number, mode, before.number, changes)


def remember(conn: Connection, campaign_id: int, now: datetime, by: str) -> None:
    """Writes down what is in force for the campaign from now on, and who changed it: the past is explained by it."""
    row = select(campaign.c.id, campaign.c.mode, campaign.c.version_id, literal(now), literal(by)).where(campaign.c.id == campaign_id)
    conn.execute(campaign_change.insert().from_select(["campaign_id", "mode", "version_id", "at", "by"], row))


def went_back_from(conn: Connection, key: str) -> str | None:
    """The hash of the content that must not come into force by publishing it as it is, since somebody went back from it."""
    return conn.execute(select(setting.c.value).where(setting.c.name == f"rolled_back:{key}")).scalar()


def keep_back(conn: Connection, key: str, digest: str | None) -> None:
    """Has publishing keep that content out of force; None lets it publish everything again."""
    name = f"rolled_back:{key}"
    conn.execute(setting.delete().where(setting.c.name == name))
    if digest is not None:
        conn.execute(setting.insert().values(name=name, value=digest))


def changed_mails(conn: Connection, old: int, new: int) -> frozenset[str]:
    """The steps of both versions whose mail looks different, in any language: its own words or a block of the brand changed."""
    return frozenset(conn.exec_driver_sql(_CHANGED_MAILS, {"old": old, "new": new}).scalars())


_CHANGED_MAILS = """
with a as (select step_id, locale, md5(html || text) as looks from template where version_id = %(old)s),
     b as (select step_id, locale, md5(html || text) as looks from template where version_id = %(new)s)
select distinct step_id from a full join b using (step_id, locale)
where a.looks is distinct from b.looks and step_id in (select step_id from a) and step_id in (select step_id from b)"""


def _refuse_reused_steps(conn: Connection, campaigns: Campaigns, known: Mapping[str, Any], root: Path | None) -> None:
    """A step id means one thing for ever: what was a mail once may not come back as a wait (invariant 3). Raises DefinitionError."""
    problems: list[Problem] = []
    folders = {known[folder.key].id: folder for folder in campaigns.folders if folder.key in known}
    if not folders:
        return
    given = {ident: kinds(folder.raw) for ident, folder in folders.items()}
    rows = conn.exec_driver_sql(_OLDER, {"ids": list(folders), "hashes": [folder.hash for folder in folders.values()]})
    said: set[tuple[int, str]] = set()
    for ident, number, definition in rows:
        for step, kind in kinds(definition).items():
            now = given[ident].get(step, kind)
            if now != kind and (ident, step) not in said:
                said.add((ident, step))
                file = f"{folders[ident].key}/campaign.yaml"
                line, column = _place(root, file, step)
                message = f"the step id {step} was a step of the kind {kind} in version {number}, so it cannot be one of the kind {now}: "
                problems.append(Problem(file, line, column, "step", f"{message}step ids are never used again; take another"))
    if problems:
        raise DefinitionError(sorted(problems, key=lambda one: (one.file, one.line)))


def _refuse_holes(conn: Connection, campaigns: Campaigns, known: Mapping[str, Any], now: datetime) -> None:
    """What comes into force now must have every value for everybody whom it would write to (`flow.audience`), and be no longer than mail
    programs show (`flow.weighing`). Raises DefinitionError."""
    in_force = set(conn.exec_driver_sql(_IN_FORCE_HASHES).scalars()) if known else set()
    changed = replace(campaigns, folders=tuple(folder for folder in campaigns.folders if folder.hash not in in_force))
    if problems := [*blocking(changed, prove(conn, changed, now)), *errors(weigh(changed, now, conn))]:
        raise DefinitionError(problems)


_IN_FORCE_HASHES = "select v.hash from campaign c join campaign_version v on v.id = c.version_id"
# Content that is in force already was looked at when it was published.
_OLDER = """
select v.campaign_id, v.number, v.definition from campaign_version v
where v.campaign_id = any(%(ids)s)
  and not exists (select from campaign_version s where s.campaign_id = v.campaign_id and s.hash = any(%(hashes)s))
order by v.campaign_id, v.number desc"""


def _place(root: Path | None, file: str, step: str) -> tuple[int, int]:
    """Where in the file the step's id stands, as far as that can be told; else its beginning."""
    if root is not None and (root / file).is_file():
        for number, line in enumerate((root / file).read_text("utf-8").splitlines(), 1):
            if found := re.search(rf"(?<![\w-])id:\s*[\"']?{re.escape(step)}(?![\w-])", line):
                return number, found.start() + 1
    return 1, 1


def _write_version(conn: Connection, folder: Folder, campaign_id: int, now: datetime) -> tuple[int, int]:
    newest = conn.execute(select(func.max(campaign_version.c.number)).where(campaign_version.c.campaign_id == campaign_id)).scalar()
    number = (newest or 0) + 1
    version_id = conn.execute(
        campaign_version.insert()
        .values(campaign_id=campaign_id, number=number, hash=folder.hash, definition=dict(folder.raw), published_at=now)
        .returning(campaign_version.c.id)
    ).scalar_one()
    rows = [
        {
            "version_id": version_id,
            "step_id": one.step,
            "locale": one.locale,
            "path": one.path,
            "source": one.source,
            "subject": one.compiled.subject,
            "html": one.compiled.html,
            "text": one.compiled.text,
            "links": [{"url": link.url, "label": link.label, "track": link.track} for link in one.compiled.links],
            "reads": sorted(one.compiled.reads),
        }
        for one in folder.templates
    ]
    insert_rows(conn, template, rows)
    return version_id, number
