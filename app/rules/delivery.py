"""What follows from a relay's answer: try again and when, give up, suppress. Pure: no clock, no database.

The table of email-standards 3.2 decides by the enhanced code first, the basic code second, the text last (S-13).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from app.errors import SendError
from app.rules.facts import hash_share
from app.rules.lanes import is_reputation
from app.rules.lifecycle import TRANSACTIONAL, Sending

# S-10, with jitter of a fifth either way. The last one repeats until the message expires.
SCHEDULE = tuple(timedelta(minutes=minutes) for minutes in (6, 20, 45, 120, 240, 480))
JITTER = 0.2
NAMED_DELAY_LIMIT = timedelta(hours=1)  # S-11

HARD = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.7.13", "5.7.17", "5.7.18"})
CONFIGURATION = frozenset({"5.1.7", "5.1.8", "5.7.27"})
NO_HOST = frozenset({"5.4.1", "5.4.4"})
FULL = frozenset({"5.2.2", "4.2.2"})
# The relay wants us to sign in, or to sign in otherwise: nothing that another recipient would change.
SIGN_IN = frozenset({530, 534, 535, 538})

# How alerts and webhooks are tried again (Standard Webhooks), with the same jitter. The last one repeats until they are given up.
CALL_SCHEDULE = tuple(timedelta(seconds=seconds) for seconds in (5, 60, 300, 1200, 3600, 7200, 14400))
GIVEN_UP_AFTER = timedelta(hours=24)
AGAIN = frozenset({408, 425, 429})  # refusals that another attempt may change, besides all of 500 and above
GONE = 410  # nobody listens there any more (Standard Webhooks): the channel is disabled
NOBODY_KNOWS = 504  # a gateway that waited in vain: what stands behind it may have taken the call

_ENHANCED = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?![\d.])")
_DELAY = re.compile(r"\b(\d{1,5})\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?)\b", re.IGNORECASE)
_UNKNOWN_USER = re.compile(
    r"(user|recipient|mailbox|address|account)\b.{0,40}\b(unknown|not found|not exist|no such|unavailable|disabled|inactive|invalid)"
    r"|\b(unknown|no such|invalid|nonexistent)\b.{0,20}\b(user|recipient|mailbox|address|account)"
    r"|does(n't| not) (exist|have an account)|not listed in|no mailbox here|is not a (known|valid) (user|recipient|mailbox|address)",
    re.IGNORECASE,
)
_NO_HOST_TEXT = re.compile(
    r"(host|domain)( or domain name)? (name )?(is |was )?(unknown|not found|does(n't| not) exist)|no such (host|domain)|nxdomain"
    r"|unroutable|unrouteable|(couldn't|could not|cannot|can't) find any host|no (mx|a) records?\b|non-?existent (host|domain)",
    re.IGNORECASE,
)
_CLOSED = re.compile(r"\b(disabled|inactive|deactivated|suspended)\b", re.IGNORECASE)
_BLOCKED = re.compile(
    r"spam|block(ed|list)|blacklist|policy|reputation|rbl\b|spamhaus|dnsbl|barracuda|denied by|access denied", re.IGNORECASE
)
_QUOTA = re.compile(r"quota|mailbox (is )?full|over ?limit|insufficient (system )?storage", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """All limits of sending in one place. Times in seconds."""

    connections: int | None = None  # of this worker at most, whatever its transport says
    batch: int = 500  # claimed at once, at most
    fresh: float = 0.8  # how old the gates' yes may be at MAIL FROM
    company: float = 0.002  # how long those at their dot wait for others, to be committed together
    gather: float = 0.05  # how long results do
    flushed: float = 2.0  # when a result that nobody waited for is surely on disk (three times wal_writer_delay, and some)
    poll: float = 0.25  # how often to look for new mail while connections still hang in their dots
    idle: float = 60.0  # an unused connection is closed then, where its transport says nothing (S-14)
    patience: tuple[float, ...] = (1, 2, 5, 10, 20, 30, 60)  # between attempts to reach a relay that cannot be reached
    back_off: float = 5.0  # how long messages wait that were claimed when the relay or the database went away
    farewell: float = 5.0  # what a worker that is asked to stop grants to connections in their dot
    horizon: float = 40 * 60.0  # a run ends then and rings for the next
    heartbeat: float = 5.0  # between two signs of life
    dead_after: float = 30.0  # without a sign of life a worker is dead


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a message after one attempt.

    `state` is the one to store: due (again at `due_at`), sent, unknown (evidence is waited for until `due_at`) or skipped; `event` is the
    kind of the delivery event, None where the attempt does not count because it never was about this message; `sort` is the class of
    3.2; `suppress` says that the address must not be written to again. `ours` says that the refusal is about us, `slows` that the
    provider wants less from us (S-15, S-19).
    """

    state: str
    reason: str | None = None
    event: str | None = None
    due_at: datetime | None = None
    suppress: bool = False
    sort: str | None = None
    enhanced: str | None = None
    ours: bool = False
    slows: bool = False


