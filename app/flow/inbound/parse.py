"""Reading mail that anybody may have sent: bounded, and never raising for what it holds (I-06, invariant 12).

At most 1 MB is looked at, 64 KB of headers, 50 parts, 10 levels; what is beyond is named in `problems` and left unread. The bytes
themselves are kept elsewhere, so nothing is lost by that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import HeaderParser
from email.utils import parseaddr

from selectolax.lexbor import LexborHTMLParser

LOOKED_AT = 1024 * 1024
HEADER_BYTES = 64 * 1024
PARTS = 50
DEPTH = 10
TEXT_KEPT = 64 * 1024
VALUE_KEPT = 2000
HEADERS = 500

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n|\r\r")
_NESTS = re.compile(rb"content-type:\s*(multipart|message)/", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BLANK = re.compile(r"\n[ \t]*\n")
_STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")
_FEEDBACK_TYPES = ("message/feedback-report",)
_MAIL_TYPES = ("message/rfc822", "message/global", "message/news")
_HEADER_TYPES = ("text/rfc822-headers", "message/rfc822-headers", "message/global-headers")

Fields = Mapping[str, Sequence[str]]  # by small name, in order; values unfolded and decoded


@dataclass(frozen=True, slots=True)
class Mail:
    """What is known of a mail.

    `text` is its first text part, else its HTML without markup; `blocks` are the fields of each block of a delivery-status part,
    `feedback` those of a feedback-report part, `returned` the headers of the mail that it returns. `message` is for libraries that want
    the parsed message; None when it could not be parsed.
    """

    headers: Fields
    text: str = ""
    blocks: tuple[Fields, ...] = ()
    feedback: Fields | None = None
    returned: Fields | None = None
    problems: tuple[str, ...] = ()
    message: Message | None = field(default=None, compare=False)

    def first(self, name: str) -> str:
        return first(self.headers, name)

    @property
    def subject(self) -> str:
        return self.first("subject")

    @property
    def sender(self) -> str:
        """The address in From, in small letters; empty where there is none that can be read."""
        return address_in(self.first("from"))


def first(fields: Fields | None, name: str) -> str:
    return next(iter((fields or {}).get(name, ())), "")


def address_in(value: str) -> str:
    """The address of a header value such as `Ada <ada@example.org>`."""
    try:
        found = parseaddr(value[:VALUE_KEPT])[1].strip().lower()
    except (ValueError, IndexError, RecursionError):
        return ""
    return found if "@" in found and len(found) <= 320 else ""


def read(raw: bytes) -> Mail:
    """Reads as much of `raw` as is safe. Never raises."""
    problems: list[str] = []
    if len(raw) > LOOKED_AT:
        problems.append(f"only the first {LOOKED_AT // 1024} KB were read")
        raw = raw[:LOOKED_AT]
    end = _END_OF_HEAD.search(raw)
    head, body = (raw[: end.start()], raw[end.end() :]) if end else (raw, b"")
    if len(head) > HEADER_BYTES:
        problems.append(f"only the first {HEADER_BYTES // 1024} KB of the headers were read")
        head = head[:HEADER_BYTES].rpartition(b"\n")[0]
    if not re.match(rb"[!-9;-~]+[ \t]*:|From ", head):
        problems.append("it does not begin with headers")
    # Python's parser pays for every level with every line, so what nests too much is not given to it.
    if len(_NESTS.findall(raw)) > PARTS + DEPTH:
        problems.append("it has too many parts, so only the text was read")
        message, plain = _parsed(head, problems), True
    else:
        message, plain = _parsed(head + b"\r\n\r\n" + body, problems), False
    if message is None:
        return Mail({}, _decoded(body, "utf-8"), problems=tuple(problems))
    walk = _Walk(problems)
    if not plain:
        try:
            walk.go(message, 0)
        except Exception as error:
            # The library's own faults, on mails that somebody has made for that.
            problems.append(f"its parts cannot be read: {type(error).__name__}: {error}"[:200])
    text = walk.text or walk.html or (_decoded(body, "utf-8") if plain or not walk.seen else "")
    whole = None if plain else message
    return Mail(fields_of(message), text, tuple(walk.blocks), walk.feedback, walk.returned, tuple(dict.fromkeys(problems)), whole)


def _parsed(raw: bytes, problems: list[str]) -> Message | None:
    try:
        return message_from_bytes(raw, policy=policy.compat32)
    except Exception as error:
        problems.append(f"it cannot be parsed: {type(error).__name__}: {error}"[:200])
        return None


class _Walk:
    """Goes through the parts and keeps the first of each kind."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        self.seen = 0
        self.text = self.html = ""
        self.blocks: list[Fields] = []
        self.feedback: Fields | None = None
        self.returned: Fields | None = None

    def go(self, part: Message, depth: int) -> None:
        self.seen += 1
        if self.seen > PARTS or depth > DEPTH:
            self.problems.append(f"only {PARTS} parts and {DEPTH} levels were read")
            return
        kind = part.get_content_type()
        if kind in _STATUS_TYPES:
            self.blocks = self.blocks or _blocks(part)
        elif kind in _FEEDBACK_TYPES:
            self.feedback = self.feedback or _merged(_blocks(part))
        elif kind in _MAIL_TYPES or kind in _HEADER_TYPES:
            self.returned = self.returned or _returned(part)
        elif part.is_multipart():
            for inner in part.get_payload():
                if self.seen > PARTS:
                    break
                self.go(inner, depth + 1)
        elif kind == "text/html":
            self.html = self.html or _without_markup(_body(part))
        elif kind.startswith(("text/", "multipart/")) and part.get_content_disposition() != "attachment":
            self.text = self.text or _body(part).strip()


