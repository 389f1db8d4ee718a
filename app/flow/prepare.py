"""From claims to letters: facts in bulk, the gates decided again, the mail rendered and assembled (DESIGN.md 8).

Reads the database and decides nothing itself: the gates are `rules.consent`'s. What may not go, or not yet, comes back as an outcome
with its reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, select

from app.config import Settings
from app.errors import RenderSkip
from app.flow import mime, publish, states
from app.flow.claims import Ready
from app.flow.compose import Addresses, Compiled, Composer, Link, Mail, assemble, locales, nowhere
from app.flow.consents import CLICK_TRACKING, OPEN_TRACKING
from app.flow.dkim import Signers
from app.flow.links import Links
from app.flow.outcome import Outcome
from app.flow.reservations import Places
from app.flow.signing import Signer
from app.models import template
from app.providers import Letter
from app.rules import consent, steps, tracking
from app.rules.book import Book, Node, Version
from app.rules.capacity import Refusal
from app.rules.conditions import values
from app.rules.delivery import Ages, Ending, ages_of, retry_at
from app.rules.facts import Account, Contact, Decision, Enrollment, Scope
from app.rules.identity import normalise
from app.rules.lifecycle import TRANSACTIONAL, Sender
from app.rules.relays import Relay

VERSIONS_KEPT = 256
LOOK_AGAIN = timedelta(minutes=15)

log = logging.getLogger("nurture.deliver")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A letter that may go as far as its gates say. With a `signer` it is signed first, without the headers `unsigned`."""

    ready: Ready
    letter: Letter
    ages: Ages
    signer: Signer | None = None
    unsigned: frozenset[str] = frozenset()


