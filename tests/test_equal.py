"""Invariant 10: a simulation is the engine. The same story, told to the live engine and to a World, comes to the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic_core import to_json

from app.flow import states
from app.flow.check import read
from app.flow.items import Item, read_items
from app.flow.world import Posted, World
from tests import twins

# 29 February, and the clocks of America and of Europe going forward on two Sundays.
START, END = datetime(2028, 2, 26, tzinfo=UTC), datetime(2028, 4, 2, tzinfo=UTC)
EVERY = timedelta(hours=24)
SEED = 1


@pytest.fixture(scope="module")
def story():
    return twins.make_story(18, START, END, every=EVERY, seed=SEED, events=24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("equal")
    return {caps: twins.write_folder(root / f"caps-{caps}", caps=caps) for caps in (True, False)}


@pytest.mark.timeout(300)  # seconds on a busy machine; 12 otherwise
@pytest.mark.parametrize(("batch", "workers", "caps"), [(1000, 1, True), (7, 4, False), (97, 2, True)])
def test_invariant_10_simulation_is_the_engine(story, folders, engine, settings, batch, workers, caps):
    world = twins.tell_world(read(folders[caps]), story, END, EVERY, calm=caps)
    live = twins.Live(engine, settings, batch=batch, workers=workers, calm=caps).tell(folders[caps], story, START, END, EVERY)
    assert live.differences(world) == []


def test_who_was_counted_under_a_former_id_is_one_person(folders, engine, settings):
    """The partition that hears of the alias may be looked at before or after those where the former id was busy."""

    def call(hours: float, kind: str, who: str, **more) -> tuple[datetime, Item]:
        at = START + timedelta(hours=hours)
        given = {"messageId": f"{kind}-{who}-{hours}", "type": kind, "userId": who, "timestamp": at.isoformat(), **more}
        items, problems = read_items(to_json({"batch": [given]}), at)
        assert not problems
        return at, items[0]

    inside = {"event": "logged_in", "context": {"groupId": "acorn"}}
    story = twins.Story(
        [
            call(1, "group", "old", groupId="acorn", traits={"name": "Acorn"}),
            call(2, "track", "old", **inside),
            call(30, "track", "old", **inside),
            call(47, "alias", "new", previousId="old"),
            call(47.5, "track", "new", **inside),
            call(50, "track", "old", **inside),
        ]
    )
    end = START + timedelta(days=4)
    twins.Live(engine, settings).tell(folders[False], story, START, end, EVERY)
    world = World(twins.book_of(read(folders[False])), every=EVERY)
    world.post(
        Posted(one.message_id, one.kind, one.name, one.account_key, one.contact_key, one.properties, one.occurred_at, at)
        for at, one in story.items
    )
    world.run(end)
    with engine.connect() as conn:
        live = states.load(conn, keys=["acorn"], acting=True, metrics=["people"], now=end)["acorn"].usage["people"]
    assert set(live.people) == set(world.account("acorn").usage["people"].people)
    assert {who for _, who in live.people} == {"new"}
    assert len({day for day, _ in live.people}) == 3


def test_the_story_is_worth_telling(story, folders):
    """Mail of every fate, of nearly all campaigns, and the reasons to hold it back that a story can bring about."""
    world = twins.tell_world(read(folders[True]), story, END, EVERY)
    assert {row[7] for row in world.messages} >= {"sent", "skipped", "unknown", "ghosted", "shadow"}
    assert len({*twins.TRIALS, "onboarding/first-value", "onboarding/onboarding-survey"} - {row[3] for row in world.messages}) <= 2
    wanted = {"window_closed", "held", "capped", "suppressed", "rejected", "deferred", "no_address", "nobody_reachable", "goal_met"}
    assert wanted <= {row[5] for row in world.ledger}
