"""Templates as programs: what a merge tag may say, checked before anything is compiled, and how it runs.

A template may read data, compare it, loop over lists and use the filters of `FILTERS`. It can call nothing, build nothing large and
reach no attribute of any object: every path (`contact.first_name`) is looked up once per mail in plain data and handed to the program
as a variable of its own (X-01 to X-03). A value that is missing raises RenderSkip unless `default()` or an `if` asks about it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.lexer import TokenStream
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import RenderSkip
from app.flow.composing.filters import FILTERS, TESTS, Missing, each, shown
from app.rules.fields import nearest

SOURCE_LIMIT = 256 * 1024
OUTPUT_LIMIT = 512 * 1024
WORK_LIMIT = 2_000_000  # parts of merge tags that the loops of one text may work out
NODE_LIMIT = 2_000
TOKEN_LIMIT = 40_000  # more than 2,000 nodes can be made of; parsing more would only cost time
DEPTH_LIMIT = 60
LOOP_DEPTH = 2
HOLE = "–"
ROOTS = frozenset(
    {"account", "contact", "event", "stage", "milestone", "usage", "health", "enrollment", "response", "now", "mail", "brand"}
)
LOOP_FIELDS = frozenset({"index", "index0", "first", "last", "length", "revindex"})

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something a template must not say. `line` and `column` are 1-based in the text that was checked, None where they are not known;
    `fix` is the nearest right name, if there is one."""

    problem: str
    line: int | None
    column: int | None = None
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """The parsed template, its flaws (if any, it must not be compiled) and the paths it reads. `places` says where each path is read
    first, as (line, column)."""

    tree: nodes.Template | None
    flaws: tuple[Flaw, ...]
    reads: tuple[Path, ...] = ()
    places: Mapping[Path, tuple[int, int]] = field(default_factory=dict)


def check(source: str) -> Checked:
    """Parses `source` and holds it against the allow-list of X-02. Compiles and evaluates nothing; linear in the source."""
    if len(source) > SOURCE_LIMIT:
        return Checked(None, (Flaw(f"a template may have {SOURCE_LIMIT // 1024} KB", None),))
    text = Text(source)
    try:
        # Not `parse` itself, which would dress up the error for a traceback that nobody sees.
        tree = Parser(_PLACED, text.source).parse()
    except TemplateSyntaxError as error:
        return Checked(None, (Flaw(f"merge tag: {error.message}", *text.place(error.lineno)),))
    except RecursionError:
        return Checked(None, (Flaw("merge tags are nested too deeply", _crowded(source)),))
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        return Checked(None, (Flaw(f"merge tag: {error}", _crowded(source)),))
    checker = _Checker(text)
    checker.check(tree)
    places = {path: text.place(offset) for path, offset in checker.reads.items()}
    return Checked(tree, tuple(checker.flaws), tuple(sorted(checker.reads, key=str)), places)


class Text:
    """A source with its line ends made one kind, and where in it things stand."""

    def __init__(self, source: str):
        self.source = re.sub(r"\r\n?", "\n", source)
        self._starts = [0, *(match.end() for match in re.finditer("\n", self.source))]

    def place(self, offset: int) -> tuple[int, int]:
        """The line and the column of `offset`, both from 1."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def tokens(self) -> Iterator[tuple[int, str, str]]:
        """The tokens of Jinja's lexer, each with its offset instead of its line."""
        at = 0
        try:
            for _, token, value in TEXT.lexer.tokeniter(self.source, None):
                # Between two tokens stands nothing but the space that a tag with a minus eats.
                at = max(self.source.find(value, at), at)
                yield at, token, value
                at += len(value)
        except TemplateSyntaxError as error:
            found = re.fullmatch(r"(.*) at (\d+)", error.message or "", re.DOTALL)
            if found:
                raise TemplateSyntaxError(found[1], int(found[2])) from error
            raise TemplateSyntaxError(error.message or "not a template", max(at, self._starts[error.lineno - 1])) from error


