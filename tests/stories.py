"""Small builders to tell a story in: a book from YAML text, events at times, a campaigns folder on disk, a database advanced.

`LIFECYCLE` is the lifecycle of every story. Times are written as offsets from `START`, a Monday morning.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

from pydantic_core import to_json
from ruamel.yaml import YAML
from sqlalchemy import Engine, select

from app.flow.advance import run_partition
from app.flow.ingest import accept
from app.flow.items import read_items
from app.flow.publish import publish
from app.models import event_pending, source
from app.queue import Bells
from app.rules.book import Book, Standing, build_book, compile_version
from app.rules.definition import Campaign
from app.rules.facts import Account, Contact, Event
from app.rules.lifecycle import Lifecycle
from app.rules.timing import duration

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
LIFECYCLE = """
timezone: UTC
brand: {name: Sample, postal_address: "1 Sample Street"}
senders: {default: {name: Sample, email: hello@example.com}}
topics: {product: {name: Product}, survey: {name: Surveys}}
roles: {admin: Admin, champion: Champion, user: User}
stages:
  - {name: onboarding, exit_when: milestone.first_value.reached}
  - {name: adoption}
milestones:
  setup_completed: {event: setup_completed}
  first_value: {event: report_shared, expected_within: 14d}
traits: {account: {plan: text, partner: boolean}, contact: {title: text}}
usage: {logins: {event: logged_in}}
"""
MAIL = '<mj-section><mj-column><mj-text>Hello {{ contact.first_name | default("there") }}</mj-text>' + (
    '<mj-button href="https://app.example.com/start">Start</mj-button></mj-column></mj-section>\n'
)
BRAND = Path(__file__).parent.parent / "campaigns" / "brand"


def yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(dedent(text))


def at(offset: str = "0s") -> datetime:
    return START + duration(offset)


def make_book(*campaigns: str, lifecycle: str = LIFECYCLE, mode: str = "live", keys: Sequence[str] = ()) -> Book:
    """A book of campaigns written as YAML, called c1, c2, … in the order given, or by `keys`; the same key again is its next version."""
    read = Lifecycle.model_validate(yaml(lifecycle))
    versions, standings = {}, []
    for number, text in enumerate(campaigns, 1):
        campaign = Campaign.model_validate({"name": "Story", "stage": "onboarding", "topic": "product", **yaml(text)})
        key = keys[number - 1] if keys else f"c{number}"
        versions[number] = compile_version(number, key, number, campaign, read.schema)
        standings.append(Standing(number, key, mode, number))
    return build_book(read, standings, versions)


def make_account(**values: Any) -> Account:
    """An account with one reachable admin called ada, in its first stage since an hour."""
    ada = Contact("ada", 1, "ada@example.com", "ada@example.com", "Ada", roles=frozenset({"admin"}), joined_at=at("-1h"))
    known = {"stage": "onboarding", "stage_entered_at": at("-1h"), "created_at": at("-1h"), "contacts": {"ada": ada}}
    return Account("acorn", 1, **{**known, **values})


def make_event(name: str, offset: str = "0s", contact: str | None = "ada", kind: str = "track", /, **properties: Any) -> Event:
    moment = at(offset)
    return Event(name, properties, moment, moment, f"{name}@{offset}", kind, contact)


def write_campaigns(root: Path, campaigns: dict[str, str], lifecycle: str = LIFECYCLE, mail: str = MAIL) -> Path:
    """A campaigns folder with these campaign.yaml texts; every template they name says `mail`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "lifecycle.yaml").write_text(dedent(lifecycle), "utf-8")
    (root / "brand").mkdir(exist_ok=True)
    for block in BRAND.glob("*.mjml"):
        (root / "brand" / block.name).write_text(block.read_text("utf-8"), "utf-8")
    for key, text in campaigns.items():
        folder = root / key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "campaign.yaml").write_text(dedent(text), "utf-8")
        for line in text.replace("{", "\n").replace(",", "\n").splitlines():
            name = line.strip().removeprefix("- ").removeprefix("email:").strip()
            if line.strip().removeprefix("- ").startswith("email:"):
                (folder / name.rstrip("}] ")).write_text(mail, "utf-8")
    return root


def publish_campaigns(engine: Engine, root: Path, campaigns: dict[str, str], now: datetime = START, **parts: str) -> None:
    write_campaigns(root, campaigns, **parts)
    with engine.begin() as conn:
        publish(conn, root, now)


def post(engine: Engine, *items: dict, now: datetime = START, name: str = "story", mark: str | None = None) -> None:
    """Posts items as a client would, all received at `now`. An item without timestamp happened then; one without id gets one."""
    given = [{"timestamp": now.isoformat(), "messageId": f"{now.isoformat()}-{number}", **item} for number, item in enumerate(items)]
    read, problems = read_items(to_json({"batch": given}), now)
    assert not problems, problems
    with engine.begin() as conn:
        ident = conn.execute(select(source.c.id).where(source.c.name == name)).scalar()
        if ident is None:
            ident = conn.execute(source.insert().values(name=name).returning(source.c.id)).scalar_one()
        accept(conn, ident, read, now, 64, mark)


def run(engine: Engine, now: datetime = START, *, batch: int = 1000) -> int:
    """Advances every partition until nothing moves any more, as at `now`. Returns the occurrences processed."""
    bells, total = Bells(None), 0
    while moved := sum(run_partition(engine, bells, partition, lambda: now, batch=batch) for partition in busy(engine, now)):
        total += moved
    return total


def busy(engine: Engine, now: datetime) -> list[int]:
    with engine.connect() as conn:
        found = set(conn.execute(select(event_pending.c.partition).distinct()).scalars())
        found |= set(
            conn.exec_driver_sql(
                "select partition from account where due_at <= %(now)s union select partition from enrollment "
                "where state = 'active' and due_at <= %(now)s",
                {"now": now},
            ).scalars()
        )
    return sorted(found)


def group(key: str = "acorn", contact: str | None = "ada", **traits: Any) -> dict:
    return {"type": "group", "groupId": key, **({"userId": contact} if contact else {}), "traits": traits}


def identify(contact: str = "ada", key: str | None = "acorn", **traits: Any) -> dict:
    return {"type": "identify", "userId": contact, "traits": traits, "context": {"groupId": key} if key else {}}


def track(event: str, contact: str | None = "ada", key: str | None = "acorn", **properties: Any) -> dict:
    who = {"userId": contact} if contact else {}
    return {"type": "track", "event": event, **who, "properties": properties, "context": {"groupId": key} if key else {}}
