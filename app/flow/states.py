"""Reads what is known of accounts into the facts that rules take: one query per table for any number of accounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from app.rules.facts import Account, Contact, Enrollment, Health, Milestone, Past, Usage

USAGE_KEPT = timedelta(days=400)  # how far back windows of usage may look


def load(
    conn: Connection,
    *,
    keys: Iterable[str] | None = None,
    ids: Iterable[int] | None = None,
    acting: bool = False,
    metrics: Iterable[str] = (),
    now: datetime | None = None,
    finished: Iterable[UUID] = (),
) -> dict[str, Account]:
    """The accounts with these external ids, or these row ids, by external id, with milestones and active enrollments; those named by
    `finished` as well, as if they were active, if they went through all steps.

    `acting` loads contacts and usage of `metrics` as well (see `complete`). `now` decides which holds still hold; without it none is
    looked for. Unknown accounts are absent.
    """
    where, wanted = ("external_id", list(keys)) if keys is not None else ("id", list(ids or ()))
    rows = conn.exec_driver_sql(_ACCOUNTS.format(where=where), {"wanted": wanted, "now": now}).all()
    known = [row[0] for row in rows]
    enrollments: dict[int, list[Enrollment]] = {}
    found = conn.exec_driver_sql(_ENROLLMENTS, {"ids": known}).all()
    if finished := list(finished):
        found += conn.exec_driver_sql(_FINISHED, {"finished": finished}).all()
    for account_id, *values in found:
        enrollments.setdefault(account_id, []).append(Enrollment(*values))
    rest = _rest(conn, known, metrics, now, False) if acting else {}
    return {row[1]: _account(row, enrollments=tuple(enrollments.get(row[0], ())), **rest.get(row[0], {})) for row in rows}


def complete(
    conn: Connection,
    accounts: Mapping[str, Account],
    metrics: Iterable[str],
    now: datetime,
    *,
    entering: bool = False,
    lock: bool = False,
) -> dict[str, Account]:
    """The same accounts with contacts and usage: what is needed where something may be decided. `entering` loads the enrollments that
    have ended, too: whoever may enter a campaign may have been in it before. `lock` keeps others from changing the contacts."""
    if lock:
        conn.exec_driver_sql(_LOCK_MEMBERS, {"ids": [account.id for account in accounts.values()]})
    rest = _rest(conn, [account.id for account in accounts.values()], metrics, now, entering)
    return {key: replace(account, **rest[account.id]) for key, account in accounts.items()}


def _rest(conn: Connection, ids: Sequence[int], metrics: Iterable[str], now: datetime, entering: bool) -> dict[int, dict[str, Any]]:
    """By account: contacts, usage of all `metrics`, and with `entering` the enrollments that have ended."""
    none = {metric: Usage() for metric in metrics}
    rest: dict[int, dict[str, Any]] = {ident: {"contacts": {}, "usage": none} for ident in ids}
    for account_id, *values in conn.exec_driver_sql(_CONTACTS, {"ids": ids, "now": now}).all():
        contact = _contact(values)
        rest[account_id]["contacts"][contact.key] = contact
    if none:
        days: dict[tuple[int, str], list[tuple[int, int]]] = {}
        lasts: dict[tuple[int, str], datetime] = {}
        for account_id, metric, day, count, last in conn.exec_driver_sql(_USAGE, {"ids": ids, "since": now.date() - USAGE_KEPT}).all():
            days.setdefault((account_id, metric), []).append((day.toordinal(), count))
            lasts[account_id, metric] = max(lasts.get((account_id, metric), last), last)
        people: dict[tuple[int, str], list[tuple[int, str]]] = {}
        for account_id, metric, day, contact in conn.exec_driver_sql(_PEOPLE, {"ids": ids, "since": now.date() - USAGE_KEPT}).all():
            people.setdefault((account_id, metric), []).append((day.toordinal(), contact))
        for (account_id, metric), counts in days.items():
            usage = Usage(tuple(counts), lasts[account_id, metric], tuple(people.get((account_id, metric), ())))
            rest[account_id]["usage"] = {**rest[account_id]["usage"], metric: usage}
    if entering:
        for account_id, *values in conn.exec_driver_sql(_PAST, {"ids": ids}).all():
            rest[account_id]["past"] = (*rest[account_id].get("past", ()), Past(*values))
    return rest


def load_contacts(conn: Connection, keys: Sequence[str], now: datetime, *, lock: bool = False) -> dict[str, Contact]:
    """The contacts with these external ids, as strangers: without a membership. `lock` keeps others from changing them."""
    if lock:
        conn.exec_driver_sql("select id from contact where external_id = any(%(keys)s) order by id for no key update", {"keys": list(keys)})
    rows = conn.exec_driver_sql(_STRANGERS, {"keys": list(keys), "now": now})
    return {contact.key: contact for contact in map(_contact, rows)}


def _account(row: Sequence, **more: Any) -> Account:
    (ident, key, name, touch, timezone, owner_name, owner_email, owner_zone, seats, since, renewal, revenue, traits, clocks) = row[:14]
    stage, entered, score, band, assessed, created, candidates, watched, due, milestones, held = row[14:]
    return Account(
        key=key,
        id=ident,
        name=name,
        touch=touch,
        timezone=timezone,
        owner_name=owner_name,
        owner_email=owner_email,
        owner_timezone=owner_zone,
        seats=seats,
        customer_since=since,
        renewal_date=renewal,
        revenue=revenue,
        traits=traits,
        clocks=clocks,
        stage=stage,
        stage_entered_at=entered,
        health=_NO_HEALTH if assessed is None else Health(score, band, assessed),
        created_at=created,
        candidates=tuple(candidates),
        watched=watched,
        due_at=due,
        milestones={name: Milestone(_moment(reached), _moment(overdue)) for name, reached, overdue in milestones or ()},
        held=held,
        **more,
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _contact(row: Sequence) -> Contact:
    ident, key, address, person, first, last, timezone, locale, traits, clocks, seen, roles, joined, suppressed, held = row
    return Contact(
        key=key,
        id=ident,
        address=address,
        person=person,
        first_name=first,
        last_name=last,
        roles=frozenset(roles),
        timezone=timezone,
        locale=locale,
        traits=traits,
        joined_at=joined,
        last_seen_at=seen,
        suppressed=frozenset(suppressed),
        held=held,
        clocks=clocks,
    )


_NO_HEALTH = Health()
_ACCOUNTS = """
select id, external_id, name, touch, timezone, owner_name, owner_email, owner_timezone, seats, customer_since, renewal_date, revenue,
       traits, clocks, stage, stage_entered_at, health_score, health_band, health_at, created_at, candidates, watched, due_at,
       (select jsonb_agg(jsonb_build_array(m.name, m.reached_at, m.overdue_at)) from milestone m where m.account_id = account.id),
       (select h.reason from hold h
        where h.account_id = account.id and h.released_at is null and (h.until is null or h.until > %(now)s) limit 1)
