"""Steering campaigns: modes, pausing and resuming, going live, archiving; up to the events that are raised, and what the rules make of
them."""

from __future__ import annotations

import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import OperationalError

from app.errors import InputError, NotFound
from app.flow import notify
from app.flow.channels import set_channel
from app.flow.deliver import Limits
from app.flow.deliver import run as deliver
from app.flow.reading.tasks import tasks
from app.flow.steering import find_campaign, overdue, set_mode
from app.models import campaign, decision, effect, enrollment, event, event_pending, message, task
from app.providers.memory import MemoryTransport
from app.providers.outgoing import Caller
from app.queue import Bells, find_due
from app.rules.modes import FOLLOWS
from tests.stories import LIFECYCLE, at, group, identify, post, publish_campaigns, run, track

QUICK = Limits(poll=0.02, gather=0.0, patience=(0.05,), back_off=1.0, heartbeat=0.2, farewell=0.5)
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
  - {id: rest, wait: 4d}
  - {id: more, email: more.mjml, subject: More}
"""


class World:
    """An installation with one campaign, an account or three inside it, and a clock that goes where it is told to."""

    def __init__(self, engine, settings, root):
        self.engine, self.settings, self.transport = engine, settings, MemoryTransport()
        publish_campaigns(engine, root, {KEY: WELCOME})

    def sign_up(self, *keys, moment="0s"):
        items = []
        for key in keys:
            who = f"{key}-admin"
            items += [group(key, who), identify(who, key, email=f"{who}@example.com", roles=["admin"]), track("signed_up", who, key)]
        post(self.engine, *items, now=at(moment), name=f"story-{moment}")
        self.settle(moment)

    def until(self, first, last):
        """One day after the other."""
        for day in range(first, last + 1):
            self.settle(f"{day}d")

    def settle(self, moment):
        """Advances and delivers until nothing moves at this moment any more."""
        while True:
            sent = len(self.transport.letters)
            moved = run(self.engine, at(moment))
            deliver(self.engine, self.settings, uuid4(), lambda: at(moment), Bells(None), transport=self.transport, limits=QUICK)
            if not moved and len(self.transport.letters) == sent:
                return

    def mode(self, mode, moment, **more):
        with self.engine.begin() as conn:
            return set_mode(conn, KEY, mode, at(moment), **more)

    def waiting(self, moment):
        with self.engine.connect() as conn:
            return [(one.what, one.step, one.count, one.then) for one in overdue(conn, KEY, at(moment))]

    def rows(self, *columns):
        with self.engine.connect() as conn:
            return [tuple(row) for row in conn.execute(select(*columns).order_by(*columns))]

    def mails(self, step):
        return self.rows(message.c.state, message.c.reason, message.c.step_id).count(("sent", None, step))


@pytest.fixture
def world(engine, settings, tmp_path):
    return World(engine, settings, tmp_path / "campaigns")


def states(world):
    return world.rows(enrollment.c.state, enrollment.c.step_id, enrollment.c.end_reason)


# Which mode may follow which -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", FOLLOWS)
@pytest.mark.parametrize("after", FOLLOWS)
def test_a_mode_changes_only_to_those_that_may_follow(world, before, after):
    with world.engine.begin() as conn:
        conn.execute(update(campaign).values(mode=before))
    if after in FOLLOWS[before]:
        done = world.mode(after, "1h")
        assert (done.before, done.after) == (before, after)
        assert world.rows(campaign.c.mode, campaign.c.mode_at) == [(after, at("1h"))]
    else:
        with pytest.raises(InputError, match=f"^mode: .*{before}"):
            world.mode(after, "1h")
        assert world.rows(campaign.c.mode, campaign.c.mode_at) == [(before, None)]


def test_what_cannot_be_meant_changes_nothing(world):
    with pytest.raises(NotFound, match="onboarding/welcome"), world.engine.begin() as conn:
        set_mode(conn, "no/such", "paused", at())
    with pytest.raises(InputError, match="overdue"):
        world.mode("paused", "0s", choice="burn")
    with pytest.raises(InputError, match="exit"):
        world.mode("paused", "0s", leave=True)
    assert world.rows(campaign.c.mode) == [("live",)]


# Pausing and resuming ------------------------------------------------------------------------------------------------


@pytest.fixture
def paused(world):
    """acorn's first mail was held up by the pause, and again looked at; bolt and cedar wait for `tips`, whose time has come."""
    world.sign_up("bolt", "cedar")
    post(world.engine, group("acorn", "a"), identify("a", "acorn", email="a@example.com"), track("signed_up", "a", "acorn"), now=at("1d"))
    run(world.engine, at("1d"))
    world.mode("paused", "1d")
    world.settle("1d")
    world.settle("5d")  # later than a message would wait, and than the wait lasts
    return world


