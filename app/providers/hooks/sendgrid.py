"""SendGrid: ECDSA over timestamp and raw body. A call carries many events, and many come more than once."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic_core import to_json

from app.errors import InputError, Refused
from app.providers.hooks.call import LONG, Call, Item, bracketed, codes, dig, digest, parse, small, text, when
from app.rules.relays import KEY
from app.rules.reports import Report

SIGNATURE = "x-twilio-email-event-webhook-signature"
TIMESTAMP = "x-twilio-email-event-webhook-timestamp"
MOST = 20_000  # events in one call: a megabyte of the smallest real ones is 5,000

_KINDS = {
    "processed": "sent",
    "delivered": "delivered",
    "deferred": "deferred",
    "bounce": "bounced",
    "dropped": "rejected",
    "open": "opened",
    "click": "clicked",
    "spamreport": "complained",
    "unsubscribe": "unsubscribed",
    "group_unsubscribe": "unsubscribed",
}
# bounce_classification → class, where it says more than the codes do.
_CLASSES = {
    "invalid address": "hard",
    "content": "block",
    "reputation": "block",
    "frequency or volume too high": "block",
    "frequency/volume": "block",
}
# Why SendGrid dropped a mail that it never tried to deliver → what it remembers of the address.
_REMEMBERED = {
    "bounced address": ("bounced", "hard"),
    "invalid": ("bounced", "hard"),
    "spam reporting address": ("complained", None),
    "unsubscribed address": ("unsubscribed", None),
}


def check_secret(secret: str) -> str:
    """The public key that SendGrid shows. Raises InputError."""
    try:
        _key(secret)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError("must be the verification key that SendGrid shows for its signed event webhook", "secret") from error
    return secret


def verify(call: Call, secrets: Sequence[str], *_: Any) -> list[Item]:
    """The events of the call. Raises Refused.

    How old the timestamp is does not matter: whether SendGrid signs anew when it tries again is not known, and an event counts once.
    """
    given, timestamp = call.headers.get(SIGNATURE, ""), call.headers.get(TIMESTAMP, "")
    if not given or not timestamp:
        raise Refused(401, "carries no signature: switch the signed event webhook on")
    try:
        signature = b64decode(given, validate=True)
    except ValueError as error:
        raise Refused(401, "the signature is not base64") from error
    if not any([_signed(_key(secret), signature, timestamp.encode() + call.body) for secret in secrets]):
        raise Refused(401, "the signature is wrong")
    found = parse(call.body)
    if not isinstance(found, list) or len(found) > MOST:
        raise Refused(400, f"is not a list of at most {MOST:,} events")
    return [_item(one) for one in found]


def read(raw: str, received: datetime) -> list[Report]:
    """What the event says. Unknown events say nothing (W-04)."""
    event = parse(raw)
    name = text(event, "event")
    kind, sort = _KINDS.get(name), None
    if kind is None:
        return []
    reason = text(event, "reason", limit=LONG)
    if name == "bounce":
        sort = "block" if text(event, "type") == "blocked" else _CLASSES.get(text(event, "bounce_classification").lower())
    elif name == "dropped":
        kind, sort = _REMEMBERED.get(reason.lower(), ("rejected", None))
    said = reason or text(event, "response", limit=LONG)
    return [
        Report(
            kind,
            when(dig(event, "timestamp"), received),
            _key_of(event),
            token=text(event, KEY) or text(event, "unique_args", KEY) or None,
            message_header=bracketed(text(event, "smtp-id", limit=1000)),
            recipient=text(event, "email") or None,
            sort=sort,
            link=text(event, "url", limit=LONG) or None,
            user_agent=text(event, "useragent") or None,
            machine=dig(event, "sg_machine_open") is True,
            detail=small(
                provider="sendgrid",
                id=text(event, "sg_message_id"),
                type=text(event, "type"),
                reason=text(event, "bounce_classification"),
                group=text(event, "asm_group_id"),
            ),
            **codes(said, text(event, "status")),
        )
    ]


def _item(event: Any) -> Item:
    raw = to_json(event, inf_nan_mode="null").decode()
    return Item(_key_of(event) if text(event, "sg_event_id") else digest(raw), text(event, "event"), raw)


def _key_of(event: Any) -> str:
    return digest("sendgrid", text(event, "sg_event_id") or to_json(event, inf_nan_mode="null").decode())


def _key(secret: str) -> ec.EllipticCurvePublicKey:
    """Raises ValueError, UnsupportedAlgorithm."""
    found = load_der_public_key(b64decode(secret, validate=True))
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP256R1):
        raise ValueError("not a key of the curve P-256")
    return found


def _signed(key: ec.EllipticCurvePublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
