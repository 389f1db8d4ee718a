"""Hearing: what others report of our messages becomes facts, and what follows from them is done. Mail that comes back and providers'
webhooks both end here.

    reports ─▶ which message? (I-01) ─▶ [delivery event, once] ─▶ suppression · ledger · own event · alert to the owner · hit
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Connection, Row

from app.db import insert_rows
from app.flow import consents, outcome, wording
from app.flow.closing import Closing, close, give_up
from app.flow.consents import CLICK_TRACKING, OPEN_TRACKING
from app.flow.ingest import Own, raise_own
from app.flow.links import Links, load_keyring
from app.flow.respond import lifecycle_in_force
from app.flow.track import HITS_PER_MESSAGE, SETTLES_AFTER
from app.models import decision, delivery_event, effect, hit
from app.rules import signals, tracking
from app.rules.facts import TRIGGER_MAX_AGE, hash_id
from app.rules.lifecycle import TRANSACTIONAL, Tracking
from app.rules.reports import Report, classify
from app.rules.signals import Request

TEXT_KEPT = 2000
KEY_LENGTH = 200
DETAIL_BYTES = 4096
REPLY_TOLD = 4000  # of an answer, in the alert

FORGED, STRANGER, UNSENT = "forged", "no_message", "never_sent"

# Facts under names of their own. What a provider saw of opens and clicks is judged like what we see ourselves, and counts when it has
# been; a machine's answer is none.
_STORED = {"opened": "open_reported", "clicked": "click_reported"}
_HEADER = re.compile(r"<?([0-9a-f]{32})@[^<>@\s]+>?", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one report: the message it is about (None: `problem` says why), and whether it said anything new. `problem` is forged
    (a token that was not made here), no_message, never_sent, or None."""

    report: Report
    message: UUID | None
    problem: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """`findings` are in the order of the reports. After the commit `partitions` are to be rung, and alerts where `alerts` says so."""

    findings: tuple[Finding, ...] = ()
    partitions: frozenset[int] = frozenset()
    alerts: bool = False

    @property
    def fresh(self) -> int:
        return sum(one.fresh for one in self.findings)

    @property
    def unmatched(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.message is None)


def hear(conn: Connection, reports: Sequence[Report], source: str, now: datetime) -> Heard:
    """Applies any number of reports; returns what became of each. Never commits; one statement per table, whatever their number.

    `source` says who reports (`mail`, a provider's name) and is kept with the facts. A report whose message cannot be told, or whose token
    was not made here, changes nothing (I-01). Each fact of a message counts once, and in any order (W-03): applying again changes nothing.
    Whatever is reported proves that an `unknown` message arrived (S-05). Takes the reports' words as they are, from anybody: never raises
    for what they say.
    """
    installation = conn.exec_driver_sql("select partitions from installation").scalar_one()
    links = Links("", load_keyring(conn))
    named = [_named(links, one) for one in reports]
    known = {row.id: row for row in conn.exec_driver_sql(_FIND, {"ids": sorted({found for found, _ in named if found})})}
    findings = [_finding(report, found, problem, known) for report, (found, problem) in zip(reports, named, strict=True)]
    facts: dict[tuple[UUID, str, str], tuple[int, Report, Row]] = {}
    tracked = _Permissions(conn, [known[one.message] for one in findings if one.message and one.report.kind in _STORED])
    for place, one in enumerate(findings):
        if one.message is None or (one.report.kind in _STORED and not tracked.allow(one.report, known[one.message])):
            continue
        facts.setdefault((one.message, _kind(one.report), _key(one.report)), (place, one.report, known[one.message]))
    stored = insert_rows(
        conn,
        delivery_event,
        [_fact(kind, key, report, row, source, now) for (_, kind, key), (_, report, row) in sorted(facts.items(), key=lambda one: one[0])],
        conflict="(message_id, kind, key) do nothing",
        returning=("message_id", "kind", "key"),
    )
    fresh = [facts[row.message_id, row.kind, row.key] for row in stored]
    new = {place for place, _, _ in fresh}
    partitions, alerts = _follow(
        conn, [(report, row) for _, report, row in sorted(fresh, key=lambda one: one[0])], source, now, installation
    )
    told = tuple(Finding(one.report, one.message, one.problem, place in new) for place, one in enumerate(findings))
    return Heard(told, frozenset(partitions), alerts)


