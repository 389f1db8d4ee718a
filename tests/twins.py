"""One story told twice: to the live engine on a virtual clock, and to a World. Both must come to the same (invariant 10).

A `Story` is what happens from outside, drawn from a seed; `Mood` is how relay and recipients answer, drawn from hashes of message ids
and addresses, so that both hear the same answers. `Live.tell` and `tell_world` return what came of it in the same words.

All rows are compared but those that nothing decides, in the live engine as little as here:

- which partition is looked at first. So what crosses accounts happens at the looks of the live engine (`make_story`);
- of two letters to one address at the same moment, whether the second is under way when the relay says that there is no such address
  (`_known`);
- which of several letters takes a place under a cap that another gives back at the same moment. So with caps the relay refuses nothing for
  good (`Mood`): it has mail wait, which keeps its place, or does not say what became of it.

`python -m tests.twins` is the long proof (`make equal`): it tells the story in batches of several sizes, by one worker and by four, with
the shipped campaigns among others, over 29 February and changes of the clocks in both directions. Each run has a process and a PostgreSQL
of its own.
"""

from __future__ import annotations

import argparse
import pickle
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from multiprocessing import get_context
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import UUID, uuid4

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, text

from app import db, embedded, models
from app.config import CODE, Settings, load
from app.errors import SendError
from app.flow import claims, holding
from app.flow.advance import run_partition
from app.flow.check import Campaigns, read
from app.flow.compose import Mail
from app.flow.deliver import run as deliver
from app.flow.ingest import Own, accept, raise_own
from app.flow.items import Item, read_items
from app.flow.publish import publish
from app.flow.respond import answer, find_message, unsubscribe
from app.flow.track import record_hit, settle_due
from app.flow.world import Letter, Posted, Reply, World, book_of, compose_of, refusal
from app.migrate import migrate
from app.providers.memory import MemoryConnection, MemoryTransport
from app.queue import Bells
from app.rules.delivery import Limits
from app.rules.facts import hash_share
from app.rules.signals import Request
from tests.conftest import FAST

