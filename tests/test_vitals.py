"""Health in a world: assessed when a live engine would assess it, by the same function, and believed where it was recorded."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from app.cli import main
from app.flow.assess import assess_due
from app.flow.check import read
from app.flow.history import of_database, of_file
from app.flow.ingest import accept
from app.flow.items import read_items
from app.flow.publish import book, publish_read
from app.flow.world import Reply, World, book_of
from app.models import source
from app.queue import Bells
from tests.stories import LIFECYCLE, START, at, group, identify, run, track, write_campaigns

HEALTH = (
    LIFECYCLE.replace("usage: {logins: {event: logged_in}}", "usage: {logins: {event: logged_in}, reports: {event: report_viewed}}")
    + """
health:
  minimum_coverage: 0.3
  groups:
    - name: engagement
      weight: 50
      measures:
        - {name: sign_ins, metric: usage.logins.last_7d, worst: 0, best: 10}
        - {name: before, metric: usage.logins.previous_7d, worst: 0, best: 10}
        - {name: reports, metric: usage.reports.last_30d, worst: 0, best: 5}
    - {name: product, weight: 30, measures: [{name: milestones, metric: milestones.share, worst: 0, best: 1}]}
    - {name: seats, weight: 20, measures: [{name: seats, metric: usage.seats.share, worst: 0, best: 0.5}]}
"""
)
SAVE = """
name: Save
stage: onboarding
topic: product
trigger: {health: red}
steps:
  - {id: worry, email: worry.mjml, subject: "May we help?"}
"""


def calls() -> list[dict]:
    """Two accounts: one is busy and then falls silent, one never does much; a third comes when there is somebody to compare with."""
    dice, found = random.Random(7), []
    for number, key in enumerate(("acorn", "birch", "cedar")):
        begins = START + timedelta(days=20 * number, minutes=number)
        about = [
            group(key, f"{key}-ada", name=key, seats=2),
            identify(f"{key}-ada", key, email=f"{key}@example.com", roles="admin"),
            track("setup_completed", f"{key}-ada", key),
        ]
        for index in range((60, 4, 20)[number]):
            moment = begins + timedelta(minutes=dice.randrange(1, 25 * 1440))
            about.append(track(dice.choice(("logged_in", "report_viewed")), f"{key}-ada", key) | {"timestamp": moment.isoformat()})
            about[-1]["messageId"] = f"{key}-{index}"
        found += [{"timestamp": begins.isoformat(), "messageId": f"{key}:{place}", **one} for place, one in enumerate(about)]
    return sorted(found, key=lambda one: one["timestamp"])


def live(engine, calls: list[dict], end: datetime) -> list[tuple]:
    """The calls posted and all that follows, each assessment at the moment it is due."""
    bells = Bells(None)
    with engine.begin() as conn:
        ident = conn.execute(source.insert().values(name=f"story {end}").returning(source.c.id)).scalar_one()
    waiting = list(calls)
    while True:
        with engine.connect() as conn:
            soon = "least(min(assess_at), (select min(assess_at) from unassessed))"
            due, look = conn.execute(text(f"select {soon}, min(due_at) from account")).one()
        posted = datetime.fromisoformat(waiting[0]["timestamp"]) if waiting else None
        now = min((one for one in (due, look, posted) if one is not None), default=None)
        if now is None or now > end:
            return told(engine)
        if now == due:
            assess_due(engine, lambda now=now: now, bells)
        while waiting and datetime.fromisoformat(waiting[0]["timestamp"]) == now:
            items, problems = read_items(json.dumps({"batch": [waiting.pop(0)]}).encode(), now)
            assert not problems
            with engine.begin() as conn:
                accept(conn, ident, items, now, 64, None)
        run(engine, now)


def told(engine) -> list[tuple]:
    query = "select account_key, received_at, properties from event where name = 'nurture.health_changed' order by received_at, account_key"
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(text(query))]


class Hearing(World):
    """A world that notes what is told of health."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.told: list[tuple] = []

    def _take_event(self, one):
        if one.name == "nurture.health_changed":
            self.told.append((one.account, one.received_at, one.properties))
        super()._take_event(one)


