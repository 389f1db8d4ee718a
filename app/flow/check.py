"""Reads a campaigns folder and reports every problem at once, each with file, line and column. Writes nothing, sends nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from app.errors import DefinitionError, TemplateError
from app.flow.compose import Compiled, compile_mail
from app.rules.conditions import ConditionError, Schema, check_path, compile_condition
from app.rules.definition import Campaign, EmailStep, SurveyStep, conditions_of, goal_source, walk
from app.rules.fields import Problem
from app.rules.lifecycle import TRANSACTIONAL, Lifecycle

FILE_LIMIT = 256 * 1024
NODE_LIMIT = 20_000
DEPTH_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled mail of a folder: for one step, in one language ("" is the default)."""

    step: str
    locale: str
    path: str
    source: str
    compiled: Compiled


@dataclass(frozen=True, slots=True)
class Folder:
    """A campaign's folder, read and compiled. `hash` follows from all that goes into a version."""

    key: str
    raw: Mapping[str, Any]
    campaign: Campaign
    templates: tuple[Template, ...]
    hash: str


@dataclass(frozen=True, slots=True)
class Campaigns:
    """A whole campaigns folder."""

    lifecycle: Lifecycle
    raw_lifecycle: Mapping[str, Any]
    folders: tuple[Folder, ...]


def read(root: Path) -> Campaigns:
    """The campaigns below `root`, all of them right. Raises DefinitionError with every problem."""
    campaigns, problems = check(root)
    if problems or campaigns is None:
        raise DefinitionError(problems)
    return campaigns


def check(root: Path) -> tuple[Campaigns | None, list[Problem]]:
    """Everything below `root` and every problem in it; None when `lifecycle.yaml` itself cannot be used."""
    problems: list[Problem] = []
    lifecycle, raw, places = _model(root, root / "lifecycle.yaml", Lifecycle, problems)
    if lifecycle is None:
        return None, problems
    schema = lifecycle.schema
    _check_lifecycle(lifecycle, schema, places, problems)
    blocks = {path.name: path.read_text("utf-8") for path in sorted((root / "brand").glob("*.mjml"))}
    folders = []
    for path in sorted(root.glob("*/*/campaign.yaml")):
        folder = _folder(root, path, lifecycle, schema, blocks, problems)
        if folder is not None:
            folders.append(folder)
    problems.sort(key=lambda one: (one.file, one.line, one.column))
    return Campaigns(lifecycle, raw, tuple(folders)), problems


class _Places:
    """Where in a file the thing at a path stands."""

    def __init__(self, file: str, tree: Any):
        self.file = file
        self.tree = tree

    def problem(self, rule: str, message: str, place: Iterable[Any] = ()) -> Problem:
        line, column = self.find(place)
        return Problem(self.file, line, column, rule, message)

    def find(self, place: Iterable[Any]) -> tuple[int, int]:
        node, found = self.tree, (1, 1)
        for part in place:
            if isinstance(node, CommentedMap) and part in node:
                line, column = node.lc.key(part)
            elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
                line, column = node.lc.item(part)
            else:
                continue  # the name of a kind, which the model knows and the file does not
            found, node = (line + 1, column + 1), node[part]
        return found


def _model(root: Path, path: Path, model: type[BaseModel], problems: list[Problem]) -> tuple[Any, Any, _Places]:
    file = path.relative_to(root).as_posix()
    nowhere = _Places(file, None)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(nowhere.problem("file", f"cannot be read: {error}"))
        return None, None, nowhere
    if len(text) > FILE_LIMIT:
        problems.append(nowhere.problem("file", f"is larger than {FILE_LIMIT // 1024} KB"))
        return None, None, nowhere
    try:
        tree = YAML(typ="rt", pure=True).load(StringIO(text))
        raw = _plain(tree, iter(range(NODE_LIMIT)), 0)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(Problem(file, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, "yaml", error.problem or "not YAML"))
        return None, None, nowhere
    except (YAMLError, RecursionError, ValueError) as error:
        problems.append(nowhere.problem("yaml", str(error) if isinstance(error, (YAMLError, ValueError)) else "nested too deeply"))
        return None, None, nowhere
    places = _Places(file, tree)
    try:
        return model.model_validate(raw), raw, places
    except ValidationError as error:
        for one in error.errors(include_url=False):
            problems.append(places.problem("schema", _say(one, model), one["loc"]))
    except RecursionError:
        problems.append(places.problem("schema", "nested too deeply"))
    return None, raw, places