SOURCE = 1
CONNECTIONS = 8  # of each delivering worker
SHIPPED = CODE / "campaigns"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
QUICK = Limits(poll=0.01, gather=0.0, patience=(0.05,), back_off=1.0, heartbeat=5.0, farewell=0.5, fresh=30.0)
PERSON = Request("Mozilla/5.0 (X11; Linux x86_64) Firefox/150.0", "en", "navigate", True, None)
LANDMARKS = (("setup_completed", 0.6, 12), ("report_shared", 0.5, 30), ("report_scheduled", 0.2, 90), ("contract_signed", 0.2, 150))
ZONES = ("America/New_York", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo", "Pacific/Auckland", None, None)

# Campaigns that together use every kind of trigger and step, with short waits so that much happens in little time.
TRIALS: dict[str, str] = {
    "onboarding/office-hours": """
        name: Office hours
        stage: onboarding
        topic: product
        priority: 70
        enrolls: account
        trigger: {event: workspace_created}
        recipients: {roles: [champion, admin], pick: all}
        reentry: {after: 20d}
        send_window: {days: mon-fri, hours: "09:00-17:00"}
        holdout: 20%
        expires: 2d
        steps:
          - {id: hello, email: hello.mjml, subject: "Hello {{ contact.first_name }}"}
          - {id: click, wait_for: {click: hello, timeout: 2d}, on_timeout: [{id: again, email: again.mjml, subject: Again}]}
          - {id: morning, wait: {days: 3, at: "02:30"}}
          - {id: last, email: last.mjml, subject: "Last {{ account.name | default('one') }}", topic: transactional}
        """,
    "onboarding/night": """
        name: Night
        stage: onboarding
        topic: survey
        priority: 30
        enrolls: contact
        trigger: {event: logged_in, where: event.properties.device == "phone"}
        audience: account.traits.plan == "pro" and contact.first_name is not missing
        reentry: {after: 10d}
        exit_when: usage.logins.last_7d > 12
        send_window: {hours: "22:00-02:30"}
        steps:
          - {id: ask, survey: csat, question: "How was it?", email: ask.mjml, subject: One question}
          - id: said
            wait_for: {survey: ask, timeout: 5d}
            on_timeout: [{id: quiet, exit: silent}]
          - id: by-score
            branch:
              - {when: response.score >= 4, steps: [{id: glad, email: glad.mjml, subject: Glad}]}
              - {else: [{id: sorry, email: sorry.mjml, subject: Sorry}]}
        """,
    "renewal/renew": """
        name: Renew
        stage: adoption
        topic: product
        enrolls: account
        trigger: {milestone: setup_completed}
        goal: {event: contract_signed, within: 200d, then: exit}
        exit_when: account.renewal_date | days_until < 3
        steps:
          - {id: before, wait: {until: account.renewal_date, offset: -30d, if_past: continue}}
          - {id: soon, email: soon.mjml, subject: "Your year ends {{ account.renewal_date }}"}
          - {id: green, wait_for: {health: green, timeout: 9d}}
          - {id: thanks, email: thanks.mjml, subject: Thanks}
        """,
    "onboarding/overdue": """
        name: Overdue
        stage: onboarding
        topic: product
        enrolls: account
        trigger: {milestone_overdue: setup_completed}
        recipients: {roles: [admin], pick: first}
        recipient_wait: 30h
        steps:
          - {id: help, email: help.mjml, subject: Help}
          - {id: leaves, wait_for: {stage: adoption, timeout: 12d}, on_timeout: [{id: nudge, email: nudge.mjml, subject: Nudge}]}
        """,
    "adoption/entered": """
        name: Entered
        stage: adoption
        topic: product
        mode: shadow
        enrolls: account
        trigger: {stage: adoption}
        steps:
          - {id: tell, email: tell.mjml, subject: Told}
          - {id: pause, wait: 36h}
          - {id: told, email: told.mjml, subject: Told again}
        """,
    "adoption/trouble": """
        name: Trouble
        stage: adoption
        topic: product
        priority: 90
        enrolls: account
        trigger: {health: red}
        reentry: {after: 30d}
        goal: {when: health.band == "green", then: exit}
        steps:
          - {id: care, email: care.mjml, subject: Care}
          - {id: shares, wait_for: {event: report_viewed, where: event.properties.length > 3, timeout: 4d}}
          - {id: seen, email: seen.mjml, subject: Seen}
        """,
    "onboarding/greet": """
        name: Greet
        stage: onboarding
        topic: product
        priority: 20
        enrolls: contact
        trigger: {contact_added: {roles: [champion, user]}}
        steps:
          - {id: hello, email: hello.mjml, subject: "Hello {{ contact.first_name }}", subjects: {de: Hallo}}
          - id: draw
            split:
              - {name: early, weight: 2, steps: [{id: pause, wait: 20h}]}
              - name: late
                steps:
                  - {id: longer, wait: {days: 2, at: "10:00"}}
                  - {id: mark, set: {contact.traits.title: Drawn late, account.traits.industry: "x"}}
          - {id: more, email: more.mjml, subject: More, reminds: hello}
          - {id: note, task: {title: "Call {{ contact.first_name }} of {{ account.name }}", note: "{{ contact.traits.title }}", due: 2d}}
        """,
    "adoption/weekly": """
        name: Weekly
        stage: adoption
        topic: product
        enrolls: account
        trigger: {stage_overdue: onboarding}
        recipients: {roles: [admin, user], pick: all}
        goal: {event: report_scheduled, then: continue}
        steps:
          - {id: news, email: news.mjml, subject: News, repeat: {every: 3d, at_most: 5, until: usage.reports.last_7d > 4}}
          - {id: tell, alert: {to: owner, text: "{{ account.name }} read {{ usage.reports.last_7d }}"}, repeat: {every: 12h, at_most: 3}}
          - {id: hook, webhook: {to: ops, data: {plan: "{{ account.traits.plan }}"}}}
        """,
    "renewal/countdown": """
        name: Countdown
        stage: renewal
        topic: product
        priority: 80
        enrolls: account
        trigger: {date: {field: account.renewal_date, offset: -25d}}
        reentry: {after: 30d}
        send_window: {days: mon-sat, hours: "02:00-03:00"}
        steps:
          - {id: nps, survey: nps, question: "How likely?", email: nps.mjml, subject: One question, topic: survey}
          - {id: remind, email: remind.mjml, subject: Still open, reminds: nps, topic: survey}
          - {id: wait, wait: {until: account.renewal_date, offset: -5d, at: "02:30", if_past: skip}}
          - {id: skipped, email: skipped.mjml, subject: Soon}
          - {id: after, email: after.mjml, subject: After, recipients: {pick: responder}}
        """,
    "renewal/unhappy": """
        name: Unhappy
        stage: renewal
        topic: product
        enrolls: contact
        trigger: {survey: {type: nps, score: [0, 4]}}
        steps:
          - {id: sorry, email: sorry.mjml, subject: Sorry}
          - {id: tell, alert: {to: ops, text: "{{ contact.first_name }} gave {{ event.properties.score }}"}}
        """,
    "adoption/drop": """
        name: Drop
        stage: adoption
        topic: product
        enrolls: account
        trigger: {usage: {metric: logins, drop: 40%, window: 7d, at_least: 2}}
        reentry: {after: 5d}
        holdout: 30%
        steps:
          - {id: where, email: where.mjml, subject: Where are you}
          - {id: task, task: {title: Look at them}}
        """,
    "adoption/rise": """
        name: Rise
        stage: adoption
        topic: product
        enrolls: account
        trigger: {usage: {metric: people, rise: 50%, window: 10d, at_least: 2}}
        reentry: {after: 9d}
        steps: [{id: great, email: great.mjml, subject: Great}]
        """,
    "adoption/full": """
        name: Full
        stage: adoption
        topic: product
        enrolls: account
        trigger: {utilization: {above: 50%}}
        reentry: {after: 3d}
        steps: [{id: seats, email: seats.mjml, subject: Seats}]
        """,
    "adoption/empty": """
        name: Empty
        stage: adoption
        topic: product
        enrolls: account
        trigger: {utilization: {below: 20%}}
        audience: account.seats > 2
        reentry: {after: 3d}
        steps: [{id: invite, email: invite.mjml, subject: Invite}]
        """,
    "adoption/silent": """
        name: Silent
        stage: adoption
        topic: product
        enrolls: contact
        trigger: {inactive: {role: admin, days: 6}}
        reentry: {after: 8d}
        steps: [{id: miss, email: miss.mjml, subject: We miss you}]
        """,
    "adoption/vacant": """
        name: Vacant
        stage: adoption
        topic: product
        enrolls: account
        trigger: {role_vacant: admin}
        recipients: {roles: [champion, user, executive_sponsor]}
        recipient_wait: 0d
        reentry: {after: 1d}
        steps:
          - {id: who, email: who.mjml, subject: Who runs it}
          - {id: tell, task: {title: Find an admin, to: staff@example.com}}
        """,
    "adoption/score": """
        name: Score
        stage: adoption
        topic: product
        enrolls: account
        trigger: {health: {below: 50}}
        reentry: {after: 2d}
        steps: [{id: tell, alert: {to: owner, text: "{{ health.score }}"}}, {id: low, email: low.mjml, subject: Low}]
        """,
    "adoption/follow": """
        name: Follow
        stage: adoption
        topic: product
        enrolls: account
        trigger: {campaign: {campaign: onboarding/overdue, result: ended}}
        steps: [{id: next, email: next.mjml, subject: Next}]
        """,
    "adoption/praise": """
        name: Praise
        stage: adoption
        topic: product
        enrolls: account
        trigger: {campaign: {campaign: adoption/weekly, result: goal}}
        steps: [{id: praise, email: praise.mjml, subject: Praise}]
        """,
    "adoption/by-hand": """
        name: By hand
        stage: adoption
        topic: product
        enrolls: contact
        trigger: {manual: true}
        audience: contact.email is not missing
        reentry: {after: 1d}
        steps: [{id: hand, email: hand.mjml, subject: By hand}, {id: wait, wait: 30d}, {id: late, email: late.mjml, subject: Late}]
        """,
}
MAIL = (
    "<mj-section><mj-column><mj-text>Hello {{ contact.first_name | default('there') }}</mj-text>"
    '<mj-button href="https://app.example.com/start">Start</mj-button></mj-column></mj-section>\n'
)


LIFECYCLE = {
    "    exit_when: milestone.first_value.reached": "    exit_when: milestone.first_value.reached\n    at_most: 9d",
    "    label: Adoption": "    label: Adoption\n    at_most: 40d\n    then: next",
    "    label: Renewal": """    label: Renewal
    enter_when: account.renewal_date | days_until < 15 and account.renewal_date | days_until > 0
    exit_when: account.renewal_date | days_until < -5
    next: adoption""",
    "usage:": "channels: {ops: Operations}\nusage:\n  people: {event: logged_in, contacts: true}",
    "  quarantine: 90d": "  quarantine: 12d",
}
CAPS = """
caps:
  - {topic: product, per: person, at_most: 2, within: 3d}
  - {per: account, at_most: 5, within: 2d}
"""


def write_folder(root: Path, *, caps: bool = True) -> Path:
    """The shipped campaigns, and beside them TRIALS with a plain mail for every template they name; with or without caps."""
    shutil.copytree(SHIPPED, root)
    lifecycle = (root / "lifecycle.yaml").read_text("utf-8")
    for shipped, ours in LIFECYCLE.items():
        assert lifecycle.count(f"{shipped}\n") == 1, shipped
        lifecycle = lifecycle.replace(f"{shipped}\n", f"{ours}\n")
    (root / "lifecycle.yaml").write_text(lifecycle + (CAPS if caps else ""), "utf-8")
    for key, written in TRIALS.items():
        folder = root / key
        folder.mkdir(parents=True)
        (folder / "campaign.yaml").write_text(dedent(written), "utf-8")
        for name in [part.split("}")[0].split(",")[0].strip() for part in written.split("email:")[1:]]:
            (folder / name).write_text(MAIL, "utf-8")
    return root


# The story -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody holds an account or a contact from `at`; `released` is when it is ended by hand."""

    at: datetime
    account: str | None
    contact: str | None
    reason: str
    until: datetime | None
    released: datetime | None


@dataclass(slots=True)
class Story:
    """What happens from outside: items with the moment they are posted at, own events that no rule derives, holds."""

    items: list[tuple[datetime, Item]] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)


