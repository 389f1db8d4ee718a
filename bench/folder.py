"""Campaigns folders for benchmarks: any number of campaigns, of every kind of trigger where asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine

from app.config import CODE
from app.flow import publish

MILESTONES = 40  # events reach the first ten of them, most campaigns listen to the others
LIFECYCLE = f"""
brand: {{name: Sample, postal_address: "1 Sample Street"}}
senders: {{default: {{name: Sample, email: hello@example.com}}}}
topics: {{product: {{name: Product}}}}
roles: {{admin: Admin, champion: Champion, executive_sponsor: Sponsor, user: User}}
stages:
  - {{name: onboarding, at_most: 300d}}
  - {{name: adoption, at_most: 300d}}
  - {{name: expansion, at_most: 300d}}
  - {{name: renewal, at_most: 300d}}
health:
  groups: [{{name: engagement, weight: 1, measures: [{{name: logins, metric: usage.logins.last_30d, worst: 0, best: 20}}]}}]
milestones:
  signed: {{event: signed}}
{"".join(f"  m{n}: {{event: reached_{n}{', expected_within: 90d' if n > 9 else ''}}}" + chr(10) for n in range(MILESTONES))}
traits: {{account: {{plan: text, industry: text, trial_ends: date}}, contact: {{certified_until: date}}}}
usage: {{logins: {{event: logged_in}}, reports: {{event: report_viewed}}, features: {{event: feature_used}}}}
"""
CAMPAIGN = """
name: Campaign {number}
stage: onboarding
topic: product
trigger: {trigger}
audience: {audience}
recipients: {{roles: [admin]}}
{goal}exit_when: {exit_when}
steps:
  - {{id: mail, email: mail.mjml, subject: Hello}}
  - {{id: pause, wait: 400d}}
"""
MAIL = "<mj-section><mj-column><mj-text>Hello {{ contact.first_name | default('there') }}</mj-text></mj-column></mj-section>"
EXIT = 'stage.name == "adoption" or account.revenue > 1000000'

AUDIENCES = (
    'account.touch == "smb"',
    'account.touch != "high" and account.traits.plan in ["pro", "team"]',
    'stage.name == "onboarding" and account.traits.industry is not missing',
    "account.seats >= 5 and account.revenue < 1000000",
    'account.traits.plan != "free" and account.name is not missing',
)
EXITS = (
    EXIT,
    'stage.name == "renewal"',
    'account.traits.plan == "free"',
    "milestone.m39.reached or account.seats < 2",
    "usage.logins.last_30d > 100000",
    "account.renewal_date | days_until < 30",
    'health.band == "red" or account.revenue > 1000000',
    "milestone.m38.overdue",
    'contact.traits.certified_until is not missing and stage.name == "adoption"',
    'account.touch == "high"',
)


def waiting() -> dict[str, str]:
    """Campaigns whose step `pause` is over at a time: a mail follows, a wait_for has waited in vain, a branch chooses."""
    more = {"number": 0, "trigger": "{event: began}", "audience": AUDIENCES[0], "goal": _goal(1), "exit_when": EXIT}
    steps = {
        "mail": """
  - {id: pause, wait: 2d}
  - {id: mail, email: mail.mjml, subject: Hello}
  - {id: after, wait: 2d}
""",
        "in-vain": """
  - {id: pause, wait_for: {milestone: m20, timeout: 2d}, on_timeout: [{id: mail, email: mail.mjml, subject: Hello}]}
  - {id: after, wait: 2d}
""",
        "branch": """
  - {id: pause, wait: 2d}
  - id: choose
    branch:
      - when: usage.logins.last_7d > 10
        steps: [{id: after, wait: 2d}]
      - else: [{id: mail, email: mail.mjml, subject: Hello}]