class Preparer:
    """Makes letters of claims: `gather` reads what is known of many by a few statements, `make` decides and writes one.

    Keeps compiled templates, opened keys and the number of partitions; `links` and `settings` are set by the run
    that uses it. Each method belongs to one thread at a time.
    """

    def __init__(self, partitions: int):
        self.partitions = partitions
        self.links: Links | None = None
        self.settings: Settings | None = None
        self.signers = Signers()
        self.composer = Composer()
        self._templates: dict[int, dict[tuple[str, str], Compiled]] = {}

    def gather(self, conn: Connection, claimed: Sequence[Row], now: datetime, *, reserving: bool) -> Facts:
        """What the gates and the templates need to know of these messages; `reserving`, in the transaction of the claim and under its
        lock, with the places that those take which may go. Raises NotFound when nothing is published."""
        book = publish.including(conn, publish.book(conn), {row.version_id for row in claimed})
        self._load_templates(conn, {row.version_id for row in claimed})
        self.signers.refresh(conn, self.settings)
        facts = Facts(conn, book, claimed, self._metrics(book, claimed), now, reserving)
        if reserving:
            self._reserve(conn, facts, claimed, now)
        return facts

    def _reserve(self, conn: Connection, facts: Facts, claimed: Sequence[Row], now: datetime) -> None:
        """Gives places in the order of the claims, as far as the gates are open and the mail can be written: what is skipped for a hole
        takes nothing from those that come after it."""
        for row in claimed:
            account, enrollment, contact = facts.of(row)
            if account is None or enrollment is None or contact is None or row.expires_at <= now:
                facts.places.leave(row)
                continue
            version = facts.book.versions[row.version_id]
            node, asked = version.nodes[row.step_id], facts.asked_at(contact.person, row.id)
            shut = consent.gate(facts.book, account, enrollment, version, node, contact, now, asked)
            if shut is not None or not facts.places.take(row, account, contact, enrollment):
                facts.places.leave(row)
                continue
            if (hole := self._hole(facts, row, account, enrollment, contact, now)) is not None:
                facts.holes[row.id] = hole
                facts.places.leave(row)
                continue
            if row.kind == "survey" and not enrollment.shadow:
                facts.surveys.setdefault(contact.person, {})[row.id] = now
        facts.places.write(conn)

    def _hole(self, facts: Facts, row: Row, account: Account, enrollment: Enrollment, contact: Contact, now: datetime) -> RenderSkip | None:
        """Why the mail cannot be written, where the contact's values are to blame. Anything else `make` finds as well, and tells."""
        scope = Scope(account, now, contact, enrollment.entry, enrollment, enrollment.position.get("response"))
        try:
            self._render(facts, row, scope, nowhere(self.links.base_url))
        except RenderSkip as skip:
            return skip
        except Exception:
            log.debug("message %s cannot be rendered", row.id, exc_info=True)
        return None

    def make(self, facts: Facts, row: Row, now: datetime, service: Relay | None = None) -> Prepared | Outcome:
        """The letter, if it may go now by what was known when `facts` were read; else the outcome with its reason. No I/O.

        `service` is the email service behind the relay that carries it, if that is known.

        A message that makes the code raise is tried again later like one that the relay deferred (invariant 12).
        """
        try:
            return self._one(facts.book, facts, row, now, service)
        except Exception as error:
            log.exception("message %s could not be prepared", row.id)
            return not_prepared(row, error, now)

    def _one(self, book: Book, facts: Facts, row: Row, now: datetime, service: Relay | None) -> Prepared | Outcome:
        version = book.versions[row.version_id]
        # What a pause holds up does not expire: whoever ends the pause says what becomes of it.
        if row.expires_at <= now and not _paused(book, version.key):
            gate, reason = consent.why_expired(row.reason)
            return _outcome(row, "skipped", reason, now, gate, {"expires_at": row.expires_at.isoformat()})
        account, enrollment, contact = facts.of(row)
        if account is None or enrollment is None:
            return _outcome(row, "skipped", "enrollment_ended", now, "enrollment")
        node = version.nodes[row.step_id]
        if contact is None:
            return _outcome(row, "skipped", "not_a_member", now, "recipient")
        shut = consent.gate(book, account, enrollment, version, node, contact, now, facts.asked_at(contact.person, row.id))
        if shut is not None:
            return _shut(row, shut, now)
        if (no := facts.places.refused.get(row.id)) is not None:
            return replace(_shut(row, no, now), filled_by=no.filled_by)
        if (hole := facts.holes.get(row.id)) is not None:
            return _outcome(row, "skipped", hole.reason, now, "render", hole.evidence)
        if row.id not in facts.places.held and facts.places.needed(row, contact.person):
            # Places were not given, or the gates were shut a moment ago, when they were: the next claim asks for one.
            return _outcome(row, "due", row.reason, now, "send", due_at=now)
        try:
            made = self._letter(book, facts, row, account, enrollment, version, node, contact, now, service)
        except RenderSkip as skip:
            return _outcome(row, "skipped", skip.reason, now, "render", skip.evidence)
        if isinstance(made, Outcome):
            facts.surveys.get(contact.person, {}).pop(row.id, None)
        if enrollment.shadow:
            return _outcome(row, "shadow", "shadow", now, "campaign")
        if enrollment.held_out:
            return _outcome(row, "ghosted", "held_out", now, "holdout")
        return made

    def _letter(
        self,
        book: Book,
        facts: Facts,
        row: Row,
        account: Account,
        enrollment: Enrollment,
        version: Version,
        node: Node,
        contact: Contact,
        now: datetime,
        service: Relay | None,
    ) -> Prepared | Outcome:
        lifecycle, links, message_id = book.lifecycle, self.links, row.id
        sender = mail_from(lifecycle.sender_of(version.campaign.sender), account)
        scope = Scope(account, now, contact, enrollment.entry, enrollment, enrollment.position.get("response"))
        transactional = row.topic == TRANSACTIONAL
        unsubscribe = links.unsubscribe(message_id)
        asked = _asked(version, node, enrollment, row, contact)
        opens, clicks = facts.may_track(contact, transactional)
        mail, kept = self._render(
            facts,
            row,
            scope,
            Addresses(
                unsubscribe=unsubscribe,
                preferences=links.preferences(message_id),
                view=links.view(message_id),
                pixel=links.open(message_id) if opens else None,
                clicks=(lambda number: links.click(message_id, number)) if clicks else None,
                privacy=f"{links.preferences(message_id)}#privacy" if opens or clicks else None,
                score=(lambda score: links.survey(asked, score)) if asked else None,
                honeypot=links.honeypot(message_id) if clicks else None,
            ),
        )
        address = mime.address(sender.email, "From")
        domain = address.rpartition("@")[2].lower()
        if problem := self.signers.shut.get(domain):
            # Unsigned it would be refused, or worse, believed to be forged.
            until = (now + LOOK_AGAIN).isoformat()
            return _shut(row, Refusal("send", "wait", "sealed_key", {"problem": problem, "until": until}), now)
        header = row.message_header or f"<{message_id.hex}@{domain}>"
        topic = lifecycle.topics.get(row.topic)
        inbound = self.settings.inbound_domain
        token = links.short_token(message_id)
        answers = sender.reply_to
        if inbound:
            # Whoever answers reaches people first, and us as well: an answer is news of the account.
            answers = (sender.reply_to or address, links.mailbox(message_id, "reply", inbound))
        data = assemble(
            mail,
            sender=(sender.name, sender.email),
            reply_to=answers,
            to=(" ".join(name for name in (contact.first_name, contact.last_name) if name), contact.address),
            message_header=header,
            date=now,
            unsubscribe_url=None if transactional else unsubscribe,
            unsubscribe_mailto=f"mailto:{links.mailbox(message_id, 'unsubscribe', inbound)}?subject=unsubscribe" if inbound else None,
            list_id=f"{topic.name if topic else row.topic} <{row.topic.replace('_', '-')}.{domain}>",
            feedback_id=f"{version.key.replace('/', '.')}:{version.number}:{row.kind}:{domain.replace('.', '-')}",
            token=token,
            transactional=transactional,
            metadata=service and (service.header, service.value(token)),
        )
        envelope = links.mailbox(message_id, "bounce", inbound) if inbound else address
        letter = Letter(message_id, envelope, mime.address(contact.address, "To"), data, plain=True)
        ready = Ready(row, contact.person, header, mail.subject, kept, mail.links)
        ages = ages_of(row.topic, lifecycle.sending)
        return Prepared(ready, letter, ages, self.signers.of.get(domain), service.unsigned if service else frozenset())

    def _render(self, facts: Facts, row: Row, scope: Scope, addresses: Addresses) -> tuple[Mail, dict[str, Any]]:
        """The mail with the values it was written with. Raises RenderSkip."""
        compiled, key = self._template(row, scope.contact.locale)
        kept = values(scope, compiled.reads, facts.book.schema)
        reader = why(facts.book.lifecycle.brand.name, scope.account)
        return self.composer.render(key, compiled, kept, addresses, facts.brand, reader), kept

    def _template(self, row: Row, locale: str | None) -> tuple[Compiled, tuple[int, str, str]]:
        """The step's template in the contact's language, or in the default one."""
        found = self._templates[row.version_id]
        for name in locales(locale):
            if compiled := found.get((row.step_id, name)):
                return compiled, (row.version_id, row.step_id, name)
        raise RenderSkip("bad_template", {"problems": [f"step {row.step_id} has no template"]})

    def _load_templates(self, conn: Connection, versions: set[int]) -> None:
        missing = versions - self._templates.keys()
        if not missing:
            return
        if len(self._templates) + len(missing) > VERSIONS_KEPT:
            self._templates.clear()
            missing = versions
        self._templates.update({version: {} for version in missing})
        for row in conn.execute(select(template).where(template.c.version_id.in_(missing))):
            links = tuple(Link(link["url"], link["label"], link["track"]) for link in row.links)
            compiled = Compiled(row.subject, row.html, row.text, links, frozenset(row.reads))
            self._templates[row.version_id][row.step_id, row.locale] = compiled

    def _metrics(self, book: Book, claimed: Sequence[Row]) -> set[str]:
        """The usage metrics that the gates and the templates of these messages read."""
        found = set()
        for version_id in {row.version_id for row in claimed}:
            version = book.versions[version_id]
            conditions = (version.exit_when, version.goal_when, version.audience)
            roots = {root for condition in conditions if condition for root in condition.roots}
            found.update(root.split(".")[1] for root in roots if root.startswith("usage."))
        for version_id, step_id in {(row.version_id, row.step_id) for row in claimed}:
            for (step, _), compiled in self._templates[version_id].items():
                if step == step_id:
                    found.update(path.split(".")[1] for path in compiled.reads if path.startswith("usage."))
        return found


