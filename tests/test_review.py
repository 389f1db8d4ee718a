"""Corners of the timeline: waits that share an event, stages that are over at once, batches, and lifecycles that lose a name."""

from __future__ import annotations

from itertools import count

from sqlalchemy import select, text

from app.flow.publish import book, publish
from app.models import decision, enrollment, message, parked, usage_day
from app.rules.facts import Timer, partition_of
from app.rules.journey import needs, react
from tests.stories import (
    LIFECYCLE,
    at,
    group,
    identify,
    make_account,
    make_book,
    make_event,
    post,
    publish_campaigns,
    run,
    track,
    write_campaigns,
)

TWICE = """
trigger: {event: signed_up}
steps:
  - id: first
    wait_for: {event: invited, timeout: 1d}
    on_timeout: [{id: nudge, wait: 1d}]
  - {id: second, wait_for: {event: invited, timeout: 5d}}
  - {id: thanks, email: thanks.mjml, subject: Thanks}
"""
TWO_ARMS = """
trigger: {event: signed_up}
steps:
  - id: which
    branch:
      - when: account.touch == "high"
        steps: [{id: left, wait_for: {event: invited, timeout: 5d}}]
      - else: [{id: rest, wait: 1d}, {id: right, wait_for: {event: invited, timeout: 5d}}]
  - {id: thanks, email: thanks.mjml, subject: Thanks}
"""
STATE_FIRST = """
trigger: {event: signed_up}
steps:
  - {id: set, wait_for: {milestone: setup_completed, timeout: 5d}}
  - {id: invite, wait_for: {event: invited, timeout: 5d}}
  - {id: thanks, email: thanks.mjml, subject: Thanks}
"""
PERSONAL = """
enrolls: contact
trigger: {event: signed_up}
goal: {event: report_shared}
steps:
  - {id: login, wait_for: {event: invited, timeout: 5d}}
  - {id: thanks, email: thanks.mjml, subject: Thanks}
"""


def steps(done) -> list[str | None]:
    return [one.step for one in done.account.enrollments]


def through(text_, *occurrences):
    """The reaction to the last of the occurrences."""
    story, account = make_book(text_), make_account()
    for one in occurrences:
        done = react(story, account, one if not callable(one) else one(account))
        account = done.account
    return done


def timer(offset):
    return lambda account: Timer(at(offset), account.enrollments[0].id)


def test_a_wait_that_timed_out_takes_no_event_from_a_later_one():
    done = through(TWICE, make_event("signed_up"), timer("1d"), timer("2d"), make_event("invited", "3d"))
    assert [one.step for one in done.messages] == ["thanks"]


def test_a_wait_in_an_arm_not_taken_takes_no_event():
    done = through(TWO_ARMS, make_event("signed_up"), timer("1d"), make_event("invited", "3d"))
    assert [one.step for one in done.messages] == ["thanks"]


def test_an_event_that_came_early_serves_the_arm_that_is_taken():
    done = through(TWO_ARMS, make_event("signed_up"), make_event("invited", "1h"), timer("1d"))
    assert [one.step for one in done.messages] == ["thanks"]


def test_one_event_satisfies_one_wait_and_two_events_two():
    late = [timer("1d"), timer("2d")]
    assert steps(through(TWICE, make_event("signed_up"), make_event("invited", "1h"))) == ["second"]
    assert steps(through(TWICE, make_event("signed_up"), *late)) == ["second"]
    done = through(TWICE, make_event("signed_up"), make_event("invited", "1h"), make_event("invited", "2h"))
    assert [one.step for one in done.messages] == ["thanks"]


def test_an_event_heard_while_waiting_for_a_state_counts_for_the_wait_that_follows():
    done = through(STATE_FIRST, make_event("signed_up"), make_event("invited", "1h"), make_event("setup_completed", "2h"))
    assert [one.step for one in done.messages] == ["thanks"]


def test_a_contact_waits_for_its_own_events_and_meets_its_own_goal():
    """What a colleague does satisfies neither the wait nor the goal of a contact's enrollment."""
    assert steps(through(PERSONAL, make_event("signed_up"), make_event("invited", "1h", "bob"))) == ["login"]
    assert steps(through(PERSONAL, make_event("signed_up"), make_event("report_shared", "1h", "bob"))) == ["login"]
    assert steps(through(PERSONAL, make_event("signed_up"), make_event("report_shared", "1h"))) == []
    assert [one.step for one in through(PERSONAL, make_event("signed_up"), make_event("invited", "1h")).messages] == ["thanks"]


STAGES = LIFECYCLE.replace(
    "  - {name: adoption}", "  - {name: adoption, exit_when: milestone.setup_completed.reached}\n  - {name: renewal}"
)


def test_a_stage_that_is_over_already_is_left_at_once():
    story, account = make_book(lifecycle=STAGES), make_account()
    account = react(story, account, make_event("setup_completed")).account
    done = react(story, account, make_event("report_shared", "1h"))
    assert done.account.stage == "renewal"
    assert [name for name, _, _ in done.stages] == ["adoption", "renewal"]


def test_a_stage_that_ends_with_time_is_looked_at_daily():
    lifecycle = LIFECYCLE.replace("milestone.first_value.reached}", "stage.entered_at | days_since > 2}").replace(
        ", expected_within: 14d", ""
    )
    story = make_book(lifecycle=lifecycle)
    account = react(story, make_account(stage=None, stage_entered_at=None), make_event("anything")).account
    looks = 0
    while account.stage == "onboarding":
        assert account.due_at is not None and looks < 5
        account, looks = react(story, account, Timer(account.due_at)).account, looks + 1
    # It looks by the account's own clock, which began an hour before the stage.
    assert (looks, account.stage_entered_at) == (3, at("2d23h"))


