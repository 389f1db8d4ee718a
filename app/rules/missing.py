"""A value that was never set, and how values leave the rules: as JSON can carry them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


class _Missing:
    """A value that was never set. False, and equal to nothing."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "missing"


MISSING: Any = _Missing()


def plain(value: Any) -> Any:
    """`value` as JSON can carry it: sets sorted, MISSING as None."""
    if value is MISSING:
        return None
    if isinstance(value, (frozenset, set, tuple)):
        return sorted(value) if all(isinstance(one, str) for one in value) else list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value


def moment(value: Any) -> Any:
    """The moment that `value` is or writes down (ISO 8601, UTC where it names no zone); else MISSING."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            return MISSING
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return MISSING
