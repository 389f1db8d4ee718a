"""Everything that is known of a contact or an account, for themselves (P-10): one ZIP of JSON files.

Reads only, one snapshot. Large tables are written row by row, so that the size of the memory does not depend on that of the history.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from pydantic_core import to_json
from sqlalchemy import Connection, text

from app.errors import InputError
from app.flow import consents
from app.flow.reading.accounts import find_account
from app.flow.reading.contacts import find_contact

CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the export: its name, what it is, and the statement that gives its rows."""

    name: str
    what: str
    rows: str


_CONTACT_MESSAGES = "(select id from message where contact_id = any(:contacts) or account_id = any(:accounts))"
_ROWS = "m.contact_id = any(:contacts) or m.account_id = any(:accounts)"
PARTS: tuple[Part, ...] = (
    Part(
        "memberships",
        "who belongs to which account, with the roles",
        """select a.external_id as account, a.name as account_name, c.external_id as contact, m.roles, m.joined_at from membership m
           join account a on a.id = m.account_id join contact c on c.id = m.contact_id
           where m.contact_id = any(:contacts) or m.account_id = any(:accounts) order by m.joined_at, c.id""",
    ),
    Part(
        "events",
        "what was posted or followed, in the order received",
        """select id, message_id, kind, name, account_key as account, contact_key as contact, properties, occurred_at, received_at, mark
           from event where contact_key = any(:keys) or account_key = any(:account_keys) order by received_at, id""",
    ),
    Part(
        "messages",
        "every email: subject, times, what became of it, the values it was rendered with as long as they are kept",
        f"""select m.id, k.key as campaign, m.step_id as step, m.kind, m.topic, a.external_id as account, c.external_id as contact,
            m.person as email, m.subject, m.state, m.reason, m.created_at, m.due_at, m.dot_at, m.settled_at, m."values", m.links, m.reply
            from message m join campaign k on k.id = m.campaign_id join account a on a.id = m.account_id
            join contact c on c.id = m.contact_id
            where {_ROWS} order by m.created_at, m.id""",
    ),
    Part(
        "delivery_events",
        "what became of each email, fact by fact",
        f"select message_id, kind, at, detail from delivery_event where message_id in {_CONTACT_MESSAGES} order by at, id",
    ),
    Part(
        "hits",
        "who or what fetched the links of emails, as long as it is kept",
        f"""select message_id, kind, link, at, network, user_agent, signals, score, verdict from hit
            where message_id in {_CONTACT_MESSAGES} order by at, id""",
    ),
    Part(
        "answers",
        "answers to surveys, with every revision",
        f"""select r.message_id, r.survey, r.question, v.revision, v.score, v.comment, v.answered_at from response r
            join response_revision v on v.response_id = r.id where r.message_id in {_CONTACT_MESSAGES}
            order by v.answered_at, v.revision""",
    ),
    Part(
        "suppressions",
        "what the address was or is closed for, and why",
        """select person as email, scope, reason, evidence, created_at, lifted_at from suppression where person = any(:people)
           order by created_at, id""",
    ),
    Part(
        "holds",
        "pauses and holds",
        """select reason, created_at, until, released_at from hold
           where contact_id = any(:contacts) or account_id = any(:accounts) or person = any(:people) order by created_at, id""",
    ),
    Part(
        "enrollments",
        "which campaigns ran",
        """select m.id, k.key as campaign, a.external_id as account, c.external_id as contact, m.state, m.entry, m.entered_at,
             m.ended_at, m.end_reason
           from enrollment m join campaign k on k.id = m.campaign_id join account a on a.id = m.account_id
           left join contact c on c.id = m.contact_id where m.contact_id = any(:contacts) or m.account_id = any(:accounts)
           order by m.entered_at, m.id""",
    ),
    Part(
        "tasks",
        "what staff were asked to do about them",
        """select title, note, outcome, state, created_at, due_at, closed_at from task
           where contact_id = any(:contacts) or account_id = any(:accounts) order by created_at""",
    ),
    Part(
        "decisions",
        "what was decided about them, and why",
        """select at, gate, verdict, reason, evidence, message_id, step_id as step from decision
           where contact_id = any(:contacts) or account_id = any(:accounts) order by at, id""",
    ),
    Part(
        "health",
        "health scores of the account",
        "select at, score, band, coverage, contributions, known, cause from health_score where account_id = any(:accounts) order by at, id",
    ),
    Part(
        "milestones",
        "milestones of the account",
        "select name, reached_at, overdue_at from milestone where account_id = any(:accounts) order by name",
    ),
    Part(
        "usage",
        "usage of the account by day",
        "select metric, day, count, last_at from usage_day where account_id = any(:accounts) order by metric, day",
    ),
)


