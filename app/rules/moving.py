"""Where somebody inside one version of a campaign goes on in another, and what makes two versions differ. Pure.

Nobody moves by publishing alone (invariant 7). Whoever publishes may have those inside moved, and then this decides where to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import SequenceMatcher
from typing import Any
from zoneinfo import ZoneInfo

from app.rules.book import Node, Version
from app.rules.definition import kind_of, walk
from app.rules.timing import at_wall_clock, days_later

_SETTING_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Target:
    """`how` is stay (it goes on waiting at the same step), go (`step` is done at once) or exit (nothing is left to do)."""

    how: str
    step: str | None


def plan(old: Version, new: Version, step: str | None) -> Target:
    """Where an enrollment that is at `step` of `old` goes on in `new`.

    The same step of the same kind: there. A step that is gone: the first one after it in the old reading order that it could still have
    come to and that still exists. None: the end.
    """
    if _same(old, new, step):
        return Target("stay", step)
    order = [one.id for _, one in walk(old.campaign.steps)]
    ahead = old.ahead(step)
    later = order[order.index(step) + 1 :] if step in order else ()
    found = next((one for one in later if one in ahead and _same(old, new, one)), None)
    return Target("go", found) if found else Target("exit", None)


def due_again(before: Node, after: Node, due_at: datetime, where: ZoneInfo) -> datetime | None:
    """When the wait that would have ended at `due_at` ends by the new words of the step; in the past where it is over already.

    None where that does not follow from the old end: then the step begins anew. Steps that do not wait by a span of their own keep
    their time. `where` is the zone whose clock counts.
    """
    if after.kind == "wait_for":
        return due_at + (after.step.wait_for.timeout - before.step.wait_for.timeout)
    if after.kind != "wait":
        return due_at
    old, new = before.step.wait, after.step.wait
    if old == new:
        return due_at
    if old.until is not None or new.until is not None:
        return None
    if old.span is not None:
        began = due_at - old.span
        return began + new.span if new.span is not None else days_later(began, new.days, new.at, where)
    local = due_at.astimezone(where)
    day = local.date() - timedelta(days=old.days)
    if new.days is None:
        return at_wall_clock(day, local.time(), where) + new.span
    return at_wall_clock(day + timedelta(days=new.days), new.at or local.time(), where)


def _same(old: Version, new: Version, step: str | None) -> bool:
    before, after = old.nodes.get(step or ""), new.nodes.get(step or "")
    return after is not None and (before is None or before.kind == after.kind)


# Differences ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """What a later definition changes: lines of text by place. `placed` are steps that stand elsewhere than before."""

    settings: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    placed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.settings or self.added or self.removed or self.changed or self.placed)

    def lines(self) -> Iterator[str]:
        """One line for each thing that changed."""
        signs = (("~", self.settings), ("+ step", self.added), ("- step", self.removed), ("~ step", self.changed))
        for sign, found in signs:
            yield from (f"{sign} {line}" for line in found)
        yield from (f"~ step {step}: stands elsewhere" for step in self.placed)


def difference(old: Mapping[str, Any] | None, new: Mapping[str, Any], mails: frozenset[str] = frozenset()) -> Difference:
    """What `new` changes against `old`, both as written in campaign.yaml; None stands for nothing. `mails` are the steps of both whose
    templates changed."""
    before, after = _steps(old or {}), _steps(new)
    known, given = (set(one) - {"steps"} for one in (old or {}, new))
    settings = [
        _change(name, (old or {}).get(name), new.get(name)) for name in sorted(known | given) if (old or {}).get(name) != new.get(name)
    ]
    shared = [step for step in after if step in before]
    changed = []
    for step in shared:
        said = _step_changes(before[step].own, after[step].own)
        if step in mails:
            said.append("its mail")
        if said:
            changed.append(f"{step}: {', '.join(said)}")
    return Difference(
        tuple(settings) if old is not None else (),
        tuple(f"{step} ({after[step].kind})" for step in after if step not in before),
        tuple(f"{step} ({before[step].kind})" for step in before if step not in after),
        tuple(changed),
        tuple(_placed(before, after, shared)),
    )


def kinds(definition: Mapping[str, Any]) -> dict[str, str]:
    """The kind of every step of a campaign.yaml as written, by id, in reading order."""
    return {step: found.kind for step, found in _steps(definition).items()}


@dataclass(frozen=True, slots=True)
class _Written:
    """A step as written, without the steps that stand in it; `within` is the step that it stands in."""

    kind: str
    own: Mapping[str, Any]
    within: str | None


def _steps(definition: Mapping[str, Any]) -> dict[str, _Written]:
    return {step["id"]: _Written(kind_of(step) or "", _alone(step), within) for within, step in _walk(definition.get("steps") or [], None)}


def _walk(steps: Sequence[Any], within: str | None) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    for step in steps:
        yield within, step
        yield from _walk(step.get("on_timeout") or [], step["id"])
        for arm in [*(step.get("branch") or []), *(step.get("split") or [])]:
            yield from _walk(arm.get("steps") or arm.get("else") or [], step["id"])


def _alone(step: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in step.items() if name not in ("id", "on_timeout")}
    for kind in ("branch", "split"):
        if kind in own:
            own[kind] = [{name: value for name, value in arm.items() if name not in ("steps", "else")} for arm in own[kind]]
    return own


def _step_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        _change(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _change(name: str, before: Any, after: Any) -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        parts = [
            _change(f"{name}.{one}", before.get(one), after.get(one))
            for one in sorted(before.keys() | after.keys())
            if before.get(one) != after.get(one)
        ]
        return ", ".join(parts)
    if before is None:
        return f"{name}: {_short(after)}"
    return f"{name}: {_short(before)} → {_short(after)}" if after is not None else f"no {name} any more ({_short(before)})"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        said = str(value).lower()
    elif isinstance(value, Mapping):
        said = "{" + ", ".join(f"{name}: {_short(one)}" for name, one in value.items()) + "}"
    elif isinstance(value, (list, tuple)):
        said = "[" + ", ".join(map(_short, value)) + "]"
    else:
        said = " ".join(str(value).split())
    return said if len(said) <= _SETTING_LENGTH else said[: _SETTING_LENGTH - 1] + "…"


def _placed(before: Mapping[str, _Written], after: Mapping[str, _Written], shared: Sequence[str]) -> Iterator[str]:
    """Steps of both that stand in another list than before, or at another place among their neighbours."""
    was = [step for step in before if step in after]
    kept: set[str] = set()
    for block in SequenceMatcher(None, was, list(shared), autojunk=False).get_matching_blocks():
        kept.update(was[block.a : block.a + block.size])
    for step in shared:
        if step not in kept or before[step].within != after[step].within:
            yield step
