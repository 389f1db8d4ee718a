"""Placeholders: what MJML and HTML parsers must not touch is taken out as a word and put back afterwards (X-11)."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from jinja2 import nodes

from app.flow.composing.templates import ROOTS, TEXT, Path, Text, check, path_of


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a file. `line` and `column` are 1-based, None where they cannot be told; `fix` is the nearest right name."""

    path: str
    line: int | None
    problem: str
    column: int | None = None
    fix: str | None = None

    def __str__(self) -> str:
        said = f"{self.problem} (did you mean {self.fix}?)" if self.fix else self.problem
        return f"{self.path}:{self.line}: {said}" if self.line else f"{self.path}: {said}"


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
    """One source, its merge tags replaced by marks, and the places in the source that offsets in it came from.

    `make_tag(kind, source, where)` gives the mark of one merge tag. A source with flaws has no text.
    """

    def __init__(self, source: str, path: str, problems: list[Problem], make_tag: Callable[[str, str, Problem], str]):
        self.path = path
        self.text = ""
        self._starts: list[int] = []
        self._offsets: list[int] = []  # in the source, of what begins at `_starts`
        self._marked: list[bool] = []
        self._source = Text(source)
        flaws = check(source).flaws
        problems.extend(Problem(path, flaw.line, flaw.problem, flaw.column, flaw.fix) for flaw in flaws)
        if not flaws:
            self._mask(problems, make_tag)

    def _mask(self, problems: list[Problem], make_tag: Callable[[str, str, Problem], str]) -> None:
        pieces: list[str] = []
        length = begun = 0
        tag: list[str] = []
        for offset, token, value in self._source.tokens():
            piece = ""
            if token == "data":
                piece, begun = value, offset
            elif token.startswith("raw"):
                line, column = self._source.place(offset)
                problems.append(Problem(self.path, line, "templates do not know {% raw %}", column))
            elif token in ("variable_begin", "block_begin"):
                tag, begun = [value], offset
            elif token in ("variable_end", "block_end"):
                kind = "value" if token == "variable_end" else "statement"
                line, column = self._source.place(begun)
                piece = make_tag(kind, "".join((*tag, value)).strip(), Problem(self.path, line, "", column))
                tag = []
            elif tag:
                tag.append(value)
            if piece:
                self._starts.append(length)
                self._offsets.append(begun)
                self._marked.append(token != "data")
                pieces.append(piece)
                length += len(piece)
        self.text = "".join(pieces)

    def place(self, offset: int) -> tuple[int, int]:
        """The line and the column of the source that `offset` of the text came from; within a mark, those of its merge tag."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0:
            return 1, 1
        return self._source.place(self._offsets[at] + (0 if self._marked[at] else offset - self._starts[at]))


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
