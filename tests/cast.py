"""Builders for tests that need rows: one published campaign, accounts with contacts inside it, messages that are due.

    cast = Cast(conn, NOW)
    ada = cast.contact("ada", cast.account("acorn"))
    message = cast.message(ada)

Everything has a sensible default, ids follow from names, and each builder returns what a test asks for next.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select

from app import models
from app.rules.facts import hash_id, partition_of

LIFECYCLE = {
    "brand": {"name": "Acorn Reports", "postal_address": "1 Sample Street, Sampletown", "website": "https://www.example.com/"},
    "senders": {"default": {"name": "Acorn Reports", "email": "success@acorn.test", "reply_to": "help@acorn.test"}},
    "topics": {"product": {"name": "Product"}, "survey": {"name": "Surveys"}},
    "stages": [{"name": "onboarding"}, {"name": "adoption"}],
    "milestones": {"first_value": {"event": "report_shared"}},
    "usage": {"logins": {"event": "logged_in"}},
    "traits": {"account": {"plan": "text"}, "contact": {"title": "text"}},
}
CAMPAIGN = {
    "name": "First value",
    "stage": "onboarding",
    "topic": "product",
    "trigger": {"event": "workspace_created"},
    "exit_when": 'stage.name != "onboarding"',
    "steps": [
        {"id": "welcome", "email": "welcome.mjml", "subject": "Hello {{ contact.first_name }}"},
        {
            "id": "ask",
            "survey": "nps",
            "question": "Would you recommend us?",
            "email": "ask.mjml",
            "subject": "One question",
            "topic": "survey",
        },
    ],
}
HTML = """<html><body><p>Hello {{ contact.first_name }} of {{ account.name }}.</p><p><a href="{{ mail.link[0] }}">Open your report</a></p>
<p>{{ mail.why }} {{ brand.postal_address }} <a href="{{ mail.unsubscribe_url }}">Unsubscribe</a>
{% if mail.pixel_url %}<img src="{{ mail.pixel_url }}" alt="">{% endif %}</p></body></html>"""
TEXT = "Hello {{ contact.first_name }} of {{ account.name }}.\n{{ mail.link[0] }}\n\n{{ mail.why }}\n{{ mail.unsubscribe_url }}\n"


@dataclass(frozen=True)
class Person:
    id: int
    key: str
    account_id: int
    account_key: str
    enrollment: UUID

    @property
    def address(self) -> str:
        return f"{self.key}@{self.account_key}.test"


class Cast:
    def __init__(self, conn: Connection, now: datetime, campaign: dict[str, Any] | None = None, lifecycle: dict[str, Any] | None = None):
        self.conn, self.now = conn, now
        self._add(models.lifecycle_version, hash="1", definition={**LIFECYCLE, **(lifecycle or {})}, published_at=now)
        self.campaign_key = "onboarding/first-value"
        self.campaign_id = self._add(models.campaign, key=self.campaign_key, name="First value", mode="live")
        definition = {**CAMPAIGN, **(campaign or {})}
        self.version_id = self._add(
            models.campaign_version, campaign_id=self.campaign_id, number=1, hash="1", definition=definition, published_at=now
        )
        conn.execute(models.campaign.update().values(version_id=self.version_id))
        for step in definition["steps"]:
            if "email" in step:
                self.template(step["id"], step["subject"])
        self.partitions = conn.execute(select(models.installation.c.partitions)).scalar_one()

    @classmethod
    def of(cls, conn: Connection, now: datetime) -> Cast:
        """The builder over what another has published in this database."""
        cast = object.__new__(cls)
        cast.conn, cast.now = conn, now
        version = conn.execute(select(models.campaign_version)).one()
        cast.version_id, cast.campaign_id = version.id, version.campaign_id
        cast.partitions = conn.execute(select(models.installation.c.partitions)).scalar_one()
        return cast

    def template(self, step: str, subject: str, html: str = HTML, text: str = TEXT, locale: str = "", reads=None) -> None:
        links = [{"url": "https://app.example.com/report?of={{ account.id }}", "label": "Open your report", "track": True}]
        self.conn.execute(
            models.template.insert().values(
                version_id=self.version_id,
                step_id=step,
                locale=locale,
                path=f"{step}.mjml",
                source="",
                subject=subject,
                html=html,
                text=text,
                links=links,
                reads=reads or ["account.id", "account.name", "contact.first_name"],
            )
        )

    def account(self, key: str = "acorn", **values) -> int:
        defaults = {"name": key.title(), "stage": "onboarding", "stage_entered_at": self.now, "touch": "smb", "created_at": self.now}
        return self._add(models.account, external_id=key, partition=partition_of(key, self.partitions), **{**defaults, **values})

    def contact(self, key: str = "ada", account_id: int | None = None, *, enrolled: bool = True, **values) -> Person:
        """A member of the account, in the campaign unless told otherwise."""
        account_id = account_id or self.account()
        account_key = self.conn.execute(select(models.account.c.external_id).where(models.account.c.id == account_id)).scalar_one()
        address = f"{key}@{account_key}.test"
        row = {"address": address, "person": address, "first_name": key.title(), "created_at": self.now, **values}
        contact_id = self._add(models.contact, external_id=key, **row)
        self.conn.execute(
            models.membership.insert().values(account_id=account_id, contact_id=contact_id, roles=["admin"], joined_at=self.now)
        )
        person = Person(contact_id, key, account_id, account_key, hash_id("enrollment", account_key, key))
        if enrolled:
            self.conn.execute(
                models.enrollment.insert().values(
                    id=person.enrollment,
                    campaign_id=self.campaign_id,
                    version_id=self.version_id,
                    account_id=account_id,
                    contact_id=contact_id,
                    partition=partition_of(account_key, self.partitions),
                    state="active",
                    step_id="welcome",
                    entry={"name": "workspace_created", "properties": {}, "occurred_at": self.now.isoformat(), "message_id": key},
                    entered_at=self.now,
                )
            )
        return person

    def message(self, person: Person, step: str = "welcome", occurrence: int = 1, **values) -> UUID:
        """A message to the person, due now."""
        message_id = hash_id("message", person.enrollment, step, occurrence)
        kind = "survey" if step == "ask" else "email"
        defaults = {
            "kind": kind,
            "topic": "survey" if kind == "survey" else "product",
            "priority": 50,
            "created_at": self.now,
            "due_at": self.now,
            "expires_at": self.now + timedelta(days=3),
            "state": "due",
        }
        self.conn.execute(
            models.message.insert().values(
                id=message_id,
                enrollment_id=person.enrollment,
                campaign_id=self.campaign_id,
                version_id=self.version_id,
                step_id=step,
                occurrence=occurrence,
                account_id=person.account_id,
                contact_id=person.id,
                partition=partition_of(person.account_key, self.partitions),
                **{**defaults, **values},
            )
        )
        return message_id

    def effect(self, person: Person, kind: str = "alert", to: str = "owner", step: str = "tell", occurrence: int = 1, **values) -> UUID:
        """An alert or a webhook about the person, due now."""
        effect_id = hash_id("effect", person.enrollment, step, occurrence, person.key)
        about = {"account": person.account_key, "account_name": person.account_key.title(), "contact": person.key}
        about |= {"contact_name": person.key.title(), "campaign": "onboarding/first-value", "campaign_name": "First value", "step": step}
        owner = {"name": "Olu Owner", "email": "olu@acorn.test"}
        alert = {"to": to, "owner": owner, "subject": "Acorn: Acorn is stuck", "text": "Acorn is stuck", "about": about}
        body = {"type": "campaign.step", "timestamp": self.now.isoformat(), "data": {"step": step, "values": {"n": 1}}}
        defaults = {"payload": alert if kind == "alert" else {"to": to, "body": body}, "state": "due", "due_at": self.now}
        self.conn.execute(
            models.effect.insert().values(
                id=effect_id,
                kind=kind,
                enrollment_id=person.enrollment,
                campaign_id=self.campaign_id,
                version_id=self.version_id,
                step_id=step,
                occurrence=occurrence,
                account_id=person.account_id,
                contact_id=person.id,
                created_at=self.now,
                **{**defaults, **values},
            )
        )
        return effect_id

    def messages(self, count: int) -> list[UUID]:
        """One due message each to so many contacts of so many accounts."""
        return [self.message(self.contact(f"person-{number}", self.account(f"account-{number}"))) for number in range(count)]

    def _add(self, table, **values) -> int:
        return self.conn.execute(table.insert().values(**values).returning(table.c.id)).scalar_one()
