"""Moving those inside from one version to another, from the list to the mails: the list is what happens, and happens once."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from app.flow.moving import move, plan_moves
from app.flow.publish import publish
from app.flow.versions import roll_back
from app.models import campaign_version, decision, enrollment, event_pending, message, parked
from tests.stories import at, group, identify, post, run, track, write_campaigns

KEY = "onboarding/welcome"
WELCOME = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
  - {id: pause, wait: 2d}
  - {id: tips, email: tips.mjml, subject: Tips}
  - id: setup
    wait_for: {milestone: setup_completed, timeout: 3d}
    on_timeout:
      - {id: nudge, email: nudge.mjml, subject: Nudge}
  - {id: rest, wait: 4d}
  - {id: more, email: more.mjml, subject: More}
"""
PAUSE, TIPS, REST = (f"  - {{id: {words}}}\n" for words in ("pause, wait: 2d", "tips, email: tips.mjml, subject: Tips", "rest, wait: 4d"))


class World:
    def __init__(self, engine, root):
        self.engine, self.root = engine, root

    def publish(self, words=WELCOME, moment="0s"):
        write_campaigns(self.root, {KEY: words})
        with self.engine.begin() as conn:
            return publish(conn, self.root, at(moment))[0].number

    def sign_up(self, *keys, moment="0s"):
        items = []
        for key in keys:
            who = f"{key}-admin"
            items += [group(key, who), identify(who, key, email=f"{who}@example.com", roles=["admin"]), track("signed_up", who, key)]
        post(self.engine, *items, now=at(moment), name=f"story-{moment}")
        run(self.engine, at(moment))

    def put(self, step, due=None, key=None):
        """Puts whoever is inside (of one account) at a step, as if they had come there and their mail so far were sent."""
        whose = "" if key is None else "where account_id = (select id from account where external_id = :key)"
        with self.engine.begin() as conn:
            values = {"step": step, "due": at(due) if due else None, "key": key}
            conn.execute(text("update message set state = 'sent'"))
            conn.execute(text(f"update enrollment set step_id = :step, position = '{{}}', due_at = :due {whose}"), values)

    def plan(self, moment):
        with self.engine.connect() as conn:
            return plan_moves(conn, KEY, at(moment))

    def move(self, moment, plan=None):
        plan = plan or self.plan(moment)
        with self.engine.begin() as conn:
            return move(conn, plan, at(moment))[0]

    def rows(self, *columns):
        with self.engine.connect() as conn:
            return [tuple(row) for row in conn.execute(select(*columns).order_by(*columns))]

    def inside(self):
        """(version, step, due, state, end_reason) of every enrollment."""
        with self.engine.connect() as conn:
            found = select(
                campaign_version.c.number, enrollment.c.step_id, enrollment.c.due_at, enrollment.c.state, enrollment.c.end_reason
            ).join(campaign_version, campaign_version.c.id == enrollment.c.version_id)
            return [tuple(row) for row in conn.execute(found.order_by(*found.selected_columns))]

    def made(self):
        """(version, step) of the messages that are due."""
        with self.engine.connect() as conn:
            found = select(campaign_version.c.number, message.c.step_id).join(message, message.c.version_id == campaign_version.c.id)
            return [tuple(row) for row in conn.execute(found.where(message.c.state == "due").order_by(*found.selected_columns))]


@pytest.fixture
def world(engine, tmp_path):
    made = World(engine, tmp_path / "campaigns")
    made.publish()
    return made


def lines(plan):
    return [(line.version, line.step, line.how, line.target, line.count, line.mails) for line in plan.lines]


def test_invariant_7_nobody_moves_without_being_told(world):
    world.sign_up("acorn")
    world.put("pause", "2d")
    world.publish(WELCOME.replace(PAUSE, ""))
    world.plan("1h")
    run(world.engine, at("1h"))
    assert world.inside() == [(1, "pause", at("2d"), "active", None)] and world.made() == []


