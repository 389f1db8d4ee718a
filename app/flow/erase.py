"""Erasing a contact or an account (P-10): an idempotent job in bounded batches, with a receipt that names nobody.

`request` makes them unknown at once, in one transaction: profile, addresses, memberships; nobody is written to any more. `work` then goes
through RULES, a batch and a transaction at a time, until nothing is left; killed anywhere, it goes on where it was. What stays: rows of
numbers under a random name (so that sent mail still counts), keyed hashes of the addresses (`flow.tombstones`), and the keys by which
events count once (invariant 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, text

from app import db
from app.errors import InputError, NotFound, StartError
from app.flow import tombstones
from app.flow.ingest import Own, raise_own
from app.models import decision, erasure
from app.rules.facts import partition_of

BATCH = 500
LOCK_WAIT_MS = 5000
KINDS = ("contact", "account")
ERASED = "Erased"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one table is erased. `what` says it in words. `take` are statements that erase at most `:limit` rows each and say how many by
    their row count, each by an index of its own, or a function that does the same; None where it was done at once. A table that this
    database does not have is passed over."""

    table: str
    what: str
    take: tuple[str, ...] | Callable[[Connection, dict[str, Any]], int] | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erasure came to. `subject` is a keyed hash: whoever knows the id can tell that it was this one."""

    id: UUID
    kind: str
    subject: str
    requested_at: datetime
    requested_by: str
    finished_at: datetime | None
    counts: Mapping[str, int]
    notes: Sequence[str]

    def plain(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"id": str(self.id), "counts": dict(self.counts)}


def request(conn: Connection, kind: str, key: str, by: str, now: datetime) -> Receipt:
    """Makes the contact or account of that external id unknown, and leaves the rest to `work`. Asked again, it answers with the erasure
    that is running, or that was done. Raises NotFound when there never was one, StartError when its partition stays busy."""
    if kind not in KINDS:
        raise InputError(f"must be one of {', '.join(KINDS)}", "kind")
    subject = tombstones.pseudonyms(conn, [f"{kind}:{key}"], "erased-subject")[f"{kind}:{key}"]
    row = conn.execute(text(f"select id, external_id from {kind} where external_id = :key"), {"key": key.replace("\x00", "")}).first()
    if row is None:
        known = conn.execute(text(_RECEIPT + " where subject = :subject order by requested_at desc limit 1"), {"subject": subject}).first()
        if known is None:
            raise NotFound(f"There is no {kind} {key!r}, and none was erased.")
        return _receipt(known)
    _lock(conn, kind, row)
    target = _forget_contacts(conn, [row.id], now) if kind == "contact" else _forget_account(conn, row, now)
    made = {"id": uuid4(), "kind": kind, "subject": subject, "requested_at": now, "requested_by": by[:200], **_split(target)}
    db.insert_rows(conn, erasure, [made])
    return receipt(conn, made["id"])


def work(engine: Engine, clock: Callable[[], datetime], exports: Path, *, until: datetime | None = None) -> int:
    """Goes on with every erasure that has not finished, until all have, or until that moment. Returns how many finished. An erasure whose
    mail is on the wire at this moment is left for the next call. Safe to run anywhere at the same time."""
    finished, waiting = 0, []
    while until is None or clock() < until:
        with engine.begin() as conn:
            row = conn.execute(_NEXT, {"waiting": waiting}).first()
            if row is None:
                return finished
            done = _step(conn, row, clock(), exports)
        if done is None:
            waiting.append(row.id)
        elif done:
            finished += 1
    return finished


def receipt(conn: Connection, erasure_id: UUID) -> Receipt:
    """Raises NotFound."""
    row = conn.execute(text(_RECEIPT + " where id = :id"), {"id": erasure_id}).first()
    if row is None:
        raise NotFound(f"There is no erasure {erasure_id}.")
    return _receipt(row)


def receipts(conn: Connection, limit: int = 200) -> list[Receipt]:
    """The latest erasures."""
    return [_receipt(row) for row in conn.execute(text(_RECEIPT + " order by requested_at desc limit :limit"), {"limit": limit})]


# At once -------------------------------------------------------------------------------------------------------------


def _lock(conn: Connection, kind: str, row: Any) -> None:
    """Keeps `advance` from what it knows of them meanwhile: it writes contacts back as it read them."""
    count = conn.execute(text("select partitions from installation")).scalar_one()
    column = "m.contact_id" if kind == "contact" else "m.account_id"
    places = conn.execute(
        text(f"select a.partition from membership m join account a on a.id = m.account_id where {column} = :id"), {"id": row.id}
    )
    for place in sorted({*places.scalars(), partition_of(row.external_id, count)}):
        if not db.lock(conn, db.LOCK_PARTITION, place, wait_ms=LOCK_WAIT_MS):
            raise StartError("its events are being processed for long; try again in a moment")


def _forget_contacts(conn: Connection, ids: Sequence[int], now: datetime) -> dict[str, Any]:
    """Takes everything from these contacts that tells who they are, and ends what is under way to them. Returns what the rules need: ids,
    keys, addresses, names, accounts."""
    rows = conn.execute(_CONTACTS, {"ids": list(ids)}).all()
    keys = [row.external_id for row in rows]
    aliases = conn.execute(text("select previous_key from contact_alias where contact_key = any(:keys)"), {"keys": keys}).scalars().all()
    accounts = (
        conn.execute(text("select distinct account_id from membership where contact_id = any(:ids)"), {"ids": list(ids)}).scalars().all()
    )
    people = [row.person for row in rows if row.person]
    husks = {row.id: tombstones.PREFIX + uuid4().hex for row in rows}
    names = {"ids": list(husks), "keys": list(husks.values()), "now": now}
    conn.exec_driver_sql(_BLANK_CONTACTS, names)
    conn.execute(text("delete from membership where contact_id = any(:ids)"), {"ids": list(ids)})
    conn.execute(text("delete from contact_alias where contact_key = any(:keys)"), {"keys": keys})
    conn.execute(text("update account set pruned_at = :now where id = any(:ids)"), {"now": now, "ids": accounts})
    shared = sorted(set(people) & set(conn.execute(text("select person from contact where person = any(:p)"), {"p": people}).scalars()))
    tombstones.bury(conn, people, now)
    _stop(conn, "account_id = any(:around) and contact_id = any(:ids)", {"ids": list(ids), "around": list(accounts)}, now)
    full = [" ".join(name for name in (row.first_name, row.last_name) if name) for row in rows]
    return {
        "contacts": list(ids),
        "keys": keys + list(aliases),
        "husk": {row.external_id: husks[row.id] for row in rows},
        "needles": sorted({*keys, *aliases, *people, *(row.address for row in rows if row.address), *(one for one in full if " " in one)}),
        "around": list(accounts),
        "accounts": [],
        "account_keys": [],
        "at": now,
        "notes": ["The address belongs to another contact as well, so its suppressions and consents were kept."] if shared else [],
    }


def _forget_account(conn: Connection, row: Any, now: datetime) -> dict[str, Any]:
    conn.execute(_BLANK_ACCOUNT, {"id": row.id, "key": tombstones.PREFIX + uuid4().hex, "now": now})
    _stop(conn, "account_id = :id", {"id": row.id}, now)
    whose = {"accounts": [row.id], "account_keys": [row.external_id], "contacts": [], "keys": [], "husk": {}, "needles": [], "around": []}
    return {**whose, "at": now, "notes": []}


def _stop(conn: Connection, whose: str, given: dict[str, Any], now: datetime) -> None:
    """Ends enrollments, and skips messages and alerts that nobody has at the wire. Enrollments that wait for such a message are told."""
    ended = "update enrollment set state = 'exited', end_reason = 'erased', ended_at = :now, due_at = null, step_id = null"
    conn.execute(text(f"{ended} where state = 'active' and {whose}"), {**given, "now": now})
    skip = (
        "update {} set state = '{}', reason = 'erased', settled_at = :now, claim = null, worker_id = null "
        "where state in ('due', 'claimed') and {}"
    )
    conn.execute(text(skip.format("effect", "failed", whose)), {**given, "now": now})
    rows = conn.execute(
        text(f"with done as ({skip.format('message', 'skipped', whose)} returning *) {_SKIPPED}"), {**given, "now": now}
    ).all()
    conn.execute(text("delete from reservation where message_id = any(:ids)"), {"ids": [one.id for one in rows]})
    db.insert_rows(
        conn,
        decision,
        [
            {
                "at": now,
                "account_id": one.account_id,
                "campaign_id": one.campaign_id,
                "version_id": one.version_id,
                "enrollment_id": one.enrollment_id,
                "step_id": one.step_id,
                "gate": "recipient",
                "verdict": "no",
                "reason": "erased",
                "evidence": {},
            }
            for one in rows
        ],
    )
    said = [
        Own(
            "nurture.message_settled",
            f"settled:{one.id}",
            {
                "message": str(one.id),
                "campaign": one.campaign,
                "step": one.step_id,
                "occurrence": one.occurrence,
                "enrollment": str(one.enrollment_id),
                "outcome": "skipped",
            },
            one.account_key,
            None,
            now,
        )
        for one in rows
        if one.enrollment == "active"
    ]
    raise_own(conn, said, now, conn.execute(text("select partitions from installation")).scalar_one())


# Batch by batch ------------------------------------------------------------------------------------------------------


def _step(conn: Connection, row: Any, now: datetime, exports: Path) -> bool | None:
    """One batch of one erasure. True when it has finished, None when it has to wait for mail on the wire."""
    target, counts = row.target, dict(row.counts)
    for rule in RULES:
        if rule.take is None or not conn.execute(text("select to_regclass(:name)"), {"name": rule.table}).scalar():
            continue
        given = {**_parameters(target), "limit": BATCH}
        if callable(rule.take):
            number = rule.take(conn, target)
        else:
            number = next((done for one in rule.take if (done := conn.execute(text(one), given).rowcount)), 0)
        if number:
            counts[rule.table] = counts.get(rule.table, 0) + number
            _note(conn, row.id, counts, target)
            return False
    if conn.execute(_ON_THE_WIRE, _parameters(target)).scalar():
        return None
    files = _exports_of(exports, row.kind, row.subject)
    for file in files:
        file.unlink(missing_ok=True)
    counts |= {"export files": len(files)} if files else {}
    conn.execute(_FINISH, {"id": row.id, "now": now, "counts": to_json(counts).decode()})
    return True


def _parameters(target: Mapping[str, Any]) -> dict[str, Any]:
    names = ("contacts", "accounts", "keys", "account_keys", "needles", "around")
    long = [one for one in target["needles"] if len(one) >= 6]  # what is shorter is found as a whole value only
    return {name: target[name] for name in names} | {"at": datetime.fromisoformat(target["at"]), "long": [_like(one) for one in long]}


def _members(conn: Connection, target: dict[str, Any]) -> int:
    """The people of an erased account who belong to no other; the others only leave it."""
    if not target["accounts"]:
        return 0
    given = {"accounts": target["accounts"], "limit": BATCH}
    ids = conn.execute(text("select contact_id from membership where account_id = any(:accounts) limit :limit"), given).scalars().all()
    sole = conn.execute(_SOLE, {"ids": ids, "accounts": target["accounts"]}).scalars().all()
    if sole:
        more = _forget_contacts(conn, sole, datetime.fromisoformat(target["at"]))
        for name in ("contacts", "keys", "needles"):
            target[name] = [*target[name], *more[name]]
        target["husk"] |= more["husk"]
        target["notes"] = list(dict.fromkeys([*target["notes"], *more["notes"]]))
    conn.execute(text("delete from membership where account_id = any(:accounts) and contact_id = any(:ids)"), {**given, "ids": ids})
    return len(ids)


def _messages(conn: Connection, target: dict[str, Any]) -> int:
    """What messages were rendered with, and whom they went to; the addresses among them get tombstones, too."""
    rows = conn.execute(_SNAPSHOTS, {**_parameters(target), "limit": BATCH}).all()
    people = [row.person for row in rows if row.person and not row.person.startswith(tombstones.PREFIX)]
    stones = tombstones.bury(conn, people, datetime.fromisoformat(target["at"]))
    target["needles"] = sorted({*target["needles"], *people})
    given = {"ids": [row.id for row in rows], "people": [stones.get(row.person, row.person) for row in rows]}
    return conn.exec_driver_sql(_WIPE, given).rowcount if rows else 0


def _usage_people(conn: Connection, target: dict[str, Any]) -> int:
    given = {"keys": list(target["husk"]), "husks": list(target["husk"].values()), "day": target["at"][:10], "limit": BATCH}
    return conn.exec_driver_sql(_RENAME_PEOPLE, given).rowcount if target["husk"] else 0


def _enrollments(conn: Connection, target: dict[str, Any]) -> int:
    """What enrollments remember: all of theirs, and of their account's what names them."""
    whole = conn.execute(text(_WHOLE_ENROLLMENTS), {**_parameters(target), "limit": BATCH}).rowcount
    if whole:
        return whole
    return _strip(conn, target, "enrollment", ("entry", "position"), "account_id")