class Program:
    """A template that passed `check`, compiled. `html` says whether values are escaped; `holes` that a value which is missing, or which
    cannot be shown, leaves a dash instead of raising: for notices to staff, never for mails."""

    __slots__ = ("_loops", "_root", "_template", "_variables")

    def __init__(self, source: str, html: bool, holes: bool = False):
        checked = check(source)
        if checked.flaws or checked.tree is None:
            raise RenderSkip("bad_template", {"problems": [f"line {flaw.line}: {flaw.problem}" for flaw in checked.flaws]})
        environment = NOTICE if holes else HTML if html else TEXT
        self._loops = next(checked.tree.find_all(nodes.For), None) is not None
        binder = _Binder()
        binder.bind(checked.tree)
        if holes:
            for joined in checked.tree.find_all(nodes.Concat):
                joined.nodes = [nodes.Filter(one, "_shown", [], [], None, None, lineno=one.lineno) for one in joined.nodes]
        code = environment.compile(checked.tree)
        self._template = Template.from_code(environment, code, {})
        self._root: Callable[[Context], Iterator[str]] = self._template.root_render_func
        self._variables = tuple((name, path) for path, name in binder.names.items())

    def run(self, data: Mapping[str, Any], links: Any = ()) -> str:
        """The text for `data`, nested plain values (see `filters.plain`). Raises RenderSkip for a hole, for more than 512 KB, and for loops
        that would not come to an end in a fraction of a second."""
        variables = {name: _find(data, path) for name, path in self._variables}
        variables["_links"] = links
        variables["_work"] = [WORK_LIMIT]
        parts = self._root(self._template.new_context(variables))
        text = _capped(parts) if self._loops else "".join(parts)
        if len(text) > OUTPUT_LIMIT:
            raise RenderSkip("too_large", {"limit": OUTPUT_LIMIT})
        return text


def _each(value: Any, cost: int, work: list[int]) -> list:
    """The items of a loop, whose turns cost so much each; `work` is what the text may still cost."""
    items = each(value)
    work[0] -= len(items) * cost
    if work[0] < 0:
        raise RenderSkip("too_large", {"limit": WORK_LIMIT, "problem": "loops"})
    return items


def _cost(body: Iterable[nodes.Node]) -> int:
    """What one turn of a loop costs at most: its parts, and more for filters, which look at every letter or item."""
    todo, cost = list(body), 1
    while todo:
        node = todo.pop()
        cost += _FILTER_COSTS.get(node.name, 20) if isinstance(node, nodes.Filter) else 1
        todo.extend(node.iter_child_nodes())
    return cost


# A text may have 10 KB and a list 1,000 items.
_FILTER_COSTS = {"join": 1_000, "urlencode": 1_000, "upper": 200, "lower": 200, "title": 200, "capitalize": 200, "trim": 200, "url": 200}


def _capped(parts: Iterator[str]) -> str:
    """As much of `parts` as it takes to see that it is too much: what a loop makes can be a thousand times its source."""
    size = 0
    kept = []
    for part in parts:
        kept.append(part)
        size += len(part)
        if size > OUTPUT_LIMIT:
            break
    return "".join(kept)


def _find(data: Mapping[str, Any], path: Path) -> Any:
    value: Any = data
    for part in path:
        value = value.get(part) if type(value) is dict else None
        if value is None:
            return Missing(".".join(map(str, path)))
    return value


def _crowded(source: str) -> int:
    """The line with the most merge tags and brackets: where something that cannot be parsed most likely stands."""
    lines = source.split("\n")
    return 1 + max(range(len(lines)), key=lambda at: lines[at].count("{") + lines[at].count("(") + lines[at].count("["))


