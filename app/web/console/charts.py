"""Charts as inline SVG: no script, colours by class (light and dark), and always a text that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT = 360, 150
_TOP, _BOTTOM = 18, 22


def columns(
    title: str, names: Sequence[str], values: Sequence[int], inner: Sequence[int] | None = None, tones: Sequence[str] = ()
) -> Markup:
    """One column per name with its value above it; `inner` draws a darker part from the ground up; `tones` are classes per column."""
    most = max([*values, 1])
    slot = WIDTH / max(len(names), 1)
    width = min(34.0, slot * 0.68)
    full = HEIGHT - _TOP - _BOTTOM
    parts = [Markup('<line class="axis" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, HEIGHT - _BOTTOM, HEIGHT - _BOTTOM)]
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        middle = slot * (index + 0.5)
        height = full * value / most
        top = HEIGHT - _BOTTOM - height
        kind = tones[index] if tones else "plain"
        parts.append(_rect(f"bar {kind}", middle - width / 2, top, width, height))
        if inner and inner[index]:
            part = full * inner[index] / most
            parts.append(_rect("bar inner", middle - width / 2, HEIGHT - _BOTTOM - part, width, part))
        if value:
            parts.append(_text("value", middle, top - 5, f"{value:,}"))
        parts.append(_text("name", middle, HEIGHT - 6, name))
    spoken = ", ".join(f"{name}: {value}" for name, value in zip(names, values, strict=True))
    return _svg(title, spoken, WIDTH, HEIGHT, parts)


def share(part: float, whole: float, tone: str = "plain") -> Markup:
    """A thin bar: `part` filled of `whole` possible, on a track of 0 to 100. Decoration beside a number that says it."""
    part, whole = max(0.0, min(100.0, part)), max(0.0, min(100.0, whole))
    return Markup(
        '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/><rect class="whole" width="{:.2f}" height="8"/>'
        '<rect class="bar {}" width="{:.2f}" height="8"/></svg>'
    ).format(whole, tone, part)


def line(title: str, points: Sequence[tuple[datetime, float]], until: datetime, days: int = 90) -> Markup:
    """Scores (0 to 100) over the last `days` days as steps, over the three bands; each score holds until the next."""
    since = until - timedelta(days=days)
    height, left = 130, 26
    wide = WIDTH - left - 4

    def x(at: datetime) -> float:
        return left + wide * max(0.0, min(1.0, (at - since) / (until - since)))

    def y(score: float) -> float:
        return 6 + (height - 26) * (1 - score / 100)

    parts = [_rect(f"band {band}", left, y(high), wide, y(low) - y(high)) for band, low, high in _BANDS]
    for mark in (0, 60, 80, 100):
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, WIDTH - 4, y(mark), y(mark)))
        parts.append(Markup('<text class="name end" x="{}" y="{:.1f}">{}</text>').format(left - 5, y(mark) + 4, mark))
    path, last = [], None
    for at, score in points:
        path.append(f"{x(at):.1f},{y(score):.1f}" if last is None else f"{x(at):.1f},{y(last):.1f} {x(at):.1f},{y(score):.1f}")
        last = score
    if last is not None:
        path.append(f"{x(until):.1f},{y(last):.1f}")
        parts.append(Markup('<polyline class="line" points="{}"/>').format(" ".join(path)))
        parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(x(until) - 1, y(last)))
    parts.append(Markup('<text class="name" x="{}" y="{}">{}</text>').format(left, height - 4, f"{since:%d %b}"))
    parts.append(Markup('<text class="name end" x="{}" y="{}">{}</text>').format(WIDTH - 4, height - 4, f"{until:%d %b}"))
    scores = [score for _, score in points]
    spoken = f"from {scores[0]:.0f} to {scores[-1]:.0f}, lowest {min(scores):.0f}, highest {max(scores):.0f}" if scores else "no score yet"
    return _svg(title, spoken, WIDTH, height, parts)


_BANDS = (("green", 80.0, 100.0), ("yellow", 60.0, 80.0), ("red", 0.0, 60.0))


def _svg(title: str, spoken: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}. {}.">{}</svg>').format(
        width, height, title, spoken, Markup("").join(parts)
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>').format(kind, x, y, width, height)


def _text(kind: str, x: float, y: float, text: Any) -> Markup:
    return Markup('<text class="{} middle" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)
