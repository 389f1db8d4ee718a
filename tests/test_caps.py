"""Caps and the one mail per person: places taken with the claim, in the order of priority, given back when nothing was sent."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from threading import Thread
from uuid import uuid4

import pytest
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from sqlalchemy import select, update

from app.flow.deliver import run
from app.models import campaign, campaign_version, contact, decision, enrollment, membership, message, reservation, template
from app.providers.memory import MemoryTransport as transport
from app.queue import Bells
from app.rules.capacity import Place, refusal
from app.rules.delivery import Limits
from app.rules.facts import hash_id
from app.rules.lifecycle import Cap
from tests.cast import Cast
from tests.conftest import NOW
from tests.stories import make_book

QUICK = Limits(poll=0.02, gather=0.0, patience=(0.05,), back_off=1.0, heartbeat=0.2, farewell=0.5)
CAPS = {"caps": [{"topic": "product", "per": "person", "at_most": 1, "within": "7d"}, {"per": "account", "at_most": 3, "within": "1d"}]}
DAY = timedelta(days=1)


class Clock:
    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def deliver(engine, settings, clock, sink) -> int:
    return run(engine, settings, uuid4(), clock, Bells(None), transport=sink, limits=QUICK)


def states(engine) -> dict:
    with engine.connect() as conn:
        return {row.id: (row.state, row.reason) for row in conn.execute(select(message))}


def second(cast: Cast, person, priority: int = 50, step: str = "welcome", **values):
    """Another enrollment of the same person, in another campaign, with a message that is due."""
    conn = cast.conn
    definition = conn.execute(select(campaign_version.c.definition)).scalars().first()
    number = uuid4().hex[:6]
    other = cast._add(campaign, key=f"onboarding/{number}", name="Other", mode="live")
    version = cast._add(campaign_version, campaign_id=other, number=1, hash=number, definition=definition, published_at=cast.now)
    conn.execute(update(campaign).where(campaign.c.id == other).values(version_id=version))
    kept = cast.version_id, cast.campaign_id
    cast.version_id, cast.campaign_id = version, other
    for one in definition["steps"]:
        cast.template(one["id"], one["subject"])
    ident = hash_id("enrollment", number, person.account_key, person.key)
    inside = conn.execute(select(enrollment).where(enrollment.c.id == person.enrollment)).mappings().one()
    conn.execute(enrollment.insert().values({**inside, "id": ident, "campaign_id": other, "version_id": version}))
    made = cast.message(
        type(person)(person.id, person.key, person.account_id, person.account_key, ident), step, priority=priority, **values
    )
    cast.version_id, cast.campaign_id = kept
    return made


def test_the_higher_priority_has_the_place_and_the_loser_waits_until_there_is_one(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle=CAPS)
        ada = cast.contact()
        low = cast.message(ada, priority=10, expires_at=NOW + 30 * DAY)
        high = second(cast, ada, priority=90)
    sink = transport()
    deliver(engine, settings, clock, sink)
    assert states(engine)[high] == ("sent", None)
    assert states(engine)[low] == ("due", "capped")
    with engine.connect() as conn:
        assert conn.execute(select(message.c.due_at).where(message.c.id == low)).scalar_one() == NOW + 7 * DAY
    clock.now = NOW + 7 * DAY
    deliver(engine, settings, clock, sink)
    assert states(engine)[low] == ("sent", None)
    assert len(sink.letters) == 2


def test_who_waits_for_too_long_is_skipped_with_the_reason(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle=CAPS)
        ada = cast.contact()
        low = cast.message(ada, priority=10)
        second(cast, ada, priority=90)
    sink = transport()
    deliver(engine, settings, clock, sink)
    clock.now = NOW + 3 * DAY
    deliver(engine, settings, clock, sink)
    assert states(engine)[low] == ("skipped", "capped")


def test_a_message_that_is_not_sent_gives_its_place_back(engine, settings, clock):
    """The winner would have a hole: it takes no place, and who comes after it in the same claim goes instead, without waiting."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle=CAPS)
        ada = cast.contact()
        low = cast.message(ada, priority=10)
        plain = {
            "subject": "Hello",
            "html": "<p>Hello {{ account.name }}</p>",
            "text": "Hello {{ account.name }}",
            "reads": ["account.name"],
        }
        conn.execute(update(template).values(plain))
        conn.execute(update(contact).values(first_name=None))
        high = second(cast, ada, priority=90)
    sink = transport()
    deliver(engine, settings, clock, sink)
    assert states(engine)[high] == ("skipped", "missing_value")
    with engine.begin() as conn:
        assert "capped" not in conn.execute(select(decision.c.reason)).scalars().all()
        assert conn.execute(select(reservation.c.message_id)).scalars().all() == [low]
    assert states(engine)[low] == ("sent", None)


