"""What the documentation says, held against what the program does: settings, commands, reasons, metrics, routes, fields, examples."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from flask import Flask
from pydantic import BaseModel
from ruamel.yaml import YAML

from app import config
from app.cli import COMMANDS, main
from app.config import CODE
from app.flow import ingest, items
from app.flow.check import check
from app.flow.compose import compile_mail
from app.flow.composing.filters import FILTERS as TEMPLATE_FILTERS
from app.rules import conditions, definition
from app.rules.book import compile_version
from app.rules.definition import Campaign
from app.rules.lifecycle import Lifecycle
from app.rules.reasons import GATES, SENTENCES
from tests.processes import eventually
from tests.test_up import Engine, environment

DOCS = sorted([CODE / "README.md", CODE / "CHANGELOG.md", *(CODE / "docs").glob("*.md")])
BRAND = {path.name: path.read_text("utf-8") for path in (CODE / "campaigns" / "brand").glob("*.mjml")}
MAIL = '<mj-section><mj-column><mj-text>Hello {{ contact.first_name | default("there") }}</mj-text></mj-column></mj-section>\n'
NEWCOMER = """
name: Example
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: only, email: only.mjml, subject: Hello}
"""


@cache
def text_of(name: str) -> str:
    return (CODE / name).read_text("utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of that language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(name), re.M | re.S)


def anchors(path: Path) -> set[str]:
    """What links to headings of the file may name, as GitHub makes it."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in found}


# Tables ----------------------------------------------------------------------------------------------------------------


def test_every_setting_is_documented():
    names = set(re.findall(r'"((?:NURTURE_)?[A-Z]+_[A-Z_]+)"', inspect.getsource(config)))
    assert len(names) >= 7
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", text_of("docs/operations.md"), re.M))
    assert rows == names


def test_every_command_and_option_is_documented(capsys):
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `nurture ([a-z-]+(?: [a-z]+)?)[ `].*$", text_of("docs/operations.md"), re.M)}
    assert set(rows) == {" ".join(command.words) for command in COMMANDS}
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([*command.words, "--help"])
        options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--home", "--json"}
        missing = {option for option in options if option not in rows[" ".join(command.words)]}
        assert not missing, f"docs/operations.md does not say what {' '.join(command.words)} takes: {missing}"


def test_every_gate_and_reason_is_in_the_glossary():
    glossary = text_of("docs/glossary.md")
    missing = [f"| `{code}` | {sentence} |" for code, sentence in SENTENCES.items() if f"| `{code}` | {sentence} |" not in glossary]
    missing += [f"| `{gate}` | {name} | …" for gate, name in GATES.items() if f"| `{gate}` | {name} | " not in glossary]
    assert not missing, "docs/glossary.md lacks:\n" + "\n".join(missing)
    known = set(SENTENCES) | set(GATES)
    assert not set(re.findall(r"^\| `([a-z_]+)` \|", glossary, re.M)) - known, "docs/glossary.md has codes that do not exist"


def test_every_own_event_is_in_the_glossary():
    # Loggers are called nurture.… too: they are no events.
    source = "\n".join(re.sub(r"getLogger\(.*?\)", "", path.read_text("utf-8")) for path in (CODE / "app").rglob("*.py"))
    raised = set(re.findall(r'"(nurture\.[a-z_]+)"', source)) - {"nurture.door", "nurture.links"}
    assert len(raised) >= 7
    assert set(re.findall(r"^\| `(nurture\.[a-z_]+)` \|", text_of("docs/glossary.md"), re.M)) == raised


def test_every_metric_is_documented(client):
    shown = set(re.findall(r"^# TYPE (\S+) ", client.get("/metrics").text, re.M))
    assert len(shown) >= 15
    documented = {
        name for row in re.findall(r"^\| (`nurture_.*?) \|", text_of("docs/operations.md"), re.M) for name in row.strip("`").split("`, `")
    }
    assert documented == shown


