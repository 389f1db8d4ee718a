"""By how much: why a condition is not true (or why it is), as the fewest comparisons that say so, with the distance where there is one.

A condition is read a second time, as clauses that know their own text. Deciding never touches them: `test` stays one closure.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from typing import Any

from jinja2 import nodes

from app.rules.facts import Scope
from app.rules.missing import MISSING, plain

KEPT = 8  # comparisons that a line of the ledger keeps
LONGEST = 120  # characters of a value or a text that are kept
LISTED = 12  # members of a list that are kept
FURTHEST = 1e15  # beyond it a distance says nothing, and floats do not count by ones
Getter = Callable[[Scope], Any]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One comparison that a condition fails on; with `holds`, one that makes it true.

    `source` is the comparison's text and `subject` that of the side that varies; `path` is the dotted name the subject reads, None
    where it reads none or several. `was` is the subject's value (None: never set, or not to be worked out), `wanted` the other side's,
    and `against` that side's text, None for a plain value. `operator` says what is asked of `was`: `==`, `!=`, `<`, `<=`, `>`, `>=`,
    `in`, `not in`, `has`, `has not`, `set`, `missing`, `true`, `false`, or `or` (then `arms` holds the alternatives, the nearest first).

    `distance` is the least change of `was` that makes the comparison true: a number, or a timedelta between moments; with `beyond` it
    takes a little more than that. `days` says that `was` counts days. `raw` says that `was` is stored but not of its declared type, so
    that it reads as missing.
    """

    source: str
    operator: str
    subject: str = ""
    path: str | None = None
    was: Any = None
    wanted: Any = None
    against: str | None = None
    distance: float | timedelta | None = None
    beyond: bool = False
    days: bool = False
    raw: bool = False
    holds: bool = False
    arms: tuple[tuple[Shortfall, ...], ...] = ()

    def plain(self) -> dict[str, Any]:
        """As the ledger and JSON carry it: `what`, `was`, `is` (the operator), `wanted`, `by`; or `any`, a list of alternatives."""
        if self.arms:
            return {"any": [[one.plain() for one in arm] for arm in self.arms]}
        found: dict[str, Any] = {"what": self.subject, "was": short(self.was), "is": self.operator}
        if self.operator not in ("set", "missing", "true", "false"):
            found["wanted"] = short(self.wanted)
        if self.distance is not None:
            seconds = isinstance(self.distance, timedelta)
            found["by"] = self.distance.total_seconds() if seconds else self.distance
            if seconds or self.days:
                found["unit"] = "seconds" if seconds else "days"
        unknown = self.was is None and self.path is None
        optional = {"beyond": self.beyond, "raw": self.raw, "unknown": unknown, "holds": self.holds, "against": self.against}
        return found | {name: value for name, value in optional.items() if value}


class Clause(ABC):
    """A part of a condition that can say why it is, or is not, as wanted."""

    __slots__ = ()

    @abstractmethod
    def truth(self, scope: Scope) -> bool:
        """Whether it is true."""

    @abstractmethod
    def lacks(self, scope: Scope, want: bool) -> tuple[Shortfall, ...]:
        """What must change for it to become `want`. Asked only while it is not."""

    @abstractmethod
    def holds(self, scope: Scope, have: bool) -> tuple[Shortfall, ...]:
        """What makes it `have`. Asked only while it is."""

    def why(self, scope: Scope) -> tuple[Shortfall, ...]:
        """Why it is not true; where it is true, why it is."""
        return self.holds(scope, True) if self.truth(scope) else self.lacks(scope, True)


def clause_of(node: nodes.Node, translate: Callable[..., Getter], untyped: Callable[[str], Getter]) -> Clause:
    """The clause of an expression that is known to be allowed. `translate` gives an operand's value, `untyped` that of a stored path
    whatever its type."""
    negated = False
    while isinstance(node, nodes.Not):
        node, negated = node.node, not negated
    if isinstance(node, (nodes.And, nodes.Or)):
        found: Clause = _Join(_flat(node, translate, untyped), isinstance(node, nodes.And), written(node))
    elif isinstance(node, nodes.Compare):
        found = _compared(node, translate, untyped)
    elif isinstance(node, nodes.Test):
        inner = _operand(node.node, translate(node.node, True), untyped)
        found = _Atom(written(node), inner, None, "set" if node.name == "defined" else "missing")
    else:
        found = _Atom(written(node), _operand(node, translate(node), untyped), None, "true")
    return _Not(found) if negated else found


