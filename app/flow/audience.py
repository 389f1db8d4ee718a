"""The audience proof: every value that a text cannot do without is there for everybody whom a campaign would write to now.

What no stored fact can prove is said, not passed over: properties of events are held against the trigger's stored events, answers to
surveys against nothing. Reads only; one statement per table for a thousand accounts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from app.errors import RenderSkip
from app.flow import states
from app.flow.check import Campaigns, Folder, Template
from app.flow.compose import Compiled, Composer, locales, nowhere
from app.flow.composing.filters import plain
from app.flow.composing.needs import needs, needs_of
from app.flow.composing.templates import check as check_template
from app.rules.book import texts_of
from app.rules.conditions import MISSING, Condition, Path, Schema, compile_condition, value_of, values
from app.rules.definition import walk
from app.rules.facts import Account, Scope
from app.rules.fields import Problem
from app.rules.triggers import listened

ACCOUNTS = 1_000  # read at a time
EVENTS = 1_000  # of a trigger that are looked at, the newest
RENDERS = 5_000  # mails that are rendered to see whether a value is really needed

_PROVEN = ("account", "contact", "stage", "milestone", "usage", "utilization", "health")  # by facts that are stored
_ALWAYS = ("now", "mail", "brand", "enrollment", "event.name", "event.occurred_at")


@dataclass(frozen=True, slots=True)
class Break:
    """A value that a text of a campaign needs and that somebody lacks.

    `kind` is `skip`: the mail would be skipped for `count` of the `of` contacts who would get it; `dash`: a notice would show a dash, for
    so many accounts (or contacts, where those are enrolled); `event`: `count` of the last `of` events that would have started the
    campaign lack it; `unproven`: no stored fact tells. `file` is the template, or campaign.yaml for the texts of notices. `account` and
    `contact` are external ids of the first one; for events, `account` is the account of the newest that lacks it.
    """

    campaign: str
    step: str
    file: str
    path: str
    kind: str
    count: int = 0
    of: int = 0
    account: str | None = None
    contact: str | None = None

    @property
    def definite(self) -> bool:
        """Whether publishing must not pass it over: somebody's mail would be skipped."""
        return self.kind == "skip" or (self.kind == "event" and 0 < self.count == self.of)

    def __str__(self) -> str:
        first = f"the first is {self.contact} of {self.account}" if self.contact else f"the first is {self.account}"
        if self.kind == "skip":
            who = f"{self.count} of {self.of} contacts lack it, so step {self.step} would skip them; {first}"
        elif self.kind == "dash":
            who = f"{self.count} of {self.of} lack it, so the notice of step {self.step} shows a dash; {first}"
        elif self.kind == "event":
            who = f"{self.count} of the last {self.of} events that start the campaign lack it (step {self.step})"
            who += f"; the newest is of {self.account}" if self.account else ""
        elif self.path.startswith("event."):
            who = f"no event that starts the campaign is stored, so nothing tells whether step {self.step} would have it"
        else:
            who = f"no stored fact tells whether step {self.step} will have it"
        return f"{self.path} has no fallback: {who}"


def prove(conn: Connection, campaigns: Campaigns, now: datetime) -> list[Break]:
    """Every value that a subject, a mail, a link or a notice reads without a fallback and that is not there for everybody.

    Everybody is who matches a campaign's audience now and is not kept out by its `exit_when`: with the roles and an address for mail of an
    account's enrollment, every member for a contact's. A condition that reads an event or an answer cannot be asked now and counts as
    true. A mail is only called broken when it is rendered for the first who lacks a value and is skipped. Definite ones come first.
    """
    prover = _Prover(campaigns, now)
    found = [*prover.unproven(), *prover.over_events(conn)]
    if prover.asks_accounts:
        last = 0
        while ids := list(conn.exec_driver_sql(_IDS, {"last": last, "limit": ACCOUNTS}).scalars()):
            last = ids[-1]
            for account in states.load(conn, ids=ids, acting=True, metrics=prover.metrics, now=now).values():
                prover.look_at(account)
    found += prover.found()
    return sorted(found, key=lambda one: (not one.definite, one.kind == "unproven", one.campaign, one.file, one.step, one.path))


_IDS = "select id from account where id > %(last)s and erased_at is null order by id limit %(limit)s"


def blocking(campaigns: Campaigns, breaks: Iterable[Break], severity: str = "error") -> list[Problem]:
    """The definite ones as problems of the files, each where the value is read; with another severity, the others."""
    sources = {one.path: one.source for folder in campaigns.folders for one in folder.templates}
    found = []
    for one in breaks:
        if one.definite != (severity == "error"):
            continue
        places = check_template(sources[one.file]).places if one.file in sources else {}
        place = next((place for path, place in places.items() if ".".join(map(str, path)) == one.path), (1, 1))
        fix = f'{one.path} | default("…")'
        found.append(Problem(one.file, *place, "audience", str(one), fix, severity))
    return found


