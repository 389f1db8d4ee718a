"""Writes what followed from a batch of occurrences: one statement per table, whatever the batch holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Connection, Engine

from app.db import insert_rows, update_rows
from app.flow import wording
from app.flow.ingest import key_of
from app.models import account as account_table
from app.models import contact as contact_table
from app.models import decision, effect, enrollment, membership, message, milestone, stage_history, task, usage_day, usage_person
from app.rules.book import Book
from app.rules.facts import CLICK_WITHDRAWN, Account, Contact, Decision, Enrollment, Event, NewEffect, NewMessage, Occurrence, Reaction

ASSESS_SOON = timedelta(seconds=5)  # after a milestone, a stage, new traits
ASSESS_LATER = timedelta(minutes=10)  # after mere usage
SEEN_EVERY = timedelta(hours=1)
_TELLING = (
    "name",
    "touch",
    "timezone",
    "owner_name",
    "owner_email",
    "owner_timezone",
    "seats",
    "customer_since",
    "renewal_date",
    "revenue",
)


@dataclass(slots=True)
class Batch:
    """One transaction's worth: accounts as they were and as they are, and what is to be written besides."""

    book: Book
    partition: int
    now: datetime
    before: dict[str, Account] = field(default_factory=dict)
    after: dict[str, Account] = field(default_factory=dict)
    strangers: dict[str, Contact] = field(default_factory=dict)
    changed_strangers: dict[str, Contact] = field(default_factory=dict)
    aliases: list[Event] = field(default_factory=list)
    ambiguous: list[tuple[Event, int]] = field(default_factory=list)
    processed: list[int] = field(default_factory=list)
    enrollments: dict[UUID, tuple[str, Enrollment]] = field(default_factory=dict)
    messages: list[tuple[str, NewMessage]] = field(default_factory=list)
    effects: list[tuple[Account, NewEffect]] = field(default_factory=list)
    decisions: list[tuple[str, Decision]] = field(default_factory=list)
    derived: list[tuple[str, Event]] = field(default_factory=list)
    usage: dict[tuple[str, str, Any], list] = field(default_factory=dict)
    people: set[tuple[str, str, Any, str]] = field(default_factory=set)
    stages: list[tuple[str, str, datetime, str]] = field(default_factory=list)
    seen: dict[str, datetime] = field(default_factory=dict)
    seen_contacts: dict[str, datetime] = field(default_factory=dict)
    unborn: set[str] = field(default_factory=set)  # contacts that a later event of the batch is the first to tell of
    noted: dict[str, datetime] = field(default_factory=dict)

    def add(self, key: str, occurrence: Occurrence, reaction: Reaction) -> None:
        """What the rules said to one occurrence of the account."""
        if isinstance(occurrence, Event):
            self.seen[key] = occurrence.received_at
            counts = occurrence.kind == "track" and not occurrence.own and occurrence.mark is None
            if counts and occurrence.contact and occurrence.contact not in self.unborn:
                known = self.seen_contacts.get(occurrence.contact, occurrence.occurred_at)
                self.seen_contacts[occurrence.contact] = max(known, occurrence.occurred_at)
            for metric in reaction.usage:
                day = occurrence.occurred_at.astimezone(UTC).date()
                place = (key, metric, day)
                if occurrence.contact and self.book.lifecycle.usage[metric].contacts:
                    self.people.add((*place, occurrence.contact))
                by = -1 if occurrence.own and occurrence.name == CLICK_WITHDRAWN else 1
                if known := self.usage.get(place):
                    known[0] += by
                    known[1] = max(known[1], occurrence.occurred_at)
                else:
                    self.usage[place] = [by, occurrence.occurred_at]
        for one in reaction.enrollments:
            self.enrollments[one.id] = (key, one)
        self.messages += [(key, one) for one in reaction.messages]
        self.effects += [(reaction.account, one) for one in reaction.effects]
        self.decisions += [(key, one) for one in reaction.decisions]
        self.derived += [(key, one) for one in reaction.derived]
        self.stages += [(key, *one) for one in reaction.stages]


