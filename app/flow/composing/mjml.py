"""From the sections a marketer writes to one HTML document whose merge tags are still merge tags.

The MJML compiler checks nothing and a deep document ends its process (X-12, X-13), so everything is read and judged here first, by a
scanner that goes once from left to right. What MJML need not understand (merge tags, addresses, the HTML inside of a text) is taken out
before and put back afterwards (X-11); contact data never comes near it.
"""

from __future__ import annotations

import html as entities
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from mjml import mjml2html

from app.flow.composing.filters import bad_destination
from app.flow.composing.marks import File, Mark, Marks, Problem, is_own, last_filter, path_shown, root_of
from app.flow.composing.scanner import Complain, Scanner, Tag
from app.flow.composing.templates import SOURCE_LIMIT, TEXT
from app.flow.composing.vocabulary import (
    ANY_ATTRIBUTE,
    COMPONENTS,
    HOISTED,
    HTML_ATTRIBUTES,
    HTML_FORBIDDEN,
    HTML_TAGS,
    HTML_VOID,
    LEAVES,
    REFUSED,
    URL_ATTRIBUTES,
    WORDED_ATTRIBUTES,
)
from app.rules.fields import nearest

ELEMENT_LIMIT = 5_000
NESTING_LIMIT = 100
HTML_NESTING_LIMIT = 50
INCLUDE_DEPTH = 8
PROBLEM_LIMIT = 50

_CSS_FORBIDDEN = re.compile(r"@import|expression\s*\(|behavior\s*:|-moz-binding|javascript:|</", re.IGNORECASE)
_STANDS_ALONE = re.compile(r"\s*(?:<!--(?:[^-]|-(?!->))*-->\s*)*<mjml[\s>]")


@dataclass(frozen=True, slots=True)
class Document:
    """A mail's HTML with values, statements and addresses still as marks."""

    html: str
    marks: Marks


@dataclass(frozen=True, slots=True)
class Survey:
    """What a survey step adds to its mail: the kind of its scale and its question (a Jinja source)."""

    kind: str
    question: str


def build(source: str, path: str, blocks: Mapping[str, str], survey: Survey | None) -> tuple[Document | None, list[Problem]]:
    """The document of `source`, or None and every problem found. `blocks` are the files of `brand/`, by name."""
    files = {path: source, **{f"brand/{name}": text for name, text in blocks.items()}}
    large = [
        Problem(name, None, f"a template may have {SOURCE_LIMIT // 1024} KB") for name, text in files.items() if len(text) > SOURCE_LIMIT
    ]
    if large:
        return None, large
    builder = _Builder(Marks.avoiding(source, survey.question if survey else "", *blocks.values()), blocks, survey)
    mjml = builder.whole(source, path)
    if builder.problems:
        return None, sorted(set(builder.problems), key=lambda one: (one.path, one.line or 0, one.column or 0, one.problem))
    try:
        html = mjml2html(mjml, disable_comments=True, social_icon_origin="", fonts={}, include_loader=None)
    except ValueError as error:
        return None, [Problem(path, None, f"MJML: {error}")]
    html = builder.marks.restore(html, "html", frozenset({"content"}))
    present = set(builder.marks.pattern.findall(html))
    lost = [
        replace(mark.where, problem="MJML has no use for a merge tag here")
        for number, mark in enumerate(builder.marks.all)
        if mark.kind in ("value", "statement") and str(number) not in present and number not in builder.inner
    ]
    return (None, lost) if lost else (Document(html, builder.marks), [])