def compact(found: Sequence[Shortfall]) -> list[dict[str, Any]]:
    """Shortfalls as a line of the ledger keeps them: the first few, of alternatives the nearest few."""
    left = KEPT
    kept = []
    for one in found:
        said, left = _within(one, left)
        if said:
            kept.append(said)
    return kept


def short(value: Any) -> Any:
    """`value` as JSON can carry it, long texts and lists cut."""
    value = plain(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
    if isinstance(value, (list, tuple)):
        made = [short(one) for one in value[:LISTED]]
        return [*made, f"… {len(value) - LISTED} more"] if len(value) > LISTED else made
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        return float(value) if abs(value) < 10**300 else "a huge number"
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return short(str(value))


def _within(one: Shortfall, left: int) -> tuple[dict[str, Any] | None, int]:
    if left <= 0:
        return None, 0
    if not one.arms:
        return one.plain(), left - 1
    arms = []
    for arm in one.arms:
        said = []
        for inner in arm:
            made, left = _within(inner, left)
            if made is None:
                break
            said.append(made)
        if len(said) < len(arm):
            break  # an alternative that is cut would say something wrong
        arms.append(said)
    more = len(one.arms) - len(arms)
    return ({"any": arms} | ({"more": more} if more else {})) if arms else None, left


# Clauses -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Operand:
    """One side of a comparison: its text, its value, what it reads."""

    text: str
    get: Getter
    constant: bool
    path: str | None
    days: str | None  # the filter, where it counts days
    counts: bool  # whether its numbers are whole by nature: more than 5 is 6 at least
    untyped: Getter | None


class _Not(Clause):
    __slots__ = ("inner",)

    def __init__(self, inner: Clause):
        self.inner = inner

    def truth(self, scope: Scope) -> bool:
        return not self.inner.truth(scope)

    def lacks(self, scope: Scope, want: bool) -> tuple[Shortfall, ...]:
        return self.inner.lacks(scope, not want)

    def holds(self, scope: Scope, have: bool) -> tuple[Shortfall, ...]:
        return self.inner.holds(scope, not have)


class _Join(Clause):
    """`and` (every) or `or` of any number of parts."""

    __slots__ = ("every", "parts", "source")

    def __init__(self, parts: Sequence[Clause], every: bool, source: str):
        self.parts, self.every, self.source = tuple(parts), every, source

    def truth(self, scope: Scope) -> bool:
        for part in self.parts:
            if part.truth(scope) is not self.every:
                return not self.every
        return self.every

    def lacks(self, scope: Scope, want: bool) -> tuple[Shortfall, ...]:
        found = [part.lacks(scope, want) for part in self.parts if part.truth(scope) is not want]
        if self.every is want:
            return tuple(one for some in found for one in some)
        if len(found) == 1:
            return found[0]
        arms = tuple(sorted(found, key=_farness))
        return (Shortfall(self.source, "or", arms=arms),)

    def holds(self, scope: Scope, have: bool) -> tuple[Shortfall, ...]:
        found: list[Shortfall] = []
        for part in self.parts:
            if part.truth(scope) is not have:
                continue
            if self.every is not have:
                return part.holds(scope, have)
            found += part.holds(scope, have)
        return tuple(found)


class _Atom(Clause):
    """One comparison, or one value that is asked about."""

    __slots__ = ("operator", "other", "source", "subject")

    def __init__(self, source: str, subject: _Operand, other: _Operand | None, operator: str):
        self.source, self.subject, self.other, self.operator = source, subject, other, operator

    def truth(self, scope: Scope) -> bool:
        was = self.subject.get(scope)
        if self.operator == "missing":
            return was is MISSING
        if self.operator == "set":
            return was is not MISSING
        if self.operator == "true":
            return bool(was)
        wanted = self.other.get(scope)
        if was is MISSING or wanted is MISSING:
            return False
        try:
            return bool(_TRUE[self.operator](was, wanted))
        except TypeError:
            return False

    def lacks(self, scope: Scope, want: bool) -> tuple[Shortfall, ...]:
        return (self._said(scope, want, False),)

    def holds(self, scope: Scope, have: bool) -> tuple[Shortfall, ...]:
        return (self._said(scope, have, True),)

    def _said(self, scope: Scope, want: bool, holds: bool) -> Shortfall:
        subject, other = self.subject, self.other
        operator = self.operator if want else _NEGATED[self.operator]
        was = subject.get(scope)
        wanted = other.get(scope) if other else None
        if other and wanted is MISSING and was is not MISSING:
            # What hinders is the other side.
            subject, other, was, wanted, operator = other, subject, wanted, was, _SWAPPED.get(operator, "set")
        raw = False
        if was is MISSING and subject.untyped is not None and (stored := subject.untyped(scope)) is not MISSING:
            was, raw = stored, True
        distance, beyond = (None, False) if holds or raw else _distance(operator, was, wanted, subject.counts)
        return Shortfall(
            source=self.source if want else f"not ({self.source})",
            operator=operator,
            subject=subject.text,
            path=subject.path,
            was=_kept(was),
            wanted=_kept(wanted),
            against=other.text if other and not other.constant else None,
            distance=distance,
            beyond=beyond,
            days=subject.days is not None,
            raw=raw,
            holds=holds,
        )


def _kept(value: Any) -> Any:
    return None if value is MISSING else value


_NEGATED = {
    "==": "!=",
    "!=": "==",
    "<": ">=",
    ">=": "<",
    ">": "<=",
    "<=": ">",
    "in": "not in",
    "not in": "in",
    "has": "has not",
    "has not": "has",
    "set": "missing",
    "missing": "set",
    "true": "false",
}
_SWAPPED = {
    "==": "==",
    "!=": "!=",
    "<": ">",
    ">": "<",
    "<=": ">=",
    ">=": "<=",
    "in": "has",
    "not in": "has not",
    "has": "in",
    "has not": "not in",
}
_TRUE: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
    "has": lambda a, b: b in a,
    "has not": lambda a, b: b not in a,
}


