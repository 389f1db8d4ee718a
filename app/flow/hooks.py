"""Hooks: mail providers call us and tell what became of our mail (email-standards 3.3).

    call ─▶ verify, on the raw body ─▶ [hook call, waiting] ─▶ answered ─ doorbell ─▶ read ─▶ hear ─▶ [delivery event, suppression, …]
              └─ no ─▶ [hook call, refused]

Each event is stored once and answered before anything is made of it, so a provider never waits, and what it says twice counts once. What
cannot be believed changes nothing but the list that an operator looks at.
"""

from __future__ import annotations

import logging
import secrets as random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, insert, select, text, update

from app.config import Settings
from app.db import insert_rows, update_rows
from app.errors import CallError, InputError, NotFound, Refused
from app.flow import transports
from app.flow.hear import Finding, hear
from app.flow.keepers import AWAY
from app.flow.seals import Sealed, seal, unseal
from app.models import hook, hook_call
from app.providers.hooks import PROVIDERS, postmark, ses, sns
from app.providers.hooks.call import Call, Item, digest
from app.providers.outgoing import Caller
from app.queue import Bells
from app.rules.reports import Report

CONFIRMS_FOR = timedelta(hours=1)  # after a hook was made: time to subscribe it to its topic
OLD_SECRET_LIFE = timedelta(days=7)  # SendGrid tries again for a day what was signed before a rotation
BATCH = 200
BATCH_BYTES = 4 * 2**20
REFUSED_KEPT = 200  # of each hook: who knows an address must not fill the disk by it
REFUSED_BYTES = 10_000

_TOPICS = 20

log = logging.getLogger("nurture.hooks")


@dataclass(frozen=True, slots=True)
class Secret:
    """`until` is when it ends, of one that was replaced."""

    secret: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hook:
    """One address of ours at a provider. `options` are those of SES: topics, versions, stand_in."""

    id: str
    provider: str
    transport: str | None
    options: Mapping[str, Any]
    secrets: tuple[Secret, ...]
    confirm_until: datetime | None
    created_at: datetime

    def address(self, base_url: str) -> str:
        """What the provider is to call. Of Postmark, the password is not in it."""
        return f"{base_url}/hooks/{self.provider}/{self.id}"

    def address_with_password(self, base_url: str) -> str:
        """What Postmark is to call: it signs nothing, so it shows the password that its address holds."""
        scheme, _, rest = self.address(base_url).partition("://")
        return f"{scheme}://{postmark.USER}:{self.secrets[0].secret}@{rest}"

    def active(self, now: datetime) -> list[str]:
        """The secrets that count at `now`, the newest first; two at most (W-05)."""
        return [one.secret for one in self.secrets if one.until is None or one.until > now]


# Hooks as an operator makes them -------------------------------------------------------------------------------------


def add_hook(
    conn: Connection,
    settings: Settings,
    provider: str,
    now: datetime,
    *,
    transport: str | None = None,
    secret: str | None = None,
    topics: Sequence[str] = (),
    versions: Sequence[int] = (2,),
    stand_in: str | None = None,
) -> Hook:
    """Makes an address for `provider`. Raises InputError, naming what is wrong.

    Postmark gets a secret of ours if none is given; SendGrid and Mailgun show one that must be given; SES has none, but topics, and the
    versions of signatures that are taken. A subscription of a topic is confirmed within the next hour only (W-10).
    """
    if provider not in PROVIDERS:
        raise InputError(f"must be one of {', '.join(PROVIDERS)}", "provider")
    if transport is not None and not transports.exists(conn, transport):
        raise InputError(f"there is no transport {transport[:60]}: nurture transports list", "transport")
    options: dict[str, Any] = {}
    kept: tuple[Secret, ...] = ()
    if provider == "ses":
        options = _ses_options(settings, topics, versions, stand_in)
        if secret is not None:
            PROVIDERS[provider].check_secret(secret)
    else:
        if topics or stand_in:
            raise InputError("only Amazon SES has topics", "topic")
        kept = (Secret(_secret_for(provider, secret)),)
    confirm_until = now + CONFIRMS_FOR if provider == "ses" else None
    # Hexadecimal: an id that began with a hyphen could be given to no command.
    made = Hook(random.token_hex(16), provider, transport, options, kept, confirm_until, now)
    row = {name: value for name, value in asdict(made).items() if name != "secrets"}
    conn.execute(insert(hook).values(**row, secrets=_seal(settings, kept)))
    return made