def test_a_step_that_is_still_there_goes_on_with_its_time(world):
    world.sign_up("acorn")
    world.put("pause", "2d")
    world.publish(WELCOME.replace("subject: Tips", "subject: Better tips"))
    assert lines(world.plan("1h")) == [(1, "pause", "stay", "pause", 1, 0)]
    assert world.move("1h") == 1
    run(world.engine, at("1h"))
    assert world.inside() == [(2, "pause", at("2d"), "active", None)]
    run(world.engine, at("2d"))
    assert world.made() == [(2, "tips")]


@pytest.mark.parametrize(("wait", "due"), [("5d", "5d"), ("36h", "36h")])
def test_a_wait_of_another_length_ends_when_the_new_words_say(world, wait, due):
    world.sign_up("acorn")
    world.put("pause", "2d")
    world.publish(WELCOME.replace("wait: 2d", f"wait: {wait}"))
    assert lines(world.plan("1d")) == [(1, "pause", "stay", "pause", 1, 0)]
    world.move("1d")
    run(world.engine, at("1d"))
    assert world.inside() == [(2, "pause", at(due), "active", None)]


def test_what_is_overdue_by_the_new_words_goes_at_once(world):
    world.sign_up("acorn", "bolt")
    world.put("pause", "2d")
    world.put("setup", "3d", "bolt")
    world.publish(WELCOME.replace("wait: 2d", "wait: 1h").replace("timeout: 3d", "timeout: 1h"))
    assert lines(world.plan("1d")) == [(1, "pause", "stay", "pause", 1, 1), (1, "setup", "stay", "setup", 1, 1)]
    world.move("1d")
    run(world.engine, at("1d"))
    assert world.made() == [(2, "nudge"), (2, "tips")]


def test_a_step_that_is_gone_leads_to_the_next_one_that_is_left(world):
    world.sign_up("acorn", "bolt", "cedar")
    world.put("pause", "2d")
    world.put("rest", "4d", "bolt")
    world.put("nudge", None, "cedar")
    world.publish(WELCOME.replace(PAUSE, "").replace(REST, "").replace("\n      - {id: nudge, email: nudge.mjml, subject: Nudge}", " []"))
    plan = world.plan("1d")
    assert lines(plan) == [(1, "pause", "go", "tips", 1, 1), (1, "nudge", "go", "more", 1, 1), (1, "rest", "go", "more", 1, 1)]
    assert (plan.count, plan.mails) == (3, 3)
    assert world.move("1d") == 3
    run(world.engine, at("1d"))
    assert world.made() == [(2, "more"), (2, "more"), (2, "tips")]
    assert ("moved",) in world.rows(decision.c.reason)


def test_where_nothing_is_left_it_ends_with_a_reason(world):
    world.sign_up("acorn")
    world.put("rest", "4d")
    world.publish(WELCOME[: WELCOME.index("  - {id: rest")])
    assert lines(world.plan("1d")) == [(1, "rest", "exit", None, 1, 0)]
    world.move("1d")
    run(world.engine, at("1d"))
    (found,) = world.inside()
    assert found[3] in ("exited", "finished") and found[4] == "moved"


def test_moving_twice_changes_nothing(world):
    world.sign_up("acorn", "bolt")
    world.put("pause", "2d")
    world.publish(WELCOME.replace(PAUSE, ""))
    plan = world.plan("1d")
    assert world.move("1d", plan) == 2
    assert world.move("1d", plan) == 0 and world.move("26h", plan) == 0 and world.plan("26h").count == 0
    run(world.engine, at("1d"))
    assert world.move("27h", plan) == 0 and world.plan("27h").count == 0
    run(world.engine, at("27h"))
    assert world.made() == [(2, "tips"), (2, "tips")]
    assert world.rows(event_pending.c.event_id) == world.rows(parked.c.id) == []


