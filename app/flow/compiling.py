"""Compiles the templates of a folder, and renders drafts, in a process of its own, which may die without taking ours along (X-04, X-13).

One child for all templates that are not known yet; after a crash another one for the rest, and the template that crashed it is named.
Checking, previewing, simulating and publishing all come through here.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from hashlib import blake2b
from typing import Any

from app.config import CODE
from app.errors import RenderSkip
from app.flow.compose import Compiled, Link, Mail
from app.flow.composing.marks import Problem
from app.flow.composing.templates import Path

CRASHES = 5  # as many templates may end a child before the rest is not looked at any more
KEPT = 256
PAST = {"compile": "compiled", "render": "rendered"}
WORKER = {"compile": "compiler", "render": "renderer"}


@dataclass(frozen=True, slots=True)
class Job:
    """A template to be compiled. Without a subject only the names that it reads are looked for."""

    path: str
    source: str
    subject: str | None = None
    survey: str | None = None
    question: str | None = None


@dataclass(frozen=True, slots=True)
class Rendering:
    """A draft to be rendered with `values`, which JSON can carry but for moments. `scores` is where each score of a survey leads; without a
    `pixel` there is none, and without `click`, where every tracked link would lead, links lead where they are written to."""

    path: str
    compiled: Compiled
    values: Mapping[str, Any]
    brand: Mapping[str, Any]
    why: str
    unsubscribe: str
    preferences: str
    view: str
    scores: Mapping[int, str] = field(default_factory=dict)
    pixel: str | None = None
    click: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a job came to: `compiled`, or `problems`. `names` are the paths that its source reads, as (path, line, column)."""

    compiled: Compiled | None
    problems: tuple[Problem, ...] = ()
    names: tuple[tuple[Path, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one template, but `memory` of the process: CPU seconds, bytes, seconds by the clock, and seconds for the process to begin."""

    cpu: int = 2
    memory: int = 512 * 2**20
    wall: float = 5.0
    start: float = 60.0


def compile_apart(jobs: Sequence[Job], blocks: Mapping[str, str], limits: Limits = Limits()) -> list[Done]:
    """What each of `jobs` comes to, in order; `blocks` are the files of `brand/`. Never raises for what is in a template.

    What was compiled before by this process is remembered: the same sources give the same mail.
    """
    about = blake2b(json.dumps(dict(blocks), sort_keys=True).encode(), digest_size=16).digest()
    keys = [(job, about) for job in jobs]
    found = {key: done for key in keys if (done := _known.get(key)) is not None}
    todo = list(dict.fromkeys(key for key in keys if key not in found))
    crashes = 0
    while todo:
        if crashes >= CRASHES:
            found |= {key: _failed(key[0], f"was not compiled: {CRASHES} templates before it had to be stopped") for key in todo}
            break
        orders = [{name: getattr(job, name) for name in Job.__slots__} for job, _ in todo]
        answers, ended = _run(orders, blocks, limits, "compile")
        for key, answer in zip(todo, answers, strict=False):
            found[key] = done = _done(answer)
            _known.put(key, done)
        todo = todo[len(answers) :]
        if todo:
            crashes += 1
            found[todo[0]] = _failed(todo[0][0], ended)
            todo = todo[1:]
    return [found[key] for key in keys]


def render_apart(drafts: Sequence[Rendering], limits: Limits = Limits()) -> list[Mail | RenderSkip]:
    """The mail of each draft, in order, or why a real message would be skipped: `render_failed` also for one that takes too long or ends
    the process that renders. One child for all, and another for those after a crash."""
    found: list[Mail | RenderSkip] = []
    while todo := drafts[len(found) :]:
        answers, ended = _run([_order(one) for one in todo], {}, limits, "render")
        for answer in answers:
            skip = answer.get("skip")
            found.append(RenderSkip(*skip) if skip else Mail(**{**answer["mail"], "links": tuple(answer["mail"]["links"])}))
        if len(answers) < len(todo):
            found.append(RenderSkip("render_failed", {"problem": f"{todo[len(answers)].path} {ended}"}))
    return found


def _order(one: Rendering) -> dict[str, Any]:
    return {"render": {**asdict(one), "compiled": {**asdict(one.compiled), "reads": sorted(one.compiled.reads)}}}


class _Known:
    """What was compiled last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[tuple[Job, bytes], Done] = OrderedDict()

    def get(self, key: tuple[Job, bytes]) -> Done | None:
        with self.lock:
            return self.kept.get(key)

    def put(self, key: tuple[Job, bytes], done: Done) -> None:
        with self.lock:
            self.kept[key] = done
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)


_known = _Known()


def _failed(job: Job, why: str) -> Done:
    return Done(None, (Problem(job.path, None, why),))


_BEGIN = "import sys; sys.path.insert(0, sys.argv[1]); from app.flow.composing.apart import main; main()"


def _run(jobs: Sequence[Mapping], blocks: Mapping[str, str], limits: Limits, doing: str) -> tuple[list[Mapping], str]:
    """As many answers as one child gave to the orders, and why there are no more; `doing` is what it was to do."""
    with tempfile.TemporaryFile() as orders:
        for one in (dict(blocks), *jobs):
            orders.write(json.dumps(one, default=_plain).encode() + b"\n")
        orders.seek(0)
        # Not a fork of ours, which has threads; and nothing of our environment, which has secrets.
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _BEGIN, str(CODE), str(limits.cpu), str(limits.memory)],
            stdin=orders,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONUTF8": "1"},
            cwd="/",
            start_new_session=True,
        )
    try:
        answers: list[Mapping] = []
        lines = _lines(child, limits)
        if next(lines, None) is None:
            return answers, f"was not {PAST[doing]}: the process for it could not be started"
        for line in lines:
            answers.append(json.loads(line))
            if len(answers) == len(jobs):
                return answers, ""
        return answers, _why(child, limits, doing)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]


def _lines(child: subprocess.Popen, limits: Limits) -> Iterator[bytes]:
    """The child's lines as they come, until it ends or one takes too long."""
    pipe = child.stdout.fileno()  # type: ignore[union-attr]
    rest, until = b"", time.monotonic() + limits.start
    while True:
        while b"\n" in rest:
            line, _, rest = rest.partition(b"\n")
            yield line
            until = time.monotonic() + limits.wall
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            return
        more = os.read(pipe, 2**20)
        if not more:
            child.wait()
            return
        rest += more


def _plain(value: Any) -> Any:
    """What JSON cannot carry, as templates read it again."""
    return value.isoformat() if isinstance(value, (date, datetime)) else list(value) if isinstance(value, (set, frozenset)) else str(value)


def _why(child: subprocess.Popen, limits: Limits, doing: str) -> str:
    code = child.poll()
    if code is None:
        return f"takes longer than {limits.wall:g} seconds to {doing}"
    if code == -signal.SIGXCPU:
        return f"takes more than {limits.cpu} seconds of computing to {doing}"
    if code < 0:
        return f"ends the {WORKER[doing]} ({signal.Signals(-code).name}); it is nested too deeply or too large for it"
    return f"ends the {WORKER[doing]}; it is too large for it"


def _done(answer: Mapping) -> Done:
    names = tuple((tuple(path), line, column) for path, line, column in answer["names"])
    if (made := answer.get("compiled")) is not None:
        links = tuple(Link(**link) for link in made["links"])
        return Done(Compiled(made["subject"], made["html"], made["text"], links, frozenset(made["reads"])), (), names)
    return Done(None, tuple(Problem(**one) for one in answer.get("problems", ())), names)
