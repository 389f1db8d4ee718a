"""The text part of a mail, made from the same compiled content as its HTML (M-06).

Walks the document once and writes what a reader of text needs: headings, paragraphs, lists, every link with its label, buttons and
survey scores on lines of their own. Layout tables leave no trace. Merge tags are still marks here and stay in their places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

from app.flow.composing.mjml import Marks

_PARAGRAPHS = frozenset(["blockquote", "dl", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "ol", "p", "pre", "table", "ul"])
_BLOCKS = _PARAGRAPHS | {"caption", "dd", "div", "dt", "figcaption", "figure", "tbody", "tr"}
_SILENT = frozenset({"head", "script", "style", "title", "template"})
_SPACES = re.compile(r"[ \t\r\n\f\u00a0\u200b-\u200d\u034f\u2007]+")
_FOR_OUTLOOK = re.compile(r"<!--\[if [^\]]*\]>(?!<!--).*?<!\[endif\]-->", re.DOTALL)
_HIDDEN = re.compile(r"display\s*:\s*none")
_OWN_LINE = re.compile(r"display\s*:\s*(inline-)?block")


@dataclass(frozen=True, slots=True)
class Text:
    """The text with marks, and the label of every linked address by its mark's number."""

    text: str
    labels: dict[int, str]


def text_of(html: str, marks: Marks) -> Text:
    """The text part of `html`. Its nesting is bounded by the guard of `mjml`."""
    statements = {str(number) for number, mark in enumerate(marks.all) if mark.kind == "statement"}
    # MJML puts what stands between sections into comments for Outlook; of these only the statements matter here.
    html = _FOR_OUTLOOK.sub(lambda comment: "".join(match.group() for match in marks.pattern.finditer(comment.group())), html)
    # A comment may stand anywhere, between the rows of a table too, where a parser would move a word elsewhere.
    html = marks.pattern.sub(lambda match: f"<!--{match.group()}-->" if match.group(1) in statements else match.group(), html)
    body = LexborHTMLParser(html).body
    walker = _Walker(marks)
    if body is not None:
        walker.walk(body)
    return Text(walker.out.finish(), walker.labels)


def tidy(text: str) -> str:
    """`text` after rendering: no more than one empty line in a row, no spaces at line ends."""
    if " \n" in text or "\t\n" in text:
        text = re.sub(r"[ \t]+(?=\n)", "", text)
    if "\n\n\n" in text:
        text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip() + "\n"


@dataclass(slots=True)
class _Out:
    parts: list[str] = field(default_factory=list)
    breaks: int = 0  # line ends that the next word needs before it
    ended: int = 2  # line ends that stand there already
    fresh: bool = True  # nothing stands on this line yet
    space: bool = False  # a space is due before the next word

    def word(self, text: str) -> None:
        text = _SPACES.sub(" ", text)
        if not text.strip():
            self.space = self.space or (bool(text) and not self.fresh)
            return
        lead = text.startswith(" ") or self.space
        self.flush()
        self.parts.append((" " if lead and not self.fresh else "") + text.strip(" "))
        self.fresh, self.ended = False, 0
        self.space = text.endswith(" ")

    def statement(self, mark: str) -> None:
        """A merge tag that shows nothing: it stands where the next word will, so that what it leaves out leaves no gap."""
        self.flush()
        if self.space and not self.fresh:
            self.parts.append(" ")
            self.space = False
        self.parts.append(mark)

    def line(self) -> None:
        self.breaks = max(self.breaks, 1)

    def paragraph(self) -> None:
        self.breaks = max(self.breaks, 2)

    def flush(self) -> None:
        if self.breaks > self.ended:
            self.parts.append("\n" * (self.breaks - self.ended))
            self.ended = self.breaks
        if self.breaks:
            self.fresh, self.space = True, False
        self.breaks = 0

    def bullet(self, text: str) -> None:
        """The beginning of a list's item: what follows stands on its line."""
        self.line()
        self.flush()
        self.parts.append(text)
        self.fresh, self.space, self.ended = True, False, 2

    def finish(self) -> str:
        return "".join(self.parts).strip() + "\n"


class _Walker:
    def __init__(self, marks: Marks):
        self.marks = marks
        self.out = _Out()
        self.labels: dict[int, str] = {}
        self.lists: list[int | None] = []

    def walk(self, node: LexborNode) -> None:
        for child in node.iter(include_text=True):
            if child.is_comment_node:
                content = (child.comment_content or "").strip()
                if self.marks.pattern.fullmatch(content):
                    self.out.statement(content)
            elif child.is_text_node:
                self.out.word(child.text_content or "")
            elif not (child.tag in _SILENT or "aria-hidden" in child.attributes or _HIDDEN.search(child.attributes.get("style") or "")):
                self.element(child)

    def element(self, node: LexborNode) -> None:
        tag = node.tag
        if tag == "br":
            self.out.breaks += 1
        elif tag == "a":
            self.link(node)
        elif tag == "img":
            alt = (node.attributes.get("alt") or "").strip()
            if alt:
                self.out.word(alt)
        elif tag == "hr":
            self.out.paragraph()
            self.out.word("----")
            self.out.paragraph()
        elif tag in ("ul", "ol"):
            self.lists.append(1 if tag == "ol" else None)
            self.block(node)
            self.lists.pop()
        elif tag == "li":
            self.item(node)
        elif tag in ("td", "th"):
            self.walk(node)
            if node.next is not None:
                self.out.word(" ")
        elif tag in _BLOCKS:
            self.block(node)
        else:
            self.walk(node)

    def block(self, node: LexborNode) -> None:
        end = self.out.paragraph if node.tag in _PARAGRAPHS else self.out.line
        end()
        self.walk(node)
        end()

    def item(self, node: LexborNode) -> None:
        number = self.lists[-1] if self.lists else None
        indent = "  " * max(0, len(self.lists) - 1)
        self.out.bullet(f"{indent}{number}. " if number else f"{indent}- ")
        if number:
            self.lists[-1] = number + 1
        self.walk(node)
        self.out.line()

    def link(self, node: LexborNode) -> None:
        href = (node.attributes.get("href") or "").strip()
        label = _SPACES.sub(" ", node.attributes.get("aria-label") or node.text(deep=True) or "").strip()
        label = label or next(((image.attributes.get("alt") or "").strip() for image in node.css("img")), "")
        for number in self.marks.pattern.findall(href):
            self.labels.setdefault(int(number), label)
        own_line = bool(_OWN_LINE.search(node.attributes.get("style") or ""))
        if own_line:
            self.out.line()
        address = self.marks.restore(href, "text").removeprefix("mailto:").removeprefix("tel:")
        if not href or href.startswith("#") or address == self.marks.restore(label, "text"):
            self.out.word(label)
        elif own_line:
            self.out.word(f"{label}: {href}" if label else href)
        else:
            if node.attributes.get("aria-label"):
                self.out.word(label)
            else:
                self.walk(node)
            self.out.word(f" <{href}>")
        if own_line:
            self.out.line()