def write_zip(conn: Connection, kind: str, key: str, now: datetime, into: IO[bytes]) -> dict[str, int]:
    """Writes the ZIP and returns how many rows are in each file. Raises NotFound, InputError. `conn` is to be one snapshot."""
    whose, profile = _whose(conn, kind, key)
    counts: dict[str, int] = {}
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("profile.json", to_json(profile, indent=2, inf_nan_mode="null"))
        for name, rows in _parts(conn, whose):
            counts[name] = 0
            with archive.open(f"{name}.json", "w", force_zip64=True) as file:
                file.write(b"[")
                for row in rows:
                    file.write((b",\n" if counts[name] else b"\n") + to_json(row, inf_nan_mode="null"))
                    counts[name] += 1
                file.write(b"\n]\n")
        about = {
            "kind": kind,
            "id": key,
            "exported_at": now,
            "files": {"profile": "who they are"} | _WHAT,
            "rows": counts,
            "not_in_here": "Secrets and keys of the installation, and what other people did at the same account.",
        }
        archive.writestr("about.json", to_json(about, indent=2))
    return counts


def collect(conn: Connection, kind: str, key: str, now: datetime, most: int = 20_000) -> dict[str, Any]:
    """The same as one JSON object, for those who are not too large for it. Raises InputError when a part has more than `most` rows."""
    whose, profile = _whose(conn, kind, key)
    found: dict[str, Any] = {"kind": kind, "id": key, "exported_at": now, "profile": profile}
    for name, rows in _parts(conn, whose):
        found[name] = []
        for row in rows:
            if len(found[name]) == most:
                raise InputError(f"has more than {most:,} {name}; nurture export {kind} writes files of any size", kind)
            found[name].append(row)
    return found


_WHAT = {part.name: part.what for part in PARTS} | {"consents": "the consent log: what was said, when, how, and by which words"}


def _whose(conn: Connection, kind: str, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if kind == "contact":
        row = find_contact(conn, key)
        keys = [key, *conn.execute(text("select previous_key from contact_alias where contact_key = :key"), {"key": key}).scalars()]
        whose = {"contacts": [row.id], "accounts": [], "keys": keys, "account_keys": [], "people": consents.people_of(conn, row.id)}
        hidden, table = ("id",), "contact"
    elif kind == "account":
        row = find_account(conn, key)
        people = conn.execute(_PEOPLE, {"id": row.id}).scalars().all()
        whose = {"contacts": [], "accounts": [row.id], "keys": [], "account_keys": [key], "people": list(people)}
        hidden, table = ("id", "partition", "candidates", "watched", "due_at", "assess_at"), "account"
    else:
        raise InputError("must be contact or account", "kind")
    profile = conn.execute(text(f"select * from {table} where id = :id"), {"id": row.id}).one()._mapping
    return whose, {name: value for name, value in profile.items() if name not in hidden}


def _parts(conn: Connection, whose: dict[str, Any]) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    for part in PARTS:
        names = {name: value for name, value in whose.items() if f":{name}" in part.rows}
        rows = conn.execute(text(part.rows), names, execution_options={"yield_per": CHUNK})
        yield part.name, (dict(row._mapping) for row in rows)
    yield "consents", iter(consents.read(conn, whose["people"]))


_PEOPLE = text("""
    select distinct c.person from membership m join contact c on c.id = m.contact_id where m.account_id = :id and c.person is not null
""")