@dataclass(slots=True)
class _Text:
    """A mail of a step in one language, or its notice. `needed` are the paths that facts can prove."""

    folder: Folder
    step: Any
    file: str
    needed: tuple[Path, ...]
    rest: tuple[str, ...]  # those they cannot
    compiled: Compiled | None = None
    lacking: dict[str, list[Any]] = field(default_factory=dict)  # path: [count, account, contact]


@dataclass(slots=True)
class _Step:
    """A step that says something: its texts by language, the roles and the topic of who gets it."""

    step: Any
    texts: dict[str, _Text]
    roles: frozenset[str]
    topic: str
    mails: bool
    seen: int = 0


@dataclass(slots=True)
class _Program:
    """A campaign: who it is for, and its steps that need something."""

    folder: Folder
    audience: Condition | None
    exit_when: Condition | None
    steps: list[_Step]
    asks_people: bool  # whether it depends on the contact who is in it

    def takes(self, scope: Scope) -> bool:
        if self.audience is not None and not self.audience.test(scope):
            return False
        return self.exit_when is None or not self.exit_when.test(scope)


class _Person:
    """A contact of an account, or the account itself; remembers what it lacks, since many texts ask for the same."""

    __slots__ = ("known", "locales", "prover", "scope")

    def __init__(self, prover: _Prover, scope: Scope):
        self.prover, self.scope = prover, scope
        self.known: dict[Path, bool] = {}
        self.locales = tuple(locales(scope.contact.locale if scope.contact else None))

    def lacks(self, path: Path) -> bool:
        found = self.known.get(path)
        if found is None:
            found = self.known[path] = plain(_given(value_of(path, self.scope, self.prover.schema))) is None
        return found


class _Prover:
    def __init__(self, campaigns: Campaigns, now: datetime):
        self.campaigns, self.now = campaigns, now
        self.schema: Schema = campaigns.lifecycle.schema
        self.composer = Composer()
        self.brand = campaigns.lifecycle.brand.model_dump()
        self.renders = RENDERS
        self.programs = [_program(folder, self.schema) for folder in campaigns.folders if folder.campaign.mode != "archived"]
        self.texts = [text for program in self.programs for step in program.steps for text in step.texts.values()]
        self.asked = [program for program in self.programs if any(text.needed for step in program.steps for text in step.texts.values())]
        roots = {root for program in self.asked for one in (program.audience, program.exit_when) if one for root in one.roots}
        roots |= {".".join(path[:2]) for text in self.texts for path in text.needed if path[0] == "usage"}
        roots |= {read for text in self.texts if text.compiled for read in text.compiled.reads}
        self.metrics = sorted({root.split(".")[1] for root in roots if root.startswith("usage.")})

    @property
    def asks_accounts(self) -> bool:
        return bool(self.asked)

    # What is stored of accounts ----------------------------------------------------------------------------------------

    def look_at(self, account: Account) -> None:
        people = [_Person(self, Scope(account, self.now, one)) for one in account.contacts.values() if one.joined_at is not None]
        nobody = _Person(self, Scope(account, self.now))
        for program in self.asked:
            by_account = program.folder.campaign.enrolls == "account"
            if not program.asks_people and not program.takes(nobody.scope):
                continue
            takes = [one for one in people if not program.asks_people or program.takes(one.scope)]
            for step in program.steps:
                if step.mails:
                    for one in takes:
                        contact = one.scope.contact
                        if by_account and step.roles and step.roles.isdisjoint(contact.roles):
                            continue
                        if contact.unreachable(step.topic) is None:
                            self._look(step, one)
                elif not by_account:
                    for one in takes:
                        self._look(step, one)
                elif not program.asks_people or program.takes(nobody.scope):
                    self._look(step, nobody)

    def _look(self, step: _Step, person: _Person) -> None:
        step.seen += 1
        contact = person.scope.contact
        text = next((found for name in person.locales if (found := step.texts.get(name)) is not None), None)
        lacking = [path for path in text.needed if person.lacks(path)] if text is not None else ()
        for path in lacking:
            if text.compiled is None or self._skipped(text, person.scope, path, lacking):
                noted = text.lacking.setdefault(".".join(path), [0, person.scope.account.key, contact.key if contact else None])
                noted[0] += 1

    def _skipped(self, text: _Text, scope: Scope, path: Path, lacking: Iterable[Path]) -> bool:
        """Whether the mail would be skipped for the want of `path`. Rendering tells, with something in place of whatever else lacks."""
        if self.renders <= 0:
            return True
        self.renders -= 1
        facts: dict[str, Any] = values(scope, [one for one in text.compiled.reads if _proven(one)], self.schema)
        for other in (*lacking, *(tuple(read.split(".")) for read in text.compiled.reads if not _proven(read))):
            if other != path:
                _put(facts, other, "sample")
        facts["now"] = self.now
        try:
            self.composer.render(text.file, text.compiled, facts, _ADDRESSES, self.brand, "")
        except RenderSkip as skip:
            # Any other reason comes of what was put in place, and leaves the value needed as far as anybody knows.
            return skip.reason != "missing_value" or skip.evidence.get("path") == ".".join(path)
        return False

    def found(self) -> Iterator[Break]:
        for program in self.asked:
            for step in program.steps:
                for text in step.texts.values():
                    kind = "skip" if text.compiled is not None else "dash"
                    for path, (count, account, contact) in text.lacking.items():
                        yield Break(program.folder.key, step.step.id, text.file, path, kind, count, step.seen, account, contact)

    # What is stored of events, and what is not stored ------------------------------------------------------------------

    def unproven(self) -> Iterator[Break]:
        for text in self.texts:
            for path in text.rest:
                if not path.startswith("event."):
                    yield Break(text.folder.key, text.step.id, text.file, path, "unproven")

    def over_events(self, conn: Connection) -> Iterator[Break]:
        """The properties that texts need, held against the events that started, or would have started, their campaigns."""
        wanted: dict[str, list[tuple[_Text, str]]] = defaultdict(list)
        for text in self.texts:
            for path in text.rest:
                if path.startswith("event."):
                    wanted[text.folder.key].append((text, path))
        folders = {folder.key: folder for folder in self.campaigns.folders}
        for key, reads in wanted.items():
            events = self._starting(conn, folders[key])
            for text, path in reads:
                about = (key, text.step.id, text.file, path)
                if not events:
                    yield Break(*about, "unproven")
                lacking = [
                    event
                    for event in events
                    if plain(_given(value_of(tuple(path.split(".")), Scope(_NOBODY, self.now, None, event)))) is None
                ]
                if lacking:
                    yield Break(*about, "event", len(lacking), len(events), lacking[0]["account"], lacking[0]["contact"])

    def _starting(self, conn: Connection, folder: Folder) -> list[dict[str, Any]]:
        name, where = listened(folder.campaign.trigger)
        condition = compile_condition(where, self.schema) if where else None
        rows = conn.exec_driver_sql(_EVENTS, {"name": name, "limit": EVENTS})
        events = [dict(zip(("name", "properties", "occurred_at", "account", "contact"), row, strict=True)) for row in rows]
        if condition is None or condition.roots - {"event", "now"}:
            return events
        return [event for event in events if condition.test(Scope(_NOBODY, event["occurred_at"], None, event))]