def test_a_pause_holds_up_timers_and_messages_and_lets_nothing_expire(paused):
    assert paused.mails("hello") == 2 and paused.mails("tips") == 0
    assert paused.rows(message.c.state, message.c.reason, message.c.step_id)[0] == ("due", "campaign_paused", "hello")
    assert paused.waiting("5d") == [("message", "hello", 1, None), ("timer", "pause", 2, "tips")]


def test_nothing_is_overdue_where_nothing_is_paused(world):
    world.sign_up("acorn")
    assert world.waiting("9d") == []


def test_without_an_answer_nothing_changes(paused):
    before = paused.rows(enrollment.c.id, enrollment.c.due_at), paused.rows(message.c.id, message.c.due_at)
    with pytest.raises(InputError, match="3 are overdue: say whether to send, skip or exit them"):
        paused.mode("live", "5d")
    with pytest.raises(InputError, match="3 are overdue"):
        paused.mode("archived", "5d")
    assert paused.rows(campaign.c.mode) == [("paused",)]
    assert (paused.rows(enrollment.c.id, enrollment.c.due_at), paused.rows(message.c.id, message.c.due_at)) == before


def test_a_pause_without_anything_overdue_ends_without_a_question(world):
    world.sign_up("acorn")
    world.mode("paused", "1h")
    world.mode("live", "2h")
    world.settle("2d")
    assert world.mails("tips") == 1


def test_resume_and_send_sends_everything_once_and_counts_on_from_now(paused):
    done = paused.mode("live", "5d", choice="send")
    assert (done.messages, done.leaving, done.skipping) == (1, 0, 0)
    paused.settle("5d")
    assert (paused.mails("hello"), paused.mails("tips"), len(paused.transport.letters)) == (3, 2, 5)
    assert [one for one in states(paused) if one[1] == "rest"] == [("active", "rest", None)] * 2
    paused.settle("8d")
    assert paused.mails("more") == 0  # four days from the resume, not from when it should have been
    paused.settle("9d")
    assert paused.mails("more") == 2
    paused.until(9, 14)
    assert (paused.mails("hello"), paused.mails("tips"), paused.mails("more")) == (3, 3, 3)


def test_resume_and_skip_goes_on_without_what_was_overdue(paused):
    done = paused.mode("live", "5d", choice="skip")
    assert (done.messages, done.skipping, done.leaving) == (1, 2, 0)
    assert paused.rows(message.c.state, message.c.reason, message.c.settled_at)[-1] == ("skipped", "skipped_on_resume", at("5d"))
    paused.settle("5d")
    assert states(paused) == [("active", "pause", None), ("active", "rest", None), ("active", "rest", None)]
    paused.until(5, 14)
    assert (paused.mails("hello"), paused.mails("tips"), paused.mails("more")) == (2, 1, 3)
    assert sum(reason == "skipped_on_resume" for (reason,) in paused.rows(decision.c.reason)) >= 3


def test_resume_and_exit_takes_out_who_was_overdue(paused):
    done = paused.mode("live", "5d", choice="exit")
    assert (done.messages, done.leaving, done.skipping) == (1, 3, 0)
    paused.settle("5d")
    assert states(paused) == [("exited", None, "exited_on_resume")] * 3
    paused.until(5, 9)
    assert len(paused.transport.letters) == 2
    assert not [row for row in paused.rows(message.c.state, message.c.reason) if row[0] == "skipped" and not row[1]]


