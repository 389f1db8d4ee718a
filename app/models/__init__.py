"""The tables. Nouns only: columns, constraints, indexes. No decisions, no queries."""

from app.models.base import metadata
from app.models.campaigns import campaign, campaign_version, decision, enrollment, lifecycle_version, template
from app.models.customers import (
    account,
    contact,
    contact_alias,
    health_score,
    hold,
    membership,
    milestone,
    stage_history,
    usage_day,
)
from app.models.events import event, event_key, event_pending
from app.models.installation import (
    api_key,
    console_session,
    doubled,
    installation,
    parked,
    setting,
    sign_in_link,
    source,
    token_key,
    worker,
)
from app.models.messages import consent, delivery_event, hit, message, outbox, response, response_revision, suppression

__all__ = [
    "account",
    "api_key",
    "campaign",
    "campaign_version",
    "consent",
    "console_session",
    "contact",
    "contact_alias",
    "decision",
    "delivery_event",
    "doubled",
    "enrollment",
    "event",
    "event_key",
    "event_pending",
    "health_score",
    "hit",
    "hold",
    "installation",
    "lifecycle_version",
    "membership",
    "message",
    "metadata",
    "milestone",
    "outbox",
    "parked",
    "response",
    "response_revision",
    "setting",
    "sign_in_link",
    "source",
    "stage_history",
    "suppression",
    "template",
    "token_key",
    "usage_day",
    "worker",
]
