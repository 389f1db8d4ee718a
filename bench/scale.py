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
FEW, MANY = 20, 500  # campaigns
SMALL, LARGE = 10_000, 1_000_000  # accounts, and contacts


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


def campaigns() -> list[Line]:
    """Microseconds an event with MANY campaigns, against FEW."""
    now = datetime.now(UTC)
    with databases() as settings:
        sides = []
        for number in (FEW, MANY):
            engine = installation(settings, f"with_{number}")
            written = folder.mixed(number)
            keys = folder.put_in_force(engine, now, written)
            customers.load(engine, now, SMALL)
            customers.enroll(engine, now, keys)
            customers.tidy(engine)
            sides.append(Side(engine, folder.starts(written), SMALL))
        measure(sides, now)
    few, many = sides
    note = f"{ROUNDS} rounds of {EVENTS:,} events in turn; with {MANY} {many.spread}, with {FEW} {few.spread} µs an event"
    what = f"cost per event, {MANY} campaigns against {FEW}"
    return [Line("C", what, median(many.costs), "µs", 1.15, median(few.costs), at_most=True, note=note)]


def contacts() -> list[Line]:
    """Microseconds an event with LARGE contacts, against SMALL: with as many active accounts, and spread over all."""
    now = datetime.now(UTC)
    written = folder.mixed(FEW)
    with databases() as settings:
        engines = {}
        for number in (SMALL, LARGE):
            engine = engines[number] = installation(settings, f"of_{number}")
            keys = folder.put_in_force(engine, now, written)
            began = perf_counter()
            customers.load(engine, now, number)
            customers.enroll(engine, now, keys)
            customers.tidy(engine)
            took = perf_counter() - began
        starts = folder.starts(written)
        small = Side(engines[SMALL], starts, SMALL)
        active = Side(engines[LARGE], starts, SMALL, LARGE // SMALL)
        spread = Side(engines[LARGE], starts, LARGE)
        measure([small, active, spread], now)
    note = f"{ROUNDS} rounds of {EVENTS:,} events in turn; {LARGE:,} accounts with 2 enrollments each loaded in {took:.0f} s; µs an event: "
    note += f"{SMALL:,} contacts {small.spread}, {SMALL:,} active of {LARGE:,} {active.spread}, spread over all {spread.spread}"
    base = median(small.costs)
    what = f"cost per event, {LARGE:,} contacts against {SMALL:,}"
    return [
        Line("D", f"{what}, {SMALL:,} accounts active", median(active.costs), "µs", 1.5, base, at_most=True, note=note),
        Line("D", f"{what}, spread over all", median(spread.costs), "µs", 2, base, at_most=True),
    ]


def measure(sides: Sequence[Side], now: datetime) -> None:
    """Fills the costs of the sides. The first round warms up. Disposes their engines."""
    bells = Bells(None)
    for number in range(ROUNDS + 1):
        for place in range(len(sides)):
            turn = (place + number) % len(sides)
            side = sides[turn]
            post(side.engine, now, EVENTS, side.starts, accounts=side.accounts, apart=side.apart, seed=number * len(sides) + turn)
            side.engine.dispose()
            began = perf_counter()
            moved = drain(side.engine, bells, now)
            took = perf_counter() - began
            if moved != EVENTS:
                raise RuntimeError(f"{moved} of {EVENTS} events were advanced")
            if number:
                side.costs.append(took / moved * 1e6)
    for side in sides:
        side.engine.dispose()


ROWS = {"C": campaigns, "D": contacts}