@pytest.mark.parametrize("choice", ["send", "skip", "exit"])
def test_whatever_the_answer_no_message_is_lost_without_a_reason_and_none_is_doubled(paused, choice):
    paused.mode("live", "5d", choice=choice)
    paused.until(5, 18)
    found = paused.rows(message.c.enrollment_id, message.c.step_id, message.c.state, message.c.reason)
    assert len({row[:2] for row in found}) == len(found)
    assert all(state == "sent" or (state == "skipped" and reason) for *_, state, reason in found)
    assert len(paused.transport.letters) == len({(one.recipient, one.data.split(b"Subject: ")[1][:20]) for one in paused.transport.letters})
    assert not [row for row in states(paused) if row[0] == "active"]
    assert paused.rows(event_pending.c.event_id) == []


WAITING = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - id: setup
    wait_for: {milestone: setup_completed, timeout: 2d}
    on_timeout:
      - {id: nudge, email: nudge.mjml, subject: Nudge}
      - {id: calm, wait: 30d}
  - {id: done, email: done.mjml, subject: Done}
"""


def test_what_was_waited_for_in_vain_did_not_come_by_skipping_it(engine, settings, tmp_path):
    world = World(engine, settings, tmp_path / "campaigns")
    publish_campaigns(engine, tmp_path / "campaigns", {KEY: WAITING})
    world.sign_up("acorn")
    world.mode("paused", "1d")
    world.settle("3d")
    assert world.waiting("3d") == [("timer", "setup", 1, "nudge")]
    world.mode("live", "3d", choice="skip")
    world.settle("3d")
    assert states(world) == [("active", "calm", None)] and world.transport.letters == []
    said = world.rows(decision.c.gate, decision.c.verdict, decision.c.reason, decision.c.step_id)
    assert ("wait_for", "no", "timed_out", "setup") in said and ("enrollment", "no", "skipped_on_resume", "nudge") in said


WEEKLY = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: tips, email: tips.mjml, subject: Tips, repeat: {every: 7d, at_most: 4}}
"""


def test_of_a_step_that_repeats_one_time_is_skipped(engine, settings, tmp_path):
    world = World(engine, settings, tmp_path / "campaigns")
    publish_campaigns(engine, tmp_path / "campaigns", {KEY: WEEKLY})
    world.sign_up("acorn")
    world.mode("paused", "1d")
    world.settle("8d")
    world.mode("live", "8d", choice="skip")
    world.until(8, 30)
    assert world.mails("tips") == 3 and states(world) == [("finished", None, "finished")]
    assert world.rows(message.c.occurrence) == [(1,), (3,), (4,)]


def test_resuming_twice_is_refused_and_a_second_pause_skips_anew(paused):
    paused.mode("live", "5d", choice="skip")
    with pytest.raises(InputError, match="live already"):
        paused.mode("live", "5d", choice="skip")
    paused.settle("5d")
    paused.mode("paused", "6d")
    paused.settle("20d")
    assert paused.waiting("20d") == [("timer", "pause", 1, "tips"), ("timer", "rest", 2, "more")]
    paused.mode("live", "20d", choice="skip")
    paused.settle("20d")
    assert paused.mails("more") == 0 and [state for state, *_ in states(paused)].count("finished") == 2


def test_pausing_while_events_are_pending_loses_none(world):
    """What arrives during a pause is worked on: who has left has left, and who signs up then is told why not."""
    world.sign_up("acorn")
    post(world.engine, track("report_shared", "acorn-admin", "acorn"), now=at("1h"))
    world.mode("paused", "1h")
    world.settle("1h")
    assert world.rows(event_pending.c.event_id) == []
    assert ("report_shared",) in world.rows(event.c.name)
    assert world.mode("live", "2h").messages == 0
    world.until(1, 7)
    assert (world.mails("tips"), world.mails("more")) == (1, 1)


def test_a_crash_before_the_commit_leaves_nothing_half(paused):
    before = paused.rows(enrollment.c.id, enrollment.c.due_at), paused.rows(message.c.id, message.c.state)
    with pytest.raises(OperationalError), paused.engine.begin() as conn:
        set_mode(conn, KEY, "live", at("5d"), choice="skip")
        with paused.engine.connect() as other:
            pid = conn.exec_driver_sql("select pg_backend_pid()").scalar()
            other.exec_driver_sql("select pg_terminate_backend(%(pid)s)", {"pid": pid})
    assert paused.rows(campaign.c.mode) == [("paused",)] and paused.rows(event_pending.c.event_id) == []
    assert (paused.rows(enrollment.c.id, enrollment.c.due_at), paused.rows(message.c.id, message.c.state)) == before