def write(path, calls):
    path.write_text("".join(json.dumps(call) + "\n" for call in calls), "utf-8")
    return path


def test_health_in_a_simulation_is_what_a_live_run_finds(engine, tmp_path):
    """The same scores, at the same moments, told by the same events (invariants 10 and 11)."""
    campaigns, end = read(write_campaigns(tmp_path / "c", {"onboarding/save": SAVE}, lifecycle=HEALTH)), at("80d")
    with engine.begin() as conn:
        publish_read(conn, campaigns, START)
    found = live(engine, calls(), end)
    history, problems = of_file(write(tmp_path / "events.ndjson", calls()))
    assert problems == []
    world = Hearing(book_of(campaigns))
    history.tell(world)
    history.go_on(world)
    world.run(end)
    assert sorted(world.told, key=lambda one: (one[1], one[0])) == found
    assert len(found) > 15 and {one["band"] for *_, one in found} == {"red", "yellow", "green"}


def test_what_was_recorded_is_believed_and_then_gone_on_from(engine, tmp_path):
    campaigns, middle, end = read(write_campaigns(tmp_path / "c", {"onboarding/save": SAVE}, lifecycle=HEALTH)), at("22d"), at("80d")
    with engine.begin() as conn:
        publish_read(conn, campaigns, START)
    story = [call for call in calls() if datetime.fromisoformat(call["timestamp"]) <= middle]
    before = live(engine, story, middle)
    with engine.begin() as conn:
        in_force = book(conn)
        (history,) = of_database(conn, until=end)
    world = Hearing(in_force)
    history.tell(world)
    world.run(end)
    assert sorted(world.told, key=lambda one: (one[1], one[0])) == before  # and nothing of its own
    world = Hearing(in_force)
    history.tell(world)
    history.go_on(world)
    world.run(end)
    after = live(engine, [], end)
    assert sorted(world.told, key=lambda one: (one[1], one[0])) == after
    assert len(after) > len(before) > 3


def test_a_health_trigger_fires_in_a_simulation_of_a_file(tmp_path, capsys):
    folder = write_campaigns(tmp_path / "c", {"onboarding/save": SAVE}, lifecycle=HEALTH)
    file = write(tmp_path / "events.ndjson", calls())
    assert main(["simulate", str(folder), "--events", str(file), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {one["account"] for one in data["messages"] if one["step"] == "worry" and one["outcome"] == "sent"} >= {"acorn", "birch"}


class Answers:
    def outcome(self, letter):
        return "sent"

    def after(self, letter):
        return [(timedelta(hours=2), Reply("answered", score=3)), (timedelta(hours=3), Reply("answered", score=9))]


def test_an_answer_is_assessed_at_once_and_ages(tmp_path):
    """The latest answer of a person counts, and weighs less as it grows older."""
    measure = "{name: nps, metric: survey.nps, worst: 0, best: 10, half_life: 30d}"
    lifecycle = HEALTH + f"    - {{name: said, weight: 100, measures: [{measure}]}}\n"
    ask = SAVE.replace("{health: red}", "{event: asked}").replace(
        "{id: worry, email: worry.mjml,", "{id: ask, survey: nps, question: nps, email: ask.mjml,"
    )
    world = Hearing(book_of(read(write_campaigns(tmp_path / "c", {"onboarding/ask": ask}, lifecycle=lifecycle))), feedback=Answers())
    history, _ = of_file(
        write(tmp_path / "events.ndjson", [*calls()[:3], {**track("asked", "acorn-ada"), "timestamp": at("1h").isoformat()}])
    )
    history.tell(world)
    history.go_on(world)
    world.run(at("40d"))
    scores = {at_: told["score"] for _, at_, told in world.told}
    low, high = scores[at("3h")], scores[at("4h")]
    assert high - low == pytest.approx(60 * 100 / 150) and scores[max(scores)] < high