""",
    }
    head = CAMPAIGN.format(**more).partition("steps:")[0]
    return {key: f"{head}steps:{text}" for key, text in steps.items()}


def plain(number: int) -> dict[str, str]:
    """Campaigns that start by an event of their own, `start_<n>`."""
    return {
        f"c{n}": CAMPAIGN.format(number=n, trigger=f"{{event: start_{n}}}", audience=AUDIENCES[0], goal="", exit_when=EXIT)
        for n in range(number)
    }


def mixed(number: int) -> dict[str, str]:
    """Campaigns with every kind of trigger, audiences, goals and exits of several kinds. The first twenty are the same in any number; of
    twenty, eight start by an event of their own, `start_<n>`, and two by the first ten milestones and what follows from them."""
    return {
        f"c{n}": CAMPAIGN.format(
            number=n, trigger=_trigger(n), audience=AUDIENCES[n % len(AUDIENCES)], goal=_goal(n), exit_when=EXITS[n // 2 % len(EXITS)]
        )
        for n in range(number)
    }


def starts(written: Mapping[str, str]) -> list[str]:
    """The events that campaigns start by, but those of the first two, in which everybody is already."""
    return [f"start_{key[1:]}" for key, text in written.items() if key not in ("c0", "c1") and f"{{event: start_{key[1:]}}}" in text]


def put_in_force(engine: Engine, now: datetime, written: Mapping[str, str]) -> list[str]:
    """Publishes the campaigns `written`. Returns their keys. Commits."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "lifecycle.yaml").write_text(LIFECYCLE)
        (root / "brand").mkdir()
        for block in (CODE / "campaigns" / "brand").glob("*.mjml"):
            (root / "brand" / block.name).write_text(block.read_text())
        for key, campaign in written.items():
            place = root / "bench" / key
            place.mkdir(parents=True)
            (place / "campaign.yaml").write_text(campaign)
            (place / "mail.mjml").write_text(MAIL)
        with engine.begin() as conn:
            publish.publish(conn, root, now)
    return [f"bench/{key}" for key in written]


def _trigger(n: int) -> str:
    """Of five campaigns two start by an event; the others by the twelve kinds of what the engine itself says, each value once or twice.

    What the mix of events brings about (milestones m0 to m9) starts the same campaigns in any number of them: the further ones are
    bystanders, as most campaigns are of most events.
    """
    place, turn = n % 5, n // 5
    if place < 2:
        return f"{{event: start_{n}}}"
    kind, k = _KINDS[(place - 2) * 4 + turn % 4], turn // 4
    return "{" + kind(k) + "}"


_STAGES = ("adoption", "expansion", "renewal")
_METRICS = ("logins", "reports", "features")
_ROLES = ("champion", "executive_sponsor", "user", "admin")
_OFFSETS = (-180, -120, -90, -75, -60, -45, -30, -14, -7, -1, 7, 30)
_FIELDS = ("account.renewal_date", "account.traits.trial_ends", "contact.traits.certified_until")
_KINDS = (
    lambda k: f"milestone: m{0 if k == 0 else 10 + k}",
    lambda k: f"milestone_overdue: m{10 + k}",
    lambda k: f"stage: {_STAGES[k % 3]}" + (f", where: account.seats > {k}" if k > 2 else ""),
    lambda k: f"stage_overdue: {_STAGES[k % 3]}" + (f", where: account.seats > {k}" if k > 2 else ""),
    lambda k: "health: red" if k == 0 else f"health: {{{'below' if k % 2 else 'above'}: {20 + 3 * k}}}",
    lambda k: f"date: {{field: {_FIELDS[k // len(_OFFSETS) % 3]}, offset: {_OFFSETS[k % len(_OFFSETS)]}d}}",
    lambda k: f"usage: {{metric: {_METRICS[k % 3]}, {('drop', 'rise')[k // 3 % 2]}: {30 + 10 * (k // 6)}%, window: {28 - k % 2 * 21}d}}",
    lambda k: f"utilization: {{{'above' if k % 2 else 'below'}: {10 + 3 * k}%}}",
    lambda k: f"inactive: {{role: {_ROLES[k % 4]}, days: {(7, 14, 21, 30, 45, 60, 90)[k // 4 % 7]}}}",
    lambda k: f"role_vacant: {_ROLES[k % 4]}" + (f", where: account.seats > {k}" if k > 3 else ""),
    lambda k: "contact_added: " + ("true" if k == 0 else f"{{roles: [{_ROLES[k % 4]}]}}, where: account.seats > {k}"),
    lambda k: f"campaign: {{campaign: bench/c{k}, result: {('finished', 'goal', 'exited', 'ended')[k % 4]}}}",
)


def _goal(n: int) -> str:
    goals = ("", f"{{milestone: m{10 + n % 30}, within: 60d}}", "{stage: renewal}", "{event: upgraded, then: continue}")
    return f"goal: {goals[n % 4]}\n" if n % 4 else ""