def test_two_who_resume_at_once_do_it_once(paused):
    said = []

    def resume():
        try:
            said.append(paused.mode("live", "5d", choice="send").messages)
        except InputError as error:
            said.append(str(error))

    threads = [threading.Thread(target=resume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, said)) == ["1", "mode: is live already"]


def test_who_is_being_advanced_is_waited_for(paused):
    """The timers of a partition are set to now only when nobody works on it."""
    place = paused.rows(enrollment.c.partition)
    begun, done = threading.Event(), threading.Event()

    def resume():
        begun.set()
        paused.mode("live", "5d", choice="skip")
        done.set()

    with paused.engine.begin() as conn:
        for (number,) in set(place):
            conn.execute(text("select pg_advisory_xact_lock(1, :n)"), {"n": number})
        thread = threading.Thread(target=resume)
        thread.start()
        begun.wait()
        assert not done.wait(0.3)
    thread.join()
    assert done.is_set()


# Alerts, webhooks and tasks ------------------------------------------------------------------------------------------

STAFF = """
name: Staff
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: setup, wait_for: {event: set_up, timeout: 30d}}
  - {id: tell, alert: {to: owner, text: "{{ account.name }} is ready"}}
  - {id: crm, webhook: {to: crm}}
  - {id: call, task: {title: "Call {{ account.name }}", due: 2d}}
  - {id: rest, wait: 90d}
"""


class Staff(World):
    """Three accounts in a campaign that tells staff as soon as something happens, which happens during a pause."""

    def __init__(self, engine, settings, root):
        super().__init__(engine, settings, root)
        publish_campaigns(engine, root, {KEY: STAFF}, lifecycle=LIFECYCLE + "channels: {crm: The CRM}\n")
        with engine.begin() as conn:
            set_channel(conn, settings, "crm", "email", "crm@example.com", at())

    def set_up(self, *keys, moment):
        post(self.engine, *[track("set_up", f"{key}-admin", key) for key in keys], now=at(moment), name=f"set-up-{moment}")
        self.settle(moment)

    def settle(self, moment):
        super().settle(moment)
        notify.run(self.engine, self.settings, uuid4(), lambda: at(moment), Bells(None), transport=self.transport)

    def staff(self):
        return dict(self.rows(effect.c.kind, effect.c.state)) | {"task": self.rows(task.c.state, task.c.due_at)}


@pytest.fixture
def staff(engine, settings, tmp_path):
    world = Staff(engine, settings, tmp_path / "campaigns")
    items = [
        group("acorn", "acorn-admin", name="Acorn", owner={"name": "Olu", "email": "olu@example.com"}),
        track("signed_up", "acorn-admin", "acorn"),
    ]
    post(engine, *items, now=at())
    world.settle("0s")
    world.mode("paused", "1h")
    world.set_up("acorn", moment="2h")
    return world


def test_a_pause_freezes_alerts_webhooks_and_tasks(staff):
    staff.settle("3d")
    assert staff.transport.letters == []
    assert staff.staff() == {"alert": "frozen", "webhook": "frozen", "task": [("frozen", at("2h") + timedelta(days=2))]}
    assert staff.waiting("3d") == [("task", "call", 1, None), ("webhook", "crm", 1, None), ("alert", "tell", 1, None)]
    said = staff.rows(decision.c.gate, decision.c.verdict, decision.c.reason, decision.c.step_id)
    assert [one for one in said if one[0] == "campaign"] == [
        ("campaign", "wait", "campaign_paused", step) for step in ("call", "crm", "tell")
    ]
    with staff.engine.connect() as conn:
        assert tasks(conn, at("3d"), state="all").items == []
        assert not find_due(conn, at("3d")).effects
    with pytest.raises(InputError, match="3 are overdue"):
        staff.mode("live", "3d")