@dataclass(frozen=True, slots=True)
class Ages:
    """How long a message is tried, and how long evidence of an unknown outcome is waited for."""

    trying: timedelta
    unknown: timedelta


SENT = Ending("sent", None, "sent")
DONE = Ending("done", "effect_done")


def ending(
    error: SendError, message_id: UUID, attempts: int, now: datetime, expires_at: datetime, tried_at: datetime | None, ages: Ages
) -> Ending:
    """What follows from a failed attempt. `attempts` counts this one; `tried_at` is when the first was, None if this is it.

    A refusal for now is tried again until the message expires or has been tried for as long as `ages` allows (S-10); a refusal for good
    ends it, and suppresses the address only where the recipient was refused as not existing; no answer after the final dot is `unknown`
    (table 2.1, S-05).
    """
    code = enhanced(error.text)
    if error.outcome == "unknown":
        return Ending("unknown", "no_answer", "unknown", due_at=now + ages.unknown, enhanced=code)
    sort = sort_of(error.phase, error.code, error.text)
    if error.outcome == "perm":
        ours = sort in ("block", "configuration") and error.code is not None
        return Ending("skipped", "rejected", "rejected", suppress=sort == "hard", sort=sort, enhanced=code, ours=ours)
    about = {"sort": sort, "enhanced": code, "slows": is_reputation(error.outcome, error.text)}
    again = retry_at(message_id, attempts, now, error.text)
    if again >= min(expires_at, (tried_at or now) + ages.trying):
        return Ending("skipped", "expired", "deferred", **about)
    return Ending("due", "deferred", "deferred", due_at=again, **about)


def ages_of(topic: str, sending: Sending) -> Ages:
    """The ages that count for mail of `topic`."""
    return Ages(sending.transactional if topic == TRANSACTIONAL else sending.marketing, sending.unknown)


def unknown_again(topic: str, resends: int, known_since: bool, now: datetime, expires_at: datetime) -> bool:
    """Whether a message whose outcome nobody has come to know is sent once more: transactional mail is, once, as long as it has not expired
    (at least once); everything else counts as sent (at most once, S-05). `known_since` is false for outcomes older than this rule."""
    return topic == TRANSACTIONAL and resends == 0 and known_since and expires_at > now


def answered(status: int, named: timedelta | None, repeats: bool, effect_id: UUID, attempts: int, now: datetime, since: datetime) -> Ending:
    """What follows from the answer to the `attempts`-th call of an effect that is due since `since`: taken, refused, or again later, not
    before the `named` time. `repeats` as in `unanswered`. A redirect is a refusal, as none is followed."""
    if 200 <= status < 300:
        return DONE
    if status == NOBODY_KNOWS:
        return unanswered("unknown", repeats, effect_id, attempts, now, since)
    if status in AGAIN or status >= 500:
        return later(effect_id, attempts, now, since, named)
    return Ending("failed", "channel_gone" if status == GONE else "effect_refused")


def unanswered(outcome: str, repeats: bool, effect_id: UUID, attempts: int, now: datetime, since: datetime) -> Ending:
    """What follows from a call that got no answer; `outcome` is CallError's. `repeats` says that whoever is called recognises a call that
    comes twice, as Standard Webhooks asks; to anybody else, what may have been taken is never sent again."""
    if outcome == "refused":
        return Ending("failed", "unsafe_address")
    if outcome == "unknown" and not repeats:
        return Ending("unknown", "effect_unknown")
    return later(effect_id, attempts, now, since)