class _Environment(ImmutableSandboxedEnvironment):
    """Reads plain data only: no attribute of any object but a loop's counters, no call."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict:
            value = obj.get(attribute)
            return Missing(attribute) if value is None else value
        if isinstance(obj, LoopContext):
            return getattr(obj, attribute) if attribute in LOOP_FIELDS else Missing(f"loop.{attribute}")
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        kind = type(obj)
        if kind is dict:
            value = obj.get(argument)
        elif kind is list and type(argument) is int:
            value = obj[argument] if -len(obj) <= argument < len(obj) else None
        elif kind is Missing:
            return obj
        elif getattr(kind, "numbered_links", False):
            return obj[argument]
        else:
            value = None
        return Missing(str(argument)) if value is None else value

    def call(self, *_: Any, **__: Any) -> Any:
        raise RenderSkip("bad_template", {"problems": ["a template calls nothing"]})


class _NoticeEnvironment(_Environment):
    """One in which nothing that is missing or of the wrong kind stops the text."""

    intercepted_binops = frozenset(("+", "-", "/", "//"))
    intercepted_unops = frozenset(("-",))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return _forgiving(super().call_binop)(context, operator, left, right)

    def call_unop(self, context: Context, operator: str, arg: Any) -> Any:
        return _forgiving(super().call_unop)(context, operator, arg)


def _forgiving(function: Callable[..., Any], otherwise: Callable[[], Any] = lambda: Missing("a part of it")) -> Callable[..., Any]:
    def forgive(*args: Any) -> Any:
        try:
            return function(*args)
        except (RenderSkip, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return otherwise()

    return forgive


class _Undefined(Undefined):
    """Stands for a name that neither the data nor the template knows; the checker lets none through."""

    __slots__ = ()

    def __str__(self) -> str:
        raise RenderSkip("missing_value", {"path": self._undefined_name})


class _Placed(_Environment):
    """Parses only; its nodes know their offset in the source where others know their line."""

    def _tokenize(self, source: str, name: str | None, filename: str | None = None, state: str | None = None) -> TokenStream:
        return TokenStream(self.lexer.wrap(_few(Text(source).tokens()), name, filename), name, filename)


def _few(tokens: Iterator[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
    for number, token in enumerate(tokens):
        if number >= TOKEN_LIMIT:
            raise TemplateSyntaxError(f"more than {TOKEN_LIMIT} words and signs; they may make {NODE_LIMIT} parts", token[0])
        yield token


def _environment(html: bool, holes: bool = False, kind: type[Environment] = _Environment) -> Environment:
    show = _forgiving(shown, lambda: HOLE) if holes else shown
    kind = _NoticeEnvironment if holes else kind
    environment = kind(autoescape=html, undefined=_Undefined, finalize=show, keep_trailing_newline=True, cache_size=0)
    environment.globals.clear()
    environment.filters.clear()
    if holes:
        filters = {name: _forgiving(function) for name, function in FILTERS.items()}
        environment.filters.update(filters, _each=_forgiving(_each, list), _shown=show)
    else:
        environment.filters.update(FILTERS, _each=_each)
    environment.tests.clear()
    environment.tests.update(TESTS)
    return environment


HTML = _environment(html=True)
TEXT = _environment(html=False)
NOTICE = _environment(html=False, holes=True)
_PLACED = _environment(html=False, kind=_Placed)

_ALLOWED = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Const,
    nodes.If,
    nodes.For,
    nodes.Filter,
    nodes.Test,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Neg,
    nodes.Add,
    nodes.Sub,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Concat,
    nodes.CondExpr,
    nodes.List,
    nodes.Tuple,
)
_SAYS = {
    nodes.Call: "a call; templates read values and use filters",
    nodes.Pow: "**",
    nodes.Mul: "*",
    nodes.Mod: "%",
    nodes.Assign: "{% set %}",
    nodes.AssignBlock: "{% set %}",
    nodes.Macro: "{% macro %}",
    nodes.CallBlock: "{% call %}",
    nodes.FilterBlock: "{% filter %}",
    nodes.With: "{% with %}",
    nodes.Import: "{% import %}",
    nodes.FromImport: "{% from %}",
    nodes.Include: "{% include %}; use <mj-include>",
    nodes.Extends: "{% extends %}",
    nodes.Block: "{% block %}",
    nodes.Scope: "{% autoescape %}",
}


class _Checker:
    """Walks a parsed template without recursion, so that no template is too deep for it."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.flaws: list[Flaw] = []
        self.reads: dict[Path, int] = {}  # each with the offset where it is read first

    def check(self, tree: nodes.Template) -> None:
        count = 0
        stack: list[tuple[nodes.Node, int, int, frozenset[str]]] = [(tree, 0, 0, frozenset())]
        while stack:
            node, depth, loops, local = stack.pop()
            count += 1
            if count > NODE_LIMIT:
                self._flaw(f"merge tags are more than {NODE_LIMIT} parts long together", node)
                return
            if depth > DEPTH_LIMIT:
                self._flaw("merge tags are nested too deeply", node)
                return
            if not isinstance(node, _ALLOWED):
                said = next((text for kind, text in _SAYS.items() if isinstance(node, kind)), type(node).__name__.lower())
                self._flaw(f"templates do not know {said}", node)
                continue
            if isinstance(node, nodes.For):
                stack.extend(self._loop(node, depth, loops, local))
                continue
            if isinstance(node, (nodes.Name, nodes.Getattr, nodes.Getitem)):
                self._path(node, local)
                continue
            if isinstance(node, nodes.Filter):
                self._filter(node)
            elif isinstance(node, nodes.Test) and node.name not in TESTS:
                self._flaw(f"there is no test named {node.name}; there are {', '.join(sorted(TESTS))}", node, nearest(node.name, TESTS))
            stack.extend((child, depth + 1, loops, local) for child in reversed(list(node.iter_child_nodes())))

    def _loop(self, node: nodes.For, depth: int, loops: int, local: frozenset[str]) -> list:
        if loops >= LOOP_DEPTH:
            self._flaw(f"loops may be nested {LOOP_DEPTH} deep", node)
            return []
        if node.recursive:
            self._flaw("loops are not recursive", node)
        if not isinstance(node.target, nodes.Name) or node.target.name in ROOTS or node.target.name.startswith("_"):
            self._flaw("a loop needs one name of its own, such as: for item in account.traits.items", node)
            return []
        if path_of(node.iter) is None:
            self._flaw("a loop runs over a list of the data, such as account.traits.items", node)
            return []
        inner = local | {node.target.name, "loop"}
        todo = [(node.iter, depth + 1, loops, local)]
        todo += [(child, depth + 1, loops + 1, inner) for child in (*node.body, *([node.test] if node.test else ()))]
        todo += [(child, depth + 1, loops, local) for child in node.else_]
        return todo

    def _path(self, node: nodes.Node, local: frozenset[str]) -> None:
        path = path_of(node)
        if path is None:
            self._flaw("a value is named by a path of words, such as contact.traits.title", node)
        elif path[0] in local:
            return
        elif path[0] not in ROOTS:
            self._flaw(f"{path[0]} is not a name; there are {', '.join(sorted(ROOTS))}", node, nearest(path[0], (*ROOTS, *local)))
        elif any(isinstance(part, str) and (part.startswith("_") or "." in part) for part in path):
            self._flaw(f"{'.'.join(map(str, path))} is not a name", node)
        else:
            self.reads.setdefault(path, _offset(node) or 0)

    def _filter(self, node: nodes.Filter) -> None:
        if node.node is None or node.name not in FILTERS:
            problem = f"there is no filter named {node.name}; there are {', '.join(sorted(FILTERS))}"
            self._flaw(problem, node, nearest(node.name, FILTERS))
        elif node.kwargs or node.dyn_args or node.dyn_kwargs:
            self._flaw(f"filter {node.name} takes its arguments by position", node)
        elif node.name in ("days_since", "days_until"):
            self.reads.setdefault(("now",), _offset(node) or 0)

    def _flaw(self, problem: str, node: nodes.Node, fix: str | None = None) -> None:
        if len(self.flaws) < 50:
            offset = _offset(node)
            self.flaws.append(Flaw(problem, *(self.text.place(offset) if offset is not None else (None, None)), fix))


