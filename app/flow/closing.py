"""Addresses that must not be written to any more: by wish, by complaint, or because nobody is there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from app.db import insert_rows
from app.models import suppression
from app.rules.reports import Sighting, gone

LOOKS_BACK = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Closing:
    """Mail that a person must not get any more. `scope` is a topic or `all` for what they chose themselves; bounced, complained or manual
    is every mail, transactional too. `evidence` shows what for."""

    person: str
    scope: str
    reason: str
    evidence: Mapping[str, Any]


def close(conn: Connection, closings: Iterable[Closing], now: datetime) -> list[Any]:
    """Suppresses; returns rows (id, person, scope) for those that were open, the others change nothing.

    One statement, in an order in which two of them cannot wait for each other in a circle.
    """
    rows = {(one.person, one.scope): one for one in closings}
    return insert_rows(
        conn,
        suppression,
        [
            {"person": one.person, "scope": one.scope, "reason": one.reason, "evidence": one.evidence, "created_at": now}
            for _, one in sorted(rows.items())
        ],
        conflict="(person, scope) where lifted_at is null do nothing",
        returning=("id", "person", "scope"),
    )


def give_up(conn: Connection, people: Mapping[str, Collection[int]], now: datetime) -> list[Any]:
    """Suppresses those of `people` whose host was missing twice, or who had nothing but soft results for too long (3.2). With each go the
    ids of contacts that have, or had, the address.

    Looks at everything known of the last year since the address was last opened again by hand, whatever the order in which it became
    known; returns the rows that `close` does.
    """
    if not people:
        return []
    known: dict[str, list[Sighting]] = {}
    contacts = sorted({contact for ids in people.values() for contact in ids})
    about = {"people": sorted(people), "contacts": contacts, "since": now - LOOKS_BACK}
    for person, message, at, kind in conn.exec_driver_sql(_SIGHTINGS, about):
        known.setdefault(person, []).append(Sighting(message, at, kind))
    verdicts = {person: verdict for person, seen in known.items() if (verdict := gone(seen))}
    return close(
        conn,
        (
            Closing(person, "bounced", reason, {"messages": [str(one) for one in messages]})
            for person, (reason, messages) in verdicts.items()
        ),
        now,
    )


# What the relay put off counts once the message was given up for it; what the receiver only delays does not (I-03). A delivery says
# nothing good where the same message came back, in whatever order the two became known (W-03).
_SIGHTINGS = """
with told as (
    select m.person, d.message_id, d.at, d.kind, d.detail ->> 'sort' as sort, m.state, m.reason
      from message m join delivery_event d on d.message_id = m.id
     where m.contact_id = any(array(select unnest(%(contacts)s::bigint[]) union select id from contact where person = any(%(people)s)))
       and m.person = any(%(people)s) and m.created_at >= %(since)s
       and d.at > coalesce((select max(lifted_at) from suppression s where s.person = m.person and s.scope = 'bounced'), '-infinity')
)
select person, message_id, at,
       case when kind in ('delivered', 'clicked', 'replied') then 'good' when sort = 'host' then 'host' else 'soft' end
  from told t
 where (kind in ('bounced', 'rejected') and sort in ('host', 'soft', 'full'))
    or (kind = 'deferred' and sort in ('soft', 'full') and state = 'skipped' and reason = 'expired')
    or (kind in ('clicked', 'replied'))
    or (kind = 'delivered' and not exists (select from told b where b.message_id = t.message_id and b.kind = 'bounced'))"""
