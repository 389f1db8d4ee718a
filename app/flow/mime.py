"""A mail as bytes, assembled by hand: headers exactly as email-standards 1.2 and 1.3 ask, text first, HTML last, CRLF throughout.

Python's own `email` package takes ten times as long and folds `List-Unsubscribe` into something that no provider can read (finding 1).
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import b2a_qp
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Protocol

import idna

from app.errors import RenderSkip
from app.flow.composing.filters import one_line

LINE = 76
LONG = 48 * 1024  # HTML from which on it matters how it is encoded
HARD_LINE = 998  # RFC 5322 2.1.1

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_URL = re.compile(r"https?://[\x21-\x3b\x3d\x3f-\x7e]+")  # no space, no angle bracket
_MAILTO = re.compile(r"mailto:[\x21-\x3b\x3d\x3f-\x7e]+")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_DOMAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
_OTHER = re.compile(r"X-[A-Za-z0-9_-]{1,62}")
_ENCODED_WORD = re.compile(r"=\?")


class Parts(Protocol):
    """What is assembled: a rendered mail."""

    subject: str
    html: str
    text: str


def assemble(
    mail: Parts,
    *,
    sender: tuple[str, str],
    reply_to: str | Sequence[str] | None,
    to: tuple[str, str],
    message_header: str,
    date: datetime,
    unsubscribe_url: str | None,
    list_id: str | None,
    feedback_id: str | None,
    token: str | None,
    transactional: bool = False,
    unsubscribe_mailto: str | None = None,
    metadata: tuple[str, str] | None = None,
) -> bytes:
    """The message as it goes over the wire: CRLF, 7 bit, no line over 998 octets, and none that begins with a dot, so that there is
    nothing to stuff.

    The same arguments give the same bytes, so a retry repeats the first attempt. `sender` and `to` are (name, address); names may
    hold anything and become harmless. Every other value that is not a plain line of the right shape raises RenderSkip: `bad_header`
    (M-09), or `eai_unsupported` for an address whose local part is not ASCII (M-11). Transactional mail carries no list headers. `token`
    names the message in X-Nurture-Send and may come back in a bounce; `metadata` is a header (name, value) by which a provider does the
    same. No header stands twice (B-08).
    """
    header = _plain("Message-ID", message_header)
    header = header if header.startswith("<") else f"<{header}>"
    boundary = "=_" + blake2b(header.encode(), digest_size=16).hexdigest()
    lines = [
        f"Date: {_date(date.replace(microsecond=0))}",
        f"From: {_sender(*sender)}",
        f"To: {_mailbox('To', *to)}",
        f"Subject: {unstructured(mail.subject, 9)}",
        f"Message-ID: {header}",
    ]
    if reply_to:
        answers = (reply_to,) if isinstance(reply_to, str) else reply_to
        lines.append("Reply-To: " + ",\r\n ".join(address(one, "Reply-To") for one in answers))
    if transactional:
        lines.append("Auto-Submitted: auto-generated")
    else:
        lines += _list_headers(unsubscribe_url, unsubscribe_mailto, list_id)
    if feedback_id:
        lines.append(f"Feedback-ID: {_plain('Feedback-ID', feedback_id)}")
    if token:
        lines.append(f"X-Nurture-Send: {_plain('X-Nurture-Send', token)}")
    if metadata:
        lines.append(f"{_name(metadata[0])}: {_plain(*metadata)}")
    lines.append("MIME-Version: 1.0")
    lines.append(f'Content-Type: multipart/alternative;\r\n boundary="{boundary}"')
    text_encoding, text = _encoded_text(mail.text)
    html_encoding, page = _encoded_html(mail.html)
    edge = boundary.encode()
    head = "\r\n".join(lines).encode("ascii")
    # Nothing above lets one through. Should that ever change, a message of its own must not hide behind it (S-07).
    if not (_sound(head) and _sound(text) and (html_encoding == b"base64" or _sound(page))):
        raise RenderSkip("bad_header", {"header": "message", "value": "a line end or a dot where none may be"})
    return b"".join(
        (
            head,
            b"\r\n\r\n--",
            edge,
            b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: ",
            text_encoding,
            b"\r\n\r\n",
            text,
            b"\r\n--",
            edge,
            b"\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: ",
            html_encoding,
            b"\r\n\r\n",
            page,
            b"\r\n--",
            edge,
            b"--\r\n",
        )
    )


def _list_headers(url: str | None, mailto: str | None, list_id: str | None) -> list[str]:
    lines = []
    if url:
        # One line, never folded and never encoded: finding 1, U-01.
        if not _URL.fullmatch(url) or len(url) > HARD_LINE - 120:
            raise _bad("List-Unsubscribe", url)
        value = f"<{url}>"
        if mailto:
            if not _MAILTO.fullmatch(mailto) or len(value) + len(mailto) > HARD_LINE - 30:
                raise _bad("List-Unsubscribe", mailto)
            value += f", <{mailto}>"
        lines += [f"List-Unsubscribe: {value}", "List-Unsubscribe-Post: List-Unsubscribe=One-Click"]
    if list_id:
        lines.append(_list_id(list_id))
    return [*lines, "Precedence: bulk", "X-Auto-Response-Suppress: OOF, AutoReply"]


def html_size(html: str) -> int:
    """How many octets the HTML part of a mail has, encoded."""
    return len(_encoded_html(html)[1])


@lru_cache(maxsize=256)
def _list_id(list_id: str) -> str:
    """Lists are few, too."""
    name, _, inner = list_id.rpartition("<")
    domain = inner.rstrip("> ")
    if not _DOMAIN.fullmatch(domain):
        raise _bad("List-Id", list_id)
    name = name.strip()
    return f"List-Id: {_phrase(name, 9, len(domain) + 3)} <{domain}>" if name else f"List-Id: <{domain}>"


# Addresses and words -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def address(value: str, header: str) -> str:
    """`value` as an addr-spec in ASCII, its domain as A-labels. Raises RenderSkip."""
    local, at, domain = value.strip().rpartition("@")
    if not at:
        raise _bad(header, value)
    if not local.isascii():
        raise RenderSkip("eai_unsupported", {"header": header, "address": one_line(value)[:320]})
    if not _LOCAL.fullmatch(local) or len(local) > 64:
        raise _bad(header, value)
    return f"{local}@{_domain(domain, header)}"


def wire_domain(domain: str) -> str | None:
    """A domain as it goes over the wire, in A-labels and small letters; None for what is none."""
    try:
        return _domain(domain.strip().rstrip("."), "domain").lower()
    except RenderSkip:
        return None


@lru_cache(maxsize=4096)
def _domain(domain: str, header: str) -> str:
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise _bad(header, domain) from error
    if not _DOMAIN.fullmatch(domain) or len(domain) > 253:
        raise _bad(header, domain)
    return domain


def _mailbox(header: str, name: str, value: str) -> str:
    spec = address(value, header)
    name = one_line(name or "")[:200].strip()
    return f"{_phrase(name, len(header) + 2, len(spec) + 3)} <{spec}>" if name else spec


@lru_cache(maxsize=256)
def _sender(name: str, value: str) -> str:
    """Senders are few and mails are many."""
    return _mailbox("From", name, value)


def _phrase(name: str, used: int, after: int) -> str:
    """A display name: as it is, quoted, or encoded. `used` and `after` are the columns taken before and after it."""
    name = one_line(name)
    if name.isascii() and not _ENCODED_WORD.search(name):
        if not _ATOMS.fullmatch(name):
            name = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return name + ("\r\n" if used + len(name) + after > LINE else "")
    encoded = _encoded_words(name, used)
    return encoded + ("\r\n" if len(encoded.rpartition("\r\n")[2]) + used + after > LINE else "")


def unstructured(value: str, used: int) -> str:
    """A header's free text: folded at spaces if it is ASCII, else as encoded words (RFC 2047). `used` columns stand before it.

    Never holds CR, LF or NUL of the value's own: control characters become spaces.
    """
    value = one_line(value)
    if value.isascii() and not _ENCODED_WORD.search(value):
        if used + len(value) <= LINE:
            return value
        if max(map(len, value.split(" "))) < LINE - used and "  " not in value:
            return _folded(value, used)
    return _encoded_words(value, used)


def _folded(value: str, used: int) -> str:
    lines: list[str] = []
    line = ""
    for word in value.split(" "):
        if line and used + len(line) + 1 + len(word) > LINE:
            lines.append(line)
            line, used = word, 1
        else:
            line = f"{line} {word}" if line else word
    return "\r\n ".join((*lines, line))


def _encoded_words(value: str, used: int) -> str:
    """`value` as base64 words of at most 75 characters, no character split between two of them."""
    words: list[str] = []
    chunk = b""
    room = (min(75, LINE - used) - 12) // 4 * 3
    whole = value.encode("utf-8", "replace")
    if len(whole) <= room:
        return f"=?utf-8?b?{b64encode(whole).decode()}?="
    for letter in value:
        raw = letter.encode("utf-8", "replace")
        if len(chunk) + len(raw) > room:
            words.append(b64encode(chunk).decode())
            chunk, room = b"", (LINE - 1 - 12) // 4 * 3
        chunk += raw
    words.append(b64encode(chunk).decode())
    return "\r\n ".join(f"=?utf-8?b?{word}?=" for word in words)


def _plain(header: str, value: str) -> str:
    if not value or len(value) > HARD_LINE - 40 or not _PRINTABLE.fullmatch(value):
        raise _bad(header, value)
    return value


def _name(header: str) -> str:
    """The name of a header that is not among those written above."""
    if not _OTHER.fullmatch(header):
        raise _bad("name", header)
    return header


def _bad(header: str, value: str) -> RenderSkip:
    return RenderSkip("bad_header", {"header": header, "value": repr(value)[:200]})


@lru_cache(maxsize=64)
def _date(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    clock = f"{moment.hour:02d}:{moment.minute:02d}:{moment.second:02d}"
    return f"{_DAYS[moment.weekday()]}, {moment.day:02d} {_MONTHS[moment.month - 1]} {moment.year:04d} {clock} +0000"


# Bodies --------------------------------------------------------------------------------------------------------------


def _encoded_text(text: str) -> tuple[bytes, bytes]:
    """The text part: as it is where ASCII and lines allow, else quoted-printable, which a reader of the source can still read; base64
    where a line would begin with a dot."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii() and "\x00" not in text and max(map(len, text.split("\n"))) <= HARD_LINE and not _odd(text):
        return b"7bit", text.replace("\n", "\r\n").encode("ascii")
    raw = text.replace("\x00", "").encode("utf-8", "replace")
    printable = b2a_qp(raw, istext=True).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if b"\n." in printable:
        # A soft break before a dot. Where the line has no room for the dot's longer spelling, the whole goes as base64.
        printable = printable.replace(b"\n.", b"\n=2E")
        if max(map(len, printable.split(b"\r\n"))) > LINE:
            return b"base64", _base64(raw)
    return (b"quoted-printable", printable) if _sound(printable) else (b"base64", _base64(raw))