from account where {where} = any(%(wanted)s)"""
_ENROLLMENT = """
select e.account_id, e.id, c.key, e.version_id, p.external_id, e.shadow, e.held_out, e.step_id, e.occurrence, e.position, e.entry,
       e.entered_at, e.due_at, e.goal_at, {state}, e.ended_at, e.end_reason
from enrollment e join campaign c on c.id = e.campaign_id left join contact p on p.id = e.contact_id"""
_ENROLLMENTS = f"""{_ENROLLMENT.format(state="e.state")}
where e.account_id = any(%(ids)s) and e.state = 'active' order by e.entered_at, e.id"""
_FINISHED = f"""{_ENROLLMENT.format(state="'active'")}
where e.id = any(%(finished)s) and e.state = 'finished'"""
_PERSON = """
       c.id, c.external_id, c.address, c.person, c.first_name, c.last_name, c.timezone, c.locale, c.traits, c.clocks, c.last_seen_at"""
_CLOSED = """
       array(select s.scope from suppression s where s.person = c.person and s.lifted_at is null),
       coalesce((select h.reason from hold h
        where h.contact_id = c.id and h.released_at is null and (h.until is null or h.until > %(now)s) limit 1),
       (select h.reason from hold h
        where h.person = c.person and h.released_at is null and (h.until is null or h.until > %(now)s) limit 1))"""
_CONTACTS = f"""
select m.account_id, {_PERSON}, m.roles, m.joined_at, {_CLOSED}
from membership m join contact c on c.id = m.contact_id where m.account_id = any(%(ids)s)"""
_STRANGERS = f"select {_PERSON}, '{{}}'::text[], null::timestamptz, {_CLOSED} from contact c where c.external_id = any(%(keys)s)"
_USAGE = """
select account_id, metric, day, count, last_at from usage_day where account_id = any(%(ids)s) and day > %(since)s order by day desc"""
# Who was counted under a former id is one person with who came under the present one, in whatever order partitions heard of it.
_PEOPLE = """
select u.account_id, u.metric, u.day, coalesce(k.contact_key, u.contact_key)
from usage_person u left join contact_alias k on k.previous_key = u.contact_key
where u.account_id = any(%(ids)s) and u.day > %(since)s"""
_LOCK_MEMBERS = """
select c.id from contact c where c.id = any(array(select contact_id from membership where account_id = any(%(ids)s)))
order by c.id for no key update"""
_PAST = """
select e.account_id, c.key, p.external_id, e.shadow, max(e.ended_at)
from enrollment e join campaign c on c.id = e.campaign_id left join contact p on p.id = e.contact_id
where e.account_id = any(%(ids)s) and e.state <> 'active' group by 1, 2, 3, 4"""
