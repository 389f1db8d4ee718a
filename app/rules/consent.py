"""The gates of sending, decided again just before a message is sent (DESIGN.md 6, "Gates").

In order: campaign live → enrollment active (exit, goal) → audience → hold → recipient → topic and suppression → survey quarantine →
window → brakes. Caps, rendering and the holdout follow in `flow.deliver`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.rules.book import Book, Node, Version
from app.rules.facts import Account, Contact, Decision, Enrollment, Scope
from app.rules.lifecycle import TRANSACTIONAL
from app.rules.timing import next_open, zone_for

# What a message may have waited for until it expired: that, not the time, is why it was not sent.
WAITED_AT = {"capped": "caps", "held": "hold", "window_closed": "window", "braked": "brake", "campaign_paused": "campaign"}
LOOK_AGAIN = timedelta(minutes=15)  # when a gate cannot say how long it stays closed (a pause, a hold without an end)


def gate(
    book: Book,
    account: Account,
    enrollment: Enrollment,
    version: Version,
    node: Node,
    contact: Contact,
    now: datetime,
    last_survey_at: datetime | None = None,
) -> Decision | None:
    """The first gate that says no (`verdict` no) or not yet (`wait`, with `until` in the evidence), or None: all are open.

    `now` is the moment of sending. `last_survey_at` is when the person behind the contact was last sent a survey, whatever the
    campaign. Asks nothing that is not in its arguments.
    """
    campaign = version.campaign
    topic = version.topic_of(node)

    def decide(name: str, verdict: str, reason: str, evidence: Mapping[str, Any] | None = None) -> Decision:
        return Decision(name, verdict, reason, now, version.key, version.id, enrollment.id, node.id, contact.key, evidence=evidence or {})

    standing = book.standings.get(version.key)
    mode = standing.mode if standing else "draft"
    if mode == "paused":
        return decide("campaign", "wait", "campaign_paused", {"until": (now + LOOK_AGAIN).isoformat()})
    # Whoever was inside when the campaign was archived finishes.
    if mode not in (("shadow",) if enrollment.shadow else ("live", "archived")):
        return decide("campaign", "no", "campaign_not_live", {"mode": mode})
    if enrollment.state != "active":
        return decide("enrollment", "no", "enrollment_ended", {"reason": enrollment.end_reason})
    scope = Scope(account, now, contact, enrollment.entry, enrollment, enrollment.position.get("response"))
    goal = version.goal_when
    if goal is not None and campaign.goal.then == "exit" and goal.test(scope):
        return decide("goal", "no", "goal_met", goal.evidence(scope))
    if version.exit_when is not None and version.exit_when.test(scope):
        return decide("exit", "no", "exit_when", version.exit_when.evidence(scope))
    if version.audience is not None and not version.audience.test(scope):
        return decide("audience", "no", "not_in_audience", version.audience.evidence(scope))
    held = account.held or contact.held
    if held and topic != TRANSACTIONAL:
        return decide("hold", "wait", "held", {"why": held, "until": (now + LOOK_AGAIN).isoformat()})
    if contact.joined_at is None:
        return decide("recipient", "no", "not_a_member", {})
    wanted = version.recipients_of(node)
    by_role = enrollment.contact is None and wanted.pick != "responder" and not getattr(node.step, "reminds", None)
    if by_role and wanted.roles and contact.roles.isdisjoint(wanted.roles):
        return decide("recipient", "no", "wrong_role", {"wanted": list(wanted.roles), "has": sorted(contact.roles)})
    if reason := contact.unreachable(topic):
        return decide("recipient" if reason == "no_address" else "suppression", "no", reason, {"topic": topic})
    quarantine = book.lifecycle.survey.quarantine
    if node.kind == "survey" and last_survey_at is not None and now < last_survey_at + quarantine:
        again = last_survey_at + quarantine
        return decide("quarantine", "no", "survey_quarantine", {"asked_at": last_survey_at.isoformat(), "again_from": again.isoformat()})
    window = campaign.send_window
    if window is not None and topic != TRANSACTIONAL:
        where, whose = zone_for(account, contact, book.lifecycle.timezone)
        opens = next_open(now, window.days, window.opens, window.closes, where, book.lifecycle.jitter, enrollment.id, node.id, contact.key)
        if opens > now:
            return decide("window", "wait", "window_closed", {"until": opens.isoformat(), "zone": str(where), "zone_of": whose})
    if book.braked and topic != TRANSACTIONAL and (braked := book.braked.get(book.lifecycle.sender_of(campaign.sender).domain)):
        return decide("brake", "wait", "braked", {**braked, "until": (now + LOOK_AGAIN).isoformat()})
    return None


def why_expired(reason: str | None) -> tuple[str, str]:
    """(gate, reason) of a message that expired, given what it waited for last."""
    return (WAITED_AT[reason], reason) if reason in WAITED_AT else ("send", "expired")
