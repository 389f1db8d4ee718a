"""Tracking: what became of a message after it was sent, as far as its links tell.

`record_hit` stores that somebody or something fetched a link; it decides nothing. A minute later, when bursts have shown themselves,
`settle_due` judges the hits and raises `nurture.email_clicked` for those of people. Opens raise nothing, ever (T-03). Whoever or whatever
fetched a link proves that an `unknown` message arrived (S-05).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, text

from app.db import insert_rows, update_rows
from app.flow import outcome
from app.flow.consents import CLICK_TRACKING, OPEN_TRACKING
from app.flow.ingest import Own, raise_own
from app.flow.respond import lifecycle_in_force
from app.models import delivery_event, hit
from app.queue import Bells
from app.rules import signals, tracking
from app.rules.facts import CLICK_WITHDRAWN, CLICKED
from app.rules.lifecycle import Tracking
from app.rules.signals import Request

SETTLES_AFTER = timedelta(seconds=60)
REVIEWED_AFTER = timedelta(minutes=10)  # the verdict may change until then, as others report late
HITS_PER_MESSAGE = 300  # more tells nothing new, and a link that is fetched without end must not fill the disk
BATCH = 500
_AROUND = max(signals.SLOW_BURST_WITHIN, signals.SWEEP_WITHIN)
_AROUND_MESSAGE = max(_AROUND, signals.TRAPPED_WITHIN)
_COMPANIONS = 2000


def record_hit(conn: Connection, message_id: UUID, kind: str, link: int | None, at: datetime, request: Request) -> str | None:
    """Stores one GET of a link of `message_id` with its signals (4.3), to be judged 60 s later. Returns the verdict so far.

    `kind` is click, open, survey, unsubscribe, preferences or view; `link` tells links of one kind apart (a survey's is its score).
    None, and nothing stored, when there is no such message, its contact was erased, the installation or the person does not permit it at
    this moment, whenever the mail was sent (P-07, T-05, T-16), or the message has 300 hits already. Where only the day of an open may be
    kept, that is kept and nothing else. Callers pass GETs only: HEAD and other methods are never recorded (T-13).
    """
    purpose = OPEN_TRACKING if kind == "open" else CLICK_TRACKING
    found = conn.execute(_CONTEXT, {"id": message_id, "purpose": purpose, "most": HITS_PER_MESSAGE}).mappings().first()
    if found is None or found["erased"] or found["hits"] >= HITS_PER_MESSAGE:
        return None
    may = _permitted(conn, kind, found)
    if may == tracking.NOTHING:
        return None
    shown = signals.signals(kind, request, since_sent=_since_sent(found, at), image_loaded=found["image_loaded"])
    verdict = signals.verdict(kind, shown, request.user_agent)
    if may == tracking.DAY_ONLY:
        if verdict in ("human", "proxy"):
            conn.execute(_ACTIVE, {"id": message_id, "day": at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)})
        return None
    row = {
        "message_id": message_id,
        "kind": kind,
        "link": link,
        "at": at,
        "network": request.network,
        "user_agent": request.user_agent[:300],
        "signals": shown,
        "score": signals.score(shown),
        "verdict": verdict,
        "settle_at": at + SETTLES_AFTER,
    }
    insert_rows(conn, hit, [row])
    return verdict


def destination(conn: Connection, message_id: UUID, index: int) -> str | None:
    """Where link `index` of a message leads, as stored when it was rendered, or as written where that is the same for everybody and the
    rendered one is no longer kept; None when there is none, or it is not safe (T-10, T-11)."""
    urls = conn.execute(_DESTINATIONS, {"id": message_id}).scalar()
    return urls[index].replace(" ", "%20") if urls and index < len(urls) and is_safe(urls[index]) else None


def _permitted(conn: Connection, kind: str, found: Mapping[str, Any]) -> str:
    inforce = lifecycle_in_force(conn)
    rules = inforce[1].tracking if inforce else Tracking()
    if kind == "open":
        return tracking.opens_kept(rules, tracking.country_of(found["country"], found["locale"]), found["permitted"])
    return tracking.clicks_kept(rules, found["permitted"])


def is_safe(url: Any) -> bool:
    """Whether a browser may be sent to `url`: http or https, with a host, without user information or control characters (T-11)."""
    if not isinstance(url, str) or url != url.strip() or any(letter < " " or letter in "\\\x7f" for letter in url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not set("@ ") & set(parts.netloc) and parts.port != 0
    except ValueError:
        return False


def truncated(address: str | None) -> str | None:
    """The network of an address, all that is kept of it: IPv4 /24, IPv6 /48 (T-06). None for what is no address."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return str(ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 48), strict=False))


def being_judged(conn: Connection, enrollments: Sequence[UUID]) -> dict[UUID, datetime]:
    """For those of `enrollments` with a click that is not judged yet and may prove human: when the last of them will be."""
    rows = conn.execute(_JUDGED, {"enrollments": list(enrollments)})
    return {enrollment: settle_at for enrollment, settle_at in rows}


def settle_due(engine: Engine, clock: Callable[[], datetime], bells: Bells) -> int:
    """Judges the hits whose minute is over, and once more those whose ten minutes are, in batches with a transaction each, until none is
    left. Returns how many.

    Bursts, sweeps and the like count for all hits that are part of them, those judged earlier too. A click that comes to light as a
    scanner's is withdrawn: from reports, which read the verdict, and from usage, by `nurture.email_click_withdrawn`; what it has set off
    is never undone. Human clicks become a delivery event and `nurture.email_clicked`, once per message and link; human and proxy opens
    become a delivery event, once per message. Safe to run anywhere at the same time: a batch holds its messages by row locks.
    """
    settled = 0
    while True:
        with engine.begin() as conn:
            now = clock()
            count, partitions = _settle_batch(conn, now)
        bells.advance(partitions)
        settled += count
        if not count:
            return settled


def _settle_batch(conn: Connection, now: datetime) -> tuple[int, set[int]]:
    messages = [row.id for row in conn.execute(_CLAIM, {"now": now, "limit": BATCH})]
    if not messages:
        return 0, set()
    due = [row.id for row in conn.execute(_DUE, {"messages": messages, "now": now})]
    spans = {"around": _AROUND, "around_message": _AROUND_MESSAGE, "limit": _COMPANIONS}
    hits = [dict(row) for row in conn.execute(_HITS, {"due": due, **spans}).mappings()]
    revised = _judge(conn, hits, {one["message_id"]: one["tracked"] for one in hits})
    conn.execute(_SETTLED, {"due": due, "now": now, "reviewed": REVIEWED_AFTER})
    outcome.resolve(conn, messages, now)
    mine = set(due)
    judged = sorted((one for one in hits if one["id"] in mine), key=lambda one: (one["at"], one["id"]))
    _note_opens(conn, judged)
    return len(due), _note_clicks(conn, judged, now) | _withdraw(conn, revised, now)


def _judge(conn: Connection, hits: list[dict], links_of: Mapping[UUID, int]) -> list[dict]:
    """Adds what shows only across hits or afterwards to their signals, and writes those that change. A signal once found is kept.
    Returns the settled ones that were human's until now."""
    plain = [signals.Hit(one["id"], one["message_id"], one["kind"], one["link"], one["at"], one["network"], one["domain"]) for one in hits]
    across = {signals.BURST: signals.bursts(plain, links_of), signals.SWEEP: signals.sweeps(plain, links_of)}
    across[signals.HONEYPOT] = signals.trapped(plain)
    changed, revised = [], []
    for one in hits:
        found = {**one["signals"], **{name: signals.WEIGHTS[name] for name, ids in across.items() if one["id"] in ids}}
        if one["delivered_at"] is not None and one["at"] >= one["delivered_at"]:
            found = dict(signals.with_arrival(found, one["at"] - one["delivered_at"]))
        if found != one["signals"]:
            verdict = signals.verdict(one["kind"], found, one["user_agent"] or "")
            if one["settled_at"] is not None and one["verdict"] == "human" != verdict:
                revised.append(one)
            one.update(signals=found, score=signals.score(found), verdict=verdict)
            changed.append({name: one[name] for name in ("id", "signals", "score", "verdict")})
    update_rows(conn, hit, sorted(changed, key=lambda row: row["id"]))
    return revised


def _note_opens(conn: Connection, judged: list[dict]) -> None:
    opens = {one["message_id"]: one for one in reversed(judged) if one["kind"] == "open" and one["verdict"] in ("human", "proxy")}
    rows = [
        {"message_id": message, "kind": "opened", "at": one["at"], "detail": {"verdict": one["verdict"]}, "key": "first"}
        for message, one in opens.items()
    ]
    insert_rows(conn, delivery_event, rows, conflict="(message_id, kind, key) do nothing")


def _note_clicks(conn: Connection, judged: list[dict], now: datetime) -> set[int]:
    clicks = {(one["message_id"], one["link"]): one for one in reversed(judged) if one["kind"] == "click" and one["verdict"] == "human"}
    if not clicks:
        return set()
    facts = {row["message_id"]: row for row in conn.execute(_FACTS, {"messages": list({message for message, _ in clicks})}).mappings()}
    rows = [
        {"message_id": message, "kind": "clicked", "at": one["at"], "detail": _link(facts[message], link), "key": f"link:{link}"}
        for (message, link), one in clicks.items()
    ]
    fresh = insert_rows(conn, delivery_event, rows, conflict="(message_id, kind, key) do nothing", returning=("message_id", "key", "at"))
    events = [_clicked(facts[message], int(key.removeprefix("link:")), at) for message, key, at in sorted(fresh, key=lambda row: row.at)]
    if not events:
        return set()
    return raise_own(conn, events, now, conn.execute(text("select partitions from installation")).scalar_one())


def _withdraw(conn: Connection, revised: list[dict], now: datetime) -> set[int]:
    """Takes back what was told of hits that turned out not to be a person's, where no other hit says the same: the delivery event keeps
    its place and says so, and a click leaves the usage that it was counted in. Returns the partitions with news."""
    told = {(one["message_id"], one["link"]): one for one in revised if one["kind"] in ("click", "open")}
    rows = [
        {"message": message, "kind": one["kind"], "link": link, "verdict": one["verdict"]}
        for (message, link), one in sorted(told.items(), key=str)
    ]
    if not rows:
        return set()
    gone = conn.execute(_WITHDRAW, {"rows": to_json(rows).decode()}).all()
    clicks = [row for row in gone if row.kind == "clicked"]
    if not clicks:
        return set()
    facts = {row["message_id"]: row for row in conn.execute(_FACTS, {"messages": [row.message_id for row in clicks]}).mappings()}
    events = [_clicked(facts[row.message_id], int(row.key.removeprefix("link:")), row.at, CLICK_WITHDRAWN) for row in clicks]
    return raise_own(conn, events, now, conn.execute(text("select partitions from installation")).scalar_one())


def _clicked(facts: Mapping[str, Any], link: int, at: datetime, name: str = CLICKED) -> Own:
    properties = {
        "campaign": facts["campaign"],
        "step": facts["step_id"],
        "message": str(facts["message_id"]),
        "enrollment": str(facts["enrollment_id"]),
        **_link(facts, link),
    }
    ident = f"{'click' if name == CLICKED else 'withdrawn'}:{facts['message_id']}:{link}"
    return Own(name, ident, properties, facts["account_key"], facts["contact_key"], at)


def _link(facts: Mapping[str, Any], link: int) -> dict[str, Any]:
    """The link's number, destination and label. The destination is gone when the message's snapshot was (retention, erasure)."""
    urls, written = facts["urls"] or [], facts["written"] or []
    return {
        "link": link,
        "url": urls[link] if link < len(urls) else None,
        "label": written[link].get("label") if link < len(written) else None,
    }


def _since_sent(found: Mapping[str, Any], at: datetime) -> timedelta | None:
    """Time since the relay took the message. Its answer may be written down after a quick scanner has come: then the dot counts."""
    sent = (found["settled_at"] if found["state"] == "sent" else None) or found["dot_at"]
    return max(at - sent, timedelta(0)) if sent else None


_CONTEXT = text("""
    select m.state, m.settled_at, m.dot_at,
           (select count(*) from (select 1 from hit h where h.message_id = m.id limit :most) as few) as hits,
           exists (select 1 from hit h where h.message_id = m.id and h.kind = 'open') as image_loaded,
           p.erased_at is not null as erased, p.locale, p.traits -> 'country' as country,
           (select c.granted from consent c
             where c.person = coalesce(m.person, p.person) and c.purpose = :purpose order by c.at desc, c.id desc limit 1) as permitted
      from message m join contact p on p.id = m.contact_id
     where m.id = :id
""")

_ACTIVE = text("""
    update contact set last_active_at = :day
     where id = (select contact_id from message where id = :id) and (last_active_at is null or last_active_at < :day)
""")

# Braces say that a link has merge tags: it was another for everybody.
_DESTINATIONS = text("""
    select coalesce(nullif(m.links, 'null'), (
        select jsonb_agg(case when one ->> 'url' like '%{%' then '' else one ->> 'url' end order by place)
          from template t, jsonb_array_elements(t.links) with ordinality as l(one, place)
         where t.version_id = m.version_id and t.step_id = m.step_id and t.locale = ''))
      from message m where m.id = :id
""")

_JUDGED = text("""
    select m.enrollment_id, max(h.settle_at)
      from message m join hit h on h.message_id = m.id
     where m.enrollment_id = any(:enrollments) and h.kind = 'click' and h.settled_at is null and h.verdict <> 'scanner'
     group by m.enrollment_id
""")

# The row lock is the claim. It lets others insert rows that refer to the message.
_CLAIM = text("""
    select id from message
     where id = any(array(
             (select message_id from hit where settled_at is null and settle_at <= :now order by settle_at limit :limit)
             union (select message_id from hit where review_at <= :now order by review_at limit :limit)))
     order by id
       for no key update skip locked
""")

_DUE = text("""
    select id from hit where message_id = any(:messages) and ((settled_at is null and settle_at <= :now) or review_at <= :now)
""")

# The due hits; the hits of their messages at about the same time; and clicks from the same network at about the same time.
_HITS = text("""
    with due as (select * from hit where id = any(:due)),
         span as (select min(at) as since, max(at) as until from due),
         near as (
           select h.id from hit h, span
            where h.message_id in (select message_id from due)
              and h.at between span.since - :around_message and span.until + :around_message
           union
           (select h.id from hit h, span
             where h.network in (select network from due where kind = 'click') and h.kind = 'click'
              and h.at between span.since - :around and span.until + :around
             order by h.at desc limit :limit))
    select h.id, h.message_id, h.kind, h.link, h.at, h.network, h.user_agent, h.signals, h.score, h.verdict,
           h.settled_at, (select min(d.at) from delivery_event d where d.message_id = m.id and d.kind = 'delivered') as delivered_at,
           split_part(m.person, '@', 2) as domain,
           coalesce((select count(*) from template t, jsonb_array_elements(t.links) as one
                      where t.version_id = m.version_id and t.step_id = m.step_id and t.locale = '' and (one ->> 'track')::boolean),
                    0)::int as tracked
      from hit h join message m on m.id = h.message_id
     where h.id in (select id from near)
""")

# Signals are only ever added: what is a scanner's stays one, and needs no second look.
_SETTLED = text("""
    update hit set settled_at = coalesce(settled_at, :now),
                   review_at = case when settled_at is null and verdict <> 'scanner' then at + cast(:reviewed as interval) end
     where id = any(:due)
""")

_WITHDRAW = text("""
    update delivery_event d
       set detail = d.detail || jsonb_build_object('verdict', gone.verdict, 'withdrawn', true)
      from jsonb_to_recordset(cast(:rows as jsonb)) as gone(message uuid, kind text, link int, verdict text)
     where d.message_id = gone.message
       and ((gone.kind = 'click' and d.kind = 'clicked' and d.key = 'link:' || gone.link) or (gone.kind = 'open' and d.kind = 'opened'))
       and not d.detail ? 'withdrawn'
       and not exists (select from hit h where h.message_id = gone.message and h.kind = gone.kind and h.link is not distinct from gone.link
                                           and h.verdict in ('human', 'proxy') and h.settled_at is not null)
    returning d.message_id, d.kind, d.key, d.at
""")

_FACTS = text("""
    select m.id as message_id, m.enrollment_id, m.step_id, m.links as urls, t.links as written, k.key as campaign,
           a.external_id as account_key, c.external_id as contact_key
      from message m
      join campaign k on k.id = m.campaign_id
      join account a on a.id = m.account_id
      join contact c on c.id = m.contact_id
      left join template t on t.version_id = m.version_id and t.step_id = m.step_id and t.locale = ''
     where m.id = any(:messages)
""")
