"""Entering a campaign: triggers, the gates of entry, and candidates whose facts have not all come yet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.rules.book import Version
from app.rules.facts import Decision, Enrollment, Event, Scope, hash_id, hash_share, renew
from app.rules.steps import run
from app.rules.turn import Turn

CANDIDATE_LIFE = timedelta(minutes=30)
CANDIDATES = 100  # of one account at a time


def trigger(turn: Turn, version: Version, event: Event) -> None:
    """Whether the event starts an enrollment in `version`. Every no that follows a matching trigger is in the ledger."""
    contact = turn.account.contacts.get(event.contact or "")
    scope = Scope(turn.account, turn.now, contact, event)
    if version.trigger_where is not None and not version.trigger_where.test(scope):
        if paths := version.trigger_where.missing(scope):
            open_candidate(turn, version, event, paths)
        return
    if event.mark is not None:
        refuse(turn, version, event, "trigger", event.mark, {"occurred_at": event.occurred_at.isoformat()})
        return
    consider(turn, version, event, entry_of(event))


def requested(turn: Turn, event: Event) -> None:
    """Somebody asks to enroll the account, or its contact: into any campaign, whatever its trigger. All other gates of entry count."""
    key = event.properties.get("campaign")
    standing = turn.book.standings.get(key) if isinstance(key, str) else None
    version = turn.book.versions.get(standing.version) if standing else None
    if version is None:
        turn.decide("campaign", "no", "no_campaign", contact=event.contact, evidence={"campaign": str(key)[:200]})
    elif standing.mode not in ("live", "shadow"):
        refuse(turn, version, event, "campaign", "campaign_not_live", {"mode": standing.mode})
    else:
        consider(turn, version, event, entry_of(event))


def consider(turn: Turn, version: Version, event: Event, entry: Mapping[str, Any], *, again: bool = False) -> bool:
    """The gates of entry. `again` says that this is a candidate's further chance: then a value that is still missing keeps it
    open. Returns whether the candidate is done with."""
    campaign = version.campaign
    subject = event.contact if campaign.enrolls == "contact" else None
    standing = turn.book.standings[version.key]
    shadow = standing.mode == "shadow"
    contact = turn.account.contacts.get(event.contact or "")
    if campaign.enrolls == "contact" and contact is None:
        refuse(turn, version, event, "recipient", "no_contact", {})
        return True
    if any(one.campaign == version.key and one.contact == subject and one.shadow == shadow for one in turn.active.values()):
        refuse(turn, version, event, "trigger", "already_enrolled", {})
        return True
    if reason := reentry(turn, version, subject, shadow):
        refuse(turn, version, event, "trigger", *reason)
        return True
    scope = Scope(turn.account, turn.now, contact, event)
    for condition, gate, reason in ((version.goal_when, "goal", "goal_already_met"), (version.exit_when, "exit", "exit_already_met")):
        if condition is not None and condition.test(scope):
            refuse(turn, version, event, gate, reason, condition.evidence(scope))
            return True
    if version.audience is not None and not version.audience.test(scope):
        if paths := version.audience.missing(scope):
            if not again:
                open_candidate(turn, version, event, paths)
            return False
        refuse(turn, version, event, "audience", "not_in_audience", version.audience.evidence(scope))
        return True
    enroll(turn, version, event, entry, subject, shadow)
    return True


def reentry(turn: Turn, version: Version, contact: str | None, shadow: bool) -> tuple[str, dict[str, Any]] | None:
    mine = (version.key, contact, shadow)
    ends = [one.ended_at for one in (*turn.account.past, *turn.past) if (one.campaign, one.contact, one.shadow) == mine]
    if not ends:
        return None
    rule = version.campaign.reentry
    last = max(ends)
    if rule == "never":
        return "no_reentry", {"ended_at": last.isoformat()}
    if turn.now < last + rule.after:
        return "reentry_too_soon", {"ended_at": last.isoformat(), "again_from": (last + rule.after).isoformat()}
    return None


def enroll(turn: Turn, version: Version, event: Event, entry: Mapping[str, Any], contact: str | None, shadow: bool) -> None:
    enrollment = Enrollment(
        # Two sources may use the same message id.
        id=hash_id("enrollment", version.key, turn.account.key, contact, shadow, event.source, event.message_id),
        campaign=version.key,
        version=version.id,
        contact=contact,
        shadow=shadow,
        held_out=hash_share("holdout", version.key, turn.account.key) < version.campaign.holdout,
        step=version.first,
        occurrence=1,
        position={},
        entry=entry,
        entered_at=turn.now,
        due_at=None,
    )
    turn.decide("trigger", "yes", "enrolled", enrollment=enrollment, evidence={"event": event.name, "message_id": event.message_id})
    run(turn, turn.put(enrollment))


def refuse(turn: Turn, version: Version, event: Event, gate: str, reason: str, evidence: Mapping[str, Any]) -> None:
    turn.decisions.append(
        Decision(
            gate=gate,
            verdict="no",
            reason=reason,
            at=turn.now,
            campaign=version.key,
            version=version.id,
            contact=event.contact,
            evidence={"event": event.name, "message_id": event.message_id, **evidence},
        )
    )


def open_candidate(turn: Turn, version: Version, event: Event, paths: list[str]) -> None:
    if event.mark is not None:
        refuse(turn, version, event, "trigger", event.mark, {"occurred_at": event.occurred_at.isoformat()})
        return
    expires = turn.now + CANDIDATE_LIFE
    candidate = {"campaign": version.key, "version": version.id, "entry": entry_of(event), "missing": paths}
    candidate["expires_at"] = expires.isoformat()
    kept = turn.account.candidates
    if len(kept) >= CANDIDATES:
        # Whoever posts without end events that want a value which never comes: the oldest has waited for long enough.
        oldest = kept[0]
        if (of := turn.book.versions.get(oldest["version"])) is not None:
            refuse(turn, of, _event_of(oldest["entry"]), "audience", "missing", {"paths": oldest["missing"]})
        kept = kept[1:]
    turn.account = renew(turn.account, candidates=(*kept, candidate))
    evidence = {"event": event.name, "message_id": event.message_id, "paths": paths, "until": expires.isoformat()}
    turn.decisions.append(
        Decision("audience", "wait", "missing", turn.now, version.key, version.id, contact=event.contact, evidence=evidence)
    )


def candidates(turn: Turn, roots: set[str]) -> None:
    """Open candidates have another chance when the account or a contact changed, and end when their time is up."""
    if not turn.account.candidates or ("now" not in roots and roots.isdisjoint(("account", "contact"))):
        return
    kept = []
    for candidate in turn.account.candidates:
        version = turn.book.versions.get(candidate["version"])
        if version is None:
            continue
        event = _event_of(candidate["entry"])
        standing = turn.book.standings.get(version.key)
        if standing is None or standing.mode not in ("live", "shadow"):
            refuse(turn, version, event, "campaign", "campaign_not_live", {"mode": standing.mode if standing else None})
            continue
        contact = turn.account.contacts.get(event.contact or "")
        scope = Scope(turn.account, turn.now, contact, event)
        where = version.trigger_where
        if where is not None and not where.test(scope):
            done = not where.missing(scope)
        else:
            done = consider(turn, version, event, candidate["entry"], again=True)
        if not done and turn.now >= datetime.fromisoformat(candidate["expires_at"]):
            refuse(turn, version, event, "audience", "missing", {"paths": candidate["missing"]})
            done = True
        if not done:
            kept.append(candidate)
    turn.account = renew(turn.account, candidates=tuple(kept))


def entry_of(event: Event) -> dict[str, Any]:
    """What an enrollment remembers of the event it entered by, as JSON can carry it."""
    return {
        "name": event.name,
        "properties": event.properties,
        "occurred_at": event.occurred_at.isoformat(),
        "received_at": event.received_at.isoformat(),
        "message_id": event.message_id,
        "contact": event.contact,
        "source": event.source,
    }


def _event_of(entry: Mapping[str, Any]) -> Event:
    return Event(
        name=entry["name"],
        properties=entry["properties"],
        occurred_at=datetime.fromisoformat(entry["occurred_at"]),
        received_at=datetime.fromisoformat(entry["received_at"]),
        message_id=entry["message_id"],
        contact=entry.get("contact"),
        source=entry.get("source", 0),
    )
