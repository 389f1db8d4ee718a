"""Unit tests of campaigns: a `tests.yaml` beside a campaign, run on the virtual clock by the engine itself, with its mails written.

Needs no database and sends nothing. A year takes milliseconds. What no test came to is named: steps, arms of branches and splits, waits
that were passed or timed out, the goal, the condition for leaving.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any
from zoneinfo import ZoneInfo

from app.errors import DefinitionError
from app.flow.check import Campaigns, read
from app.flow.checking.files import load
from app.flow.wording import fill, payload
from app.flow.world import Compose, Letter, Posted, Reply, World, book_of, compose_of
from app.rules.book import Book, Node, Version, only
from app.rules.definition import MAIL_KINDS
from app.rules.facts import NewEffect
from app.rules.fields import Problem, nearest
from app.rules.identity import normalise
from app.rules.lifecycle import Lifecycle
from app.rules.reasons import SENTENCES, sentence
from app.rules.scenario import Expectation, Happening, LocalTime, Scenario, Scenarios
from app.rules.timing import zone
from app.rules.triggers import ENROLL_REQUESTED

FILE = "tests.yaml"
ACCOUNT = "account"
SENT = ("sent", "unknown")
MINUTE = timedelta(minutes=1)
CLOSED = ("all", "bounced", "complained", "manual")  # what may be closed to a person beside topics


@dataclass(frozen=True, slots=True)
class Difference:
    """An expectation that was not met (or something nobody expected), with its place in the file. `why` is what the ledger says."""

    line: int
    expected: str | None
    got: str | None
    why: str | None = None

    def __str__(self) -> str:
        parts = [f"expected {self.expected or 'nothing'}", f"got {self.got or 'nothing'}"]
        return "; ".join(parts) + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True, slots=True)
class Result:
    """One test: passed where there is no difference."""

    campaign: str
    name: str
    file: str
    line: int
    differences: tuple[Difference, ...]
    came: tuple[tuple[str, str, str | None, datetime], ...] = ()  # every mail, alert, task and webhook: kind, step, to whom, when
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.differences


@dataclass(slots=True)
class Trial:
    """All tests of a campaign. `missed` are the places that no test came to, in reading order; `places` is how many there are."""

    campaign: str
    results: list[Result] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    places: int = 0


def trials(root: Path, wanted: Sequence[str] = ()) -> tuple[list[Trial], list[Problem]]:
    """Runs the tests of the campaigns below `root`, or of those named. Returns what came of them, and what is wrong with the files.

    Raises DefinitionError when the campaigns themselves are wrong. A campaign without tests has everything missed.
    """
    campaigns = read(root)
    keys = [folder.key for folder in campaigns.folders]
    if unknown := [key for key in wanted if key not in keys]:
        raise DefinitionError([Problem("", 1, 1, "name", f"there is no campaign {unknown[0]}; there are: {', '.join(keys)}")])
    problems: list[Problem] = []
    compose = compose_of(campaigns)
    found = [
        _campaign(root, campaigns, key, number, compose, problems) for number, key in enumerate(keys, 1) if not wanted or key in wanted
    ]
    return found, problems


def _campaign(root: Path, campaigns: Campaigns, key: str, number: int, compose: Compose, problems: list[Problem]) -> Trial:
    trial, path = Trial(key), root / key / FILE
    book = book_of(campaigns, live=True)
    version = book.versions[number]
    reached: set[str] = set()
    if path.exists():
        model, _, places = load(root, path, Scenarios, problems)
        for index, scenario in enumerate(model.tests if model else ()):
            wrong = list(_unknown(scenario, version, book, places, index))
            problems.extend(wrong)
            if not wrong:
                trial.results.append(_run(scenario, version, only(book, {key, *scenario.along}), compose, places, index, reached))
    every = list(_places(version, book.lifecycle))
    trial.places = len(every)
    trial.missed = [place for place in every if place not in reached]
    return trial


def _unknown(scenario: Scenario, version: Version, book: Book, places: Any, index: int) -> Iterator[Problem]:
    """Names in the test that nothing has."""
    stages = [stage.name for stage in book.lifecycle.stages]
    known = {"stage": stages, "milestone": book.lifecycle.milestones, "reason": SENTENCES, "why": SENTENCES}
    for part, ones in (("events", scenario.events), ("expect", scenario.expect)):
        for at, one in enumerate(ones):
            for name in ("answer", "click", "reply", "bounce", "unsubscribe", "mail", "skip", "alert", "task", "webhook"):
                step = getattr(one, name, None)
                if step is not None and step not in version.nodes:
                    said = f"{step} is not a step of {version.key}; there are: {', '.join(version.nodes)}"
                    yield places.problem("step", said, ("tests", index, part, at, name), fix=nearest(step, version.nodes))
            for name, names in known.items():
                value = getattr(one, name, None)
                if value is not None and value not in names:
                    said = f"there is no {name if name != 'why' else 'reason'} {value}"
                    yield places.problem("name", said, ("tests", index, part, at, name), fix=nearest(value, names))
            whom = getattr(one, "by", None) or getattr(one, "to", None)
            joins = {other.by for other in scenario.events if other.identify is not None}
            if whom is not None and whom not in scenario.given.contacts and whom not in joins:
                said = f"{whom} is not among the contacts; there are: {', '.join(scenario.given.contacts)}"
                yield places.problem("name", said, ("tests", index, part, at, "by" if hasattr(one, "by") else "to"))
    given = scenario.given
    if given.stage is not None and given.stage not in stages:
        yield places.problem(
            "name", f"there is no stage {given.stage}", ("tests", index, "given", "stage"), fix=nearest(given.stage, stages)
        )
    for at, name in enumerate(given.milestones):
        if name not in book.lifecycle.milestones:
            place = ("tests", index, "given", "milestones", at)
            yield places.problem("name", f"there is no milestone {name}", place, fix=nearest(name, book.lifecycle.milestones))
    scopes = (*book.lifecycle.topics, *CLOSED)
    for key, closed in given.suppressions.items():
        if key not in given.contacts:
            said = f"{key} is not among the contacts; there are: {', '.join(given.contacts)}"
            yield places.problem("name", said, ("tests", index, "given", "suppressions", key))
        for at, scope in enumerate(closed):
            if scope not in scopes:
                said = f"{scope} cannot be closed; there are: {', '.join(scopes)}"
                yield places.problem("name", said, ("tests", index, "given", "suppressions", key, at), fix=nearest(scope, scopes))
    for at, key in enumerate(scenario.along):
        if key not in book.standings:
            yield places.problem("name", f"there is no campaign {key}", ("tests", index, "along", at), fix=nearest(key, book.standings))


# One test ------------------------------------------------------------------------------------------------------------


class _Script:
    """The feedback that a test tells of: who answers, clicks, bounces."""

    def __init__(self, scenario: Scenario, campaign: str):
        self.campaign = campaign
        self.told = [one for one in scenario.events if one.kind in ("answer", "click", "reply", "bounce", "unsubscribe")]

    def outcome(self, letter: Letter) -> str:
        return "rejected" if any(one.bounce == letter.step and self._theirs(one, letter) for one in self.told) else "sent"

    def after(self, letter: Letter) -> list[tuple[timedelta, Reply]]:
        replies = {"answer": "answered", "click": "clicked", "reply": "replied", "unsubscribe": "unsubscribed"}
        return [
            (one.after, Reply(replies[one.kind], score=one.score, comment=one.comment))
            for one in self.told
            if one.kind in replies and getattr(one, one.kind) == letter.step and self._theirs(one, letter)
        ]

    def _theirs(self, one: Happening, letter: Letter) -> bool:
        return letter.campaign == self.campaign and one.by in (None, letter.contact)


def _run(scenario: Scenario, version: Version, book: Book, compose: Compose, places: Any, index: int, reached: set[str]) -> Result:
    began = perf_counter()
    world = World(book, feedback=_Script(scenario, version.key), compose=compose)
    clock = _Clock(scenario, book.lifecycle)
    world.post(_posted(scenario, version.key, clock))
    given = scenario.given
    if given.stage is not None or given.milestones:
        world.stand(ACCOUNT, scenario.start - MINUTE / 2, stage=given.stage, milestones=given.milestones)
    for key, scopes in given.suppressions.items():
        person = normalise({"email": _address(key), **given.contacts[key]}["email"])
        for scope in scopes if person is not None else ():
            world.suppress(person, scope, scenario.start - MINUTE)
    for one in scenario.events:
        if one.hold is not None:
            since = clock.moment(one.at)
            world.hold(account=ACCOUNT, reason="test", since=since, until=since + one.hold)
    world.run(scenario.start + scenario.until)
    reached.update(_reached(world, version))
    compared = _Comparison(scenario, version, world, places, index, clock)
    differences = tuple(compared.differences())
    line, _ = places.tree.find(("tests", index, "name"), False)
    return Result(version.key, scenario.name, places.file, line, differences, compared.came(), perf_counter() - began)


def _posted(scenario: Scenario, campaign: str, clock: _Clock) -> Iterator[Posted]:
    """What the product, and the engine's own assessments, say: first who there is, then what happens."""
    start, count = scenario.start, 0
    first = next(iter(scenario.given.contacts), None)

    def posted(kind: str, name: str, contact: str | None, properties: dict[str, Any], at: datetime, source: int = 1) -> Posted:
        nonlocal count
        count += 1
        return Posted(f"test:{count}", kind, name, ACCOUNT, contact, properties, at, at, source)

    before = start - MINUTE
    yield posted("group", "group", None, {"name": "Test account", **scenario.given.account}, before)
    for key, traits in scenario.given.contacts.items():
        yield posted("identify", "identify", key, {"email": _address(key), **traits}, before)
    for one in scenario.events:
        at, who = clock.moment(one.at), one.by or first
        if one.kind == "track":
            yield posted("track", one.track, who, one.properties, at)
        elif one.kind == "group":
            yield posted("group", "group", None, one.group, at)
        elif one.kind == "identify":
            known = {} if who in scenario.given.contacts else {"email": _address(who)}
            yield posted("identify", "identify", who, {**known, **one.identify}, at)
        elif one.kind == "health":
            changed = one.health.band != one.health.previous_band
            yield posted("track", "nurture.health_changed", None, one.health.model_dump() | {"band_changed": changed}, at, 0)
        elif one.kind == "enroll":
            yield posted("track", ENROLL_REQUESTED, who, {"campaign": campaign, "by": "hand"}, at, 0)