class Facts:
    """What was known of everybody in a batch at `at`, a reading of the monotonic clock in seconds."""

    def __init__(self, conn: Connection, book: Book, claimed: Sequence[Row], metrics: Iterable[str], now: datetime, reserving: bool):
        self.book, self.at = book, time.monotonic()
        # What is sent again after an unknown outcome goes on behalf of an enrollment that may have come to its end meanwhile.
        ended = {row.enrollment_id for row in claimed if row.resends}
        found = states.load(conn, ids={row.account_id for row in claimed}, acting=True, metrics=metrics, now=now, finished=ended)
        self.brand: Mapping[str, str] = book.lifecycle.brand.model_dump()
        self.accounts = {account.id: account for account in found.values()}
        self.enrollments = {one.id: one for account in found.values() for one in account.enrollments}
        self.contacts = {(account.id, one.id): one for account in found.values() for one in account.contacts.values()}
        self.persons = {one.person for row in claimed if (one := self.contacts.get((row.account_id, row.contact_id))) and one.person}
        self.said: dict[tuple[str, str], bool] = {
            (person, purpose): granted for person, purpose, granted in conn.exec_driver_sql(_SAID, {"persons": list(self.persons)})
        }
        self.holes: dict[UUID, RenderSkip] = {}  # what cannot be written
        self.places = Places(conn, book, self.persons, self.accounts, now, reserving)
        self.surveys: dict[str | None, dict[UUID, datetime]] = {}  # by person: what they were asked, or are about to be
        if any(row.kind == "survey" for row in claimed):
            since = now - book.lifecycle.survey.quarantine
            for person, message_id, at in conn.exec_driver_sql(_SURVEYS, {"persons": list(self.persons), "since": since}):
                self.surveys.setdefault(person, {})[message_id] = at

    def may_track(self, contact: Contact, transactional: bool) -> tuple[bool, bool]:
        """Whether the mail may carry a pixel, and links by way of us (P-01, P-07, T-05, T-16)."""
        rules = self.book.lifecycle.tracking
        if transactional and not rules.transactional:
            return False, False
        country = tracking.country_of(contact.traits.get("country"), contact.locale)
        opens = tracking.opens_kept(rules, country, self.said.get((contact.person, OPEN_TRACKING)))
        return opens != tracking.NOTHING, tracking.clicks_kept(rules, self.said.get((contact.person, CLICK_TRACKING))) != tracking.NOTHING

    def of(self, row: Row) -> tuple[Account | None, Enrollment | None, Contact | None]:
        """Whom the message is about."""
        contact = self.contacts.get((row.account_id, row.contact_id))
        return self.accounts.get(row.account_id), self.enrollments.get(row.enrollment_id), contact

    def asked_at(self, person: str | None, message_id: UUID) -> datetime | None:
        """When the person was last asked something by another message than this one."""
        return max((at for ident, at in self.surveys.get(person, {}).items() if ident != message_id), default=None)


