"""Conventions as tests: who may import whom, names, sizes of files, the migrations."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.config import CODE
from app.migrate import config
from app.models import metadata

# From the outside in: a module may import its own layer and those after it (DESIGN.md 3).
LAYERS = [
    {"cli", "ask", "steer", "web", "jobs", "up", "work", "doctor", "sample", "rehearse", "desk", "archive", "mail_doctor", "finding"}
    | {"postbox", "hooks", "sending", "rights", "post"},
    {"flow"},
    {"models", "providers", "migrate"},
    {"rules", "queue", "pacing"},
    {"db", "embedded", "home", "children", "launch", "supervise"},
    {"config", "logs"},
    {"errors"},
]
FLASK = {"web", "__init__"}
# What rules may stand on besides the standard library's pure parts.
PURE = {"pydantic", "jinja2", "app"}
IMPURE = {"os", "socket", "subprocess", "threading", "asyncio", "time", "random", "pathlib", "tempfile", "urllib", "http", "logging", "io"}
FORBIDDEN_NAMES = {"utils", "helpers", "services", "core", "common", "manager", "util", "helper", "service"}


def modules() -> list[Path]:
    return sorted((CODE / "app").rglob("*.py"))


def layer_of(path: Path) -> str:
    inner = path.relative_to(CODE / "app")
    return inner.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The modules imported anywhere in the file, those inside functions included; `if TYPE_CHECKING` blocks excluded."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    typing = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and _is_type_checking(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


def _is_type_checking(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(CODE).as_posix())
def test_imports_point_one_way(path):
    own = layer_of(path)
    if own == "__init__":
        return
    rank = next((number for number, names in enumerate(LAYERS) if own in names), None)
    assert rank is not None, f"{own} has no place in LAYERS: give it one"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "app" and len(parts) > 1:
            target = next((number for number, names in enumerate(LAYERS) if parts[1] in names), None)
            if target is not None:
                assert target >= rank, f"{own} must not import {name}"
        if parts[0].startswith("flask"):
            assert own in FLASK, f"only web and create_app know Flask; {own} imports {name}"


@pytest.mark.parametrize("path", sorted((CODE / "app" / "rules").glob("*.py")), ids=lambda path: path.name)
def test_rules_do_no_io(path):
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in IMPURE, f"rules must not import {name}"
        assert top in PURE or top in sys.stdlib_module_names, f"rules must not import {name}"
        if top == "app" and name != "app":
            assert name.split(".")[1] in ("rules", "errors"), f"rules must not import {name}"


def test_nothing_has_a_name_that_says_nothing():
    for path in [*modules(), *(CODE / "tests").rglob("*.py")]:
        assert path.stem not in FORBIDDEN_NAMES, path


def test_there_is_one_migration_head():
    script = ScriptDirectory(str(CODE / "migrations"))
    assert len(script.get_heads()) == 1


def test_the_tables_are_what_the_models_say(engine):
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_migrations_go_forward_and_back(engine):
    from alembic import command

    with engine.begin() as conn:
        command.downgrade(config(conn), "base")
        left = conn.exec_driver_sql("select count(*) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace").scalar()
        assert left == 1  # alembic_version
        command.upgrade(config(conn), "head")


def test_the_lock_file_names_no_index():
    text = (CODE / "requirements.lock").read_text()
    assert "://" not in text and "--index" not in text and "--extra-index" not in text


def test_no_two_bindings_of_mjml_and_a_current_cryptography():
    """X-47: `mjml` and `mjml-python` overwrite each other, and an old cryptography once came in through a dependency."""
    lines = [line.partition("==") for line in (CODE / "requirements.lock").read_text().splitlines() if "==" in line]
    names = {name: version.split()[0] for name, _, version in lines}
    assert "mjml" not in names
    assert "sns-message-validator" not in names
    assert int(names["cryptography"].split(".")[0]) >= 45


def test_x45_nothing_is_pickled_and_no_xml_parsed():
    """Jobs are JSON; nothing that comes from elsewhere is made an object by a format that can do more than data."""
    banned = {"pickle", "cPickle", "dill", "marshal", "shelve", "xml", "lxml", "xmlrpc", "yaml"}
    found = {f"{path.relative_to(CODE)}: {name}" for path in modules() for name in imports(path) if name.split(".")[0] in banned}
    assert not found
    for path in modules():
        for line in path.read_text("utf-8").splitlines():
            if re.search(r"\b(Queue|Listener|Job\.fetch)\(.*connection=", line):
                assert "serializer=JSONSerializer" in line, f"{path}: {line}"


def test_x47_every_package_is_pinned_by_its_hash():
    packages = re.split(r"\n(?=[A-Za-z0-9])", (CODE / "requirements.lock").read_text())
    pinned = [one for one in packages if re.match(r"[A-Za-z0-9_.\[\]-]+==", one)]
    assert len(pinned) > 40
    assert not [one.split()[0] for one in pinned if "--hash=sha256:" not in one]
    assert "--require-hashes" in (CODE / "bin" / "setup").read_text()