def test_whoever_went_on_meanwhile_is_moved_from_where_he_is_then(world):
    """The timer comes between the list and the move, or between the move and its being worked on: no mail is sent twice or lost."""
    world.sign_up("acorn", "bolt")
    world.put("pause", "2d")
    world.put("pause", "3d", "bolt")
    world.publish(WELCOME.replace(REST, ""))
    plan = world.plan("1d")
    run(world.engine, at("2d"))
    assert world.move("49h", plan) == 1  # acorn has gone on to `tips`, so it is not where the list found it
    run(world.engine, at("3d"))
    assert [(version, step) for version, step, *_ in world.inside()] == [(1, "tips"), (2, "tips")]
    assert world.made() == [(1, "tips"), (2, "tips")]
    assert world.plan("3d").count == 1 and world.move("3d") == 1
    run(world.engine, at("3d"))
    assert [(version, step) for version, step, *_ in world.inside()] == [(2, "tips"), (2, "tips")]
    assert world.made() == [(1, "tips"), (2, "tips")]
    settle(world)
    assert [step for _, step, *_ in world.inside()] == ["setup", "setup"]


def settle(world):
    """Every message is sent, and its enrollment told so."""
    from app.flow.ingest import Own, raise_own

    with world.engine.begin() as conn:
        rows = conn.execute(
            text(
                """update message m set state = 'sent' from account a where a.id = m.account_id and m.state = 'due'
                   returning m.id, m.enrollment_id, a.external_id"""
            )
        ).all()
        told = [
            Own(
                "nurture.message_settled",
                f"settled:{row.id}",
                {"message": str(row.id), "enrollment": str(row.enrollment_id)},
                row[2],
                None,
                at("3d"),
            )
            for row in rows
        ]
        raise_own(conn, told, at("3d"), 64)
    run(world.engine, at("3d"))


def test_who_waits_for_a_mail_to_be_sent_goes_on_when_it_is(world):
    """The mail that is written already keeps its words; what follows is the new version's."""
    world.sign_up("acorn")
    world.publish(WELCOME.replace(PAUSE, ""))
    assert lines(world.plan("1h")) == [(1, "hello", "stay", "hello", 1, 0)]
    world.move("1h")
    run(world.engine, at("1h"))
    assert world.inside() == [(2, "hello", None, "active", None)] and world.made() == [(1, "hello")]
    settle(world)
    assert world.made() == [(2, "tips")]


def test_back_again_after_a_rollback(world):
    world.sign_up("acorn")
    world.put("pause", "2d")
    world.publish(WELCOME.replace("wait: 2d", "wait: 5d"))
    for moment, due in (("1h", "5d"), ("2h", "2d"), ("3h", "5d")):
        assert world.move(moment) == 1
        run(world.engine, at(moment))
        assert world.inside()[0][1:3] == ("pause", at(due))
        with world.engine.begin() as conn:
            roll_back(conn, KEY, at(), 1 if due == "5d" else 2)


def test_a_crash_before_the_commit_moves_nobody(world):
    world.sign_up("acorn")
    world.put("pause", "2d")
    world.publish(WELCOME.replace(PAUSE, ""))
    plan = world.plan("1h")
    with pytest.raises(OperationalError), world.engine.begin() as conn:
        move(conn, plan, at("1h"))
        with world.engine.connect() as other:
            pid = conn.exec_driver_sql("select pg_backend_pid()").scalar()
            other.exec_driver_sql("select pg_terminate_backend(%(pid)s)", {"pid": pid})
    run(world.engine, at("1h"))
    assert world.inside() == [(1, "pause", at("2d"), "active", None)]


def test_moving_during_a_pause_sends_nothing_before_it_ends(world):
    world.sign_up("acorn")
    world.put("pause", "2d")
    with world.engine.begin() as conn:
        conn.execute(text("update campaign set mode = 'paused'"))
    world.publish(WELCOME.replace("wait: 2d", "wait: 1h"))
    world.move("1d")
    run(world.engine, at("3d"))
    assert [row[:2] for row in world.inside()] == [(2, "pause")] or world.made() == [(2, "tips")]


def test_thousands_are_listed_and_moved_in_bulk(world):
    keys = [f"account-{number}" for number in range(2500)]
    world.sign_up(*keys)
    world.put("pause", "2d")
    world.publish(WELCOME.replace(PAUSE, ""))
    assert lines(world.plan("1h")) == [(1, "pause", "go", "tips", 2500, 2500)]
    assert world.move("1h") == 2500
    run(world.engine, at("1h"))
    assert world.made() == [(2, "tips")] * 2500
