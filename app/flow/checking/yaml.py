"""YAML as definitions use it: plain values, each with its place; nothing that multiplies, runs or refers.

Reads events and builds the tree itself, so that a hostile file is refused at the line where it becomes one, before it costs anything:
anchors, aliases, merge keys, tags, complex keys, a second document, duplicate keys, infinite and endless numbers, depth and size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

NODE_LIMIT = 20_000
DEPTH_LIMIT = 60
DIGITS = 20

Place = tuple[Any, ...]  # keys and indexes that lead to a value

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    word: value
    for value, words in ((None, "null Null NULL ~"), (True, "true True TRUE"), (False, "false False FALSE"))
    for word in words.split()
}


class NotYaml(ValueError):
    """What is wrong with a text as YAML, with its line and column from 1."""

    def __init__(self, problem: str, line: int, column: int):
        super().__init__(problem)
        self.problem, self.line, self.column = problem, line, column


@dataclass(frozen=True, slots=True)
class Tree:
    """A text's plain value. `keys` and `values` are the (line, column), both from 1, of every key (or item) and of its value."""

    value: Any
    keys: dict[Place, tuple[int, int]]
    values: dict[Place, tuple[int, int]]

    def find(self, place: Place, key: bool = False) -> tuple[int, int]:
        """Where the value at `place` (or its key) stands; of what does not exist, where that stands in which it would be."""
        for length in range(len(place), 0, -1):
            found = (self.keys if key else self.values).get(place[:length])
            if found:
                return found
        return 1, 1


@dataclass(slots=True)
class _Open:
    """A mapping or a list that has begun and not ended."""

    place: Place
    value: dict[str, Any] | list[Any]
    key: str | None = None
    ends: dict[str, int] = field(default_factory=dict)  # keys with their lines


def parse(text: str) -> Tree:
    """The tree of `text`. Raises NotYaml for the first thing that is wrong, without recursion and in time that grows with the text."""
    tree = Tree(None, {}, {})
    stack: list[_Open] = []
    count = documents = 0
    root: list[Any] = []
    for event in _events(text):
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise NotYaml("a file holds one document; what follows `---` is not looked at", line, column)
            continue
        if isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            stack.pop()
            continue
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            raise NotYaml("anchors (&) and aliases (*) are not used in definitions; write it out", line, column)
        if not isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent)):
            continue
        count += 1
        if count > NODE_LIMIT:
            raise NotYaml(f"has more than {NODE_LIMIT} values", line, column)
        if _tagged(event):
            raise NotYaml("tags (!) are not used in definitions", line, column)
        above = stack[-1] if stack else None
        if above is not None and isinstance(above.value, dict) and above.key is None:
            _begin_pair(above, event, line, column)
            tree.keys[(*above.place, above.key)] = (line, column)
            continue
        place = _place(above)
        tree.values[place] = (line, column)
        if above is not None and isinstance(above.value, list):
            tree.keys[place] = (line, column)
        if isinstance(event, ScalarEvent):
            value: Any = _scalar(event, line, column)
        else:
            if len(stack) >= DEPTH_LIMIT:
                raise NotYaml(f"is nested more than {DEPTH_LIMIT} deep", line, column)
            value = {} if isinstance(event, MappingStartEvent) else []
        if above is None:
            root.append(value)
        elif isinstance(above.value, list):
            above.value.append(value)
        else:
            above.value[above.key] = value
            above.key = None
        if not isinstance(event, ScalarEvent):
            stack.append(_Open(place, value))
    return Tree(root[0] if root else None, tree.keys, tree.values)


def _events(text: str) -> Iterator[Any]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYaml(error.problem or "not YAML", mark.line + 1 if mark else 1, mark.column + 1 if mark else 1) from error
    except YAMLError as error:
        at = getattr(error, "position", 0) or 0
        line = text.count("\n", 0, at) + 1
        raise NotYaml(
            f"not YAML: {getattr(error, 'reason', None) or str(error)[:200]}", line, at - (text.rfind("\n", 0, at) + 1) + 1
        ) from error
    except (ValueError, RecursionError, OverflowError) as error:
        raise NotYaml(f"not YAML: {str(error)[:200]}", 1, 1) from error


def _tagged(event: Any) -> bool:
    tag = getattr(event, "ctag", None) or getattr(event, "tag", None)
    if tag is None:
        return False
    if isinstance(event, ScalarEvent):
        return not (event.implicit[0] or event.implicit[1])
    return not event.implicit


def _begin_pair(above: _Open, event: Any, line: int, column: int) -> None:
    if not isinstance(event, ScalarEvent):
        raise NotYaml("a key is a word, not a list or a mapping", line, column)
    key = event.value
    if key == "<<" and not event.style:
        raise NotYaml("merge keys (<<) are not used in definitions; write it out", line, column)
    if key in above.ends:
        raise NotYaml(f"{key[:100]} stands here twice, first in line {above.ends[key]}: a duplicate key", line, column)
    above.key, above.ends[key] = key, line


def _place(above: _Open | None) -> Place:
    if above is None:
        return ()
    return (*above.place, len(above.value) if isinstance(above.value, list) else above.key)


def _scalar(event: ScalarEvent, line: int, column: int) -> Any:
    """The value of a scalar by YAML 1.2's core schema; dates stay text."""
    text = event.value
    if event.style or not event.implicit[0]:
        return text
    if text == "" or text in _WORDS:
        return _WORDS.get(text)
    if _INTEGER.fullmatch(text):
        if len(text) > DIGITS:
            raise NotYaml(f"a number has at most {DIGITS} digits; put it into quotes if it is a text", line, column)
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    if _FLOAT.fullmatch(text):
        value = float(text.replace(".inf", "inf").replace(".nan", "nan").lower().lstrip(".")) if "n" in text.lower() else float(text)
        if not math.isfinite(value):
            raise NotYaml(f"{text[:30]} is not a number that can be used", line, column)
        return value
    return text
