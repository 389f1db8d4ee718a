"""The consent log (P-05): what people, and staff in their name, said about mail and tracking; who, when, how, and by which words.

Append-only. Lines are added and read here and nowhere else; the database itself refuses changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, text

from app.db import insert_rows
from app.models import consent, wording

OPEN_TRACKING, CLICK_TRACKING, PAUSE = "open_tracking", "click_tracking", "pause"


@dataclass(frozen=True, slots=True)
class Said:
    """How something was said. `method` is one_click, page, mailto, operator, import or api; `source` the page with the version of its form,
    or the file; `actor` contact, or who of the staff; `network` is truncated already. `words` are what the person was shown, by purpose, in
    the language `locale`."""

    method: str
    actor: str
    source: str | None = None
    network: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    locale: str = ""


def note(conn: Connection, people: Iterable[str], purposes: Mapping[str, bool], now: datetime, said: Said) -> None:
    """Adds a line for each of the people and purposes: a topic, `all`, pause, open_tracking or click_tracking."""
    shown = {purpose: said.words[purpose] for purpose in purposes if said.words.get(purpose)}
    kept = {_hash(said.locale, words): words for words in shown.values()}
    words = [{"hash": one, "locale": said.locale, "text": text_, "first_at": now} for one, text_ in kept.items()]
    insert_rows(conn, wording, words, conflict="(hash) do nothing")
    rows = [
        {
            "person": person,
            "purpose": purpose,
            "granted": granted,
            "at": now,
            "method": said.method,
            "source": said.source,
            "wording": _hash(said.locale, shown[purpose]) if purpose in shown else None,
            "network": said.network,
            "actor": said.actor,
            "evidence": dict(said.evidence),
        }
        for person in people
        for purpose, granted in purposes.items()
    ]
    add(conn, rows)


def add(conn: Connection, lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines as they are: rows of `consent`, whose times may differ."""
    insert_rows(conn, consent, lines)


def last_words(conn: Connection, people: Iterable[str], purposes: Iterable[str]) -> dict[str, bool]:
    """By purpose, what was said last; where several people are one reader, a refusal of any counts. Unsaid purposes are missing."""
    rows = conn.execute(_LAST, {"people": list(people), "purposes": list(purposes)})
    return {row.purpose: row.granted for row in rows}


def read(conn: Connection, people: Iterable[str]) -> list[dict[str, Any]]:
    """The log of these people, oldest first, each line with the words that were shown."""
    rows = conn.execute(_READ, {"people": list(people)})
    return [dict(row._mapping) for row in rows]


def people_of(conn: Connection, contact_id: int) -> list[str]:
    """The addresses of a contact, normalised: the present one, then those that its messages went to."""
    return list(conn.execute(_PEOPLE, {"contact": contact_id}).scalars())


def _hash(locale: str, words: str) -> str:
    return sha256(f"{locale}\x1f{words}".encode()).hexdigest()[:16]


_LAST = text("""
    select purpose, bool_and(granted) as granted from (
      select distinct on (person, purpose) person, purpose, granted from consent
       where person = any(:people) and purpose = any(:purposes) order by person, purpose, at desc, id desc) as latest
     group by purpose
""")
_READ = text("""
    select c.person, c.purpose, c.granted, c.at, c.method, c.source, c.wording, w.locale, w.text as words, c.network, c.actor, c.evidence
      from consent c left join wording w on w.hash = c.wording
     where c.person = any(:people) order by c.at, c.id limit 10000
""")
_PEOPLE = text("""
    select person from (
      select person, 0 as place from contact where id = :contact and person is not null
      union all select person, 1 from message where contact_id = :contact and person is not null) p
    group by person order by min(place), person
""")
