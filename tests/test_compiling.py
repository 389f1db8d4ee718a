"""Compiling in a process apart: what ends or stalls it is named, the rest is compiled, and ours lives (X-04, X-13)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.config import CODE
from app.errors import RenderSkip
from app.flow.check import read
from app.flow.compiling import Done, Job, Limits, Rendering, compile_apart, render_apart
from app.flow.compose import Addresses, Composer, compile_mail
from tests.mails import ROOT

BLOCKS = {path.name: path.read_text("utf-8") for path in (ROOT / "campaigns/brand").glob("*.mjml")}
BRAND = read(ROOT / "campaigns").lifecycle.brand.model_dump()
NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
PATIENT = Limits(cpu=30, wall=60.0)


def source(number: int, content: str = "x", size: int = 1) -> str:
    one = f"<mj-section><mj-column><mj-text>{content} {number}</mj-text></mj-column></mj-section>\n"
    return one * size


def jobs(count: int, mark: str, size: int = 1) -> list[Job]:
    """So many templates that nobody has compiled before."""
    return [Job(f"x/y/{number}.mjml", source(number, mark, size), "Hello") for number in range(count)]


def children() -> set[int]:
    """The ids of the compilers that this process has started."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            ours = entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
            if ours and b"composing.apart" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def begun(child: int) -> bool:
    """Whether the child has read its first order, which it does when it is ready."""
    try:
        return Path(f"/proc/{child}/fdinfo/0").read_text().split()[1] != "0"
    except OSError:
        return True


def test_what_comes_back_is_what_compiling_here_gives():
    plain = Job(
        "a/b/c.mjml", source(1, '<a href="https://a.example/{{ account.name | urlencode }}">Straße {{ contact.first_name }}</a>'), "Hé"
    )
    survey = Job("a/b/s.mjml", source(2), "Hi {{ account.name }}", "csat", "How was it?")
    wrong = Job("a/b/w.mjml", source(3, "\n<b>{{ x }}</b>"), "Hello")
    names = Job("brand/n.mjml", source(4, "{{ brand.nmae }}\n{% if contact.first_name %}x{% endif %}"))
    first, second, third, fourth = compile_apart([plain, survey, wrong, names], BLOCKS)
    assert first.compiled == compile_mail(plain.source, "Hé", path=plain.path, blocks=BLOCKS)
    assert second.compiled == compile_mail(survey.source, survey.subject, path="", blocks=BLOCKS, survey="csat", question="How was it?")
    assert third.compiled is None and [(one.line, one.column, one.problem[:15]) for one in third.problems] == [(2, 7, "x is not a name")]
    assert fourth == Done(None, (), ((("brand", "nmae"), 1, 36), (("contact", "first_name"), 2, 7)))


def test_the_same_sources_are_compiled_once():
    mine = jobs(20, "once")
    compile_apart(mine, BLOCKS)
    begun = time.process_time()
    assert all(one.compiled for one in compile_apart([*mine, *mine], BLOCKS))
    assert time.process_time() - begun < 0.2
    changed = {**BLOCKS, "layout.mjml": BLOCKS["layout.mjml"].replace("<mj-body", "<mj-body  ")}
    assert compile_apart(mine[:1], changed)[0].compiled is not None


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the child in /proc")
@pytest.mark.parametrize(
    ("number", "limits", "said"),
    [(signal.SIGSEGV, PATIENT, "ends the compiler (SIGSEGV)"), (signal.SIGSTOP, Limits(cpu=30, wall=2.0), "takes longer than 2 seconds")],
)
def test_a_template_that_ends_or_stalls_the_child_is_named_and_the_rest_compiled(number, limits, said):
    before, mine = children(), jobs(40, f"crash {number}", size=40)
    done: list[Done] = []
    thread = threading.Thread(target=lambda: done.extend(compile_apart(mine, BLOCKS, limits)))
    thread.start()
    until = time.monotonic() + 30
    while not (found := children() - before) or not begun(next(iter(found))):
        assert time.monotonic() < until
        os.sched_yield()
    os.kill(found.pop(), number)
    thread.join(120)
    failed = [(job, one) for job, one in zip(mine, done, strict=True) if one.compiled is None]
    assert len(failed) == 1
    job, one = failed[0]
    assert one.problems[0].path == job.path and said in one.problems[0].problem
    assert children() == before