def test_resume_and_send_does_what_was_frozen(staff):
    assert staff.mode("live", "3d", choice="send").effects == 3
    staff.settle("3d")
    assert [one.recipient for one in staff.transport.letters] == ["olu@example.com"]
    assert staff.staff()["alert"] == "done" and staff.staff()["task"] == [("open", at("5d"))]
    assert ("effect", "yes", "task_made") in staff.rows(decision.c.gate, decision.c.verdict, decision.c.reason)
    staff.settle("4d")
    assert len(staff.transport.letters) == 1


@pytest.mark.parametrize(("choice", "state"), [("skip", "active"), ("exit", "exited")])
def test_what_was_frozen_is_skipped(staff, choice, state):
    done = staff.mode("live", "3d", choice=choice)
    assert (done.effects, done.leaving) == (3, int(state == "exited"))
    staff.settle("3d")
    reason = {"skip": "skipped_on_resume", "exit": "exited_on_resume"}[choice]
    assert staff.transport.letters == [] and staff.rows(effect.c.state, effect.c.reason) == [("skipped", reason)] * 2
    assert staff.rows(task.c.state) == [("skipped",)]
    assert [row[0] for row in states(staff)] == [state]
    assert [row for row in staff.rows(decision.c.reason, decision.c.step_id) if row[0] == reason and row[1] in ("tell", "crm", "call")]


def test_what_waits_for_another_attempt_freezes_and_has_its_whole_time_again(staff):
    staff.mode("live", "3h", choice="send")
    staff.transport.fail("connect", "temp")
    staff.settle("3h")
    assert staff.staff()["alert"] == "due" and staff.rows(effect.c.attempts, effect.c.kind)[-1] == (1, "alert")
    staff.mode("paused", "4h")
    assert staff.staff()["alert"] == "frozen"
    staff.settle("3d")
    staff.mode("live", "3d", choice="send")
    staff.transport.fail("connect", "temp")
    staff.settle("3d")
    assert staff.staff()["alert"] == "due"  # not given up, though it was made three days ago
    staff.settle("4d")
    assert staff.staff()["alert"] == "done" and len(staff.transport.letters) == 1


def test_archiving_everybody_out_skips_what_is_frozen(staff):
    assert staff.mode("archived", "3d", leave=True).effects == 3
    assert set(staff.rows(effect.c.state, effect.c.reason)) == {("skipped", "archived")}


def test_an_effect_that_was_claimed_when_its_campaign_was_paused_is_frozen(staff):
    """Its claim is void, and the worker that had it sends nothing."""
    staff.mode("live", "3h", choice="send")
    with staff.engine.begin() as conn:
        (row, *others) = notify.claim(conn, uuid4(), at("3h"), 10)
    staff.mode("paused", "3h")
    desk = notify.Desk(staff.engine, staff.settings, lambda: at("3h"), Caller(), staff.transport)
    assert [desk.do(one) for one in (row, *others)] == [False, False] and staff.transport.begun == []
    assert staff.rows(effect.c.state, effect.c.claim) == [("frozen", None)] * 2
    assert staff.mode("live", "4h", choice="skip").effects == 2


def test_an_effect_that_is_claimed_does_not_escape_the_answer(staff):
    staff.mode("live", "3h", choice="send")
    with staff.engine.begin() as conn:
        claimed = notify.claim(conn, uuid4(), at("3h"), 10)
    staff.mode("paused", "3h")
    assert staff.mode("live", "3h", choice="skip").effects == len(claimed) == 2
    desk = notify.Desk(staff.engine, staff.settings, lambda: at("3h"), Caller(), staff.transport)
    assert [desk.do(one) for one in claimed] == [False, False] and staff.transport.begun == []
    assert set(staff.rows(effect.c.state, effect.c.reason)) == {("skipped", "skipped_on_resume")}


# At the last moment --------------------------------------------------------------------------------------------------


def on_its_way(world, *then):
    """acorn signs up, and while the first mail is on the wire with its dot to come, the mode changes: each of `then` is a mode with what
    else is said."""
    world.transport.before_dot = lambda _: [world.mode(mode, "1m", **more) for mode, more in then]
    try:
        world.sign_up("acorn", moment="1m")
    finally:
        world.transport.before_dot = None


