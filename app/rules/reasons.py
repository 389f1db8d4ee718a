"""Every reason code of the ledger in plain words, in one place: what the console, the API and `nurture explain` say.

A code that is used anywhere must be here (a test reads the source tree for codes). The evidence fills in what the code leaves open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

# gate → what people call it, in the order in which the gates are asked.
GATES: dict[str, str] = {
    "trigger": "Trigger",
    "campaign": "Campaign is live",
    "enrollment": "Enrollment is active",
    "goal": "Goal",
    "exit": "Exit",
    "audience": "Audience",
    "hold": "Hold",
    "recipient": "Recipient",
    "suppression": "Topic and suppression",
    "quarantine": "Survey quarantine",
    "window": "Send window",
    "brake": "Brakes",
    "caps": "Caps",
    "render": "Rendering",
    "holdout": "Holdout",
    "wait": "Wait",
    "wait_for": "Wait for",
    "branch": "Branch",
    "split": "Split",
    "repeat": "Repeat",
    "effect": "Alert, task, webhook, set",
    "send": "Sending",
    "account": "Account",
}

# The gate of a message's reason, where only the message is left to tell.
GATE_OF: dict[str, str] = {
    **dict.fromkeys(("campaign_paused", "campaign_not_live", "shadow", "archived"), "campaign"),
    "enrollment_ended": "enrollment",
    "held": "hold",
    **dict.fromkeys(("erased", "not_a_member", "no_address", "wrong_role", "already_mailed"), "recipient"),
    **dict.fromkeys(("opted_out", "topic_opted_out", "suppressed"), "suppression"),
    "survey_quarantine": "quarantine",
    "window_closed": "window",
    "braked": "brake",
    "capped": "caps",
    **dict.fromkeys(
        (
            "missing_value",
            "bad_template",
            "too_large",
            "empty_subject",
            "wrong_type",
            "bad_link",
            "bad_header",
            "eai_unsupported",
            "render_failed",
        ),
        "render",
    ),
    "held_out": "holdout",
}

SENTENCES: dict[str, str] = {
    # Entry
    "enrolled": "The trigger matched and the enrollment began.",
    "never_happened": "What starts the campaign has never happened here.",
    "where_failed": "The trigger event happened, but its condition was not true.",
    "too_old": "The event was already older than three days when it arrived, so it enrolls nobody.",
    "backfill": "The event was imported as history, so it enrolls nobody.",
    "already_enrolled": "An enrollment in this campaign was already active.",
    "no_reentry": "It has been through this campaign before, and the campaign allows no second time.",
    "reentry_too_soon": "It left this campaign too recently to enter again.",
    "goal_already_met": "The goal was already met, so there was nothing to bring about.",
    "exit_already_met": "The condition for leaving was already true.",
    "not_in_audience": "The account or contact is not in the campaign's audience.",
    "missing": "A value that the trigger or the audience reads was never set.",
    "no_contact": "The event named no contact, and this campaign enrolls contacts.",
    "no_account": "The contact belongs to no account, and campaigns run for accounts.",
    "account_ambiguous": "The event named no account and the contact belongs to several or none.",
    "too_soon_to_say": "The trigger event has arrived and is still being processed.",
    "not_recorded": "The trigger matched, but the decision is no longer stored: the ledger is pruned by age.",
    "before_published": "The trigger event happened before this campaign was published, and publishing looks forward only.",
    "no_campaign": "There is no campaign of that name.",
    "stage_loop": "The rules of the stages lead back to a stage that was left by the same event, so the account stays where it is.",
    "not_published": "The campaign was not published yet.",
    "loop": "Derived events followed each other more than eight deep, so the chain was cut.",
    # The way through
    "goal_met": "The goal is met.",
    "goal_met_late": "The goal was met, but after the time the campaign allows for it.",
    "exit_when": "The condition for leaving is true.",
    "left": "It left the campaign because the condition for leaving is true.",
    "exit_step": "It came to a step that ends the campaign.",
    "step_gone": "The step it was at is not in its version any more.",
    "finished": "It went through all steps.",
    "branch_taken": "This arm of the branch was taken.",
    "no_branch_matched": "No arm of the branch matched, so it went on.",
    "arm_drawn": "This arm of the split was drawn, by a hash of the account or contact.",
    "waits_until": "It waits for a moment of the calendar.",
    "repeated_enough": "The step repeats no more.",
    "alert_made": "The alert was made.",
    "task_made": "The task was made.",
    "webhook_made": "The webhook was made.",
    "effect_done": "The alert or webhook was delivered.",
    "effect_waits": "The alert or webhook could not be delivered yet; it is tried again.",
    "effect_refused": "The other side refused the alert or webhook for good.",
    "effect_given_up": "The alert or webhook could not be delivered within 24 hours.",
    "effect_unknown": "No answer came after the alert went out; it may have arrived, so it is not sent again.",
    "no_owner": "The account has no owner with an email address, so nobody was told.",
    "no_channel": "The channel has no address on this installation: nurture channels set gives it one.",
    "channel_gone": "The other side said that its address is gone for good (410), so the channel was disabled.",
    "channel_disabled": "The channel is disabled, since its address was said to be gone: nurture channels enable opens it again.",
    "wrong_channel": "A webhook goes to a channel that is a webhook, and this one is not.",
    "sealed_channel": "The channel's address was sealed under another secret key: nurture channels set gives it anew.",
    "unsafe_address": "The channel's address is not one that may be called.",
    "proved_sent": "Nobody knew whether it arrived; something has come back since that shows it did.",
    "bounced": "It came back: the address did not take it.",
    "complained": "The recipient reported it as unwanted, so nothing is sent to that address any more.",
    "set_made": "The traits were set.",
    "nobody_to_remind": "Everybody who got the mail has answered or clicked, or is not a member any more.",
    "steered": "An operator decided it.",
    "moved": "It was moved to another version of the campaign.",
    "cannot_steer": "What an operator asked for does not fit where it is.",
    "event_came": "What the step waited for came.",
    "timed_out": "What the step waited for did not come in time.",
    "moment_missing": "The date to wait for was never set.",
    "moment_passed": "The date to wait for had already passed.",
    "went_live": "The campaign went live, which ends what ran in shadow.",
    "shadow_ended": "The campaign went back to draft, which ends what ran in shadow.",
    "archived": "The campaign was archived, and everybody inside taken out.",
    "skipped_on_resume": "It fell due while the campaign was paused, and was skipped when the pause ended.",
    "exited_on_resume": "It was overdue when the pause of the campaign ended, and left.",
    "erased": "The contact or the account was erased.",
    "queued": "The message was made for this contact.",
    # Gates of sending
    "campaign_paused": "The campaign is paused.",
    "campaign_not_live": "The campaign was not live any more.",
    "enrollment_ended": "The enrollment had ended before the message was sent.",
    "held": "The account or the contact is on hold.",
    "nobody_reachable": "Nobody with the wanted role can be reached.",
    "other_recipient": "The mail went to somebody else at the account who comes before this contact.",
    "wrong_role": "The contact has none of the roles that the campaign writes to.",
    "not_reached": "The enrollment has not come to this step yet.",
    "never_reached": "The enrollment ended, or took another way, before this step.",
    "not_a_member": "The contact does not belong to the account any more.",
    "no_address": "The contact has no email address.",
    "opted_out": "The person has opted out of all mail.",
    "topic_opted_out": "The person has opted out of this topic.",
    "suppressed": "The address must not be written to.",
    "survey_quarantine": "The person was asked by a survey too recently.",
    "window_closed": "The send window is closed; the message waits until it opens.",
    "capped": "The person or the account has had enough mail for now.",
    "already_mailed": "The person got this mail as a contact of another account.",
    "missing_value": "The mail would have a hole: a value it shows was never set and has no default.",
    "bad_template": "The template cannot be rendered.",
    "too_large": "The rendered mail is too large.",
    "empty_subject": "The subject would be empty.",
    "wrong_type": "A value in the mail is not of the kind that the template needs.",
    "bad_link": "A link in the mail would not lead anywhere safe.",
    "bad_header": "A header of the mail would hold what no header may.",
    "eai_unsupported": "The address has letters outside ASCII before the @, which the relay does not take.",
    "render_failed": "The mail could not be rendered.",
    "sealed_key": "The domain's DKIM key was sealed under another secret key, so its mail cannot be signed and waits.",
    "braked": "Mail from this domain is paused, as too many people complained about it; an operator releases the brake.",
    "relay_unavailable": "The relay cannot be reached; it is tried again.",
    "throttled": "As much mail as may is on its way already; this one waits for its turn.",
    "lane_paused": "The recipient's provider refuses mail from us just now; no mail goes there for a while.",
    "held_out": "The account is in the holdout, which gets nothing so that the effect can be measured.",
    "shadow": "The campaign runs in shadow: the message is kept instead of sent.",
    # Gates that are open, or were not asked
    "not_asked": "Not asked: a gate before it was shut.",
    "no_rule": "The campaign has no rule of this kind.",
    "exempt": "Transactional mail is exempt.",
    "triggered": "What starts the campaign happened.",
    "campaign_running": "The campaign was running.",
    "free_to_enter": "Nothing was in the way of entering: no active enrollment, and re-entry allows it.",
    "enrollment_active": "The enrollment was active.",
    "goal_open": "The goal was not met.",
    "exit_open": "The condition for leaving was not true.",
    "in_audience": "The audience's condition was true.",
    "not_held": "Neither the account nor the contact was on hold.",
    "reachable": "The contact is among those the campaign writes to, and has an address.",
    "not_suppressed": "The person had not opted out, and the address may be written to.",
    "not_quarantined": "No survey had asked the person too recently.",
    "window_open": "The send window was open.",
    "under_caps": "No cap was reached.",
    "rendered": "The mail could be rendered.",
    "no_brake": "No brake was on.",
    "not_held_out": "The account is not in the holdout.",
    "in_line": "Nothing hinders it: it is sent when it is due.",
    # What can no longer be known
    "events_pruned": "The first events of the account are no longer stored, so what was known in the past cannot be rebuilt.",
    "no_events": "No event of the account is stored, so what was known in the past cannot be rebuilt.",
    "too_long": "The account has too many events to run them all again, so what was known in the past is left out.",
    "not_rebuilt": "What was known in the past could not be rebuilt: an event of the account makes the rules fail.",
    # Sending
    "sent": "The mail was sent.",
    "no_answer": "The connection broke after the mail was handed over; it may have arrived, so it is not sent again at once.",
    "rejected": "The relay refused the mail for good.",
    "deferred": "The relay asked to try again later.",
    "expired": "The message could not be sent before it expired.",
    "worker_died": "The worker died while handing the mail over; it may have arrived, so it is not sent again at once.",
    "assumed_sent": "The outcome never came to be known; it counts as sent and is not sent again.",
    "sent_again": "The outcome never came to be known; the mail is sent once more, under the same Message-ID.",
    "said_sent": "The outcome was not known; somebody looked and said that the mail was sent.",
}


def sentence(reason: str | None, evidence: Mapping[str, Any] | None = None) -> str:
    """The reason in plain words, with what the evidence adds. An unknown code is shown as it is."""
    if not reason:
        return ""
    said = SENTENCES.get(reason, reason.replace("_", " ").capitalize() + ".")
    added = _added(reason, evidence or {})
    return f"{said} {added}" if added else said


def gate_name(gate: str) -> str:
    return GATES.get(gate, gate.replace("_", " ").capitalize())


def span(value: timedelta) -> str:
    """`3 days`, `90 minutes`: a duration in its largest whole unit."""
    seconds = round(value.total_seconds())
    for size, name in ((7 * 86400, "week"), (86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds and seconds % size == 0:
            count = seconds // size
            return f"{count} {name}{'s' if count != 1 else ''}"
    return f"{seconds} seconds"


def because(found: Sequence[Mapping[str, Any]]) -> str:
    """What a condition failed on, or holds by (`Condition.evidence`), in words: "usage.logins.last_7d was 3, 2 short of 5"."""
    return "; ".join(map(_because, found))


def about(seconds: float) -> str:
    """`2.4 days`, `5 hours`, `12 minutes`: a span rounded for people."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = f"{seconds / size:.1f}".removesuffix(".0")
            return f"{count} {name}{'' if count == '1' else 's'}"
    return "less than a minute"


