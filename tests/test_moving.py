"""Where somebody inside one version goes on in another, and what is said to have changed: pure."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.rules.book import compile_version
from app.rules.definition import Campaign
from app.rules.lifecycle import Lifecycle
from app.rules.moving import Target, difference, due_again, kinds, plan
from tests.stories import LIFECYCLE, at, yaml

UTC_ZONE = ZoneInfo("UTC")
SCHEMA = Lifecycle.model_validate(yaml(LIFECYCLE)).schema


def definition(*steps: str) -> dict:
    return yaml(
        "name: Story\nstage: onboarding\ntopic: product\ntrigger: {event: signed_up}\nsteps:\n" + "".join(f"  - {one}\n" for one in steps)
    )


def version(*steps: str):
    return compile_version(1, "c1", 1, Campaign.model_validate(definition(*steps)), SCHEMA)


def mail(step: str) -> str:
    return f"{{id: {step}, email: {step}.mjml, subject: Hello}}"


OLD = (
    mail("hello"),
    "{id: setup, wait_for: {milestone: setup_completed, timeout: 3d}, on_timeout: [" + mail("nudge") + "]}",
    "{id: fork, branch: [{when: 'account.touch == \"smb\"', steps: [{id: calm, wait: 2d}, " + mail("left") + "]},"
    " {else: [{id: storm, wait: 2d}, " + mail("right") + "]}]}",
    "{id: rest, wait: 2d}",
    mail("tips"),
)


@pytest.mark.parametrize(
    ("gone", "at_step", "target"),
    [
        ((), "setup", Target("stay", "setup")),
        (("rest",), "rest", Target("go", "tips")),
        (("rest", "tips"), "rest", Target("exit", None)),
        (("setup",), "setup", Target("go", "fork")),
        (("hello",), "hello", Target("go", "setup")),
    ],
)
def test_whoever_waits_at_a_step_that_is_gone_goes_on_at_the_first_one_after_it(gone, at_step, target):
    new = version(*(step for step in OLD if not any(step.startswith(f"{{id: {one},") for one in gone)))
    assert plan(version(*OLD), new, at_step) == target


def test_nobody_comes_into_an_arm_that_was_not_theirs():
    """After `calm` in the reading order stands `storm`, but whoever waited at `calm` could never have come there."""
    new = version(mail("hello"), "{id: storm, wait: 2d}", mail("right"), "{id: rest, wait: 2d}", mail("tips"))
    assert plan(version(*OLD), new, "calm") == Target("go", "rest")
    assert plan(version(*OLD), new, "storm") == Target("stay", "storm")


def test_a_step_that_neither_version_knows_is_the_end():
    assert plan(version(*OLD), version(*OLD), "never") == Target("exit", None)
    assert plan(version(*OLD), version(*OLD), None) == Target("exit", None)


STEPS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), unique=True, min_size=1)


@given(STEPS, STEPS, st.sampled_from(["a", "b", "c", "d", "e", "f"]))
def test_a_target_is_always_a_step_of_the_new_version_and_never_behind(old, new, step):
    before, after = version(*(f"{{id: {one}, wait: 1d}}" for one in old)), version(*(f"{{id: {one}, wait: 1d}}" for one in new))
    target = plan(before, after, step)
    assert (target.step in after.nodes) == (target.how != "exit")
    if target.how == "stay":
        assert target.step == step
    elif target.how == "go":
        assert old.index(target.step) > old.index(step)
        assert not set(old[old.index(step) : old.index(target.step)]) & set(new)
    else:
        assert step not in old or not set(old[old.index(step) :]) & set(new)


def node(step: str):
    return next(iter(version(f"{{id: w, {step}}}").nodes.values()))


@pytest.mark.parametrize(
    ("old", "new", "due", "again"),
    [
        ("wait: 2d", "wait: 2d", "5d", "5d"),
        ("wait: 2d", "wait: 5d", "2d", "5d"),
        ("wait: 5d", "wait: 1d", "5d", "1d"),  # in the past: it goes on at once
        ("wait_for: {event: x, timeout: 3d}", "wait_for: {event: x, timeout: 1d}", "3d", "1d"),
        ("wait_for: {click: m, timeout: 3d}", "wait_for: {event: x, timeout: 4d}", "3d", "4d"),
        ('wait: {days: 2, at: "09:00"}', 'wait: {days: 3, at: "10:00"}', "2d", "3d1h"),
        ("wait: {days: 2}", "wait: {days: 1}", "2d", "1d"),
        ("wait: 2d", 'wait: {days: 3, at: "10:00"}', "2d", "3d1h"),
        ('wait: {days: 2, at: "09:00"}', "wait: 3d", "2d", "3d"),
        ("wait: 2d", "wait: {until: account.renewal_date, if_past: skip}", "2d", None),
        ("wait: {until: account.renewal_date, if_past: skip}", "wait: 2d", "2d", None),
        ("wait: {until: account.renewal_date, if_past: skip}", "wait: {until: account.renewal_date, if_past: skip}", "2d", "2d"),
    ],
)
def test_a_wait_whose_words_changed_ends_when_the_new_words_say(old, new, due, again):
    found = due_again(node(old), node(new), at(due), UTC_ZONE)
    assert found == (at(again) if again else None)


def test_calendar_days_are_counted_on_the_local_clock():
    """The clocks go forward in Berlin on 29 March 2026: nine o'clock stays nine o'clock."""
    berlin = ZoneInfo("Europe/Berlin")
    due = datetime(2026, 3, 28, 8, 0, tzinfo=UTC)
    found = due_again(node('wait: {days: 1, at: "09:00"}'), node('wait: {days: 2, at: "09:00"}'), due, berlin)
    assert found == datetime(2026, 3, 29, 7, 0, tzinfo=UTC)


def test_a_mail_that_waits_for_somebody_to_write_to_keeps_its_time():
    old, new = (version(f"{{id: m, email: m.mjml, subject: {subject}}}").nodes["m"] for subject in ("A", "B"))
    assert due_again(old, new, at("3d"), UTC_ZONE) == at("3d")


# Differences ---------------------------------------------------------------------------------------------------------


def test_what_changed_is_said_in_lines_that_people_read():
    old = definition(*OLD) | {"priority": 50, "audience": 'account.touch == "smb"'}
    new = definition(OLD[0].replace("Hello", "Welcome"), OLD[1].replace("3d", "5d"), OLD[4], mail("more"), OLD[3])
    new |= {"priority": 60, "goal": {"milestone": "first_value"}}
    found = difference(old, new, frozenset({"tips"}))
    assert list(found.lines()) == [
        '~ no audience any more (account.touch == "smb")',
        "~ goal: {milestone: first_value}",
        "~ priority: 50 → 60",
        "+ step more (email)",
        "- step fork (branch)",
        "- step calm (wait)",
        "- step left (email)",
        "- step storm (wait)",
        "- step right (email)",
        "~ step hello: subject: Hello → Welcome",
        "~ step setup: wait_for.timeout: 3d → 5d",
        "~ step tips: its mail",
        "~ step tips: stands elsewhere",
    ]


def test_the_same_is_no_difference_and_a_step_within_another_is_not_that_ones_change():
    assert not difference(definition(*OLD), definition(*OLD))
    changed = definition(OLD[0], OLD[1].replace("subject: Hello", "subject: Still there?"), *OLD[2:])
    assert list(difference(definition(*OLD), changed).lines()) == ["~ step nudge: subject: Hello → Still there?"]


def test_a_step_that_comes_to_stand_within_another_is_said():
    old, new = (
        definition("{id: a, wait: 1d}", "{id: b, wait: 1d}"),
        definition("{id: a, wait: 1d}", "{id: s, split: [{name: x, steps: [{id: b, wait: 1d}]}, {name: y}]}"),
    )
    assert list(difference(old, new).lines()) == ["+ step s (split)", "~ step b: stands elsewhere"]


def test_a_long_value_is_cut():
    old, new = definition(mail("a")), definition(mail("a")) | {"description": "word " * 400}
    (line,) = difference(old, new).lines()
    assert len(line) < 90 and line.endswith("…")


def test_kinds_reads_every_step_as_written():
    found = kinds(definition(*OLD, "{id: s, split: [{name: x, steps: [{id: deep, exit: Enough}]}, {name: y}]}"))
    assert found["nudge"] == "email" and found["storm"] == "wait" and found["fork"] == "branch" and found["deep"] == "exit"
