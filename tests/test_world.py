"""The engine in memory: what it does around the rules, and where its past comes from."""

from __future__ import annotations

import gzip
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
from pydantic_core import to_json
from sqlalchemy import select

from app import models
from app.errors import InputError, NotFound
from app.flow import history
from app.flow.check import read
from app.flow.deliver import run as deliver
from app.flow.holding import hold
from app.flow.respond import answer, find_message
from app.flow.world import Posted, Reply, World, book_of, compose_of
from app.providers.memory import MemoryTransport
from app.queue import Bells
from tests import stories
from tests.stories import at, group, identify, track
from tests.twins import QUICK

WELCOME = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
exit_when: usage.logins.last_7d > 2
steps:
  - {id: hello, email: hello.mjml, subject: "Hello {{ contact.first_name }}"}
  - {id: pause, wait: 2d}
  - {id: tips, email: tips.mjml, subject: Tips}
"""
ASK = """
name: Ask
stage: onboarding
topic: survey
trigger: {event: asked}
steps:
  - {id: ask, survey: nps, question: "How likely?", email: ask.mjml, subject: One question}
  - {id: said, wait_for: {survey: ask, timeout: 5d}, on_timeout: [{id: silent, exit: silent}]}
  - {id: thanks, email: thanks.mjml, subject: Thanks}
"""


@pytest.fixture
def campaigns(tmp_path):
    return read(stories.write_campaigns(tmp_path / "campaigns", {"onboarding/welcome": WELCOME, "onboarding/ask": ASK}))


def posted(kind: str, name: str, offset: str, account: str | None = "acorn", contact: str | None = "ada", **properties) -> Posted:
    moment = at(offset)
    return Posted(f"{name}-{contact}-{offset}", kind, name, account, contact, properties, moment, moment)


ADA = posted("identify", "identify", "0s", email="Ada@Example.com", first_name="Ada", roles=["admin"])
SIGNED_UP = posted("track", "signed_up", "1m")


def letters(world: World) -> list[tuple]:
    return [(one.step, one.outcome, one.reason, one.settled_at) for one in world.letters]


def test_events_become_letters_at_their_times(campaigns):
    world = World(book_of(campaigns), compose=compose_of(campaigns))
    world.post([ADA, SIGNED_UP, SIGNED_UP])
    world.run(at("1d"))
    assert letters(world) == [("hello", "sent", None, at("1m"))]
    world.run(at("1d"))
    world.run(at("3d"))
    assert letters(world) == [("hello", "sent", None, at("1m")), ("tips", "sent", None, at("2d1m"))]
    assert world.letters[0].subject == "Hello Ada" and world.letters[0].address == "Ada@Example.com"
    assert [(key, one.state, one.end_reason) for key, one in world.enrollments.values()] == [("acorn", "finished", "finished")]


def test_what_is_counted_is_known_when_it_is_asked_for(campaigns):
    world = World(book_of(campaigns))
    world.post([ADA, SIGNED_UP, *(posted("track", "logged_in", f"{hours}h") for hours in (1, 2, 3))])
    world.run(at("3d"))
    assert [step for step, *_ in letters(world)] == ["hello"]
    assert world.accounts["acorn"].usage["logins"].days[0][1] == 3
    assert world.account("acorn").contacts["ada"].last_seen_at == at("1m")  # kept to the day


def test_a_hold_keeps_mail_waiting_until_it_ends_or_is_released(campaigns):
    for released, sent in ((None, "6h"), ("90m", "90m")):
        world = World(book_of(campaigns))
        world.hold(account="acorn", reason="ticket", since=at("0s"), until=at("6h"), released=at(released) if released else None)
        world.post([ADA, SIGNED_UP])
        world.run(at("1d"))
        assert [(one.step, one.outcome) for one in world.letters] == [("hello", "sent")]
        assert at(sent) <= world.letters[0].settled_at <= at(sent) + timedelta(minutes=15)


def test_who_is_suppressed_is_not_written_to(campaigns):
    world = World(book_of(campaigns))
    world.suppress("ada@example.com", "product", at("1d"))
    world.lift("ada@example.com", "product", at("4d"))
    world.post([ADA, SIGNED_UP])
    world.run(at("6d"))
    assert [(one.step, one.settled_at) for one in world.letters] == [("hello", at("1m"))]
    assert {one.reason for _, one in world.decisions} >= {"topic_opted_out", "nobody_reachable"}


def test_with_distant_looks_everything_happens_at_the_next(campaigns):
    world = World(book_of(campaigns), every=timedelta(hours=6))
    world.post([ADA, SIGNED_UP])
    world.run(at("1h"))
    assert world.letters == []
    world.run(at("3h"))  # noon
    assert letters(world) == [("hello", "sent", None, at("3h"))] and world.letters[0].due_at == at("1m")


class Reader:
    def __init__(self, said: str, *replies):
        self.said, self.replies = said, replies

    def outcome(self, letter):
        return self.said if letter.attempts == 0 else "sent"

    def after(self, letter):
        return [(timedelta(hours=1), one) for one in self.replies]


def test_an_answer_is_heard_and_a_bounce_closes_the_address(campaigns):
    world = World(book_of(campaigns), feedback=Reader("sent", Reply("answered", score=9)))
    world.post([ADA, posted("track", "asked", "1m")])
    world.run(at("2h"))
    assert [step for step, *_ in letters(world)] == ["ask", "thanks"]
    world = World(book_of(campaigns), feedback=Reader("rejected"))
    world.post([ADA, posted("track", "asked", "1m"), posted("track", "signed_up", "2d")])
    world.run(at("4d"))
    assert letters(world) == [("ask", "skipped", "rejected", at("1m"))]
    world = World(book_of(campaigns), feedback=Reader("deferred"))
    world.post([ADA, SIGNED_UP])
    world.run(at("1d"))
    assert [(one.outcome, one.attempts) for one in world.letters] == [("sent", 2)]


TELLS = """
name: Tells
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: setup, wait_for: {event: set_up, timeout: 30d}}
  - {id: tell, alert: {to: owner, text: Ready}}
  - {id: call, task: {title: Call, due: 2d}}