def _added(reason: str, evidence: Mapping[str, Any]) -> str:
    told = because(evidence["because"]) + "." if evidence.get("because") else ""
    told = "E" + told[1:] if told.startswith("either ") else told
    if reason == "missing" and evidence.get("paths"):
        return "Never set: " + ", ".join(map(str, evidence["paths"])) + "."
    if reason == "not_reached" and evidence.get("here"):
        return f"It is at {evidence['here']}" + (f" until {shown(evidence['due_at'])}." if evidence.get("due_at") else ".")
    if reason in ("enrollment_ended", "never_reached") and evidence.get("reason"):
        return f"{SENTENCES.get(evidence['reason'], evidence['reason'])} {told[:1].upper()}{told[1:]}".strip()
    if evidence.get("begins"):
        return f"It starts when {evidence['begins']}. {told}".rstrip() + _since(evidence)
    if reason in ("never_happened", "before_published", "not_recorded") and evidence.get("event"):
        return f"Event: {evidence['event']}." + _since(evidence)
    if reason in ("wrong_role", "other_recipient") and "has" in evidence:
        return f"Wanted: {', '.join(evidence.get('wanted', ())) or 'any role'}; has: {', '.join(evidence['has']) or 'none'}."
    if reason == "reentry_too_soon" and evidence.get("again_from"):
        return f"Again from {shown(evidence['again_from'])}."
    if reason in ("too_old", "backfill") and evidence.get("occurred_at"):
        return f"It happened {shown(evidence['occurred_at'])}."
    if reason == "survey_quarantine" and evidence.get("again_from"):
        return f"Asked {shown(evidence.get('asked_at'))}, again from {shown(evidence['again_from'])}."
    if reason == "window_closed" and evidence.get("until"):
        return (
            f"It opens {shown(evidence['until'])} (clock of {evidence.get('zone_of', 'the installation')}: {evidence.get('zone', 'UTC')})."
        )
    if reason == "capped" and evidence.get("at_most"):
        within = about(evidence["within_days"] * 86400)
        said = f"{evidence['at_most']} of at most {evidence['at_most']} for the {evidence['per']} within {within}"
        return f"{said}, the latest {evidence.get('lost_to')}; room again {shown(evidence.get('until'))}."
    if evidence.get("expires_at"):
        return f"It expired {shown(evidence['expires_at'])}."
    if reason == "in_line" and evidence.get("until"):
        return f"Due {shown(evidence['until'])}."
    if reason in ("not_held_out", "held_out") and "place" in evidence:
        return f"Its place is {evidence['place']:.1%}, the holdout is the first {evidence['holdout']:.1%}."
    if reason == "not_published" and evidence.get("published_at"):
        return f"That was {shown(evidence['published_at'])}."
    if reason == "where_failed" and told and evidence.get("where"):
        return f"It asks for {evidence['where']}. {told}"
    if told:
        return told
    if reason == "held" and evidence.get("why"):
        return f"Reason of the hold: {evidence['why']}."
    if reason == "campaign_not_live" and evidence.get("mode"):
        return f"Its mode was {evidence['mode']}."
    if reason == "missing_value" and (path := evidence.get("path") or evidence.get("value") or evidence.get("name")):
        return f"Missing: {path}."
    if reason == "exit_step" and evidence.get("reason"):
        return str(evidence["reason"])
    if reason == "branch_taken" and evidence.get("when"):
        return f"Arm {evidence.get('arm')}: {evidence['when']}."
    if reason == "braked" and evidence.get("delivered"):
        return f"{evidence['complained']} of {evidence['delivered']} ({evidence['rate']:.2%}) since {shown(evidence.get('since'))}."
    if evidence.get("problem"):
        return f"{evidence['problem']}."
    read = {path: value for path, value in evidence.items() if "." in path}
    if read:
        return "; ".join(f"{path} was {shown(value)}" for path, value in read.items()) + "."
    return ""