def find_hook(conn: Connection, settings: Settings, hook_id: str) -> Hook:
    """Raises NotFound, and Sealed where its secrets were sealed under another secret key."""
    row = conn.execute(select(hook).where(hook.c.id == hook_id)).first() if "\x00" not in hook_id else None
    if row is None:
        raise NotFound(f"There is no hook {hook_id[:60]}: nurture hooks list")
    return _hook(row, _unseal(settings, row))


def rotate_hook(
    conn: Connection, settings: Settings, hook_id: str, now: datetime, *, secret: str | None = None, keep: timedelta = OLD_SECRET_LIFE
) -> Hook:
    """Gives the hook a new secret; the one before counts for `keep` longer, and no other, nor one that was sealed under another secret
    key. Raises InputError, NotFound."""
    row = conn.execute(select(hook).where(hook.c.id == hook_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"There is no hook {hook_id[:60]}: nurture hooks list")
    if row.provider == "ses":
        raise InputError("Amazon SES has no secret: make a new topic, and a new hook for it", "id")
    if not timedelta(0) <= keep <= timedelta(days=90):
        raise InputError("must be between nothing and 90 days", "keep")
    try:
        before = [replace(one, until=now + keep) for one in _unseal(settings, row)[:1]]
    except Sealed:
        before = []
    kept = (Secret(_secret_for(row.provider, secret)), *before)
    conn.execute(update(hook).where(hook.c.id == hook_id).values(secrets=_seal(settings, kept)))
    return _hook(row, kept)


def remove_hook(conn: Connection, hook_id: str) -> None:
    """Forgets the hook and what it was told; what followed stays. Raises NotFound."""
    if not conn.execute(delete(hook).where(hook.c.id == hook_id)).rowcount:
        raise NotFound(f"There is no hook {hook_id}: nurture hooks list")


def open_confirmation(conn: Connection, hook_id: str, now: datetime) -> datetime:
    """For the next hour subscriptions of the hook's topics are confirmed again; those that came too late, too. Returns until when.
    Raises NotFound, InputError."""
    until = now + CONFIRMS_FOR
    changed = conn.execute(update(hook).where(hook.c.id == hook_id, hook.c.provider == "ses").values(confirm_until=until))
    if not changed.rowcount:
        raise NotFound(f"There is no hook {hook_id} for Amazon SES: nurture hooks list")
    conn.execute(
        update(hook_call)
        .where(hook_call.c.hook_id == hook_id, hook_call.c.state == "failed", hook_call.c.kind == sns.CONFIRMATION)
        .values(state="waiting", reason=None)
    )
    return until


def retry_call(conn: Connection, call_id: int) -> None:
    """Has what was stored read once more: what failed, or found no message. Raises NotFound, and InputError for what was refused."""
    statement = update(hook_call).where(hook_call.c.id == call_id, hook_call.c.state.in_(("done", "failed")))
    if conn.execute(statement.values(state="waiting", reason=None, processed_at=None)).rowcount:
        return
    state = conn.execute(select(hook_call.c.state).where(hook_call.c.id == call_id)).scalar()
    if state is None:
        raise NotFound(f"There is no call {call_id}.")
    if state == "refused":
        raise InputError("was refused: nothing that it says is believed", "call")


# Taking calls -----------------------------------------------------------------------------------------------------------


def verify(known: Hook, call: Call, certificates: sns.Certificates) -> list[Item]:
    """The events of a call, if it is the provider's. Raises Refused whatever is wrong with it (W-01), and CallError where we could not
    find out, which is ours and to be answered with 503."""
    try:
        return PROVIDERS[known.provider].verify(call, known.active(call.at), known.options, certificates)
    except Refused:
        raise
    except CallError as error:
        if error.outcome == "refused":
            raise Refused(401, f"names a place that may not be called: {error.problem}") from error
        raise
    except Exception as error:
        log.exception("a call of %s could not be verified", known.provider)
        raise Refused(401, f"could not be verified: {type(error).__name__}") from error


def store(conn: Connection, known: Hook, items: Sequence[Item], at: datetime) -> int:
    """Stores those events that are new, to be processed by a worker. Returns how many (W-02)."""
    rows = [
        {"hook_id": known.id, "key": one.key, "kind": one.kind[:100], "raw": one.raw, "received_at": at, "state": "waiting"}
        for one in items
    ]
    return len(insert_rows(conn, hook_call, rows, conflict="(hook_id, key) do nothing", returning=("id",)))


def note_refusal(conn: Connection, known: Hook, call: Call, refused: Refused) -> None:
    """Keeps a refused call for the operator to look at: its beginning, once, and no more than the last 200 of a hook."""
    raw = call.body[:REFUSED_BYTES].decode("utf-8", "replace").replace("\x00", "\ufffd")
    row = {
        "hook_id": known.id,
        "key": f"refused:{digest(call.body, refused.problem)}",
        "kind": "",
        "raw": raw,
        "received_at": call.at,
        "state": "refused",
        "reason": refused.problem[:1000].replace("\x00", ""),
    }
    if insert_rows(conn, hook_call, [row], conflict="(hook_id, key) do nothing", returning=("id",)):
        conn.execute(_FORGET_REFUSED, {"hook": known.id, "kept": REFUSED_KEPT})


# Processing -------------------------------------------------------------------------------------------------------------


def process_due(engine: Engine, settings: Settings, clock: Callable[[], datetime], bells: Bells, caller: Caller | None = None) -> int:
    """Reads what waits and has it heard, in batches with a transaction each, until nothing is left. Returns how many calls.

    A call that cannot be read, or makes the code raise, fails with the reason and is shown; the others go on (invariant 12). Safe to run
    anywhere at the same time: row locks are the claim. A database that goes away ends the run, and nothing of the batch has happened.
    """
    caller = caller or Caller(settings.allow_hosts)
    processed = 0
    while True:
        with engine.begin() as conn:
            rows = conn.execute(_CLAIM, {"limit": BATCH, "bytes": BATCH_BYTES}).all()
            partitions, alerts = _process(conn, rows, clock(), caller)
        bells.advance(partitions)
        if alerts:
            bells.notify()
        processed += len(rows)
        if not rows:
            return processed


def _process(conn: Connection, rows: Sequence[Row], now: datetime, caller: Caller) -> tuple[set[int], bool]:
    done, readable = [], []
    # One of them at a time: each may take ten seconds. The others wait for the next batch.
    confirmations = [row for row in rows if row.provider == "ses" and row.kind == sns.CONFIRMATION]
    done += [_confirm(row, now, caller) for row in confirmations[:1]]
    for row in rows:
        if row in confirmations:
            continue
        if row.provider == "ses" and row.kind == sns.FAREWELL:
            done.append(
                _ended(row, now, "done", "Amazon says that the topic's subscription has ended. If nobody meant it, subscribe again")
            )
            continue
        try:
            readable.append((row, PROVIDERS[row.provider].read(row.raw, row.received_at)))
        except Exception as error:
            log.warning("call %d of %s could not be read: %s", row.id, row.provider, error)
            done.append(_ended(row, now, "failed", f"could not be read: {type(error).__name__}: {error}"))
    partitions, alerts = set(), False
    for provider in sorted({row.provider for row, _ in readable}):
        ended, rung, told = _hear(conn, [one for one in readable if one[0].provider == provider], provider, now)
        done += ended
        partitions |= rung
        alerts = alerts or told
    update_rows(conn, hook_call, done)
    return partitions, alerts


def _hear(
    conn: Connection, read: Sequence[tuple[Row, list[Report]]], provider: str, now: datetime
) -> tuple[list[dict[str, Any]], set[int], bool]:
    """Has the calls heard together; if that raises, each alone, so that only the one which is to blame fails."""
    point = conn.begin_nested()
    try:
        heard = hear(conn, [report for _, reports in read for report in reports], provider, now)
        point.commit()
    except AWAY:
        raise
    except Exception as error:
        point.rollback()
        if len(read) == 1:
            row = read[0][0]
            log.exception("call %d of %s could not be heard", row.id, provider)
            return [_ended(row, now, "failed", f"could not be heard: {type(error).__name__}: {error}")], set(), False
        parts = [_hear(conn, [one], provider, now) for one in read]
        return (
            [end for ended, _, _ in parts for end in ended],
            set().union(*(rung for _, rung, _ in parts)),
            any(told for *_, told in parts),
        )
    findings, at, done = heard.findings, 0, []
    for row, reports in read:
        done.append(_told(row, findings[at : at + len(reports)], now))
        at += len(reports)
    return done, set(heard.partitions), heard.alerts


def _told(row: Row, findings: Sequence[Finding], now: datetime) -> dict[str, Any]:
    matched = [one.message for one in findings if one.message is not None]
    problems = sorted({one.problem for one in findings if one.problem})
    reason = _PROBLEMS.get(problems[0], problems[0]) if problems and not matched else None
    return _ended(row, now, "done", reason, len(findings), len(matched), matched[0] if matched else None)


def _ended(
    row: Row, now: datetime, state: str, reason: str | None, reports: int = 0, matched: int = 0, message: Any = None
) -> dict[str, Any]:
    return {
        "id": row.id,
        "state": state,
        "reason": reason[:1000].replace("\x00", "") if reason else None,
        "reports": reports,
        "matched": matched,
        "message_id": message,
        "processed_at": now,
    }


def _confirm(row: Row, now: datetime, caller: Caller) -> dict[str, Any]:
    """Confirms a subscription by fetching the address that Amazon named: what was verified, and only while the operator expects it."""
    if row.confirm_until is None or row.confirm_until <= now:
        closed = f"nobody expected a subscription at this time: nurture hooks confirm {row.hook_id} confirms it within the next hour"
        return _ended(row, now, "failed", closed)
    url = ses.confirmation(row.raw)
    try:
        sns.check_place(url, row.options.get("stand_in"))
        answer = caller.get(url)
    except (Refused, CallError) as error:
        return _ended(row, now, "failed", f"the subscription could not be confirmed: {error}")
    if answer.status != 200:
        return _ended(row, now, "failed", f"the subscription could not be confirmed: Amazon answered {answer.status}")
    return _ended(row, now, "done", "the subscription was confirmed")


_PROBLEMS = {
    "forged": "its token was not made here",
    "no_message": "no message of ours is meant",
    "never_sent": "the message it means was never sent",
}


def _ses_options(settings: Settings, topics: Sequence[str], versions: Sequence[int], stand_in: str | None) -> dict[str, Any]:
    if not 1 <= len(topics) <= _TOPICS:
        raise InputError(f"Amazon SES needs 1 to {_TOPICS} topics, by their ARNs", "topic")
    if not versions or not set(versions) <= set(sns.VERSIONS):
        raise InputError("must be 1 or 2", "signature-version")
    options = {"topics": [sns.check_topic(one) for one in topics], "versions": sorted(set(versions)), "stand_in": stand_in}
    if stand_in is not None:
        target = Caller(settings.allow_hosts).target(stand_in)
        if not target.listed or target.place[0] != "https" or stand_in.count("/") != 2:
            raise InputError("must be an origin such as https://127.0.0.1:4566 that NURTURE_ALLOW_HOSTS allows", "stand-in")
    return options


def _secret_for(provider: str, given: str | None) -> str:
    if given is None and provider == "postmark":
        return random.token_urlsafe(32)
    if not given:
        raise InputError(f"{provider} shows a key: give it with --secret", "secret")
    return PROVIDERS[provider].check_secret(given)


def _hook(row: Row, kept: tuple[Secret, ...]) -> Hook:
    return Hook(**{name: value for name, value in row._mapping.items() if name != "secrets"}, secrets=kept)


def _seal(settings: Settings, kept: Sequence[Secret]) -> str:
    return seal(settings, "hooks", [asdict(one) for one in kept]) if kept else ""


def _unseal(settings: Settings, row: Row) -> tuple[Secret, ...]:
    if not row.secrets:
        return ()
    kept = unseal(settings, "hooks", row.secrets, f"hook {row.id}", f"nurture hooks rotate {row.id} …")
    return tuple(Secret(one["secret"], datetime.fromisoformat(one["until"]) if one["until"] else None) for one in kept)


# No more at once than fits into memory: a call may have a megabyte.
_CLAIM = text("""
    select c.id, c.hook_id, c.kind, c.raw, c.received_at, h.provider, h.options, h.confirm_until
      from hook_call c join hook h on h.id = c.hook_id
     where c.state = 'waiting' and c.id = any(array(
           select id from (
             select id, sum(octet_length(raw)) over (order by id) - octet_length(raw) as before
               from (select id, raw from hook_call where state = 'waiting' order by id limit :limit) as first) as sized
            where before < :bytes))
     order by c.id
       for update of c skip locked
""")

_FORGET_REFUSED = text("""
    delete from hook_call where state = 'refused' and hook_id = :hook and id <= (
        select id from hook_call where state = 'refused' and hook_id = :hook order by id desc offset :kept limit 1)
""")