def later(effect_id: UUID, attempts: int, now: datetime, since: datetime, named: timedelta | None = None) -> Ending:
    """Again by the schedule, or not before the time that was named, an hour at most; given up a day after `since`."""
    delay = CALL_SCHEDULE[min(attempts, len(CALL_SCHEDULE)) - 1] * (1 - JITTER + 2 * JITTER * hash_share("call", effect_id, attempts))
    if named is not None:
        delay = max(delay, min(named, NAMED_DELAY_LIMIT))
    if now + delay >= since + GIVEN_UP_AFTER:
        return Ending("failed", "effect_given_up")
    return Ending("due", "effect_waits", due_at=now + delay)


def about_the_relay(error: SendError) -> bool:
    """Whether the failure says nothing of the message: no connection, no TLS, no sign-in. It is then not counted as an attempt."""
    return error.phase == "connect" or about_the_setting(error)


def about_the_setting(error: SendError) -> bool:
    """Whether only another setting can help: a certificate that cannot be trusted, a password that is not taken, a way in that is not
    offered (table 2.1)."""
    return error.setting or (error.phase == "mail" and error.code in SIGN_IN)


def retry_at(message_id: UUID, attempts: int, now: datetime, text: str = "") -> datetime:
    """When to try again after the `attempts`-th failure: the delay the relay named, else the schedule with its jitter (S-10, S-11).

    The jitter is a hash of message and attempt, so a repeated calculation gives the same time.
    """
    named = named_delay(text)
    if named is not None:
        return now + named
    delay = SCHEDULE[min(attempts, len(SCHEDULE)) - 1]
    return now + delay * (1 - JITTER + 2 * JITTER * hash_share("retry", message_id, attempts))


def named_delay(text: str) -> timedelta | None:
    """The delay a reply asks for ("try again in 300 seconds"), at most an hour; None when it names none."""
    found = _DELAY.search(_ENHANCED.sub(" ", text))
    if not found:
        return None
    seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2][0].lower()]
    return min(timedelta(seconds=seconds), NAMED_DELAY_LIMIT) if seconds else None


def enhanced(text: str) -> str | None:
    """The enhanced status code of a reply's text (RFC 3463), such as 5.1.1."""
    found = _ENHANCED.search(text)
    return found[0] if found else None


def sort_of(phase: str, code: int | None, text: str) -> str:
    """The class of table 3.2: hard, host, full, soft, block or configuration.

    `hard` only for a refusal of the recipient (RCPT): what is refused elsewhere is about us or the content, never about the
    contact (S-19).
    """
    status = enhanced(text)
    if code is None or code < 500:
        return "full" if status in FULL else "soft"
    if phase == "mail":
        return "configuration"
    return sort_by_status(status, phase, text) if status else sort_by_text(phase, code, text)


def sort_by_status(status: str, phase: str, text: str) -> str:
    """The class of a refusal for good that has an enhanced code."""
    if status in FULL:
        return "full"
    if status in CONFIGURATION or status.startswith("5.5."):
        return "configuration"
    if status in HARD or (status == "5.2.1" and _CLOSED.search(text)):
        return "hard" if phase == "rcpt" else "block"
    if status in NO_HOST:
        return "host"
    if status.startswith(("5.7.", "5.6.")) or status == "5.3.4" or is_block(text):
        return "block"
    return "soft"


def sort_by_text(phase: str, code: int | None, text: str) -> str:
    """The class of a refusal for good without an enhanced code; `code` is None where not even a basic one was said."""
    if code == 552 or is_full(text):
        return "full"
    if is_block(text):
        return "block"
    if _NO_HOST_TEXT.search(text):
        return "host"
    if phase == "rcpt" and code in (None, 550, 551, 553) and _UNKNOWN_USER.search(text):
        return "hard"
    return "block" if code in (550, 554) else "soft"


def is_block(text: str) -> bool:
    """Whether the words are about us: reputation, policy, a blocklist."""
    return bool(_BLOCKED.search(text))


def is_full(text: str) -> bool:
    """Whether the words are about a mailbox that is full."""
    return bool(_QUOTA.search(text))