def _blocks(part: Message) -> list[Fields]:
    """The blocks of fields of a report: parsed by the library, or text that it leaves alone."""
    payload = part.get_payload()
    if not isinstance(payload, list):
        return _blocks_in(_body(part))
    blocks = []
    for one in payload[:PARTS]:
        # Of the international kind the library takes the first block for headers and the others for a body.
        blocks += [fields_of(one), *(_blocks_in(_body(one)) if not one.is_multipart() else ())]
    return [found for found in blocks[:PARTS] if found]


def _blocks_in(text: str) -> list[Fields]:
    return [found for one in _BLANK.split(text)[:PARTS] if (found := _fields_in(one))]


def _merged(blocks: Sequence[Fields]) -> Fields:
    found: dict[str, list[str]] = {}
    for block in blocks:
        for name, values in block.items():
            found.setdefault(name, []).extend(values)
    return found


def _returned(part: Message) -> Fields | None:
    payload = part.get_payload()
    if isinstance(payload, list) and payload:
        return fields_of(payload[0])
    return _fields_in(_body(part)) or None


def _fields_in(text: str) -> Fields:
    return fields_of(HeaderParser(policy=policy.compat32).parsestr(text.lstrip("\r\n")[:HEADER_BYTES]))


def fields_of(message: Message) -> Fields:
    """The headers of a message by small name, unfolded, decoded and within bounds."""
    found: dict[str, list[str]] = {}
    for name, value in message.items()[:HEADERS]:
        found.setdefault(str(name).strip().lower()[:100], []).append(_words(value))
    return found


def _words(value: object) -> str:
    """A header's value as people read it; as it stands where its encoding is broken."""
    text = str(value)[: VALUE_KEPT * 4]
    text = re.sub(r"[\r\n]+[ \t]*", " ", text)
    if "=?" in text:
        with contextlib.suppress(LookupError, ValueError, MessageError, AssertionError, IndexError, TypeError):
            text = str(make_header(decode_header(text)))
    return _printable(text)[:VALUE_KEPT].strip()


def _body(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        payload = str(part.get_payload() or "").encode("utf-8", "replace")
    return _decoded(payload, _charset(part))


def _charset(part: Message) -> str:
    try:
        return part.get_content_charset() or "utf-8"
    except (LookupError, UnicodeError, ValueError):
        return "utf-8"


def _decoded(data: bytes, charset: str) -> str:
    data = data[: TEXT_KEPT * 4]
    try:
        text = data.decode(charset, "strict")
    except (LookupError, UnicodeError, ValueError):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return _printable(text.replace("\r\n", "\n").replace("\r", "\n"))[:TEXT_KEPT]


def _printable(text: str) -> str:
    """Without NULs, half surrogates and other control characters, which databases and terminals choke on."""
    return _CONTROLS.sub("", text).encode("utf-8", "replace").decode()


def _without_markup(html: str) -> str:
    """The words of an HTML body. Never shown as HTML anywhere."""
    if html.count("<") > 20_000:
        return re.sub(r"<[^<>]{0,2000}>", " ", html)[:TEXT_KEPT].strip()
    tree = LexborHTMLParser(re.sub(r"(?i)(<br\s*/?>|</(?:p|div|li|tr|blockquote|h[1-6])>)", r"\1" + "\n", html))
    tree.strip_tags(["script", "style", "head", "title", "template"], recursive=True)
    text = tree.body.text(separator="") if tree.body is not None else ""
    return re.sub(r"\n[ \t]*(\n[ \t]*)+", "\n\n", text).strip()[:TEXT_KEPT]


def lines_of(fields: Fields, *names: str) -> Iterator[str]:
    """All values of the headers of these names."""
    for name in names:
        yield from fields.get(name, ())