def make_story(accounts: int, start: datetime, end: datetime, *, every: timedelta, seed: int = 1, events: int = 60) -> Story:
    """A story of so many accounts with about so many events each, between `start` and `end`.

    What crosses accounts (people in two of them, events that name none, former ids) happens at whole multiples of `every`, and not at the
    same: between two looks of a live engine it is open which partition is looked at first.
    """
    story, dice = Story(), random.Random(seed)
    for number in range(accounts):
        _account(story, dice, number, start, end, every, events)
    story.items.sort(key=lambda one: one[0])
    return story


def _account(story: Story, dice: random.Random, number: int, start: datetime, end: datetime, every: timedelta, events: int) -> None:
    key, span = f"acct-{number}", end - start
    count = 0

    def say(at: datetime, call: dict[str, Any], late: timedelta = timedelta(0)) -> None:
        nonlocal count
        count += 1
        given = {"messageId": f"{key}-{count}", "timestamp": (at - late).isoformat(), **call}
        items, problems = read_items(to_json({"batch": [given]}), at)
        assert not problems, problems
        story.items.append((at, items[0]))
        if dice.random() < 0.01:
            story.items.append((at + timedelta(hours=1), items[0]))  # a client that tries again

    def moment(first: datetime, last: datetime) -> datetime:
        return first + timedelta(seconds=int(dice.random() * max((last - first).total_seconds(), 1)))

    def on_the_tick(at: datetime, odd: bool = False) -> datetime:
        ticks = -((EPOCH - at) // every)
        return EPOCH + (ticks + (ticks % 2 != odd)) * every

    born = moment(start, start + span * 0.6)
    people = [f"{key}-p{index}" for index in range(dice.choice((1, 2, 2, 3, 4)))]
    traits: dict[str, Any] = {"name": f"Sample {number}", "touch": dice.choice(("smb", "smb", "mid", "high")), "seats": dice.randint(1, 40)}
    if zone := dice.choice(ZONES):
        traits["timezone"] = zone
    if dice.random() < 0.7:
        traits["renewal_date"] = (born + timedelta(days=dice.randint(20, 200))).date().isoformat()
    if dice.random() < 0.5:
        traits["owner"] = {"name": "Sample Owner", "email": "owner@example.com", "timezone": dice.choice(("Europe/Berlin", "UTC"))}
    plan = {"plan": dice.choice(("pro", "free"))}
    plan_late = dice.random() < 0.3
    say(born, {"type": "group", "groupId": key, "userId": people[0], "traits": traits | ({} if plan_late else plan)})
    if plan_late:
        # The trait that an audience reads comes within the half hour that candidates stay open, or does not.
        say(born + timedelta(minutes=dice.choice((5, 25, 50))), {"type": "group", "groupId": key, "traits": plan})
    for index, person in enumerate(people):
        known: dict[str, Any] = {"roles": [dice.choice(("admin", "champion", "user", "executive_sponsor"))] if index else ["admin"]}
        if dice.random() < 0.92:
            known["email"] = f"{person}@{'example.com' if dice.random() < 0.5 else 'example.net'}"
        if dice.random() < 0.85:
            known["first_name"] = f"Sample{index}"
        if zone := dice.choice(ZONES):
            known["timezone"] = zone
        if dice.random() < 0.2:
            known["locale"] = dice.choice(("de", "en-GB"))
        at = born + timedelta(seconds=1 + index) if dice.random() < 0.8 else moment(born, end)
        say(at, {"type": "identify", "userId": person, "traits": known, "context": {"groupId": key}})
        if dice.random() < 0.15:
            changed = {"roles": [dice.choice(("admin", "user"))], "email": f"{person}.new@example.org"}
            say(moment(born, end), {"type": "identify", "userId": person, "traits": changed, "context": {"groupId": key}})
    context = {"context": {"groupId": key}}
    say(born + timedelta(minutes=3), {"type": "track", "event": "workspace_created", "userId": people[0], **context})
    for name, share, days in (
        ("setup_completed", 0.6, 12),
        ("report_shared", 0.5, 30),
        ("report_scheduled", 0.2, 90),
        ("contract_signed", 0.2, 150),
    ):
        if dice.random() < share:
            say(
                moment(born, min(born + timedelta(days=days), end)),
                {"type": "track", "event": name, "userId": dice.choice(people), **context},
            )
    for _ in range(dice.randint(events // 2, events * 3 // 2)):
        name = dice.choice(("logged_in", "logged_in", "report_viewed", "feature_used", "page_opened", "workspace_created"))
        if name == "workspace_created" and dice.random() < 0.7:
            name = "logged_in"
        properties = {
            "logged_in": {"device": dice.choice(("phone", "desk", "desk"))},
            "report_viewed": {"length": dice.randint(1, 6)},
            "feature_used": {"feature": dice.choice(("reports", "exports"))},
        }.get(name, {})
        call = {"type": "track", "event": name, "userId": dice.choice(people), "properties": properties}
        if dice.random() < 0.05:
            say(on_the_tick(moment(born + every, end)), call)  # names no account
        else:
            late = timedelta(days=dice.choice((1, 9))) if dice.random() < 0.05 else timedelta(0)
            say(moment(born, end), call | context, late)
    if number and number % 9 == 0:
        # A person who works for the neighbour, too: the same contact, or another contact with the same address.
        neighbour, at = f"acct-{number - 1}", on_the_tick(moment(born + every, end), odd=True)
        if number % 2:
            say(at, {"type": "identify", "userId": people[0], "traits": {"roles": ["champion"]}, "context": {"groupId": neighbour}})
        else:
            twin = {"email": f"{people[0]}@example.com", "roles": ["champion"]}
            say(at, {"type": "identify", "userId": f"{people[0]}-twin", "traits": twin, "context": {"groupId": neighbour}})
    if number % 13 == 5:
        at = on_the_tick(moment(born + every, end), odd=True)
        say(at, {"type": "alias", "userId": f"{people[-1]}-new", "previousId": people[-1]})
        say(at + every * 1.25, {"type": "track", "event": "logged_in", "userId": people[-1], "properties": {"device": "phone"}, **context})
    at, before = born, {"score": None, "band": None}
    while (at := at + timedelta(days=dice.randint(5, 40))) < end:
        band, score = dice.choice((("green", 90.0), ("yellow", 70.0), ("red", 30.0), ("red", 55.0)))
        at = at.replace(minute=7)
        told = {"score": score, "band": band, "previous_score": before["score"], "band_changed": band != before["band"]}
        story.own.append(Own("nurture.health_changed", f"health:{key}:{at.isoformat()}", told, key, None, at))
        before = told
    for number in range(dice.choice((0, 0, 0, 1, 2))):
        told = {"campaign": dice.choice(("adoption/by-hand", "adoption/by-hand", "adoption/nothing")), "contact": people[0], "by": "hand"}
        at = moment(born, end)
        story.own.append(Own("nurture.enroll_requested", f"enroll:{key}:{number}", told, key, people[0], at))
    if dice.random() < 0.15:
        at = moment(born + every, end)
        until = dice.choice((None, at + timedelta(hours=dice.randint(5, 200))))
        released = at + timedelta(hours=dice.randint(2, 100)) if until is None or dice.random() < 0.3 else None
        whom = (key, None) if dice.random() < 0.5 else (None, people[0])
        story.holds.append(Hold(at, *whom, "ticket open", until, released))


class Mood:
    """How relay and recipients answer, drawn from hashes: the same wherever it is asked. A `calm` relay refuses nothing for good, though it
    has some mail wait, and now and then it does not say that it took it."""

    def __init__(self, calm: bool = False):
        self.calm = calm

    def outcome(self, letter: Letter) -> str:
        return self.said(letter.id, letter.person, letter.attempts + 1)

    def after(self, letter: Letter) -> list[tuple[timedelta, Reply]]:
        return self.replies(letter.id, letter.kind, letter.step)

    def said(self, message: UUID, person: str | None, attempt: int) -> str:
        draw = hash_share("relay", message)
        if not self.calm and hash_share("bounces", person) < 0.03:
            return "rejected"
        if draw < 0.04:
            return "deferred" if attempt < 3 else "sent"
        if draw < 0.06:
            return "unknown"
        return "refused" if not self.calm and draw < 0.08 else "sent"

    def replies(self, message: UUID, kind: str, step: str) -> list[tuple[timedelta, Reply]]:
        found, late = [], timedelta(seconds=60 + int(hash_share("late", message) * 6 * 86400))
        if hash_share("clicks", message) < 0.3:
            found.append((late, Reply("clicked", link=0)))
        if kind == "survey" and hash_share("answers", message) < 0.6:
            found.append((late * 0.9, Reply("answered", score=1 + int(hash_share("score", message) * 5), comment="Fine")))
            if hash_share("again", message) < 0.2:
                found.append((late * 1.1, Reply("answered", score=5, comment=None)))
        if hash_share("leaves", message) < 0.03:
            found.append((late * 0.8, Reply("unsubscribed", scope="all" if hash_share("all", message) < 0.3 else None)))
        return found


# What came of it -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What came of a story, sorted: messages, enrollments, effects, ledger."""

    messages: list[tuple]
    enrollments: list[tuple]
    effects: list[tuple]
    ledger: list[tuple]

    def counts(self) -> tuple[int, ...]:
        return len(self.messages), len(self.enrollments), len(self.effects), len(self.ledger)

    def differences(self, other: Outcome) -> list[str]:
        """What is only here (-) or only there (+)."""
        found = []
        gone = self._gone() | other._gone()
        for name in ("messages", "enrollments", "effects", "ledger"):
            rows = [[_known(name, one, gone) for one in getattr(side, name)] for side in (self, other)]
            here, there = ([one for one in side if one is not None] for side in rows)
            if here != there:
                ours, theirs = _missing(here, there), _missing(there, here)
                found += [f"- {name}: {_shown(one)}" for one in ours] + [f"+ {name}: {_shown(one)}" for one in theirs]
        return found

    def _gone(self) -> set[tuple[str, datetime]]:
        """Contacts and accounts, and when an address of theirs proved not to exist."""
        return {(key, row[9]) for row in self.messages if row[8] == "rejected" for key in (row[1], row[0])}


def _known(name: str, row: tuple, gone: set[tuple[str, datetime]]) -> tuple | None:
    """What of a row is not open. Of two letters to one person that are decided at the same moment, the second may be on its way when the
    address of the first proves not to exist: whether it is refused by the relay as well, or by us, or never was to be sent, is open."""
    if name == "messages" and (row[1], row[9]) in gone:
        return (*row[:7], "gone", None, row[9])
    if name == "ledger" and row[3] in ("send", "suppression", "campaign", "holdout") and (row[0], row[6]) in gone:
        return None
    return row


def _missing(some: list[tuple], others: list[tuple]) -> list[tuple]:
    counted: dict[tuple, int] = {}
    for one in others:
        counted[one] = counted.get(one, 0) + 1
    found = []
    for one in some:
        if counted.get(one, 0):
            counted[one] -= 1
        else:
            found.append(one)
    return found


def _shown(row: tuple) -> str:
    return " | ".join(one.strftime("%m-%d %H:%M:%S") if isinstance(one, datetime) else str(one) for one in row)


def _sorted(rows: Iterable[tuple]) -> list[tuple]:
    return sorted(rows, key=lambda row: tuple((one is not None, str(one)) for one in row))


# In the world --------------------------------------------------------------------------------------------------------


def tell_world(campaigns: Campaigns, story: Story, end: datetime, every: timedelta | None, *, calm: bool = False) -> Outcome:
    """The story in a World that looks every `every`."""
    write = compose_of(campaigns)

    def compose(*about: Any) -> Mail:
        return replace(write(*about), html="", text="")  # a long story has more mail than memory

    world = World(book_of(campaigns), feedback=Mood(calm), compose=compose, every=every)
    oldest = timedelta(days=3)
    world.post(
        Posted(
            one.message_id,
            one.kind,
            one.name,
            one.account_key,
            one.contact_key,
            one.properties,
            one.occurred_at,
            at,
            mark="too_old" if one.occurred_at < at - oldest else None,
        )
        for at, one in story.items
    )
    world.post(
        Posted(o.message_id, "track", o.name, o.account_key, o.contact_key, o.properties, o.occurred_at, o.occurred_at, 0)
        for o in story.own
    )
    for one in story.own:
        if one.name == "nurture.health_changed":
            world.assess(one.account_key, one.properties["score"], one.properties["band"], one.occurred_at)
    for one in story.holds:
        world.hold(account=one.account, contact=one.contact, reason=one.reason, since=one.at, until=one.until, released=one.released)
    world.run(end)
    return Outcome(
        _sorted(
            (
                *(one.account, one.contact, one.person if one.outcome in ("sent", "unknown") else None, one.campaign, one.step),
                *(one.occurrence, one.due_at, one.outcome, one.reason, one.settled_at),
            )
            for one in world.letters
        ),
        _sorted(
            (key, one.campaign, one.contact, one.state, one.end_reason, one.step, one.ended_at) for key, one in world.enrollments.values()
        ),
        _sorted((key, one.kind, one.step, one.occurrence, one.contact, one.state) for key, one in world.effects),
        _sorted((key, one.campaign, one.step, one.gate, one.verdict, one.reason, one.at) for key, one in world.decisions),
    )


# Live ----------------------------------------------------------------------------------------------------------------


class Moody(MemoryTransport):
    """A relay in the mood of `mood`."""

    def __init__(self, mood: Mood, connections: int):
        super().__init__(connections)
        self.mood = mood
        self.attempts: dict[UUID, int] = {}

    async def open(self) -> MemoryConnection:
        self.opened += 1
        return _MoodyConnection(self)

    def judge(self, letter: Any, phases: tuple[str, ...]) -> None:
        if "mail" in phases:
            self.attempts[letter.message_id] = self.attempts.get(letter.message_id, 0) + 1
        said = self.mood.said(letter.message_id, letter.recipient.lower(), self.attempts[letter.message_id])
        if said != "sent" and (error := refusal(said)).phase in phases:
            raise SendError(error.outcome, error.phase, error.text, error.code)


class _MoodyConnection(MemoryConnection):
    async def begin(self, letter: Any) -> None:
        self.transport.judge(letter, ("mail", "rcpt"))
        await super().begin(letter)

    async def finish(self) -> str:
        self.transport.judge(self._letter, ("dot",))
        reply = await super().finish()
        for kept in (self.transport.begun, self.transport.letters):
            kept.clear()  # a long story has more mail than memory
        return reply


class Live:
    """The live engine on a virtual clock, looked at tick by tick."""

    def __init__(self, engine: Engine, settings: Settings, *, batch: int = 1000, workers: int = 1, calm: bool = False):
        self.engine, self.settings, self.batch, self.workers = engine, settings, batch, workers
        with engine.connect() as conn:
            self.partitions = conn.exec_driver_sql("select partitions from installation").scalar_one()
        self.mood = Mood(calm)
        self.transport = Moody(self.mood, CONNECTIONS)
        self.bells = Bells(None)
        self.now = EPOCH
        self.replies: list[tuple[datetime, UUID, int, Reply]] = []  # a heap
        self.answered: set[UUID] = set()
        self.ids = [uuid4() for _ in range(workers)]
        self.pool = ThreadPoolExecutor(workers) if workers > 1 else None
        self.closes_after = timedelta(days=30)

    def tell(
        self,
        root: Path,
        story: Story,
        start: datetime,
        end: datetime,
        every: timedelta,
        progress: Callable[[datetime], object] = lambda tick: None,
    ) -> Outcome:
        with self.engine.begin() as conn:
            publish(conn, root, start)
            source = conn.execute(models.source.insert().values(name="story").returning(models.source.c.id)).scalar_one()
        assert source == SOURCE
        happenings = self._happenings(story, source)
        waiting = next(happenings, None)
        tick = EPOCH - (EPOCH - start) // every * every
        while tick <= end:
            self.now = tick
            progress(tick)
            with self.engine.begin() as conn:
                while True:
                    reply = self.replies[0][0] if self.replies else None
                    outside = waiting[0] if waiting else None
                    if outside is not None and outside <= tick and (reply is None or outside <= reply):
                        waiting[1](conn)
                        waiting = next(happenings, None)
                    elif reply is not None and reply <= tick:
                        self._reply(conn, *heappop(self.replies))
                    else:
                        break
            settle_due(self.engine, lambda: self.now, self.bells)
            self._settle()
            tick += every
        if self.pool:
            self.pool.shutdown()
        return self._outcome()

    def _happenings(self, story: Story, source: int) -> Iterator[tuple[datetime, Callable[[Connection], object]]]:
        def post(conn: Connection, at: datetime, items: list[Item]) -> None:
            accept(conn, source, items, at, self.partitions)

        def tell(conn: Connection, at: datetime, owns: list[Own]) -> None:
            for one in owns:
                if one.name == "nurture.health_changed":
                    conn.exec_driver_sql(_ASSESS, {"key": one.account_key, "at": at, **one.properties})
            raise_own(conn, owns, at, self.partitions)

        def hold(conn: Connection, one: Hold) -> None:
            if not conn.exec_driver_sql(_KNOWN, {"account": one.account, "contact": one.contact}).scalar():
                return
            ident = holding.hold(conn, one.reason, one.at, account=one.account, contact=one.contact, until=one.until)
            if one.released is not None and (one.until is None or one.released < one.until):
                heappush(later, (one.released, ident))

        later: list[tuple[datetime, int]] = []
        by_time: dict[datetime, list[Item]] = {}
        for at, item in story.items:
            by_time.setdefault(at, []).append(item)
        own_events: dict[datetime, list[Own]] = {}
        for own in story.own:
            own_events.setdefault(own.occurred_at, []).append(own)
        found: list[tuple[datetime, int, Callable[[Connection], object]]] = []
        found += [(at, 0, partial(post, at=at, items=items)) for at, items in by_time.items()]
        found += [(at, 1, partial(tell, at=at, owns=owns)) for at, owns in own_events.items()]
        found += [(one.at, 2, partial(hold, one=one)) for one in story.holds]
        for at, _, happens in sorted(found, key=lambda one: one[:2]):
            while later and later[0][0] <= at:
                over, ident = heappop(later)
                yield over, partial(holding.release, hold_id=ident, now=over)
            yield at, happens
        while later:
            over, ident = heappop(later)
            yield over, partial(holding.release, hold_id=ident, now=over)

    def _reply(self, conn: Connection, at: datetime, ident: UUID, _: int, reply: Reply) -> None:
        message = find_message(conn, ident)
        if reply.kind == "clicked":
            record_hit(conn, ident, "click", reply.link, at, PERSON)
        elif reply.kind == "answered":
            answer(conn, message, reply.score, reply.comment, at, closes_after=self.closes_after, partitions=self.partitions)
        else:
            unsubscribe(conn, message, reply.scope or message.topic, at, method="page", network=None)

    def _settle(self) -> None:
        """Advances and delivers until nothing is left to do at this moment."""
        while True:
            moved = self._advance()
            with self.engine.connect() as conn:
                due = claims.any_due(conn, self.now)
            if not due and not moved:
                return
            if due:
                self._deliver()
                self._hear()

    def _advance(self) -> int:
        total = 0
        while True:
            with self.engine.connect() as conn:
                busy = conn.exec_driver_sql(_BUSY, {"now": self.now}).scalars().all()
            if not busy:
                return total
            work = [(self.engine, self.bells, partition, lambda: self.now) for partition in busy]
            if self.pool is None:
                moved = sum(run_partition(*one, batch=self.batch) for one in work)
            else:
                # Some are rung for twice, which must change nothing.
                moved = sum(self.pool.map(lambda one: run_partition(*one, batch=self.batch), work + work[::4]))
            if not moved and self.pool is None:
                return total
            total += moved

    def _deliver(self) -> None:
        def send(ident: UUID) -> None:
            deliver(self.engine, self.settings, ident, lambda: self.now, self.bells, transport=self.transport, limits=QUICK)

        if self.pool is None:
            send(self.ids[0])
        else:
            list(self.pool.map(send, self.ids))

    def _hear(self) -> None:
        """What the recipients of the mail that was just sent will do."""
        with self.engine.connect() as conn:
            rows = conn.execute(
                text(
                    "select id, kind, step_id, settled_at from message where state in ('sent', 'unknown') and settled_at = :now order by id"
                ),
                {"now": self.now},
            ).all()
        for ident, kind, step, settled in rows:
            if ident not in self.answered:
                self.answered.add(ident)
                for number, (delay, reply) in enumerate(self.mood.replies(ident, kind, step)):
                    heappush(self.replies, (settled + delay, ident, number, reply))

    def _outcome(self) -> Outcome:
        with self.engine.connect() as conn:
            assert conn.exec_driver_sql("select occurrence, traceback from parked").all() == []
            return Outcome(
                *(_sorted(tuple(row) for row in conn.exec_driver_sql(query)) for query in (_MESSAGES, _ENROLLMENTS, _EFFECTS, _LEDGER))
            )


_ASSESS = """
update account set health_score = %(score)s, health_band = %(band)s, health_at = %(at)s where external_id = %(key)s"""
_KNOWN = """
select exists (select from account where external_id = %(account)s) or exists (select from contact where external_id = %(contact)s)"""
_BUSY = """
select partition from event_pending union select partition from account where due_at <= %(now)s
union select partition from enrollment where state = 'active' and due_at <= %(now)s order by 1"""
_MESSAGES = """
select a.external_id, c.external_id, case when m.state in ('sent', 'unknown') then m.person end, k.key, m.step_id, m.occurrence, m.due_at,
       m.state, m.reason, m.settled_at
from message m join account a on a.id = m.account_id join contact c on c.id = m.contact_id join campaign k on k.id = m.campaign_id"""
_ENROLLMENTS = """
select a.external_id, k.key, c.external_id, e.state, e.end_reason, e.step_id, e.ended_at
from enrollment e join account a on a.id = e.account_id join campaign k on k.id = e.campaign_id
left join contact c on c.id = e.contact_id"""
_EFFECTS = """
select a.external_id, f.kind, f.step_id, f.occurrence, c.external_id, f.state
from effect f join account a on a.id = f.account_id left join contact c on c.id = f.contact_id
union all
select a.external_id, 'task', t.step_id, t.occurrence, c.external_id, case t.state when 'open' then 'due' else t.state end
from task t join account a on a.id = t.account_id left join contact c on c.id = t.contact_id where t.step_id is not null"""
_LEDGER = """
select a.external_id, k.key, d.step_id, d.gate, d.verdict, d.reason, d.at
from decision d left join account a on a.id = d.account_id left join campaign k on k.id = d.campaign_id"""


# The long proof ------------------------------------------------------------------------------------------------------

CASES = {
    "moody": (False, False),  # no caps; the relay also refuses for good
    "capped": (True, True),  # caps; the relay has some mail wait, but refuses none for good
}
RUNS = ("moody:1000x1", "moody:97x1", "moody:7x1", "moody:1000x4", "capped:1000x1", "capped:7x4")


@dataclass(frozen=True, slots=True)
class _Told:
    """One run of the live engine: what it was, how long it took, what it made, what is different from the world's."""

    run: str
    seconds: float
    counts: tuple[int, ...]
    differences: list[str]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.twins", description="proves that a simulation equals a live run")
    parser.add_argument("--accounts", type=int, default=2000)
    parser.add_argument("--events", type=int, default=60, help="per account, about")
    parser.add_argument("--start", type=datetime.fromisoformat, default=datetime(2028, 2, 1, tzinfo=UTC))
    parser.add_argument("--end", type=datetime.fromisoformat, default=datetime(2028, 11, 15, tzinfo=UTC))
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--hours", type=int, default=6, help="between two looks of the live engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", default=",".join(RUNS), help="case:batch size x workers")
    parser.add_argument("--at-once", type=int, default=2, help="runs of the live engine beside each other, each with its own PostgreSQL")
    parser.add_argument("--shown", type=int, default=40, help="differences that are printed of each run")
    options = parser.parse_args(arguments)
    runs, told = options.runs.split(","), []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.at_once, get_context("spawn")) as processes:
        for case in dict.fromkeys(run.partition(":")[0] for run in runs):
            caps, calm = CASES[case]
            root = write_folder(Path(folder) / case, caps=caps)
            began = time.perf_counter()
            world = tell_world(read(root), _story(options), options.end, timedelta(hours=options.hours), calm=calm)
            (Path(folder) / f"{case}.world").write_bytes(pickle.dumps(world))
            mailed = len({row[3] for row in world.messages})
            _say(f"{case}: the world told it in {time.perf_counter() - began:.0f} s, mail of {mailed} campaigns")
            told.append(_Told(f"{case}:world", time.perf_counter() - began, world.counts(), []))
        for done in as_completed([processes.submit(_run, run, Path(folder), options) for run in runs]):
            told.append(done.result())
            _say(f"{told[-1].run}: {len(told[-1].differences)} differences, {told[-1].seconds:.0f} s")
            for one in told[-1].differences[: options.shown]:
                print(f"    {one}", flush=True)
    print(f"\n{options.accounts} accounts, {options.start:%Y-%m-%d} to {options.end:%Y-%m-%d}, {len(_story(options).items)} events posted")
    print(f"{'run':<16}{'messages':>10}{'enrollments':>13}{'effects':>9}{'ledger':>9}{'seconds':>9}{'differences':>13}")
    for one in sorted(told, key=lambda one: [one.run != f"{case}:world" for case in CASES]):
        print(
            f"{one.run:<16}{one.counts[0]:>10}{one.counts[1]:>13}{one.counts[2]:>9}{one.counts[3]:>9}{one.seconds:>9.0f}{len(one.differences):>13}"
        )
    failed = sum(bool(one.differences) for one in told)
    print(f"{'differs' if failed else 'equal'}: exit {min(failed, 1)}", flush=True)
    return min(failed, 1)


def _run(run: str, folder: Path, options: argparse.Namespace) -> _Told:
    """In a process of its own: the live engine, held against the world's outcome."""
    try:
        return _told(run, folder, options)
    except BaseException:
        _say(f"{run}: broke off\n{traceback.format_exc()}")  # at once: the others go on for long
        raise


def _told(run: str, folder: Path, options: argparse.Namespace) -> _Told:
    case, _, how = run.partition(":")
    batch, _, workers = how.partition("x")
    began = time.perf_counter()

    def progress(tick: datetime) -> None:
        if tick.day == 1 and tick.hour == 0:
            _say(f"{run}: {tick:%Y-%m-%d} after {time.perf_counter() - began:.0f} s")

    with _installation(options.partitions) as (engine, settings):
        live = Live(engine, settings, batch=int(batch), workers=int(workers), calm=CASES[case][1])
        every = timedelta(hours=options.hours)
        outcome = live.tell(folder / case, _story(options), options.start, options.end, every, progress=progress)
    world = pickle.loads((folder / f"{case}.world").read_bytes())
    return _Told(run, time.perf_counter() - began, outcome.counts(), outcome.differences(world))


def _story(options: argparse.Namespace) -> Story:
    every = timedelta(hours=options.hours)
    return make_story(options.accounts, options.start, options.end, every=every, seed=options.seed, events=options.events)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


@contextmanager
def _installation(partitions: int) -> Iterator[tuple[Engine, Settings]]:
    home = Path(tempfile.mkdtemp(prefix="nurture-equal-"))
    home.chmod(0o755)
    postgres = embedded.Postgres(home, FAST)
    try:
        postgres.start()
        url = postgres.ensure_database("nurture")
        engine = db.connect(url, pool_size=16)
        migrate(engine, EPOCH, partitions=partitions)
        with engine.begin() as conn:
            conn.exec_driver_sql("create index on message (settled_at)")  # what `Live` asks for at every look
        yield engine, load({"NURTURE_HOME": str(home / "home"), "DATABASE_URL": url, "NURTURE_BASE_URL": "http://127.0.0.1:8000"})
        engine.dispose()
    finally:
        postgres.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
