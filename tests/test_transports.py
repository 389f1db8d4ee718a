"""Several transports with limits of their own: who carries what, what stops one of them, and that it never stops the others."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest
import redis
from sqlalchemy import select, update

from app import models
from app.cli import main
from app.config import load
from app.errors import InputError, NotFound
from app.flow import notify, publish, transports
from app.flow.channels import set_channel
from app.flow.deliver import Limits, run
from app.flow.transports import CONFIGURATION_PAUSE
from app.providers.memory import MemoryTransport
from app.providers.outgoing import Caller
from app.providers.smtp import Smtp
from app.queue import Bells, find_due
from app.rules.delivery import enhanced
from app.rules.lanes import PAUSED_FOR, SLOW_FOR
from app.rules.relays import RELAYS
from tests.cast import LIFECYCLE, Cast
from tests.conftest import NOW
from tests.faulty_smtp import FaultySmtp
from tests.hooks import Hooks
from tests.processes import eventually
from tests.test_deliver import QUICK, Clock, message, rows

SENDER = LIFECYCLE["senders"]["default"]
TWO = {
    "senders": {"default": SENDER},
    "topics": {"product": {"name": "Product", "transport": "bulk"}, "survey": {"name": "Surveys"}},
}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def send(engine, settings, clock):
    def send(carriers, **options):
        run(engine, settings, uuid4(), clock, Bells(None), transport=carriers, **{"limits": QUICK, **options})
        return carriers

    return send


def due(conn, count=1, *, transport="default", domain=None, **values):
    """So many messages to as many people, over the transport."""
    cast = Cast(conn, NOW, lifecycle=TWO)
    ids = []
    for number in range(count):
        key = f"person-{number}"
        address = f"{key}@{domain or 'acorn.test'}"
        person = cast.contact(key, cast.account(f"account-{transport}-{number}"), address=address, person=address)
        ids.append(cast.message(person, transport=transport, **values))
    return ids


def more(conn, key, *, transport="default", domain="acorn.test", **values):
    cast = Cast.of(conn, NOW)
    address = f"{key}@{domain}"
    return cast.message(cast.contact(key, cast.account(key), address=address, person=address), transport=transport, **values)


def standing(engine, name="default"):
    with engine.connect() as conn:
        return conn.execute(select(models.transport).where(models.transport.c.name == name)).first()


def lane_of(engine, provider, name="default"):
    with engine.connect() as conn:
        return conn.execute(select(models.lane).where(models.lane.c.transport == name, models.lane.c.provider == provider)).first()


# Who carries what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "topic", "name"),
    [
        (None, None, "default"),
        (None, "bulk", "bulk"),
        ("own", "bulk", "own"),  # the sender's word counts before the topic's
        ("own", None, "own"),
    ],
)
def test_the_file_says_what_carries_a_message(sender, topic, name):
    from app.rules.lifecycle import Lifecycle

    lifecycle = Lifecycle.model_validate(
        {
            **LIFECYCLE,
            "senders": {"default": {**SENDER, "transport": sender}},
            "topics": {"product": {"name": "Product", "transport": topic}, "survey": {"name": "Surveys"}},
        }
    )
    assert lifecycle.transport_of("default", "product") == name
    assert lifecycle.transport_of("no-such", "transactional") == (sender or "default")


def test_each_transport_claims_its_own_mail(engine, send):
    with engine.begin() as conn:
        [bulk] = due(conn, transport="bulk")
        plain = more(conn, "zoe")
    carriers = send({"default": MemoryTransport(), "bulk": MemoryTransport()})
    assert [one.message_id for one in carriers["bulk"].letters] == [bulk]
    assert [one.message_id for one in carriers["default"].letters] == [plain]


def test_each_transport_speaks_to_its_own_email_service(engine, send):
    """One worker, two services: each gets our token in its own header, and only there (M-02)."""
    with engine.begin() as conn:
        due(conn)
        more(conn, "eve", transport="bulk")
    names = {"default": "postmark", "bulk": "mailgun"}
    carriers = send({name: MemoryTransport(service=RELAYS[service]) for name, service in names.items()})
    for name, service in names.items():
        other = RELAYS[names["bulk" if name == "default" else "default"]].header.encode()
        [letter] = carriers[name].letters
        assert RELAYS[service].header.encode() in letter.data and other not in letter.data


def test_mail_of_a_transport_that_does_not_exist_goes_over_default(engine, send, settings):
    with engine.begin() as conn:
        [bulk] = due(conn, transport="bulk")
    assert [one.message_id for one in send({"default": MemoryTransport()})["default"].letters] == [bulk]
    with engine.connect() as conn:
        found = {row["name"]: row for row in transports.listed(conn, settings, publish.book(conn).lifecycle, NOW)}
    assert found["bulk"]["state"] == "missing" and found["default"]["state"] == "open"


def test_a_dead_relay_holds_up_nobody_else(engine, send):
    """Higher priority, more of it, due longer: the dead relay's mail waits, the other's goes at once, and nothing of it is claimed."""
    with engine.begin() as conn:
        stuck = due(conn, 40, transport="bulk", priority=90, due_at=NOW - timedelta(hours=1))
        free = [more(conn, f"zoe-{number}") for number in range(5)]
    dead = MemoryTransport()
    dead.fail("connect", text="refused", code=None, times=100_000)
    stopping = threading.Event()
    carriers = {"default": MemoryTransport(), "bulk": dead}
    worker = threading.Thread(target=send, args=(carriers,), kwargs={"stopping": stopping.is_set})
    worker.start()
    try:
        eventually(lambda: len(carriers["default"].letters) == 5)
        with engine.begin() as conn:  # what falls due meanwhile goes meanwhile
            late = more(conn, "late")
        eventually(lambda: message(engine, late).state == "sent")
    finally:
        stopping.set()
        worker.join(20)
    assert not worker.is_alive()
    assert {message(engine, ident).state for ident in free} == {"sent"}
    assert {(row.state, row.attempts) for row in map(lambda ident: message(engine, ident), stuck)} == {("due", 0)}


def test_a_relay_whose_dots_hang_holds_up_nobody_else(engine, send, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    with engine.begin() as conn:
        stuck = due(conn, 6, transport="bulk")
        free = [more(conn, f"zoe-{number}") for number in range(5)]
    with FaultySmtp({"dot": [["hold", str(hold)]] * 6}) as slow, FaultySmtp() as fast:
        carriers = {"bulk": Smtp(slow.url, connections=3), "default": Smtp(fast.url, connections=3)}
        worker = threading.Thread(target=send, args=(carriers,))
        worker.start()
        eventually(lambda: {message(engine, ident).state for ident in free} == {"sent"})
        assert sorted(message(engine, ident).state for ident in stuck).count("in_dot") == 3
        hold.unlink()
        worker.join(20)
        assert not worker.is_alive()
    assert {message(engine, ident).state for ident in stuck} == {"sent"}


def test_a_new_lifecycle_moves_what_is_due(engine, settings, tmp_path):
    from tests.test_docs import write_folder

    campaign = """
