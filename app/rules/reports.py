"""What somebody else says became of a message: a bounce, a provider's webhook, an answer; and what follows for the address. Pure.

The classes are those of email-standards 3.2, with the code groups of `rules.delivery`:

    hard            the mailbox is not there: never again
    host            its domain is not there: never again when it is seen twice, a day apart
    full, soft      for now: never again after five in a row over two weeks
    block           about us, our content or our reputation: never counts against the contact (S-19)
    configuration   about our settings: for the operator
    auto_reply      somebody's machine answered: nothing follows
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.rules.delivery import FULL, enhanced, is_block, is_full, sort_by_status, sort_by_text

KINDS = (
    "sent",
    "delivered",
    "deferred",
    "bounced",
    "rejected",
    "complained",
    "unsubscribed",
    "opened",
    "clicked",
    "replied",
    "not_spam",
)
SORTS = ("hard", "host", "full", "soft", "block", "configuration", "auto_reply")

HOST_APART = timedelta(hours=24)
SOFT_SENDS = 5
SOFT_OVER = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Report:
    """What somebody else says became of a message.

    `kind` is one of KINDS; `at` the event's own time (W-03), aware; `key` makes it one fact of that message. The message is named by
    `token` (the local part of an address of ours, our X- header, or what a provider sends back of its metadata) or by `message_header`
    (our Message-ID with brackets); `recipient` never identifies alone (I-01). `code` is the basic SMTP code, `status` the enhanced one
    (X.Y.Z), `text` the diagnostic, or what was answered. `sort` is one of SORTS where whoever reports says it; `link` is what was clicked;
    `machine` the provider's own verdict on an open (T-04). `detail` is small, opaque, and kept; its `scope` says what an unsubscription
    is from (a topic or `all`; without it the message's topic).
    """

    kind: str
    at: datetime
    key: str
    token: str | None = None
    message_header: str | None = None
    recipient: str | None = None
    code: int | None = None
    status: str | None = None
    text: str = ""
    sort: str | None = None
    link: str | None = None
    user_agent: str | None = None
    machine: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)


def classify(report: Report) -> str:
    """The class of table 3.2: what the reporter says, else by the enhanced code first, the basic code second, the text last (S-13)."""
    if report.sort in SORTS:
        return report.sort
    status = enhanced(report.status or "") or enhanced(report.text)
    if _is_final(report, status):
        # Who reports has been refused as a recipient would be, or says nothing of when.
        if status:
            return sort_by_status(status, "rcpt", report.text)
        return sort_by_text("rcpt", report.code, report.text)
    if status in FULL or (not status and (report.code == 452 or is_full(report.text))):
        return "full"
    # A reputation that is bad for two days is not the contact's fault either.
    return "block" if (status or "").startswith("4.7.") or is_block(report.text) else "soft"


def _is_final(report: Report, status: str | None) -> bool:
    if status:
        return status.startswith("5")
    return report.code >= 500 if report.code else report.kind in ("bounced", "rejected")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing that tells of an address: `kind` is good (delivered, clicked, answered), soft (mailbox full included) or host."""

    message: UUID
    at: datetime
    kind: str


def gone(sightings: Iterable[Sighting]) -> tuple[str, tuple[UUID, ...]] | None:
    """Whether an address is to be given up, why (`bounced` for its host, `soft_limit`) and by which messages; None: not yet.

    The second message, a day after the first, that found no host; or soft results of five messages over two weeks. Anything good in
    between starts the count anew. The order in which the sightings became known does not matter (W-03).
    """
    host: dict[UUID, datetime] = {}
    soft: dict[UUID, datetime] = {}
    for one in sorted(sightings, key=lambda one: (one.at, one.kind, one.message)):
        if one.kind == "good":
            host.clear()
            soft.clear()
            continue
        seen = host if one.kind == "host" else soft
        seen.setdefault(one.message, one.at)
        span = one.at - next(iter(seen.values()))
        if one.kind == "host" and len(seen) >= 2 and span >= HOST_APART:
            return "bounced", tuple(seen)
        if one.kind == "soft" and len(seen) >= SOFT_SENDS and span >= SOFT_OVER:
            return "soft_limit", tuple(seen)
    return None
