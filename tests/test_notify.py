"""Alerts and webhooks go out: to whom, in which words, how often, and what becomes of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes, policy
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from app import models
from app.doctor import examine
from app.errors import InputError, NotFound
from app.flow import channels, notify
from app.flow.channels import enable_channel, find_channels, find_disabled, list_channels, remove_channel, set_channel
from app.providers.memory import MemoryTransport
from app.providers.outgoing import Caller
from app.queue import Bells, find_due
from app.rules.delivery import CALL_SCHEDULE
from tests.cast import Cast
from tests.conftest import NOW
from tests.faulty_smtp import FaultySmtp
from tests.hooks import Hooks
from tests.stories import LIFECYCLE, START, group, post, publish_campaigns, track
from tests.stories import run as advance


@pytest.fixture
def desk(engine, settings):
    return Desk(engine, settings)


class Desk:
    """An installation whose clock a test turns, with a relay in memory and channels at a real HTTP server."""

    def __init__(self, engine, settings):
        self.engine, self.settings, self.now = engine, settings, NOW
        self.transport = MemoryTransport()
        with engine.begin() as conn:
            self.cast = Cast(conn, NOW)
            self.ada = self.cast.contact("ada")

    def effect(self, *args, **values):
        with self.engine.begin() as conn:
            return Cast.of(conn, NOW).effect(self.ada, *args, **values)

    def allow(self, server, name, kind="webhook"):
        self.settings = replace(self.settings, allow_hosts=self.settings.allow_hosts | {server.place})
        with self.engine.begin() as conn:
            return set_channel(conn, self.settings, name, kind, f"{server.url}/{name}", self.now)

    def run(self, **options):
        options = {"transport": self.transport, **options}
        return notify.run(self.engine, self.settings, uuid4(), lambda: self.now, Bells(None), **options)

    def rows(self, statement):
        with self.engine.connect() as conn:
            return conn.execute(statement).mappings().all()

    def one(self):
        return self.rows(select(models.effect))[0]

    def ledger(self):
        return [(row["gate"], row["verdict"], row["reason"]) for row in self.rows(select(models.decision).order_by(models.decision.c.id))]


# Alerts --------------------------------------------------------------------------------------------------------------


def test_an_alert_to_the_owner_is_a_plain_mail(desk):
    effect = desk.effect()
    assert desk.run() == 1
    letter = desk.transport.letters[0]
    mail = message_from_bytes(letter.data, policy=policy.default)
    assert letter.recipient == "olu@acorn.test"
    assert (mail["To"], mail["Subject"]) == ("Olu Owner <olu@acorn.test>", "Acorn: Acorn is stuck")
    assert mail["Message-ID"] == f"<{effect.hex}@acorn.test>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-Unsubscribe"] is None and b"/o/" not in letter.data and b"/c/" not in letter.data
    words = mail.get_body(("plain",)).get_content()
    assert words.startswith("Acorn is stuck")
    assert "Acorn (acorn) · Ada (ada) · campaign First value, step tell" in words
    assert "http://127.0.0.1:8000/console/accounts/acorn" in words
    row = desk.one()
    assert (row["state"], row["reason"], row["attempts"], row["settled_at"]) == ("done", "effect_done", 1, NOW)
    assert desk.ledger() == [("effect", "yes", "effect_done")]
    assert desk.run() == 0 and len(desk.transport.letters) == 1


def test_without_a_relay_an_alert_is_in_the_outbox(desk):
    desk.effect(to="desk@acorn.test")
    assert desk.run(transport=None) == 1
    assert [row["recipient"] for row in desk.rows(select(models.outbox))] == ["desk@acorn.test"]


def test_an_alert_goes_over_a_real_relay(desk):
    effect = desk.effect()
    with FaultySmtp() as server:
        desk.settings = replace(desk.settings, smtp_url=server.url)
        assert desk.run(transport=None) == 1
        assert dict(server.accepted) == {f"<{effect.hex}@acorn.test>": 1}


def test_an_account_without_an_owner_tells_nobody_and_says_so(desk):
    about = {"account": "acorn", "account_name": None, "contact": None, "contact_name": None}
    payload = {"to": "owner", "owner": {"name": None, "email": None}, "subject": "s", "text": "t", "about": about}
    desk.effect(payload=payload)
    assert desk.run() == 0
    assert (desk.one()["state"], desk.one()["reason"], desk.one()["attempts"]) == ("failed", "no_owner", 0)
    assert desk.ledger() == [("effect", "no", "no_owner")]


def test_an_alert_to_a_chat_cannot_ring_everybody(desk):
    about = {"account": "<!channel>", "account_name": "A & B", "contact": None, "contact_name": None}
    about |= {"campaign_name": "First value", "step": "tell"}
    payload = {"to": "team", "owner": {}, "subject": "A & B: <!here>", "text": "<!channel> <https://evil.example|click>", "about": about}
    desk.effect(payload=payload)
    with Hooks() as server:
        desk.allow(server, "team", "slack")
        assert desk.run() == 1
        body = server.bodies[0]
        assert body["text"] == "A &amp; B: &lt;!here&gt;"
        assert body["blocks"][0]["text"]["text"] == "&lt;!channel&gt; &lt;https://evil.example|click&gt;"
        assert "<!channel>" not in json.dumps(body)
        assert "/console/accounts/%3C%21channel%3E|Open" in json.dumps(body)
        assert server.sent("webhook-signature") == [None]


def test_an_alert_that_may_have_arrived_is_not_repeated(desk):
    desk.effect(to="team")
    with Hooks(["close"]) as server:
        desk.allow(server, "team", "slack")
        assert desk.run() == 0
        assert (desk.one()["state"], desk.one()["reason"]) == ("unknown", "effect_unknown")
        desk.now += timedelta(days=1)
        assert desk.run() == 0
        assert len(server.requests) == 1
    assert desk.ledger() == [("effect", "no", "effect_unknown")]


@pytest.mark.parametrize(
    ("phase", "outcome", "state"),
    [("dot", "unknown", "unknown"), ("dot", "temp", "due"), ("rcpt", "perm", "failed"), ("connect", "temp", "due")],
)
def test_what_a_relay_does_with_an_alert(desk, phase, outcome, state):
    desk.effect()
    desk.transport.fail(phase, outcome)
    desk.run()
    assert desk.one()["state"] == state
    desk.now += timedelta(minutes=1)
    assert desk.run() == (1 if state == "due" else 0)
    assert len(desk.transport.letters) == (1 if state == "due" else 0)


def test_a_signed_channel_takes_alerts_too_and_knows_them_again(desk):
    effect = desk.effect(to="ops")
    with Hooks(["close"]) as server:
        desk.allow(server, "ops")
        desk.run()
        desk.now += timedelta(minutes=1)
        assert desk.run() == 1
        assert server.sent("webhook-id") == [f"msg_{effect.hex}"] * 2
        assert server.bodies[1]["type"] == "campaign.alert" and server.bodies[1]["data"]["text"] == "Acorn is stuck"


# Webhooks ------------------------------------------------------------------------------------------------------------


def test_a_webhook_is_signed_with_every_secret_in_force(desk):
    effect = desk.effect("webhook", "crm")
    with Hooks() as server:
        first = desk.allow(server, "crm")
        with desk.engine.begin() as conn:
            second = set_channel(conn, desk.settings, "crm", "webhook", f"{server.url}/crm", NOW, rotate=True)
        assert first.secret != second.secret == second.secrets(NOW)[0]
        assert desk.run() == 1
        path, headers, body = server.requests[0]
        assert path == "/crm"
        assert headers["webhook-id"] == f"msg_{effect.hex}"
        assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
        wanted = [signature(secret, headers, body) for secret in (second.secret, first.secret)]
        assert headers["webhook-signature"].split(" ") == wanted
        assert json.loads(body) == {"type": "campaign.step", "timestamp": NOW.isoformat(), "data": {"step": "tell", "values": {"n": 1}}}
        desk.now += timedelta(hours=25)
        desk.effect("webhook", "crm", occurrence=2)
        assert desk.run() == 1
        assert len(server.sent("webhook-signature")[1].split(" ")) == 1


def test_a_webhook_without_an_answer_is_sent_again_under_its_id(desk):
    effect = desk.effect("webhook", "crm")
    with Hooks(["close", (503, {}, b"busy"), (429, {"Retry-After": "120"}, b"")]) as server:
        desk.allow(server, "crm")
        for _ in range(3):
            assert desk.run() == 0
            row = desk.one()
            assert (row["state"], row["reason"], row["claim"], row["worker_id"]) == ("due", "effect_waits", None, None)
            waits = row["due_at"] - desk.now
            assert desk.run() == 0, "not before its time"
            desk.now = row["due_at"]
        assert waits >= timedelta(seconds=120), "not before the time that was named"
        assert desk.run() == 1
        assert server.sent("webhook-id") == [f"msg_{effect.hex}"] * 4
    assert desk.one()["attempts"] == 4
    assert desk.ledger() == [("effect", "wait", "effect_waits"), ("effect", "yes", "effect_done")]


def test_a_webhook_is_given_up_after_a_day(desk):
    desk.effect("webhook", "crm")
    with Hooks([(500, {}, b"")] * 100) as server:
        desk.allow(server, "crm")
        while desk.one()["state"] == "due":
            desk.now = max(desk.now, desk.one()["due_at"])
            desk.run()
    row = desk.one()
    assert (row["state"], row["reason"]) == ("failed", "effect_given_up")
    assert desk.now < NOW + timedelta(hours=24)
    assert row["attempts"] > len(CALL_SCHEDULE)
    assert row["reply"].startswith("500")


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_a_refusal_is_final(desk, status):
    desk.effect("webhook", "crm")
    with Hooks([(status, {"Location": "http://127.0.0.1:1/"}, b"no\r\nthanks")]) as server:
        desk.allow(server, "crm")
        assert desk.run() == 0
        assert len(server.requests) == 1
    row = desk.one()
    assert (row["state"], row["reason"], row["reply"]) == ("failed", "effect_refused", f"{status} no thanks")


def test_what_is_gone_disables_its_channel_until_somebody_enables_it(desk):
    for number in (1, 2):
        desk.effect("webhook", "crm", occurrence=number, due_at=NOW + timedelta(minutes=number))
    desk.effect("webhook", "crm", occurrence=3, due_at=NOW + timedelta(minutes=3))
    with Hooks([(410, {}, b"no more")]) as server:
        desk.allow(server, "crm")
        for minute in (1, 2):
            desk.now = NOW + timedelta(minutes=minute)
            assert desk.run() == 0
        assert len(server.requests) == 1, "nothing is called once it is gone"
        reasons = [row["reason"] for row in desk.rows(select(models.effect).order_by(models.effect.c.due_at))]
        assert reasons == ["channel_gone", "channel_disabled", None]
        with desk.engine.begin() as conn:
            (shown,) = list_channels(conn, desk.settings, {})
            assert shown["state"] == "disabled" and shown["disabled"]["why"] == "410 no more"
            assert [one.seen for one in examine(desk.settings, desk.engine, desk.now) if one.what == "channels" and "crm" in one.seen]
            enable_channel(conn, "crm")
            with pytest.raises(InputError, match="not disabled"):
                enable_channel(conn, "crm")
            with pytest.raises(NotFound):
                enable_channel(conn, "other")
        desk.now = NOW + timedelta(minutes=3)
        assert desk.run() == 1


def test_a_new_address_is_not_disabled_by_the_old_one(desk):
    with Hooks() as server:
        called = desk.allow(server, "crm")
        desk.allow(server, "crm")
        with desk.engine.begin() as conn:
            assert channels.disable_channel(conn, desk.settings, called, "410", NOW)
            assert not channels.disable_channel(conn, desk.settings, called, "410", NOW), "once is enough"
            set_channel(conn, desk.settings, "crm", "webhook", "https://crm.example.com/new", NOW)
            assert find_disabled(conn) == {}, "setting it enables it"
            assert not channels.disable_channel(conn, desk.settings, called, "410", NOW)
            channels.disable_channel(conn, desk.settings, find_channels(conn, desk.settings, ["crm"])["crm"], "410", NOW)
            remove_channel(conn, "crm")
            assert find_disabled(conn) == {}


@pytest.mark.parametrize("value", ["7200", "Mon, 02 Mar 2026 23:00:00 GMT", "99999999999999999999", "soon", "-5"])
def test_a_named_delay_is_kept_up_to_an_hour(desk, value):
    desk.effect("webhook", "crm")
    with Hooks([(503, {"Retry-After": value}, b"")]) as server:
        desk.allow(server, "crm")
        desk.run()
    waits = desk.one()["due_at"] - NOW
    assert waits == timedelta(hours=1) if value in ("7200", "Mon, 02 Mar 2026 23:00:00 GMT") else waits < timedelta(seconds=10)


def test_a_channel_that_leads_inside_is_not_called(desk):
    desk.effect("webhook", "crm")
    with desk.engine.begin() as conn:
        set_channel(conn, desk.settings, "crm", "webhook", "https://metadata.example/", NOW)
    caller = Caller(resolve=lambda *_: ["169.254.169.254"])
    assert desk.run(caller=caller) == 0
    assert (desk.one()["state"], desk.one()["reason"]) == ("failed", "unsafe_address")


@pytest.mark.parametrize("state", ["ghosted", "shadow", "done", "failed", "unknown"])
def test_what_is_settled_when_made_is_never_sent(desk, state):
    desk.effect(state=state, settled_at=NOW)
    desk.effect("webhook", "crm", step="hook", state=state, settled_at=NOW)
    with desk.engine.connect() as conn:
        assert not find_due(conn, NOW).effects
    assert desk.run() == 0 and not desk.transport.begun


def test_the_clock_rings_for_what_is_due(desk):
    desk.effect(due_at=NOW + timedelta(minutes=1))
    with desk.engine.connect() as conn:
        assert not find_due(conn, NOW).effects
        assert find_due(conn, NOW + timedelta(minutes=1)).effects


def test_many_effects_are_each_done_once_by_two_runs_at_a_time(desk):
    from concurrent.futures import ThreadPoolExecutor

    for number in range(1, 41):
        desk.effect("webhook", "crm", occurrence=number)
    with Hooks() as server:
        desk.allow(server, "crm")
        with ThreadPoolExecutor(2) as two:
            taken = sum(two.map(lambda _: desk.run(), range(2)))
        assert taken == 40
        assert len(set(server.sent("webhook-id"))) == len(server.requests) == 40


STAFF = """
name: Staff
stage: onboarding
topic: product
{more}
trigger: {{event: signed_up}}
steps:
  - {{id: tell, alert: {{to: owner, text: "{{{{ account.name }}}} signed up, {{{{ account.traits.plan }}}}"}}}}
  - {{id: call, task: {{title: "Call {{{{ account.name }}}}", due: 2d}}}}
  - {{id: crm, webhook: {{to: crm, data: {{seats: "{{{{ account.seats }}}}"}}}}}}
