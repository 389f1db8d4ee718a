"""`nurture backup` and `nurture restore`: one file with everything that an installation cannot make again, and the way back.

A backup is a tar of `manifest.json`, `database.dump` (PostgreSQL's custom format) and, where the home keeps it, `secret`, without which
sealed addresses and keys cannot be opened. The keys of the links in mails are in the database, so links keep working. Redis holds nothing
whose loss matters; campaigns as published are in the database, their folder is yours to keep.

A backup is the past: mail that went out after it is due again in it. So a restored installation comes back with its live campaigns paused,
and ending each pause asks what becomes of what is overdue: send, skip or exit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine, make_url, text

from app import embedded
from app.config import VERSION, Settings
from app.db import connect
from app.errors import InputError, StartError
from app.flow.steering import set_mode
from app.migrate import migrate

FORMAT = 1
DUMP, SECRET, MANIFEST = "database.dump", "secret", "manifest.json"
_LARGEST_MANIFEST = 100_000
_LARGEST_SECRET = 10_000


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was written: where, how large in octets, and whether the secret key is in it (else it comes by NURTURE_SECRET_KEY)."""

    file: Path
    size: int
    with_secret: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """What was brought back: when the backup was made, by which version, the campaigns that were live and are paused now, how many of their
    messages and alerts are due, and whether the home took the backup's secret key."""

    made_at: str
    version: str
    paused: tuple[str, ...]
    due: int
    with_secret: bool


def backup(settings: Settings, engine: Engine, target: Path, now: datetime) -> Backup:
    """Writes everything into `target`, beside a running engine too: the dump is one snapshot. Written aside and renamed, so that a backup
    that is there is whole; nobody but its owner may read it. Raises InputError for a place that cannot be written, StartError without a
    fitting pg_dump."""
    target = target.expanduser().resolve()
    secret = settings.home / SECRET
    with_secret = secret.is_file() and secret.read_text().strip() == settings.secret_key
    draft = target.with_name(target.name + ".part")
    try:
        with _folder_beside(target) as folder:
            dump = folder / DUMP
            os.close(os.open(dump, os.O_WRONLY | os.O_CREAT, 0o600))
            _run("pg_dump", engine, ["--format=custom", f"--file={dump}"])
            with engine.connect() as conn:
                revision = conn.execute(text("select version_num from alembic_version")).scalar_one()
            files = {DUMP: dump} | ({SECRET: secret} if with_secret else {})
            about = {
                "format": FORMAT,
                "version": VERSION,
                "revision": revision,
                "made_at": now.isoformat(),
                "files": {name: {"sha256": _digest(path), "bytes": path.stat().st_size} for name, path in files.items()},
            }
            manifest = folder / MANIFEST
            manifest.write_text(json.dumps(about, indent=2) + "\n")
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            with tarfile.open(draft, "w") as tar:
                for name, path in {MANIFEST: manifest, **files}.items():
                    tar.add(path, arcname=name, recursive=False, filter=_anonymous)
            draft.rename(target)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(target)) from error
    finally:
        draft.unlink(missing_ok=True)
    return Backup(target, target.stat().st_size, with_secret)


def restore(settings: Settings, source: Path, now: datetime, *, as_it_was: bool = False) -> Restored:
    """Brings a backup back into the empty database of `settings.database_url`, and its secret key into the home unless NURTURE_SECRET_KEY
    gives one. Afterwards the tables are this version's, and no process of the past holds a claim.

    Live campaigns come back paused, because mail that went out after the backup is due again; `as_it_was` leaves them live, for a backup
    after which nothing was sent. Everything of the file is verified before anything is written, and a restore that fails leaves the
    database empty. Raises InputError for a file that is not a whole backup, or of a newer version, and for a database that is not empty.
    """
    engine = connect(settings.database_url, pool_size=1)
    try:
        with _opened(source) as tar, tempfile.TemporaryDirectory(prefix="nurture-restore-", dir=settings.home) as place:
            about = _manifest(tar, source)
            files = {name: _extract(tar, about, name, Path(place), source) for name in about["files"]}
            with engine.connect() as conn:
                _refuse_tables(conn)
            _run("pg_restore", engine, ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction", str(files[DUMP])])
            with_secret = SECRET in files and _take_secret(settings, files[SECRET])
        migrate(engine, now)
        with engine.begin() as conn:
            conn.execute(text("update worker set stopped_at = :now where stopped_at is null"), {"now": now})
            paused = () if as_it_was else _pause(conn, now)
            due = conn.execute(_DUE, {"keys": list(paused)}).scalar_one()
    finally:
        engine.dispose()
    return Restored(about["made_at"], about["version"], paused, due, with_secret)


def _pause(conn: Connection, now: datetime) -> tuple[str, ...]:
    keys = tuple(conn.execute(text("select key from campaign where mode = 'live' order by key")).scalars())
    for key in keys:
        set_mode(conn, key, "paused", now)
    return keys


# The file -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A private folder on the same disk, which has the room that the backup needs."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nothing of this machine's users is told."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tarfile.TarFile]:
    with contextlib.ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(source.expanduser(), "r:"))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", str(source)) from error
        except (tarfile.TarError, EOFError):
            raise InputError("is not a backup: it was not written by `nurture backup`", str(source)) from None
        yield tar