def _since(evidence: Mapping[str, Any]) -> str:
    return f" Events from before {shown(evidence['since'])} are no longer stored." if evidence.get("since") else ""


def _because(one: Mapping[str, Any]) -> str:
    if "any" in one:
        arms = [" and ".join(map(_because, arm)) for arm in one["any"]]
        return "either " + " or ".join(arms) + (f" or one of {one['more']} more" if one.get("more") else "")
    what, was, asked, wanted = one["what"], one["was"], one["is"], one.get("wanted")
    if one.get("raw"):
        return f"{what} was {shown(was)}, which is not of its declared type, so it reads as never set"
    if one.get("unit") == "days" and isinstance(was, float):
        was = round(was, 1)
    said = f"{what} could not be worked out" if one.get("unknown") else f"{what} was {shown(was)}"
    against = f" ({one['against']})" if one.get("against") else ""
    if one.get("holds"):
        plainly = asked in ("==", "true", "false", "missing", "set") and not against
        return said if plainly else f"{said} ({_ASKED[asked]} {shown(wanted)}{against})"
    if asked in ("set", "missing"):
        return said if asked == "set" else f"{said}, wanted never set"
    if asked in ("true", "false"):
        return f"{said}, wanted {asked}"
    if asked == "has" and was is not None:
        return f"{said}, without {shown(wanted)}{against}"
    by = one.get("by")
    if not by or was is None:
        return f"{said}, wanted {_WANTED.get(asked, _ASKED[asked] + ' ')}{shown(wanted)}{against}"
    low = asked.startswith(">") or (asked == "==" and was < wanted)
    if unit := one.get("unit"):
        # Days until a date grow fewer, all other dates and spans grow.
        early = low != ("days_until" in what)
        return f"{said}, {about(by * 86400 if unit == 'days' else by)} too {'early' if early else 'late'}{against}"
    if one.get("beyond"):
        return f"{said}, {shown(by)} {'short' if low else 'too much'}, wanted {_ASKED[asked]} {shown(wanted)}{against}"
    # Of whole numbers, more than 5 is 6 at least.
    bound = wanted + {">": 1, "<": -1}.get(asked, 0)
    return f"{said}, {shown(by)} {'short of' if low else 'above'} {shown(bound)}{against if bound == wanted else ''}"


_WANTED = {"==": "", "!=": "anything but "}
_ASKED = {
    "==": "just",
    "!=": "not",
    "<": "less than",
    "<=": "at most",
    ">": "more than",
    ">=": "at least",
    "in": "one of",
    "not in": "none of",
    "has": "with",
    "has not": "without",
}


def shown(value: Any) -> str:
    """A value as a sentence can carry it."""
    if value is None:
        return "never set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, str):
        return _moment(value) or f"“{value}”"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "empty"
    return str(value)


def _moment(value: str) -> str | None:
    """A moment as the ledger writes it, for people; None for any other text."""
    if len(value) < 20 or value[10] != "T":
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if found.tzinfo else None
