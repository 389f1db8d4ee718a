"""Doing the effects on staff and other systems: alerts and webhooks that are due (tasks are rows and nothing more).

    claim, commit ─▶ channel, text ─▶ on_wire, commit ─▶ the wire ─▶ settle      one thread for each, as many claims as threads

What belongs to a paused campaign is frozen instead (`flow.frozen`): its mode is read in the statement that commits `on_wire`. Whoever dies
before that has called nobody.

An alert goes out at most once: whatever may have been taken is `unknown` and stays so. A webhook goes out until it is answered, always
under the same id, by which receivers know it again (Standard Webhooks).
"""

from __future__ import annotations

import asyncio
import html
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, Row

from app.config import PRODUCT, VERSION, Settings
from app.db import insert_rows
from app.errors import CallError, NotFound, NurtureError, RenderSkip, SendError
from app.flow import claims, frozen, mime, publish, transports
from app.flow.channels import Channel, Sealed, disable_channel, find_channels, find_disabled
from app.flow.claims import Heartbeat
from app.flow.composing.filters import one_line
from app.flow.deliver import transport_for
from app.flow.dkim import Signers, signers_now
from app.flow.keepers import AWAY
from app.models import decision
from app.providers import Letter, Transport
from app.providers.outgoing import Answer, Caller, signed
from app.queue import Bells
from app.rules.delivery import DONE, Ending, Limits, answered, later, unanswered
from app.rules.lifecycle import Lifecycle

AT_ONCE = 8
OPERATORS = "operators"  # the channel that hears of what stops mail, unless lifecycle.yaml names another for brakes
REPLY_KEPT = 500

log = logging.getLogger("nurture.notify")


