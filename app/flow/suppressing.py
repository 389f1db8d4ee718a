"""The suppression list: addresses that must not be written to, kept by hand and by file.

A scope is `all` (nothing but transactional mail), a topic, or, where not even transactional mail may go, the reason itself: bounced,
complained, manual. Opening an address again needs somebody who does it and says why: no import ever does (P-04).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.db import insert_rows
from app.errors import InputError, NotFound
from app.flow import consents, tombstones
from app.flow.consents import Said
from app.flow.reading.paging import LIMIT, Page, clean, page, read_cursor
from app.flow.respond import ALL, lifecycle_in_force
from app.models import suppression
from app.rules.identity import normalise
from app.rules.lifecycle import TRANSACTIONAL

REASONS = ("unsubscribed", "manual", "complained", "bounced", "soft_limit")
# The scope in which such a reason stops everything, transactional mail too.
STOPS = {"manual": "manual", "complained": "complained", "bounced": "bounced", "soft_limit": "bounced"}
WHOLLY = tuple(dict.fromkeys(STOPS.values()))
COLUMNS = ("email", "scope", "reason", "since")
FILE_BYTES, FILE_ROWS, CHUNK = 50 * 2**20, 1_000_000, 2000
EVIDENCE = 500
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\x00")


@dataclass(frozen=True, slots=True)
class RowProblem:
    """What is wrong with one row of a file, counted from 1 with the heading as the first."""

    row: int
    column: str
    problem: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.column}: {self.problem}"


@dataclass(slots=True)
class Imported:
    """What came of a file: addresses closed anew, those that were closed already, and the rows that could not be taken."""

    added: int = 0
    known: int = 0
    problems: list[RowProblem] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        problems = [{"row": one.row, "column": one.column, "problem": one.problem} for one in self.problems]
        return {"added": self.added, "known": self.known, "problems": problems}


def suppressions(
    conn: Connection, *, search: str | None = None, scope: str | None = None, reason: str | None = None, cursor=None, limit: int = LIMIT
) -> Page:
    """Suppressions in force, the latest first. `search` is a whole address. Erased addresses are told by `erased`, never by name."""
    where, values = ["lifted_at is null"], {}
    if search := clean(search):
        where.append("person = :person")
        values["person"] = normalise(search) or search
    for name, value in (("scope", scope), ("reason", reason)):
        if value := clean(value):
            where.append(f"{name} = :{name}")
            values[name] = value
    if after := read_cursor(cursor, int):
        where.append("id < :last")
        values["last"] = after[0]
    found = text(
        f"select id, person, scope, reason, evidence, created_at from suppression where {' and '.join(where)} order by id desc limit :n"
    )
    return page(conn.execute(found, values | {"n": limit + 1}).all(), limit, _shown, lambda row: (row.id,))


def add(conn: Connection, address: str, scope: str, reason: str, now: datetime, *, by: str, method: str, note: str = "") -> dict[str, Any]:
    """Closes an address, with its line in the consent log. Closed already, it stays as it is. Raises InputError with the field."""
    person, scope = _address(address), _scope(conn, scope, reason)
    _close(conn, [(person, scope, reason, now)], now, Said(method, by, source=method, evidence={"note": note[:EVIDENCE]} if note else {}))
    return _shown(conn.execute(_ONE, {"person": person, "scope": scope}).one())


def lift(conn: Connection, address: str, scope: str, now: datetime, *, by: str, method: str, evidence: str) -> list[str]:
    """Opens what is closed of an address in that scope (`all` with those scopes that close everything), and notes who did it and why:
    `evidence` is the person's own new consent, or what proves that the address works. Returns the scopes that were closed.

    Raises InputError without evidence, NotFound when nothing was closed.
    """
    person = _address(address)
    if not 3 <= len(evidence.strip()) <= EVIDENCE:
        raise InputError(f"say by what right, in 3 to {EVIDENCE} characters: who asked for it, when, where", "evidence")
    scopes = [ALL, *WHOLLY] if scope == ALL else [scope]
    lifted = conn.execute(_LIFT, {"person": person, "scopes": scopes, "now": now}).scalars().all()
    if not lifted:
        raise NotFound(f"{address} is not on the list in the scope {scope}.")
    said = Said(method, by, source=method, evidence={"note": evidence.strip()})
    consents.note(conn, [person], {one: True for one in sorted(lifted)}, now, said)
    return sorted(lifted)


def import_file(conn: Connection, data: bytes, now: datetime, *, by: str, source: str, dry_run: bool = False) -> Imported:
    """Closes the addresses of a CSV file with the columns email, scope, reason, since (email alone will do: then
    `all`, `unsubscribed`, now).

    Rows that cannot be taken are named, the others are kept. Only ever closes: nothing in a file opens an address (P-04). Raises
    InputError for a file that is no such thing at all. Evaluates nothing, whatever a cell begins with (X-41).
    """
    found = Imported()
    people: set[tuple[str, str]] = set()
    topics = _topics(conn)
    batch: list[tuple[str, str, str, datetime]] = []
    said = Said("import", by, source=source)
    for row, problem in _rows(data, topics, now):
        if problem is not None:
            found.problems.append(problem)
        elif row[:2] in people:
            found.known += 1
        else:
            people.add(row[:2])
            batch.append(row)
        if len(batch) >= CHUNK:
            _count(conn, found, batch, now, said, dry_run)
            batch = []
    _count(conn, found, batch, now, said, dry_run)
    return found


def export_file(conn: Connection) -> Iterator[str]:
    """The list in force as CSV, line by line, for another system that must not write to these either. A cell that a spreadsheet would
    take for a formula gets an apostrophe before it (X-42). Erased addresses are not in it: nobody knows them."""
    yield _line(COLUMNS)
    rows = conn.execute(_EXPORT, {"erased": f"{tombstones.PREFIX}%"}, execution_options={"yield_per": CHUNK})
    for row in rows:
        yield _line((row.person, row.scope, row.reason, row.created_at.isoformat()))


def safe_cell(value: Any) -> str:
    """A cell of an export: what a spreadsheet would take for a formula is made text (X-42)."""
    cell = "" if value is None else str(value)
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow([safe_cell(cell) for cell in cells])
    return line.getvalue()


def _rows(data: bytes, topics: frozenset[str], now: datetime) -> Iterator[tuple[tuple | None, RowProblem | None]]:
    if len(data) > FILE_BYTES:
        raise InputError(f"may have {FILE_BYTES // 2**20} MB", "file")
    try:
        words = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 (byte {error.start + 1})", "file") from error
    reader = csv.reader(io.StringIO(words, newline=""), strict=True)
    try:
        heading = [cell.strip().lower() for cell in next(reader, [])]
        if "email" not in heading:
            raise InputError(f"needs a first row that names its columns, email among them; there are: {', '.join(COLUMNS)}", "file")
        if unknown := [one for one in heading if one not in COLUMNS]:
            raise InputError(f"has the column {unknown[0]!r}; there are: {', '.join(COLUMNS)}", "file")
        for number, cells in enumerate(reader, 2):
            if number > FILE_ROWS:
                raise InputError(f"may have {FILE_ROWS:,} rows", "file")
            if not any(cell.strip() for cell in cells):
                continue
            try:
                yield _row(dict(zip(heading, cells, strict=False)), topics, now), None
            except InputError as error:
                yield None, RowProblem(number, error.field or "email", error.problem)
    except csv.Error as error:
        raise InputError(f"is no CSV that can be read: line {reader.line_num}: {error}", "file") from error


def _row(cells: dict[str, str], topics: frozenset[str], now: datetime) -> tuple[str, str, str, datetime]:
    # Our own exports put an apostrophe before what looks like a formula.
    values = {name: cell.strip().removeprefix("'") for name, cell in cells.items()}
    reason = values.get("reason") or "unsubscribed"
    scope = _checked_scope(values.get("scope") or ALL, reason, topics)
    since = now
    if values.get("since"):
        try:
            since = datetime.fromisoformat(values["since"])
        except ValueError as error:
            raise InputError("is no time such as 2026-03-02T09:00:00Z", "since") from error
        since = min(since if since.tzinfo else since.replace(tzinfo=now.tzinfo), now)
    return _address(values.get("email", "")), scope, reason, since


def _count(conn: Connection, found: Imported, batch: Sequence[tuple], now: datetime, said: Said, dry_run: bool) -> None:
    if not batch:
        return
    if dry_run:
        known = conn.execute(_KNOWN, {"people": [row[0] for row in batch], "scopes": [row[1] for row in batch]}).scalar_one()
        added = len(batch) - known
    else:
        added = _close(conn, batch, now, said)
    found.added += added
    found.known += len(batch) - added


def _close(conn: Connection, rows: Sequence[tuple[str, str, str, datetime]], now: datetime, said: Said) -> int:
    """Closes (person, scope, reason, since); returns how many were open."""
    evidence = {"method": said.method, "by": said.actor, "source": said.source, **said.evidence}
    made = [
        {"person": person, "scope": scope, "reason": reason, "evidence": evidence, "created_at": since}
        for person, scope, reason, since in rows
    ]
    closed = insert_rows(
        conn, suppression, made, conflict="(person, scope) where lifted_at is null do nothing", returning=("person", "scope")
    )
    by_scope: dict[str, list[str]] = {}
    for person, scope in closed:
        by_scope.setdefault(scope, []).append(person)
    for scope, people in by_scope.items():
        if scope != "bounced":  # an address that does not exist says nothing about what its owner wants
            consents.note(conn, people, {scope: False}, now, said)
    return len(closed)


def _address(value: str) -> str:
    person = normalise(value)
    if person is None:
        raise InputError("is not an address that mail can be sent to", "email")
    return person


def _topics(conn: Connection) -> frozenset[str]:
    found = lifecycle_in_force(conn)
    return frozenset(found[1].topics) if found else frozenset()


def _scope(conn: Connection, scope: str, reason: str) -> str:
    return _checked_scope(scope, reason, _topics(conn))


def _checked_scope(scope: str, reason: str, topics: frozenset[str]) -> str:
    if reason not in REASONS:
        raise InputError(f"must be one of {', '.join(REASONS)}", "reason")
    if scope == TRANSACTIONAL:
        raise InputError("transactional mail has no opt-out; the reason manual stops all of it", "scope")
    if scope in WHOLLY and scope != STOPS.get(reason):
        raise InputError(f"{scope} is the scope of the reason {scope}", "scope")
    if scope != ALL and scope not in topics and scope not in WHOLLY:
        raise InputError(f"must be all or a topic: {', '.join(sorted(topics))}", "scope")
    return STOPS[reason] if scope == ALL and reason in STOPS else scope


def _shown(row: Any) -> dict[str, Any]:
    erased = row.person.startswith(tombstones.PREFIX)
    return {
        "id": row.id,
        "email": None if erased else row.person,
        "erased": erased,
        "scope": row.scope,
        "reason": row.reason,
        "evidence": row.evidence,
        "created_at": row.created_at,
    }


_ONE = text("""
    select id, person, scope, reason, evidence, created_at from suppression where person = :person and scope = :scope and lifted_at is null
""")
_LIFT = text("""
    update suppression set lifted_at = :now where person = :person and scope = any(:scopes) and lifted_at is null returning scope
""")
_KNOWN = text("""
    select count(*) from unnest(cast(:people as text[]), cast(:scopes as text[])) as r(p, s)
     where exists (select from suppression x where x.person = r.p and x.scope = r.s and x.lifted_at is null)
""")
_EXPORT = text("select person, scope, reason, created_at from suppression where lifted_at is null and person not like :erased order by id")
