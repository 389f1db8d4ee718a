"""Reads the tags of MJML and HTML once from left to right; linear in whatever it is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_ATTRIBUTE = re.compile(r"[^\s=>\"'/<]+")
_SPACE = re.compile(r"\s*")
_BARE = re.compile(r"[^\s>]*")


Complain = Callable[..., None]  # of an offset, a problem, and perhaps the nearest right name


@dataclass(slots=True)
class Tag:
    """A tag, or the text between two. `start` and `end` are offsets."""

    name: str
    kind: str  # open, close, alone or text
    start: int
    end: int
    attributes: list[tuple[str, str | None, bool, int]] = field(default_factory=list)  # name, value, quoted, offset


class Scanner:
    """Reads tags and text from left to right, once. `complain(offset, problem)` hears of what is malformed; scanning then ends."""

    def __init__(self, text: str, complain: Complain, start: int = 0, end: int | None = None):
        self.text = text
        self.complain = complain
        self.at = start
        self.end = len(text) if end is None else end

    def __iter__(self) -> Iterator[Tag]:
        text = self.text
        while self.at < self.end:
            start = text.find("<", self.at, self.end)
            if start < 0:
                start = self.end
            if start > self.at:
                yield Tag("", "text", self.at, start)
            self.at = start
            if start >= self.end:
                return
            if text.startswith("<!--", start):
                if not self._comment(start):
                    return
                continue
            tag = self._tag(start)
            if tag is None:
                return
            self.at = tag.end
            yield tag

    def leaf(self, tag: Tag) -> tuple[int, int]:
        """Where the content of the open element `tag` starts and ends; goes on after its closing tag."""
        close = self.text.find(f"</{tag.name}", tag.end, self.end)
        if close < 0:
            self.complain(tag.start, f"<{tag.name}> is never closed")
            self.at = self.end
            return tag.end, tag.end
        after = self.text.find(">", close, self.end)
        self.at = self.end if after < 0 else after + 1
        return tag.end, close

    def _comment(self, start: int) -> bool:
        close = self.text.find("-->", start, self.end)
        if close < 0:
            self.complain(start, "a comment is never closed")
            return False
        if self.text.startswith(("<!--[", "<!--<"), start):
            self.complain(start, "MJML writes conditional comments itself; do not add more")
        self.at = close + 3
        return True

    def _tag(self, start: int) -> Tag | None:
        text = self.text
        closing = text.startswith("</", start)
        name = _NAME.match(text, start + (2 if closing else 1), self.end)
        if not name:
            self.complain(start, "write &lt; for a < in text")
            return None
        tag = Tag(name.group(), "close" if closing else "open", start, start)
        at = name.end()
        while True:
            at = _SPACE.match(text, at, self.end).end()  # type: ignore[union-attr]
            if at >= self.end:
                self.complain(start, f"<{tag.name} has no >")
                return None
            if text[at] == ">":
                tag.end = at + 1
                return tag
            if text.startswith("/>", at):
                tag.kind, tag.end = "alone", at + 2
                return tag
            attribute = _ATTRIBUTE.match(text, at, self.end)
            if not attribute:
                self.complain(at, f"<{tag.name}>: {text[at]!r} does not belong here")
                return None
            at, value, quoted = self._value(attribute.end())
            if at < 0:
                self.complain(attribute.start(), f"the value of {attribute.group()} has no closing quote")
                return None
            tag.attributes.append((attribute.group(), value, quoted, attribute.start()))

    def _value(self, at: int) -> tuple[int, str | None, bool]:
        text = self.text
        equals = _SPACE.match(text, at, self.end).end()  # type: ignore[union-attr]
        if not text.startswith("=", equals):
            return at, None, False
        at = _SPACE.match(text, equals + 1, self.end).end()  # type: ignore[union-attr]
        quote = text[at : at + 1]
        if quote in ('"', "'") and quote:
            close = text.find(quote, at + 1, self.end)
            value = text[at + 1 : close]
            return (close + 1 if close >= 0 else -1), value.replace('"', "&quot;") if quote == "'" else value, True
        end = _BARE.match(text, at, self.end).end()  # type: ignore[union-attr]
        return end, text[at:end], False