def _follow(conn: Connection, fresh: Sequence[tuple[Report, Row]], source: str, now: datetime, partitions: int) -> tuple[set[int], bool]:
    """What follows from facts that were not known before."""
    if not fresh:
        return set(), False
    outcome.resolve(conn, list({row.id for _, row in fresh}), now)
    close(conn, [one for report, row in fresh for one in _closings(report, row, source)], now)
    consents.add(conn, [one for report, row in fresh for one in _withdrawals(report, row, source, now)])
    give_up(conn, _doubtful(fresh), now)
    insert_rows(conn, decision, [one for report, row in fresh for one in _decisions(report, row, source, now)])
    _note_hits(conn, fresh, now)
    alerts = _tell_owners(conn, [(report, row) for report, row in fresh if _kind(report) == "replied"], now)
    return raise_own(conn, [own for report, row in fresh if (own := _own(report, row, now))], now, partitions), alerts


# Which message -------------------------------------------------------------------------------------------------------


def _named(links: Links, report: Report) -> tuple[UUID | None, str | None]:
    """The message that a report names, or why it names none. A token that is not ours is never made up for by something weaker."""
    token = (report.token or "").strip()
    if "+" in token:
        found = links.read_mailbox(token)
        return (found[1], None) if found else (None, FORGED)
    if token:
        found = UUID(token) if _UUID.fullmatch(token) else links.read_short(token)
        return (found, None) if found else (None, FORGED)
    header = _HEADER.fullmatch((report.message_header or "").strip())
    return (UUID(header[1]), None) if header else (None, STRANGER)


def _finding(report: Report, found: UUID | None, problem: str | None, known: Mapping[UUID, Row]) -> Finding:
    if found is None:
        return Finding(report, None, problem)
    row = known.get(found)
    header = (report.message_header or "").strip().strip("<>").lower()
    if row is None or (not report.token and header != (row.message_header or "").strip("<>").lower()):
        return Finding(report, None, STRANGER)
    if row.dot_at is None and row.state not in ("sent", "unknown"):
        return Finding(report, None, UNSENT)
    return Finding(report, found)


# Facts ---------------------------------------------------------------------------------------------------------------


def _kind(report: Report) -> str:
    if report.kind == "replied" and report.sort == "auto_reply":
        return "auto_replied"
    return _STORED.get(report.kind, report.kind)


def _key(report: Report) -> str:
    key = _clean(report.key, 10_000)
    return key if len(key) <= KEY_LENGTH else f"hash:{hash_id(key).hex}"


def _fact(kind: str, key: str, report: Report, row: Row, source: str, now: datetime) -> dict[str, Any]:
    detail = {
        "source": source,
        "sort": classify(report) if report.kind in ("bounced", "rejected", "deferred") else report.sort,
        "code": report.code,
        "status": _clean(report.status, 20) or None,
        "text": _clean(report.text, TEXT_KEPT) or None,
        "link": _clean(report.link, TEXT_KEPT) or None,
        # Only where it is another one than we wrote to: the mail was forwarded.
        "recipient": recipient if (recipient := _clean(report.recipient, 320).lower()) not in ("", row.person, row.present) else None,
        "detail": _plain_detail(report.detail),
    }
    return {
        "message_id": row.id,
        "kind": kind,
        "at": _moment(report, now),
        "detail": {name: value for name, value in detail.items() if value not in (None, {})},
        "key": key,
    }


def _moment(report: Report, now: datetime) -> datetime:
    """The event's own time; a clock that runs ahead is set right, one without a zone is taken for UTC."""
    at = report.at if report.at.tzinfo else report.at.replace(tzinfo=UTC)
    return min(at, now)