def test_a_message_that_the_relay_defers_keeps_its_place(engine, settings, clock):
    """Greylisting must not hand the place of the higher priority to the lower one."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle=CAPS)
        ada = cast.contact()
        low = cast.message(ada, priority=10, expires_at=NOW + 30 * DAY)
        high = second(cast, ada, priority=90)
    sink = transport(1)
    sink.fail("rcpt", "temp", "4.2.0 greylisted", 450)
    deliver(engine, settings, clock, sink)
    assert states(engine) == {high: ("due", "deferred"), low: ("due", "capped")}
    clock.now += timedelta(hours=1)
    deliver(engine, settings, clock, sink)
    assert states(engine) == {high: ("sent", None), low: ("due", "capped")}
    clock.now = NOW + timedelta(days=7, hours=1)  # the window counts from the attempt that succeeded
    deliver(engine, settings, clock, sink)
    assert states(engine)[low] == ("sent", None)


def test_a_message_with_a_place_that_a_gate_has_wait_gives_it_back(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle=CAPS)
        ada, ben = cast.contact(), cast.contact("ben", cast.account("other"))
        low = cast.message(ada, priority=10, expires_at=NOW + 30 * DAY)
        second(cast, ada, priority=90)
        cast.message(ben)
    sink = transport(1)
    sink.fail("rcpt", "temp", "4.2.0 greylisted", 450)
    deliver(engine, settings, clock, sink)
    clock.now += timedelta(hours=1)
    with engine.begin() as conn:
        conn.execute(update(campaign).where(campaign.c.id != cast.campaign_id).values(mode="paused"))
    deliver(engine, settings, clock, sink)
    deliver(engine, settings, clock, sink)  # the first may have ended just when the place was given back; then the next tick rings
    assert states(engine)[low] == ("sent", None)


def test_a_survey_that_the_relay_defers_is_the_one_that_is_asked(engine, settings, clock):
    """With quarantine, of two surveys the higher priority is asked, however long the relay has it wait and whoever delivers."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        ada = cast.contact()
        low = cast.message(ada, "ask", priority=10, expires_at=NOW + 30 * DAY)
        late = second(cast, ada, priority=50, step="ask", due_at=NOW + timedelta(minutes=3), expires_at=NOW + 4 * DAY)
        high = second(cast, ada, priority=90, step="ask")
    sink = transport(1)
    sink.fail("rcpt", "temp", "4.2.0 greylisted", 450)
    deliver(engine, settings, clock, sink)
    assert states(engine) == {high: ("due", "deferred"), low: ("skipped", "survey_quarantine"), late: ("due", None)}
    clock.now += timedelta(minutes=3)
    deliver(engine, settings, clock, sink)
    assert states(engine)[late] == ("skipped", "survey_quarantine")
    clock.now += timedelta(hours=1)
    deliver(engine, settings, clock, sink)
    assert states(engine) == {high: ("sent", None), low: ("skipped", "survey_quarantine"), late: ("skipped", "survey_quarantine")}


