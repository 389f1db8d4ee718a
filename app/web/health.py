"""Health checks for load balancers and /metrics for Prometheus. Public: no names, no addresses, nothing of a customer.

What /metrics shows is read from the database by a few cheap queries at most once every two seconds, so any number of scrapers cost
the same, and every web process tells the same story.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic_core import to_json
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, text

from app.config import VERSION
from app.flow.reading import overview
from app.migrate import pending
from app.web.context import Installation, here, reading

blueprint = Blueprint("health", __name__)
KEPT = 2.0  # seconds
STATES_KEPT = 30.0


@blueprint.get("/healthz")
def alive() -> Response:
    """200 as long as this process answers; asks nobody else."""
    return _json({"status": "ok", "version": VERSION})


@blueprint.get("/readyz")
def ready() -> Response:
    """200 when the database answers and has this version's tables, else 503. Redis is only a doorbell: reported, not required."""
    where = here()
    try:
        with where.engine.connect() as conn:
            conn.execute(text("select 1"))
            migrated = pending(conn) is False
        database = "ok" if migrated else "not migrated"
    except Exception as error:  # whatever keeps the database away, the answer is the same
        database = f"away ({type(error).__name__})"
    found = {"status": "ok" if database == "ok" else "unavailable", "database": database, "redis": _redis(where)}
    return _json(found, 200 if database == "ok" else 503)


@blueprint.get("/metrics")
def metrics() -> Response:
    return Response(_Scrape.latest(), content_type="text/plain; version=0.0.4; charset=utf-8")


class _Scrape:
    """The last answer and when it was made; one per process."""

    lock = threading.Lock()
    made: dict[str, tuple[float, bytes]] = {}
    states: dict[str, tuple[float, dict[str, dict[str, int]]]] = {}

    @classmethod
    def latest(cls) -> bytes:
        where = here().settings.database_url or ""
        with cls.lock:
            kept = cls.made.get(where)
            if kept is None or time.monotonic() - kept[0] > KEPT:
                registry = CollectorRegistry()
                registry.register(_Numbers(_read()))
                kept = cls.made[where] = (time.monotonic(), generate_latest(registry))
            return kept[1]


def _read() -> dict[str, Any]:
    now = datetime.now(UTC)
    with reading() as conn:
        return {
            "now": now,
            **overview.trouble(conn),
            **overview.measures(conn),
            **overview.held_up(conn, now),
            "states": _states(conn),
            "unknown_by_campaign": overview.unknown_by_campaign(conn),
            "rates": overview.recent_rates(conn, now),
        }


def _states(conn: Connection) -> dict[str, dict[str, int]]:
    """Counted over all messages and effects, so less often than the rest: every half minute."""
    where = here().settings.database_url or ""
    kept = _Scrape.states.get(where)
    if kept is None or time.monotonic() - kept[0] > STATES_KEPT:
        kept = _Scrape.states[where] = (
            time.monotonic(),
            {"messages": overview.mail_states(conn), "effects": overview.effect_states(conn)},
        )
    return kept[1]


class _Numbers:
    """A collector of one reading."""

    def __init__(self, found: dict[str, Any]):
        self.found = found

    def collect(self) -> Iterator[Metric]:
        found, rates = self.found, self.found["rates"]
        gauges = {
            "pending_events": ("Events that wait to be processed (counted up to 100,000)", found["pending"]),
            "oldest_pending_event_age_seconds": ("Age of the oldest event that waits", _age(found["now"], found["oldest_pending"])),
            "oldest_due_message_age_seconds": ("How long the oldest message has been due", _age(found["now"], found["oldest_due"])),
            "unknown_messages": ("Messages whose outcome is unknown", found["unknown"]),
            "oldest_due_effect_age_seconds": (
                "How long the oldest alert or webhook has been due",
                _age(found["now"], found["oldest_effect"]),
            ),
            "oldest_provider_webhook_age_seconds": (
                "How long the oldest call of a mail provider has waited to be heard",
                _age(found["now"], found["oldest_call"]),
            ),
            "open_tasks": ("Tasks that staff have to do", found["open_tasks"]),
            "parked_occurrences": ("Occurrences that wait for a person", found["parked"]),
            "claimed_messages": ("Messages being sent", found["claimed"]),
            "transports_paused": ("Transports that take no mail", found["transports_paused"]),
            "lanes_held_up": ("Lanes to providers that are paused or slowed", found["lanes_held_up"]),
            "active_enrollments": ("Enrollments under way", found["active_enrollments"]),
            "accounts": ("Accounts", found["accounts"]),
            "workers": ("Workers whose heart beat within a minute", found["workers"]),
            "ingest_events_per_second": ("Events received, mean of five minutes", rates["received"]),
            "deliver_messages_per_second": ("Messages sent, mean of five minutes", rates["sent"]),
        }
        for name, (text_of, value) in gauges.items():
            yield GaugeMetricFamily(f"nurture_{name}", text_of, value=value)
        latency = GaugeMetricFamily(
            "nurture_deliver_latency_seconds", "From due to sent, of the messages of the last five minutes", labels=["quantile"]
        )
        for quantile, name in (("0.5", "p50"), ("0.99", "p99")):
            if rates[name] is not None:
                latency.add_metric([quantile], rates[name])
        yield latency
        unknown = GaugeMetricFamily("nurture_campaign_unknown_messages", "Messages whose outcome is unknown", labels=["campaign"])
        for campaign, count in found["unknown_by_campaign"].items():
            unknown.add_metric([campaign], count)
        yield unknown
        states = GaugeMetricFamily("nurture_messages", "Messages by state", labels=["state"])
        for state in overview.STATES:
            states.add_metric([state], found["states"]["messages"].get(state, 0))
        yield states
        effects = GaugeMetricFamily("nurture_effects", "Alerts and webhooks by state", labels=["state"])
        for state in overview.EFFECT_STATES:
            effects.add_metric([state], found["states"]["effects"].get(state, 0))
        yield effects
        counters = {
            "events_received": ("Events taken, counted by their ids", found["events"]),
            "duplicate_events_refused": ("Events refused as already known", found["doubled"]),
            "decisions": ("Decisions written to the ledger", found["decisions"]),
            "assessments": ("Health scores written", found["assessments"]),
            "hits": ("Fetched links recorded", found["hits"]),
            "responses": ("Answers to surveys", found["responses"]),
        }
        for name, (text_of, value) in counters.items():
            yield CounterMetricFamily(f"nurture_{name}", text_of, value=value)


def _age(now: datetime, since: datetime | None) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


def _redis(where: Installation) -> str:
    if not where.settings.redis_url:
        return "none"
    client = Redis.from_url(where.settings.redis_url, socket_timeout=0.5, socket_connect_timeout=0.5, retry=None)
    try:
        return "ok" if client.ping() else "away"
    except (RedisError, OSError) as error:
        return f"away ({type(error).__name__})"
    finally:
        client.close()


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, mimetype="application/json")
