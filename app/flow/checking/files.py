"""Reads definition files: what is there is looked at before it is opened, and what a model refuses is said with its place and a fix."""

from __future__ import annotations

import os
import re
import stat
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from app.flow.checking.yaml import NotYaml, Place, Tree, parse
from app.rules.definition import STEP_KINDS
from app.rules.fields import FORMS, Misplaced, Problem, nearest

FILE_LIMIT = 256 * 1024  # bytes


class Places:
    """Where in a file things stand."""

    def __init__(self, file: str, tree: Tree | None):
        self.file = file
        self.tree = tree

    def problem(
        self, rule: str, message: str, place: Place = (), *, key: bool = False, fix: str | None = None, severity: str = "error"
    ) -> Problem:
        """A problem of the value at `place`, or of its key."""
        line, column = self.tree.find(place, key) if self.tree else (1, 1)
        return Problem(self.file, line, column, rule, message, fix, severity)


def load(root: Path, path: Path, model: type[BaseModel], problems: list[Problem]) -> tuple[Any, Any, Places]:
    """The file below `root` as `model`, as plain values, and the places of both; None for what is not right, with `problems` saying why.

    For `lifecycle.yaml`, `campaign.yaml`, `tests.yaml`: any definition that a model describes.
    """
    places = Places(path.relative_to(root).as_posix(), None)
    try:
        text = read_text(root, path)
        places.tree = parse(text)
    except OSError as error:
        problems.append(places.problem("file", f"cannot be read: {error.strerror or error}"))
        return None, None, places
    except NotYaml as error:
        problems.append(Problem(places.file, error.line, error.column, "yaml", error.problem))
        return None, None, places
    except NotText as error:
        problems.append(Problem(places.file, error.line, error.column, "file", str(error)))
        return None, None, places
    raw = places.tree.value
    try:
        return model.model_validate(raw), raw, places
    except ValidationError as error:
        problems.extend(_explained(error, model, raw, places))
    except RecursionError:
        problems.append(places.problem("schema", "nested too deeply"))
    return None, raw, places


class NotText(ValueError):
    """A file that is no text that can be used: too large, not UTF-8, not a file, or not in the folder."""

    def __init__(self, problem: str, line: int = 1, column: int = 1):
        super().__init__(problem)
        self.line, self.column = line, column