def _manifest(tar: tarfile.TarFile, source: Path) -> dict[str, Any]:
    try:
        about = json.loads(_member(tar, MANIFEST, _LARGEST_MANIFEST).read())
        known = {name: (str(one["sha256"]), int(one["bytes"])) for name, one in about["files"].items()}
        good = {DUMP} <= set(known) <= {DUMP, SECRET} and all(isinstance(about[name], str) for name in ("made_at", "version"))
    except (KeyError, TypeError, ValueError, AttributeError, tarfile.TarError):
        good = False
    if not good:
        raise InputError("is not a backup: its manifest.json is missing or broken", str(source))
    if about.get("format") != FORMAT:
        raise InputError(f"is a backup of another format ({about.get('format')!r}): upgrade Nurture", str(source))
    return about


def _extract(tar: tarfile.TarFile, about: Mapping[str, Any], name: str, place: Path, source: Path) -> Path:
    """Only what the manifest names, under names that are ours: a path in the file leads nowhere."""
    expected, target, digest = about["files"][name], place / name, hashlib.sha256()
    limit = _LARGEST_SECRET if name == SECRET else expected["bytes"]
    try:
        with _member(tar, name, limit) as file, os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            while block := file.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise InputError(f"is damaged: {name} cannot be read ({error})", str(source)) from error
    if digest.hexdigest() != expected["sha256"]:
        raise InputError(f"is damaged: {name} is not what was written", str(source))
    return target


def _member(tar: tarfile.TarFile, name: str, limit: int) -> IO[bytes]:
    member = tar.getmember(name)
    if not member.isreg() or member.size > limit:
        raise KeyError(f"{name} is no plain file of at most {limit} octets")
    return tar.extractfile(member)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _take_secret(settings: Settings, kept: Path) -> bool:
    """The secret of an installation that is empty opens nothing, so it may be replaced; one that was given by setting stays."""
    ours = settings.home / SECRET
    if not ours.is_file() or ours.read_text().strip() != settings.secret_key:
        return False
    draft = ours.with_name(".secret.restored")
    shutil.copyfile(kept, draft)
    draft.chmod(0o600)
    draft.rename(ours)
    return True


# PostgreSQL's programs ---------------------------------------------------------------------------------------------------


def _run(program: str, engine: Engine, arguments: list[str]) -> None:
    url = make_url(engine.url).set(drivername="postgresql")
    # The password goes by the environment: anybody can read a command line.
    env = {**os.environ, "PGPASSWORD": url.password or os.environ.get("PGPASSWORD", "")}
    plain = url.set(password=None).render_as_string()
    done = subprocess.run(
        [_program(program, engine), *arguments, f"--dbname={plain}"], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StartError(f"{program} failed: {done.stderr.strip()}")


def _program(name: str, engine: Engine) -> str:
    """The embedded one, or the one on the PATH: whichever is not older than the server."""
    with engine.connect() as conn:
        server = int(conn.execute(text("show server_version_num")).scalar_one()) // 10_000
    found = [str(one) for one in (embedded.postgres_binary(name), shutil.which(name)) if one]
    for one in found:
        said = subprocess.run([one, "--version"], capture_output=True, text=True, check=False).stdout
        if (version := re.search(r"\d+", said)) and int(version[0]) >= server:
            return one
    what = f"is older than the server ({server})" if found else "is missing"
    raise StartError(f"{name} {what}: install PostgreSQL {server}'s client programs")


def _refuse_tables(conn: Connection) -> None:
    tables = conn.execute(text("select count(*) from pg_tables where schemaname = 'public'")).scalar_one()
    if tables:
        raise InputError(
            f"the database has {tables} tables already; a backup is restored into an empty one (another --home or DATABASE_URL)"
        )


_DUE = text("""
    with held as (select id from campaign where key = any(:keys))
    select (select count(*) from message where campaign_id in (select id from held) and state in ('due', 'claimed'))
         + (select count(*) from effect where campaign_id in (select id from held) and state in ('due', 'claimed'))
""")