def run(
    engine: Engine,
    settings: Settings,
    worker_id: UUID,
    clock: Callable[[], datetime],
    bells: Bells,
    *,
    caller: Caller | None = None,
    transport: Transport | None = None,
    limits: Limits | None = None,
    at_once: int = AT_ONCE,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Does all alerts and webhooks that are due, and those that fall due meanwhile; returns how many were taken.

    Claims commit before the wire, results after it (invariants 3 to 5). `worker_id` is this run's alone. Ends when nothing is due or when
    `stopping()` says so; what is on the wire then is waited for, ten seconds at most. Never raises for what the other side does.
    """
    limits = limits or Limits()
    caller = caller or Caller(settings.allow_hosts)
    tell_operators(engine, settings, clock, caller, transport)
    with engine.connect() as conn:
        if not conn.exec_driver_sql(_ANY_DUE, {"now": clock()}).scalar():
            return 0
    mailbox = transport or transport_for(settings, engine, clock, limits)
    desk = Desk(engine, settings, clock, caller, mailbox)
    with Heartbeat(engine, worker_id, limits.heartbeat), ThreadPoolExecutor(at_once, "notify") as threads:
        taken = _work(desk, worker_id, threads, at_once, stopping)
        with engine.begin() as conn:
            claims.stop(conn, worker_id)
    return taken


def recover(engine: Engine, clock: Callable[[], datetime], bells: Bells, *, dead_after: float = Limits.dead_after) -> claims.Recovered:
    """Takes over what dead workers had claimed: what was not on the wire yet is due again; of what was, a webhook is due again under its
    old id, and an alert is `unknown` and never sent again.

    Dead is what it is for messages (invariant 5). The token of an unknown alert stays, so that a worker that wakes up may still say what
    became of it; that of a webhook is void, and what it says is ignored.
    """
    now = clock()
    with engine.begin() as conn:
        at = {"dead": dead_after, "now": now, "limit": claims.RECOVERED_AT_ONCE}
        due = conn.exec_driver_sql(_GIVE_BACK, at).rowcount
        lost = conn.exec_driver_sql(_LOSE, at).all()
        insert_rows(conn, decision, [_ledger(row, now, Ending("unknown", "effect_unknown"), {"cause": "worker_died"}) for row in lost])
    if due or lost:
        log.warning("recovered from dead workers: %d alerts and webhooks are due again, %d alerts are unknown", due, len(lost))
    if due:
        bells.notify()
    return claims.Recovered(due, len(lost))


def tell_operators(
    engine: Engine, settings: Settings, clock: Callable[[], datetime], caller: Caller, transport: Transport | None = None
) -> int:
    """Tells the channel that hears of brakes, else `operators`, what stopped or slowed mail, each thing once. Returns how many things. What
    the channel does not take is in the log, and `nurture doctor` shows it anyway. Never raises for what the other side does."""
    try:
        with engine.begin() as conn:
            news = transports.untold(conn)
            if not news:
                return 0
            lifecycle = publish.book(conn).lifecycle
            name = lifecycle.brakes.tell or OPERATORS
            channel = find_channels(conn, settings, [name]).get(name)
            signers = signers_now(conn, settings)
    except (Sealed, NotFound) as error:
        log.error("operators could not be told: %s", error)
        return 0
    if channel is None:
        return len(news)
    try:
        words = Words(f"{PRODUCT}: mail is held up", "\n\n".join(news), "", f"{settings.base_url}/console/")
        now = clock()
        data = {"type": "operators.alert", "timestamp": now.isoformat(), "data": {"news": news}}
        mailbox = transport or transport_for(settings, engine, clock, Limits(connections=1))
        send_now(channel, words, data, uuid4(), lifecycle, signers, mailbox, now, caller)
    except NurtureError as error:
        log.error("operators could not be told over %s: %s: %s", channel.shown, error, " ".join(news))
    return len(news)


def send_test(channel: Channel, lifecycle: Lifecycle, signers: Signers, transport: Transport, now: datetime, caller: Caller) -> str:
    """Sends a word through the channel, as `send_now` does."""
    words = Words(f"{PRODUCT}: test of the channel {channel.name}", f"The channel {channel.name} of {PRODUCT} works.", "", None)
    data = {"type": "channel.test", "timestamp": now.isoformat(), "data": {"channel": channel.name}}
    return send_now(channel, words, data, uuid4(), lifecycle, signers, transport, now, caller)


def send_now(
    channel: Channel,
    words: Words,
    data: Mapping[str, Any],
    ident: UUID,
    lifecycle: Lifecycle,
    signers: Signers,
    transport: Transport,
    now: datetime,
    caller: Caller,
) -> str:
    """Sends `words` (to a webhook, `data`) through the channel, at once and once; returns what the other side said. Raises NurtureError
    when it took nothing, or when nobody knows."""
    if channel.kind == "email":
        return asyncio.run(_mail(transport, _letter(ident, ("", channel.address), words, lifecycle, now, signers)))
    answer = _post(caller, channel, words, data, f"msg_{ident.hex}", now)
    if not 200 <= answer.status < 300:
        raise CallError("unknown", f"{channel.shown} answered {answer.status}: {_said(answer)}")
    return str(answer.status)


@dataclass(frozen=True, slots=True)
class Words:
    """An alert as it is read: subject, text, a line that says whom it is about, and where the account can be seen."""

    subject: str
    text: str
    about: str
    link: str | None


@dataclass(frozen=True, slots=True)
class Result:
    """How one claim ended. `called` says whether an attempt was made; only such are counted. `gone` is a channel whose address answered
    that nobody listens there any more."""

    ending: Ending
    reply: str | None = None
    called: bool = True
    gone: Channel | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Desk:
    """What the threads of a run share, and how one of them does an effect."""

    def __init__(self, engine: Engine, settings: Settings, clock: Callable[[], datetime], caller: Caller, transport: Transport):
        self.engine, self.settings, self.clock, self.caller, self.transport = engine, settings, clock, caller, transport

    def do(self, row: Row) -> bool:
        """One effect, from its claim to its settlement. Returns whether it was taken."""
        try:
            with self.engine.begin() as conn:
                if not conn.exec_driver_sql(_ON_WIRE, {"id": row.id, "claim": row.claim}).all():
                    # Believed dead and taken over, or held up by a pause; nothing went out.
                    frozen.freeze_claimed(conn, row, self.clock())
                    return False
                lifecycle = publish.book(conn).lifecycle
                result = channel = self._channel(conn, row)
                signers = signers_now(conn, self.settings)
        except AWAY as error:
            result = Result(self._later(row), f"the database is away: {error.orig}"[:REPLY_KEPT], called=False)
        if not isinstance(result, Result):
            result = self._sent(row, channel, lifecycle, signers)
        return self._settled(row, result)

    def _channel(self, conn: Connection, row: Row) -> Channel | Result:
        """Where it goes. An owner and an address are channels without a name."""
        to = row.payload["to"]
        if to == "owner" or "@" in to:
            owner = row.payload.get("owner") or {}
            address = owner.get("email") if to == "owner" else to
            return Channel("", "email", address) if address else Result(Ending("failed", "no_owner"), called=False)
        try:
            found = find_channels(conn, self.settings, [to]).get(to)
        except Sealed as error:
            return Result(Ending("failed", "sealed_channel"), called=False, evidence={"channel": to, "problem": error.problem})
        if found is None:
            return Result(Ending("failed", "no_channel"), called=False, evidence={"channel": to})
        if to in find_disabled(conn, [to]):
            return Result(Ending("failed", "channel_disabled"), called=False, evidence={"channel": to})
        if row.kind == "webhook" and found.kind != "webhook":
            return Result(Ending("failed", "wrong_channel"), called=False, evidence={"channel": to, "kind": found.kind})
        return found

    def _sent(self, row: Row, channel: Channel, lifecycle: Lifecycle, signers: Signers) -> Result:
        attempts, now = row.attempts + 1, self.clock()
        repeats = channel.kind == "webhook"
        try:
            if channel.kind == "email":
                return Result(DONE, self._mailed(row, channel, lifecycle, signers))
            answer = _post(self.caller, channel, self._words(row), self._data(row), f"msg_{row.id.hex}", now)
            named = _retry_after(answer.headers.get("retry-after"), now)
            end = answered(answer.status, named, repeats, row.id, attempts, self.clock(), row.since)
            gone = channel if end.reason == "channel_gone" else None
            return Result(end, f"{answer.status} {_said(answer)}".strip(), gone=gone, evidence={"status": answer.status})
        except CallError as error:
            end = unanswered(error.outcome, repeats, row.id, attempts, self.clock(), row.since)
            return Result(end, str(error)[:REPLY_KEPT], called=error.outcome != "refused")
        except SendError as error:
            end = _not_mailed(error, row, attempts, self.clock())
            return Result(end, str(error)[:REPLY_KEPT], evidence={"phase": error.phase})
        except RenderSkip as skip:
            return Result(Ending("failed", skip.reason), called=False, evidence=skip.evidence)
        except Exception as error:
            # A fault of our own. An alert may be out already; a webhook is known again (invariants 4 and 12).
            log.exception("effect %s could not be done", row.id)
            return Result(
                unanswered("unknown", repeats, row.id, attempts, self.clock(), row.since), f"{type(error).__name__}: {error}"[:300]
            )

    def _mailed(self, row: Row, channel: Channel, lifecycle: Lifecycle, signers: Signers) -> str:
        owner = row.payload.get("owner") or {}
        name = owner.get("name") if row.payload["to"] == "owner" else None
        letter = _letter(row.id, (name or "", channel.address), self._words(row), lifecycle, row.created_at, signers)
        return asyncio.run(_mail(self.transport, letter))

    def _words(self, row: Row) -> Words:
        payload = row.payload
        if row.kind == "webhook":
            return Words("", "", "", None)
        about = payload["about"]
        named = ((about["account_name"], about["account"]), (about["contact_name"], about["contact"]))
        parts = [f"{name} ({key})" if name and name != key else key for name, key in named if key]
        parts.append(f"campaign {about['campaign_name']}, step {about['step']}")
        link = f"{self.settings.console_base}/console/accounts/{quote(about['account'], safe='')}"
        return Words(payload["subject"], payload["text"], " · ".join(parts), link)

    def _data(self, row: Row) -> dict[str, Any]:
        if row.kind == "webhook":
            return row.payload["body"]
        data = {name: row.payload[name] for name in ("subject", "text", "about")}
        return {"type": "campaign.alert", "timestamp": row.created_at.isoformat(), "data": data}

    def _later(self, row: Row) -> Ending:
        return later(row.id, 1, self.clock(), row.since)

    def _settled(self, row: Row, result: Result) -> bool:
        """Writes what became of it, waiting for a database that is away: nothing is sent again for that."""
        for pause in (0.2, 0.5, 1, 2, 5, 10):
            try:
                with self.engine.begin() as conn:
                    if result.gone and disable_channel(conn, self.settings, result.gone, result.reply or "", self.clock()):
                        log.warning("channel %s is disabled: %s answered that it is gone", result.gone.name, result.gone.shown)
                    return settle(conn, row, result, self.clock())
            except AWAY as error:
                log.warning("a result waits for the database: %s", error.orig)
                time.sleep(pause)
        log.error("gave up on the result of effect %s: recovery will say what is to become of it", row.id)
        return False


def claim(conn: Connection, worker_id: UUID, now: datetime, limit: int) -> list[Row]:
    """Claims up to `limit` effects that are due, those due longest first, each with a fresh token; the caller commits before the wire.

    Registers the worker in the same transaction, as for messages; the commit waits for the disk whatever the database's default.
    """
    rows = conn.exec_driver_sql(_CLAIM, {"worker": worker_id, "now": now, "limit": limit}).all()
    if rows:
        conn.exec_driver_sql(claims.REGISTER, {"id": worker_id, "host": socket.gethostname(), "pid": os.getpid()})
    return sorted(rows, key=lambda row: (row.due_at, row.id))


def settle(conn: Connection, row: Row, result: Result, now: datetime) -> bool:
    """Writes how a claim ended, with a line of the ledger; returns whether the effect was taken.

    Changes nothing when the token no longer matches. An alert that was declared unknown meanwhile may still learn the truth.
    """
    end = result.ending
    changed = conn.exec_driver_sql(
        _SETTLE,
        {
            "id": row.id,
            "claim": row.claim,
            "state": end.state,
            "reason": end.reason,
            "due": end.due_at,
            "attempts": row.attempts + result.called,
            "reply": result.reply,
            "now": now,
        },
    ).all()
    if changed and (end.state != "due" or end.reason != row.reason):
        reply = {"reply": result.reply} if result.reply else {}
        insert_rows(conn, decision, [_ledger(row, now, end, {**reply, **result.evidence})])
    return bool(changed) and end.state == "done"


def _work(desk: Desk, worker_id: UUID, threads: ThreadPoolExecutor, at_once: int, stopping: Callable[[], bool]) -> int:
    """Claims as many as there are free threads, so that nothing is claimed that does not go out at once."""
    busy: set[Future[bool]] = set()
    taken = 0
    while True:
        claimed: list[Row] = []
        if not stopping():
            with desk.engine.begin() as conn:
                claimed = claim(conn, worker_id, desk.clock(), at_once - len(busy))
        busy |= {threads.submit(desk.do, row) for row in claimed}
        if not busy:
            return taken
        done, busy = wait(busy, return_when=FIRST_COMPLETED)
        taken += sum(one.result() for one in done)


def _post(caller: Caller, channel: Channel, words: Words, data: Mapping[str, Any], ident: str, now: datetime) -> Answer:
    headers = {"Content-Type": "application/json", "User-Agent": f"{PRODUCT}/{VERSION}"}
    if channel.kind == "slack":
        return caller.post(channel.address, to_json(_slack(words)), headers)
    body = to_json(data)
    return caller.post(channel.address, body, headers | signed(channel.secrets(now), ident, int(now.timestamp()), body))


def _slack(words: Words) -> dict[str, Any]:
    """Plain text: what a customer is called must neither ring everybody nor become a link."""
    text = _slack_text(words.text)
    about = _slack_text(words.about) + (f" · <{words.link}|Open>" if words.link else "")
    blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "mrkdwn", "text": text[:2900], "verbatim": True}}]
    if about:
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": about[:1900], "verbatim": True}]})
    return {"text": _slack_text(words.subject), "blocks": blocks}


def _slack_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True, slots=True)
class _Parts:
    subject: str
    html: str
    text: str


def _letter(ident: UUID, to: tuple[str, str], words: Words, lifecycle: Lifecycle, at: datetime, signers: Signers) -> Letter:
    """An alert as a mail: to one of our own, so without tracking and without an unsubscribe link. The same alert, the same bytes."""
    sender = lifecycle.senders["default"]
    address = mime.address(sender.email, "From")
    lines = "<br>\n".join(html.escape(line) for line in words.text.split("\n"))
    text, page = words.text, f"<p>{lines}</p>"
    if words.about:
        text += f"\n\n--\n{words.about}\n{words.link}\n"
        page += f'\n<p>{html.escape(words.about)}<br>\n<a href="{html.escape(words.link or "")}">Open the account</a></p>'
    data = mime.assemble(
        _Parts(one_line(words.subject), f'<!doctype html><html><body style="font-family:sans-serif">{page}</body></html>', text),
        sender=(sender.name, sender.email),
        reply_to=None,
        to=to,
        message_header=f"<{ident.hex}@{address.rpartition('@')[2]}>",
        date=at,
        unsubscribe_url=None,
        list_id=None,
        feedback_id=None,
        token=None,
        transactional=True,
    )
    if signer := signers.of.get(address.rpartition("@")[2].lower()):
        data = signer.sign(data, at)
    return Letter(ident, address, mime.address(to[1], "To"), data, plain=True)


async def _mail(transport: Transport, letter: Letter) -> str:
    """Hands the letter over and returns the reply. Raises SendError."""
    connection = await transport.open()
    try:
        await connection.begin(letter)
        reply = await connection.finish()
    except BaseException:
        connection.drop()
        raise
    await connection.close()
    return reply


def _not_mailed(error: SendError, row: Row, attempts: int, now: datetime) -> Ending:
    if error.outcome == "unknown":
        return Ending("unknown", "effect_unknown")
    return Ending("failed", "effect_refused") if error.outcome == "perm" else later(row.id, attempts, now, row.since)


def _retry_after(value: str | None, now: datetime) -> timedelta | None:
    """What a Retry-After header asks for, in seconds or as a date; None for what is neither."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return timedelta(seconds=int(value))
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC) - now


