"""What processes write down of themselves: a JSON object to a line, for people's eyes and for programs that collect logs (X-43).

Control characters are escaped, so that nobody from outside writes a line of his own. No address of a person is in any line: what looks
like one keeps its domain and has a mark instead of its name, the same in every line of an installation, so that the lines about one person
can be found. Passwords in URLs and the secret part of keys are left out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import IO, Any

import structlog

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
_KEYS = re.compile(r"\b(nk_[0-9a-f]{10}_|whsec_)[A-Za-z0-9_+/=-]+")
_ADDRESS = re.compile(r"[^\s<>()\[\]{},;:\"'@=]{1,64}@((?:[\w-]{1,63}\.){1,9}[\w-]{2,63})")


def start(secret: str, stream: IO[str] | None = None, level: int = logging.INFO) -> None:
    """Sends all logging of this process, structlog's too, to `stream` (standard error) from `level` on. `secret` keys the marks."""
    shared = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
    ]
    final = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _masking(secret), structlog.processors.JSONRenderer(_line)]
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=final, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def masked(text: str, secret: str) -> str:
    """`text` without secrets and without names of addresses."""
    if "@" not in text and "_" not in text:
        return text
    text = _KEYS.sub(r"\1…", _CREDENTIALS.sub("…@", text))
    return _ADDRESS.sub(lambda found: f"~{_mark(found[0], secret)}@{found[1]}", text)


def _mark(address: str, secret: str) -> str:
    return hmac.new(secret.encode(), address.lower().encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:8]


def _masking(secret: str):
    def mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in event.items():
            if not isinstance(value, int | float | bool | None):
                event[name] = masked(str(value), secret)
        return event

    return mask


def _line(event: MutableMapping[str, Any], **_: Any) -> str:
    # The first words of a line are what people look for.
    first = ("at", "level", "logger", "event")
    return json.dumps({name: event[name] for name in (*first, *(n for n in event if n not in first)) if name in event})