def write(conn: Connection, batch: Batch) -> tuple[bool, bool]:
    """Writes everything and deletes the processed events from the pending. Returns whether mail is due now, and alerts or webhooks."""
    ids = {key: account.id for key, account in batch.after.items()}
    contacts = _write_contacts(conn, batch, ids)
    _write_accounts(conn, batch, ids)
    _write_usage(conn, batch, ids)
    _write_enrollments(conn, batch, ids, contacts)
    _write_messages(conn, batch, ids, contacts)
    _write_effects(conn, batch, contacts)
    _write_decisions(conn, batch, ids, contacts)
    _write_derived(conn, batch)
    if batch.processed:
        conn.exec_driver_sql("delete from event_pending where event_id = any(%(ids)s)", {"ids": batch.processed})
    told = any(one.kind != "task" and one.state == "due" for _, one in batch.effects)
    return any(one.due_at <= batch.now for _, one in batch.messages), told


def make_accounts(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Makes accounts that were never heard of: key, partition, and the moment they were."""
    made = [{"external_id": row["key"], "partition": row["partition"], "created_at": row["at"]} for row in rows]
    insert_rows(conn, account_table, made, conflict="do nothing")


def make_contacts(conn: Connection, keys: Mapping[str, datetime]) -> set[str]:
    """Makes contacts that were never told of, in the order of their keys, so that two partitions cannot wait in a circle. What they did
    before is known: they were seen then, whether it comes in the same batch or came days before. Returns those that were made."""
    rows = conn.exec_driver_sql(_NEW_CONTACTS, {"keys": sorted(keys), "times": [keys[key] for key in sorted(keys)]})
    return set(rows.scalars())


def note(engine: Engine, noted: Mapping[str, datetime]) -> None:
    """Has this process remember who was written down as seen. Only after the commit: what was rolled back is written again."""
    _recently_seen.note(str(engine.url), noted)


def _write_contacts(conn: Connection, batch: Batch, ids: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """Contacts and memberships that changed. Returns the row ids of the contacts that decisions may name."""
    rows: dict[str, Contact] = dict(batch.changed_strangers)
    members = []
    contacts: dict[str, int] = {key: contact.id for key, contact in batch.strangers.items()}
    for key, account in batch.after.items():
        before = batch.before[key].contacts
        contacts.update((one.key, one.id) for one in account.contacts.values())
        if account.contacts is before:
            continue
        for one in account.contacts.values():
            known = before.get(one.key)
            if known is one:
                continue
            if known is None or known.clocks != one.clocks:
                rows[one.key] = batch.strangers.get(one.key, one)
            if one.joined_at is not None and (known is None or known.joined_at is None or known.roles != one.roles):
                members.append({"account_id": ids[key], "contact_id": one.id, "roles": sorted(one.roles), "joined_at": one.joined_at})
    fields = ("id", "address", "person", "first_name", "last_name", "timezone", "locale", "traits", "clocks")
    update_rows(conn, contact_table, [{name: getattr(one, name) for name in fields} for one in sorted(rows.values(), key=lambda c: c.id)])
    insert_rows(conn, membership, members, conflict="(account_id, contact_id) do update set roles = excluded.roles")
    if batch.aliases:
        aliases = [{"p": str(one.properties.get("previous_id") or ""), "c": one.contact, "at": one.occurred_at} for one in batch.aliases]
        for former, present in conn.exec_driver_sql(_RENAME, {"rows": to_json(aliases).decode()}):
            if (at := batch.seen_contacts.pop(former, None)) is not None:
                batch.seen_contacts[present] = max(at, batch.seen_contacts.get(present, at))
        conn.exec_driver_sql(_ALIASES, {"rows": to_json(aliases).decode()})
    fresh = _recently_seen.news(str(conn.engine.url), batch.seen_contacts)
    if fresh:
        rows = conn.exec_driver_sql(_SEEN_CONTACTS, {"keys": sorted(fresh), "times": [fresh[key] for key in sorted(fresh)]})
        batch.noted = {key: fresh[key] for (key,) in rows}
    return contacts


class _Seen:
    """Which contacts this process has already written down as seen on which day, so that it writes each once a day. Losing it costs a
    write."""

    LIMIT = 100_000

    def __init__(self) -> None:
        self.days: dict[str, dict[str, int]] = {}

    def news(self, database: str, seen: Mapping[str, datetime]) -> dict[str, datetime]:
        known = self.days.get(database, {})
        return {key: at for key, at in seen.items() if known.get(key, 0) < at.toordinal()}

    def note(self, database: str, seen: Mapping[str, datetime]) -> None:
        known = self.days.setdefault(database, {})
        if len(known) + len(seen) > self.LIMIT:
            known.clear()
        known.update((key, at.toordinal()) for key, at in seen.items())


_recently_seen = _Seen()


def _write_accounts(conn: Connection, batch: Batch, ids: Mapping[str, int]) -> None:
    told, moved, milestones, soon = [], [], [], set()
    for key, account in batch.after.items():
        before = batch.before[key]
        if account is before:
            continue
        if account.clocks != before.clocks:
            told.append({"id": account.id, **{name: getattr(account, name) for name in (*_TELLING, "traits", "clocks")}})
            soon.add(key)
        if (account.stage, account.due_at, account.candidates, account.watched) != (
            before.stage,
            before.due_at,
            before.candidates,
            before.watched,
        ):
            moved.append(
                {
                    "id": account.id,
                    "stage": account.stage,
                    "stage_entered_at": account.stage_entered_at,
                    "due_at": account.due_at,
                    "candidates": list(account.candidates),
                    "watched": dict(account.watched),
                }
            )
        if account.milestones is not before.milestones:
            soon.add(key)
            for name, value in account.milestones.items():
                if before.milestones.get(name) != value:
                    milestones.append(
                        {"account_id": account.id, "name": name, "reached_at": value.reached_at, "overdue_at": value.overdue_at}
                    )
    update_rows(conn, account_table, told)
    update_rows(conn, account_table, moved)
    insert_rows(
        conn,
        milestone,
        milestones,
        conflict="(account_id, name) do update set reached_at = excluded.reached_at, overdue_at = excluded.overdue_at",
    )
    _write_stages(conn, batch, ids)
    if batch.seen:
        seen = sorted(batch.seen)
        values = {
            "ids": [ids[key] for key in seen],
            "times": [batch.seen[key] for key in seen],
            "assess": [batch.now + (ASSESS_SOON if key in soon else ASSESS_LATER) for key in seen],
            "every": SEEN_EVERY,
        }
        conn.exec_driver_sql(_UNASSESSED, values)


def _write_stages(conn: Connection, batch: Batch, ids: Mapping[str, int]) -> None:
    if not batch.stages:
        return
    left: dict[str, datetime] = {}
    rows: list[dict[str, Any]] = []
    latest: dict[str, dict[str, Any]] = {}
    for key, stage, at, why in batch.stages:
        if key in latest:
            latest[key]["left_at"] = at
        else:
            left[key] = at
        latest[key] = {"account_id": ids[key], "stage": stage, "entered_at": at, "left_at": None, "reason": why}
        rows.append(latest[key])
    conn.exec_driver_sql(_LEAVE_STAGES, {"ids": [ids[key] for key in left], "times": list(left.values())})
    insert_rows(conn, stage_history, rows)


def _write_usage(conn: Connection, batch: Batch, ids: Mapping[str, int]) -> None:
    rows = [
        {"account_id": ids[key], "metric": metric, "day": day, "count": count, "last_at": last}
        for (key, metric, day), (count, last) in sorted(batch.usage.items())
    ]
    insert_rows(
        conn,
        usage_day,
        rows,
        conflict="(account_id, metric, day) do update set count = usage_day.count + excluded.count, "
        "last_at = greatest(usage_day.last_at, excluded.last_at)",
    )
    people = [
        {"account_id": ids[key], "metric": metric, "day": day, "contact_key": contact} for key, metric, day, contact in sorted(batch.people)
    ]
    insert_rows(conn, usage_person, people, conflict="do nothing")


def _write_enrollments(conn: Connection, batch: Batch, ids: Mapping[str, int], contacts: Mapping[str, int]) -> None:
    known = {one.id for key in {key for key, _ in batch.enrollments.values()} for one in batch.before[key].enrollments}
    new, changed = [], []
    for key, one in batch.enrollments.values():
        moving = {
            "id": one.id,
            "version_id": one.version,
            "state": one.state,
            "step_id": one.step,
            "occurrence": one.occurrence,
            "position": dict(one.position),
            "due_at": one.due_at,
            "goal_at": one.goal_at,
            "ended_at": one.ended_at,
            "end_reason": one.end_reason,
        }
        if one.id in known:
            changed.append(moving)
            continue
        new.append(
            moving
            | {
                "campaign_id": batch.book.standings[one.campaign].id,
                "account_id": ids[key],
                "contact_id": contacts[one.contact] if one.contact else None,
                "partition": batch.partition,
                "shadow": one.shadow,
                "held_out": one.held_out,
                "entry": dict(one.entry),
                "entered_at": one.entered_at,
            }
        )
    # First those that end: a new one of the same campaign may follow in the same batch.
    update_rows(conn, enrollment, changed)
    insert_rows(conn, enrollment, new)


def _write_messages(conn: Connection, batch: Batch, ids: Mapping[str, int], contacts: Mapping[str, int]) -> None:
    rows = [
        {
            "id": one.id,
            "enrollment_id": one.enrollment,
            "campaign_id": batch.book.standings[one.campaign].id,
            "version_id": one.version,
            "step_id": one.step,
            "occurrence": one.occurrence,
            "account_id": ids[key],
            "contact_id": contacts[one.contact],
            "partition": batch.partition,
            "kind": one.kind,
            "topic": one.topic,
            "priority": one.priority,
            "created_at": one.created_at,
            "due_at": one.due_at,
            "expires_at": one.expires_at,
            "state": one.state,
            "transport": batch.book.transport_of(one.version, one.topic),
        }
        for key, one in batch.messages
    ]
    insert_rows(conn, message, rows, conflict="do nothing")


def _write_effects(conn: Connection, batch: Batch, contacts: Mapping[str, int]) -> None:
    """Alerts and webhooks for whoever sends them, tasks for whoever does them: each once (invariant 3)."""
    effects, tasks = [], []
    for account, one in batch.effects:
        row = {
            "id": one.id,
            "enrollment_id": one.enrollment,
            "campaign_id": batch.book.standings[one.campaign].id,
            "version_id": one.version,
            "step_id": one.step,
            "occurrence": one.occurrence,
            "account_id": account.id,
            "contact_id": contacts.get(one.contact or ""),
            "created_at": one.created_at,
        }
        if one.kind == "task":
            tasks.append(row | wording.task(one, account))
        else:
            payload = wording.payload(one, account, batch.book.versions[one.version].campaign.name)
            reason = "campaign_paused" if one.state == "frozen" else None
            effects.append(row | {"kind": one.kind, "payload": payload, "due_at": one.created_at, "state": one.state, "reason": reason})
    insert_rows(conn, effect, effects, conflict="do nothing")
    insert_rows(conn, task, tasks, conflict="do nothing")


def _write_decisions(conn: Connection, batch: Batch, ids: Mapping[str, int], contacts: Mapping[str, int]) -> None:
    rows = []
    for key, one in batch.decisions:
        standing = batch.book.standings.get(one.campaign or "")
        rows.append(
            {
                "at": one.at,
                "account_id": ids[key],
                "contact_id": contacts.get(one.contact or ""),
                "campaign_id": standing.id if standing else None,
                "version_id": one.version,
                "enrollment_id": one.enrollment,
                "message_id": one.message,
                "step_id": one.step,
                "gate": one.gate,
                "verdict": one.verdict,
                "reason": one.reason,
                "evidence": dict(one.evidence),
            }
        )
    insert_rows(conn, decision, rows)
    if batch.ambiguous:
        conn.exec_driver_sql(
            _AMBIGUOUS,
            {
                "keys": [event.contact for event, _ in batch.ambiguous],
                "times": [event.at for event, _ in batch.ambiguous],
                "evidence": [
                    to_json({"event": event.name, "message_id": event.message_id, "contact": event.contact, "memberships": count}).decode()
                    for event, count in batch.ambiguous
                ],
            },
        )


def _write_derived(conn: Connection, batch: Batch) -> None:
    """The events that followed at once: into the timeline, never before `advance` again. Each once, as all events."""
    if not batch.derived:
        return
    rows = [
        {
            "k": key_of(one.message_id),
            "m": one.message_id,
            "t": one.kind,
            "n": one.name,
            "a": key,
            "c": one.contact,
            "p": dict(one.properties),
            "o": one.occurred_at,
            "r": one.received_at,
            "x": one.mark,
            "d": one.depth,
        }
        for key, one in batch.derived
    ]
    conn.exec_driver_sql(_DERIVED, {"rows": to_json(rows).decode()})


_NEW_CONTACTS = """
insert into contact (external_id, created_at, last_seen_at)
select k, t, (select max(e.occurred_at) from event e where e.contact_key = k and e.received_at <= t and e.kind = 'track'
              and e.account_key is not null and e.source_id <> 0 and e.mark is null)
from unnest(%(keys)s::text[], %(times)s::timestamptz[]) as r(k, t)
where not exists (select 1 from contact c where c.external_id = k) order by k on conflict do nothing returning external_id"""
# Returns whom there is: somebody who is no contact yet is looked for again.
_SEEN_CONTACTS = """
with seen as (
    update contact c set last_seen_at = r.t from unnest(%(keys)s::text[], %(times)s::timestamptz[]) as r(k, t)
    where c.external_id = r.k and (c.last_seen_at is null or c.last_seen_at < date_trunc('day', r.t))
)
select external_id from contact where external_id = any(%(keys)s)"""
_UNASSESSED = """
insert into unassessed as u (account_id, last_event_at, assess_at)
select i, t, s from unnest(%(ids)s::bigint[], %(times)s::timestamptz[], %(assess)s::timestamptz[]) as r(i, t, s) order by i
on conflict (account_id) do update set
    last_event_at = greatest(u.last_event_at, excluded.last_event_at), assess_at = least(u.assess_at, excluded.assess_at)
where u.last_event_at < excluded.last_event_at - %(every)s::interval or u.assess_at > excluded.assess_at"""
_LEAVE_STAGES = """
update stage_history h set left_at = r.t from unnest(%(ids)s::bigint[], %(times)s::timestamptz[]) as r(i, t)
where h.account_id = r.i and h.left_at is null"""
# A contact known by its former id only takes the new one, and its events with it. Where both are contacts already, they stay two, and
# what comes under the former id from now on is the new one's.
_RENAME = """
with renamed as (
    update contact c set external_id = r.c from (
        select distinct on (a.c) a.p, a.c from jsonb_to_recordset(%(rows)s::jsonb) as a(p text, c text)
        join contact former on former.external_id = a.p
        where a.p <> a.c and not exists (select from contact k where k.external_id = a.c) order by a.c, a.p
    ) r where c.external_id = r.p
    returning r.p, r.c
), moved as (
    update event e set contact_key = renamed.c from renamed where e.contact_key = renamed.p
)
select p, c from renamed"""
_ALIASES = """
insert into contact_alias (previous_key, contact_key, at)
select p, c, at from jsonb_to_recordset(%(rows)s::jsonb) as r(p text, c text, at timestamptz)
where p <> '' and c is not null and p <> c on conflict do nothing"""
_AMBIGUOUS = """
insert into decision (at, contact_id, gate, verdict, reason, evidence)
select r.t, c.id, 'trigger', 'no', 'account_ambiguous', r.e::jsonb
from unnest(%(keys)s::text[], %(times)s::timestamptz[], %(evidence)s::text[]) as r(k, t, e) left join contact c on c.external_id = r.k"""
_DERIVED = """
with item as materialized (
    select * from jsonb_to_recordset(%(rows)s::jsonb)
        as r(k uuid, m text, t text, n text, a text, c text, p jsonb, o timestamptz, r timestamptz, x text, d smallint)
), fresh as (
    insert into event_key (source_id, key) select 0, k from item order by k on conflict do nothing returning key
)
insert into event (source_id, message_id, kind, name, account_key, contact_key, properties, occurred_at, received_at, mark, depth)
select 0, m, t, n, a, c, p, o, item.r, x, d from item join fresh on fresh.key = item.k"""
