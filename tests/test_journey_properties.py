"""Whatever happens in whatever order: no rule raises, nothing is doubled, nothing due is left behind, no trigger goes without a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from app.rules.facts import Event, Timer
from app.rules.journey import react
from tests.stories import START, make_account, make_book

CAMPAIGNS = (
    """
    trigger: {event: signed_up}
    audience: account.touch == "smb"
    goal: {milestone: setup_completed, within: 5d}
    exit_when: stage.name == "adoption" or usage.logins.last_7d > 6
    reentry: {after: 1d}
    steps:
      - {id: hello, email: a.mjml, subject: A}
      - id: setup
        wait_for: {event: imported, where: event.properties.rows > 10, timeout: 2d}
        on_timeout:
          - id: fork
            branch:
              - when: account.traits.plan == "pro"
                steps: [{id: pro, email: b.mjml, subject: B}]
              - else: [{id: plain, wait: 1d}, {id: mail, email: c.mjml, subject: C}]
      - {id: rest, wait: {days: 1, at: "09:00"}}
      - {id: last, email: d.mjml, subject: D}
    """,
    """
    trigger: {milestone: setup_completed}
    enrolls: contact
    steps:
      - {id: ask, survey: nps, question: Q, email: a.mjml, subject: A}
      - {id: wait, wait_for: {survey: ask, timeout: 3d}, on_timeout: [{id: out, exit: silent}]}
      - {id: thanks, email: b.mjml, subject: B}
    """,
    "trigger: {stage: adoption}\nrecipients: {roles: [champion], pick: all}\nsteps: [{id: m, email: a.mjml, subject: A}]",
    "trigger: {milestone_overdue: first_value}\nsteps: [{id: m, email: a.mjml, subject: A}]",
)
BOOK = make_book(*CAMPAIGNS)
PEOPLE = ("ada", "bo", None, "stranger")

moves = st.one_of(
    st.tuples(
        st.just("track"), st.sampled_from(["signed_up", "imported", "setup_completed", "report_shared", "logged_in"]), st.integers(0, 40)
    ),
    st.tuples(st.just("group"), st.sampled_from(["smb", "high", 7, None]), st.sampled_from(["pro", "free", 1])),
    st.tuples(st.just("identify"), st.sampled_from(["admin", "champion", "user"]), st.sampled_from(["x@example.com", "broken", None])),
    st.tuples(st.just("answer"), st.integers(0, 10), st.just(None)),
    st.tuples(st.just("settle"), st.just(None), st.just(None)),
)
history = st.lists(
    st.tuples(moves, st.sampled_from(PEOPLE), st.integers(0, 30 * 60), st.sampled_from([None, None, None, "too_old"])), max_size=40
)


class World:
    """One account with a clock of its own, moved as `flow.advance` moves it."""

    def __init__(self):
        account = make_account()
        bo = replace(account.contacts["ada"], key="bo", id=2, person="bo@example.com", roles=frozenset({"champion"}))
        self.account = replace(
            account, contacts={**account.contacts, "bo": bo}, usage={"logins": make_account().usage.get("logins") or _no_usage()}
        )
        self.now: datetime = START
        self.messages, self.decisions, self.open, self.number = [], [], [], 0

    def take(self, occurrence) -> None:
        done = react(BOOK, self.account, occurrence)
        assert done == react(BOOK, self.account, occurrence), "the same facts give the same reaction"
        self.account = done.account
        self.messages += done.messages
        self.open += done.messages
        self.decisions += done.decisions
        if isinstance(occurrence, Event) and occurrence.name in BOOK.triggers and not occurrence.name.startswith("nurture."):
            assert done.decisions, "a matching trigger leaves a reason"
        keys = [(one.campaign, one.contact, one.shadow) for one in self.account.enrollments]
        assert len(keys) == len(set(keys)), "one active enrollment per campaign and subject"
        for one in self.account.enrollments:
            waits = one.due_at is not None or one.position.get("open")
            assert waits, f"{one.campaign} at {one.step} waits for nothing: it would never move again"

    def event(self, name: str, contact: str | None, kind: str = "track", mark: str | None = None, **properties) -> None:
        self.number += 1
        self.take(Event(name, properties, self.now, self.now, f"m{self.number}", kind, contact, mark))

    def until(self, moment: datetime) -> None:
        """Every timer that falls due up to `moment`, in order."""
        for _ in range(500):
            due = [(one.due_at, str(one.id), Timer(one.due_at, one.id)) for one in self.account.enrollments if one.due_at]
            if self.account.due_at:
                due.append((self.account.due_at, "", Timer(self.account.due_at)))
            due = sorted(one for one in due if one[0] <= moment)
            if not due:
                break
            before = self.account
            self.now = max(self.now, due[0][0])
            self.take(due[0][2])
            assert self.account is not before, "a timer that was taken is gone"
        else:
            raise AssertionError("timers without end")
        self.now = max(self.now, moment)

    def settle(self) -> None:
        while self.open:
            one = self.open.pop(0)
            self.event("nurture.message_settled", None, message=str(one.id), enrollment=str(one.enrollment), step=one.step, outcome="sent")

    def answer(self, score: int) -> None:
        asked = [one for one in self.messages if one.kind == "survey"]
        if asked:
            one = asked[-1]
            properties = {"message": str(one.id), "enrollment": str(one.enrollment), "step": one.step, "survey": "nps", "score": score}
            self.event("nurture.survey_responded", one.contact, **properties)


def _no_usage():
    from app.rules.facts import Usage

    return Usage()


@settings(max_examples=150, deadline=None)
@given(history)
def test_invariants_2_3_and_8_hold_in_whatever_order(story):
    """One active enrollment, one effect per step and contact, a reason for every no; and in the end everybody comes out."""
    world = World()
    for (what, first, second), who, minutes, mark in story:
        world.until(world.now + timedelta(minutes=minutes))
        if what == "track":
            world.event(first, who, mark=mark, rows=second)
        elif what == "group":
            world.event("group", who, "group", mark, touch=first, plan=second)
        elif what == "identify":
            world.event("identify", who, "identify", mark, roles=[first], email=second)
        elif what == "answer":
            world.answer(first)
        else:
            world.settle()
    for _ in range(30):
        world.settle()
        world.until(world.now + timedelta(days=3))
    effects = Counter((one.enrollment, one.step, one.occurrence, one.contact) for one in world.messages)
    assert not [effect for effect, times in effects.items() if times > 1]
    assert world.account.enrollments == (), "nobody is stuck"
    assert world.account.candidates == ()
    assert all(one.reason for one in world.decisions)
