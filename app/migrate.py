"""Brings the database to this version's tables, once, whoever comes first, and refuses one that a newer version wrote."""

from __future__ import annotations

import secrets
from datetime import datetime

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from app.config import CODE
from app.db import LOCK_MIGRATION
from app.errors import DatabaseNewer
from app.models import installation, source, token_key

PARTITIONS = 64
OWN_SOURCE = 0


def migrate(engine: Engine, now: datetime, *, partitions: int = PARTITIONS) -> None:
    """Migrates to the head and, in a new database, writes the installation's one row, its own event source and the first token key.

    Safe to call from several processes at once. `partitions` counts only for a new database. Raises DatabaseNewer.
    """
    with engine.begin() as conn:
        conn.execute(text("select pg_advisory_xact_lock(:space, 0)"), {"space": LOCK_MIGRATION})
        refuse_newer(conn)
        command.upgrade(config(conn), "head")
        if conn.execute(installation.select()).first() is None:
            _found(conn, now, partitions)


def refuse_newer(conn: Connection) -> None:
    """Raises DatabaseNewer when the database is at a revision that this version does not know."""
    at = MigrationContext.configure(conn).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config(conn)).walk_revisions()}
    if at is not None and at not in known:
        raise DatabaseNewer(
            f"the database is at revision {at}, which this version does not know: a newer Nurture wrote it. Upgrade Nurture."
        )


def pending(conn: Connection) -> bool | None:
    """Whether the database's tables are older than this version's; None when it has none. Raises DatabaseNewer."""
    refuse_newer(conn)
    at = MigrationContext.configure(conn).get_current_revision()
    return None if at is None else at != ScriptDirectory.from_config(config(conn)).get_current_head()


def config(conn: Connection) -> Config:
    cfg = Config()
    cfg.set_main_option("script_location", str(CODE / "migrations").replace("%", "%%"))
    cfg.attributes["connection"] = conn
    return cfg


def _found(conn: Connection, now: datetime, partitions: int) -> None:
    conn.execute(installation.insert().values(id=1, partitions=partitions, created_at=now))
    conn.execute(source.insert().values(id=OWN_SOURCE, name="nurture"))
    conn.execute(token_key.insert().values(kid=1, secret=secrets.token_bytes(32), created_at=now))
