"""Pages by keyset: a cursor names the last row shown, so a page costs the same however deep it is and nothing shifts under a reader."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from app.errors import InputError

LIMIT = 50
MOST = 200


@dataclass(frozen=True, slots=True)
class Page:
    """Items and the cursor of what follows them, None at the end."""

    items: list[dict[str, Any]]
    next: str | None


def page(rows: Sequence[Any], limit: int, shape: Callable[[Any], dict[str, Any]], place: Callable[[Any], Sequence[Any]]) -> Page:
    """The first `limit` of `rows`, of which one more than `limit` was asked for; `place` gives the cursor values of a row."""
    shown = rows[:limit]
    return Page([shape(row) for row in shown], write_cursor(place(shown[-1])) if len(rows) > limit else None)


def write_cursor(values: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(to_json(list(values))).decode().rstrip("=")


def read_cursor(cursor: str | None, *types: type) -> tuple[Any, ...] | None:
    """The values in `cursor`, which must have these types (str, int, float, datetime, UUID; None is taken for any of them).

    Raises InputError for anything that this program did not write.
    """
    if not cursor:
        return None
    try:
        values = from_json(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(types):
            raise ValueError
        return tuple(_typed(value, kind) for value, kind in zip(values, types, strict=True))
    except (ValueError, TypeError, OverflowError, binascii.Error, UnicodeEncodeError) as error:
        raise InputError("is not a cursor of this list: start again without one", "cursor") from error


def read_limit(value: str | int | None) -> int:
    """A page size from a query string: 50 when absent; raises InputError unless 1 to 200."""
    if value is None or value == "":
        return LIMIT
    try:
        number = int(value)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST:
        raise InputError(f"must be a number from 1 to {MOST}", "limit")
    return number


def clean(value: str | None) -> str | None:
    """A filter's value without what PostgreSQL cannot hold; None when nothing is left."""
    return (value or "").replace("\x00", "").strip() or None


def like(value: str) -> str:
    """A pattern that finds `value` anywhere, taking its own wildcards literally."""
    escaped = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _typed(value: Any, kind: type) -> Any:
    if value is None:
        return None
    if kind is datetime:
        at = datetime.fromisoformat(value)
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    if kind is UUID:
        return UUID(value)
    if kind is int:
        if not isinstance(value, int) or not 0 <= value < 2**63:
            raise ValueError
        return value
    if kind is float:
        return float(value)
    if not isinstance(value, str) or "\x00" in value:
        raise ValueError
    return value
