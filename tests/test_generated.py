"""Invariants 2, 3, 5, 7 and 8 over campaigns and histories that nobody thought of: random steps, triggers, edits, pauses and feedback.

The engine is the real one, in memory; that it equals the live one is `test_equal`'s to show. One campaign of each example is for mail:
it enrolls by an event that comes, starts with an email or a survey, and is seldom restricted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from app.flow.world import Letter, Posted, Reply, World
from app.rules.book import Book, Standing, build_book, compile_version
from app.rules.definition import Campaign
from app.rules.facts import hash_share
from app.rules.lifecycle import Lifecycle
from tests.stories import LIFECYCLE, START, yaml

CAPPED = (
    LIFECYCLE
    + """
channels: {crm: The CRM}
caps: [{topic: product, per: person, at_most: 2, within: 3d}, {per: account, at_most: 4, within: 1d}]
"""
)
EVENTS = ("go", "go", "go", "go again", "report_shared", "setup_completed", "logged_in")
CONDITIONS = (
    'account.traits.plan == "pro"',
    "milestone.first_value.reached",
    "usage.logins.last_7d > 1",
    "contact.traits.title is missing",
)
TRIGGERS: tuple[dict[str, Any], ...] = (
    *[{"event": "go"}] * 6,
    {"event": "go again"},
    {"milestone": "first_value"},
    {"milestone_overdue": "first_value"},
    {"stage": "adoption"},
    {"date": {"field": "account.renewal_date", "offset": "-30d"}},
    {"usage": {"metric": "logins", "drop": "50%", "window": "3d", "at_least": 1}},
    {"inactive": {"role": "admin", "days": 5}},
    {"role_vacant": "champion"},
    {"contact_added": True},
    {"campaign": {"campaign": "x/c0", "result": "ended"}},
)
SPANS = st.sampled_from(("1h", "1d", "3d", "10d"))


MAILS = ("email", "email", "survey")


def step(draw: Any, ident: str, depth: int, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
    others = ("wait", "wait_for", "alert", "task", "webhook", "set", "exit", *(("branch", "split") if depth else ()))
    kind = draw(st.sampled_from(kinds or (*MAILS, *MAILS, *others)))
    if kind in ("email", "survey"):
        found: dict[str, Any] = {"id": ident, "email": "m.mjml", "subject": "S"}
        if kind == "survey":
            found |= {"survey": "nps", "question": "How?"}
        if draw(st.booleans()):
            found["recipients"] = {"pick": draw(st.sampled_from(("first", "all")))}
        if draw(st.sampled_from((False, False, False, False, True))):
            found["repeat"] = {"every": draw(SPANS), "at_most": 3}
        return found
    if kind == "wait":
        wait: Any = draw(SPANS) if draw(st.booleans()) else {"days": draw(st.integers(0, 3)), "at": "09:00"}
        return {"id": ident, "wait": wait}
    if kind == "wait_for":
        what = draw(st.sampled_from(({"event": "logged_in"}, {"milestone": "setup_completed"}, {"stage": "adoption"})))
        late = steps(draw, f"{ident}-t", depth - 1) if depth and draw(st.booleans()) else []
        return {"id": ident, "wait_for": {**what, "timeout": draw(SPANS)}, "on_timeout": late}
    if kind == "branch":
        arms: list[dict[str, Any]] = [{"when": draw(st.sampled_from(CONDITIONS)), "steps": steps(draw, f"{ident}-a", depth - 1)}]
        return {"id": ident, "branch": [*arms, *([{"else": steps(draw, f"{ident}-b", depth - 1)}] if draw(st.booleans()) else [])]}
    if kind == "split":
        return {"id": ident, "split": [{"name": "a", "steps": steps(draw, f"{ident}-a", depth - 1)}, {"name": "b", "weight": 2}]}
    simple: dict[str, Any] = {
        "alert": {"text": "{{ account.name }}"},
        "task": {"title": "Call"},
        "webhook": {"to": "crm"},
        "set": {"account.traits.plan": "pro", "contact.traits.title": "Boss"},
        "exit": "done",
    }
    return {"id": ident, kind: simple[kind]}


def steps(draw: Any, prefix: str, depth: int) -> list[dict[str, Any]]:
    return [step(draw, f"{prefix}{number}", depth) for number in range(draw(st.integers(1, 3)))]


@st.composite
def campaigns(draw: Any, mailing: bool = False) -> dict[str, Any]:
    first = [step(draw, "first", 0, MAILS)] if mailing else []
    found = {
        "name": "Generated",
        "stage": "onboarding",
        "topic": draw(st.sampled_from(("product", "survey"))),
        "enrolls": draw(st.sampled_from(("account", "contact"))),
        "trigger": {"event": "go"} if mailing else draw(st.sampled_from(TRIGGERS)),
        "priority": draw(st.integers(0, 100)),
        "reentry": draw(st.sampled_from(("never", {"after": "1d"}))),
        "steps": first + steps(draw, "s", 2),
    }
    rarely = (False,) * (9 if mailing else 2) + (True,)
    for name, values in (
        ("audience", CONDITIONS),
        ("exit_when", CONDITIONS),
        ("goal", ({"event": "setup_completed"}, {"milestone": "first_value", "then": "continue"})),
        ("holdout", ("50%",)),
        ("send_window", ({"days": "mon-fri", "hours": "09:00-17:00"},)),
    ):
        if draw(st.sampled_from(rarely)):
            found[name] = draw(st.sampled_from(values))
    return found


@st.composite
def histories(draw: Any) -> list[Posted]:
    ada, ben = ({"email": f"{who}@example.com", "roles": [role]} for who, role in (("ada", "admin"), ("ben", "user")))
    found = [
        Posted("ada", "identify", "identify", "acorn", "ada", ada, START, START),
        Posted("ben", "identify", "identify", "birch", "ben", ben, START, START),
        Posted("plan", "group", "group", "acorn", "ada", {"plan": draw(st.sampled_from(("pro", "pro", "solo")))}, START, START),
        Posted("go", "track", "go", "acorn", "ada", {}, START, START),
        Posted("go too", "track", "go", "birch", "ben", {}, START, START),
    ]
    moments = draw(st.lists(st.integers(0, 60 * 24 * 30), min_size=3, max_size=25))
    for number, minutes in enumerate(sorted(moments)):
        at = START + timedelta(minutes=minutes)
        account, who = draw(st.sampled_from(("acorn", "birch"))), draw(st.sampled_from(("ada", "ben", "cleo")))
        kind = draw(st.sampled_from(("track", "track", "track", "identify", "group"))) if number > 2 else "identify"
        properties: dict[str, Any] = {}
        if kind == "identify":
            roles = draw(st.sampled_from((["admin"], ["champion"], ["user"], [])))
            address = draw(st.sampled_from((f"{who}@example.com", f"{who}@example.com", "shared@example.com", None)))
            properties = {"email": address, "roles": roles}
        elif kind == "group":
            properties = {"plan": draw(st.sampled_from(("pro", "solo"))), "renewal_date": (START + timedelta(days=50)).isoformat()}
        name = draw(st.sampled_from(EVENTS)) if kind == "track" else kind
        found.append(Posted(f"m{number}", kind, name, account, who, properties, at, at))
    return found


class Answers:
    """Feedback that follows from the message alone."""

    def outcome(self, letter: Letter) -> str:
        drawn = hash_share("outcome", letter.id)
        if drawn < 0.1:
            return "deferred" if letter.attempts < 2 else "sent"
        return "rejected" if drawn < 0.15 else "unknown" if drawn < 0.25 else "refused" if drawn < 0.3 else "sent"

    def after(self, letter: Letter) -> list[tuple[timedelta, Reply]]:
        drawn = hash_share("after", letter.id)
        if letter.kind == "survey" and drawn < 0.6:
            return [(timedelta(hours=5), Reply("answered", score=int(drawn * 16)))]
        return (
            [(timedelta(hours=1), Reply("unsubscribed"))]
            if drawn > 0.9
            else [(timedelta(hours=1), Reply("clicked"))]
            if drawn > 0.7
            else []
        )


def book_of(definitions: list[dict[str, Any]], modes: list[str], first: int = 1) -> Book:
    lifecycle = Lifecycle.model_validate(yaml(CAPPED))
    standings, versions = [], {}
    for number, (definition, mode) in enumerate(zip(definitions, modes, strict=True)):
        campaign = Campaign.model_validate(definition)
        versions[first + number] = compile_version(first + number, f"x/c{number}", first, campaign, lifecycle.schema)
        standings.append(Standing(number + 1, f"x/c{number}", mode, first + number))
    return build_book(lifecycle, standings, versions)


def test_invariants_over_generated_campaigns_and_histories():
    told = []

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def over(data):
        definitions = [data.draw(campaigns(mailing=True)), *data.draw(st.lists(campaigns(), max_size=2))]
        events = data.draw(histories())
        modes = [data.draw(st.sampled_from(("live", "live", "live", "live", "shadow", "paused"))) for _ in definitions]
        edited = [{**one, "steps": steps(data.draw, "e", 1)} for one in definitions]
        edit_at = START + timedelta(days=data.draw(st.integers(1, 30)))
        told.append(hold_invariants(definitions, events, modes, edited, edit_at))

    over()
    mailed = [letters for letters in told if letters]
    assert len(mailed) > 0.7 * len(told)
    assert sum(any(one.outcome == "sent" for one in letters) for letters in mailed) > 0.4 * len(told)


def hold_invariants(definitions: list[dict], events: list[Posted], modes: list[str], edited: list[dict], edit_at: datetime) -> list[Letter]:
    """Tells the history to a world whose campaigns are edited on the way, and holds its letters and enrollments against the invariants."""
    ends = START + timedelta(days=120)
    book, again = book_of(definitions, modes), book_of(edited, ["live"] * len(modes), first=10)

    world = World(book, feedback=Answers())
    world.post(events)
    world.run(edit_at)
    entered = {ident: enrollment.version for ident, (_, enrollment) in world.enrollments.items()}
    world.set_book(replace(again, versions={**book.versions, **again.versions}))
    world.run(ends)

    # 2: one active enrollment per campaign, account and contact; shadow and live apart.
    active = Counter((key, one.campaign, one.contact, one.shadow) for key, one in world.enrollments.values() if one.state == "active")
    assert not [one for one, count in active.items() if count > 1]
    # 3: one effect per enrollment, step, occurrence and contact.
    for made in (world.letters, [one for _, one in world.effects]):
        places = Counter((one.enrollment, one.step, one.occurrence, one.contact) for one in made)
        assert not [one for one, count in places.items() if count > 1]
    # 5: whatever was due has been settled; nothing waits beyond its end.
    assert not [one for one in world.letters if one.outcome == "due" and one.expires_at < ends]
    # 7: an edit moves nobody.
    assert {ident: world.enrollments[ident][1].version for ident in entered} == entered
    # 8: every no has a reason, and whatever ended says why.
    assert all(one.reason and one.gate for one in world.letters if one.outcome == "skipped")
    assert all(one.end_reason for _, one in world.enrollments.values() if one.state != "active")
    assert all(one.reason for _, one in world.decisions)
    asked = {(one.person, one.campaign, one.step) for one in world.letters if one.outcome in ("sent", "unknown") and not one.shadow}
    assert all(person for person, _, _ in asked)
    return world.letters


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_it_makes_no_difference_how_often_the_world_is_looked_at(data):
    definitions = [data.draw(campaigns(mailing=True)), *data.draw(st.lists(campaigns(), max_size=1))]
    events = data.draw(histories())
    book, ends = book_of(definitions, ["live"] * len(definitions)), START + timedelta(days=60)
    told = []
    for parts in (1, 7):
        world = World(book, feedback=Answers())
        world.post(events)
        for part in range(1, parts + 1):
            world.run(START + (ends - START) * part / parts)
        told.append([(one.id, one.outcome, one.reason, one.settled_at) for one in world.letters])
    assert told[0] == told[1]