def _clean(value: Any, limit: int) -> str:
    """A text that any database takes: no control characters, no half surrogates, not too long."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    return _CONTROLS.sub("", text[: limit * 2]).encode("utf-8", "replace").decode()[:limit].strip()


def _plain_detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    """The reporter's own details, if they are small and can be kept; else that they were dropped."""
    try:
        text = to_json(dict(detail), serialize_unknown=True).decode()
    except ValueError:
        return {"dropped": "not plain"}
    if len(text) > DETAIL_BYTES or "\\u0000" in text:
        return {"dropped": "too large" if len(text) > DETAIL_BYTES else "not plain"}
    return dict(detail)


# Addresses -----------------------------------------------------------------------------------------------------------


def _people(row: Row) -> list[str]:
    """Whom a wish counts for: the address it went to and, should it have changed since, the contact's present one."""
    return list(dict.fromkeys(person for person in (row.person, row.present) if person))


def _sent_to(row: Row) -> list[str]:
    """Whom a bounce tells of: the address it went to. It may not have been written down if the worker died."""
    return [person] if (person := row.person or row.present) else []


def _scope(report: Report, row: Row) -> str | None:
    """What an unsubscription is from. Transactional mail has no opt-out, but `all` may be said in answer to it."""
    scope = _clean(report.detail.get("scope"), 100) or row.topic
    return None if scope == TRANSACTIONAL else scope


def _evidence(report: Report, row: Row, source: str) -> dict[str, Any]:
    evidence = {"message": str(row.id), "source": source, "text": _clean(report.text, 500) or None, "key": _key(report)}
    return {name: value for name, value in evidence.items() if value is not None}


def _closings(report: Report, row: Row, source: str) -> Iterable[Closing]:
    evidence = _evidence(report, row, source)
    if report.kind in ("bounced", "rejected") and classify(report) == "hard":
        return [Closing(person, "bounced", "bounced", evidence) for person in _sent_to(row)]
    if report.kind == "complained":
        return [Closing(person, "complained", "complained", evidence) for person in _sent_to(row)]
    if report.kind == "unsubscribed" and (scope := _scope(report, row)):
        return [Closing(person, scope, "unsubscribed", {**evidence, "method": source}) for person in _people(row)]
    return ()


def _withdrawals(report: Report, row: Row, source: str, now: datetime) -> Iterable[dict[str, Any]]:
    """Lines of the consent log (P-05)."""
    said = {"complained": ("all", _sent_to), "unsubscribed": (_scope(report, row), _people)}.get(report.kind)
    if said is None or said[0] is None:
        return
    for person in said[1](row):
        about = {"person": person, "purpose": said[0], "granted": False, "at": _moment(report, now), "source": source, "actor": "contact"}
        yield about | {"method": "complaint" if report.kind == "complained" else source, "evidence": _evidence(report, row, source)}