def test_too_much_computing_ends_the_child_and_not_us():
    """No template is known that takes two seconds: the lint bounds them. With none at all, whichever is at work when a second is full."""
    found = compile_apart(jobs(200, "slow", size=30), BLOCKS, Limits(cpu=0, wall=60.0))
    said = [one.problems[0].problem for one in found if one.problems]
    assert said and said[0] == "takes more than 0 seconds of computing to compile"


def test_many_crashes_do_not_take_for_ever():
    found = compile_apart(jobs(40, "all"), BLOCKS, Limits(wall=0.0))
    said = [one.problems[0].problem for one in found]
    assert sum("takes longer" in one for one in said) == 5 and sum("was not compiled" in one for one in said) == 35
    assert all(one.compiled for one in compile_apart(jobs(40, "all"), BLOCKS, PATIENT)), "a failure is not remembered"


def test_it_works_from_anywhere_and_tells_the_child_nothing(tmp_path, monkeypatch):
    place = tmp_path / "a folder with spaces"
    place.mkdir()
    (place / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("NURTURE_SECRET_KEY", "secret")
    assert compile_apart(jobs(1, "anywhere"), BLOCKS)[0].compiled is not None


def test_a_copy_of_the_engine_in_a_folder_with_spaces_compiles(tmp_path):
    place = tmp_path / "a copy of it"
    place.mkdir()
    (place / "app").symlink_to(CODE / "app")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom app import config; from pathlib import Path\n"
        "config.CODE = Path(sys.argv[1])\nfrom app.flow.compiling import Job, compile_apart\n"
        "print(compile_apart([Job('x', '<mj-x />', 'Hello')], {})[0].problems[0].problem)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(place)], capture_output=True, text=True, timeout=60, cwd="/", check=True)
    assert done.stdout == "MJML has no <mj-x>\n"


def drafts(*sources: str, values: dict | None = None) -> list[Rendering]:
    made = [
        compile_mail(source(0, one), "Hello {{ account.name }}", path=f"{number}.mjml", blocks=BLOCKS) for number, one in enumerate(sources)
    ]
    facts = values or {"account": {"name": "Straße & Söhne", "traits": {"since": NOW, "list": ["x"] * 100}}}
    places = {"unsubscribe": "http://a.example/u", "preferences": "http://a.example/p", "view": "http://a.example/v"}
    return [Rendering(f"{number}.mjml", one, facts, BRAND, "Because.", **places) for number, one in enumerate(made)]


def test_what_is_rendered_apart_is_what_rendering_here_gives():
    many = drafts("Since {{ account.traits.since | date }}", "{{ account.traits.list | join }}", "{{ contact.first_name }}")
    addresses = Addresses("http://a.example/u", "http://a.example/p", "http://a.example/v", None, None)
    before = children()
    *mails, skip = render_apart(many)
    assert children() == before
    assert mails == [Composer().render(one.path, one.compiled, one.values, addresses, BRAND, "Because.") for one in many[:2]]
    assert isinstance(skip, RenderSkip) and (skip.reason, skip.evidence["path"]) == ("missing_value", "contact.first_name")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the child in /proc")
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGSEGV, "ends the renderer (SIGSEGV)"), (signal.SIGSTOP, "takes longer than 2 seconds to render")]
)
def test_a_draft_that_ends_or_stalls_the_renderer_is_named_and_the_rest_rendered(number, said):
    busy = "{% for one in account.traits.list %}{% for two in account.traits.list %}{{ one }}{% endfor %}{% endfor %}"
    many = drafts(busy) * 60
    before, found = children(), []
    thread = threading.Thread(target=lambda: found.extend(render_apart(many, Limits(cpu=30, wall=2.0))))
    thread.start()
    until = time.monotonic() + 30
    while not (started := children() - before) or not begun(next(iter(started))):
        assert time.monotonic() < until
        os.sched_yield()
    os.kill(started.pop(), number)
    thread.join(120)
    failed = [one for one in found if isinstance(one, RenderSkip)]
    assert len(found) == 60 and len(failed) == 1
    assert failed[0].reason == "render_failed" and said in failed[0].evidence["problem"]
    assert len({one.subject for one in found if not isinstance(one, RenderSkip)}) == 1