def _distance(operator: str, was: Any, wanted: Any, counts: bool) -> tuple[float | timedelta | None, bool]:
    """The least change of `was` that makes the comparison true, and whether it takes a little more than that."""
    if operator not in ("==", "<", "<=", ">", ">="):
        return None, False
    strict = operator in ("<", ">")
    if _number(was) and _number(wanted):
        if not (abs(was) <= FURTHEST and abs(wanted) <= FURTHEST):
            return None, False
        gap = abs(wanted - was)
        if not (isinstance(was, int) and isinstance(wanted, int)):
            return _tidy(gap, was, wanted), strict
        return (gap + 1, False) if strict and counts else (gap, strict)
    if isinstance(was, datetime) and isinstance(wanted, datetime) and (was.tzinfo is None) == (wanted.tzinfo is None):
        return abs(wanted - was), strict
    return None, False


def _tidy(gap: float, was: float, wanted: float) -> float:
    """The gap in as few digits as still lead from `was` to `wanted`: 0.2, where the difference of the floats is 0.19999999999999996."""
    for digits in (6, 12):
        near = round(gap, digits)
        if near and was + (near if wanted > was else -near) == wanted:
            return near
    return gap


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _farness(arm: Sequence[Shortfall]) -> float:
    """How far an alternative is from being true, for putting the nearest first: a comparison without a distance counts whole."""
    total = 0.0
    for one in arm:
        if one.arms:
            total += min(_farness(inner) for inner in one.arms)
        elif isinstance(one.distance, timedelta):
            total += min(1.0, one.distance / timedelta(days=90))
        elif one.distance is not None:
            total += min(1.0, one.distance / max(abs(one.was), abs(one.wanted), 1))
        else:
            total += 1.0
    return total


# Reading the expression ----------------------------------------------------------------------------------------------


def _flat(node: nodes.And | nodes.Or, translate: Callable[..., Getter], untyped: Callable[[str], Getter]) -> list[Clause]:
    """The parts of a chain of `and` (or of `or`), however it is nested."""
    found, todo = [], [node]
    while todo:
        one = todo.pop()
        if type(one) is type(node):
            todo += [one.right, one.left]
        else:
            found.append(clause_of(one, translate, untyped))
    return found