@pytest.mark.parametrize("kind", ["survey", "shared"])
def test_of_two_that_one_person_may_get_the_first_in_order_goes_whoever_of_four_workers_has_it(engine, settings, clock, kind):
    """Two messages of which a person may get one, for 60 persons: always the one that is claimed first by priority, then due time."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        wanted = set()
        for number in range(60):
            address = f"person-{number}@one.test"
            one = cast.contact(f"person-{number}", cast.account(f"account-{number}"), address=address, person=address)
            if kind == "survey":
                cast.message(one, "ask", priority=10)
                wanted.add(second(cast, one, priority=90, step="ask"))
            else:
                twin = cast.contact(f"twin-{number}", cast.account(f"other-{number}"), address=address, person=address)
                cast.message(one)
                wanted.add(cast.message(twin, due_at=NOW - timedelta(minutes=1)))
    threads = [Thread(target=deliver, args=(engine, settings, clock, transport(1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = states(engine)
    assert {ident for ident, (state, _) in found.items() if state == "sent"} == wanted
    assert {reason for state, reason in found.values() if state == "skipped"} == {
        "survey_quarantine" if kind == "survey" else "already_mailed"
    }


def test_caps_of_an_account_count_everybody_in_it_and_transactional_mail_is_exempt(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle=CAPS)
        account = cast.account()
        for number in range(5):
            cast.message(cast.contact(f"person-{number}", account))
        receipt = cast.message(cast.contact("payer", account), topic="transactional")
    sink = transport()
    deliver(engine, settings, clock, sink)
    found = list(states(engine).values())
    assert found.count(("due", "capped")) == 2
    assert found.count(("sent", None)) == 4
    assert receipt in states(engine)
    clock.now = NOW + DAY
    deliver(engine, settings, clock, sink)
    assert {state for state, _ in states(engine).values()} == {"sent"}


def test_a_ghost_uses_capacity_and_a_shadow_none(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle=CAPS)
        ada, ben = cast.contact("ada", cast.account("one")), cast.contact("ben", cast.account("two"))
        ghost, live = cast.message(ada, priority=90), second(cast, ada, priority=10)
        shadow, alive = cast.message(ben, priority=90), second(cast, ben, priority=10)
        conn.execute(update(enrollment).where(enrollment.c.id == ada.enrollment).values(held_out=True))
        conn.execute(update(enrollment).where(enrollment.c.id == ben.enrollment).values(shadow=True))
        conn.execute(update(campaign).where(campaign.c.id == cast.campaign_id).values(mode="live"))
    sink = transport()
    deliver(engine, settings, clock, sink)
    found = states(engine)
    assert (found[ghost][0], found[live]) == ("ghosted", ("due", "capped"))
    assert found[alive] == ("sent", None)
    assert found[shadow][0] != "sent"


def test_a_survey_in_the_shadow_keeps_nobody_from_being_asked(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        ada = cast.contact("ada")
        shadow = cast.message(ada, "ask")
        live = second(cast, ada, step="ask", due_at=NOW + DAY, expires_at=NOW + 4 * DAY)
        conn.execute(update(campaign).where(campaign.c.id == cast.campaign_id).values(mode="shadow"))
        conn.execute(update(enrollment).where(enrollment.c.id == ada.enrollment).values(shadow=True))
    deliver(engine, settings, clock, transport())
    clock.now += DAY
    deliver(engine, settings, clock, transport())
    found = states(engine)
    assert (found[shadow][0], found[live]) == ("shadow", ("sent", None))


def test_a_person_at_two_accounts_gets_a_step_once(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        ada = cast.contact("ada", cast.account("one"))
        twin = cast.contact("ada-two", cast.account("two"), address="ada@one.test", person="ada@one.test")
        first, other = cast.message(ada), cast.message(twin)
        assert conn.execute(select(membership)).all()
    sink = transport()
    deliver(engine, settings, clock, sink)
    found = states(engine)
    assert {found[one] for one in (first, other)} == {("sent", None), ("skipped", "already_mailed")}
    assert len(sink.letters) == 1


def test_what_went_to_a_former_address_counts_for_a_person_at_two_accounts(engine, settings, clock):
    """All that ever went to a person at several accounts counts, also when the address was another then."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW, {"per_account": True}, lifecycle=CAPS)
        one, two = cast.contact("ada", cast.account("one")), cast.contact("ada-two", cast.account("two"))
        cast.message(one)
        cast.message(two)
        late = second(cast, one, due_at=NOW + timedelta(hours=1), expires_at=NOW + 4 * DAY)
    deliver(engine, settings, clock, transport())
    with engine.begin() as conn:
        conn.execute(update(contact).values(address="ada@new.test", person="ada@new.test"))
    clock.now += timedelta(hours=1)
    deliver(engine, settings, clock, transport())
    assert states(engine)[late] == ("due", "capped")


def test_unless_the_campaign_writes_for_each_account(engine, settings, clock):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, {"per_account": True})
        cast.message(cast.contact("ada", cast.account("one")))
        cast.message(cast.contact("ada-two", cast.account("two"), address="ada@one.test", person="ada@one.test"))
    sink = transport()
    deliver(engine, settings, clock, sink)
    assert len(sink.letters) == 2


def test_two_workers_at_once_never_pass_a_cap_or_ask_twice(engine, settings, clock):
    """40 persons with five messages each, half of them surveys, four workers: one product mail and one survey for each."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle={"caps": [{"topic": "product", "per": "person", "at_most": 1, "within": "7d"}]})
        for number in range(40):
            one = cast.contact(f"person-{number}", cast.account(f"account-{number}"))
            cast.message(one)
            cast.message(one, "ask")
            for _ in range(2):
                second(cast, one)
            second(cast, one, step="ask")
    sinks = [transport() for _ in range(4)]
    threads = [Thread(target=deliver, args=(engine, settings, clock, sink)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.connect() as conn:
        sent = conn.execute(select(message.c.contact_id, message.c.kind).where(message.c.state == "sent")).all()
    assert len(sent) == len(set(sent)) == 80


@given(strategies.data())
@hypothesis_settings(max_examples=200)
def test_no_window_ever_holds_more_than_the_cap(data):
    at_most, days = data.draw(strategies.integers(1, 4)), data.draw(strategies.integers(1, 10))
    book = make_book("trigger: {event: a}\nsteps: [{id: m, email: m.mjml, subject: M}]")
    cap = Cap(topic="product", per="person", at_most=at_most, within=f"{days}d")
    book = replace(book, lifecycle=book.lifecycle.model_copy(update={"caps": [cap]}))
    version, taken, waiting = book.versions[1], [], []
    moments = sorted(data.draw(strategies.lists(strategies.integers(0, 60 * 24), min_size=1, max_size=40)))
    for number, hour in enumerate(moments):
        waiting.append((NOW + timedelta(hours=hour), number))
    while waiting:
        waiting.sort()
        at, number = waiting.pop(0)
        place = Place(hash_id("m", number), "p", "a", "product", "c1", f"s{number}", False, at)
        no = refusal(book, version, place, taken)
        if no is None:
            taken.append(place)
        else:
            until = type(NOW).fromisoformat(no.evidence["until"])
            assert until > at
            waiting.append((until, number))
    for one in taken:
        assert sum(one.at - cap.within < other.at <= one.at for other in taken) <= at_most
    assert len(taken) == len(moments)
