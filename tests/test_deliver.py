"""Delivering: who gets mail, what becomes of it, and that nothing is sent that should not be."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes
from uuid import uuid4

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from app import models
from app.config import load
from app.flow import claims, outcome
from app.flow.deliver import Limits, recover, run
from app.flow.links import Links, load_keyring
from app.flow.outcome import Outcome
from app.flow.transports import CONFIGURATION_PAUSE
from app.providers.memory import MemoryTransport
from app.providers.smtp import Smtp, Timeouts
from app.queue import Bells
from app.rules.delivery import SENT, Ending
from tests.cast import Cast
from tests.conftest import NOW
from tests.faulty_smtp import FaultySmtp
from tests.processes import eventually

QUICK = Limits(poll=0.02, gather=0.0, patience=(0.05,), back_off=1.0, heartbeat=0.2, farewell=0.5)
WORKER = uuid4()


class Clock:
    """The time of a test; `now` may be set."""

    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def send(engine, settings, clock):
    """Runs delivery once over the given transport, an in-memory one by default, and returns it."""

    def send(transport=None, **options):
        transport = transport or MemoryTransport()
        run(engine, settings, WORKER, clock, Bells(None), transport=transport, **{"limits": QUICK, **options})
        return transport

    return send


def test_a_due_message_is_sent_once_and_settled(engine, send):
    with engine.begin() as conn:
        message_id = due(conn)
    transport = send()
    send(transport)
    [letter] = transport.letters
    row = message(engine, message_id)
    assert (row.state, row.attempts, row.settled_at, row.reason) == ("sent", 1, NOW, None)
    assert row.reply == "250 2.0.0 kept"
    assert (letter.sender, letter.recipient) == ("success@acorn.test", "ada@acorn.test")
    assert events(engine, message_id) == [("sent", "attempt:1")]
    assert settled(engine) == [
        {
            "message": str(message_id),
            "campaign": "onboarding/first-value",
            "step": "welcome",
            "occurrence": 1,
            "enrollment": str(row.enrollment_id),
            "outcome": "sent",
        }
    ]
    assert pending(engine) == [("acorn", "ada")]


def test_the_mail_carries_what_the_standards_ask(engine, send, settings):
    with engine.begin() as conn:
        message_id = due(conn)
    [letter] = send().letters
    mail = message_from_bytes(letter.data)
    row = message(engine, message_id)
    assert mail["Message-ID"] == row.message_header == f"<{message_id.hex}@acorn.test>"
    assert links(engine).read_short(mail["X-Nurture-Send"]) == message_id and len(mail["X-Nurture-Send"]) == 40
    assert mail["List-Unsubscribe"].startswith(f"<{settings.base_url}/u/")
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert mail["List-Id"] == "Product <product.acorn.test>"
    assert mail["Feedback-ID"] == "onboarding.first-value:1:email:acorn-test"
    assert mail["Subject"] == row.subject == "Hello Ada"
    assert (mail["From"], mail["To"], mail["Reply-To"]) == ("Acorn Reports <success@acorn.test>", "Ada <ada@acorn.test>", "help@acorn.test")
    html = mail.get_payload(1).get_payload(decode=True).decode()
    assert "Hello Ada of Acorn." in html and f"{settings.base_url}/c/" in html and f"{settings.base_url}/o/" in html
    assert row.person == "ada@acorn.test"
    assert row.links == ["https://app.example.com/report?of=acorn"]
    assert row.values == {"account": {"id": "acorn", "name": "Acorn"}, "contact": {"first_name": "Ada"}}


def test_a_run_that_lingers_takes_the_next_mail_over_the_connection_it_has(engine, settings, clock):
    """A ring finds it waiting; without one it ends by itself."""
    rung = threading.Event()
    limits = replace(QUICK, idle=1.0)
    with engine.begin() as conn:
        Cast(conn, NOW).messages(1)
    with FaultySmtp() as server:
        relay = Smtp(server.url, connections=4)
        options = {"transport": relay, "limits": limits, "rung": rung}
        lingering = threading.Thread(target=run, args=(engine, settings, WORKER, clock, Bells(None)), kwargs=options)
        lingering.start()
        eventually(lambda: sum(server.accepted.values()) == 1)
        with engine.begin() as conn:
            conn.execute(text("update message set state = 'due', claim = null, worker_id = null, settled_at = null"))
        rung.set()
        eventually(lambda: server.dots == 2)
        assert server.connections == 1
        lingering.join(10)
        assert not lingering.is_alive()


def test_the_higher_priority_goes_first(engine, send):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        acorn = cast.account()
        for name, priority in (("ada", 10), ("bob", 90), ("cleo", 50)):
            cast.message(cast.contact(name, acorn), priority=priority)
    assert [letter.recipient.split("@")[0] for letter in send(MemoryTransport(connections=1)).letters] == ["bob", "cleo", "ada"]


def test_what_is_not_due_stays(engine, send):
    with engine.begin() as conn:
        message_id = due(conn, due_at=NOW + timedelta(seconds=1))
    assert not send().letters
    assert message(engine, message_id).state == "due"


# What a relay says ----------------------------------------------------------------------------------------------------

# phase, outcome, code, text → state, reason, delivery event, suppressed
SAID = [
    ("mail", "temp", 451, "4.3.0 later", "due", "deferred", "deferred", False),
    ("mail", "perm", 550, "5.7.1 sender not allowed", "skipped", "rejected", "rejected", False),
    ("rcpt", "temp", 450, "4.2.0 greylisted", "due", "deferred", "deferred", False),
    ("rcpt", "temp", None, "the server closed the connection", "due", "deferred", "deferred", False),
    ("rcpt", "perm", 550, "5.1.1 no such user", "skipped", "rejected", "rejected", True),
    ("rcpt", "perm", 550, "User unknown", "skipped", "rejected", "rejected", True),
    ("rcpt", "perm", 550, "5.7.1 blocked by policy", "skipped", "rejected", "rejected", False),
    ("rcpt", "perm", 552, "5.2.2 mailbox full", "skipped", "rejected", "rejected", False),
    ("data", "perm", 554, "5.6.0 content", "skipped", "rejected", "rejected", False),
    ("body", "temp", None, "the server closed the connection", "due", "deferred", "deferred", False),
    ("dot", "temp", 451, "4.3.0 later", "due", "deferred", "deferred", False),
    ("dot", "perm", 554, "5.7.1 spam", "skipped", "rejected", "rejected", False),
    ("dot", "unknown", None, "no answer", "unknown", "no_answer", "unknown", False),
]


@pytest.mark.parametrize(("phase", "what", "code", "words", "state", "reason", "event", "suppressed"), SAID)
def test_what_follows_from_an_answer(engine, send, phase, what, code, words, state, reason, event, suppressed):
    with engine.begin() as conn:
        message_id = due(conn)
    transport = MemoryTransport()
    transport.fail(phase, what, words, code)
    send(transport)
    row = message(engine, message_id)
    assert (row.state, row.reason, row.attempts) == (state, reason, 1)
    assert events(engine, message_id) == [(event, "attempt:1")]
    assert not transport.letters
    with engine.connect() as conn:
        found = conn.execute(select(models.suppression.c.person, models.suppression.c.scope)).all()
        [ledger] = conn.execute(select(models.decision)).all()
    assert found == ([("ada@acorn.test", "bounced")] if suppressed else [])
    assert (ledger.gate, ledger.reason, ledger.message_id) == ("send", reason, message_id)
    assert ledger.verdict == ("wait" if state == "due" else "no")
    assert len(settled(engine)) == (0 if state == "due" else 1)
    if state == "due":
        assert row.claim is None and timedelta(minutes=4.8) <= row.due_at - NOW <= timedelta(minutes=7.2)


def test_a_deferred_message_is_retried_on_schedule_with_the_same_message_id_until_it_expires(engine, send, clock):
    with engine.begin() as conn:
        message_id = due(conn)
    transport = MemoryTransport()
    transport.fail("dot", times=30)
    waits, headers = [], set()
    while (row := message(engine, message_id)).state == "due":
        clock.now = row.due_at
        send(transport)
        after = message(engine, message_id)
        headers.add(after.message_header)
        waits.append((after.due_at - clock.now) / timedelta(minutes=1))
        assert len(waits) < 30
    for wait, planned in zip(waits, (6, 20, 45, 120, 240, 480, 480, 480), strict=False):
        assert 0.8 * planned <= wait <= 1.2 * planned
    assert (row.state, row.reason) == ("skipped", "expired")
    assert row.settled_at < NOW + timedelta(days=3)
    assert len(headers) == 1
    assert [letter.data.count(b"Message-ID: ") for letter in transport.begun] == [1] * len(transport.begun)
    assert len(events(engine, message_id)) == row.attempts == len(waits)
    with engine.connect() as conn:
        # The ledger says each reason once, not once per attempt.
        assert conn.execute(select(models.decision.c.reason).order_by(models.decision.c.id)).scalars().all() == ["deferred", "expired"]


def test_a_delay_that_the_relay_names_is_kept(engine, send):
    with engine.begin() as conn:
        message_id = due(conn)
    transport = MemoryTransport()
    transport.fail("rcpt", "temp", "4.2.0 greylisted, come back in 300 seconds", 450)
    send(transport)
    assert message(engine, message_id).due_at == NOW + timedelta(seconds=300)


def test_an_expired_message_is_skipped_with_the_reason(engine, send):
    with engine.begin() as conn:
        message_id = due(conn, expires_at=NOW)
    assert not send().begun
    assert (message(engine, message_id).state, message(engine, message_id).reason) == ("skipped", "expired")
    assert decisions(engine) == [("send", "no", "expired")]


def test_a_relay_that_cannot_be_reached_costs_no_attempt_and_no_claim(engine, send):
    with engine.begin() as conn:
        message_id = due(conn)
    transport = MemoryTransport()
    transport.fail("connect", text="refused", code=None, times=3)
    send(transport)
    row = message(engine, message_id)
    assert (row.state, row.attempts) == ("sent", 1)


def test_a_relay_that_wants_another_sign_in_gets_no_mail_and_keeps_none(engine, send, clock):
    with engine.begin() as conn:
        message_id = due(conn)
    transport = MemoryTransport()
    transport.fail("mail", "perm", "5.7.0 authentication required", 530)
    send(transport)
    row = message(engine, message_id)
    assert (row.state, row.reason, row.attempts) == ("due", "relay_unavailable", 0)
    assert row.due_at == NOW + timedelta(seconds=1)
    assert not events(engine, message_id)
    clock.now = row.due_at
    assert not send(transport).begun  # paused: only another setting helps
    clock.now = NOW + CONFIGURATION_PAUSE
    send(transport)
    assert message(engine, message_id).state == "sent"


# Gates ----------------------------------------------------------------------------------------------------------------


def test_invariant_6_consent_at_the_last_moment(engine, send):
    """An unsubscribe, an opt-out or an exit that commits between the claim and the final dot stops the dot."""
    stops = {
        "ada": lambda conn: suppress(conn, "ada@acorn.test", "all"),
        "bob": lambda conn: suppress(conn, "bob@acorn.test", "product"),
        "cleo": lambda conn: suppress(conn, "cleo@acorn.test", "bounced"),
        "dora": lambda conn: conn.execute(
            update(models.enrollment)
            .where(models.enrollment.c.contact_id == people["dora"].id)
            .values(state="exited", end_reason="goal_met")
        ),
        "emil": lambda conn: suppress(conn, "emil@acorn.test", "survey"),  # another topic stops nothing
        "fay": lambda conn: None,
        "gus": lambda conn: suppress(conn, "gus@acorn.test", "complained"),
        "hana": lambda conn: suppress(conn, "hana@acorn.test", "manual"),
    }
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        acorn = cast.account()
        people = {name: cast.contact(name, acorn) for name in stops}
        ids = {name: cast.message(person) for name, person in people.items()}

    transport = MemoryTransport(connections=3)

    def before_dot(letter):
        with engine.begin() as conn:
            stops[letter.recipient.split("@")[0]](conn)

    transport.before_dot = before_dot
    send(transport)
    assert sorted(letter.recipient.split("@")[0] for letter in transport.letters) == ["emil", "fay"]
    assert len(transport.begun) == 8 and transport.dropped == 6
    found = {name: (row.state, row.reason) for name, row in ((name, message(engine, ident)) for name, ident in ids.items())}
    assert found == {
        "ada": ("skipped", "opted_out"),
        "bob": ("skipped", "topic_opted_out"),
        "cleo": ("skipped", "suppressed"),
        "dora": ("skipped", "enrollment_ended"),
        "emil": ("sent", None),
        "fay": ("sent", None),
        "gus": ("skipped", "suppressed"),
        "hana": ("skipped", "suppressed"),
    }
    assert len(decisions(engine)) == 6 and len(settled(engine)) == 8


def test_no_dot_reaches_a_real_relay_after_an_unsubscribe(engine, send):
    with engine.begin() as conn:
        message_id = due(conn)
    with FaultySmtp() as server:
        transport = Unsubscribing(server.url, engine)
        send(transport)
        assert server.dots == 0 and "body" in server.reached
    assert message(engine, message_id).reason == "opted_out"


class Unsubscribing(Smtp):
    """A relay whose recipient unsubscribes while the body is on its way."""

    def __init__(self, url, engine):
        super().__init__(url)
        self.engine = engine

    async def open(self):
        connection = await super().open()
        begin = connection.begin

        async def begin_and_unsubscribe(letter):
            await begin(letter)
            with self.engine.begin() as conn:
                suppress(conn, letter.recipient, "all")

        connection.begin = begin_and_unsubscribe
        return connection


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        (lambda conn: conn.execute(update(models.campaign).values(mode="paused")), "due", "campaign_paused"),
        (lambda conn: conn.execute(update(models.campaign).values(mode="draft")), "skipped", "campaign_not_live"),
        (lambda conn: conn.execute(update(models.account).values(stage="adoption")), "skipped", "exit_when"),
        (lambda conn: conn.execute(update(models.contact).values(address=None, person=None)), "skipped", "no_address"),
        (lambda conn: conn.execute(update(models.contact).values(first_name=None)), "skipped", "missing_value"),
        (lambda conn: conn.execute(models.membership.delete()), "skipped", "not_a_member"),
        (lambda conn: conn.execute(update(models.enrollment).values(state="finished")), "skipped", "enrollment_ended"),
        (lambda conn: hold(conn), "due", "held"),
        (lambda conn: conn.execute(models.template.delete()), "skipped", "bad_template"),
        (lambda conn: conn.execute(update(models.contact).values(address="ädä@acorn.test")), "skipped", "eai_unsupported"),
    ],
)
def test_invariant_8_every_no_and_not_yet_has_its_reason(engine, send, change, state, reason):
    """Invariant 8, for the gates that deliver decides again."""
    with engine.begin() as conn:
        message_id = due(conn)
        change(conn)
    assert not send().begun
    row = message(engine, message_id)
    assert (row.state, row.reason, row.attempts) == (state, reason, 0)
    [(_, verdict, said)] = decisions(engine)
    assert (verdict, said) == ("wait" if state == "due" else "no", reason)
    if state == "due":
        assert row.due_at > NOW and row.claim is None


def test_one_person_gets_one_survey_however_many_fall_due_together(engine, send):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        one = cast.contact("ada", cast.account("acorn"), person="ada@person.test", address="ada@person.test")
        two = cast.contact("ada2", cast.account("oak"), person="ada@person.test", address="ada@person.test")
        ids = [cast.message(one, "ask"), cast.message(two, "ask")]
    assert len(send().letters) == 1
    assert sorted(str(message(engine, ident).reason) for ident in ids) == ["None", "survey_quarantine"]


def test_refused_tracking_is_respected(engine, send, settings):
    with engine.begin() as conn:
        due(conn)
        for purpose in ("open_tracking", "click_tracking"):
            for at, granted in ((NOW - timedelta(days=2), True), (NOW - timedelta(days=1), False)):
                conn.execute(
                    models.consent.insert().values(person="ada@acorn.test", purpose=purpose, granted=granted, at=at, method="page")
                )
    [letter] = send().letters
    html = message_from_bytes(letter.data).get_payload(1).get_payload(decode=True).decode()
    assert f"{settings.base_url}/c/" not in html and f"{settings.base_url}/o/" not in html
    assert "https://app.example.com/report?of=acorn" in html


def test_a_message_that_makes_the_code_raise_stops_nobody_and_is_tried_again(engine, send):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        acorn = cast.account()
        bad = cast.message(cast.contact("ada", acorn))
        good = cast.message(cast.contact("bob", acorn))
        conn.execute(update(models.message).where(models.message.c.id == bad).values(step_id="no-such-step"))
    assert [letter.recipient for letter in send().letters] == ["bob@acorn.test"]
    assert message(engine, good).state == "sent"
    row = message(engine, bad)
    assert (row.state, row.reason, row.attempts) == ("due", "render_failed", 0) and row.due_at > NOW


def test_a_connection_that_raises_costs_its_letter_a_turn_and_the_run_nothing(engine, send):
    class Broken(MemoryTransport):
        async def open(self):
            connection = await super().open()
            begin = connection.begin

            async def begin_or_raise(letter):
                if letter.recipient.startswith("ada"):
                    raise ZeroDivisionError("a fault of our own")
                await begin(letter)

            connection.begin = begin_or_raise
            return connection

    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        acorn = cast.account()
        bad, good = cast.message(cast.contact("ada", acorn)), cast.message(cast.contact("bob", acorn))
    send(Broken(connections=1))
    assert (message(engine, bad).state, message(engine, bad).reason) == ("due", "deferred")
    assert message(engine, good).state == "sent"


# Claims ---------------------------------------------------------------------------------------------------------------


def test_invariant_4_never_twice(engine, settings):
    """Four workers at once over a relay that fails in every way: each message is accepted at most once, and unknown ones never again."""
    faults = {
        "dot": [["close"], ["reply", "451 4.3.0 later"], ["reply+close", "250 2.0.0 ok"]] * 4,
        "rcpt": [["reply", "450 4.2.0 later"]] * 3,
        "body": [["close"]] * 3,
        "mail": [["reply+close", "421 4.3.2 busy"]] * 2,
    }
    with engine.begin() as conn:
        ids = Cast(conn, NOW).messages(80)
    clock = Clock()
    with FaultySmtp(faults) as server:
        for round_ in range(8):
            clock.now = NOW + timedelta(hours=9 * round_)
            threads = [
                threading.Thread(
                    target=run,
                    args=(engine, settings, uuid4(), clock, Bells(None)),
                    kwargs={"transport": Smtp(server.url, connections=4, timeouts=Timeouts(dot=1)), "limits": QUICK},
                )
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            with engine.connect() as conn:
                if not conn.execute(text("select count(*) from message where state in ('due', 'claimed', 'in_dot')")).scalar():
                    break
        rows = {ident: message(engine, ident) for ident in ids}
        assert {row.state for row in rows.values()} == {"sent", "unknown"}
        assert max(server.accepted.values()) == 1
        for row in rows.values():
            assert server.accepted[row.message_header] == 1 or row.state == "unknown"
        # A dot whose connection closed without a word was accepted by this relay, and is not sent again for it. A connection that the
        # relay closed in the body may take the dot before it shows that it is closed: then nobody knows, and nobody sends again.
        assert sum(server.accepted.values()) >= 80 - 3
    assert len(settled(engine)) == 80


def test_invariant_5_never_lost(engine, send, clock, settings):
    """Claims of the dead are found: not yet at the dot → due again; at the dot → unknown. The living keep theirs."""
    dead, stopped, alive, unregistered = uuid4(), uuid4(), uuid4(), uuid4()
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        ids = cast.messages(8)
        for number, worker in enumerate((dead, stopped, alive, unregistered)):
            for state, ident in zip(("claimed", "in_dot"), ids[2 * number : 2 * number + 2], strict=True):
                conn.execute(
                    update(models.message).where(models.message.c.id == ident).values(state=state, worker_id=worker, claim=uuid4())
                )
        for worker, heartbeat, stop in ((dead, "-31 s", None), (stopped, "0 s", "0 s"), (alive, "-10 s", None)):
            conn.execute(
                text(
                    "insert into worker (id, host, pid, started_at, heartbeat_at, stopped_at) values "
                    "(:id, 'h', 1, now(), now() + cast(:beat as interval), now() + cast(:stop as interval))"
                ),
                {"id": worker, "beat": heartbeat, "stop": stop},
            )
    found = recover(engine, clock, Bells(None))
    assert (found.due, found.unknown) == (3, 3)
    states = [message(engine, ident).state for ident in ids]
    assert states == ["due", "unknown", "due", "unknown", "claimed", "in_dot", "due", "unknown"]
    assert recover(engine, clock, Bells(None)) == claims.Recovered(0, 0)
    assert [one["outcome"] for one in settled(engine)] == ["unknown"] * 3
    assert [said[2] for said in decisions(engine)] == ["worker_died"] * 3
    transport = send()
    assert {letter.message_id for letter in transport.letters} == {ids[0], ids[2], ids[6]}


def test_a_claim_taken_over_is_fenced_off(engine, clock, send):
    """Whoever wakes up after another took over gets no dot and settles nothing."""
    with engine.begin() as conn:
        message_id = due(conn)
    old = uuid4()
    with engine.begin() as conn:
        [row] = claims.claim(conn, old, NOW, 10)
    kill(engine, old)
    recover(engine, clock, Bells(None), dead_after=1)
    assert len(send().letters) == 1
    ready = claims.Ready(row, "ada@acorn.test", "<x@y>", "s", {}, ())
    with engine.begin() as conn:
        assert claims.commit_dots(conn, [ready], NOW) == (set(), {})
        late = Outcome(row, Ending("skipped", "rejected", "rejected"), NOW, reply="550")
        assert outcome.settle(conn, [late], NOW, 64) == set()
    assert (message(engine, message_id).state, events(engine, message_id)) == ("sent", [("sent", "attempt:1")])


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        (SENT, "sent"),
        (Ending("due", "deferred", "deferred", due_at=NOW), "skipped"),
        (Ending("unknown", "no_answer", "unknown"), "unknown"),
    ],
)
def test_a_late_truth_settles_an_unknown_message_and_never_revives_it(engine, clock, ending, state):
    with engine.begin() as conn:
        message_id = due(conn)
    worker = uuid4()
    with engine.begin() as conn:
        [row] = claims.claim(conn, worker, NOW, 10)
    with engine.begin() as conn:
        claims.commit_dots(conn, [claims.Ready(row, "ada@acorn.test", "<x@y>", "s", {}, ())], NOW)
    kill(engine, worker)
    recover(engine, clock, Bells(None), dead_after=1)
    assert message(engine, message_id).state == "unknown"
    with engine.begin() as conn:
        outcome.settle(conn, [Outcome(row, ending, NOW, reply="250 ok")], NOW, 64)
    assert message(engine, message_id).state == state
    assert len(settled(engine)) == 1


def test_results_written_twice_are_written_once(engine):
    with engine.begin() as conn:
        message_id = due(conn)
        [row] = claims.claim(conn, WORKER, NOW, 10)
        claims.commit_dots(conn, [claims.Ready(row, "ada@acorn.test", "<x@y>", "s", {}, ())], NOW)
    for _ in range(2):
        with engine.begin() as conn:
            outcome.settle(conn, [Outcome(row, SENT, NOW, reply="250 ok")], NOW, 64)
    assert (message(engine, message_id).state, message(engine, message_id).attempts) == ("sent", 1)
    assert events(engine, message_id) == [("sent", "attempt:1")]
    assert len(settled(engine)) == 1


def test_a_claim_whose_commit_was_never_answered_is_given_back(engine, send):
    """The next run of the same worker finds what it does not know of."""
    with engine.begin() as conn:
        ids = Cast(conn, NOW).messages(2)
        [one, two] = claims.claim(conn, WORKER, NOW, 10)
        claims.commit_dots(conn, [claims.Ready(two, "x@y.test", "<x@y>", "s", {}, ())], NOW)
    with engine.begin() as conn:  # makes the run begin at all
        cast = Cast.of(conn, NOW)
        cast.message(cast.contact("zoe", cast.account("oak")))
    transport = send()
    assert {letter.message_id for letter in transport.letters} >= {one.id}
    assert {message(engine, ident).state for ident in ids} == {"sent", "unknown"}


def test_a_hanging_dot_holds_nobody_else_up(engine, send, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    with engine.begin() as conn:
        ids = Cast(conn, NOW).messages(40)
    with FaultySmtp({"dot": [["hold", str(hold)]]}) as server:
        worker = threading.Thread(target=send, args=(Smtp(server.url, connections=3),))
        worker.start()
        wait_for(lambda: count(engine, "sent") == 39)
        assert count(engine, "in_dot") == 1
        with engine.begin() as conn:  # mail that falls due meanwhile goes out meanwhile
            cast = Cast.of(conn, NOW)
            late = cast.message(cast.contact("late", cast.account("late")))
        wait_for(lambda: message(engine, late).state == "sent")
        hold.unlink()
        worker.join(20)
        assert not worker.is_alive()
    assert {message(engine, ident).state for ident in ids} == {"sent"}


def test_a_worker_that_is_told_to_stop_gives_back_what_it_has_not_begun(engine, send, tmp_path):
    hold = tmp_path / "hold"
    hold.touch()
    stopping = threading.Event()
    with engine.begin() as conn:
        ids = Cast(conn, NOW).messages(12)
    with FaultySmtp({"dot": [["hold", str(hold)]] * 2}) as server:
        worker = threading.Thread(target=send, args=(Smtp(server.url, connections=2),), kwargs={"stopping": stopping.is_set})
        worker.start()
        wait_for(lambda: count(engine, "in_dot") == 2)
        stopping.set()
        worker.join(20)
        assert not worker.is_alive()
        hold.unlink()
    assert (count(engine, "unknown"), count(engine, "due"), count(engine, "claimed")) == (2, 10, 0)
    assert {message(engine, ident).attempts for ident in ids} == {0, 1}
    with engine.connect() as conn:
        assert conn.execute(select(models.worker.c.stopped_at)).scalar_one() is not None


def test_gates_are_asked_again_for_what_waited_too_long(engine, send, tmp_path):
    """A letter prepared long before its turn is prepared anew: the pause in between holds it back."""
    hold = tmp_path / "hold"
    hold.touch()
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        acorn = cast.account()
        for name in ("ada", "bob"):
            cast.message(cast.contact(name, acorn))
    with FaultySmtp({"dot": [["hold", str(hold)]]}) as server:
        worker = threading.Thread(target=send, args=(Smtp(server.url, connections=1),), kwargs={"limits": Limits(poll=0.02, fresh=0.1)})
        worker.start()
        wait_for(lambda: count(engine, "in_dot") == 1)
        with engine.begin() as conn:
            conn.execute(update(models.campaign).values(mode="paused"))
        time.sleep(0.15)  # the letter grows stale
        hold.unlink()
        worker.join(20)
        assert not worker.is_alive()
        assert server.dots == 1
    assert sorted((row.state, row.reason) for row in rows(engine)) == [("due", "campaign_paused"), ("sent", None)]


def test_a_database_that_goes_away_for_a_moment_loses_nothing_and_doubles_nothing(engine, settings, clock):
    """Backends are killed again and again during the run; every result is known in the end."""
    with engine.begin() as conn:
        Cast(conn, NOW).messages(150)
    over = threading.Event()

    def assassin():
        while not over.wait(0.05):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.execute(
                    text(
                        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                        "and pid <> pg_backend_pid() order by random() limit 1"
                    )
                )

    killer = threading.Thread(target=assassin)
    with FaultySmtp({"data": [["hang", 0.05]] * 100}) as server:
        killer.start()
        try:
            for _ in range(200):
                clock.now += timedelta(seconds=5)
                try:
                    run(engine, settings, WORKER, clock, Bells(None), transport=Smtp(server.url, connections=4), limits=QUICK)
                except Exception as error:  # a run may end by it, as the job that calls it may; the next goes on
                    assert "terminat" in str(error) or "connection" in str(error), error
                with contextlib.suppress(OperationalError):  # the one who counts may be killed as well
                    if count(engine, "sent") + count(engine, "unknown") == 150:
                        break
        finally:
            over.set()
            killer.join()
        assert count(engine, "sent") + count(engine, "unknown") == 150
        assert max(server.accepted.values()) == 1
        assert len([row for row in rows(engine) if row.state == "sent"]) <= sum(server.accepted.values())
    assert len(settled(engine)) == 150


def test_workers_live_by_the_clock_of_the_database(engine):
    worker = uuid4()
    with engine.begin() as conn:
        due(conn)
        claims.claim(conn, worker, NOW, 1)
    kill(engine, worker)
    with claims.Heartbeat(engine, worker, 0.02):
        wait_for(lambda: fresh(engine, worker))


def test_without_a_relay_mail_goes_to_the_outbox(engine, settings, clock):
    with engine.begin() as conn:
        message_id = due(conn)
    assert settings.smtp_url is None
    assert run(engine, settings, WORKER, clock, Bells(None), limits=QUICK) == 1
    with engine.connect() as conn:
        row = conn.execute(select(models.outbox)).one()
    assert (row.message_id, row.sender, row.recipient, row.captured_at) == (message_id, "success@acorn.test", "ada@acorn.test", NOW)
    assert b"X-Nurture-Send: " + links(engine).short_token(message_id).encode() in bytes(row.raw)
    assert message(engine, message_id).state == "sent"


def test_the_relay_of_the_settings_is_used(engine, settings, clock, tmp_path):
    with engine.begin() as conn:
        message_id = due(conn)
    with FaultySmtp() as server:
        told = load({"NURTURE_HOME": str(tmp_path / "h"), "DATABASE_URL": settings.database_url, "SMTP_URL": server.url})
        assert run(engine, told, WORKER, clock, Bells(None), limits=QUICK) == 1
        assert list(server.accepted) == [f"<{message_id.hex}@acorn.test>"]
        assert "EHLO [127.0.0.1]" in server.commands


# How it is done -------------------------------------------------------------------------------------------------------


def due(conn, **values):
    """A message that is due to Ada of acorn."""
    cast = Cast(conn, NOW)
    return cast.message(cast.contact("ada"), **values)


def links(engine):
    with engine.connect() as conn:
        return Links("http://127.0.0.1:8000", load_keyring(conn))


def message(engine, ident):
    with engine.connect() as conn:
        return conn.execute(select(models.message).where(models.message.c.id == ident)).one()


def rows(engine):
    with engine.connect() as conn:
        return conn.execute(select(models.message)).all()


def count(engine, state):
    with engine.connect() as conn:
        return conn.execute(text("select count(*) from message where state = :state"), {"state": state}).scalar()


def events(engine, ident):
    with engine.connect() as conn:
        found = conn.execute(select(models.delivery_event).where(models.delivery_event.c.message_id == ident).order_by("id"))
        return [(row.kind, row.key) for row in found]


def decisions(engine):
    with engine.connect() as conn:
        return [(row.gate, row.verdict, row.reason) for row in conn.execute(select(models.decision).order_by("id"))]


def settled(engine):
    with engine.connect() as conn:
        found = conn.execute(select(models.event).where(models.event.c.name == "nurture.message_settled").order_by("id"))
        return [row.properties for row in found]


def pending(engine):
    with engine.connect() as conn:
        return [(row.account_key, row.contact_key) for row in conn.execute(select(models.event_pending))]


def suppress(conn, person, scope):
    conn.execute(models.suppression.insert().values(person=person, scope=scope, reason="unsubscribed", created_at=NOW))


def hold(conn):
    account = conn.execute(select(models.account.c.id)).scalar_one()
    conn.execute(models.hold.insert().values(account_id=account, reason="open ticket", created_at=NOW))


def kill(engine, worker):
    with engine.begin() as conn:
        conn.execute(text("update worker set heartbeat_at = clock_timestamp() - interval '1 hour' where id = :id"), {"id": worker})


def fresh(engine, worker):
    with engine.connect() as conn:
        return conn.execute(
            text("select heartbeat_at > clock_timestamp() - interval '1 minute' from worker where id = :id"), {"id": worker}
        ).scalar()


def wait_for(test, seconds=20):
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