"""


def test_effects_of_a_paused_campaign_are_frozen_until_it_goes_on(tmp_path):
    campaigns = read(stories.write_campaigns(tmp_path / "tells", {"onboarding/tells": TELLS}))
    book = book_of(campaigns, live=True)
    world = World(book)
    world.post([ADA, posted("track", "signed_up", "1m"), posted("track", "set_up", "1d")])
    world.run(at("1h"))
    standing = book.standings["onboarding/tells"]
    world.set_book(replace(book, standings={standing.key: replace(standing, mode="paused")}))
    world.run(at("2d"))
    assert [(one.step, one.state) for _, one in world.effects] == [("tell", "frozen"), ("call", "frozen")]
    assert [one.step for _, one in world.decisions if one.reason == "campaign_paused"] == ["tell", "call"]
    world.set_book(book)
    assert [(one.step, one.state) for _, one in world.effects] == [("tell", "due"), ("call", "due")]
    assert [one.step for _, one in world.decisions if one.reason in ("task_made", "alert_made")] == ["call"]


def test_who_was_seen_under_the_former_id_was_seen(campaigns):
    world = World(book_of(campaigns, live=True))
    world.post([ADA, posted("track", "logged_in", "1h"), posted("alias", "alias", "2h", None, "eve", previous_id="ada")])
    world.run(at("1d"))
    assert world.account("acorn").contacts["eve"].last_seen_at == at("1h")


def test_drafts_run_only_when_asked(campaigns, tmp_path):
    draft = read(stories.write_campaigns(tmp_path / "d", {"onboarding/welcome": f"{WELCOME}mode: draft\n"}))
    for live, count in (((), 0), (True, 1), (("onboarding/welcome",), 1), (("onboarding/other",), 0)):
        world = World(book_of(draft, live=live))
        world.post([ADA, SIGNED_UP])
        world.run(at("1d"))
        assert len(world.letters) == count


# History -------------------------------------------------------------------------------------------------------------


def test_a_recorded_past_comes_out_as_it_went(engine, settings, tmp_path):
    stories.publish_campaigns(engine, tmp_path / "c", {"onboarding/welcome": WELCOME, "onboarding/ask": ASK})
    ben = identify("ben", "birch", email="ben@example.com", roles=["admin"])
    stories.post(engine, group(name="Acorn"), identify(email="ada@example.com", first_name="Ada", roles=["admin"]), ben)
    clock = at("1m")
    transport = MemoryTransport(1)

    def settle():
        stories.run(engine, clock)
        deliver(engine, settings, uuid4(), lambda: clock, Bells(None), transport=transport, limits=QUICK)
        stories.run(engine, clock)

    settle()
    clock = at("2m")
    with engine.begin() as conn:
        hold(conn, "ticket", clock, account="birch", until=at("1d"))
    stories.post(engine, track("asked"), track("signed_up", "ben", "birch"), now=clock)
    settle()
    clock = at("1h")
    with engine.begin() as conn:
        ask = find_message(conn, transport.letters[0].message_id)
        answer(conn, ask, 9, "Fine", clock, closes_after=timedelta(days=30), partitions=64)
    settle()
    with engine.connect() as conn:
        told = list(history.of_database(conn, until=at("1h")))
        assert [one.accounts for one in told] == [("acorn", "birch")]
        assert [len(one.events) for one in told] == [5]
        assert [one.accounts for one in history.of_database(conn, accounts=["birch"], until=at("1h"))] == [("birch",)]
        assert [one.accounts for one in history.of_database(conn, until=at("1h"), chunk=1)] == [("acorn",), ("birch",)]
        with pytest.raises(NotFound, match="nobody"):
            list(history.of_database(conn, accounts=["nobody"], until=at("1h")))
        query = select(models.message.c.id, models.message.c.step_id, models.message.c.state).order_by(models.message.c.step_id)
        live = [tuple(row) for row in conn.execute(query)]
    world = World(book_of(read(tmp_path / "c")), feedback=told[0].feedback)
    told[0].tell(world)
    world.run(at("1h"))
    assert sorted(((one.id, one.step, one.outcome) for one in world.letters), key=lambda one: one[1]) == live
    assert [one[1:] for one in live] == [("ask", "sent"), ("hello", "due"), ("thanks", "sent")]


def test_people_of_several_accounts_keep_these_together(engine, tmp_path):
    stories.publish_campaigns(engine, tmp_path / "c", {"onboarding/welcome": WELCOME})
    stories.post(
        engine,
        identify("ada", "acorn", email="ada@example.com"),
        identify("ben", "birch", email="Ada@example.com"),
        identify("cy", "cedar", email="cy@example.com"),
    )
    stories.run(engine, at("1m"))
    with engine.connect() as conn:
        assert [one.accounts for one in history.of_database(conn, until=at("1h"), chunk=1)] == [("acorn", "birch"), ("cedar",)]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_events_is_read_line_by_line(tmp_path, campaigns, packed):
    times = {"timestamp": at("1m").isoformat()}
    lines = [
        identify(email="ada@example.com", first_name="Ada", roles=["admin"]) | {"timestamp": at().isoformat()},
        "no json",
        track("signed_up") | times,
        "",
        track("signed_up"),
        {"type": "track", "userId": "ada"} | times,
        track("logged_in") | {"timestamp": at("-9d").isoformat(), "receivedAt": at("2m").isoformat(), "sentAt": at("5m").isoformat()},
        ["no call"],
        track("logged_in") | {"originalTimestamp": at("3m").isoformat(), "receivedAt": "soon"},
    ]
    text = "\n".join(one if isinstance(one, str) else to_json(one).decode() for one in lines).encode()
    path = tmp_path / "events.ndjson"
    path.write_bytes(gzip.compress(text) if packed else text)
    told, problems = history.of_file(path)
    assert [(one.line, one.field) for one in problems] == [(2, None), (5, "timestamp"), (6, "event"), (8, None), (9, "receivedAt")]
    assert str(problems[1]) == "line 5: timestamp: must say when it happened"
    assert [(one.name, one.occurred_at, one.received_at, one.mark) for one in told.events] == [
        ("identify", at(), at(), None),
        ("signed_up", at("1m"), at("1m"), None),
        ("logged_in", at("-9d"), at("2m"), "too_old"),
    ]
    assert told.accounts == ("acorn",)
    world = World(book_of(campaigns), feedback=told.feedback)
    told.tell(world)
    world.run(at("1h"))
    assert [one.step for one in world.letters] == ["hello"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.ndjson"):
        history.of_file(tmp_path / "gone.ndjson")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}" * 5000)[:30])
    with pytest.raises(InputError, match=r"cut\.gz"):
        history.of_file(tmp_path / "cut.gz")


def test_something_that_comes_back_proves_that_an_unknown_letter_arrived(campaigns):
    for reply, state in (
        (Reply("clicked"), "sent"),
        (Reply("replied", comment="Yes"), "sent"),
        (Reply("proved"), "sent"),
        (None, "unknown"),
    ):
        world = World(book_of(campaigns), feedback=Reader("unknown", *filter(None, [reply])))
        world.post([ADA, posted("track", "asked", "1m")])
        world.run(at("3h"))
        assert world.letters[0].outcome == state
        assert ("proved_sent" in {one.reason for _, one in world.decisions}) is (state == "sent")