def test_a_message_at_its_dot_waits_when_its_campaign_is_paused(world):
    on_its_way(world, ("paused", {}))
    assert world.transport.letters == [] and world.transport.begun
    assert world.rows(message.c.state, message.c.reason, message.c.claim) == [("due", "campaign_paused", None)]
    assert ("campaign", "wait", "campaign_paused") in world.rows(decision.c.gate, decision.c.verdict, decision.c.reason)
    world.settle("9d")
    assert world.transport.letters == [] and world.waiting("9d") == [("message", "hello", 1, None)]
    world.mode("live", "9d", choice="send")
    world.settle("9d")
    assert world.mails("hello") == 1


@pytest.mark.parametrize("choice", ["skip", "exit"])
def test_a_claimed_message_does_not_escape_the_answer(world, choice):
    on_its_way(world, ("paused", {}), ("live", {"choice": choice}))
    assert world.transport.letters == []
    assert world.rows(message.c.state, message.c.claim) == [("skipped", None)]
    world.settle("1m")
    assert [row[0] for row in states(world)] == ["active" if choice == "skip" else "exited"]


def test_a_message_that_is_claimed_when_everybody_is_taken_out_is_skipped(world):
    on_its_way(world, ("archived", {"leave": True}))
    assert world.transport.letters == [] and world.rows(message.c.state, message.c.reason) == [("skipped", "archived")]


# Shadow, live, archived ----------------------------------------------------------------------------------------------


def test_going_live_ends_what_ran_in_shadow(world):
    with world.engine.begin() as conn:
        conn.execute(update(campaign).values(mode="shadow"))
    world.sign_up("acorn", "bolt")
    assert len(world.transport.letters) == 0 and world.rows(enrollment.c.shadow) == [(True,), (True,)]
    done = world.mode("live", "1h")
    assert done.leaving == 2 and done.partitions
    world.settle("1h")
    assert states(world) == [("exited", None, "went_live")] * 2
    post(world.engine, track("signed_up", "acorn-admin", "acorn"), now=at("2h"))
    world.settle("2h")
    assert world.mails("hello") == 1 and (False,) in world.rows(enrollment.c.shadow)


@pytest.mark.parametrize(("mode", "reason"), [("draft", "shadow_ended"), ("archived", "archived")])
def test_leaving_shadow_ends_what_ran_in_it(world, mode, reason):
    with world.engine.begin() as conn:
        conn.execute(update(campaign).values(mode="shadow"))
    world.sign_up("acorn")
    world.mode(mode, "1h")
    world.settle("1h")
    assert states(world) == [("exited", None, reason)]


def test_archiving_lets_those_inside_finish_and_takes_nobody_new(world):
    world.sign_up("acorn")
    assert world.mode("archived", "1h").leaving == 0
    world.sign_up("bolt", moment="2h")
    world.until(1, 7)
    assert (world.mails("hello"), world.mails("tips"), world.mails("more")) == (1, 1, 1)
    assert [state for state, *_ in states(world)] == ["finished"]


def test_archiving_can_take_everybody_out(world):
    world.sign_up("bolt")
    post(world.engine, group("acorn", "a"), identify("a", "acorn", email="a@example.com"), track("signed_up", "a", "acorn"), now=at("1h"))
    run(world.engine, at("1h"))
    done = world.mode("archived", "1h", leave=True)
    assert (done.leaving, done.messages) == (2, 1)
    world.settle("1h")
    assert states(world) == [("exited", None, "archived")] * 2
    world.until(1, 7)
    assert len(world.transport.letters) == 1
    assert ("skipped", "archived") in world.rows(message.c.state, message.c.reason)


def test_unarchiving_starts_nothing_by_itself(world):
    world.sign_up("acorn")
    world.mode("archived", "1h")
    world.mode("paused", "2h")
    world.settle("9d")
    assert world.mails("tips") == 0 and world.waiting("9d") == [("timer", "pause", 1, "tips")]


def test_a_campaign_is_found_and_not_locked_by_looking(world):
    with world.engine.connect() as conn:
        assert find_campaign(conn, KEY).mode == "live"
        with pytest.raises(NotFound):
            find_campaign(conn, "a\x00b")
        assert conn.execute(select(func.count()).select_from(enrollment)).scalar_one() == 0