def _candidates(conn: Connection, target: dict[str, Any]) -> int:
    return _strip(conn, target, "account", ("candidates", "watched"), "id")


def _strip(conn: Connection, target: dict[str, Any], table: str, columns: Sequence[str], whose: str) -> int:
    """Takes every value and key that names them out of JSON columns of the accounts that they belonged to."""
    needles = set(target["needles"])
    found = " or ".join(f"t.{column}::text like any(:anywhere)" for column in columns)
    rows = conn.execute(
        text(
            f"select t.id, {', '.join('t.' + one for one in columns)} from {table} t "
            f"where t.{whose} = any(:around) and ({found}) order by t.id"
        ),
        {"around": target["around"], "anywhere": [_like(to_json(one).decode()[1:-1]) for one in needles]},
    ).all()
    changed = []
    for row in rows:
        before = {column: getattr(row, column) for column in columns}
        after = {column: _without(value, needles) for column, value in before.items()}
        if after != before:
            changed.append({"id": row.id, **after})
    for row in changed[:BATCH]:
        sets = ", ".join(f"{column} = cast(:{column} as jsonb)" for column in columns)
        values = {column: to_json(row[column]).decode() for column in columns}
        conn.execute(text(f"update {table} set {sets} where id = :id"), {**values, "id": row["id"]})
    return min(len(changed), BATCH)