_OPERATORS = {"eq": "==", "ne": "!=", "lt": "<", "lteq": "<=", "gt": ">", "gteq": ">=", "in": "in", "notin": "not in"}


def _compared(node: nodes.Compare, translate: Callable[..., Getter], untyped: Callable[[str], Getter]) -> Clause:
    sides = [node.expr, *(operand.expr for operand in node.ops)]
    operands = [_operand(side, translate(side), untyped) for side in sides]
    atoms = []
    for index, operand in enumerate(node.ops):
        left, right, operator = operands[index], operands[index + 1], _OPERATORS[operand.op]
        source = f"{left.text} {operator} {right.text}"
        if left.constant and not right.constant:
            left, right, operator = right, left, _SWAPPED[operator]
        atoms.append(_Atom(source, left, right, operator))
    return atoms[0] if len(atoms) == 1 else _Join(atoms, True, written(node))


def _operand(node: nodes.Node, get: Getter, untyped: Callable[[str], Getter]) -> _Operand:
    paths = _paths(node)
    path = paths[0] if len(paths) == 1 else None
    days = node.name if isinstance(node, nodes.Filter) and node.name in ("days_since", "days_until") else None
    stored = untyped(path) if path is not None and isinstance(node, (nodes.Getattr, nodes.Getitem)) and ".traits." in path else None
    counted = isinstance(node, nodes.Filter) and node.name == "length"
    counts = counted or (path is not None and _COUNTED.fullmatch(path) is not None and not isinstance(node, nodes.BinExpr))
    return _Operand(written(node), get, not paths, path, days, counts, stored)


_COUNTED = re.compile(r"account\.seats|usage\.\w+\.(total|(last|previous|contacts)_\d+d)")


def _paths(node: nodes.Node) -> list[str]:
    """The different dotted names that an expression reads."""
    found: dict[str, None] = {}
    todo = [node]
    while todo:
        one = todo.pop()
        if isinstance(one, (nodes.Name, nodes.Getattr, nodes.Getitem)):
            found[written(one)] = None
        else:
            todo += list(one.iter_child_nodes())
    return list(found)


def written(node: nodes.Node, depth: int = 0) -> str:
    """The text of an expression, long values cut and what is nested too deeply left out."""
    if depth > 40:
        return "…"
    if isinstance(node, nodes.Const):
        return _constant(node.value)
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        return f"{written(node.node, depth + 1)}.{node.attr}"
    if isinstance(node, nodes.Getitem):
        return f"{written(node.node, depth + 1)}.{getattr(node.arg, 'value', '…')}"
    if isinstance(node, (nodes.List, nodes.Tuple)):
        inner = [written(item, depth + 1) for item in node.items[:LISTED]] + (["…"] if len(node.items) > LISTED else [])
        return f"[{', '.join(inner)}]"
    if isinstance(node, nodes.Not):
        return f"not {_bracketed(node.node, depth)}"
    if isinstance(node, nodes.Neg):
        return f"-{_bracketed(node.node, depth)}"
    if isinstance(node, nodes.Test):
        return f"{_bracketed(node.node, depth)} is {node.name}"
    if isinstance(node, nodes.Filter):
        arguments = f"({', '.join(written(one, depth + 1) for one in node.args)})" if node.args else ""
        return f"{_bracketed(node.node, depth)} | {node.name}{arguments}"
    if isinstance(node, nodes.Compare):
        rest = "".join(f" {_OPERATORS[one.op]} {_bracketed(one.expr, depth)}" for one in node.ops)
        return f"{_bracketed(node.expr, depth)}{rest}"
    if isinstance(node, nodes.BinExpr):
        return f"{_bracketed(node.left, depth)} {node.operator} {_bracketed(node.right, depth)}"
    return "…"


def _bracketed(node: nodes.Node, depth: int) -> str:
    text = written(node, depth + 1)
    return f"({text})" if isinstance(node, (nodes.BinExpr, nodes.Compare, nodes.Not)) else text


def _constant(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + (value if len(value) <= LONGEST else value[: LONGEST - 1] + "…") + '"'
    if isinstance(value, int) and abs(value) >= 10**LONGEST:
        return "a huge number"
    return str(value)
