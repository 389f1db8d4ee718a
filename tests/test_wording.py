"""What alerts, tasks and webhooks say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from app.flow.wording import TEXT_LIMIT, fill, payload, task
from app.rules.facts import NewEffect
from tests.stories import make_account

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
VALUES = {
    "account": {"name": "Acorn", "traits": {"items": ["a", "b"], "count": 3, "word": "x"}},
    "contact": {"first_name": "Ada\r\nBcc: all@example.com"},
    "now": NOW,
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("No tags at all", "No tags at all"),
        ("{{ account.name }} has {{ account.seats }} seats", "Acorn has – seats"),
        ("{{ account.seats | default('no') }} seats", "no seats"),
        ("{{ account.owner.name | upper }}!", "–!"),
        ("{{ account.seats + 3 }}, {{ account.traits.count - 1 }}, {{ -account.seats }}", "–, 2, –"),
        ("{{ account.seats ~ ' of ' ~ account.traits.count }}", "– of 3"),
        ("{{ account.traits.count / 0 }} of {{ account.name }}", "– of Acorn"),
        ("{{ account.traits.word - 1 }} of {{ account.name }}", "– of Acorn"),
        ("{{ account.traits }} of {{ account.name }}", "– of Acorn"),
        ("{% if account.seats %}seats{% else %}none{% endif %}", "none"),
        ("{% for one in account.traits.items %}{{ one }};{% endfor %}{% for one in account.gone %}x{% endfor %}", "a;b;"),
        ("{{ account.renewal_date | days_until }} days", "– days"),
        ("{{ contact.first_name }} left", "Ada Bcc: all@example.com left"),
        ("two\nlines", "two\nlines"),
        ("{{ leave() }} still told", "– still told"),
        ("{% set x = 9 ** 9 ** 9 %}still told", "still told"),
        ("{{ account.name", "{{ account.name"),
    ],
)
def test_tags_are_filled_and_holes_are_dashes(text, said):
    assert fill(text, VALUES) == said


@given(st.text(max_size=200), st.dictionaries(st.sampled_from(["account", "contact", "now"]), st.text(max_size=20)))
def test_any_text_can_be_said_and_stored(text, values):
    said = fill("{{ account }}" + text, values)
    assert len(said) <= TEXT_LIMIT
    assert "\\u0000" not in to_json(said).decode()


def test_an_alert_says_to_whom_what_and_about_whom():
    alert = effect("alert", {"to": "owner", "text": "{{ account.name }} is stuck\nAt setup"}, contact="ada")
    account = make_account(name="Acorn", owner_name="Olu Owner", owner_email="olu@example.com")
    made = payload(alert, account, "First value")
    assert made["to"] == "owner"
    assert made["owner"] == {"name": "Olu Owner", "email": "olu@example.com"}
    assert made["subject"] == "Acorn is stuck"
    assert payload(effect("alert", {"to": "owner", "text": "Stuck\nAt setup"}), account, "First value")["subject"] == "Acorn: Stuck"
    assert made["text"] == "Acorn is stuck\nAt setup"
    assert made["about"] == {
        "account": "acorn",
        "account_name": "Acorn",
        "contact": "ada",
        "contact_name": "Ada",
        "campaign": "onboarding/first-value",
        "campaign_name": "First value",
        "step": "tell",
    }


def test_a_webhook_keeps_the_kinds_of_sole_tags():
    data = {
        "count": "{{ account.traits.count }}",
        "seats": "{{ account.seats }}",
        "when": "{{ now.date }}",
        "said": "{{ account.name }}!",
        "n": 1,
    }
    made = payload(effect("webhook", {"to": "crm", "data": data}, contact="ada"), make_account(name="Acorn"), "First value")
    body = made["body"]
    assert (made["to"], body["type"], body["timestamp"]) == ("crm", "campaign.step", "2026-03-02T09:00:00+00:00")
    assert body["data"]["values"] == {"count": 3, "seats": None, "when": None, "said": "Acorn!", "n": 1}
    assert body["data"]["account"]["id"] == "acorn"
    assert body["data"]["contact"] == {"id": "ada", "email": "ada@example.com", "first_name": "Ada", "last_name": None}
    assert body["data"]["campaign"] == {"key": "onboarding/first-value", "name": "First value"}
    assert (body["data"]["step"], body["data"]["occurrence"], body["data"]["enrollment"]) == ("tell", 1, str(UUID(int=2)))
    to_json(made)


def test_a_task_is_the_owners_and_due_in_time():
    spec = {"title": "Call {{ account.name }}", "note": "Seats: {{ account.seats }}", "to": "owner", "due": 259_200.0}
    call = effect("task", spec)
    account = make_account(owner_name="Olu Owner", owner_email="olu@example.com")
    assert task(call, account) == {
        "title": "Call Acorn",
        "note": "Seats: –",
        "assignee": "olu@example.com",
        "assignee_name": "Olu Owner",
        "due_at": NOW + timedelta(days=3),
        "state": "open",
    }
    assert task(call, make_account())["assignee"] is None
    assert task(replace(call, state="ghosted"), account)["state"] == "ghosted"
    assert task(replace(call, spec={**spec, "to": "desk@example.com"}), account)["assignee"] == "desk@example.com"


def effect(kind: str, spec: dict, contact: str | None = None) -> NewEffect:
    return NewEffect(UUID(int=1), kind, UUID(int=2), "onboarding/first-value", 7, "tell", 1, contact, spec, VALUES, NOW)
