"""The JSON Schemas that editors complete by: current, whole, and of one mind with the models."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.cli import main
from app.config import CODE
from app.flow.checking.yaml import parse
from app.flow.schemas import FIELDS, FOLDER, MODELS, schema_of, text_of, write

CAMPAIGNS = CODE / "campaigns"
SHIPPED = [CAMPAIGNS / "lifecycle.yaml", *sorted(CAMPAIGNS.glob("*/*/campaign.yaml")), *sorted(CAMPAIGNS.glob("*/*/tests.yaml"))]
STEP = {"id": "x", "wait": "1d"}


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema_of(MODELS[name]))


def parts(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every model within a schema with its fields."""
    schema = schema_of(MODELS[name])
    for model, one in {MODELS[name].__name__: schema, **schema["$defs"]}.items():
        for form in (one, *one.get("anyOf", ())):
            if "properties" in form:
                yield model, form["properties"]


@pytest.mark.parametrize("name", MODELS)
def test_the_committed_schemas_are_current(name):
    """Run `.venv/bin/nurture schemas` after a change of the models."""
    assert (CAMPAIGNS / FOLDER / f"{name}.schema.json").read_text("utf-8") == text_of(MODELS[name])
    jsonschema.Draft202012Validator.check_schema(schema_of(MODELS[name]))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(CAMPAIGNS).as_posix())
def test_shipped_files_name_their_schema_and_fit_it(path):
    text = path.read_text("utf-8")
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.splitlines()[0])
    schema = json.loads((path.parent / named[1]).read_text("utf-8"))
    assert named[1].endswith(f"{FOLDER}/{path.stem}.schema.json")
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(parse(text).value)] == []


@pytest.mark.parametrize("name", MODELS)
def test_every_field_says_what_it_is(name):
    silent = [f"{model}.{field}" for model, fields in parts(name) for field, about in fields.items() if not about.get("description")]
    assert silent == []


def test_nothing_is_described_that_does_not_exist():
    known = {f"{model}.{field}" for name in MODELS for model, fields in parts(name) for field in fields}
    assert {one for one in FIELDS if "." in one} - known == set()


CASES = [
    (("priority",), 50, True),
    (("priority",), 101, False),
    (("prioritty",), 50, False),
    (("mode",), "lvie", False),
    (("holdout",), "10%", True),
    (("holdout",), 0.1, True),
    (("holdout",), "a tenth", False),
    (("expires",), "2d12h", True),
    (("expires",), "soon", False),
    (("expires",), 3, False),
    (("expires",), "0d", False),
    (("send_window",), {"days": "mon-fri", "hours": "09:00-17:00"}, True),
    (("send_window",), {"days": [1, 2]}, False),
    (("reentry",), "never", True),
    (("reentry",), {"after": "90d"}, True),
    (("reentry",), "always", False),
    (("trigger",), {"event": "x"}, True),
    (("trigger",), {"event": "x", "stage": "y"}, False),
    (("trigger",), {}, False),
    (("trigger",), {"health": "red"}, True),
    (("trigger",), {"health": {"below": 50}}, True),
    (("trigger",), {"health": "blue"}, False),
    (("trigger",), {"date": {"field": "account.renewal_date", "offset": "-90d"}}, True),
    (("trigger",), {"contact_added": True}, True),
    (("steps",), [], False),
    (("steps",), [{"id": "x", "wait": {"days": 2, "at": "09:00"}}], True),
    (("steps",), [{"id": "x", "wait": {"days": 2, "at": "9 o'clock"}}], False),
    (("steps",), [{"id": "x", "email": "x.mjml", "subject": "x"}], True),
    (("steps",), [{"id": "x", "email": "x.mjml", "subject": "x", "survey": "nps", "question": "x"}], True),
    (("steps",), [{"id": "x", "email": "x.html", "subject": "x"}], False),
    (("steps",), [{"id": "x", "branch": [{"when": "x", "steps": [STEP]}, {"else": [STEP]}]}], True),
    (("steps",), [{"id": "x", "branch": [{"when": "x", "else": [STEP]}]}], False),
    (("steps",), [{"id": "x", "wait_for": {"event": "y", "timeout": "3d"}, "on_timeout": [STEP]}], True),
    (("steps",), [{"id": "x", "wait_for": {"event": "y"}}], False),
    (("steps",), [{"id": "x", "set": {"account.traits.plan": "pro"}}], True),
    (("steps",), [{"id": "x", "set": {"plan": "pro"}}], False),
    (("steps",), [{"id": "x", "nothing": 1}], False),
]


@pytest.mark.parametrize(("place", "value", "fits"), CASES, ids=[f"{place[0]}={value}"[:60] for place, value, _ in CASES])
def test_schema_and_model_agree(place, value, fits):
    whole = {"name": "x", "stage": "onboarding", "topic": "product", "trigger": {"event": "x"}, "steps": [STEP]}
    raw = copy.deepcopy(whole) | {place[0]: value}
    try:
        MODELS["campaign"].model_validate(raw)
        model = True
    except ValueError:
        model = False
    assert (validator("campaign").is_valid(raw), model) == (fits, fits)


def test_the_command_writes_them(tmp_path: Path, capsys):
    assert main(["schemas", str(tmp_path / "a b")]) == 0
    assert {path.name for path in (tmp_path / "a b").iterdir()} == {f"{name}.schema.json" for name in MODELS}
    assert capsys.readouterr().out.count(".schema.json\n") == len(MODELS)
    assert all(path.read_text("utf-8").endswith("}\n") for path in write(tmp_path / "again"))