# What counts about tracking is the last word that was said about it (T-05, T-16).
_SAID = """
select distinct on (person, purpose) person, purpose, granted from consent
where person = any(%(persons)s) and purpose in ('open_tracking', 'click_tracking') order by person, purpose, at desc, id desc"""
_SURVEYS = """
select c.person, m.id, coalesce(m.settled_at, greatest(m.dot_at, r.at)) from contact c join message m on m.contact_id = c.id
left join reservation r on r.message_id = m.id
where c.person = any(%(persons)s) and m.kind = 'survey' and coalesce(m.settled_at, greatest(m.dot_at, r.at)) > %(since)s
  and (m.state in ('in_dot', 'sent', 'unknown', 'ghosted') or (m.state in ('due', 'claimed') and not r.shadow))"""


def _shut(row: Row, decision: Decision | Refusal, now: datetime) -> Outcome:
    """A gate's no skips the message, its not yet makes it due at the time it says, as long as that is before the message expires."""
    if decision.verdict == "no":
        return _outcome(row, "skipped", decision.reason, now, decision.gate, decision.evidence)
    until = decision.evidence.get("until")
    again = datetime.fromisoformat(until) if until else now + LOOK_AGAIN
    if decision.reason == "campaign_paused":
        return _outcome(row, "due", decision.reason, now, decision.gate, decision.evidence, again)
    # Not beyond the end: whatever still waits then is looked at once more, and skipped as expired.
    return _outcome(row, "due", decision.reason, now, decision.gate, decision.evidence, min(max(again, now), row.expires_at))


def not_prepared(row: Row, error: Exception, now: datetime) -> Outcome:
    """A fault of our own: the message is tried again later."""
    problem = {"problem": f"{type(error).__name__}: {error}"[:300]}
    return _outcome(row, "due", "render_failed", now, "render", problem, retry_at(row.id, 1, now))


def _paused(book: Book, key: str) -> bool:
    standing = book.standings.get(key)
    return standing is not None and standing.mode == "paused"


def _outcome(
    row: Row, state: str, reason: str, now: datetime, gate: str, evidence: Mapping | None = None, due_at: datetime | None = None
) -> Outcome:
    return Outcome(row, Ending(state, reason, due_at=due_at), now, gate=gate, evidence=evidence or {})


def mail_from(sender: Sender, account: Account) -> Sender:
    """Whom mail comes from: where the sender says so, the CSM who owns the account, who also gets the answers. Their own address is
    used only at the sender's domain, for which the mail is signed (DMARC would fail for another)."""
    if not sender.owner or not account.owner_email or normalise(account.owner_email) is None:
        return sender
    same = account.owner_email.rpartition("@")[2].lower() == sender.email.rpartition("@")[2].lower()
    return sender.model_copy(
        update={
            "name": account.owner_name or sender.name,
            "email": account.owner_email if same and account.owner_email.isascii() else sender.email,
            "reply_to": account.owner_email,
        }
    )


def _asked(version: Version, node: Node, enrollment: Enrollment, row: Row, contact: Contact) -> UUID | None:
    """The message whose question the mail's score buttons answer: its own, or the one that it reminds of."""
    if node.kind == "survey":
        return row.id
    original = version.nodes.get(getattr(node.step, "reminds", None) or "")
    if original is None or original.kind != "survey":
        return None
    occurrence = enrollment.position.get("got", {}).get(original.id, {}).get(contact.key, 1)
    return steps.message_id(row.enrollment_id, original.id, occurrence, contact.key)


def why(brand: str, account: Account) -> str:
    return (
        f"You get this email because you use {brand} at {account.name}." if account.name else f"You get this email because you use {brand}."
    )