def _without(value: Any, needles: set[str]) -> Any:
    """`value` without what names one of `needles`: whole strings, keys that are or end with one, and list entries that hold one."""
    if isinstance(value, Mapping):
        kept = {key: one for key, one in value.items() if key not in needles and key.rpartition(":")[2] not in needles}
        return {key: _without(one, needles) for key, one in kept.items() if not (isinstance(one, str) and one in needles)}
    if isinstance(value, list):
        return [_without(one, needles) for one in value if not _names(one, needles)]
    return value


def _names(value: Any, needles: set[str]) -> bool:
    if isinstance(value, Mapping):
        return any(_names(one, needles) for one in value.values())
    return isinstance(value, str) and value in needles


def _like(needle: str) -> str:
    escaped = needle.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _exports_of(folder: Path, kind: str, subject: str) -> list[Path]:
    """Exports of them that `nurture export` left in the home."""
    return sorted(folder.glob(f"{kind}-{subject.removeprefix(tombstones.PREFIX)[:16]}-*")) if folder.is_dir() else []


def export_name(conn: Connection, kind: str, key: str, now: datetime) -> str:
    """The name of an export's file: it names nobody, and an erasure finds it."""
    subject = tombstones.pseudonyms(conn, [f"{kind}:{key}"], "erased-subject")[f"{kind}:{key}"]
    return f"{kind}-{subject.removeprefix(tombstones.PREFIX)[:16]}-{now:%Y%m%dT%H%M%SZ}.zip"


