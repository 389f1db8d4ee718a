"""Events in: Segment's HTTP tracking API under /v1, so that its server-side client libraries, and RudderStack's, work unchanged.

200 means committed. A bad item of a batch is named in the answer and its neighbours are kept, still 200, since those clients drop a
whole batch on 4xx. A Redis that is down costs at most a second of latency; a database that is down is 503 with Retry-After.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from flask import Blueprint, Response, abort, current_app, request
from pydantic_core import to_json
from sqlalchemy import Engine

from app.errors import EventError
from app.flow.access import Key, find_key
from app.flow.ingest import accept
from app.flow.items import BATCH_BYTES, ITEM_BYTES, KINDS, Problem, read_items, write_key_in
from app.web.context import here
from app.web.problems import problem

KEY_KEPT = timedelta(seconds=5)  # a revoked key may be used for so long
KEYS_REMEMBERED = 1000
PROBLEMS_SHOWN = 1000
GZIP = b"\x1f\x8b"
# What clients send JSON as. With any other type a body that is no JSON is 415 rather than 400.
JSON_LIKE = ("", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded")

blueprint = Blueprint("events", __name__, url_prefix="/v1")


@blueprint.post("/batch", strict_slashes=False)
def batch() -> Response:
    """Up to 500 KB of items, after inflating."""
    return _take(None, BATCH_BYTES)


def _single(kind: str):
    def view() -> Response:
        return _take(kind, ITEM_BYTES)

    view.__doc__ = f"One {kind} call, up to 32 KB after inflating."
    return view


for _kind in KINDS:
    blueprint.post(f"/{_kind}", endpoint=_kind, strict_slashes=False)(_single(_kind))


class Door:
    """What the process keeps between calls: the write keys it found a moment ago, and an engine whose statements commit themselves.

    Storing is one statement, so it needs no transaction around it: two round trips less.
    """

    def __init__(self, engine: Engine):
        self.engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.keys: dict[bytes, tuple[datetime, Key]] = {}

    def key(self, presented: str, now: datetime) -> Key | None:
        """The key presented; None when it is unknown, or was revoked more than KEY_KEPT ago. Unknown ones are never remembered."""
        name = sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = self.keys.get(name)
        if found is not None and found[0] <= now < found[0] + KEY_KEPT:
            return found[1]
        with self.engine.connect() as conn:
            key = find_key(conn, presented, now)
        if len(self.keys) >= KEYS_REMEMBERED:
            self.keys.clear()
        self.keys.pop(name, None)
        if key is not None:
            self.keys[name] = (now, key)
        return key


def _take(kind: str | None, limit: int) -> Response:
    installation, now = here(), datetime.now(UTC)
    extensions = current_app.extensions
    door = extensions.get("nurture.door") or extensions.setdefault("nurture.door", Door(installation.engine))
    if request.authorization is not None:
        source_id = _source(door, _basic_user(), now)
        body = _body(limit)
    else:
        body = _body(limit)
        source_id = _source(door, write_key_in(body), now)
    received_at = datetime.now(UTC)  # not before the whole body is here: a slow upload is no old event
    items, problems = _read(body, received_at, kind)
    with door.engine.connect() as conn:
        accepted = accept(conn, source_id, items, received_at, installation.partitions)
    installation.bells.advance(accepted.partitions)
    return _answer(problems)


def _basic_user() -> str | None:
    given = request.authorization
    return given.username if given is not None and given.type == "basic" else None


def _source(door: Door, presented: str | None, now: datetime) -> int:
    key = door.key(presented, now) if presented else None
    if key is None:
        challenge = {"WWW-Authenticate": 'Basic realm="write key", charset="UTF-8"'}
        abort(problem(401, "Unknown write key. Send it as the user name of basic authentication.", code="unknown_key", headers=challenge))
    if key.source_id is None:
        abort(problem(403, f"The key “{key.name}” has scope {key.scope}; posting events takes a write key.", code="wrong_scope"))
    return key.source_id


def _body(limit: int) -> bytes:
    raw = request.get_data(cache=False)
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        abort(problem(415, f"Content-Encoding {encoding[:40]} is not understood.", code="encoding", headers={"Accept-Encoding": "gzip"}))
    # By the first bytes, whatever the header says: some proxies inflate and leave the header, some clients forget it.
    body = _inflate(raw, limit) if raw.startswith(GZIP) else raw
    if len(body) > limit:
        abort(problem(413, f"The body is larger than {limit // 1024} KB{' after inflating' if body is not raw else ''}."))
    return body


def _inflate(raw: bytes, limit: int) -> bytes:
    """Inflates no further than one byte over `limit`: the rest of a gzip bomb is never made."""
    parts, room = [], limit + 1
    while raw and room:
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(raw, room))
        except zlib.error as error:
            abort(problem(400, f"The gzip body is damaged: {error}", code="broken_gzip"))
        room -= len(parts[-1])
        if room and not member.eof:
            abort(problem(400, "The gzip body ends too early.", code="broken_gzip"))
        raw = member.unused_data
    return b"".join(parts)


def _read(body: bytes, received_at: datetime, kind: str | None):
    try:
        items, problems = read_items(body, received_at, kind)
    except EventError as error:
        if isinstance(error.__cause__, ValueError) and body.strip() and not _may_be_json():
            abort(problem(415, f"Content-Type {request.mimetype[:80]} is no JSON: {error.problem}"))
        code = "broken_json" if error.field is None else "bad_item"
        abort(problem(400, str(error), code=code, field=error.field))
    if kind and problems:
        (bad,) = problems
        detail = f"{bad.field}: {bad.problem}" if bad.field else f"the item {bad.problem}"
        abort(problem(400, detail, code="bad_item", field=bad.field, messageId=bad.message_id))
    return items, problems


def _may_be_json() -> bool:
    return "json" in request.mimetype or request.mimetype in JSON_LIKE


def _answer(problems: list[Problem]) -> Response:
    answer: dict = {"success": True}
    if problems:
        answer["errors"] = [_shown(bad) for bad in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        answer["errors_left_out"] = len(problems) - PROBLEMS_SHOWN
    return Response(to_json(answer), 200, mimetype="application/json")


def _shown(bad: Problem) -> dict:
    named = asdict(bad)
    named["messageId"] = named.pop("message_id")
    return named