def _said(answer: Answer) -> str:
    """The beginning of the body as one line, fit for a database."""
    return one_line(answer.body[: REPLY_KEPT * 4].decode("utf-8", "replace"))[:REPLY_KEPT]


def _ledger(row: Row, at: datetime, end: Ending, evidence: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "at": at,
        "account_id": row.account_id,
        "contact_id": row.contact_id,
        "campaign_id": row.campaign_id,
        "version_id": row.version_id,
        "enrollment_id": row.enrollment_id,
        "step_id": row.step_id,
        "gate": "effect",
        "verdict": {"done": "yes", "due": "wait"}.get(end.state, "no"),
        "reason": end.reason,
        "evidence": {"effect": str(row.id), "kind": row.kind, "to": row.payload["to"], **evidence},
    }


_COLUMNS = """f.id, f.kind, f.claim, f.enrollment_id, f.campaign_id, f.version_id, f.step_id, f.occurrence, f.account_id, f.contact_id,
    f.payload, f.created_at, coalesce(f.resumed_at, f.created_at) as since, f.due_at, f.attempts, f.reason"""
_ANY_DUE = "select exists (select from effect where state = 'due' and due_at <= %(now)s)"
_CLAIM = f"""
with durable as materialized (select set_config('synchronous_commit', 'on', true) as commit)
update effect f set state = 'claimed', claim = gen_random_uuid(), worker_id = %(worker)s, claimed_at = %(now)s
from durable
where durable.commit = 'on' and f.state = 'due' and f.id = any(array(
    select id from effect where state = 'due' and due_at <= %(now)s order by due_at limit %(limit)s for update skip locked
))
returning {_COLUMNS}"""
_ON_WIRE = """
with durable as materialized (select set_config('synchronous_commit', 'on', true) as commit)
update effect f set state = 'on_wire' from durable
where durable.commit = 'on' and f.id = %(id)s and f.claim = %(claim)s and f.state = 'claimed'
    and not exists (select from campaign k where k.id = f.campaign_id and k.mode = 'paused')
returning f.id"""
_SETTLE = """
update effect set state = %(state)s, reason = %(reason)s, due_at = coalesce(%(due)s, due_at), attempts = %(attempts)s,
    reply = coalesce(%(reply)s, reply),
    claim = case when %(state)s = 'due' then null else claim end,
    worker_id = case when %(state)s = 'due' then null else worker_id end,
    settled_at = case when %(state)s = 'due' then null else %(now)s::timestamptz end
where id = %(id)s and claim = %(claim)s and (state in ('claimed', 'on_wire') or (state = 'unknown' and %(state)s in ('done', 'failed')))
returning id"""
_DEAD = """select f.id from effect f left join worker w on w.id = f.worker_id
    where {held} and (w.id is null or w.stopped_at is not null
        or w.heartbeat_at < clock_timestamp() - make_interval(secs => %(dead)s))
    limit %(limit)s for update of f skip locked"""
_GIVEN_BACK = _DEAD.format(held="(f.state = 'claimed' or (f.state = 'on_wire' and f.kind = 'webhook'))")
_GIVE_BACK = f"update effect set state = 'due', claim = null, worker_id = null where id = any(array({_GIVEN_BACK}))"
_LOSE = f"""
update effect f set state = 'unknown', reason = 'effect_unknown', settled_at = %(now)s, attempts = attempts + 1
where f.id = any(array({_DEAD.format(held="f.state = 'on_wire' and f.kind = 'alert'")}))
returning {_COLUMNS}"""
