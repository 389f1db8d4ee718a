"""Placeholders: what MJML and HTML parsers must not touch is taken out as a word and put back afterwards (X-11)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from jinja2 import nodes

from app.flow.composing.templates import ROOTS, TEXT, Path, check, path_of


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong in a file. `line` is 1-based, None where it cannot be told."""

    path: str
    line: int | None
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}" if self.line else f"{self.path}: {self.problem}"


@dataclass(slots=True)
class Mark:
    """What a placeholder stands for. `html` and `text` are what comes back in either part; both may hold marks again."""

    kind: str  # value, statement, content or href
    html: str
    text: str
    where: Problem
    track: bool = False


@dataclass(slots=True)
class Marks:
    """The placeholders of one mail: words that no source contains, so that any parser leaves them alone."""

    prefix: str
    all: list[Mark] = field(default_factory=list)

    @staticmethod
    def avoiding(*sources: str) -> Marks:
        prefix = "njq"
        while any(prefix in source for source in sources):
            prefix += "q"
        return Marks(prefix)

    def add(self, kind: str, html: str, text: str, where: Problem, track: bool = False) -> str:
        self.all.append(Mark(kind, html, text, where, track))
        return f"{self.prefix}{len(self.all) - 1}z"

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.prefix) + r"(\d+)z")

    def numbers(self, text: str) -> list[int]:
        return [int(number) for number in self.pattern.findall(text)]

    def within(self, text: str) -> list[Mark]:
        return [self.all[number] for number in self.numbers(text)]

    def restore(self, text: str, part: str, kinds: frozenset[str] = frozenset({"value", "statement", "content", "href"})) -> str:
        """`text` with the marks of `kinds` replaced by what they stand for in `part` (html or text)."""

        def back(match: re.Match[str]) -> str:
            mark = self.all[int(match.group(1))]
            return self.restore(getattr(mark, part), part, kinds) if mark.kind in kinds else match.group()

        return self.pattern.sub(back, text)


class File:
    """One source, its merge tags replaced by marks, and the lines that places in it came from.

    `make_tag(kind, source, where)` gives the mark of one merge tag. A source with flaws has no text.
    """

    def __init__(self, source: str, path: str, problems: list[Problem], make_tag: Callable[[str, str, Problem], str]):
        self.path = path
        self.text = ""
        self._starts: list[int] = []
        self._lines: list[int] = []
        flaws = check(source).flaws
        problems.extend(Problem(path, flaw.line, flaw.problem) for flaw in flaws)
        if not flaws:
            self._mask(source, problems, make_tag)

    def _mask(self, source: str, problems: list[Problem], make_tag: Callable[[str, str, Problem], str]) -> None:
        pieces: list[str] = []
        length = begun = 0
        tag: list[str] = []
        for line, token, value in TEXT.lex(source):
            piece = ""
            if token == "data":
                piece = value
            elif token.startswith("raw"):
                problems.append(Problem(self.path, line, "templates do not know {% raw %}"))
            elif token in ("variable_begin", "block_begin"):
                tag, begun = [value], line
            elif token in ("variable_end", "block_end"):
                kind = "value" if token == "variable_end" else "statement"
                piece = make_tag(kind, "".join((*tag, value)).strip(), Problem(self.path, begun, ""))
                tag, line = [], begun
            elif tag:
                tag.append(value)
            if piece:
                self._starts.append(length)
                self._lines.append(line)
                pieces.append(piece)
                length += len(piece)
        self.text = "".join(pieces)

    def line(self, offset: int) -> int:
        """The line of the source that `offset` of the text came from."""
        at = bisect_right(self._starts, offset) - 1
        return 1 if at < 0 else self._lines[at] + self.text.count("\n", self._starts[at], offset)


def _expression(mark: Mark) -> nodes.Node | None:
    body = TEXT.parse(mark.html).body
    return body[0].nodes[0] if body and isinstance(body[0], nodes.Output) and len(body[0].nodes) == 1 else None


def path_shown(mark: Mark) -> Path | None:
    """The path that a merge tag shows, if it shows nothing else."""
    node = _expression(mark)
    return path_of(node) if node is not None else None


def root_of(mark: Mark) -> str | None:
    """The first word of the path that a merge tag shows, if it shows nothing else."""
    path = path_shown(mark)
    return str(path[0]) if path else None


def last_filter(mark: Mark) -> str | None:
    node = _expression(mark)
    return node.name if isinstance(node, nodes.Filter) else None


def is_own(mark: Mark) -> bool:
    """Whether a merge tag means the same wherever it stands: it names nothing of a loop."""
    return all(name.name in ROOTS for name in TEXT.parse(mark.html).find_all(nodes.Name))
