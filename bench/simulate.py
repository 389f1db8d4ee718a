"""Row H: simulating a year.

H: 1,000 accounts with three people each, 500 events per account spread over a year, all shipped campaigns, mail rendered, recipients who
click and answer, and health assessed at least daily; one process, no database. The events are made before the clock starts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from time import perf_counter

from app.config import CODE
from app.flow.check import read
from app.flow.world import Letter, Posted, Reply, World, book_of, compose_of
from app.rules.facts import hash_share
from bench.table import Line

START = datetime(2028, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=366)
ACCOUNTS, EVENTS = 1000, 500
USAGE = ("logged_in", "logged_in", "report_viewed", "feature_used", "page_opened")
MILESTONES = ("workspace_created", "setup_completed", "report_shared", "report_scheduled")


class Readers:
    """Half of them click, a third answer."""

    def outcome(self, letter: Letter) -> str:
        return "sent"

    def after(self, letter: Letter) -> list[tuple[timedelta, Reply]]:
        late = timedelta(hours=1 + 50 * hash_share("late", letter.id))
        found = [(late, Reply("clicked", link=0))] if hash_share("clicks", letter.id) < 0.5 else []
        if letter.kind == "survey" and hash_share("answers", letter.id) < 0.33:
            found.append((late, Reply("answered", score=int(11 * hash_share("score", letter.id)))))
        return found


def simulated() -> list[Line]:
    """Seconds for the year."""
    campaigns = read(CODE / "campaigns")
    events = list(_events())
    began = perf_counter()
    world = World(book_of(campaigns), feedback=Readers(), compose=compose_of(campaigns))
    world.post(events)
    for number in range(ACCOUNTS):
        world.assess_from(f"acct-{number}", START)
    world.run(START + YEAR)
    took = perf_counter() - began
    note = f"{len(events):,} events, {len(world.letters):,} messages, {took / len(events) * 1e6:.0f} µs an event with all that followed"
    what = f"simulating {ACCOUNTS:,} accounts for a year of {EVENTS} events each, all shipped campaigns"
    return [Line("H", what, took, "s", 60, at_most=True, note=note)]


def _events() -> Iterator[Posted]:
    dice = random.Random(1)
    for number in range(ACCOUNTS):
        key = f"acct-{number}"
        born = START + timedelta(seconds=dice.randrange(86400 * 60))
        people = [f"{key}-{index}" for index in range(3)]
        traits = {"name": f"Sample {number}", "touch": dice.choice(("smb", "mid", "high")), "seats": 10, "plan": "pro"}
        traits["renewal_date"] = (born + timedelta(days=200 + dice.randrange(165))).isoformat()
        yield _event(f"{key}-group", "group", "group", key, people[0], traits, born)
        for index, person in enumerate(people):
            told = {"email": f"{person}@example.com", "first_name": "Sample", "roles": [("admin", "champion", "user")[index]]}
            yield _event(f"{person}-identify", "identify", "identify", key, person, told, born + timedelta(seconds=index))
        for index, name in enumerate(MILESTONES):
            at = born + timedelta(minutes=5) + timedelta(days=dice.random() * 9 * index)
            yield _event(f"{key}-{name}", "track", name, key, people[0], {}, at)
        for index in range(EVENTS - 8):
            name, at = dice.choice(USAGE), born + dice.random() * (START + YEAR - born)
            properties = {"feature": dice.choice(("reports", "exports")), "seats": index}
            yield _event(f"{key}-{index}", "track", name, key, dice.choice(people), properties, at)


def _event(ident: str, kind: str, name: str, account: str, contact: str, properties: dict, at: datetime) -> Posted:
    return Posted(ident, kind, name, account, contact, properties, at, at)


ROWS = {"H": simulated}
