"""Postmark: it signs nothing, so its calls carry a secret of ours, as the password of basic authentication or in a header."""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic_core import to_json

from app.errors import InputError, Refused
from app.providers.hooks.call import LONG, Call, Item, codes, dig, digest, hard_at_least, parse, small, text, when
from app.rules.relays import KEY
from app.rules.reports import Report

USER = "nurture"
HEADER = "x-nurture-hook"

# RecordType → (what it says, the field of its time, the field of whom it is about).
_RECORDS = {
    "Delivery": ("delivered", "DeliveredAt", "Recipient"),
    "Bounce": (None, "BouncedAt", "Email"),
    "SpamComplaint": ("complained", "BouncedAt", "Email"),
    "Open": ("opened", "ReceivedAt", "Recipient"),
    "Click": ("clicked", "ReceivedAt", "Recipient"),
    "SubscriptionChange": (None, "ChangedAt", "Recipient"),
}
# Type of a bounce → (what it says, its class where Postmark is sure of it).
_BOUNCES = {
    "HardBounce": ("bounced", None),
    "BadEmailAddress": ("bounced", "hard"),
    "ManuallyDeactivated": ("bounced", "hard"),
    "SoftBounce": ("bounced", "soft"),
    "DnsError": ("bounced", "soft"),
    "Transient": ("deferred", "soft"),
    "Blocked": ("bounced", "block"),
    "SpamNotification": ("bounced", "block"),
    "VirusNotification": ("bounced", "block"),
    "DMARCPolicy": ("bounced", "configuration"),
    "SMTPApiError": ("rejected", "configuration"),
    "TemplateRenderingFailed": ("rejected", "configuration"),
    "Unconfirmed": ("rejected", "configuration"),
    "AutoResponder": ("replied", "auto_reply"),
    "ChallengeVerification": ("replied", "auto_reply"),
    "AddressChange": ("replied", "auto_reply"),
    "Unknown": ("bounced", None),
    "SpamComplaint": ("complained", None),
    "Unsubscribe": ("unsubscribed", None),
}
_SUPPRESSIONS = {"HardBounce": ("bounced", "hard"), "SpamComplaint": ("complained", None), "ManualSuppression": ("unsubscribed", None)}


def check_secret(secret: str) -> str:
    """A secret of ours. Raises InputError."""
    if not 16 <= len(secret) <= 200 or not secret.isascii() or not secret.isprintable() or any(mark in secret for mark in " :@/?#%"):
        raise InputError("must be 16 to 200 characters that a URL can carry as they are", "secret")
    return secret


def verify(call: Call, secrets: Sequence[str], *_: Any) -> list[Item]:
    """The event of the call. Raises Refused, with 401: after 403 Postmark never tries again (W-06)."""
    given = [one for one in (_password(call.headers.get("authorization", "")), call.headers.get(HEADER)) if one]
    if not given:
        raise Refused(401, f"carries neither a password nor {HEADER}")
    same = [hmac.compare_digest(one.encode(), secret.encode()) for one in given for secret in secrets]
    if not any(same):
        raise Refused(401, "the password is wrong")
    found = parse(call.body)
    if not isinstance(found, Mapping):
        raise Refused(400, "is not an event of Postmark")
    return [Item(_key(found), text(found, "RecordType"), call.body.decode())]


def read(raw: str, received: datetime) -> list[Report]:
    """What the event says. Unknown records and kinds of bounces say nothing (W-04)."""
    event = parse(raw)
    record = text(event, "RecordType")
    kind, time_field, who = _RECORDS.get(record, (None, "", ""))
    sort = None
    if record == "Bounce":
        kind, sort = _BOUNCES.get(text(event, "Type"), (None, None))
    elif record == "SubscriptionChange" and dig(event, "SuppressSending") is True:
        kind, sort = _SUPPRESSIONS.get(text(event, "SuppressionReason"), (None, None))
    if kind is None:
        return []
    said = text(event, "Details", limit=LONG) or text(event, "Description", limit=LONG)
    report = Report(
        kind,
        when(dig(event, time_field), received),
        _key(event),
        token=text(event, "Metadata", KEY) or None,  # its MessageID is one of its own, so nothing else tells
        recipient=text(event, who) or None,
        sort=sort,
        link=text(event, "OriginalLink", limit=LONG) or None,
        user_agent=text(event, "UserAgent") or None,
        detail=small(
            provider="postmark",
            id=text(event, "MessageID"),
            type=text(event, "Type"),
            reason=text(event, "SuppressionReason"),
            origin=text(event, "Origin"),
        ),
        **codes(said),
    )
    return [hard_at_least(report) if text(event, "Type") == "HardBounce" else report]


def _key(event: Mapping[str, Any]) -> str:
    """What makes an event one: Postmark gives ids to bounces only."""
    record, message = text(event, "RecordType"), text(event, "MessageID")
    _, at, who = _RECORDS.get(record, (None, "", ""))
    if not message or not at:
        return digest("postmark", to_json(event, inf_nan_mode="null").decode())
    which, whom, link = text(event, "ID") or text(event, at), text(event, who), text(event, "OriginalLink", limit=LONG)
    return digest("postmark", record, message, which, whom, link)


def _password(authorization: str) -> str | None:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = b64decode(given.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return password if hmac.compare_digest(user.encode(), USER.encode()) else None