def test_what_a_metric_asks_of_the_contact_is_loaded():
    lifecycle = LIFECYCLE.replace("logins: {event: logged_in}", "logins: {event: logged_in, where: '\"admin\" in contact.roles'}")
    assert needs(make_book(lifecycle=lifecycle), make_account(), make_event("logged_in")) == {"contacts", "usage"}


def test_a_candidate_does_not_enter_a_campaign_that_is_not_live_any_more():
    story = """
trigger: {event: signed_up}
audience: account.traits.plan == "pro"
steps: [{id: hello, email: hello.mjml, subject: Hello}]
"""
    account = react(make_book(story), make_account(), make_event("signed_up")).account
    assert account.candidates
    done = react(make_book(story, mode="paused"), account, make_event("group", "1m", "ada", "group", plan="pro"))
    assert (done.enrollments, done.account.candidates) == ((), ())
    assert [one.reason for one in done.decisions] == ["campaign_not_live"]


CAMPAIGN = "name: Story\nstage: onboarding\ntopic: product\n"
ADA = (group(name="Acorn"), identify(email="ada@example.com", roles=["admin"]))


def test_usage_of_the_first_batch_moves_the_stage(engine, tmp_path):
    lifecycle = LIFECYCLE.replace("milestone.first_value.reached", "usage.logins.total >= 2")
    publish_campaigns(engine, tmp_path / "c", {}, lifecycle=lifecycle)
    post(engine, track("logged_in", None, "acorn"), track("logged_in", None, "acorn"))
    run(engine)
    with engine.connect() as conn:
        assert conn.execute(text("select stage from account")).scalars().all() == ["adoption"]
        assert conn.execute(select(usage_day.c.count)).scalars().all() == [2]


def test_timers_that_follow_from_a_batch_keep_their_place_before_later_events(engine, tmp_path):
    """After an outage of days the order is that of the times, whatever the size of the batch."""
    story = CAMPAIGN + (
        "trigger: {event: signed_up}\nexit_when: event.name == 'cancelled'\n"
        "steps:\n  - {id: one, wait: 1d}\n  - {id: two, wait: 1d}\n  - id: hello\n    email: hello.mjml\n    subject: Hello\n"
    )
    publish_campaigns(engine, tmp_path / "c", {"onboarding/story": story})
    for key, batch in (("small", 1), ("large", 1000)):
        post(engine, group(key, key), identify(key, key, email=f"{key}@example.com"), track("signed_up", key, key), name=key)
        run(engine)
        post(engine, track("cancelled", key, key), now=at("5d"), name=key)
        run(engine, at("6d"), batch=batch)
    with engine.connect() as conn:
        assert conn.execute(select(message.c.created_at)).scalars().all() == [at("2d"), at("2d")]
        assert set(conn.execute(select(enrollment.c.end_reason, enrollment.c.ended_at))) == {("exit_when", at("5d"))}


def test_an_event_waits_for_the_membership_that_comes_in_the_same_batch(engine, tmp_path):
    """Account and contact in one partition: the event without an account is not less fortunate than in two."""
    publish_campaigns(engine, tmp_path / "c", {})
    ada = next(name for name in (f"ada{number}" for number in count()) if partition_of(name, 64) == partition_of("acorn", 64))
    post(engine, group("acorn", ada), track("logged_in", ada, None))
    run(engine)
    with engine.connect() as conn:
        assert conn.execute(select(decision.c.reason)).scalars().all() == []
        assert conn.execute(select(usage_day.c.count)).scalars().all() == [1]


def test_a_lifecycle_that_loses_a_name_stops_nobody(engine, tmp_path):
    """A version whose folder is gone reads names that the newer lifecycle has not: they keep the meaning they had."""
    old = CAMPAIGN + (
        "trigger: {event: signed_up}\nexit_when: milestone.setup_completed.reached or account.traits.plan == 'gone'\n"
        "steps:\n  - {id: one, wait: 1d}\n"
    )
    publish_campaigns(engine, tmp_path / "old", {"onboarding/old": old})
    post(engine, *ADA, track("signed_up"))
    run(engine)
    newer = LIFECYCLE.replace("  setup_completed: {event: setup_completed}\n", "").replace("plan: text, ", "")
    root = write_campaigns(tmp_path / "new", {}, newer)
    with engine.begin() as conn:
        publish(conn, root, at("1h"))
        [version] = book(conn).versions.values()
        assert version.exit_when is not None
    post(engine, group(plan="gone"), now=at("2h"))
    run(engine, at("2h"))
    with engine.connect() as conn:
        assert conn.execute(select(parked.c.error)).all() == []
        assert conn.execute(select(enrollment.c.end_reason)).scalars().all() == ["exit_when"]


def test_a_mail_knows_the_contact_as_the_same_batch_left_it(engine, tmp_path):
    """The address comes under one account, the trigger under another one of the same contact, all in one batch."""
    story = CAMPAIGN + "trigger: {event: signed_up}\nsteps:\n  - id: hello\n    email: hello.mjml\n    subject: Hello\n"
    publish_campaigns(engine, tmp_path / "c", {"onboarding/story": story})
    birch = next(name for name in (f"birch{number}" for number in count()) if partition_of(name, 64) == partition_of("acorn", 64))
    post(engine, group("acorn"), group(birch))
    run(engine)
    post(engine, identify("ada", "acorn", email="ada@example.com"), track("signed_up", "ada", birch), now=at("1m"))
    run(engine, at("1m"))
    with engine.connect() as conn:
        assert conn.execute(select(message.c.step_id)).scalars().all() == ["hello"]
