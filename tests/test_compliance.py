"""The compliance page: every requirement stands there once, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from app.config import CODE

PAGE = (CODE / "docs" / "compliance.md").read_text("utf-8")


def numbered(letter: str, *ranges: tuple[int, int]) -> list[str]:
    return [f"{letter}-{number:02}" for first, last in ranges for number in range(first, last + 1)]


IDS = [
    *numbered("B", (1, 10)),
    *numbered("U", (1, 12)),
    *numbered("M", (1, 15)),
    *numbered("S", (1, 7), (10, 20)),
    *numbered("I", (1, 7)),
    *numbered("W", (1, 6), (10, 12)),
    *numbered("T", (1, 6), (10, 16)),
    *numbered("Q", (1, 9)),
    *numbered("K", (1, 6)),
    *numbered("P", (1, 13)),
    *numbered("X", (1, 6), (10, 23), (30, 48)),
]
ROWS = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in PAGE.splitlines() if re.match(r"\| [A-Z]-\d\d \|", line)]


def named() -> list[tuple[str, str]]:
    """File and name of each test that the page names; `::b` after `tests/a.py::a` is of the same file."""
    found, file = [], ""
    for path, name in re.findall(r"(tests/\w+\.py)?::(\w+\*?)", PAGE):
        file = path or file
        found.append((file, name))
    return sorted(set(found))


@cache
def these_in(file: str) -> frozenset[str]:
    path = CODE / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_every_requirement_has_one_row_in_order():
    assert [row[0] for row in ROWS] == IDS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_says_its_state_and_shows_it(row):
    _, asks, state, why = row
    assert asks and len(why) > 15
    assert state in ("done", "partly", "no")
    if state == "done":
        assert "::" in why or "](" in why, "what is done is shown"
    else:
        assert not re.fullmatch(r"(`[^`]*`(, )?)+", why), "what is missing is said"


@pytest.mark.parametrize("file, name", named(), ids=lambda value: value.removeprefix("tests/"))
def test_every_test_that_is_named_exists(file, name):
    there = these_in(file)
    assert any(test.startswith(name[:-1]) for test in there) if name.endswith("*") else name in there
