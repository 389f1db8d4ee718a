"""A small sample customer base for `nurture up --sample`: a dozen plainly invented companies, some new today, some months old.

It is posted through the same door as any product's events, as source `sample`, so that a newcomer at once sees accounts in several
stages, mails in the outbox and health scores. Every name says that it is a sample, every address is at example.com.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from app.flow.ingest import accept
from app.flow.items import Item
from app.models import setting, source

DONE = "sample_customers"


@dataclass(frozen=True, slots=True)
class _Customer:
    """`age` and the other numbers are days before now; `logins` are sign-ins a week, `silent` is how long ago the last one was."""

    key: str
    name: str
    age: float
    people: tuple[tuple[str, str, str], ...]  # first name, role, title
    touch: str = "smb"
    zone: str = "Europe/Berlin"
    plan: str = "team"
    seats: int = 5
    revenue: float = 1200.0
    industry: str = "retail"
    setup: float | None = None
    shared: float | None = None
    feature: float | None = None
    logins: int = 0
    silent: float = 0.1


_CUSTOMERS = (
    _Customer("sample-01", "Sample Bakery 01", 0.1, (("Rosa", "admin", "Owner"), ("Emil", "user", "Baker")), industry="food"),
    _Customer("sample-02", "Sample Florist 02", 0.2, (("Iris", "admin", "Manager"),), zone="Europe/London", plan="solo", seats=1),
    _Customer("sample-03", "Sample Café 03", 1.2, (("Zoë", "champion", "Head of shop"), ("Max", "user", "Barista")), setup=0.2, logins=9),
    _Customer("sample-04", "Sample Cycles 04", 2.5, (("Nils", "admin", "Founder"),), setup=1.8, shared=0.3, logins=14, industry="sport"),
    _Customer("sample-05", "Sample Books 05", 9, (("Ada", "admin", "Owner"),), zone="America/New_York", logins=1, silent=6),
    _Customer("sample-06", "Sample Garden 06", 18, (("Flora", "champion", "Manager"),), setup=15, logins=16, industry="garden"),
    _Customer(
        "sample-07",
        "Sample Logistics 07",
        62,
        (("Otto", "admin", "Operations"), ("Mina", "champion", "Analyst"), ("Karl", "executive_sponsor", "Director")),
        touch="mid",
        plan="business",
        seats=24,
        revenue=14400,
        industry="logistics",
        setup=60,
        shared=55,
        feature=0.2,
        logins=17,
    ),
    _Customer("sample-08", "Sample Dental 08", 58, (("Lena", "admin", "Practice manager"),), setup=56, shared=50, feature=12, logins=6),
    _Customer(
        "sample-09",
        "Sample Studio 09",
        66,
        (("Yuki", "admin", "Partner"), ("Tom", "user", "Designer")),
        zone="Asia/Tokyo",
        seats=6,
        industry="design",
        setup=61,
        shared=57,
        logins=11,
    ),
    _Customer(
        "sample-10", "Sample Brewery 10", 71, (("Hans", "admin", "Brewer"),), setup=70, shared=66, logins=4, silent=27, industry="food"
    ),
    _Customer("sample-11", "Sample Travel 11", 64, (("Mara", "admin", "Owner"),), setup=40, logins=2, silent=35, industry="travel"),
    _Customer(
        "sample-12",
        "Sample Energy 12",
        80,
        (("Priya", "champion", "Programme lead"), ("Jon", "executive_sponsor", "CFO")),
        touch="high",
        zone="America/Los_Angeles",
        plan="business",
        seats=60,
        revenue=48000,
        industry="energy",
        setup=77,
        shared=70,
        feature=30,
        logins=15,
    ),
)


def load(conn: Connection, now: datetime, partitions: int) -> int:
    """Posts the sample customers, once per database. Returns how many accounts that were: 0 when they are there already."""
    marked = insert(setting).values(name=DONE, value=now.isoformat()).on_conflict_do_nothing().returning(setting.c.name)
    if conn.execute(marked).first() is None:
        return 0
    conn.execute(insert(source).values(name="sample").on_conflict_do_nothing())
    source_id = conn.execute(select(source.c.id).where(source.c.name == "sample")).scalar_one()
    items = sorted((item for customer in _CUSTOMERS for item in _items(customer, now)), key=lambda item: item.occurred_at)
    accept(conn, source_id, items, now, partitions)
    return len(_CUSTOMERS)


def _items(customer: _Customer, now: datetime) -> Iterator[Item]:
    joined = now - timedelta(days=customer.age)
    count = 0

    def item(kind: str, name: str, person: str | None, properties: dict, at: datetime) -> Item:
        nonlocal count
        count += 1
        return Item(f"{customer.key}:{count}", kind, name, customer.key, person, properties, min(at, now))

    people = [f"{customer.key}-{first.lower()}" for first, _, _ in customer.people]
    traits = {
        "name": customer.name,
        "touch": customer.touch,
        "timezone": customer.zone,
        "owner": {"name": "Sam Sample", "email": "sam.sample@example.com"},
        "seats": customer.seats,
        "created_at": joined.isoformat(),
        "renewal_date": (joined + timedelta(days=365)).isoformat(),
        "revenue": customer.revenue,
        "plan": customer.plan,
        "industry": customer.industry,
    }
    yield item("group", "group", people[0], traits, joined)
    for key, (first, role, title) in zip(people, customer.people, strict=True):
        address = f"{unicodedata.normalize('NFKD', key).encode('ascii', 'ignore').decode()}@example.com"
        named = {"email": address, "first_name": first, "last_name": "Sample", "roles": [role], "title": title}
        yield item("identify", "identify", key, named | {"timezone": customer.zone, "locale": "en"}, joined + timedelta(seconds=1))
    yield item("track", "workspace_created", people[0], {"plan": customer.plan}, joined + timedelta(seconds=2))
    for name, days in (("setup_completed", customer.setup), ("report_shared", customer.shared), ("feature_used", customer.feature)):
        if days is not None:
            properties = {"feature": "reports"} if name == "feature_used" else {}
            yield item("track", name, people[0], properties, now - timedelta(days=days))
    if customer.logins:
        pause = 7 / customer.logins
        days, turn = min(customer.age, 45.0), 0
        while days >= customer.silent:
            at, person = now - timedelta(days=days), people[turn % len(people)]
            yield item("track", "logged_in", person, {}, at)
            if turn % 2 == 0:
                yield item("track", "report_viewed", person, {"report": "weekly"}, at + timedelta(minutes=4))
            days, turn = days - pause, turn + 1