def read_text(root: Path, path: Path, limit: int = FILE_LIMIT) -> str:
    """The text of a regular file below `root`. Never reads more than `limit` bytes, never follows a link out of `root`, never waits.

    Raises NotText, or OSError.
    """
    home = Path(os.path.realpath(root))
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(home):
        raise NotText("is a link that leads out of the campaigns folder")
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise NotText("is not a file")
        data = file.read(limit + 1) if about.st_size <= limit else b"x" * (limit + 1)
    if len(data) > limit:
        raise NotText(f"is larger than {limit // 1024} KB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise NotText("is not UTF-8 text", line, column) from error


# What a model says -----------------------------------------------------------------------------------------------------


def _explained(error: ValidationError, model: type[BaseModel], raw: Any, places: Places) -> Iterator[Problem]:
    """Each problem once: of a value that may be one of several things, only what fits what it is."""
    found = [_Found(one, model, raw) for one in error.errors(include_url=False)]
    misspelt = {(*one.place[:-1], one.fix) for one in found if one.kind == "extra_forbidden" and one.fix}
    for at, one in enumerate(found):
        if one.kind == "missing" and one.place in misspelt:
            continue
        rivals = [other for other in found if other is not one and other.union and other.union == one.union]
        if any(_fits_better(other, one) for other in rivals):
            continue
        twins = [other for other in rivals if other.place == one.place and not _fits_better(one, other)]
        if any(found.index(other) < at for other in twins):
            continue
        said = " or ".join(dict.fromkeys([one.message, *(other.message for other in twins)]))
        name = ".".join(map(str, one.place))
        fix = next((other.fix for other in (one, *twins) if other.fix), None)
        yield places.problem("schema", f"{name}: {said}" if name else said, one.place, key=one.of_key, fix=fix)


def _fits_better(one: _Found, other: _Found) -> bool:
    return one.union == other.union and one.fits and not other.fits


class _Found:
    """One error of a model. `place` leads through the file; `union` is the place of the value that may be one of several things, and
    `fits` says whether the error speaks of the kind of thing that the value is."""

    def __init__(self, error: Mapping[str, Any], model: type[BaseModel], raw: Any):
        self.union: Place | None = None
        self.fits = True
        self.kind = error["type"]
        self.of_key = error["type"] in ("extra_forbidden", "missing") or "[key]" in error["loc"]
        place: list[Any] = []
        kinds: list[tuple[str | None, Any]] = [(None, model)]
        for part in error["loc"]:
            if part == "[key]":
                continue
            if len(kinds) > 1:  # the name of one of several kinds, which the model knows and the file does not
                tagged = any(tag for tag, _ in kinds)
                if not tagged:
                    self.union = tuple(place)
                    self.fits = isinstance(raw, (dict, list)) == any(_name(kind) == part and _structured(kind) for _, kind in kinds)
                kinds = [one for one in kinds if part in (one[0], _name(one[1]))] or [one for one in kinds if not _structured(one[1])][:1]
                if tagged or not isinstance(raw, dict) or part not in raw:
                    continue
            place.append(part)
            kinds = list(_inner(kinds, part))
            raw = raw[part] if _holds(raw, part) else None
        problem = (error.get("ctx") or {}).get("error")
        self.fix: str | None = None
        if isinstance(problem, Misplaced):
            place += problem.place
            self.fix = problem.fix
        self.place = tuple(place)
        self.message = self._said(error, place[-1] if place else "", model, raw)

    def _said(self, error: Mapping[str, Any], last: Any, model: type[BaseModel], raw: Any) -> str:
        kind, context, given = error["type"], error.get("ctx") or {}, error.get("input")
        if kind == "extra_forbidden":
            self.fix = nearest(last, self._siblings(error, model))
            return "is not known here"
        if kind == "missing":
            return "is missing"
        if kind == "literal_error":
            self.fix = nearest(given, re.findall(r"'([^']*)'", context["expected"]))
            return f"{_short(given)} is not one of {context['expected']}"
        if kind == "string_pattern_mismatch":
            form = FORMS.get(context["pattern"])
            return (
                f"{_short(given)} does not fit here; write it as {form}" if form else f"{_short(given)} does not fit {context['pattern']}"
            )
        if kind == "step_kind" and isinstance(raw, Mapping):
            self.fix = next((near for key in raw if key != "id" and (near := nearest(key, STEP_KINDS))), None)
        return error["msg"].removeprefix("Value error, ")

    def _siblings(self, error: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
        """The names that may stand where an unknown one stands."""
        kinds: list[tuple[str | None, Any]] = [(None, model)]
        for part in error["loc"][:-1]:
            if len(kinds) > 1 and (found := [one for one in kinds if part in (one[0], _name(one[1]))]):
                kinds = found
            else:
                kinds = list(_inner(kinds, part))
        return [field.alias or name for _, kind in kinds if _is_model(kind) for name, field in kind.model_fields.items()]


def _inner(kinds: Iterable[tuple[str | None, Any]], part: Any) -> Iterator[tuple[str | None, Any]]:
    """The kinds that the value at `part` of a value of these kinds may have."""
    for _, kind in kinds:
        if _is_model(kind):
            for name, field in kind.model_fields.items():
                if part in (name, field.alias):
                    yield from _kinds(field.annotation)
        elif get_origin(kind) is dict:
            yield from _kinds(get_args(kind)[1])
        elif get_origin(kind) in (list, tuple, set, frozenset) and isinstance(part, int):
            yield from _kinds(get_args(kind)[0])


def _kinds(annotation: Any, tag: str | None = None) -> Iterator[tuple[str | None, Any]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *notes = get_args(annotation)
        found = next((note.tag for note in notes if isinstance(note, Tag)), tag)
        yield from _kinds(inner, found)
    elif origin in (Union, types.UnionType):
        for one in get_args(annotation):
            if one is not type(None):
                yield from _kinds(one, tag)
    else:
        yield tag, annotation


def _name(kind: Any) -> str:
    """What pydantic calls the kind in a place."""
    if get_origin(kind) is Literal:
        return f"literal[{','.join(map(repr, get_args(kind)))}]"
    return kind.__name__ if _is_model(kind) else getattr(kind, "__name__", str(kind))


def _structured(kind: Any) -> bool:
    return _is_model(kind) or get_origin(kind) in (list, dict, tuple)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _holds(raw: Any, part: Any) -> bool:
    return (isinstance(raw, dict) and part in raw) or (isinstance(raw, list) and isinstance(part, int) and part < len(raw))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"
