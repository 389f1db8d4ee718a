"""Plainly invented customers and what they do, as a file of events: the same for the same numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BEGINS = datetime(2027, 3, 1, 8, 0, tzinfo=UTC)
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Tokyo", "Europe/London", None)
NAMES = ("Sample Bakery", "Sample Florist", "Sample Café", "Sample <b>Books</b>", 'Sample "Quoted" & Sons')


def write_events(path: Path, accounts: int = 60, days: int = 365, each: int = 60, seed: int = 1) -> Path:
    """Writes calls of Segment's API, one a line, in the order of their times."""
    calls = [call for number in range(accounts) for call in _customer(number, days, each, random.Random(f"{seed}:{number}"))]
    calls.sort(key=lambda call: call["timestamp"])
    path.write_text("".join(json.dumps(call) + "\n" for call in calls), "utf-8")
    return path


def _customer(number: int, days: int, each: int, dice: random.Random) -> Iterator[dict[str, Any]]:
    key, joined = f"sample-{number:03}", BEGINS + timedelta(minutes=dice.randrange(days * 700))
    count = 0

    def call(kind: str, at: datetime, **more: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"type": kind, "messageId": f"{key}:{count}", "timestamp": at.isoformat(), "context": {"groupId": key}, **more}

    traits = {
        "name": f"{NAMES[number % len(NAMES)]} {number:03}",
        "touch": dice.choice(("smb", "smb", "smb", "mid", "high")),
        "seats": dice.choice((3, 5, 10, 25)),
        "plan": dice.choice(("solo", "team", "business")),
        "created_at": joined.isoformat(),
        "renewal_date": (joined + timedelta(days=dice.choice((120, 200, 365)))).isoformat(),
        "owner": {"name": "Sam Sample", "email": "sam.sample@example.com"},
    }
    if (zone := ZONES[number % len(ZONES)]) is not None:
        traits["timezone"] = zone
    people = [f"{key}-{index}" for index in range(1 + number % 3)]
    yield call("group", joined, userId=people[0], groupId=key, traits=traits)
    for index, person in enumerate(people):
        named = {"email": f"{person}@example.com", "roles": [("admin", "champion", "user")[index]]}
        if dice.random() < 0.9:
            named["first_name"] = f"Person{number}"
        yield call("identify", joined + timedelta(seconds=1 + index), userId=person, traits=named)
    yield call("track", joined + timedelta(minutes=2), userId=people[0], event="workspace_created", properties={"plan": traits["plan"]})
    for name, share, within in (("setup_completed", 0.7, 9), ("report_shared", 0.6, 25), ("report_scheduled", 0.3, 90)):
        if dice.random() < share:
            yield call("track", joined + timedelta(hours=dice.randrange(2, within * 24)), userId=dice.choice(people), event=name)
    silent_after = dice.choice((days, days, 90, 30))
    for _ in range(each):
        at = joined + timedelta(minutes=dice.randrange(silent_after * 1440))
        name = dice.choices(("logged_in", "report_viewed", "feature_used"), (6, 3, 1))[0]
        properties = {"feature": dice.choice(("reports", "alerts"))} if name == "feature_used" else {}
        yield call("track", at, userId=dice.choice(people), event=name, properties=properties)
