"""Rows C and D: what an event costs when there are more campaigns, or more customers.

The events are those of row B, advanced by one process on one connection. What is compared stands in databases of their own on the same
server; each is measured in turn, round by round, in changing order, and the medians are compared.

C: 500 campaigns instead of 20, with triggers of every kind (`bench.folder`), audiences, goals and exits of several kinds; 10,000 accounts,
each in two of the campaigns, whichever. What the events bring about is the same on both sides: the further campaigns are bystanders,
except those that start by an event of their own.

D: 1,000,000 accounts with a contact each and two active enrollments instead of 10,000. Once the events speak of 10,000 of the accounts,
every hundredth; once of all of them, so that hardly any event meets an account that one of the last thousands has met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from time import perf_counter

from sqlalchemy import Engine

from app.queue import Bells
from bench import customers, folder
from bench.advance import drain, post
from bench.ground import databases, installation
from bench.table import Line

ROUNDS = 5
EVENTS = 30_000  # a round and side


@dataclass(slots=True)
class Side:
    """One of those that are compared. `accounts` and `apart` say which accounts the events speak of; `costs` are in µs an event."""

    engine: Engine
    starts: Sequence[str]
    accounts: int
    apart: int = 1
    costs: list[float] = field(default_factory=list)

    @property
    def spread(self) -> str:
        return f"{min(self.costs):.0f} to {max(self.costs):.0f}"


def campaigns(*, few: int = 20, many: int = 500, accounts: int = 10_000, events: int = EVENTS, rounds: int = ROUNDS) -> list[Line]:
    """Microseconds an event with `many` campaigns, against `few`."""
    now = datetime.now(UTC)
    with databases() as settings:
        sides = []
        for number in (few, many):
            engine = installation(settings, f"with_{number}")
            written = folder.mixed(number)
            keys = folder.put_in_force(engine, now, written)
            customers.load(engine, now, accounts)
            customers.enroll(engine, now, keys)
            customers.tidy(engine)
            sides.append(Side(engine, folder.starts(written), accounts))
        measure(sides, now, events, rounds)
    base, more = sides
    note = f"{rounds} rounds of {events:,} events in turn; with {many} {more.spread}, with {few} {base.spread} µs an event"
    what = f"cost per event, {many} campaigns against {few}"
    return [Line("C", what, median(more.costs), "µs", 1.15, median(base.costs), at_most=True, note=note)]


def contacts(*, few: int = 10_000, many: int = 1_000_000, events: int = EVENTS, rounds: int = ROUNDS) -> list[Line]:
    """Microseconds an event with `many` contacts, against `few`: with as many active accounts, and spread over all."""
    now = datetime.now(UTC)
    written = folder.mixed(20)
    with databases() as settings:
        engines = {}
        for number in (few, many):
            engine = engines[number] = installation(settings, f"of_{number}")
            keys = folder.put_in_force(engine, now, written)
            began = perf_counter()
            customers.load(engine, now, number)
            customers.enroll(engine, now, keys)
            customers.tidy(engine)
            took = perf_counter() - began
        starts = folder.starts(written)
        base = Side(engines[few], starts, few)
        active = Side(engines[many], starts, few, many // few)
        spread = Side(engines[many], starts, many)
        measure([base, active, spread], now, events, rounds)
    note = f"{rounds} rounds of {events:,} events in turn; {many:,} accounts with 2 enrollments each loaded in {took:.0f} s; µs an event: "
    note += f"{few:,} contacts {base.spread}, {few:,} active of {many:,} {active.spread}, spread over all {spread.spread}"
    what = f"cost per event, {many:,} contacts against {few:,}"
    reference = median(base.costs)
    return [
        Line("D", f"{what}, {few:,} accounts active", median(active.costs), "µs", 1.5, reference, at_most=True, note=note),
        Line("D", f"{what}, spread over all", median(spread.costs), "µs", 2, reference, at_most=True),
    ]


def measure(sides: Sequence[Side], now: datetime, events: int, rounds: int) -> None:
    """Fills the costs of the sides: `rounds` of `events` each, after one that warms up. Disposes their engines."""
    bells = Bells(None)
    for number in range(rounds + 1):
        for place in range(len(sides)):
            turn = (place + number) % len(sides)
            side = sides[turn]
            post(side.engine, now, events, side.starts, accounts=side.accounts, apart=side.apart, seed=number * len(sides) + turn)
            side.engine.dispose()
            began = perf_counter()
            moved = drain(side.engine, bells, now)
            took = perf_counter() - began
            if moved != events:
                raise RuntimeError(f"{moved} of {events} events were advanced")
            if number:
                side.costs.append(took / moved * 1e6)
    for side in sides:
        side.engine.dispose()


ROWS = {"C": campaigns, "D": contacts}
