"""Reads a campaigns folder and reports every problem at once, each with file, line, column and, where there is one, the right name.

Writes nothing, sends nothing. Whatever is in the folder ends in a problem, never in a process that hangs or dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import DefinitionError
from app.flow.checking.files import NotText, Places, load, read_text
from app.flow.checking.names import Against, check_campaign, check_lifecycle, path_problem
from app.flow.compiling import Done, Job, compile_apart
from app.flow.compose import Compiled
from app.flow.composing.needs import needs_of
from app.flow.composing.templates import SOURCE_LIMIT
from app.flow.composing.templates import check as check_template
from app.rules.definition import Campaign, EmailStep, walk
from app.rules.fields import Problem, nearest
from app.rules.lifecycle import Lifecycle

LINE_LIMIT = 1_000  # problems of a folder that anybody will read
_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}/[A-Za-z0-9_-]{1,100}")
_LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled mail of a folder: for one step, in one language ("" is the default)."""

    step: str
    locale: str
    path: str
    source: str
    compiled: Compiled


@dataclass(frozen=True, slots=True)
class Folder:
    """A campaign's folder, read and compiled. `hash` follows from all that goes into a version."""

    key: str
    raw: Mapping[str, Any]
    campaign: Campaign
    templates: tuple[Template, ...]
    hash: str


@dataclass(frozen=True, slots=True)
class Campaigns:
    """A whole campaigns folder. `warnings` say what works and hardly as it was meant."""

    lifecycle: Lifecycle
    raw_lifecycle: Mapping[str, Any]
    folders: tuple[Folder, ...]
    warnings: tuple[Problem, ...] = field(default=(), compare=False)


def read(root: Path) -> Campaigns:
    """The campaigns below `root`, all of them right. Raises DefinitionError with every problem."""
    campaigns, problems = check(root)
    if problems or campaigns is None:
        raise DefinitionError(problems)
    return campaigns


def check(root: Path) -> tuple[Campaigns | None, list[Problem]]:
    """Everything below `root` and every problem in it; None when `lifecycle.yaml` itself cannot be used."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    lifecycle, raw, places = load(root, root / "lifecycle.yaml", Lifecycle, problems)
    if lifecycle is None:
        return None, problems
    check_lifecycle(Against(lifecycle, places, problems, warnings))
    blocks = _blocks(root, problems)
    drafts = list(_drafts(root, problems, warnings))
    campaigns = {draft.key: draft.campaign for draft in drafts}
    for draft in drafts:
        if draft.campaign is not None:
            check_campaign(Against(lifecycle, draft.places, draft.problems, warnings), draft.campaign, draft.key, campaigns)
            draft.read_templates(root, warnings)
    _compile(drafts, blocks, lifecycle, problems)
    folders = [draft.folder(blocks) for draft in drafts if draft.campaign is not None and not draft.problems]
    for draft in drafts:
        problems.extend(draft.problems)
    return Campaigns(lifecycle, raw, tuple(folders), tuple(_in_order(warnings))), _in_order(problems)


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Each once: a block's problem shows in every mail with it."""
    return sorted(dict.fromkeys(problems), key=lambda one: (one.file, one.line, one.column))[:LINE_LIMIT]


def _blocks(root: Path, problems: list[Problem]) -> dict[str, str]:
    """The files of `brand/`, by name."""
    found = {}
    for path in sorted((root / "brand").glob("*.mjml")):
        if (source := _source(root, path, problems)) is not None:
            found[path.name] = source
    return found


def _source(root: Path, path: Path, problems: list[Problem]) -> str | None:
    file = path.relative_to(root).as_posix()
    try:
        return read_text(root, path, SOURCE_LIMIT)
    except NotText as error:
        problems.append(Problem(file, error.line, error.column, "file", str(error)))
    except OSError as error:
        problems.append(Problem(file, 1, 1, "file", f"cannot be read: {error.strerror or error}"))
    return None


def _drafts(root: Path, problems: list[Problem], warnings: list[Problem]) -> Iterator[_Draft]:
    """The campaigns below `root`, as far as they can be read; a `campaign.yaml` where none is looked for is named."""
    for path in _definitions(root):
        folder = path.parent.relative_to(root).as_posix()
        file = path.relative_to(root).as_posix()
        if path.name != "campaign.yaml":
            warnings.append(Problem(file, 1, 1, "file", "is not read; call it campaign.yaml", "campaign.yaml", "warning"))
        elif folder.count("/") != 1:
            said = "is not read: a campaign stands in a folder of a folder, such as onboarding/first-value/campaign.yaml"
            warnings.append(Problem(file, 1, 1, "file", said, None, "warning"))
        elif not _KEY.fullmatch(folder):
            said = "the name of the folder may have letters, digits, - and _, and at most 100 of them"
            problems.append(Problem(file, 1, 1, "file", said))
        else:
            mine: list[Problem] = []
            campaign, raw, places = load(root, path, Campaign, mine)
            yield _Draft(folder, path.parent, campaign, raw, places, mine)


def _definitions(root: Path) -> list[Path]:
    """Every file that looks like a campaign's definition, to a depth of four folders, in order. Follows no link to a folder."""
    found = []
    for folder, names, files in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        names[:] = sorted(name for name in names if not name.startswith(".") and depth < 4)
        found += [Path(folder, name) for name in files if re.fullmatch(r"campaigns?\.ya?ml", name, re.IGNORECASE)]
    return sorted(found)


