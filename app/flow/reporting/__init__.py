"""A simulation as a page: one file that a marketer opens in a browser. It loads nothing, and reads without JavaScript."""

from __future__ import annotations

import calendar
from collections import Counter, defaultdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.flow import simulate
from app.flow.simulate import DONE, Changes, Simulation
from app.rules.reasons import sentence

LISTED = 2_000  # mails that are listed one by one; the numbers count all
PER_DAY = 60
HUES = (152, 28, 214, 276, 340, 190, 48, 100, 250, 8, 170, 310)  # far apart for the first campaigns, and readable in light and dark

_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def page(found: Simulation, title: str, changes: Changes | None = None) -> str:
    """The HTML of a simulation; with `changes`, what an edit changes comes first."""
    campaigns = simulate.by_campaign(found)
    hues = {row["campaign"]: HUES[number % len(HUES)] for number, row in enumerate(campaigns)}
    days = simulate.by_day(found)
    return _environment.get_template("page.html").render(
        title=title,
        found=found,
        totals=simulate.totals(found),
        campaigns=campaigns,
        others=simulate.by_others(found),
        hues=hues,
        began=found.began.astimezone(found.zone),
        last=simulate.day_of(found, found.ends - timedelta(microseconds=1)),
        months=_months(days),
        most=max((day["mails"] for day in days), default=0) or 1,
        mails=_by_day(found),
        per_day=PER_DAY,
        weeks=_weeks(days, hues),
        reasons=simulate.reasons(found),
        caps=simulate.caps(found),
        collisions=simulate.collisions(found),
        surveys=simulate.survey_load(found),
        busiest=simulate.busiest(found),
        staff=Counter((one.campaign, one.step, one.kind) for one in found.effects).most_common(),
        changes=changes,
        change_rows=changes.plain()["campaigns"] if changes else [],
        sentence=sentence,
        listed=LISTED,
        done=DONE,
    )


def _months(days: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The months of the period as weeks of seven days, Monday first; None where a day is not in the month or the period. Weeks without any
    day are left out, and months without any mail have no weeks."""
    known = {day["day"]: day for day in days}
    months = []
    for year, month in sorted({(int(day["day"][:4]), int(day["day"][5:7])) for day in days}):
        weeks = [
            [known.get(one.isoformat()) if one.month == month else None for one in week]
            for week in calendar.Calendar().monthdatescalendar(year, month)
        ]
        mails = sum(day["mails"] for week in weeks for day in week if day)
        weeks = [week for week in weeks if any(week)] if mails else []
        months.append({"name": date(year, month, 1).strftime("%B %Y"), "weeks": weeks, "mails": mails})
    return months


def _by_day(found: Simulation) -> dict[str, list[Any]]:
    """The mails of each day in the order of their times, as many as the page lists."""
    mails: dict[str, list[Any]] = defaultdict(list)
    for one in found.sent[:LISTED]:
        mails[simulate.day_of(found, one.at).isoformat()].append(one)
    return dict(mails)


def _weeks(days: list[dict[str, Any]], hues: dict[str, int]) -> dict[str, Any]:
    """The picture of mails per week: bars of coloured parts, in the units of the drawing (700 by 180)."""
    weeks: dict[date, Counter[str]] = defaultdict(Counter)
    for day in days:
        at = date.fromisoformat(day["day"])
        weeks[at - timedelta(days=at.weekday())].update(day["campaigns"])
    highest = max((sum(one.values()) for one in weeks.values()), default=0) or 1
    width = 700 / max(1, len(weeks))
    bars = []
    for number, (week, counts) in enumerate(sorted(weeks.items())):
        top = 170.0
        for key in hues:
            if counts[key]:
                height = 160 * counts[key] / highest
                top -= height
                label = f"Week of {week}: {counts[key]} of {key}"
                bars.append(
                    {"x": number * width, "y": top, "width": max(1.0, width - 2), "height": height, "campaign": key, "label": label}
                )
    return {"bars": bars, "highest": highest, "first": min(weeks, default=None), "last": max(weeks, default=None), "count": len(weeks)}
