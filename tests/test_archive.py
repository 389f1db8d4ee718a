"""A backup is whole or not there, says when it was damaged, and comes back with everything and without sending anything twice."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from app import archive, cli, db
from app.config import load
from app.errors import InputError
from app.flow import channels
from app.flow.links import Links, load_keyring
from app.models import metadata
from tests.cast import Cast
from tests.conftest import NOW, dsn


@pytest.fixture
def elsewhere(postgres, tmp_path):
    """The settings of another machine: an empty database, a home with a secret of its own."""
    name = "r_" + uuid4().hex
    with psycopg.connect(dsn(postgres.url("postgres")), autocommit=True) as conn:
        conn.execute(f"create database {name}")
        yield load({"NURTURE_HOME": str(tmp_path / "other home"), "DATABASE_URL": postgres.url(name)})
        conn.execute(f"drop database {name} with (force)")


@pytest.fixture
def lived(settings, engine):
    """An installation with a mail that is due, a link and a channel."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        message = cast.message(cast.contact("ada"))
        channels.set_channel(conn, settings, "hook", "webhook", "https://hooks.example.com/x", NOW)
    return message


def taken(settings, engine, tmp_path: Path) -> Path:
    return archive.backup(settings, engine, tmp_path / "all.backup", NOW).file


def counts(engine) -> dict[str, int]:
    with engine.connect() as conn:
        return {name: conn.execute(text(f'select count(*) from "{name}"')).scalar_one() for name in metadata.tables}


def test_everything_comes_back_and_nothing_is_sent_twice(settings, engine, elsewhere, lived, tmp_path):
    with engine.connect() as conn:
        url = Links("https://n.example.com", load_keyring(conn)).unsubscribe(lived)
        secrets = channels.find_channels(conn, settings, ["hook"])
    done = archive.restore(elsewhere, taken(settings, engine, tmp_path), NOW)
    assert (done.paused, done.due, done.with_secret) == (("onboarding/first-value",), 1, True)
    restored = db.connect(elsewhere.database_url)
    try:
        found = counts(restored)
        assert {name: number for name, number in found.items() if number != counts(engine)[name]} == {"campaign_change": 1}  # the pause
        assert found["message"] == 1
        with restored.connect() as conn:
            token = url.rpartition("/")[2]
            assert Links("https://n.example.com", load_keyring(conn)).read(token, "unsubscribe") == (lived, 0)
            # Sealed under the secret of then, which the home has taken over.
            again = replace(elsewhere, secret_key=(elsewhere.home / "secret").read_text().strip())
            assert channels.find_channels(conn, again, ["hook"]) == secrets
            assert conn.execute(text("select mode from campaign")).scalar_one() == "paused"
            # Numbers go on where they were, so that new rows collide with nothing.
            assert conn.execute(text("insert into source (name) values ('x') returning id")).scalar_one() > 0
    finally:
        restored.dispose()


def test_a_backup_after_which_nothing_was_sent_may_come_back_live(settings, engine, elsewhere, lived, tmp_path):
    assert archive.restore(elsewhere, taken(settings, engine, tmp_path), NOW, as_it_was=True).paused == ()


def test_a_database_that_is_not_empty_is_left_alone(settings, engine, elsewhere, lived, tmp_path):
    file = taken(settings, engine, tmp_path)
    archive.restore(elsewhere, file, NOW)
    with pytest.raises(InputError, match="has .* tables already"):
        archive.restore(elsewhere, file, NOW)


def rewritten(file: Path, **changes: bytes | None) -> Path:
    """The backup with other contents of a file of it, None: without it. Two underscores stand for the dot."""
    target = file.with_name(f"{uuid4().hex}.backup")
    with tarfile.open(file) as old, tarfile.open(target, "w") as new:
        for member in old.getmembers():
            content = changes.get(member.name.replace(".", "__"), old.extractfile(member).read())
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    return target


def test_a_damaged_backup_is_refused_before_anything_is_written(settings, engine, elsewhere, lived, tmp_path):
    file = taken(settings, engine, tmp_path)
    with tarfile.open(file) as tar:
        about = json.loads(tar.extractfile("manifest.json").read())
        dump = tar.extractfile("database.dump").read()
    manifest = json.dumps(about | {"format": 99}).encode()
    stray = json.dumps(about | {"files": about["files"] | {"../../evil": about["files"]["secret"]}}).encode()
    for changed, says in (
        (rewritten(file, database__dump=dump[:-1] + b"x"), "database.dump is not what was written"),
        (rewritten(file, database__dump=dump[: len(dump) // 2]), "database.dump is not what was written"),
        (rewritten(file, database__dump=None), "database.dump cannot be read"),
        (rewritten(file, manifest__json=None), "manifest.json is missing or broken"),
        (rewritten(file, manifest__json=b"{"), "manifest.json is missing or broken"),
        (rewritten(file, manifest__json=stray), "manifest.json is missing or broken"),
        (rewritten(file, manifest__json=manifest), "another format"),
    ):
        with pytest.raises(InputError, match=says):
            archive.restore(elsewhere, changed, NOW)
    for content in (b"", b"PGDMP and so on", file.read_bytes()[:700]):
        broken = tmp_path / "broken"
        broken.write_bytes(content)
        with pytest.raises(InputError, match="is not a backup"):
            archive.restore(elsewhere, broken, NOW)
    with pytest.raises(InputError, match="cannot be read"):
        archive.restore(elsewhere, tmp_path / "missing", NOW)
    empty = db.connect(elsewhere.database_url)
    with empty.connect() as conn:
        assert conn.execute(text("select count(*) from pg_tables where schemaname = 'public'")).scalar_one() == 0
    empty.dispose()
    assert (elsewhere.home / "secret").read_text() != (settings.home / "secret").read_text()


def test_a_file_in_the_backup_that_is_a_link_is_not_followed(settings, engine, elsewhere, lived, tmp_path):
    file, target = taken(settings, engine, tmp_path), tmp_path / "links.backup"
    with tarfile.open(file) as old, tarfile.open(target, "w") as new:
        for member in old.getmembers():
            if member.name == "secret":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
                new.addfile(member)
            else:
                new.addfile(member, old.extractfile(member))
    with pytest.raises(InputError, match="secret cannot be read"):
        archive.restore(elsewhere, target, NOW)


def test_a_secret_that_is_given_by_setting_is_neither_kept_nor_replaced(settings, engine, elsewhere, lived, tmp_path):
    given = replace(settings, secret_key="given by the environment, long enough to be one")
    made = archive.backup(given, engine, tmp_path / "without", NOW)
    assert not made.with_secret
    with tarfile.open(made.file) as tar:
        assert tar.getnames() == ["manifest.json", "database.dump"]
    theirs = replace(elsewhere, secret_key="another one of the environment")
    assert not archive.restore(theirs, taken(settings, engine, tmp_path), NOW).with_secret


def test_the_command_says_what_to_do_next(settings, engine, elsewhere, lived, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    assert cli.main(["backup", str(tmp_path / "b"), "--home", str(settings.home)]) == 0
    assert "Bring it back with" in capsys.readouterr().out
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("DATABASE_URL", elsewhere.database_url)
    assert cli.main(["restore", str(tmp_path / "b"), "--home", str(elsewhere.home)]) == 0
    said = capsys.readouterr().out
    assert "1 live campaigns are paused, with 1 messages" in said
    assert "nurture resume onboarding/first-value --overdue send|skip|exit" in said
    assert cli.main(["backup", str(tmp_path / "no folder" / "b"), "--home", str(elsewhere.home)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.part"))
