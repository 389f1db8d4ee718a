"""What a merge tag may do with a value, and what a value looks like in a mail.

Every filter is total: a missing value, or one of the wrong type, raises RenderSkip, which skips the message with the reason. None can
make more than it was given, so that no chain of them grows without bound (X-02).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

from app.errors import RenderSkip

STRING_LIMIT = 10 * 1024
LIST_LIMIT = 1_000
DEPTH_LIMIT = 6
URL_LIMIT = 2_000

# Control characters, and those that turn the direction of what follows: a name must not reorder the sentence around it.
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
_STRANGE = re.compile(f" *[{_CONTROLS}][ {_CONTROLS}]*")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")
_URL = re.compile(r"https?://[^\s/?#@:\[\]\\<>\"\x00-\x20\x7f]+(?::\d{1,5})?(?:[/?#][^\s\\<>\"\x00-\x20\x7f]*)?", re.IGNORECASE)


class Missing:
    """A value that was never set. False, equal to nothing; showing it raises RenderSkip with its path."""

    __slots__ = ("path",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, path: str):
        self.path = path

    def __bool__(self) -> bool:
        return False

    def _false(self, _: object) -> bool:
        return False

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _false  # type: ignore[assignment]

    def _hole(self, *_: object) -> Any:
        raise RenderSkip("missing_value", {"path": self.path})

    __str__ = __html__ = __iter__ = __len__ = __add__ = __radd__ = __sub__ = __rsub__ = __neg__ = _hole
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _hole


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of `value` that a template may see: dict, list, str, int, float, bool, datetime (X-03); None where there is nothing.

    Text becomes one line without control and direction characters; blank text counts as missing, as a hole in a mail looks the same.
    An ISO 8601 moment in text becomes a datetime, so that values kept as JSON render as they did the first time.
    """
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind in (int, bool, datetime) or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        if depth >= DEPTH_LIMIT:
            return None
        return {str(name)[:200]: plain(one, depth + 1) for name, one in list(value.items())[:LIST_LIMIT]}
    if isinstance(value, (list, tuple, set, frozenset)):
        if depth >= DEPTH_LIMIT:
            return None
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [one for one in (plain(one, depth + 1) for one in list(items)[:LIST_LIMIT]) if one is not None]
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return _text(str(value))


def one_line(text: str) -> str:
    """`text` without control and direction characters, line ends as spaces."""
    return _STRANGE.sub(" ", text).strip() if _STRANGE.search(text) else text


def _text(value: str) -> Any:
    if len(value) > STRING_LIMIT:
        value = value[:STRING_LIMIT]
    if len(value) >= 16 and value[4] == "-" and value[10] == "T" and _MOMENT.fullmatch(value):
        moment = _parsed(value)
        if moment is not None:
            return moment
    value = one_line(value)
    return value if value and not value.isspace() else None


def _parsed(value: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def shown(value: Any) -> Any:
    """What `{{ value }}` puts into the mail. Raises RenderSkip for a missing value and for one that has no wording."""
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is Missing:
        return value._hole()
    if kind is bool:
        return "yes" if value else "no"
    if kind is float:
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.10g}"
    if kind is datetime:
        return f"{value.day} {value:%B} {value.year}"
    if kind is list:
        return ", ".join(str(shown(one)) for one in value)
    if isinstance(value, str):
        return value
    raise RenderSkip("wrong_type", {"problem": "a group of values cannot be shown; name one of them"})


def each(value: Any) -> list:
    """What a loop runs over: a list of the data, at most 1,000 items."""
    if type(value) is list:
        return value
    if type(value) is Missing:
        return value._hole()
    raise RenderSkip("wrong_type", {"problem": "a loop runs over a list"})


def destination(url: str) -> str:
    """`url` if a mail may send a reader there: http or https, a host, no user name, no control characters (T-11). Else RenderSkip."""
    url = url.strip()
    problem = bad_destination(url)
    if problem:
        raise RenderSkip("bad_link", {"url": url[:200], "problem": problem})
    return url


