"""Reads calls of Segment's HTTP tracking API: bytes in, checked items and named problems out. Pure: no clock, no database.

One bad item never costs its neighbours: it is named with its place, its field and what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from json import JSONDecodeError
from json import loads as loosely
from math import isfinite
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic_core import from_json, to_json

from app.errors import EventError
from app.rules.facts import OWN_PREFIX

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # what is dated before is stored as this moment, so that arithmetic on it is safe

BATCH_BYTES = 500 * 1024
ITEM_BYTES = 32 * 1024
TEXT_LENGTH = 255  # of ids, names and keys
DEPTH = 8
INTEGER_LIMIT = 10**100
LOOSE_LEVELS = 500  # how deep the lenient parser may go: less than any Python's limit

KINDS = ("track", "identify", "group", "page", "screen", "alias")


class Item(NamedTuple):
    """One event from outside, checked. `occurred_at` is aware UTC, never later than its arrival, never before EARLIEST."""

    message_id: str
    kind: str
    name: str
    account_key: str | None
    contact_key: str | None
    properties: Mapping[str, Any]
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one item: `index` is its place in the batch (None: the envelope), `field` the JSON path."""

    index: int | None
    message_id: str | None
    field: str | None
    problem: str


def read_items(body: bytes, received_at: datetime, kind: str | None = None) -> tuple[list[Item], list[Problem]]:
    """Reads the body of a call of Segment's tracking API: a batch, or with `kind` a single item. Touches nothing.

    Returns the good items in their order and a problem for each bad one. Raises EventError when the body as a whole cannot be read:
    it is no JSON (with the position), no object, or a batch without a list. Sizes are the caller's to limit, except an item's.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    broken = None
    try:
        envelope = from_json(body)
    except ValueError as error:
        envelope, broken = _salvage(body, kind)
        if not broken:
            raise EventError(f"the body is no JSON that can be read: {error}" if body.strip() else "the body is empty") from error
    reader = _Reader(received_at, suspicious=broken is not None or b"\\u0000" in body, large=len(body) > ITEM_BYTES)
    if broken:
        batch = broken
    elif not isinstance(envelope, dict):
        raise EventError("the body must be a JSON object")
    else:
        batch = [envelope] if kind else envelope.get("batch")
    if not isinstance(batch, list):
        raise EventError("must be a list of items", "batch")
    if not kind:
        reader.take_defaults(envelope)
    return reader.read(batch, kind)


def write_key_in(body: bytes) -> str | None:
    """The `writeKey` that a body carries, for clients that authenticate so. None when there is none or the body is no JSON."""
    try:
        envelope = from_json(body)
    except ValueError:
        return None
    key = envelope.get("writeKey") if isinstance(envelope, dict) else None
    return key if isinstance(key, str) else None


class _Broken(NamedTuple):
    """An item that the JSON parser refused; `value` is what a more lenient parser made of it, if anything."""

    problem: str
    value: Any = None


class _Reader:
    """Reads the items of one body. `suspicious`: strings may hold what PostgreSQL cannot store. `large`: an item may be too large."""

    def __init__(self, received_at: datetime, *, suspicious: bool, large: bool):
        self.received_at = received_at
        self.suspicious = suspicious
        self.large = large
        self.longest = received_at - EARLIEST
        self.context: dict[str, Any] = {}
        self.sent_at: datetime | None = None
        self.problems: list[Problem] = []

    def take_defaults(self, envelope: Mapping[str, Any]) -> None:
        """What a batch says for all its items. A default that is wrong is reported and left out; the items stay."""
        try:
            self.sent_at = _moment(envelope.get("sentAt"), "sentAt")
        except EventError as error:
            self._note(None, None, error)
        try:
            self.context = _object(envelope, "context")
        except EventError as error:
            self._note(None, None, error)

    def read(self, batch: Iterable[Any], kind: str | None) -> tuple[list[Item], list[Problem]]:
        items = []
        for index, raw in enumerate(batch):
            try:
                items.append(self._item(raw, kind) if type(raw) is not _Broken else self._broken(raw, kind))
            except EventError as error:
                raw = raw.value if type(raw) is _Broken else raw
                self._note(index, raw.get("messageId") if isinstance(raw, dict) else None, error)
        return items, self.problems

    def _note(self, index: int | None, message_id: Any, error: EventError) -> None:
        shown = _printable(message_id) if isinstance(message_id, str) else None
        self.problems.append(Problem(index, shown, error.field and _printable(error.field), error.problem))

    def _broken(self, raw: _Broken, kind: str | None) -> Item:
        self.large = False  # cannot be measured, and it is refused anyway
        if isinstance(raw.value, dict):
            self._item(raw.value, kind)  # names the field, where it can
        raise EventError(raw.problem)

    def _item(self, raw: Any, kind: str | None) -> Item:
        if not isinstance(raw, dict):
            raise EventError("must be an object")
        if self.large and len(to_json(raw)) > ITEM_BYTES:
            raise EventError(f"is larger than {ITEM_BYTES // 1024} KB")
        get = raw.get
        kind = kind or get("type")
        read = _KINDS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise EventError(f"must be one of {', '.join(KINDS)}", "type")
        context = get("context")
        if context is None:
            context = self.context
        elif not isinstance(context, dict):
            raise EventError("must be an object", "context")
        elif self.context:
            context = {**self.context, **context}
        user = _identifier(get("userId"), "userId")
        anonymous = _identifier(get("anonymousId"), "anonymousId")
        if self.suspicious:
            _refuse_hidden(raw, context)
        name, account, properties = read(raw, kind, context, user, anonymous)
        message_id = _identifier(get("messageId"), "messageId") or uuid4().hex
        if properties:
            _check(properties, "traits" if kind in ("identify", "group") else "properties", 1, self.suspicious)
        # Until a userId is known, the anonymousId is who it is; an alias call joins the two.
        return Item(message_id, kind, name, account, user or anonymous, properties, self._occurred_at(get))

    def _occurred_at(self, get: Callable[[str], Any]) -> datetime:
        """Segment's rule: the client's clock is wrong by as much as `sentAt` differs from the arrival, so the age is sentAt - timestamp."""
        original = get("originalTimestamp")
        at = _moment(get("timestamp"), "timestamp") if original is None else _moment(original, "originalTimestamp")
        sent_at = get("sentAt")
        sent_at = self.sent_at if sent_at is None else _moment(sent_at, "sentAt")
        if at is None:
            return self.received_at
        age = (sent_at or self.received_at) - at
        if age.days < 0:
            return self.received_at
        return self.received_at - age if age < self.longest else EARLIEST


def _track(raw: dict, kind: str, context: dict, user: str | None, anonymous: str | None) -> tuple[str, str | None, dict]:
    name = raw.get("event")
    if not isinstance(name, str) or not name or name.isspace():
        raise EventError("a track call must name its event" if name is None or name == "" else "must be a text", "event")
    _check_name(name, "event")
    account = _account(context)
    if not (user or anonymous or account):
        raise EventError("name whom it is about: userId, anonymousId or context.groupId", "userId")
    return name, account, _object(raw, "properties")


def _identify(raw: dict, kind: str, context: dict, user: str | None, anonymous: str | None) -> tuple[str, str | None, dict]:
    if not (user or anonymous):
        raise EventError("an identify call must name its userId or anonymousId", "userId")
    traits = _object(raw, "traits")
    if (more := context.get("traits")) is not None:
        if not isinstance(more, dict):
            raise EventError("must be an object", "context.traits")
        traits = {**more, **traits}
    for name in ("locale", "timezone"):
        if name not in traits and (value := context.get(name)) is not None:
            traits = {**traits, name: value}
    return "identify", _account(context), traits


def _group(raw: dict, kind: str, context: dict, user: str | None, anonymous: str | None) -> tuple[str, str | None, dict]:
    account = _identifier(raw.get("groupId"), "groupId") or _account(context)
    if not account:
        raise EventError("a group call must name its groupId", "groupId")
    return "group", account, _object(raw, "traits")


def _alias(raw: dict, kind: str, context: dict, user: str | None, anonymous: str | None) -> tuple[str, str | None, dict]:
    previous = _identifier(raw.get("previousId"), "previousId")
    if not user:
        raise EventError("an alias call must name its userId", "userId")
    if not previous:
        raise EventError("an alias call must name its previousId", "previousId")
    return "alias", _account(context), {"previous_id": previous}


def _page(raw: dict, kind: str, context: dict, user: str | None, anonymous: str | None) -> tuple[str, str | None, dict]:
    account = _account(context)
    if not (user or anonymous or account):
        raise EventError("name whom it is about: userId, anonymousId or context.groupId", "userId")
    name = raw.get("name")
    if name is not None and not isinstance(name, str):
        raise EventError("must be a text", "name")
    if name:
        _check_name(name, "name")
    return name or kind, account, _object(raw, "properties")


_KINDS = {"track": _track, "identify": _identify, "group": _group, "page": _page, "screen": _page, "alias": _alias}


def _account(context: dict) -> str | None:
    key = context.get("groupId")
    return None if key is None else _identifier(key, "context.groupId")


def _identifier(value: Any, field: str) -> str | None:
    """An id as text. Absent, null and blank mean none; a whole number is taken for its digits, as the client libraries do."""
    if value is None:
        return None
    if type(value) is int:
        value = str(value) if -INTEGER_LIMIT < value < INTEGER_LIMIT else "9" * (TEXT_LENGTH + 1)
    elif type(value) is not str:
        raise EventError("must be a text", field)
    if len(value) > TEXT_LENGTH:
        raise EventError(f"must have at most {TEXT_LENGTH} characters", field)
    return value if value and not value.isspace() else None


def _check_name(name: str, field: str) -> None:
    if len(name) > TEXT_LENGTH:
        raise EventError(f"must have at most {TEXT_LENGTH} characters", field)
    if name.startswith(OWN_PREFIX):
        raise EventError(f"names that begin with {OWN_PREFIX} are the engine's own", field)


def _object(raw: Mapping[str, Any], field: str) -> dict[str, Any]:
    value = raw.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise EventError("must be an object", field)
    return value


def _moment(value: Any, field: str) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise EventError("must be a time such as 2026-03-02T09:00:00Z", field)
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise EventError("is no time such as 2026-03-02T09:00:00Z", field) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _check(value: dict | list, path: str, depth: int, suspicious: bool) -> None:
    """Refuses what PostgreSQL cannot store or what nobody could read again. Goes no deeper than DEPTH."""
    if type(value) is dict:
        for key, inner in value.items():
            kind = type(inner)
            if len(key) > TEXT_LENGTH:
                raise EventError(f"a key must have at most {TEXT_LENGTH} characters", f"{path}.{key[:40]}…")
            if suspicious:
                _refuse_unstorable(key, f"{path}.{key[:TEXT_LENGTH]}")
                if kind is str:
                    _refuse_unstorable(inner, f"{path}.{key}")
            if kind is not str:
                _check_value(inner, kind, path, f".{key}", depth, suspicious)
    else:
        for index, inner in enumerate(value):
            kind = type(inner)
            if kind is not str:
                _check_value(inner, kind, path, f"[{index}]", depth, suspicious)
            elif suspicious:
                _refuse_unstorable(inner, f"{path}[{index}]")


def _check_value(value: Any, kind: type, path: str, step: str, depth: int, suspicious: bool) -> None:
    if kind is float:
        if not isfinite(value):
            raise EventError("must be a finite number", path + step)
    elif kind is int:
        if not -INTEGER_LIMIT < value < INTEGER_LIMIT:
            raise EventError("has more than 100 digits", path + step)
    elif kind is dict or kind is list:
        if depth == DEPTH:
            raise EventError(f"is nested deeper than {DEPTH} levels", path + step)
        _check(value, path + step, depth + 1, suspicious)


def _refuse_hidden(raw: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    for field in ("messageId", "userId", "anonymousId", "groupId", "previousId", "event", "name"):
        if isinstance(value := raw.get(field), str):
            _refuse_unstorable(value, field)
    if isinstance(value := context.get("groupId"), str):
        _refuse_unstorable(value, "context.groupId")


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _refuse_unstorable(text: str, field: str) -> None:
    if found := _UNSTORABLE.search(text):
        raise EventError("must not contain a NUL character" if found.group() == "\x00" else "contains half a surrogate pair", field)


def _printable(text: str) -> str:
    return _UNSTORABLE.sub("\ufffd", text[: 2 * TEXT_LENGTH])


# A string that never ends runs to the end of the text: so the search cannot begin anew at each of its quotes.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*+(?:"|\\?\Z)|[\[\]{},]', re.S)


def _salvage(body: bytes, kind: str | None) -> tuple[Any, list[Any] | None]:
    """What the parser refused although it is JSON, such as half a surrogate pair: cuts a batch into items, so that one item that
    cannot be stored does not take its neighbours along.

    Returns the envelope (its batch emptied) and the items, those that cannot be parsed as _Broken; (None, None) when the body is no
    JSON at all, or when nothing in it can be kept or named.
    """
    try:
        if kind:
            item = _one(body)
            return None, [item] if isinstance(item.value, dict) else None
        begin, end, spans = _cut(body)
        envelope = from_json(body[:begin] + body[end:])
        items = [_one(body[start:end]) for start, end in spans]
    except ValueError:
        return None, None
    worth = any(type(item) is not _Broken or isinstance(item.value, dict) for item in items)
    return (envelope, items) if worth else (None, None)


def _cut(body: bytes) -> tuple[int, int, list[tuple[int, int]]]:
    """Where the list `batch` begins and ends in `body`, and each of its items. Raises ValueError when there is none that ends."""
    depth, key, start, begin, spans = 0, b"", 0, 0, []
    for token in _TOKEN.finditer(body):
        first = token.group()[:1]
        if first == b'"':
            key = token.group() if depth == 1 else key
        elif first in b"[{":
            depth += 1
            if depth == 2 and first == b"[" and key == b'"batch"':
                begin = start = token.end()
        elif first in b"]}":
            depth -= 1
            if begin and depth == 1:
                spans.append((start, token.start()))
                return begin, token.start(), spans
        elif begin and depth == 2:
            spans.append((start, token.start()))
            start = token.end()
    raise ValueError("no batch")


def _one(text: bytes) -> Any:
    """One item. A _Broken is JSON that cannot be stored; what is no JSON raises ValueError."""
    try:
        return from_json(text)
    except ValueError as error:
        problem = f"is no JSON that can be stored: {error}"
    if text.count(b"[") + text.count(b"{") > LOOSE_LEVELS:
        return _Broken(problem)
    try:
        return _Broken(problem, loosely(text))
    except JSONDecodeError:
        raise
    except ValueError:  # a number with thousands of digits
        return _Broken(problem)