def _address(contact: str) -> str:
    return f"{contact}@example.com"


class _Clock:
    """The times of a test, and how they are told: by the clock of its account."""

    def __init__(self, scenario: Scenario, lifecycle: Lifecycle):
        self.start = scenario.start
        told = scenario.given.account
        owner = told.get("owner")
        named = (told.get("timezone"), owner.get("timezone") if isinstance(owner, dict) else None, lifecycle.timezone)
        self.where = next((found for name in named if isinstance(name, str) and (found := zone(name))), ZoneInfo("UTC"))

    def moment(self, when: timedelta | datetime | LocalTime) -> datetime:
        if isinstance(when, LocalTime):
            return when.after(self.start, self.where)
        return self.start + when if isinstance(when, timedelta) else when

    def words(self, at: datetime | None) -> str:
        """The moment as a day of the test and as a date."""
        if at is None:
            return "never"
        local = at.astimezone(self.where)
        day = (local.date() - self.start.astimezone(self.where).date()).days
        zone = "" if self.where.key == "UTC" else f", {self.where.key}"
        return f"on day {day} at {local:%H:%M} ({local:%a %Y-%m-%d}{zone})"


class _Comparison:
    """What was expected against what came."""

    def __init__(self, scenario: Scenario, version: Version, world: World, places: Any, index: int, clock: _Clock):
        self.scenario, self.version, self.world, self.places, self.index = scenario, version, world, places, index
        self.clock = clock
        self.letters = sorted(
            (one for one in world.letters if one.campaign == version.key), key=lambda one: (one.settled_at or one.due_at, one.step)
        )
        self.effects = [one for _, one in world.effects if one.campaign == version.key]
        self.ends = [one for _, one in world.enrollments.values() if one.campaign == version.key and one.state != "active"]

    def differences(self) -> Iterator[Difference]:
        open_letters = [one for one in self.letters if one.outcome in SENT]
        skipped = [one for one in self.letters if one.outcome == "skipped"]
        effects = list(self.effects)
        for at, one in enumerate(self.scenario.expect):
            line, _ = self.places.tree.find(("tests", self.index, "expect", at), False)
            if one.kind == "mail":
                yield from self._letter(one, one.mail, open_letters, line)
            elif one.kind == "skip":
                yield from self._letter(one, one.skip, skipped, line)
            elif one.kind in ("alert", "task", "webhook"):
                yield from self._effect(one, effects, line)
            else:
                yield from self._state(one, line)
        line, _ = self.places.tree.find(("tests", self.index, "name"), False)
        for letter in open_letters:
            yield Difference(line, None, self._said(letter))
        for effect in effects:
            yield Difference(line, None, f"{effect.kind} {effect.step} {self._time(effect.created_at)}")

    def came(self) -> tuple[tuple[str, str, str | None, datetime], ...]:
        """Everything that came of it, in the order of the times."""
        letters = [one for one in self.world.letters if one.campaign == self.version.key and one.outcome in (*SENT, "skipped")]
        mails = [("skip" if one.outcome == "skipped" else "mail", one.step, one.contact, one.settled_at) for one in letters]
        effects = [(one.kind, one.step, None, one.created_at) for one in self.effects]
        return tuple(sorted(mails + effects, key=lambda one: one[3]))

    def _letter(self, wanted: Expectation, step: str, left: list[Letter], line: int) -> Iterator[Difference]:
        fits = [one for one in left if one.step == step and wanted.to in (None, one.contact)]
        found = next((one for one in fits if self._at(wanted, one.settled_at or one.due_at)), fits[0] if fits else None)
        said = f"{'mail' if wanted.mail else 'no mail'} {step}" + (f" to {wanted.to}" if wanted.to else "")
        if wanted.at is not None:
            said += f" {self._time(self.clock.moment(wanted.at))}"
        if found is None:
            yield Difference(line, said, None, self._why(step, wanted.to))
            return
        left.remove(found)
        if not self._at(wanted, found.settled_at or found.due_at):
            yield Difference(line, said, self._said(found))
        if wanted.subject is not None and wanted.subject not in (found.subject or ""):
            yield Difference(line, f"the subject of {step} to have “{wanted.subject}”", f"“{found.subject}”")
        if wanted.why is not None and wanted.why != found.reason:
            yield Difference(line, f"{said} because of {wanted.why}", f"{found.reason}: {sentence(found.reason, found.evidence)}")

    def _effect(self, wanted: Expectation, left: list[NewEffect], line: int) -> Iterator[Difference]:
        step = getattr(wanted, wanted.kind)
        fits = [one for one in left if one.kind == wanted.kind and one.step == step]
        found = next((one for one in fits if self._at(wanted, one.created_at)), fits[0] if fits else None)
        said = f"{wanted.kind} {step}" + (f" {self._time(self.clock.moment(wanted.at))}" if wanted.at is not None else "")
        if found is None:
            yield Difference(line, said, None, self._why(step, None))
            return
        left.remove(found)
        if not self._at(wanted, found.created_at):
            yield Difference(line, said, f"{wanted.kind} {step} {self._time(found.created_at)}")
        if wanted.text is not None and wanted.text not in (text := self._text(found)):
            yield Difference(line, f"{said} with “{wanted.text}”", f"“{text}”")

    def _text(self, effect: NewEffect) -> str:
        account = self.world.account(ACCOUNT)
        if effect.kind == "task":
            return f"{fill(effect.spec['title'], effect.values)}\n{fill(effect.spec['note'], effect.values)}"
        return str(payload(effect, account, self.version.campaign.name))

    def _state(self, wanted: Expectation, line: int) -> Iterator[Difference]:
        account = self.world.account(ACCOUNT)
        if wanted.kind == "ended":
            got = [(one.end_reason or one.state, one.ended_at) for one in self.ends]
            if not any(reason == wanted.ended and self._at(wanted, at) for reason, at in got):
                when = f" {self._time(self.clock.moment(wanted.at))}" if wanted.at is not None else ""
                ends = ", ".join(f"{reason} {self._time(at)}" for reason, at in got) or "it is still inside, or never was"
                yield Difference(line, f"{wanted.ended}{when}", ends)
        elif wanted.kind == "reason":
            mine = [one for _, one in self.world.decisions if one.campaign == self.version.key]
            if not any(one.reason == wanted.reason for one in mine):
                yield Difference(line, f"the reason {wanted.reason}", ", ".join(dict.fromkeys(one.reason for one in mine)) or None)
        elif wanted.kind == "stage" and account.stage != wanted.stage:
            yield Difference(line, f"the stage {wanted.stage}", account.stage)
        elif wanted.kind == "milestone":
            known = account.milestones.get(wanted.milestone)
            if known is None or known.reached_at is None:
                yield Difference(line, f"the milestone {wanted.milestone} reached", None)
        elif wanted.kind == "trait":
            for name, value in wanted.trait.items():
                if account.traits.get(name) != value:
                    yield Difference(line, f"account.traits.{name} to be {value!r}", repr(account.traits.get(name)))

    def _at(self, wanted: Expectation, at: datetime | None) -> bool:
        return wanted.at is None or (at is not None and abs(at - self.clock.moment(wanted.at)) < MINUTE)

    def _said(self, letter: Letter) -> str:
        return f"mail {letter.step} to {letter.contact} {self._time(letter.settled_at or letter.due_at)}"

    def _time(self, at: datetime | None) -> str:
        return self.clock.words(at)

    def _why(self, step: str, contact: str | None) -> str | None:
        """What the ledger says of a step that did not come: its own no, or how the way ended before it."""
        mine = [one for _, one in self.world.decisions if one.campaign == self.version.key]
        own = [one for one in mine if one.step == step and one.verdict != "yes" and contact in (None, one.contact)]
        if not own:
            own = [one for one in mine if one.verdict == "no" or one.gate == "exit"]
        if not own:
            return None
        last = own[-1]
        return f"{last.reason} {self._time(last.at)}: {sentence(last.reason, last.evidence)}"


