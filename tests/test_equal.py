"""Invariant 10: a simulation is the engine. The same story, told to the live engine and to a World, comes to the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.flow.check import read
from tests import twins

# 29 February, and the clocks of America and of Europe going forward on two Sundays.
START, END = datetime(2028, 2, 24, tzinfo=UTC), datetime(2028, 4, 3, tzinfo=UTC)
EVERY = timedelta(hours=24)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A story, the folder of its campaigns, and what a World makes of it."""
    root = twins.write_folder(tmp_path_factory.mktemp("equal") / "campaigns")
    story = twins.make_story(24, START, END, every=EVERY, seed=3, events=24)
    return root, story, twins.tell_world(read(root), story, END, EVERY)


@pytest.mark.parametrize(("batch", "workers"), [(1000, 1), (7, 1), (97, 4)])
def test_invariant_10_simulation_is_the_engine(told, engine, settings, batch, workers):
    root, story, world = told
    live = twins.Live(engine, settings, batch=batch, workers=workers).tell(root, story, START, END, EVERY)
    assert live.differences(world) == []


def test_the_story_is_worth_telling(told):
    """Mail of every fate, of all campaigns, and all reasons to hold it back that a story can bring about."""
    *_, world = told
    assert {row[7] for row in world.messages} >= {"sent", "skipped", "unknown", "ghosted", "shadow"}
    assert {row[3] for row in world.messages} >= {*twins.TRIALS, "onboarding/first-value", "onboarding/onboarding-survey"}
    reasons = {row[5] for row in world.ledger}
    wanted = {"window_closed", "held", "suppressed", "rejected", "deferred", "no_address", "nobody_reachable", "goal_met"}
    assert wanted <= reasons