class _Builder:
    def __init__(self, marks: Marks, blocks: Mapping[str, str], survey: Survey | None):
        self.marks = marks
        self.blocks = blocks
        self.survey = survey
        self.problems: list[Problem] = []
        self.inner: set[int] = set()  # marks that stand inside of an address and come back with it
        self.elements = 0
        self.size = 0
        self.asks = False

    def whole(self, source: str, path: str) -> str:
        """The MJML of the whole mail."""
        stands_alone = bool(_STANDS_ALONE.match(source))
        file = File(source, path, self.problems, self.tag)
        if self.problems:
            return ""
        if stands_alone:
            mjml = "".join(self.body(file, None, (), {}, None))
        else:
            head: list[str] = []
            body = "".join(self.body(file, "mj-wrapper", (), {}, head))
            if self.survey and not self.asks and not self.problems:
                body += "".join(self.include("brand/survey-scale.mjml", Problem(path, None, ""), "mj-wrapper", (), {}))
            if self.problems:
                return ""
            slots = {"head": "".join(head), "sections": body}
            mjml = "".join(self.include("brand/layout.mjml", Problem(path, None, ""), None, (), slots))
            if not self.problems and slots:
                self.flaw(Problem("brand/layout.mjml", None, ""), f'the layout needs <mj-include path="{next(iter(slots))}" />')
        if self.survey and not self.asks:
            self.flaw(Problem(path, None, ""), 'a survey needs its score buttons: <mj-include path="brand/survey-scale.mjml" />')
        if self.size > SOURCE_LIMIT:
            self.flaw(Problem(path, None, ""), f"with its blocks, a template may have {SOURCE_LIMIT // 1024} KB")
        return mjml

    def flaw(self, where: Problem, problem: str, fix: str | None = None) -> None:
        if len(self.problems) < PROBLEM_LIMIT:
            self.problems.append(replace(where, problem=problem, fix=fix))

    def near(self, name: str, names: Iterable[str], prefix: str = "") -> str | None:
        """The one of `names` that was most likely meant; what all of them begin with makes none nearer. Looked for only as long as
        anybody hears of it."""
        if len(self.problems) >= PROBLEM_LIMIT:
            return None
        found = nearest(name.removeprefix(prefix), [one.removeprefix(prefix) for one in names])
        return found and prefix + found

    def complaint(self, file: File) -> Complain:
        """What notes a problem at an offset of `file`."""

        def here(at: int, problem: str, fix: str | None = None) -> None:
            if len(self.problems) < PROBLEM_LIMIT:  # finding the place is what costs
                self.flaw(_at(file, at), self.marks.restore(problem, "html"), fix)

        return here

    # Merge tags ------------------------------------------------------------------------------------------------------

    def tag(self, kind: str, source: str, where: Problem) -> str:
        """The mark of a merge tag. The scores and the question of a survey are known here, so they are written in."""
        if "mail.question" in source:
            if not self.survey:
                self.flaw(where, "mail.question is for survey steps")
            elif not re.fullmatch(r"\{\{-?\s*mail\.question\s*-?\}\}", source):
                self.flaw(where, "the question stands alone: {{ mail.question }}")
            else:
                return self.marks.add(kind, _escaped_source(self.survey.question), self.survey.question, where)
        if re.search(r"\bmail\.(scores|scale)\b", source):
            if not self.survey:
                self.flaw(where, "mail.scores is for survey steps")
                return ""
            self.asks = self.asks or "mail.scores" in source
            source = re.sub(r"\bmail\.(scores|scale)\b", rf"mail.\1.{self.survey.kind}", source)
        # In text a tag that eats the space beside it would join two lines.
        return self.marks.add(kind, source, re.sub(r"^(\{[{%])[-+]|[-+]([%}]\})$", r"\1\2", source), where)

    # MJML ------------------------------------------------------------------------------------------------------------

    def include(self, name: str, where: Problem, parent: str | None, above: tuple[str, ...], slots: dict[str, str]) -> Iterator[str]:
        if name in slots:
            yield slots.pop(name)
            return
        block = name.removeprefix("brand/")
        if not name.startswith("brand/") or block not in self.blocks:
            known = ", ".join(f"brand/{one}" for one in sorted(self.blocks)) or "none"
            near = self.near(name, [f"brand/{one}" for one in self.blocks], "brand/")
            self.flaw(where, f"there is no block {name[:100]!r}; there are: {known}", near)
        elif name in above:
            self.flaw(where, f"{name} includes itself: {' → '.join((*above[above.index(name) :], name))}")
        elif len(above) >= INCLUDE_DEPTH:
            self.flaw(where, f"blocks may be nested {INCLUDE_DEPTH} deep")
        else:
            file = File(self.blocks[block], name, self.problems, self.tag)
            yield from self.body(file, parent, (*above, name), slots, None)

    def body(self, file: File, parent: str | None, above: tuple[str, ...], slots: dict[str, str], head: list[str] | None) -> Iterator[str]:
        """The MJML of `file`, whose elements stand in `parent`. `head` takes what belongs into the layout's head."""
        stack: list[tuple[str, int]] = []
        out: list[str] = []
        here = self.complaint(file)
        scanner = Scanner(file.text, here)
        self.size += len(file.text)
        for tag in scanner:
            if self.size > SOURCE_LIMIT or len(self.problems) >= PROBLEM_LIMIT:
                return
            inside = stack[-1][0] if stack else parent
            if tag.kind == "text":
                text = file.text[tag.start : tag.end]
                if self.marks.pattern.sub("", text).strip():
                    at = tag.start + len(text) - len(text.lstrip())
                    here(at, f"text stands in mj-text, not in {inside or 'the file'} itself")
                out.append(text)
                continue
            if tag.kind == "close":
                if not stack or stack[-1][0] != tag.name:
                    here(
                        tag.start, f"</{tag.name}> closes nothing" if not stack else f"</{tag.name}> stands where </{stack[-1][0]}> belongs"
                    )
                    return
                stack.pop()
                out.append(f"</{tag.name}>")
                continue
            self.elements += 1
            if self.elements > ELEMENT_LIMIT:
                here(tag.start, f"a mail may have {ELEMENT_LIMIT} elements")
                return
            if len(stack) + 10 * len(above) >= NESTING_LIMIT:
                here(tag.start, f"elements may be nested {NESTING_LIMIT} deep")
                return
            hoist = head is not None and not stack and tag.name in HOISTED
            if not self._fits(tag, "mj-head" if hoist else inside, here):
                # What was meant to hold a text is not looked into: its name is the one problem it has.
                meant = tag.name if tag.name in COMPONENTS else self.near(tag.name, COMPONENTS, "mj-")
                if tag.kind == "open" and meant in LEAVES:
                    scanner.leaf(tag)
                elif tag.kind == "open":
                    stack.append((tag.name, tag.start))
                continue
            if tag.name == "mj-include":
                name = next((value or "" for key, value, _, _ in tag.attributes if key == "path"), "")
                if tag.kind == "open":
                    here(tag.start, 'write <mj-include path="…" />, closed at once')
                out.extend(self.include(name, _at(file, tag.start), inside, above, slots))
                continue
            written = f"<{tag.name}{''.join(self._attributes(tag, here, _at(file, tag.start)))}"
            if inside == "mj-attributes":  # what no element of this mail takes over is not lost
                self.inner.update(self.marks.numbers(written))
            if tag.kind == "alone":
                piece = written + " />"
            elif tag.name in LEAVES:
                start, end = scanner.leaf(tag)
                content = self._leaf(tag.name, file, start, end, inside)
                mark = self.marks.add("content", content, content, _at(file, tag.start))
                piece = f"{written}>{mark}</{tag.name}>"
            else:
                stack.append((tag.name, tag.start))
                piece = written + ">"
            (head if hoist else out).append(piece)  # type: ignore[union-attr]
        for name, at in stack:
            here(at, f"<{name}> is never closed")
        yield "".join(out)

    def _fits(self, tag: Tag, inside: str | None, here: Complain) -> bool:
        if inside == "mj-attributes" and tag.name in ("mj-all", "mj-class"):
            return True
        if tag.name in REFUSED:
            here(tag.start, f"<{tag.name}> is not for mails: {REFUSED[tag.name]}")
            return False
        if tag.name not in COMPONENTS:
            here(tag.start, f"MJML has no <{tag.name}>", self.near(tag.name, COMPONENTS, "mj-"))
            return False
        if inside == "mj-attributes":
            return True
        if inside is None:
            if tag.name != "mjml":
                here(tag.start, f"<{tag.name}> stands outside of <mjml>")
                return False
            return True
        if inside in COMPONENTS and tag.name not in COMPONENTS[inside][1]:
            here(tag.start, f"<{tag.name}> does not belong into <{inside}>")
            return False
        return True

    def _attributes(self, tag: Tag, here: Complain, where: Problem) -> Iterator[str]:
        known = COMPONENTS[tag.name][0] if tag.name in COMPONENTS else ANY_ATTRIBUTE | {"name"}
        untracked = any(name == "data-no-track" for name, *_ in tag.attributes)
        for name, value, quoted, at in tag.attributes:
            if name not in known:
                here(at, f"<{tag.name}> has no attribute {name}", self.near(name, known))
            elif value is None or not quoted:
                here(at, f'write {name}="…", with quotes')
            elif name != "data-no-track":
                yield f' {name}="{self.value(name, value, untracked, at, here, where)}"'
        if tag.name == "mj-image" and not any(name == "alt" for name, *_ in tag.attributes):
            here(tag.start, 'an image needs alt="…" (empty if it only decorates)')

    # HTML ------------------------------------------------------------------------------------------------------------

    def _leaf(self, name: str, file: File, start: int, end: int, inside: str | None) -> str:
        content = file.text[start:end]
        here = self.complaint(file)
        if name == "mj-style":
            if any(path_shown(mark) != ("brand", "color") for mark in self.marks.within(content)):
                here(start, "no merge tag belongs into styles but {{ brand.color }}")
            for found in _CSS_FORBIDDEN.finditer(content):
                here(start + found.start(), f"{found.group()} does not belong into styles")
            return content
        if name in ("mj-title", "mj-preview") and "<" in content:
            here(start + content.index("<"), f"{name} holds text only")
        if name == "mj-title":
            return content.strip().replace('"', "&quot;")
        return self._html(file, start, end, head=inside == "mj-head")

    def _html(self, file: File, start: int, end: int, head: bool) -> str:
        here = self.complaint(file)
        out: list[str] = []
        stack: list[tuple[str, int]] = []
        for tag in Scanner(file.text, here, start, end):
            if tag.kind == "text":
                out.append(file.text[tag.start : tag.end])
                continue
            if tag.kind == "close":
                if not stack or stack[-1][0] != tag.name:
                    here(
                        tag.start, f"</{tag.name}> closes nothing" if not stack else f"</{tag.name}> stands where </{stack[-1][0]}> belongs"
                    )
                    return ""
                stack.pop()
                out.append(f"</{tag.name}>")
                continue
            self.elements += 1
            if self.elements > ELEMENT_LIMIT:
                here(tag.start, f"a mail may have {ELEMENT_LIMIT} elements")
                return ""
            if len(stack) >= HTML_NESTING_LIMIT:
                here(tag.start, f"HTML may be nested {HTML_NESTING_LIMIT} deep")
                return ""
            lower = tag.name.lower()
            if head and lower == "meta" and all(name in ("name", "content") for name, *_ in tag.attributes):
                pass
            elif lower in HTML_FORBIDDEN or lower not in HTML_TAGS:
                if lower in HTML_FORBIDDEN:
                    here(tag.start, f"<{tag.name}> does not belong into a mail")
                else:
                    here(tag.start, f"HTML in mails has no <{tag.name}>", self.near(lower, HTML_TAGS))
            attributes = "".join(self._html_attributes(tag, lower, here, _at(file, tag.start)))
            if lower in HTML_VOID:
                out.append(f"<{lower}{attributes} />")
            elif tag.kind == "alone":
                out.append(f"<{lower}{attributes}></{lower}>")
            else:
                stack.append((tag.name, tag.start))
                out.append(f"<{lower}{attributes}>")
        for name, at in stack:
            here(at, f"<{name}> is never closed")
        return "".join(out)

    def _html_attributes(self, tag: Tag, lower: str, here: Complain, where: Problem) -> Iterator[str]:
        untracked = any(name == "data-no-track" for name, *_ in tag.attributes)
        for name, value, quoted, at in tag.attributes:
            name = name.lower()
            if lower == "meta" and name in ("name", "content") and quoted and value is not None:
                yield f' {name}="{value}"'
            elif name not in HTML_ATTRIBUTES and not name.startswith(("aria-", "data-")):
                near = None if name.startswith("on") else self.near(name, HTML_ATTRIBUTES)
                here(at, f"<{lower}> may not have the attribute {name}", near)
            elif value is None or not quoted:
                here(at, f'write {name}="…", with quotes')
            elif name != "data-no-track":
                yield f' {name}="{self.value(name, value, untracked, at, here, where)}"'
        if lower == "img" and not any(name.lower() == "alt" for name, *_ in tag.attributes):
            here(tag.start, 'an image needs alt="…" (empty if it only decorates)')

    # Attribute values ------------------------------------------------------------------------------------------------

    def value(self, name: str, value: str, untracked: bool, at: int, here: Complain, where: Problem) -> str:
        """An attribute's value as it goes on; addresses become marks of their own (X-17)."""
        found = self.marks.within(value)
        if any(mark.kind == "statement" for mark in found):
            here(at, f"put the condition around the whole element, not into {name}")
            return ""
        if "<" in value:
            here(at, f"write &lt; in {name}")
        if name in URL_ATTRIBUTES:
            return self._address(name, value.strip(), found, untracked, at, here, where)
        if name in WORDED_ATTRIBUTES or name.startswith("aria-"):
            return value
        if name == "style" and _CSS_FORBIDDEN.search(value):
            here(at, f"{_CSS_FORBIDDEN.search(value).group()} does not belong into styles")  # type: ignore[union-attr]
        if any(root_of(mark) not in ("brand", "mail") for mark in found):
            here(at, f"a merge tag in {name} may only name the brand")
        return value

    def _address(self, name: str, value: str, found: list[Mark], untracked: bool, at: int, here: Complain, where: Problem) -> str:
        problem, track = self._judged(name, value, found)
        if problem:
            here(at, f"{name}: {problem}")
            return ""
        self.inner.update(self.marks.numbers(value))
        if name != "href":
            return self.marks.add("content", value, value, where)
        plain = entities.unescape(value)
        return self.marks.add("href", value, plain, where, track and not untracked)

    def _judged(self, name: str, value: str, found: list[Mark]) -> tuple[str | None, bool]:
        """What is wrong with an address, and whether clicks on it are followed (T-14)."""
        if not value:
            return "an address is missing", False
        first = self.marks.pattern.match(value)
        rest = found[1:] if first else found
        for mark in rest:
            if root_of(mark) not in ("brand", "mail") and last_filter(mark) != "urlencode":
                return "a merge tag inside of an address needs | urlencode", False
        if first:
            root, own = root_of(found[0]), is_own(found[0])
            if root not in ("brand", "mail") and last_filter(found[0]) != "url":
                return "a merge tag at the start of an address needs | url", False
            return None, own and root != "mail"
        plain = entities.unescape(value)
        scheme = plain.partition(":")[0].lower() if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", plain) else ""
        if name == "href" and (plain.startswith("#") or scheme in ("mailto", "tel", "sms")):
            return ("control characters", False) if re.search(r"[\x00-\x20]", plain) else (None, False)
        if name != "href" and re.match(r"data:image/(png|gif|jpeg|webp);base64,[A-Za-z0-9+/=]*$", plain):
            return None, False
        if scheme not in ("http", "https"):
            return (f"{scheme}: is not for mails" if scheme else "an address starts with https://"), False
        bad = bad_destination(self.marks.pattern.sub("x", plain))
        return (bad, False) if bad else (None, all(is_own(mark) for mark in found) and not any(root_of(mark) == "mail" for mark in found))


def _at(file: File, offset: int) -> Problem:
    line, column = file.place(offset)
    return Problem(file.path, line, "", column)


def _escaped_source(source: str) -> str:
    """A Jinja source of plain text as one of HTML."""
    return "".join(entities.escape(value, quote=False) if token == "data" else value for _, token, value in TEXT.lex(source))
