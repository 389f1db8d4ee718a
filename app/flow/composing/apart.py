"""The other side of `flow/compiling.py`: a process that compiles and renders templates nobody has published, so that one which ends the
MJML or CSS library, or never ends, ends this process and not ours (X-04, X-13).

Reads jobs from standard input and answers each with one line; knows no database, no setting and no secret.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import sys
from dataclasses import asdict
from typing import Any

from app.errors import RenderSkip, TemplateError
from app.flow.compose import Addresses, Compiled, Composer, Link, compile_mail
from app.flow.composing.templates import check


def main() -> None:
    """Compiles or renders the jobs on standard input, in order. Arguments: CPU seconds for each, bytes of memory for all."""
    seconds, memory = int(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints does not get among the answers
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_AS, memory)
    print("ready", file=answers, flush=True)
    blocks = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + seconds)
        job = json.loads(line)
        print(json.dumps(rendered(job["render"]) if "render" in job else answer(job, blocks)), file=answers, flush=True)


def answer(job: dict[str, Any], blocks: dict[str, str]) -> dict[str, Any]:
    """What one job comes to: `compiled` or `problems`, and the `names` that its source reads, each with its place."""
    checked = check(job["source"])
    names = [[list(path), *place] for path, place in checked.places.items()]
    if job["subject"] is None:
        return {"names": names}
    if checked.flaws:  # compiling would find the same, a second time
        return {"names": names, "problems": [{"path": job["path"], **asdict(flaw)} for flaw in checked.flaws]}
    try:
        compiled = compile_mail(
            job["source"], job["subject"], path=job["path"], blocks=blocks, survey=job["survey"], question=job["question"]
        )
    except TemplateError as error:
        return {"names": names, "problems": [asdict(one) for one in error.problems]}
    except MemoryError:
        return {"names": names, "problems": [{"path": job["path"], "line": None, "problem": "takes too much memory to compile"}]}
    return {"names": names, "compiled": {**asdict(compiled), "reads": sorted(compiled.reads)}}


def rendered(job: dict[str, Any]) -> dict[str, Any]:
    """The `mail` of one draft, or the reason and the evidence for which it would be a `skip`."""
    made, scores, click = job["compiled"], job["scores"], job["click"]
    compiled = Compiled(made["subject"], made["html"], made["text"], tuple(Link(**one) for one in made["links"]), frozenset(made["reads"]))
    places = {name: job[name] for name in ("unsubscribe", "preferences", "view")}
    clicks, score = (lambda number: click) if click else None, (lambda score: scores[str(score)]) if scores else None
    addresses = Addresses(**places, pixel=job["pixel"], clicks=clicks, score=score)
    try:
        return {"mail": asdict(Composer().render(job["path"], compiled, job["values"], addresses, job["brand"], job["why"]))}
    except RenderSkip as skip:
        return {"skip": [skip.reason, skip.evidence]}
    except MemoryError:
        return {"skip": ["render_failed", {"problem": "takes too much memory to render"}]}


def _limit(what: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit, or a lower one already
        resource.setrlimit(what, (value, resource.getrlimit(what)[1]))