@dataclass(slots=True)
class _Draft:
    """A campaign's folder while it is looked at. `mails` are the templates of its steps, with the place of each step in the file."""

    key: str
    path: Path
    campaign: Campaign | None
    raw: Any
    places: Places
    problems: list[Problem]
    mails: list[tuple[str, str, Job]] = field(default_factory=list)  # step, locale, what to compile
    templates: list[Template] = field(default_factory=list)

    def read_templates(self, root: Path, warnings: list[Problem]) -> None:
        """Finds the templates of all steps, in all languages."""
        files = {path.name: path for path in sorted(self.path.glob("*.mjml"))}
        steps = {step.id: step for _, step in walk(self.campaign.steps)}
        used: set[str] = set()
        for place, step in walk(self.campaign.steps):
            if not isinstance(step, EmailStep):
                continue
            stem = step.email.removesuffix(".mjml")
            mine = {name: name[len(stem) + 1 : -len(".mjml")] for name in files if name.startswith(f"{stem}.") and name != step.email}
            used |= {step.email, *mine}
            if step.email not in files:
                there = ", ".join(files) or "no .mjml file"
                message = f"{step.email} is not in the folder; there is {there}"
                self.problems.append(self.places.problem("template", message, (*place, "email"), fix=nearest(step.email, files)))
                continue
            asked = steps.get(step.reminds, step) if step.reminds else step
            for name, locale in ({step.email: ""} | mine).items():
                if locale and not _LOCALE.fullmatch(locale):
                    said = f"{locale} is not a language; name it like {stem}.de.mjml or {stem}.pt-BR.mjml"
                    self.problems.append(Problem(f"{self.key}/{name}", 1, 1, "template", said))
                elif (source := _source(root, files[name], self.problems)) is not None:
                    survey, question = getattr(asked, "survey", None), getattr(asked, "question", None)
                    subject = step.subjects.get(locale, step.subject)
                    # A wrong subject or question is a problem of campaign.yaml, which `check_campaign` has named.
                    subject, question = (text and ("-" if check_template(text).flaws else text) for text in (subject, question))
                    self.mails.append((step.id, locale, Job(f"{self.key}/{name}", source, subject, survey, question)))
            for language in step.subjects.keys() - set(mine.values()):
                message = f"there is no template {stem}.{language}.mjml, so nobody gets this subject"
                where = (*place, "subjects", language)
                fix = nearest(language, mine.values())
                warnings.append(self.places.problem("template", message, where, key=True, fix=fix, severity="warning"))
        for name in sorted(files.keys() - used):
            warnings.append(Problem(f"{self.key}/{name}", 1, 1, "template", "no step sends this template", None, "warning"))

    def folder(self, blocks: Mapping[str, str]) -> Folder:
        content = {"campaign": self.raw, "templates": {one.path: one.source for one in self.templates}, "blocks": dict(blocks)}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
        return Folder(self.key, self.raw, self.campaign, tuple(self.templates), digest)


def _compile(drafts: Iterable[_Draft], blocks: Mapping[str, str], lifecycle: Lifecycle, problems: list[Problem]) -> None:
    """Compiles the templates of all drafts, and looks at the names in them and in the blocks."""
    mails = [(draft, step, locale, job) for draft in drafts for step, locale, job in draft.mails]
    if not mails:
        return
    shared = [Job(f"brand/{name}", source) for name, source in blocks.items()]
    done = compile_apart([*shared, *(job for *_, job in mails)], blocks)
    for job, one in zip(shared, done, strict=False):
        problems.extend(_names(job, one, lifecycle))
        problems.extend(_problem(problem) for problem in one.problems)
    for (draft, step, locale, job), one in zip(mails, done[len(shared) :], strict=True):
        draft.problems.extend(_names(job, one, lifecycle))
        draft.problems.extend(_problem(problem) for problem in one.problems)
        if one.compiled is not None:
            draft.problems.extend(_unset(job, one.compiled, [(job, one), *zip(shared, done, strict=False)], lifecycle))
            draft.templates.append(Template(step, locale, job.path, job.source, one.compiled))


def _problem(problem: Any) -> Problem:
    return Problem(problem.path, problem.line or 1, problem.column or 1, "template", problem.problem, problem.fix)


def _names(job: Job, done: Done, lifecycle: Lifecycle) -> Iterator[Problem]:
    for path, line, column in done.names:
        if (problem := path_problem(path, lifecycle.schema, lifecycle.brand, layout=True)) is not None:
            yield Problem(job.path, line, column, "name", problem.problem, problem.fix)


def _unset(job: Job, compiled: Compiled, read: Iterable[tuple[Job, Done]], lifecycle: Lifecycle) -> Iterator[Problem]:
    """What a mail shows of the brand that `lifecycle.yaml` leaves open: every message would be skipped."""
    for need in sorted(needs_of(compiled)):
        root, _, name = need.partition(".")
        if root == "brand" and getattr(lifecycle.brand, name, "") is None:
            path = ("brand", name)
            places = ((one.path, *place) for one, done in read for found, *place in done.names if found == path)
            file, line, column = next(places, (job.path, 1, 1))
            yield Problem(file, line, column, "name", f"{need} is not set in lifecycle.yaml; set it, or put it into {{% if {need} %}}")