def _plain(tree: Any, budget: Iterator[int], depth: int) -> Any:
    """The tree as JSON can carry it. The budget stops documents that multiply themselves through aliases."""
    if next(budget, None) is None:
        raise ValueError(f"has more than {NODE_LIMIT} values")
    if depth > DEPTH_LIMIT:
        raise ValueError(f"is nested more than {DEPTH_LIMIT} deep")
    if isinstance(tree, Mapping):
        return {str(name): _plain(value, budget, depth + 1) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(value, budget, depth + 1) for value in tree]
    if isinstance(tree, bool) or tree is None:
        return tree
    if isinstance(tree, (date, datetime)):
        return tree.isoformat()
    for kind in (int, float, str):
        if isinstance(tree, kind):
            return kind(tree)
    return str(tree)


def _say(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "is not known here"
    elif error["type"] == "missing":
        message = "is missing"
    return f"{name}: {message}" if name else message


def _check_lifecycle(lifecycle: Lifecycle, schema: Schema, places: _Places, problems: list[Problem]) -> None:
    conditions = [(("stages", number, "exit_when"), stage.exit_when) for number, stage in enumerate(lifecycle.stages) if stage.exit_when]
    for group in ("milestones", "usage"):
        conditions += [((group, name, "where"), spec.where) for name, spec in getattr(lifecycle, group).items() if spec.where]
    _check_conditions(conditions, schema, places, problems)
    for number, group in enumerate(lifecycle.health.groups if lifecycle.health else ()):
        for index, measure in enumerate(group.measures):
            if not _is_metric(measure.metric, lifecycle):
                place = ("health", "groups", number, "measures", index, "metric")
                problems.append(places.problem("name", f"{measure.metric} is not a metric; there are {_METRICS}", place))


_METRICS = "usage.NAME.last_30d, usage.NAME.previous_30d, usage.seats.share, milestones.share, survey.nps, survey.csat, survey.ces"


def _is_metric(metric: str, lifecycle: Lifecycle) -> bool:
    counted = re.fullmatch(r"usage\.(\w+)\.(?:last|previous)_[1-9]\d{0,3}d", metric)
    return counted[1] in lifecycle.usage if counted else metric in _METRICS.split(", ")[2:]


def _check_conditions(conditions: Iterable[tuple[tuple, str]], schema: Schema, places: _Places, problems: list[Problem]) -> None:
    for place, source in conditions:
        try:
            compile_condition(source, schema)
        except ConditionError as error:
            problems.append(places.problem("condition", f"{source!r}: {error}", place))


def _folder(
    root: Path, path: Path, lifecycle: Lifecycle, schema: Schema, blocks: Mapping[str, str], problems: list[Problem]
) -> Folder | None:
    before = len(problems)
    campaign, raw, places = _model(root, path, Campaign, problems)
    if campaign is None:
        return None
    key = path.parent.relative_to(root).as_posix()
    _check_names(campaign, lifecycle, places, problems)
    goal = goal_source(campaign.goal)
    conditions = list(conditions_of(campaign))
    if goal and not campaign.goal.when:
        conditions.append((("goal",), goal))
    _check_conditions(conditions, schema, places, problems)
    templates = _templates(root, path.parent, campaign, schema, blocks, places, problems)
    if len(problems) > before:
        return None
    content = {"campaign": raw, "templates": {one.path: one.source for one in templates}, "blocks": dict(blocks)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return Folder(key, raw, campaign, tuple(templates), digest)


def _check_names(campaign: Campaign, lifecycle: Lifecycle, places: _Places, problems: list[Problem]) -> None:
    def known(name: str | None, names: Iterable[str], what: str, place: tuple) -> None:
        if name is not None and name not in (names := list(names)):
            message = f"{what} {name} is not declared in lifecycle.yaml; there are: {', '.join(names)}"
            problems.append(places.problem("name", message, place))

    stages = [stage.name for stage in lifecycle.stages]
    topics = [*lifecycle.topics, TRANSACTIONAL]
    known(campaign.stage, stages, "stage", ("stage",))
    known(campaign.topic, topics, "topic", ("topic",))
    known(campaign.sender, lifecycle.senders, "sender", ("sender",))
    for role in campaign.recipients.roles:
        known(role, lifecycle.roles, "role", ("recipients", "roles"))
    known(campaign.trigger.milestone, lifecycle.milestones, "milestone", ("trigger", "milestone"))
    known(campaign.trigger.milestone_overdue, lifecycle.milestones, "milestone", ("trigger", "milestone_overdue"))
    known(campaign.trigger.stage, stages, "stage", ("trigger", "stage"))
    if campaign.goal:
        known(campaign.goal.stage, stages, "stage", ("goal", "stage"))
    seen: dict[str, int] = {}
    steps = {step.id: step for _, step in walk(campaign.steps)}
    for place, step in walk(campaign.steps):
        if step.id in seen:
            message = f"the step id {step.id} is used twice; ids are unique within a campaign"
            problems.append(places.problem("step", message, (*place, "id")))
        seen[step.id] = 1
        if isinstance(step, EmailStep):
            known(step.topic, topics, "topic", (*place, "topic"))
        spec = getattr(step, "wait_for", None)
        if spec is not None:
            known(spec.milestone, lifecycle.milestones, "milestone", (*place, "wait_for", "milestone"))
            known(spec.stage, stages, "stage", (*place, "wait_for", "stage"))
            for name, kind in (("survey", SurveyStep), ("click", EmailStep)):
                if (target := getattr(spec, name)) and not isinstance(steps.get(target), kind):
                    problems.append(places.problem("step", f"{target} is not {name} step of this campaign", (*place, "wait_for", name)))


def _templates(
    root: Path, folder: Path, campaign: Campaign, schema: Schema, blocks: Mapping[str, str], places: _Places, problems: list[Problem]
) -> list[Template]:
    found = []
    steps = {step.id: step for _, step in walk(campaign.steps)}
    for place, step in walk(campaign.steps):
        if not isinstance(step, EmailStep):
            continue
        asked = steps.get(step.reminds, step) if step.reminds else step
        base = folder / step.email
        if not base.is_file():
            there = ", ".join(sorted(one.name for one in folder.glob("*.mjml"))) or "no .mjml file"
            problems.append(places.problem("template", f"{step.email} is not in the folder; there is {there}", (*place, "email")))
            continue
        for path in [base, *sorted(folder.glob(f"{base.stem}.*.mjml"))]:
            file = path.relative_to(root).as_posix()
            locale = path.name[len(base.stem) + 1 : -len(".mjml")] if path != base else ""
            try:
                source = path.read_text("utf-8")
                compiled = compile_mail(
                    source,
                    step.subjects.get(locale, step.subject),
                    path=file,
                    blocks=blocks,
                    survey=getattr(asked, "survey", None),
                    question=getattr(asked, "question", None),
                )
            except (OSError, UnicodeDecodeError) as error:
                problems.append(Problem(file, 1, 1, "template", f"cannot be read: {error}"))
                continue
            except TemplateError as error:
                found_here = (Problem(one.path, one.line or 1, 1, "template", one.problem) for one in error.problems)
                problems.extend(one for one in found_here if one not in problems)  # a block's problem shows in every mail with it
                continue
            _check_reads(compiled, schema, file, problems)
            found.append(Template(step.id, locale, file, source, compiled))
    return found


def _check_reads(compiled: Compiled, schema: Schema, file: str, problems: list[Problem]) -> None:
    for read in sorted(compiled.reads):
        try:
            check_path(tuple(read.split(".")), schema)
        except ConditionError as error:
            problems.append(Problem(file, 1, 1, "name", str(error)))