def _encoded_html(html: str) -> tuple[bytes, bytes]:
    """The HTML part: base64, which is made in no time; of a long one quoted-printable, if it is shorter so, as mail programs cut by what
    they get (M-13)."""
    raw = html.encode("utf-8", "replace")
    if len(raw) > LONG:
        printable = b2a_qp(raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), istext=True).replace(b"\n", b"\r\n").replace(b"\n.", b"\n=2E")
        if len(printable) < len(raw) * 4 / 3 and _sound(printable) and max(map(len, printable.split(b"\r\n"))) <= LINE + 2:
            return b"quoted-printable", printable
    return b"base64", _base64(raw)


def _odd(text: str) -> bool:
    """Whether a line begins with a dot or with `From `, which some relays change."""
    return "\n." in text or "\nFrom " in text or text.startswith((".", "From "))


def _sound(data: bytes) -> bool:
    """Whether every line end is CRLF and no line begins with a dot. Searches for fixed strings: a pattern would cost 100 µs a message."""
    ends = data.count(b"\r\n")
    return ends == data.count(b"\n") == data.count(b"\r") and b"\n." not in data and not data.startswith(b".")


def _base64(raw: bytes) -> bytes:
    encoded = b64encode(raw)
    whole = len(encoded) // LINE
    lines = list(_rows(whole).unpack_from(encoded)) if whole else []
    if len(encoded) % LINE:
        lines.append(encoded[whole * LINE :])
    return b"\r\n".join(lines)


@lru_cache(maxsize=1024)
def _rows(count: int) -> Struct:
    return Struct("76s" * count)