def _split(target: dict[str, Any]) -> dict[str, Any]:
    return {
        "target": {name: value for name, value in target.items() if name != "notes"} | {"notes": target["notes"]},
        "notes": target["notes"],
    }


def _note(conn: Connection, erasure_id: UUID, counts: Mapping[str, int], target: Mapping[str, Any]) -> None:
    values = {
        "id": erasure_id,
        "counts": to_json(counts).decode(),
        "target": to_json(target).decode(),
        "notes": to_json(target["notes"]).decode(),
    }
    conn.execute(_PROGRESS, values)


def _receipt(row: Any) -> Receipt:
    return Receipt(row.id, row.kind, row.subject, row.requested_at, row.requested_by, row.finished_at, row.counts, row.notes)


_THEIRS = "(contact_id = any(:contacts) or account_id = any(:accounts))"
_THEIR_MESSAGES = f"(select id from message where {_THEIRS})"
# The same, by the accounts that a contact belonged to: for tables without an index of contacts.
_AT_THEIRS = "((account_id = any(:around) and contact_id = any(:contacts)) or account_id = any(:accounts))"
_NAMED = (
    "exists (select from unnest(cast(:needles as text[])) n where jsonb_path_exists({}, '$.** ? (@ == $n)', jsonb_build_object('n', n)))"
)
_SAID_BY_TASK = "concat_ws(' ', title, note, outcome)"
_TOLD = "{} like any(cast(:long as text[]))"