# What tests came to --------------------------------------------------------------------------------------------------


def _places(version: Version, lifecycle: Lifecycle) -> Iterator[str]:
    """Everything a test may come to, in reading order."""
    for step, node in version.nodes.items():
        if node.kind in (*MAIL_KINDS, "alert", "task", "webhook", "set", "exit"):
            yield f"step {step}"
        elif node.kind == "branch":
            yield from (
                f"branch {step}, arm {number}: {condition.source if condition else 'else'}"
                for number, (condition, _) in enumerate(node.arms, 1)
            )
            if node.arms[-1][0] is not None:
                yield f"branch {step}, no arm"
        elif node.kind == "split":
            yield from (f"split {step}, arm {name}" for name, *_ in node.parts)
        elif node.kind == "wait_for":
            if not _ends_it(version, node):
                yield f"wait_for {step}, passed"
            yield f"wait_for {step}, timed out"
    if version.campaign.goal is not None:
        yield "goal, met"
    if version.campaign.exit_when is not None and not _goal_comes_first(version, lifecycle):
        yield f"exit_when: {version.campaign.exit_when}"


def _ends_it(version: Version, node: Node) -> bool:
    """Whether what the step waits for is the goal, which ends the enrollment first."""
    goal, spec = version.campaign.goal, node.step.wait_for
    return goal is not None and goal.then == "exit" and spec.milestone is not None and spec.milestone == goal.milestone


