"""Publishing: a campaigns folder becomes immutable versions, and the book of what is in force is read back.

A published version never changes. Someone inside a campaign stays on the version they entered (invariant 7).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic_core import to_json
from sqlalchemy import Connection, func, select, text

from app.db import LOCK_MIGRATION, insert_rows
from app.errors import NotFound
from app.flow.check import Campaigns, Folder, read
from app.models import campaign, campaign_version, lifecycle_version, template
from app.rules.book import Book, Standing, Version, build_book, compile_version
from app.rules.conditions import ConditionError, Schema
from app.rules.definition import Campaign
from app.rules.lifecycle import Lifecycle


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing did for one campaign: `new`, `changed` or `unchanged`, and the version's number."""

    key: str
    what: str
    number: int
    mode: str


def publish(conn: Connection, root: Path, now: datetime) -> list[Published]:
    """Publishes every campaign below `root` whose content changed; new enrollments enter the new versions.

    All or nothing: one wrong file raises DefinitionError with every problem and changes nothing. Campaigns whose folder is gone are
    left as they are. The mode of a campaign that exists already is not touched: going live, pausing and archiving are decisions of
    their own.
    """
    return publish_read(conn, read(root), now)


def publish_read(conn: Connection, campaigns: Campaigns, now: datetime) -> list[Published]:
    """Publishes campaigns that are read already."""
    conn.execute(text("select pg_advisory_xact_lock(:space, 1)"), {"space": LOCK_MIGRATION})
    _publish_lifecycle(conn, campaigns, now)
    known = {row.key: row for row in conn.execute(select(campaign))}
    return [_publish_folder(conn, folder, known.get(folder.key), now) for folder in campaigns.folders]


def book(conn: Connection) -> Book:
    """What is in force: the newest lifecycle, all campaigns with their modes, all versions. Cached by what is in the database.

    Raises NotFound when nothing has been published yet.
    """
    rows = conn.exec_driver_sql(_IN_FORCE).all()
    newest = rows[0][0]
    if newest is None:
        raise NotFound("nothing is published yet: run `nurture publish`")
    return _books.get(conn, newest, tuple(tuple(row[1:]) for row in rows if row[1] is not None))


# One small look at the start of every batch; what it finds is the key of the cached book.
_IN_FORCE = """
select l.newest, c.id, c.key, c.mode, c.version_id
from (select max(id) as newest from lifecycle_version) l left join campaign c on true order by c.id"""


class _Books:
    """The books of this process: one per database, kept until something is published or changes its mode."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: dict[str, tuple[object, Book]] = {}

    def get(self, conn: Connection, lifecycle_id: int, rows: Sequence[tuple]) -> Book:
        where = conn.engine.url.render_as_string(hide_password=True)
        key = (lifecycle_id, tuple(rows))
        with self.lock:
            kept = self.kept.get(where)
            if kept is not None and kept[0] == key:
                return kept[1]
        made = self.make(conn, lifecycle_id, rows, kept)
        with self.lock:
            self.kept[where] = (key, made)
        return made

    def make(self, conn: Connection, lifecycle_id: int, rows: Sequence[tuple], kept: tuple[object, Book] | None) -> Book:
        definition = conn.execute(select(lifecycle_version.c.definition).where(lifecycle_version.c.id == lifecycle_id)).scalar_one()
        lifecycle = Lifecycle.model_validate(definition)
        keys = {row[0]: row[1] for row in rows}
        # A version is compiled against the lifecycle in force, so a new lifecycle compiles all of them anew.
        versions: dict[int, Version] = dict(kept[1].versions) if kept and kept[0][0] == lifecycle_id else {}
        # A campaign published since `rows` were read belongs to the next book.
        missing = select(campaign_version).where(
            campaign_version.c.id.not_in(list(versions)), campaign_version.c.campaign_id.in_(list(keys))
        )
        for row in conn.execute(missing).all():
            found = Campaign.model_validate(row.definition)
            about = (row.id, keys[row.campaign_id], row.number, found)
            try:
                versions[row.id] = compile_version(*about, lifecycle.schema)
            except ConditionError:
                # The newest lifecycle has lost a name that this version reads. Whoever is inside goes on with what the name meant.
                versions[row.id] = compile_version(*about, _ever_declared(conn))
        standings = [Standing(ident, key, mode, version) for ident, key, mode, version in rows if version is not None]
        return build_book(lifecycle, standings, versions)


_books = _Books()


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


def _publish_folder(conn: Connection, folder: Folder, known, now: datetime) -> Published:
    if known is None:
        mode = folder.campaign.mode
        ident = conn.execute(
            campaign.insert().values(key=folder.key, name=folder.campaign.name, mode=mode).returning(campaign.c.id)
        ).scalar_one()
        what = "new"
    else:
        ident, mode, what = known.id, known.mode, "changed"
    same = conn.execute(
        select(campaign_version.c.id, campaign_version.c.number).where(
            campaign_version.c.campaign_id == ident, campaign_version.c.hash == folder.hash
        )
    ).first()
    if same is not None:
        version_id, number = same
        what = "unchanged" if known is not None and known.version_id == version_id else what
    else:
        version_id, number = _write_version(conn, folder, ident, now)
    conn.execute(campaign.update().where(campaign.c.id == ident).values(version_id=version_id, name=folder.campaign.name))
    return Published(folder.key, what, number, mode)


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