def _delete(table: str, where: str) -> str:
    return f"delete from {table} where ctid = any(array(select ctid from {table} where {where} limit :limit))"


def _update(table: str, sets: str, where: str) -> str:
    return f"update {table} set {sets} where ctid = any(array(select ctid from {table} where {where} limit :limit))"


# Every table that may know of a contact or an account, in the order in which they are erased (a test holds this against the tables).
RULES: tuple[Rule, ...] = (
    Rule("membership", "deleted", _members),
    Rule("message", "kept as a number: values, subject, links and the relay's words deleted, the address made a keyed hash", _messages),
    Rule(
        "outbox",
        "deleted",
        (
            _delete("outbox", f"message_id in {_THEIR_MESSAGES}"),
            _delete("outbox", f"message_id in (select id from effect where {_AT_THEIRS})"),
        ),
    ),
    Rule(
        "reservation",
        "deleted",
        (_delete("reservation", "account_id = any(:accounts)"), _delete("reservation", f"message_id in {_THEIR_MESSAGES}")),
    ),
    Rule("hit", "deleted", (_delete("hit", f"message_id in {_THEIR_MESSAGES}"),)),
    Rule(
        "delivery_event",
        "kept as a number: details deleted",
        (_update("delivery_event", "detail = '{}'", f"detail <> '{{}}' and message_id in {_THEIR_MESSAGES}"),),
    ),
    Rule(
        "response",
        "kept as a number: the comment deleted",
        (_update("response", "comment = null", f"comment is not null and message_id in {_THEIR_MESSAGES}"),),
    ),
    Rule(
        "response_revision",
        "kept as a number: the comment deleted",
        (
            _update(
                "response_revision",
                "comment = null",
                f"comment is not null and response_id in (select id from response where message_id in {_THEIR_MESSAGES})",
            ),
        ),
    ),
    Rule(
        "decision",
        "deleted",
        (
            _delete("decision", f"{_THEIRS} and reason <> 'erased'"),
            _delete("decision", f"account_id = any(:around) and {_NAMED.format('evidence')}"),
        ),
    ),
    Rule("enrollment", "kept as a number: what it entered by and remembers deleted", _enrollments),
    Rule(
        "effect",
        "kept as a number: what it said deleted",
        tuple(
            _update("effect", "payload = '{}', reply = null", f"payload <> '{{}}' and {whose}")
            for whose in (_AT_THEIRS, f"account_id = any(:around) and {_TOLD.format('payload::text')}")
        ),
    ),
    Rule(
        "task",
        "kept as a number: what it said deleted",
        tuple(
            _update("task", f"title = '{ERASED}', note = '', outcome = null, contact_id = null", f"title <> '{ERASED}' and {whose}")
            for whose in (_AT_THEIRS, f"account_id = any(:around) and {_TOLD.format(_SAID_BY_TASK)}")
        ),
    ),
    Rule("usage_person", "kept as a number under a random name", _usage_people),
    Rule("usage_day", "deleted with an account", (_delete("usage_day", "account_id = any(:accounts)"),)),
    Rule("unassessed", "deleted with an account", (_delete("unassessed", "account_id = any(:accounts)"),)),
    Rule("milestone", "deleted with an account", (_delete("milestone", "account_id = any(:accounts)"),)),
    Rule("stage_history", "deleted with an account", (_delete("stage_history", "account_id = any(:accounts)"),)),
    Rule("health_score", "deleted with an account", (_delete("health_score", "account_id = any(:accounts)"),)),
    Rule("unassessed", "deleted with an account", (_delete("unassessed", "account_id = any(:accounts)"),)),
    Rule("hold", "deleted", (_delete("hold", _THEIRS),)),
    Rule(
        "event_pending",
        "deleted",
        (_delete("event_pending", "(contact_key = any(:keys) or account_key = any(:account_keys)) and received_at <= :at"),),
    ),
    Rule(
        "event",
        "deleted; the keys by which events count once stay",
        tuple(
            _delete("event", f"{whose} and received_at <= :at")
            for whose in (
                "contact_key = any(:keys)",
                "account_key = any(:account_keys)",
                f"account_key = any(array(select external_id from account where id = any(:around))) and {_NAMED.format('properties')}",
            )
        ),
    ),
    Rule(
        "parked",
        "deleted",
        (_delete("parked", f"contact_key = any(:keys) or account_key = any(:account_keys) or {_TOLD.format('traceback')}"),),
    ),
    Rule("lane", "what a provider answered deleted", (_update("lane", "reply = null", _TOLD.format("reply")),)),
    Rule("account", "kept as a number under a random name; what the account of an erased contact remembers of them deleted", _candidates),
    Rule("contact", "kept as a number under a random name, at once"),
    Rule("contact_alias", "deleted at once"),
    Rule("suppression", "put under a keyed hash of the address, at once"),
    Rule("consent", "deleted at once"),
    Rule("tombstone", "the keyed hash itself"),
    Rule("erasure", "the names deleted when it has finished"),
    Rule(
        "hook_call",
        "deleted",
        (_delete("hook_call", f"message_id in {_THEIR_MESSAGES}"), _delete("hook_call", _TOLD.format("raw"))),
    ),
    Rule(
        "inbound_mail",
        "deleted",
        (
            _delete("inbound_mail", f"message_id in {_THEIR_MESSAGES}"),
            _delete("inbound_mail", "lower(sender) = any(:needles) or lower(author) = any(:needles)"),
        ),
    ),
)