def _doubtful(fresh: Sequence[tuple[Report, Row]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for report, row in fresh:
        if report.kind in ("bounced", "rejected") and classify(report) in ("host", "soft", "full"):
            for person in _sent_to(row):
                found.setdefault(person, []).append(row.contact_id)
    return found


# Ledger, own events, alerts --------------------------------------------------------------------------------------------


def _decisions(report: Report, row: Row, source: str, now: datetime) -> Iterable[dict[str, Any]]:
    if report.kind not in ("bounced", "rejected", "complained"):
        return
    evidence = {"source": source, "reply": _clean(report.text, 500) or None}
    if report.kind != "complained":
        evidence |= {"sort": classify(report), "enhanced": _clean(report.status, 20) or None}
    reason = "bounced" if report.kind == "rejected" else report.kind
    evidence = {name: value for name, value in evidence.items() if value is not None}
    yield outcome.ledger(row, now, "send", "no", reason, evidence)


def _own(report: Report, row: Row, now: datetime) -> Own | None:
    """The event that campaigns may listen to."""
    about = {"campaign": row.campaign, "step": row.step_id, "message": str(row.id), "enrollment": str(row.enrollment_id)}
    kind = _kind(report)
    if kind == "replied":
        name, ident = "nurture.email_replied", f"reply:{row.id}:{_key(report)}"
        about["text"] = _clean(report.text.replace("\r\n", "\n"), TEXT_KEPT)
    elif kind == "bounced":
        name, ident = "nurture.email_bounced", f"bounce:{row.id}"
        about |= {"sort": classify(report), "status": _clean(report.status, 20) or None}
    elif kind == "complained":
        name, ident = "nurture.email_complained", f"complaint:{row.id}"
    else:
        return None
    at = _moment(report, now)
    return Own(name, ident, about, row.account_key, row.contact_key, at, mark="too_old" if at < now - TRIGGER_MAX_AGE else None)


def _tell_owners(conn: Connection, replies: Sequence[tuple[Report, Row]], now: datetime) -> bool:
    """An alert to the account's owner for every answer: nobody else reads the mailbox it came to. Returns whether any was made."""
    if not replies:
        return False
    ids = [row.id for _, row in replies]
    conn.exec_driver_sql(_ONE_AT_A_TIME, {"ids": ids})
    before = dict(tuple(one) for one in conn.exec_driver_sql(_TOLD, {"ids": ids}))
    rows = []
    for report, row in replies:
        before[row.id] = before.get(row.id, 0) + 1
        name = " ".join(part for part in (row.first_name, row.last_name) if part) or row.address or row.contact_key
        about = {
            "account": row.account_key,
            "account_name": row.account_name,
            "contact": row.contact_key,
            "contact_name": name,
            "campaign": row.campaign,
            "campaign_name": row.campaign_name,
            "step": row.step_id,
        }
        said = _clean(report.text.replace("\r\n", "\n"), REPLY_TOLD)
        text = f'{name} answered "{row.subject or row.step_id}"\n\n{said}'
        rows.append(
            {
                "id": hash_id("reply", row.id, _key(report)),
                "kind": "alert",
                "enrollment_id": row.enrollment_id,
                "campaign_id": row.campaign_id,
                "version_id": row.version_id,
                # A mail step has no effects of its own, so its answers are counted under it.
                "step_id": row.step_id,
                "occurrence": before[row.id],
                "account_id": row.account_id,
                "contact_id": row.contact_id,
                "payload": wording.notice("owner", (row.owner_name, row.owner_email), text, about),
                "created_at": now,
                "due_at": now,
                "state": "due",
            }
        )
    insert_rows(conn, effect, rows, conflict="do nothing")
    return True


# Opens and clicks ------------------------------------------------------------------------------------------------------


class _Permissions:
    """Whether a provider's word for opens and clicks may be kept: as for what we see ourselves (P-07, T-05, T-16). Where only the day of
    an open may be kept, ours is, and theirs is not."""

    def __init__(self, conn: Connection, rows: Sequence[Row]):
        people = sorted({person for row in rows for person in _sent_to(row)})
        self.said = (
            {(person, purpose): granted for person, purpose, granted in conn.exec_driver_sql(_SAID, {"people": people})} if people else {}
        )
        inforce = lifecycle_in_force(conn) if rows else None
        self.rules = inforce[1].tracking if inforce else Tracking()

    def allow(self, report: Report, row: Row) -> bool:
        if row.erased_at is not None:
            return False
        purpose = OPEN_TRACKING if report.kind == "opened" else CLICK_TRACKING
        words = [self.said[person, purpose] for person in _sent_to(row) if (person, purpose) in self.said]
        said = all(words) if words else None
        if purpose == CLICK_TRACKING:
            return tracking.clicks_kept(self.rules, said) == tracking.EVERYTHING
        return tracking.opens_kept(self.rules, tracking.country_of(row.country, row.locale), said) == tracking.EVERYTHING


def _note_hits(conn: Connection, fresh: Sequence[tuple[Report, Row]], now: datetime) -> None:
    """Opens and clicks that a provider saw are judged a minute later like those that we see (4.3): bursts count, people's clicks raise
    `nurture.email_clicked`. A click on one of our own links came to us by itself, and one on another link tells nothing to judge."""
    seen = [(report, row) for report, row in fresh if report.kind in _STORED]
    if not seen:
        return
    counts = dict(tuple(one) for one in conn.exec_driver_sql(_HITS, {"ids": list({row.id for _, row in seen})}))
    rows = []
    for report, row in seen:
        link = _link(report, row)
        if (report.kind == "clicked" and link is None) or counts.get(row.id, 0) >= HITS_PER_MESSAGE:
            continue
        counts[row.id] = counts.get(row.id, 0) + 1
        rows.append(_hit(report, row, link, now))
    insert_rows(conn, hit, rows)


def _link(report: Report, row: Row) -> int | None:
    if report.kind == "opened" or not report.link:
        return None
    try:
        ours = re.match(r"/[coupsv]/[A-Za-z0-9_-]{48}", urlsplit(report.link).path)
    except ValueError:
        return None
    urls = row.links or []
    return urls.index(report.link) if not ours and report.link in urls else None


def _hit(report: Report, row: Row, link: int | None, now: datetime) -> dict[str, Any]:
    kind = {"opened": "open", "clicked": "click"}[report.kind]
    at = _moment(report, now)
    sent = (row.settled_at if row.state == "sent" else None) or row.dot_at
    since = max(at - sent, timedelta(0)) if sent else None
    agent = _clean(report.user_agent, 300)
    # What a provider does not pass on is not held against the reader: neither headers, nor images.
    shown = signals.signals(kind, Request(agent or "unknown", "unknown", "navigate", False, None), since_sent=since, image_loaded=True)
    verdict = "machine" if report.machine and kind == "open" else signals.verdict(kind, shown, agent)
    if report.machine and kind == "click":
        shown[signals.SCANNER_AGENT] = signals.WEIGHTS[signals.SCANNER_AGENT]
        verdict = signals.verdict(kind, shown, agent)
    return {
        "message_id": row.id,
        "kind": kind,
        "link": link,
        "at": at,
        "user_agent": agent or None,
        "signals": shown,
        "score": signals.score(shown),
        "verdict": verdict,
        "settle_at": now + SETTLES_AFTER,
    }


_FIND = """
select m.id, m.state, m.topic, m.person, m.subject, m.links, m.message_header, m.dot_at, m.settled_at, m.enrollment_id, m.campaign_id,
       m.version_id, m.step_id, m.occurrence, m.account_id, m.contact_id, k.key as campaign, k.name as campaign_name,
       a.external_id as account_key, a.name as account_name, a.owner_name, a.owner_email,
       c.external_id as contact_key, c.person as present, c.address, c.first_name, c.last_name,
       c.traits ->> 'country' as country, c.locale, c.erased_at
from message m join campaign k on k.id = m.campaign_id join account a on a.id = m.account_id join contact c on c.id = m.contact_id
where m.id = any(%(ids)s::uuid[])"""
_SAID = """
select distinct on (person, purpose) person, purpose, granted from consent
where person = any(%(people)s) and purpose in ('open_tracking', 'click_tracking') order by person, purpose, at desc, id desc"""
_HITS = "select message_id, count(*) from hit where message_id = any(%(ids)s) group by message_id"
# The answers to one mail are numbered, so two workers must not number them at the same time.
_ONE_AT_A_TIME = "select id from message where id = any(%(ids)s) order by id for no key update"
_TOLD = """
select m.id, max(f.occurrence) from message m join effect f
    on f.enrollment_id = m.enrollment_id and f.step_id = m.step_id and f.contact_id = m.contact_id
where m.id = any(%(ids)s) group by m.id"""