def _goal_comes_first(version: Version, lifecycle: Lifecycle) -> bool:
    """Whether the condition for leaving reads only the stage, and every event that ends a stage meets the goal before that is seen."""
    goal, stages = version.campaign.goal, lifecycle.stages
    if goal is None or goal.then != "exit" or goal.milestone is None or version.exit_when.roots != {"stage"}:
        return False
    if any(stage.enter_when or stage.then == "next" for stage in stages):
        return False
    met = lifecycle.milestones[goal.milestone]
    for source in (stage.exit_when for stage in stages if stage.exit_when):
        named = re.fullmatch(r"milestone\.(\w+)\.reached", source.strip())
        ends = lifecycle.milestones.get(named[1]) if named else None
        if ends is None or (ends.event, ends.where) != (met.event, met.where):
            return False
    return True


def _reached(world: World, version: Version) -> Iterable[str]:
    mine = [one for _, one in world.decisions if one.campaign == version.key]
    for one in mine:
        node = version.nodes.get(one.step or "")
        if one.reason == "branch_taken":
            condition = node.arms[one.evidence["arm"] - 1][0]
            yield f"branch {one.step}, arm {one.evidence['arm']}: {condition.source if condition else 'else'}"
        elif one.reason == "no_branch_matched":
            yield f"branch {one.step}, no arm"
        elif one.reason == "arm_drawn":
            yield f"split {one.step}, arm {one.evidence['arm']}"
        elif one.reason == "event_came":
            yield f"wait_for {one.step}, passed"
        elif one.reason == "timed_out":
            yield f"wait_for {one.step}, timed out"
        elif one.reason == "goal_met":
            yield "goal, met"
        elif one.reason == "exit_when" and one.gate == "exit":
            yield f"exit_when: {version.campaign.exit_when}"
        elif one.reason in ("exit_step", "set_made"):
            yield f"step {one.step}"
    yield from (f"step {one.step}" for one in world.letters if one.campaign == version.key and one.outcome in SENT)
    yield from (f"step {one.step}" for _, one in world.effects if one.campaign == version.key)