_RECEIPT = "select id, kind, subject, requested_at, requested_by, finished_at, counts, notes from erasure"
_NEXT = text("""
    select * from erasure where finished_at is null and id <> all(cast(:waiting as uuid[])) order by requested_at, id limit 1 for update
""")
_PROGRESS = text("""
    update erasure set counts = cast(:counts as jsonb), target = cast(:target as jsonb), notes = cast(:notes as jsonb) where id = :id
""")
_FINISH = text("update erasure set finished_at = :now, target = null, counts = cast(:counts as jsonb) where id = :id")
_ON_THE_WIRE = text(f"select exists (select from message where {_THEIRS} and state in ('claimed', 'in_dot'))")
_CONTACTS = text("select id, external_id, address, person, first_name, last_name from contact where id = any(:ids) order by id for update")
_BLANK_CONTACTS = """
update contact c set external_id = r.k, address = null, person = null, first_name = null, last_name = null, timezone = null, locale = null,
    traits = '{}', clocks = '{}', last_seen_at = null, last_active_at = null, erased_at = %(now)s
from unnest(%(ids)s::bigint[], %(keys)s::text[]) as r(i, k) where c.id = r.i"""
_BLANK_ACCOUNT = text("""
    update account set external_id = :key, name = null, touch = null, timezone = null, owner_name = null, owner_email = null,
        owner_timezone = null, seats = null, customer_since = null, renewal_date = null, revenue = null, traits = '{}', clocks = '{}',
        stage = null, stage_entered_at = null, health_score = null, health_band = null, health_at = null, last_event_at = null,
        candidates = '[]', watched = '{}', due_at = null, assess_at = null, pruned_at = :now, erased_at = :now
     where id = :id
""")
_SKIPPED = """
select done.*, k.key as campaign, a.external_id as account_key, n.state as enrollment
from done join campaign k on k.id = done.campaign_id join account a on a.id = done.account_id
join enrollment n on n.id = done.enrollment_id"""
_SOLE = text("""
    select distinct contact_id from membership m where contact_id = any(:ids)
       and not exists (select from membership o where o.contact_id = m.contact_id and o.account_id <> all(:accounts))
""")
_SNAPSHOTS = text(f"""
    select id, person from message where {_THEIRS} and state not in ('claimed', 'in_dot')
       and ("values" is not null or links is not null or subject is not null or reply is not null or person not like 'erased:%')
     order by id limit :limit
""")
_WIPE = """
update message m set "values" = null, links = null, subject = null, reply = null, person = r.p
from unnest(%(ids)s::uuid[], %(people)s::text[]) as r(i, p) where m.id = r.i"""
_RENAME_PEOPLE = """
update usage_person u set contact_key = r.h from unnest(%(keys)s::text[], %(husks)s::text[]) as r(k, h)
where u.contact_key = r.k and u.day <= %(day)s::date"""
_WHOLE_ENROLLMENTS = _update("enrollment", "entry = '{}', position = '{}'", f"{_AT_THEIRS} and (entry <> '{{}}' or position <> '{{}}')")
