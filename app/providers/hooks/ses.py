"""Amazon SES, which tells what became of mail through topics of Amazon SNS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.errors import InputError, Refused
from app.providers.hooks import sns
from app.providers.hooks.call import (
    LONG,
    TOKEN_HEADER,
    Call,
    Item,
    bracketed,
    codes,
    dig,
    digest,
    hard_at_least,
    objects,
    parse,
    small,
    text,
    when,
)
from app.rules.relays import KEY
from app.rules.reports import Report

# What SES says → (what it means, the object that tells more).
_EVENTS = {
    "Send": ("sent", "send"),
    "Delivery": ("delivered", "delivery"),
    "DeliveryDelay": ("deferred", "deliveryDelay"),
    "Bounce": ("bounced", "bounce"),
    "Complaint": ("complained", "complaint"),
    "Reject": ("rejected", "reject"),
    "Open": ("opened", "open"),
    "Click": ("clicked", "click"),
    "Rendering Failure": ("rejected", "failure"),
    "Subscription": ("unsubscribed", "subscription"),
}
_RECIPIENTS = {"Bounce": "bouncedRecipients", "Complaint": "complainedRecipients", "DeliveryDelay": "delayedRecipients"}
# (bounceType, bounceSubType) → class, where SES is surer than the codes.
_SORTS = {
    ("Permanent", "NoEmail"): "hard",
    ("Permanent", "Suppressed"): "hard",
    ("Permanent", "OnAccountSuppressionList"): "hard",
    ("Transient", "MailboxFull"): "full",
    ("Transient", "MessageTooLarge"): "block",
    ("Transient", "ContentRejected"): "block",
    ("Transient", "AttachmentRejected"): "block",
}


def check_secret(secret: str) -> str:
    """SES has none: what is signed is signed by Amazon, and the topic is the secret."""
    raise InputError("Amazon SES takes no secret; name its topics", "secret")


def verify(call: Call, _: Sequence[str], options: Mapping[str, Any], certificates: sns.Certificates) -> list[Item]:
    """The message of the call. Raises Refused, and CallError where Amazon's certificate cannot be fetched for now."""
    message = parse(call.body, 401)
    kind = sns.verify(message, options["topics"], options["versions"], options.get("stand_in"), certificates, call.at)
    name = kind if kind != sns.NOTIFICATION else _name(_inner(message))
    return [Item(digest("sns", text(message, "MessageId")), name, call.body.decode())]


def read(raw: str, received: datetime) -> list[Report]:
    """What the event says, of each of its recipients. Unknown events, and what else is published on the topic, say nothing (W-04)."""
    event = _inner(parse(raw))
    name = _name(event)
    kind, part = _EVENTS.get(name, (None, ""))
    facts = dig(event, part)
    if kind is None or not isinstance(facts, Mapping) or (name == "Subscription" and not _has_left(facts)):
        return []
    mail = dig(event, "mail")
    at = when(facts.get("timestamp") or dig(mail, "timestamp"), received)
    same = {
        "token": _token(mail),
        "message_header": bracketed(_header(mail, "message-id") or text(mail, "commonHeaders", "messageId", limit=1000)),
        "link": text(facts, "link", limit=LONG) or None,
        "user_agent": text(facts, "userAgent") or None,
    }
    return [_report(kind, name, one, facts, mail, at, same) for one in _recipients(name, facts, mail)]


def confirmation(raw: str) -> str:
    """The address that confirms a subscription when it is fetched, of a message that was verified."""
    return text(parse(raw), "SubscribeURL", limit=LONG)


def _report(kind: str, name: str, one: Mapping[str, Any], facts: Any, mail: Any, at: datetime, same: dict[str, Any]) -> Report:
    recipient = text(one, "emailAddress")
    said = text(one, "diagnosticCode", limit=LONG) or text(facts, "smtpResponse", limit=LONG)
    said = said or text(facts, "reason", limit=LONG) or text(facts, "errorMessage", limit=LONG)
    types = (text(facts, "bounceType"), text(facts, "bounceSubType"))
    sort = _SORTS.get(types)
    if name in ("Reject", "Rendering Failure"):
        sort = "block" if name == "Reject" else "configuration"
    elif name == "Complaint" and text(facts, "complaintFeedbackType") == "not-spam":
        kind = "not_spam"
    elif types[1] == "UnsubscribedRecipient":
        kind = "unsubscribed"
    report = Report(
        kind,
        at,
        digest("ses", text(mail, "messageId"), name, recipient, text(facts, "timestamp"), same["link"]),
        recipient=recipient or None,
        sort=sort,
        detail=small(
            provider="ses",
            id=text(mail, "messageId"),
            type=types[0] or text(facts, "delayType") or text(facts, "complaintFeedbackType"),
            reason=types[1] or text(facts, "complaintSubType"),
        ),
        **codes(said, text(one, "status")),
        **same,
    )
    return hard_at_least(report) if types[0] == "Permanent" and kind == "bounced" else report


def _inner(message: Any) -> Any:
    """The event that SES published; None for a text that is no JSON, such as what SES says when a topic is set."""
    if text(message, "Type") != sns.NOTIFICATION:
        return None
    try:
        return parse(message["Message"])
    except Refused:
        return None


def _name(event: Any) -> str:
    return text(event, "eventType") or text(event, "notificationType")


def _recipients(name: str, facts: Mapping[str, Any], mail: Any) -> list[Mapping[str, Any]]:
    """Whom the event is about, as objects; all of the mail's recipients where it does not say."""
    if found := objects(facts, _RECIPIENTS.get(name, "")):
        return found
    addresses = facts.get("recipients") if name == "Delivery" else None
    addresses = addresses or dig(mail, "destination")
    found = [{"emailAddress": one} for one in addresses[:100] if isinstance(one, str)] if isinstance(addresses, list) else []
    return found or [{}]


def _token(mail: Any) -> str | None:
    tags = dig(mail, "tags", KEY)
    tag = tags[0] if isinstance(tags, list) and tags and isinstance(tags[0], str) else ""
    return tag[:100] or _header(mail, TOKEN_HEADER)[:100] or None


def _header(mail: Any, name: str) -> str:
    """The first header of that name among those of the mail, which SES gives only if it is told to."""
    return next((text(one, "value", limit=1000) for one in objects(mail, "headers") if text(one, "name").lower() == name), "")


def _has_left(facts: Mapping[str, Any]) -> bool:
    now = facts.get("newTopicPreferences")
    topics = objects(now, "topicSubscriptionStatus") + objects(now, "topicDefaultSubscriptionStatus")
    return dig(now, "unsubscribeAll") is True or any(text(one, "subscriptionStatus").lower() == "optout" for one in topics)
