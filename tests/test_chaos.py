"""The short form of the kill suite; the long one is `make chaos`."""

from __future__ import annotations

import pytest

from tests.chaos import Plan, run

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]  # a busy machine; a minute otherwise


def test_invariants_4_and_5_under_fire():
    """Never twice, never lost: while everything that runs is killed, and a worker frozen past its heartbeat."""
    plan = Plan(messages=600, kills=12, stops=1, workers=2, seed=4, pause=3.0, dead_after=8.0)
    report = run(plan)
    print(report)
    assert not report.violations, f"{report}\n{report.histories}"
    assert sum(report.states.values()) == 600
    assert sum(report.kills.values()) >= 13
    assert report.taken_over > 0, "the frozen worker was given up for dead"
    assert report.accepted[1] > 550, "most mail arrives, whatever happens"
    assert report.states["unknown"] <= report.at_dots + report.no_answer
