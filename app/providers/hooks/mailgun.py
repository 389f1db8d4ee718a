"""Mailgun: an HMAC over timestamp and token, which does not cover the event. So a token counts once, and not after 24 hours."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.errors import InputError, Refused
from app.providers.hooks.call import LONG, TOKEN_HEADER, Call, Item, bracketed, dig, digest, parse, small, text, when
from app.providers.hooks.call import codes as codes_of
from app.rules.relays import KEY
from app.rules.reports import Report

WINDOW = timedelta(hours=24)  # Mailgun tries again for about eight
AHEAD = timedelta(minutes=15)  # how wrong clocks may be

_KINDS = {
    "accepted": "sent",
    "delivered": "delivered",
    "rejected": "rejected",
    "opened": "opened",
    "clicked": "clicked",
    "unsubscribed": "unsubscribed",
    "complained": "complained",
}
# Mailgun did not even try, as it remembers what became of earlier mail: the reason → what it remembers.
_REMEMBERED = {
    "suppress-bounce": ("bounced", "hard"),
    "suppress-complaint": ("complained", None),
    "suppress-unsubscribe": ("unsubscribed", None),
}


def check_secret(secret: str) -> str:
    """The HTTP webhook signing key. Raises InputError."""
    if not 16 <= len(secret) <= 200 or not secret.isascii() or any(letter.isspace() for letter in secret):
        raise InputError("must be the HTTP webhook signing key that Mailgun shows", "secret")
    return secret


def verify(call: Call, secrets: Sequence[str], *_: Any) -> list[Item]:
    """The event of the call. Raises Refused."""
    found = parse(call.body, 401)
    timestamp, token, given = (text(found, "signature", name) for name in ("timestamp", "token", "signature"))
    if not token or not given or not timestamp.isdecimal() or len(timestamp) > 12:
        raise Refused(401, "carries no signature")
    if not given.isascii():
        raise Refused(401, "the signature is wrong")
    wanted = [hmac.digest(secret.encode(), f"{timestamp}{token}".encode(), hashlib.sha256).hex() for secret in secrets]
    if not any([hmac.compare_digest(one, given) for one in wanted]):  # a list, so that all are compared
        raise Refused(401, "the signature is wrong")
    signed = datetime.fromtimestamp(int(timestamp), UTC)
    if not call.at - WINDOW <= signed <= call.at + AHEAD:
        raise Refused(401, f"was signed at {signed:%Y-%m-%d %H:%M} UTC, which is not within the last 24 hours")
    return [Item(digest(token), text(found, "event-data", "event"), call.body.decode())]


def read(raw: str, received: datetime) -> list[Report]:
    """What the event says. Unknown events say nothing (W-04)."""
    event = dig(parse(raw), "event-data")
    status = dig(event, "delivery-status")
    said = text(status, "message", limit=LONG) or text(status, "description", limit=LONG)
    reason, name = text(event, "reason"), text(event, "event")
    kind, sort = _KINDS.get(name), None
    if name == "failed":
        kind, sort = _REMEMBERED.get(reason) or ("bounced" if text(event, "severity") == "permanent" else "deferred", None)
        if reason == "espblock":
            sort = "block"
    if kind is None:
        return []
    found = codes_of(said, text(status, "enhanced-code"))
    basic = text(status, "code")
    if found["code"] is None and basic.isdecimal() and 200 <= int(basic) < 600:
        found["code"] = int(basic)
    headers = {name.lower(): value for name, value in _mapping(dig(event, "message", "headers")).items() if isinstance(name, str)}
    return [
        Report(
            kind,
            when(dig(event, "timestamp"), received),
            # Unique within a day only, says Mailgun; so the time belongs to it.
            digest("mailgun", text(event, "id"), text(event, "timestamp"), name),
            token=text(event, "user-variables", KEY) or text(headers, TOKEN_HEADER) or None,
            message_header=bracketed(text(headers, "message-id", limit=1000)),
            recipient=text(event, "recipient") or None,
            sort=sort,
            link=text(event, "url", limit=LONG) or None,
            user_agent=text(event, "client-info", "user-agent") or None,
            machine=bool(text(event, "client-info", "bot")),
            detail=small(provider="mailgun", id=text(event, "id"), reason=reason),
            **found,
        )
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