"""


@pytest.mark.parametrize(("more", "kept"), [("", None), ("mode: shadow", "shadow"), ("holdout: 99.9999%", "ghosted")])
def test_what_a_campaign_tells_staff(engine, settings, tmp_path, more, kept):
    """From the event to the relay and the webhook; a shadow and a held-out account tell nobody."""
    lifecycle = LIFECYCLE + "channels: {crm: The CRM}\n"
    publish_campaigns(engine, tmp_path / "campaigns", {"onboarding/staff": STAFF.format(more=more)}, lifecycle=lifecycle)
    post(engine, group(name="Acorn", seats=12, owner={"name": "Olu Owner", "email": "olu@example.com"}), track("signed_up"))
    transport = MemoryTransport()
    with Hooks() as server:
        settings = replace(settings, allow_hosts=frozenset({server.place}))
        with engine.begin() as conn:
            set_channel(conn, settings, "crm", "webhook", server.url, START)
        advance(engine)
        taken = notify.run(engine, settings, uuid4(), lambda: START, Bells(None), transport=transport)
        with engine.connect() as conn:
            states = {row.kind: row.state for row in conn.execute(select(models.effect))}
            tasks = conn.execute(select(models.task.c.title, models.task.c.state, models.task.c.assignee)).all()
        if kept:
            assert taken == 0 and transport.begun == [] and server.requests == []
            assert states == {"alert": kept, "webhook": kept} and tasks == [("Call Acorn", kept, "olu@example.com")]
            return
        assert taken == 2 and states == {"alert": "done", "webhook": "done"} and tasks == [("Call Acorn", "open", "olu@example.com")]
        assert b"Acorn signed up, " in transport.letters[0].data
        assert server.bodies[0]["data"]["values"] == {"seats": 12}


# Channels ------------------------------------------------------------------------------------------------------------


def test_a_channel_is_sealed_where_it_is_kept(desk):
    with desk.engine.begin() as conn:
        made = set_channel(conn, desk.settings, "team", "slack", "https://hooks.example.com/secret-path", NOW)
        hook = set_channel(conn, desk.settings, "crm", "webhook", "https://crm.example.com/in", NOW)
        again = set_channel(conn, desk.settings, "crm", "webhook", "https://crm.example.com/other", NOW)
        stored = " ".join(conn.execute(text("select value from setting where secret")).scalars())
        assert "secret-path" not in stored and "whsec" not in stored and "crm.example.com" not in stored
        assert find_channels(conn, desk.settings, ["team"]) == {"team": made}
        assert again.secret == hook.secret and hook.secret.startswith("whsec_")
        shown = list_channels(conn, desk.settings, {"team": "The team", "gone": "Nobody set it"})
        assert [(one["name"], one["to"], one["state"]) for one in shown] == [
            ("crm", "crm.example.com", "ready"),
            ("gone", None, "has no address"),
            ("team", "hooks.example.com", "ready"),
        ]
        assert "whsec" not in json.dumps(shown) and "secret-path" not in json.dumps(shown)
        remove_channel(conn, "team")
        with pytest.raises(NotFound):
            remove_channel(conn, "team")


def test_another_secret_key_opens_no_channel(desk):
    desk.effect("webhook", "crm")
    with desk.engine.begin() as conn:
        set_channel(conn, desk.settings, "crm", "webhook", "https://crm.example.com/in", NOW)
        other = replace(desk.settings, secret_key="x" * 40)
        assert list_channels(conn, other, {})[0]["state"] == "sealed under another secret key"
        with pytest.raises(channels.Sealed):
            find_channels(conn, other, ["crm"])
    desk.settings = other
    assert desk.run() == 0
    assert desk.one()["reason"] == "sealed_channel"
    with desk.engine.begin() as conn:
        assert set_channel(conn, other, "crm", "webhook", "https://crm.example.com/in", NOW).secret.startswith("whsec_")


@pytest.mark.parametrize(
    ("to", "kind", "reason"),
    [("nowhere", "webhook", "no_channel"), ("nowhere", "alert", "no_channel"), ("mail", "webhook", "wrong_channel")],
)
def test_a_channel_that_does_not_fit(desk, to, kind, reason):
    desk.effect(kind, to)
    with desk.engine.begin() as conn:
        set_channel(conn, desk.settings, "mail", "email", "team@acorn.test", NOW)
    assert desk.run() == 0
    assert (desk.one()["state"], desk.one()["reason"]) == ("failed", reason)


def test_an_email_channel_takes_alerts(desk):
    desk.effect(to="mail")
    with desk.engine.begin() as conn:
        set_channel(conn, desk.settings, "mail", "email", "team@acorn.test", NOW)
    assert desk.run() == 1
    assert desk.transport.letters[0].recipient == "team@acorn.test"


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("owner", "email", "a@example.com"),
        ("Team", "email", "a@example.com"),
        ("team", "pigeon", "a@example.com"),
        ("team", "email", "not an address"),
        ("team", "slack", "http://hooks.example.com/"),
        ("team", "webhook", "https://user:pass@example.com/"),
    ],
)
def test_a_channel_that_cannot_be(desk, name, kind, address):
    with desk.engine.begin() as conn, pytest.raises(InputError):
        set_channel(conn, desk.settings, name, kind, address, NOW)


# The dead and the revived --------------------------------------------------------------------------------------------


def test_a_run_that_was_believed_dead_is_fenced_off(desk):
    """A webhook and an alert are on the wire when their worker is believed dead: the webhook is sent by another, the alert by nobody."""
    from threading import Thread

    desk.effect("webhook", "crm")
    desk.effect(to="crm", step="alert")
    with Hooks(["hold", "hold"]) as server:
        desk.allow(server, "crm")
        first = Thread(target=desk.run)
        first.start()
        wait_until(lambda: len(server.requests) == 2)
        with desk.engine.begin() as conn:
            conn.execute(text("update worker set heartbeat_at = heartbeat_at - interval '1 hour', stopped_at = clock_timestamp()"))
        found = notify.recover(desk.engine, lambda: desk.now, Bells(None))
        assert (found.due, found.unknown) == (1, 1)
        assert desk.run() == 1
        assert len(server.requests) == 3
        server.release.set()
        first.join()
    states = {row["kind"]: row for row in desk.rows(select(models.effect))}
    assert states["webhook"]["state"] == "done" and states["webhook"]["attempts"] == 1
    assert states["alert"]["state"] == "done", "the revived worker says what became of it"
    assert [row["kind"] for row in desk.rows(select(models.effect).where(models.effect.c.state == "claimed"))] == []


def test_who_dies_before_the_wire_has_called_nobody(desk):
    """A claim is not a call: an alert that was only claimed is due again, and goes out once."""
    desk.effect(to="crm")
    desk.effect("webhook", "crm", step="hook")
    old = uuid4()
    with desk.engine.begin() as conn:
        rows = notify.claim(conn, old, desk.now, 10)
        conn.execute(text("update worker set stopped_at = clock_timestamp()"))
    with desk.engine.connect() as conn:
        assert find_due(conn, desk.now).claims
    found = notify.recover(desk.engine, lambda: desk.now, Bells(None))
    assert (found.due, found.unknown) == (2, 0)
    with Hooks() as server:
        desk.allow(server, "crm")
        assert desk.run() == 2
        revived = notify.Desk(desk.engine, desk.settings, lambda: desk.now, Caller(desk.settings.allow_hosts), desk.transport)
        assert [revived.do(row) for row in rows] == [False, False]
        assert len(server.requests) == 2
    assert {row["state"] for row in desk.rows(select(models.effect))} == {"done"}


def wait_until(found) -> None:
    from tests.processes import eventually

    eventually(found)


def signature(secret: str, headers: dict, body: bytes) -> str:
    """As a receiver computes it, with nothing of ours."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    made = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(made).decode()