_EVENTS = """
select name, properties, occurred_at, account_key, contact_key from event
where name = %(name)s and mark is null order by id desc limit %(limit)s"""
_NOBODY = Account("", 0)
_ADDRESSES = nowhere("https://n.example")


def _program(folder: Folder, schema: Schema) -> _Program:
    campaign = folder.campaign
    mails: dict[str, dict[str, Template]] = defaultdict(dict)
    for one in folder.templates:
        mails[one.step][one.locale] = one
    steps = []
    for _, step in walk(campaign.steps):
        topic = getattr(step, "topic", None) or campaign.topic
        recipients = getattr(step, "recipients", None) or campaign.recipients
        anybody = recipients.pick == "responder" or getattr(step, "reminds", None)
        if step.id in mails:
            texts = {locale: _text(folder, step, one.path, needs_of(one.compiled), one.compiled) for locale, one in mails[step.id].items()}
        else:
            read = frozenset(path for text in texts_of(step) for path in needs(text))
            texts = {"": _text(folder, step, f"{folder.key}/campaign.yaml", read, None)} if read else {}
        if any(text.needed or text.rest for text in texts.values()):
            roles = frozenset() if anybody else frozenset(recipients.roles)
            steps.append(_Step(step, texts, roles, topic, step.id in mails))
    conditions = (_known(campaign.audience, schema), _known(campaign.exit_when, schema))
    return _Program(folder, *conditions, steps, any("contact" in one.roots for one in conditions if one))


def _text(folder: Folder, step: Any, file: str, read: frozenset[str], compiled: Compiled | None) -> _Text:
    needed = sorted(path for path in read if not path.startswith(_ALWAYS))
    # A notice of an account's enrollment speaks of the contact of the event, whom nobody knows beforehand.
    own = [
        path
        for path in needed
        if _proven(path) and not (compiled is None and folder.campaign.enrolls == "account" and path.startswith("contact."))
    ]
    return _Text(folder, step, file, tuple(tuple(path.split(".")) for path in own), tuple(set(needed) - set(own)), compiled)


def _known(source: str | None, schema: Schema) -> Condition | None:
    """The condition, if what is stored can answer it."""
    condition = compile_condition(source, schema) if source else None
    return None if condition is None or not condition.roots.isdisjoint(("event", "response", "enrollment")) else condition


def _proven(path: str | None) -> bool:
    return path is not None and path.partition(".")[0] in _PROVEN


def _given(value: Any) -> Any:
    return None if value is MISSING else value


def _put(place: dict[str, Any], path: Path, value: Any) -> None:
    for part in path[:-1]:
        place = place.setdefault(part, {})
    place[path[-1]] = value