def bad_destination(url: str) -> str | None:
    """What is wrong with `url` as a link's destination, or None."""
    if len(url) > URL_LIMIT:
        return f"a link may have {URL_LIMIT} characters"
    if not _URL.fullmatch(url):
        return "a link starts with https:// and a host, without a user name"
    return None


# The filters ---------------------------------------------------------------------------------------------------------


def _default(value: Any, fallback: Any = "") -> Any:
    return fallback if type(value) is Missing or value is None or value == "" else value


def _of_text(change: Callable[[str], str]) -> Callable[[Any], str]:
    def change_text(value: Any) -> str:
        return change(str(shown(value)))

    return change_text


def _length(value: Any) -> int:
    if type(value) is Missing:
        value._hole()
    return len(value) if isinstance(value, (str, list, dict)) else len(str(shown(value)))


def _round(value: Any, digits: Any = 0) -> Any:
    number = _number(value, "round")
    digits = max(0, min(int(_number(digits, "round")), 6))
    return round(number, digits) if digits else round(number)


def _number(value: Any, name: str) -> int | float:
    if type(value) is Missing:
        value._hole()
    if type(value) in (int, float):
        return value
    raise RenderSkip("wrong_type", {"problem": f"{name} needs a number"})


def _moment(value: Any, name: str) -> datetime:
    if type(value) is Missing:
        value._hole()
    moment = _parsed(value) if isinstance(value, str) else value
    if isinstance(moment, datetime):
        return moment
    raise RenderSkip("wrong_type", {"problem": f"{name} needs a date"})


def _date(value: Any, form: Any = "%-d %B %Y") -> str:
    moment = _moment(value, "date")
    form = str(form)[:100]
    # The day without a leading zero is not the same letter everywhere, so it is written by hand.
    return moment.strftime(form.replace("%-d", str(moment.day)).replace("%-m", str(moment.month)))


def _days_since(value: Any, now: Any) -> int:
    return (_moment(now, "days_since") - _moment(value, "days_since")) // timedelta(days=1)


def _days_until(value: Any, now: Any) -> int:
    return math.ceil((_moment(value, "days_until") - _moment(now, "days_until")) / timedelta(days=1))


def _url(value: Any) -> str:
    text = str(shown(value)).strip()
    if len(text) <= URL_LIMIT and _URL.fullmatch(text):
        return text
    scheme = text.partition(":")[0].lower()
    if scheme in ("mailto", "tel") and not re.search(r"[\s<>\"\\]", text):
        return text
    return destination(text)


def _urlencode(value: Any) -> str:
    return quote(str(shown(value)), safe="")


def _join(value: Any, separator: Any = ", ") -> str:
    return str(separator)[:100].join(str(shown(one)) for one in each(value))


def _first(value: Any) -> Any:
    items = value if isinstance(value, str) else each(value)
    return items[0] if items else Missing("the first of nothing")


def _last(value: Any) -> Any:
    items = value if isinstance(value, str) else each(value)
    return items[-1] if items else Missing("the last of nothing")


FILTERS: dict[str, Callable[..., Any]] = {
    "default": _default,
    "upper": _of_text(str.upper),
    "lower": _of_text(str.lower),
    "title": _of_text(str.title),
    "capitalize": _of_text(str.capitalize),
    "trim": _of_text(str.strip),
    "length": _length,
    "round": _round,
    "date": _date,
    "days_since": _days_since,
    "days_until": _days_until,
    "url": _url,
    "urlencode": _urlencode,
    "join": _join,
    "first": _first,
    "last": _last,
}
TESTS: dict[str, Callable[..., bool]] = {
    "missing": lambda value: type(value) is Missing,
    "undefined": lambda value: type(value) is Missing,
    "defined": lambda value: type(value) is not Missing,
    "none": lambda value: value is None or type(value) is Missing,
}
