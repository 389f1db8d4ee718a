"""Moving those inside older versions of a campaign to the one that new enrollments enter: listed first, done only when told to.

What would be sent is not guessed: the rules are asked what they would do with the very event that a move raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, select

from app.flow import states
from app.flow.publish import book, including
from app.flow.steering import being_steered, find_campaign, steer
from app.models import installation
from app.rules import journey
from app.rules.book import Book, Version
from app.rules.facts import Account, Event, Reaction, Timer
from app.rules.journey import STEERED
from app.rules.moving import Target, plan

AT_ONCE = 1000  # accounts that are loaded together


@dataclass(frozen=True, slots=True)
class MoveLine:
    """Those who wait at one step of one older version: where they go (`how` is stay, go or exit), how many they are, and how many mails
    and how many effects on staff or other systems follow at once."""

    version: int
    step: str | None
    kind: str
    how: str
    target: str | None
    count: int
    mails: int
    effects: int


@dataclass(frozen=True, slots=True)
class MovePlan:
    """What moving would do. `rows` are the enrollments with their targets, for `move`."""

    campaign: str
    version: int
    version_id: int
    lines: tuple[MoveLine, ...]
    rows: tuple[tuple[Row, Target], ...]

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def mails(self) -> int:
        return sum(line.mails for line in self.lines)

    def plain(self) -> dict[str, Any]:
        """As JSON can carry it."""
        names = ("version", "step", "kind", "how", "target", "count", "mails", "effects")
        lines = [{name: getattr(line, name) for name in names} for line in self.lines]
        return {"campaign": self.campaign, "version": self.version, "moving": self.count, "mails": self.mails, "lines": lines}


def plan_moves(conn: Connection, key: str, now: datetime) -> MovePlan:
    """Where everybody inside an older version would go, and what would be sent at once. Changes nothing.

    Whoever is being steered already is left out. Raises NotFound for an unknown campaign.
    """
    row = find_campaign(conn, key)
    steered = being_steered(conn)
    rows = [one for one in conn.exec_driver_sql(_OLDER, {"campaign": row.id, "current": row.version_id}) if one.id not in steered]
    known = including(conn, book(conn), {row.version_id, *(one.version_id for one in rows)})
    new = known.versions[row.version_id]
    targets: dict[tuple[int, str | None], Target] = {}
    counts: dict[tuple[int, str | None], list[int]] = {}
    moves = []
    for one in rows:
        place = (one.version_id, one.step)
        if place not in targets:
            targets[place] = plan(known.versions[one.version_id], new, one.step)
            counts[place] = [0, 0, 0]
        counts[place][0] += 1
        moves.append((one, targets[place]))
    acting = [(one, target) for one, target in moves if _may_act(known.versions[one.version_id], new, target)]
    for one, reaction in _reactions(conn, known, acting, new, now):
        count = counts[one.version_id, one.step]
        count[1] += sum(message.state == "due" for message in reaction.messages)
        count[2] += sum(effect.state == "due" for effect in reaction.effects)
    lines = []
    for (version, step), target in targets.items():
        node = known.versions[version].nodes.get(step or "")
        kind = node.kind if node else "gone"
        lines.append(MoveLine(known.versions[version].number, step, kind, target.how, target.step, *counts[version, step]))
    lines.sort(key=lambda line: (line.version, _place(new, line.target), line.step or ""))
    return MovePlan(key, new.number, new.id, tuple(lines), tuple(moves))


def move(conn: Connection, wanted: MovePlan, now: datetime) -> tuple[int, set[int]]:
    """Raises an event for each enrollment of the plan that is still where the plan found it. Returns how many, and the partitions to ring
    after the commit. Doing it again changes nothing: whoever is moved, or about to be, is not moved twice."""
    row = find_campaign(conn, wanted.campaign, lock=True)
    partitions = conn.execute(select(installation.c.partitions)).scalar_one()
    steered = being_steered(conn)
    there = {(one.id, one.version_id, one.step) for one in conn.exec_driver_sql(_OLDER, {"campaign": row.id, "current": wanted.version_id})}
    said = [
        (one, {"action": "move", "version": wanted.version_id, "step": target.step, "from": one.step, "reason": "moved"})
        for one, target in wanted.rows
        if one.id not in steered and (one.id, one.version_id, one.step) in there
    ]
    return len(said), steer(conn, said, f"{wanted.version_id}:{now.isoformat()}", now, partitions)


def _may_act(old: Version, new: Version, target: Target) -> bool:
    """Whether anything may follow at once: a step that is done now, or a wait whose words changed."""
    return target.how == "go" or (target.how == "stay" and old.nodes.get(target.step) != new.nodes.get(target.step))


def _reactions(
    conn: Connection, known: Book, wanted: Sequence[tuple[Row, Target]], new: Version, now: datetime
) -> Iterator[tuple[Row, Reaction]]:
    for chunk in _by_account(wanted):
        accounts = whole(conn, known, chunk.keys(), now)
        for key, moves in chunk.items():
            for row, target in moves:
                said = {"enrollment": str(row.id), "action": "move", "version": new.id, "step": target.step, "from": row.step}
                event = Event(STEERED, {**said, "reason": "moved"}, now, now, f"move:{row.id}", contact=row.contact)
                moved = journey.react(known, accounts[key], event)
                yield row, moved
                if any(one.id == row.id and one.due_at is not None and one.due_at <= now for one in moved.account.enrollments):
                    yield row, journey.react(known, moved.account, Timer(now, row.id))


def _by_account(wanted: Sequence[tuple[Row, Target]]) -> Iterator[Mapping[str, list[tuple[Row, Target]]]]:
    chunk: dict[str, list[tuple[Row, Target]]] = {}
    for key, moves in groupby(wanted, lambda one: one[0].account):
        chunk[key] = list(moves)
        if len(chunk) >= AT_ONCE:
            yield chunk
            chunk = {}
    if chunk:
        yield chunk


def whole(conn: Connection, known: Book, keys: Iterable[str], now: datetime) -> dict[str, Account]:
    """The accounts with everything that the rules may ask about."""
    accounts = states.load(conn, keys=keys, now=now)
    return states.complete(conn, accounts, known.lifecycle.usage, now, entering=True)


def _place(version: Version, step: str | None) -> int:
    order = list(version.nodes)
    return order.index(step) if step in version.nodes else len(order)


_OLDER = """
select e.id, a.external_id as account, c.external_id as contact, e.version_id, e.step_id as step from enrollment e
join account a on a.id = e.account_id left join contact c on c.id = e.contact_id
where e.version_id = any(array(select id from campaign_version where campaign_id = %(campaign)s and id <> %(current)s))
  and e.state = 'active' order by a.external_id, e.id"""