def test_every_route_is_documented(app: Flask, client):
    api, quick = text_of("docs/api.md"), text_of("docs/operations.md")
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/"):
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                assert f"`{method} {path}`" in api, f"docs/api.md lacks {method} {path}"
        elif rule.endpoint != "static":
            family = "/" + rule.rule.split("/")[1]
            assert f"`{family}" in api or f"`{family}" in quick, f"docs/api.md lacks {rule.rule}"
    for kind in items.KINDS:
        assert f"/v1/{kind}`" in api
    paths = client.get("/openapi.json").json["paths"]
    for path in paths:
        assert f"/api/v1{path}`" in api


def test_the_limits_of_events_are_those_of_the_code(app: Flask):
    api = text_of("docs/api.md")
    for row in (
        f"| a batch | {items.BATCH_BYTES // 1024} KB after inflating |",
        f"| one call, one item of a batch | {items.ITEM_BYTES // 1024} KB after inflating |",
        f"| any request's body as sent | {app.config['MAX_CONTENT_LENGTH'] // 2**20} MB |",
        f"| ids, names, keys of properties | {items.TEXT_LENGTH} characters |",
        f"| properties and traits | {items.DEPTH} levels deep, finite numbers of at most 100 digits, no NUL |",
    ):
        assert row in api
    assert ingest.TRIGGER_MAX_AGE.days == 3 and "older than three days" in api


# The files of campaigns ------------------------------------------------------------------------------------------------


def models() -> list[type[BaseModel]]:
    found = (one for _, one in inspect.getmembers(definition, inspect.isclass))
    return [one for one in found if issubclass(one, BaseModel) and one.__module__ == definition.__name__]


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_field_of_the_files_is_documented(model):
    text = text_of("docs/campaigns.md")
    names = {field.alias or name for name, field in model.model_fields.items()}
    said = {name for name in names if re.search(rf"(?<![a-z_]){re.escape(name)}(?![a-z_])", text)}
    # What `2d` alone becomes has a name in the code only.
    assert names - said - ({"span"} if model is definition.WaitSpec else set()) == set()


def test_every_filter_is_documented():
    text = text_of("docs/campaigns.md")
    of_conditions = text[text.index("## Conditions") : text.index("## Templates")]
    assert not [name for name in conditions._FILTERS if f"`{name}`" not in of_conditions]
    of_templates = text[text.index("## Templates") :]
    assert not [name for name in TEMPLATE_FILTERS if f"`{name}`" not in of_templates and f"`| {name}`" not in of_templates]


def test_the_yaml_of_the_campaigns_page_passes_the_check(tmp_path):
    lifecycle, campaigns = None, []
    for block in [*blocks("docs/campaigns.md", "yaml"), *blocks("docs/quick-start.md", "yaml")]:
        read = YAML(typ="safe", pure=True).load(block)
        if isinstance(read, list):
            campaigns.append(NEWCOMER[: NEWCOMER.index("  - {id")] + "".join(f"  {line}\n" for line in block.splitlines()))
        elif set(read) <= set(Lifecycle.model_fields):
            assert lifecycle is None
            lifecycle = block
        else:
            assert set(read) <= set(Campaign.model_fields)
            campaigns.append(block)
    assert lifecycle and len(campaigns) >= 5
    folder = write_folder(tmp_path / "campaigns", lifecycle, campaigns)
    found, problems = check(folder)
    assert [str(one) for one in problems] == []
    assert len(found.folders) == len(campaigns)
    for number, one in enumerate(found.folders, 1):
        compile_version(number, one.key, 1, one.campaign, found.lifecycle.schema)


def write_folder(folder: Path, lifecycle: str, campaigns: list[str]) -> Path:
    """A campaigns folder of these texts; every template that they name is there."""
    folder.mkdir()
    shutil.copytree(CODE / "campaigns" / "brand", folder / "brand")
    (folder / "lifecycle.yaml").write_text(lifecycle)
    for number, text in enumerate(campaigns):
        place = folder / "examples" / f"c{number}"
        place.mkdir(parents=True)
        (place / "campaign.yaml").write_text(text)
        for name in re.findall(r"email: ([\w-]+\.mjml)", text):
            (place / name).write_text(MAIL)
    return folder


