"""Which values a template cannot do without: the paths it shows, calculates or loops over where nothing takes care of their absence.

Follows what the program does with a missing value (`filters.Missing`): showing it, calculating with it, looping over it and handing it
to a filter skips the mail; `default()`, an `if`, a comparison and a test do without it. A guard counts only where it really guards: a
path is taken for known inside of an `if` only when the condition cannot be true without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jinja2 import nodes

from app.flow.compose import Compiled
from app.flow.composing.templates import Path, check, path_of

Paths = frozenset[Path]
NOTHING: Paths = frozenset()


def needs(source: str) -> frozenset[str]:
    """The dotted paths that the text `source` reads without a fallback, those of `brand` and `mail` included. For a subject, a notice
    or a link; a text that is no template needs nothing (the check names it)."""
    return _dotted(_Needs(()).of(source))


def needs_of(compiled: Compiled) -> frozenset[str]:
    """The dotted paths that a mail reads without a fallback, in its subject, its HTML, its text or its links: for somebody who lacks
    one of them the mail may be skipped, and for somebody who has all of them it is not skipped for a missing value.

    An address counts where its link is shown: one inside of an `if` is only needed there.
    """
    follower = _Needs(tuple(link.url for link in compiled.links))
    return _dotted(path for source in (compiled.subject, compiled.html, compiled.text) for path in follower.of(source))


def _dotted(paths: Iterable[Path]) -> frozenset[str]:
    return frozenset(".".join(map(str, path)) for path in paths)


class _Needs:
    """Walks parsed templates. `links` are the sources that `mail.link[n]` stands for."""

    def __init__(self, links: Sequence[str]):
        self.links = links

    def of(self, source: str, known: Paths = NOTHING) -> Paths:
        tree = check(source).tree
        return self.body(tree.body, known, frozenset()) if tree is not None else NOTHING

    def body(self, statements: Iterable[nodes.Node], known: Paths, local: frozenset[str]) -> Paths:
        found = NOTHING
        for node in statements:
            if isinstance(node, nodes.Output):
                for shown in node.nodes:
                    found |= self.value(shown, known, local, must=True)
            elif isinstance(node, nodes.If):
                found |= self.branches(node, known, local)
            elif isinstance(node, nodes.For):
                inner = local | {node.target.name, "loop"}
                found |= self.value(node.iter, known, local, must=True)
                passed = known
                if node.test is not None:
                    found |= self.value(node.test, known, inner, must=False)
                    passed |= holds(node.test, True)
                found |= self.body(node.body, passed, inner) | self.body(node.else_, known, local)
        return found

    def branches(self, node: nodes.If, known: Paths, local: frozenset[str]) -> Paths:
        found = NOTHING
        for arm in (node, *node.elif_):
            found |= self.value(arm.test, known, local, must=False)
            found |= self.body(arm.body, known | holds(arm.test, True), local)
            known |= holds(arm.test, False)
        return found | self.body(node.else_, known, local)

    def value(self, node: nodes.Node, known: Paths, local: frozenset[str], *, must: bool) -> Paths:
        """What is needed to work out `node`; with `must`, what comes out must not be missing either."""
        if isinstance(node, (nodes.Const, nodes.TemplateData)):
            return NOTHING
        if isinstance(node, (nodes.Name, nodes.Getattr, nodes.Getitem)):
            return self.path(node, known, local) if must else NOTHING
        if isinstance(node, nodes.Filter):
            return self.filter(node, known, local, must)
        if isinstance(node, nodes.CondExpr):
            found = self.value(node.test, known, local, must=False)
            found |= self.value(node.expr1, known | holds(node.test, True), local, must=must)
            return found | (self.value(node.expr2, known | holds(node.test, False), local, must=must) if node.expr2 else NOTHING)
        if isinstance(node, nodes.And):
            left = self.value(node.left, known, local, must=must)
            return left | self.value(node.right, known | holds(node.left, True), local, must=must)
        if isinstance(node, nodes.Or):
            left = self.value(node.left, known, local, must=False)
            return left | self.value(node.right, known | holds(node.left, False), local, must=must)
        if isinstance(node, (nodes.Not, nodes.Test)):
            return self.all(node.iter_child_nodes(), known, local, must=False)
        if isinstance(node, nodes.Compare):
            operands = (node.expr, *(one.expr for one in node.ops))
            return self.all(operands, known, local, must=False)
        if isinstance(node, (nodes.List, nodes.Tuple)):
            return self.all(node.items, known, local, must=must)
        return self.all(node.iter_child_nodes(), known, local, must=True)  # sums and joined texts

    def all(self, children: Iterable[nodes.Node], known: Paths, local: frozenset[str], *, must: bool) -> Paths:
        found = NOTHING
        for child in children:
            found |= self.value(child, known, local, must=must)
        return found

    def filter(self, node: nodes.Filter, known: Paths, local: frozenset[str], must: bool) -> Paths:
        inner = node.node or nodes.Const(None)
        if node.name == "default":
            # What is fallen back to is worked out in any case, and shown where the value is missing.
            path = path_of(inner)
            falls_back = must and not (path is not None and _known(path, known))
            return self.value(inner, known, local, must=False) | self.all(node.args, known, local, must=falls_back)
        return self.all((inner, *node.args), known, local, must=True)

    def path(self, node: nodes.Node, known: Paths, local: frozenset[str]) -> Paths:
        path = path_of(node)
        if path is None or path[0] in local:
            return NOTHING
        if path[:2] == ("mail", "link") and len(path) == 3:
            number = path[2]
            return self.of(self.links[number], known) if isinstance(number, int) and 0 <= number < len(self.links) else NOTHING
        return NOTHING if _known(path, known) else frozenset({path})


def _known(path: Path, known: Paths) -> bool:
    """Whether the path, or something in it, is known to be there."""
    return any(one[: len(path)] == path for one in known)


def holds(test: nodes.Node, truth: bool) -> Paths:
    """The paths that are surely there when `test` has come out true (or false)."""
    if isinstance(test, nodes.Not):
        return holds(test.node, not truth)
    if isinstance(test, nodes.And):
        left, right = holds(test.left, truth), holds(test.right, truth)
        return left | right if truth else left & right
    if isinstance(test, nodes.Or):
        left, right = holds(test.left, truth), holds(test.right, truth)
        return left & right if truth else left | right
    if isinstance(test, nodes.Test):
        return _path(test.node) if (test.name == "defined") == truth and test.name in _ASKS else NOTHING
    if not truth:
        return NOTHING
    if isinstance(test, nodes.Compare):
        return _compared(test)
    if isinstance(test, nodes.Filter) and test.name == "default":
        empty = not test.args or (len(test.args) == 1 and isinstance(test.args[0], nodes.Const) and not test.args[0].value)
        return _path(test.node) if empty and test.node is not None else NOTHING
    return _path(test)


_ASKS = ("defined", "undefined", "missing", "none")


def _path(node: nodes.Node) -> Paths:
    path = path_of(node)
    return frozenset({path}) if path is not None else NOTHING


def _compared(test: nodes.Compare) -> Paths:
    """A comparison with a missing value is false, whatever the sign, but for `not in` with it as what is looked for or in."""
    operands = [test.expr, *(one.expr for one in test.ops)]
    found = NOTHING
    for number, one in enumerate(test.ops):
        if one.op != "notin":
            found |= _path(operands[number]) | _path(operands[number + 1])
    return found
