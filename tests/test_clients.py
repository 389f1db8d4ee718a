"""The server-side clients of Segment and RudderStack, as they come from PyPI, post to a real web service on loopback."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import rudderstack.analytics.client as rudderstack
import rudderstack.analytics.request as rudderstack_request
import segment.analytics.client as segment
import segment.analytics.request as segment_request
from sqlalchemy import select

from app.flow.access import create_key
from app.models import event, event_pending
from bench.ground import web
from tests.conftest import NOW

pytestmark = pytest.mark.processes
CLIENTS = {"segment": (segment.Client, segment_request), "rudderstack": (rudderstack.Client, rudderstack_request)}


@contextmanager
def posting(name, port, key):
    """A client with gzip on; what it could not post fails the test when it is left."""
    failures = []
    make, request = CLIENTS[name]
    client = make(
        key, host=f"http://127.0.0.1:{port}", gzip=True, on_error=lambda error, items: failures.append((error, items)), max_retries=1
    )
    yield client
    client.flush()
    client.join()
    request._session.close()
    assert failures == []


@pytest.mark.parametrize("name", CLIENTS)
def test_an_unmodified_client_posts_everything(name, settings, engine):
    with engine.begin() as conn:
        key = create_key(conn, name, "write", NOW)
    began = datetime.now(UTC)
    with web(settings) as port, posting(name, port, key) as client:
        client.group("ada", "acorn", {"name": "Acorn GmbH", "touch": "smb", "seats": 12, "created_at": datetime(2026, 3, 1, tzinfo=UTC)})
        client.identify("ada", {"email": "ada@acorn.example", "first_name": "Ada 😀", "roles": ["admin"]}, context={"groupId": "acorn"})
        client.track("ada", "workspace_created", {"plan": "pro"}, context={"groupId": "acorn"})
        client.track("ada", "report_viewed", timestamp=began - timedelta(hours=2), context={"groupId": "acorn"})
        client.page("ada", "docs", "Start", {"url": "https://acorn.example"})
        client.screen("ada", "docs", "Start")
        client.alias("anonymous-1", "ada")
        for number in range(250):  # more than a batch, twice over the wire
            client.track("ada", "row_added", {"number": number}, context={"groupId": "acorn"}, message_id=f"row-{number % 200}")
    with engine.connect() as conn:
        rows = conn.execute(select(event).order_by(event.c.id)).all()
        pending = conn.execute(select(event_pending.c.event_id)).all()
    by_kind = {row.kind: row for row in rows}
    assert len(rows) == len(pending) == 7 + 200
    assert [row.kind for row in rows[:7]] == ["group", "identify", "track", "track", "page", "screen", "alias"]
    assert all(began <= row.received_at <= datetime.now(UTC) for row in rows)

    group, identify, alias = by_kind["group"], by_kind["identify"], by_kind["alias"]
    assert (group.account_key, group.contact_key) == ("acorn", "ada")
    assert (group.properties["name"], group.properties["touch"], group.properties["seats"]) == ("Acorn GmbH", "smb", 12)
    assert group.properties["created_at"].startswith("2026-03-01T00:00:00")
    assert (identify.account_key, identify.contact_key) == ("acorn", "ada")
    assert identify.properties == {"email": "ada@acorn.example", "first_name": "Ada 😀", "roles": ["admin"]}
    assert (alias.contact_key, alias.properties) == ("ada", {"previous_id": "anonymous-1"})
    created, viewed = rows[2], rows[3]
    assert (created.name, created.account_key, created.contact_key, created.properties) == (
        "workspace_created",
        "acorn",
        "ada",
        {"plan": "pro"},
    )
    assert timedelta(hours=2) <= viewed.received_at - viewed.occurred_at < timedelta(hours=2, minutes=1)
    assert [row.properties["number"] for row in rows[7:]] == list(range(200))


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_keeps_what_it_posts_together_with_a_bad_item(name, settings, engine):
    with engine.begin() as conn:
        key = create_key(conn, name, "write", NOW)
    with web(settings, workers=1) as port, posting(name, port, key) as client:
        client.track("ada", "first", context={"groupId": "acorn"})
        client.track("ada", "bad", {"ratio": float("nan"), "text": "\x00"}, context={"groupId": "acorn"})
        client.track("ada", "last", context={"groupId": "acorn"})
    with engine.connect() as conn:
        assert list(conn.execute(select(event.c.name).order_by(event.c.id)).scalars()) == ["first", "last"]


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_is_told_that_its_key_is_unknown(name, settings, engine):
    told = []
    with web(settings, workers=1) as port:
        make, request = CLIENTS[name]
        client = make(
            "nk_unknown_key", host=f"http://127.0.0.1:{port}", gzip=True, on_error=lambda error, items: told.append(error), max_retries=1
        )
        client.track("ada", "first")
        client.flush()
        client.join()
        request._session.close()
    assert [(error.status, error.code) for error in told] == [(401, "unknown_key")]