@pytest.mark.parametrize("name", ["docs/campaigns.md", "docs/quick-start.md"])
def test_the_templates_of_the_pages_compile(name):
    found = blocks(name, "xml")
    assert found
    for source in found:
        assert compile_mail(source, "Hello", path=name, blocks=BRAND).text


def test_what_a_missing_value_does_is_as_the_table_says():
    schema = conditions.Schema({"plan": "text"}, {}, frozenset({"report_shared"}), frozenset({"logins"}))
    table = text_of("docs/campaigns.md")
    rows = re.findall(r"^\| `(.+?)`(?:, when [^|]*)? \| (true|false)\b", table[table.index("**A missing value**") :], re.M)
    assert len(rows) >= 8
    from tests.conftest import NOW
    from tests.stories import make_account

    scope = conditions.Scope(account=make_account(), now=NOW)
    for source, said in rows:
        found = conditions.compile_condition(source.replace("\\|", "|"), schema).test(scope)
        assert found == (said == "true"), source


# The pages themselves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.is_file(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{path.name} links to {target}"


def test_pictures_are_small():
    pictures = list((CODE / "docs" / "pictures").iterdir())
    assert pictures and all(picture.stat().st_size < 200 * 1024 for picture in pictures)
    said = "".join(path.read_text("utf-8") for path in DOCS)
    assert all(picture.name in said for picture in pictures), "a picture that nobody shows"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_command_that_is_shown_exists(path):
    known = {" ".join(command.words) for command in COMMANDS}
    planned = {"test", "simulate"}
    for block in [
        *re.findall(r"^```sh\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S),
        *re.findall(r"`(nurture [^`]+)`", path.read_text("utf-8")),
    ]:
        for words in re.findall(r"(?:^|[\s(/`])nurture ([a-z-]+(?: [a-z]+)?)", block):
            first = words.split()[0]
            assert words in known or first in known or first in planned or first == "keys", f"{path.name} shows nurture {words}"


def test_python_that_is_shown_is_python():
    for path in DOCS:
        for block in re.findall(r"^```python\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S):
            ast.parse(block)
        for block in re.findall(r"^```json\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S):
            json.loads(block)


def test_the_changelog_begins_with_this_version():
    assert re.search(r"^## (\S+)", text_of("CHANGELOG.md"), re.M)[1] == config.VERSION


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_the_example_of_the_readme_works_as_it_stands(tmp_path):
    """Literally, but for the port and the place of the virtual environment."""
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    post, read = [block for block in blocks("README.md", "sh") if "curl" in block]
    engine = Engine(tmp_path / "a home", "--sample")
    try:
        engine.ready()

        def shell(script: str) -> str:
            here = script.replace(":8000/", f":{engine.port}/").replace(".venv/bin/", f"'{Path(sys.executable).parent}'/")
            env = environment({"NURTURE_HOME": str(tmp_path / "a home")})
            done = subprocess.run(["sh", "-ec", here], env=env, cwd=CODE, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert len(post.splitlines()) + len(read.splitlines()) <= 10
        assert json.loads(shell(post)) == {"success": True}
        mail = eventually(lambda: (said := shell(read)).startswith("ada@example.com\n") and said, 20)
        assert "Ada, your first report in ten minutes" in mail and "Unsubscribe <" in mail
    finally:
        engine.close()


def test_what_the_quick_start_says_is_what_is_printed():
    """The lines that `nurture up` prints at the end begin as the page shows them."""
    source = (CODE / "app" / "up.py").read_text("utf-8")
    (shown,) = blocks("docs/quick-start.md", "text")
    for line in shown.splitlines():
        assert f'"{line.split("  ")[0]}  ' in source, line