name: Example
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: only, email: only.mjml, subject: Hello}
"""
    base = json.loads(json.dumps(LIFECYCLE))
    folder = write_folder(tmp_path / "campaigns", json.dumps(base), [campaign])
    with engine.begin() as conn:
        publish.publish(conn, folder, NOW)
        version = conn.execute(select(models.campaign_version)).one()
        conn.execute(update(models.campaign).values(mode="live"))
        cast = Cast.of(conn, NOW)
        cast.version_id, cast.campaign_id = version.id, version.campaign_id
        ident = cast.message(cast.contact("ada"), "only")
    base["topics"]["product"]["transport"] = "bulk"
    (folder / "lifecycle.yaml").write_text(json.dumps(base))
    with engine.begin() as conn:
        publish.publish(conn, folder, NOW)
    assert message(engine, ident).transport == "bulk"


def test_check_knows_the_shape_of_a_transports_name(tmp_path):
    from app.flow.check import check
    from tests.test_docs import write_folder

    lifecycle = json.loads(json.dumps(LIFECYCLE))
    lifecycle["topics"]["product"]["transport"] = "Not A Name"
    lifecycle["sending"] = {"marketing": "9d"}
    _, problems = check(write_folder(tmp_path / "campaigns", json.dumps(lifecycle), []))
    assert any("transport" in str(one) or "small letters" in str(one) for one in problems)
    assert any("5 days" in str(one) or "less than or equal" in str(one) for one in problems)


# What an operator sets ------------------------------------------------------------------------------------------------


def test_a_url_is_sealed_and_never_shown(engine, settings):
    url = "smtps://me:very-secret@mail.example.com:465"
    with engine.begin() as conn:
        transports.add(conn, settings, "bulk", url, NOW, connections=5, rate=20.0)
    kept = standing(engine, "bulk")
    assert "very-secret" not in json.dumps(kept._mapping, default=str)
    with engine.connect() as conn:
        way = transports.ways(conn, settings, NOW)["bulk"]
        shown = transports.listed(conn, settings, None, NOW)
    assert (way.url, way.pace.rate, way.pace.connections) == (url, 20.0, 5)
    assert "very-secret" not in json.dumps(shown, default=str) and shown[1]["to"] == "smtps://mail.example.com:465"
    with engine.connect() as conn:
        other = load({"NURTURE_HOME": str(settings.home), "NURTURE_SECRET_KEY": "another key of more than 32 letters"})
        assert "sealed under another" in transports.ways(conn, other, NOW)["bulk"].problem


@pytest.mark.parametrize(
    ("name", "url", "limits", "problem"),
    [
        ("default", "smtp://a.example", {}, "SMTP_URL"),
        ("Bulk", "smtp://a.example", {}, "small letters"),
        ("bulk", "http://a.example", {}, "must look like"),
        ("bulk", "smtp://a.example?tls=maybe", {}, "tls=starttls"),
        ("bulk", "smtp://me:pw@a.example?tls=none", {}, "over TLS only"),
        ("bulk", "smtp://a.example:6379", {}, "one of the ports"),
        ("bulk", "smtp://[bad", {}, "is no URL"),
        ("bulk", "smtp://a.example", {"connections": 0}, "connections"),
        ("bulk", "smtp://a.example", {"letters": 101}, "letters"),
        ("bulk", "smtp://a.example", {"rate": 0.0}, "rate"),
        ("bulk", "smtp://a.example", {"timeouts": {"dot": 60}}, "dot must be 600"),
        ("bulk", "smtp://a.example", {"timeouts": {"nothing": 60}}, "is not one of"),
        ("bulk", "smtp://a.example", {"providers": {"google": {"domains": ["not a domain"]}}}, "is not a domain"),
        ("bulk", "smtp://a.example", {"providers": {"x": {"domains": ["a.test"]}, "y": {"domains": ["a.test"]}}}, "is given to"),
    ],
)
def test_a_wrong_setting_is_refused_and_named(engine, settings, name, url, limits, problem):
    with engine.begin() as conn, pytest.raises(InputError, match=problem.replace("(", r"\(")):
        transports.add(conn, settings, name, url, NOW, **limits)


def test_what_does_not_exist_is_not_found(engine, settings):
    with engine.begin() as conn:
        for what in (
            lambda: transports.edit(conn, settings, "bulk", NOW, rate=1.0),
            lambda: transports.pause(conn, "bulk", NOW),
            lambda: transports.resume(conn, "bulk", NOW),
            lambda: transports.remove(conn, "bulk"),
            lambda: transports.resume(conn, "default", NOW, provider="google"),
        ):
            with pytest.raises(NotFound):
                what()
        with pytest.raises(InputError):
            transports.remove(conn, "default")


def test_a_removed_transport_leaves_its_mail_to_default(engine, settings, send):
    with engine.begin() as conn:
        [ident] = due(conn, transport="gone")
        transports.add(conn, settings, "gone", "smtp://mail.example.com", NOW)
    with engine.begin() as conn:
        assert transports.remove(conn, "gone") == 1
    assert len(send({"default": MemoryTransport()})["default"].letters) == 1
    assert message(engine, ident).transport == "default"


def test_a_paused_transport_keeps_its_mail_and_resume_lets_it_go(engine, settings, send, clock):
    with engine.begin() as conn:
        [ident] = due(conn, transport="bulk")
        other = more(conn, "zoe")
        transports.add(conn, settings, "bulk", "smtp://mail.example.com", NOW)
        transports.pause(conn, "bulk", NOW, until=NOW + timedelta(hours=2), detail="the relay is being moved")
    carriers = send({"default": MemoryTransport(), "bulk": MemoryTransport()})
    assert message(engine, other).state == "sent"
    row = message(engine, ident)
    assert (row.state, row.attempts, row.reason) == ("due", 0, None) and not carriers["bulk"].begun
    clock.now = NOW + timedelta(hours=1)
    with engine.begin() as conn:
        transports.resume(conn, "bulk", clock.now)
    send(carriers)
    assert message(engine, ident).state == "sent"


def test_a_pause_ends_by_itself(engine, settings, send, clock):
    with engine.begin() as conn:
        [ident] = due(conn)
        transports.pause(conn, "default", NOW, until=NOW + timedelta(hours=2))
    carrier = MemoryTransport()
    send(carrier)
    assert not carrier.begun
    clock.now = NOW + timedelta(hours=2)
    send(carrier)
    assert message(engine, ident).state == "sent"


def test_a_transport_that_is_switched_off_keeps_its_mail(engine, settings, send):
    with engine.begin() as conn:
        due(conn)
        transports.edit(conn, settings, "default", NOW, enabled=False)
    carrier = MemoryTransport()
    send(carrier)
    assert not carrier.begun
    with engine.begin() as conn:
        transports.edit(conn, settings, "default", NOW, enabled=True)
    send(carrier)
    assert len(carrier.letters) == 1


def test_a_pause_during_a_run_takes_effect_within_seconds(engine, settings, send):
    with engine.begin() as conn:
        due(conn, 200)
    with FaultySmtp({"data": [["hang", 0.1]] * 200}) as server:
        worker = threading.Thread(target=send, args=(Smtp(server.url, connections=2),))
        worker.start()
        eventually(lambda: sum(server.accepted.values()) >= 4)
        with engine.begin() as conn:
            transports.pause(conn, "default", NOW)
        worker.join(20)
        assert not worker.is_alive()
        assert sum(server.accepted.values()) < 100
    left = [row.state for row in rows(engine)]
    assert set(left) == {"sent", "due"} and left.count("sent") == sum(server.accepted.values())


def test_the_commands(database, settings, engine, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("NURTURE_HOME", str(settings.home))
    with engine.begin() as conn:
        Cast(conn, NOW, lifecycle=TWO)

    def nurture(*words, code=0):
        assert main([*words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    with FaultySmtp() as server:
        added = nurture("transports", "add", "bulk", server.url, "--rate", "30/m", "--timeout", "rcpt=20", "--provider", "google:20/s:5")
        assert added == {"added": "bulk", "named": True}
        assert nurture("transports", "test", "bulk")["works"] is True
        assert "MAIL" not in " ".join(server.commands)
    assert nurture("transports", "test", "bulk", code=1)["works"] is False
    nurture("transports", "edit", "bulk", "--connections", "3", "--provider", "oak:::oak.example,oak.test", "--reset", "off")
    nurture("transports", "pause", "bulk", "--until", "2h", "--reason", "moving")
    [_, row] = nurture("transports", "list")
    assert (row["name"], row["state"], row["detail"], row["reason"]) == ("bulk", "paused", "moving", "operator")
    assert (row["rate"], row["connections"], row["reset"], row["timeouts"]["rcpt"], row["timeouts"]["dot"]) == (0.5, 3, False, 20, 600)
    assert row["providers"] == {"google": {"rate": 20, "connections": 5}, "oak": {"domains": ["oak.example", "oak.test"]}}
    nurture("transports", "resume", "bulk")
    nurture("transports", "edit", "bulk", "--no-provider", "google", "--disable")
    assert nurture("transports", "list")[1]["state"] == "disabled"
    assert nurture("transports", "remove", "bulk") == {"removed": "bulk", "moved": 0}
    assert main(["transports", "list"]) == 0
    assert capsys.readouterr().out.startswith("default")


# What stops a transport -----------------------------------------------------------------------------------------------


def test_a_wrong_password_pauses_the_transport_and_nothing_else(engine, send, clock, settings):
    """Table 2.1: AUTH and certificates are configuration errors. The mail waits without an attempt; operators are told once."""
    with engine.begin() as conn:
        [ident] = due(conn, transport="bulk")
        other = more(conn, "zoe")
        transports.add(conn, settings, "bulk", "smtp://mail.example.com", NOW)
    refused = MemoryTransport()
    refused.refuse_setting("signing in failed: 5.7.8 no", 535, times=2)
    carriers = {"default": MemoryTransport(), "bulk": refused}
    send(carriers)
    assert message(engine, other).state == "sent"
    assert (message(engine, ident).state, message(engine, ident).attempts) == ("due", 0)
    row = standing(engine, "bulk")
    assert (row.paused_reason, row.paused_until, row.untold) == ("configuration", NOW + CONFIGURATION_PAUSE, True)
    assert "signing in failed" in row.paused_detail
    with engine.connect() as conn:
        assert find_due(conn, NOW).effects  # the bell that has operators told
        assert transports.untold(conn) and not transports.untold(conn)
        conn.commit()
    clock.now = NOW + CONFIGURATION_PAUSE
    send(carriers)  # the same trouble again
    row = standing(engine, "bulk")
    assert (row.paused_until, row.untold) == (clock.now + CONFIGURATION_PAUSE, False)  # no news
    clock.now += CONFIGURATION_PAUSE
    send(carriers)
    assert message(engine, ident).state == "sent"
    assert standing(engine, "bulk").paused_at is None


def test_a_trouble_of_the_relay_is_no_wrong_setting(engine, send):
    with engine.begin() as conn:
        due(conn)
    transport = MemoryTransport()
    transport.fail("connect", "temp", "4.7.0 temporary authentication failure", 454)
    send(transport)
    assert len(transport.letters) == 1 and standing(engine) is None


def test_three_refusals_of_the_sender_pause_the_transport(engine, send, clock):
    """5xx at MAIL is about us: it costs three messages, not all of them, and no contact."""
    with engine.begin() as conn:
        due(conn, 12)
    transport = MemoryTransport(connections=1)
    transport.fail("mail", "perm", "5.7.1 sender not allowed", 550, times=100)
    send(transport, limits=Limits(poll=0.02, gather=0.0, patience=(0.05,), batch=1))
    row = standing(engine)
    assert row.paused_reason == "configuration" and "sender not allowed" in row.paused_detail
    states = [one.state for one in rows(engine)]
    assert states.count("skipped") < 12 and states.count("due") >= 1
    with engine.connect() as conn:
        assert not conn.execute(select(models.suppression)).all()


# Lanes ----------------------------------------------------------------------------------------------------------------


def test_three_refusals_of_us_pause_the_providers_lane_and_suppress_nobody(engine, send, clock, settings):
    """S-19."""
    with engine.begin() as conn:
        due(conn, 10, domain="gmail.com")
    transport = MemoryTransport(connections=1)
    transport.fail("dot", "perm", "5.7.1 blocked by policy", 554, times=100)
    send(transport, limits=Limits(poll=0.02, gather=0.0, patience=(0.05,), batch=1))
    lane = lane_of(engine, "google")
    assert (lane.cause, lane.paused_until, lane.untold) == ("refused", NOW + PAUSED_FOR, True)
    with engine.begin() as conn:
        free = more(conn, "zoe")
    good = send(MemoryTransport())
    assert [one.message_id for one in good.letters] == [free]  # other providers get theirs
    waiting = [row for row in rows(engine) if row.state == "due"]
    assert waiting and {(row.reason, row.due_at) for row in waiting} == {("lane_paused", NOW + PAUSED_FOR)}
    with engine.connect() as conn:
        assert not conn.execute(select(models.suppression)).all()
        said = conn.execute(select(models.decision).where(models.decision.c.reason == "lane_paused")).first()
    assert (said.verdict, said.evidence["provider"]) == ("wait", "google")
    clock.now = NOW + PAUSED_FOR
    after = send(MemoryTransport())
    assert len(after.letters) == len(waiting)
    with engine.connect() as conn:
        assert not transports.lanes(conn, "default", clock.now)


def test_the_first_refusal_after_a_pause_pauses_again(engine, clock, settings):
    place = ("default", "google")
    with engine.begin() as conn:
        refusal = transports.Seen("default", "google", ours=True, reply="554 5.7.1 no")
        transports.note(conn, [refusal] * 3, {}, (), NOW)
        later = NOW + PAUSED_FOR
        transports.note(conn, [refusal], {place: transports.lanes(conn, "default", later)["google"]}, (), later)
        assert transports.lanes(conn, "default", later)["google"].paused(later)


def test_a_message_that_is_taken_ends_the_row_of_refusals(engine):
    with engine.begin() as conn:
        refused = transports.Seen("default", "google", ours=True, reply="554 5.7.1 no")
        taken = transports.Seen("default", "google", taken=True)
        soft = transports.Seen("default", "google")  # says nothing of us
        transports.note(conn, [refused, refused, taken, refused, soft, refused], {}, (), NOW)
        assert transports.lanes(conn, "default", NOW)["google"].paused_until is None
        transports.note(conn, [refused], {}, (), NOW)
        assert transports.lanes(conn, "default", NOW)["google"].paused(NOW)


def test_deferred_for_reputation_slows_the_lane(engine, send, clock, settings):
    """S-15: one a minute over one connection for 90 minutes; other providers go on."""
    with engine.begin() as conn:
        due(conn, 8, domain="yahoo.com")
        free = [more(conn, f"zoe-{number}") for number in range(4)]
    transport = MemoryTransport(connections=1)
    transport.fail("rcpt", "temp", "4.7.0 [TSS04] temporarily deferred due to unexpected volume or user complaints", 421)
    send(transport, limits=Limits(poll=0.02, gather=0.0, patience=(0.05,), batch=1))
    lane = lane_of(engine, "yahoo")
    assert (lane.cause, lane.slow_until, lane.untold) == ("reputation", NOW + SLOW_FOR, True)
    with engine.begin() as conn:
        slow = [more(conn, f"slow-{number}", domain="yahoo.com") for number in range(6)]
        free += [more(conn, f"yan-{number}") for number in range(4)]
    went = send(MemoryTransport())
    assert {message(engine, ident).state for ident in free} == {"sent"}
    assert sum(one.recipient.endswith("yahoo.com") for one in went.letters) <= 1
    held = [row for row in map(lambda ident: message(engine, ident), slow) if row.state == "due"]
    assert {row.reason for row in held} == {"throttled"}
    spread = sorted(row.due_at - NOW for row in held)
    assert spread[0] <= timedelta(seconds=61) and all(b - a >= timedelta(seconds=0.01) for a, b in zip(spread, spread[1:], strict=False))
    clock.now = NOW + SLOW_FOR
    assert len(send(MemoryTransport()).letters) >= len(held)


def test_an_operator_limits_a_provider(engine, send, settings, redis_server):
    """Over a real relay: no more than one connection at a time towards the provider, however many there are."""
    with engine.begin() as conn:
        due(conn, 6, domain="oak.example")
        [more(conn, f"zoe-{number}") for number in range(6)]
        transports.edit(conn, settings, "default", NOW, providers={"oak": {"connections": 1, "domains": ["oak.example"]}})
    most, now, lock = [0], [0], threading.Lock()

    class Watched(MemoryTransport):
        async def open(self):
            connection = await super().open()
            begin, finish = connection.begin, connection.finish

            async def begin_and_count(letter):
                import asyncio

                if letter.recipient.endswith("oak.example"):
                    with lock:
                        now[0] += 1
                        most[0] = max(most[0], now[0])
                    await asyncio.sleep(0.02)
                await begin(letter)

            async def finish_and_count():
                oak = connection._letter.recipient.endswith("oak.example")
                reply = await finish()
                if oak:
                    with lock:
                        now[0] -= 1
                return reply

            connection.begin, connection.finish = begin_and_count, finish_and_count
            return connection

    clock = Clock()
    transport = Watched(connections=6)
    for _ in range(5):
        send_at(engine, settings, clock, transport)
        clock.now += timedelta(minutes=1)
    assert len(transport.letters) == 12 and most[0] == 1


def send_at(engine, settings, clock, transport):
    run(engine, settings, uuid4(), clock, Bells(None), transport=transport, limits=QUICK)


def test_a_transport_goes_no_faster_than_its_rate(engine, settings, tmp_path):
    with engine.begin() as conn:
        due(conn, 40)
    with FaultySmtp() as server:
        began = time.monotonic()
        clock = Clock()
        relay = Smtp(server.url, connections=8, rate=25.0)
        while sum(server.accepted.values()) < 40:
            run(engine, settings, uuid4(), clock, Bells(None), transport=relay, limits=QUICK)
            clock.now += timedelta(seconds=1)
            assert time.monotonic() < began + 30
        took = time.monotonic() - began
    assert took >= (40 - 25 * 0.25 - 1) / 25
    assert {row.state for row in rows(engine)} == {"sent"}


def test_an_unused_connection_is_closed_and_leases_go_back(engine, settings, clock, redis_server):
    """S-14, and what S-15 counts: nothing is held by a worker that has nothing to send."""
    with engine.begin() as conn:
        due(conn, 1)
    rung = threading.Event()
    with FaultySmtp() as server:
        relay = Smtp(server.url, connections=2, idle=0.3, rate=50.0)
        options = {"transport": relay, "limits": replace(QUICK, idle=2.0), "rung": rung}
        worker = threading.Thread(target=run, args=(engine, settings, uuid4(), clock, Bells(None)), kwargs=options)
        worker.start()
        eventually(lambda: sum(server.accepted.values()) == 1)
        eventually(lambda: "QUIT" in server.commands, 5)
        assert worker.is_alive()  # it lingers, without a connection
        worker.join(20)
        assert not worker.is_alive()
    with redis.Redis.from_url(redis_server) as client:
        assert not client.exists("nurture:pace:leases:{default}:")


def test_workers_share_the_connections_of_a_relay(engine, settings, clock):
    """Two workers and ten connections allowed: the relay never sees more."""
    with engine.begin() as conn:
        due(conn, 120)
        transports.edit(conn, settings, "default", NOW, connections=4, rate=5000.0)
    most, now, lock = [0], [0], threading.Lock()

    class Counted(FaultySmtp):
        def _serve(self, sock):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            try:
                super()._serve(sock)
            finally:
                with lock:
                    now[0] -= 1

    with Counted({"data": [["hang", 0.02]] * 120}) as server:
        told = load(
            {
                "NURTURE_HOME": str(settings.home),
                "DATABASE_URL": settings.database_url,
                "REDIS_URL": settings.redis_url,
                "SMTP_URL": server.url,
            }
        )
        threads = [
            threading.Thread(target=run, args=(engine, told, uuid4(), clock, Bells(None)), kwargs={"limits": QUICK}) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        for _ in range(5):
            clock.now += timedelta(minutes=1)
            run(engine, told, uuid4(), clock, Bells(None), limits=QUICK)
        assert sum(server.accepted.values()) == 120
    assert {row.state for row in rows(engine)} == {"sent"}
    assert most[0] <= 4 + 1  # one may be closing while its lease is another's already


def test_redis_that_dies_neither_stops_nor_floods(engine, settings):
    with engine.begin() as conn:
        due(conn, 20)
    lonely = load(
        {"NURTURE_HOME": str(settings.home), "DATABASE_URL": settings.database_url, "REDIS_URL": "redis://127.0.0.1:1/0"},
    )
    with FaultySmtp() as server:
        relay, began, clock = Smtp(server.url, connections=4, rate=20.0), time.monotonic(), Clock()
        while sum(server.accepted.values()) < 20:
            run(engine, lonely, uuid4(), clock, Bells(None), transport=relay, limits=QUICK)
            clock.now += timedelta(seconds=1)
            assert time.monotonic() < began + 30
        assert time.monotonic() - began >= (20 - 20 * 0.25 - 1) / 20


# Telling --------------------------------------------------------------------------------------------------------------


def test_operators_are_told_once_over_their_channel(engine, settings, clock):
    with engine.begin() as conn:
        Cast(conn, NOW)
    with Hooks() as hook:
        told = load(
            {
                "NURTURE_HOME": str(settings.home),
                "DATABASE_URL": settings.database_url,
                "NURTURE_ALLOW_HOSTS": hook.url,
            }
        )
        with engine.begin() as conn:
            set_channel(conn, told, "operators", "slack", hook.url, NOW)
            transports.pause_for_setting(conn, "default", "535 5.7.8 no", NOW)
            transports.note(conn, [transports.Seen("default", "google", ours=True, reply="554 5.7.1 no")] * 3, {}, (), NOW)
        for _ in range(2):
            notify.run(engine, told, uuid4(), clock, Bells(None), caller=Caller(told.allow_hosts))
        [said] = hook.bodies
        said = said["text"] + str(said["blocks"])
    assert "535 5.7.8 no" in said and "google refused 3 messages in a row" in said


def test_enhanced_codes_are_kept_of_every_reply(engine, send):
    """S-13."""
    with engine.begin() as conn:
        due(conn, 2)
    transport = MemoryTransport(connections=1)
    transport.fail("rcpt", "perm", "5.1.1 no such user", 550)
    send(transport)
    with engine.connect() as conn:
        found = conn.execute(select(models.delivery_event.c.kind, models.delivery_event.c.detail)).all()
    assert {row.kind: row.detail["enhanced"] for row in found} == {"rejected": "5.1.1", "sent": "2.0.0"}
    assert enhanced("no code") is None