def _offset(node: nodes.Node) -> int | None:
    """Where a node of `check` stands; a path begins with its first word."""
    while isinstance(node, (nodes.Getattr, nodes.Getitem)):
        node = node.node
    offsets: Iterable[int | None] = (one.lineno for one in (node, *node.iter_child_nodes()))
    return next((one for one in offsets if one is not None), None)


def path_of(node: nodes.Node) -> Path | None:
    """The path that `node` names, or None if it is something else."""
    parts: list[str | int] = []
    while not isinstance(node, nodes.Name):
        if isinstance(node, nodes.Getattr):
            parts.append(node.attr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and type(node.arg.value) in (str, int):
            parts.append(node.arg.value)
        else:
            return None
        if len(parts) > 12:
            return None
        node = node.node
    return (node.name, *reversed(parts))


class _Binder:
    """Gives every path of the data a variable of its own, so that a program needs no lookup while it runs."""

    def __init__(self) -> None:
        self.names: dict[Path, str] = {}

    def bind(self, node: Any, local: frozenset[str] = frozenset()) -> Any:
        if isinstance(node, (nodes.Name, nodes.Getattr, nodes.Getitem)):
            return self._bound(node, local)
        if isinstance(node, nodes.For):
            inner = local | {node.target.name, "loop"}
            cost = nodes.Const(_cost((*node.body, *([node.test] if node.test else ()))), lineno=node.lineno)
            work = nodes.Name("_work", "load", lineno=node.lineno)
            node.iter = nodes.Filter(self.bind(node.iter, local), "_each", [cost, work], [], None, None, lineno=node.lineno)
            node.body = [self.bind(child, inner) for child in node.body]
            node.test = self.bind(node.test, inner) if node.test else None
            node.else_ = [self.bind(child, local) for child in node.else_]
            return node
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, name, self.bind(value, local))
            elif isinstance(value, list):
                value[:] = [self.bind(one, local) if isinstance(one, nodes.Node) else one for one in value]
        if isinstance(node, nodes.Filter) and node.name in ("days_since", "days_until"):
            node.args = [nodes.Name(self._name(("now",)), "load", lineno=node.lineno)]
        return node

    def _bound(self, node: nodes.Node, local: frozenset[str]) -> nodes.Node:
        path = path_of(node)
        if path is None or path[0] in local:
            return node
        if path[:2] == ("mail", "link") and len(path) == 3:
            number = nodes.Const(path[2], lineno=node.lineno)
            return nodes.Getitem(nodes.Name("_links", "load", lineno=node.lineno), number, "load", lineno=node.lineno)
        return nodes.Name(self._name(path), "load", lineno=node.lineno)

    def _name(self, path: Path) -> str:
        return self.names.setdefault(path, f"_v{len(self.names)}")
