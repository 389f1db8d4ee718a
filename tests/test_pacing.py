"""Rates and connections that all workers share: one question for a batch, by Redis' clock, and what holds while Redis is away (S-15)."""

from __future__ import annotations

import signal
import threading
import time
from uuid import uuid4

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from app import embedded
from app.pacing import HORIZON, LEASE, Asked, Pacer
from app.rules.lanes import BURST, Meter, Pace, Providers, is_reputation, strikes
from tests.processes import eventually

FAST = Pace(1000.0, 10)


@pytest.fixture
def place(redis_server):
    """A corner of Redis for one test: the URL and a prefix."""
    prefix = f"pace-{uuid4().hex}"
    yield redis_server, prefix
    with redis.Redis.from_url(redis_server) as client:
        for key in client.scan_iter(f"{prefix}:*"):
            client.delete(key)


def pacer(place, **options):
    url, prefix = place
    return Pacer(url, uuid4(), prefix=prefix, **options)


def ask(one, pace=FAST, count=0, *, connections=10, lanes=None, letters=None, transport="default"):
    return one.ask(Asked(transport, pace, connections, lanes or {}, letters if letters is not None else [""] * count))


# Rates ----------------------------------------------------------------------------------------------------------------


def test_a_rate_that_two_workers_share_is_kept_by_both_together(place):
    """Slots given to both never come faster than the rate, but for the burst."""
    one, two, rate = pacer(place), pacer(place), 100.0
    moments = []
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for who in (one, two):
            asked_at = time.monotonic()
            granted = ask(who, Pace(rate), 20)
            moments += [asked_at + slot for slot in granted.slots if slot is not None]
    moments.sort()
    span = moments[-1] - moments[0]
    assert 0.9 * rate * span <= len(moments) <= rate * (span + BURST) + 3
    for first in range(len(moments)):
        within = [moment for moment in moments[first:] if moment <= moments[first] + 0.5]
        # The asking takes time of its own, which a slot is counted from.
        assert len(within) <= rate * (0.5 + BURST) + 5


def test_an_emptied_limiter_begins_empty_not_full(place):
    url, prefix = place
    one = pacer(place)
    pace = Pace(10.0)
    first = ask(one, pace, 3).slots
    assert first[0] == pytest.approx(0.1, abs=0.01) and first[1] == pytest.approx(0.2, abs=0.01)
    time.sleep(0.5)
    with redis.Redis.from_url(url) as client:
        client.delete(*client.scan_iter(f"{prefix}:rate:*"))
    assert ask(one, pace, 1).slots[0] == pytest.approx(0.1, abs=0.01)


def test_what_does_not_fit_into_the_horizon_is_told_when_to_come_back(place):
    one = pacer(place)
    granted = ask(one, Pace(10.0), 20)
    slots = [slot for slot in granted.slots if slot is not None]
    assert len(slots) == pytest.approx(HORIZON * 10, abs=1) and max(slots) <= HORIZON
    refused = [wait for slot, wait in zip(granted.slots, granted.waits, strict=True) if slot is None]
    assert refused and all(HORIZON < wait <= HORIZON + 0.11 for wait in refused)
    assert 0 <= granted.wait <= 0.11
    assert ask(one, Pace(10.0), 5).wait == pytest.approx(granted.wait, abs=0.1)


def test_a_slow_lane_does_not_use_up_the_rate_of_the_others(place):
    one = pacer(place)
    lanes = {"slow": Pace(1 / 60, 1)}
    granted = ask(one, Pace(100.0), lanes=lanes, letters=["slow", "a", "slow", "b"] * 5)
    by_name = list(zip(["slow", "a", "slow", "b"] * 5, granted.slots, granted.waits, strict=True))
    assert all(slot is None and 50 < wait <= 60.1 for name, slot, wait in by_name if name == "slow")
    assert granted.wait == 0.0  # the transport has room for others
    free = [slot for name, slot, _ in by_name if name != "slow"]
    assert free == sorted(free) and max(free) <= 0.12


def test_one_question_for_a_batch(place):
    """However many messages and lanes: one round trip (and one more the first time, to load the script)."""
    url, _ = place
    one = pacer(place)
    ask(one, count=1)
    with redis.Redis.from_url(url) as client:
        before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
        ask(one, lanes={"google": Pace(50.0, 5), "yahoo": Pace(20.0)}, letters=["google", "yahoo", ""] * 150)
        after = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert after - before == 1


def test_without_limits_nobody_is_asked():
    one = Pacer("redis://127.0.0.1:1/0", uuid4())
    granted = ask(one, Pace(), 3)
    assert granted.slots == [0.0, 0.0, 0.0] and granted.connections == 10


# Connections ----------------------------------------------------------------------------------------------------------


def test_connections_are_shared_and_given_back(place):
    one, two, three = pacer(place), pacer(place), pacer(place)
    assert ask(one).connections == 10
    assert ask(two).connections == 0  # the first has all of them, and learns at its next question that somebody waits
    assert ask(one).connections == 5 and ask(two).connections == 5
    assert ask(three).connections == 0
    assert ask(one).connections + ask(two).connections + ask(three).connections <= 10
    held = [ask(who).connections for who in (one, two, three)]
    assert sum(held) <= 10 and min(held) >= 3
    two.release("default")
    three.release("default")
    assert ask(one).connections == 10


def test_a_lease_ends_with_its_worker(place):
    dead, alive = pacer(place, lease=0.3), pacer(place)
    assert ask(dead).connections == 10
    assert ask(alive).connections == 0
    deadline = time.monotonic() + 5
    while not ask(alive).connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ask(alive).connections == 10
    assert LEASE > 2  # seconds between two questions of a worker that lives


def test_many_workers_at_once_never_have_more_than_the_limit(place):
    workers = [pacer(place) for _ in range(6)]
    held: dict[int, int] = {}
    lock, worst = threading.Lock(), []

    def work(number):
        for _ in range(60):
            with lock:
                held[number] = ask(workers[number], Pace(None, 7)).connections
                worst.append(sum(held.values()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) <= 7


def test_one_worker_has_the_connection_of_a_slow_lane(place):
    one, two = pacer(place), pacer(place)
    lanes = {"slow": Pace(100.0, 1)}
    assert ask(one, lanes=lanes, letters=["slow"]).lanes == {"slow": 1}
    granted = ask(two, lanes=lanes, letters=["slow", ""])
    assert granted.lanes == {"slow": 0} and granted.slots[0] is None


# Redis away -----------------------------------------------------------------------------------------------------------


def test_without_redis_a_worker_keeps_to_its_share(place):
    """No stop and no burst: half the rate where two workers send, beginning empty."""
    lonely = Pacer("redis://127.0.0.1:1/0", uuid4(), lambda: 2)
    began, count = time.monotonic(), 0
    while time.monotonic() < began + 1.0:
        count += sum(slot is not None for slot in ask(lonely, Pace(100.0, 10), 10).slots)
        time.sleep(0.01)
    assert 25 <= count <= 50 * (1.1 + HORIZON)
    assert ask(lonely, Pace(100.0, 10)).connections == 5
    assert ask(lonely, Pace(100.0, 1)).connections == 1


def test_redis_goes_away_and_comes_back(cluster_home):
    home = cluster_home / "pacing"
    home.mkdir(mode=0o755)
    server = embedded.Redis(home)
    one = Pacer(server.start(), uuid4(), lambda: 4)
    try:
        assert ask(one).connections == 10
        server.process.send_signal(signal.SIGSTOP)
        assert ask(one).connections == 2
        assert ask(one, Pace(100.0, 10), 5, transport="other").slots[0] == pytest.approx(0.04, abs=0.01)
        server.process.send_signal(signal.SIGCONT)
        assert eventually(lambda: ask(one).connections == 10, 5)
    finally:
        one.close()
        server.stop()


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 1000), st.lists(st.floats(0, 2), max_size=60))
def test_a_meter_never_lets_more_through_than_its_rate(rate, pauses):
    meter, now, slots = Meter(rate, 0.0), 0.0, []
    for pause in pauses:
        now += pause
        slots.append(meter.slot(now))
        meter.take(now)
    assert slots == sorted(slots) and all(slot >= 1 / rate - 1e-9 for slot in slots)
    for number, slot in enumerate(slots):
        assert number + 1 <= rate * (slot + BURST) + 1 + 1e-6


# Providers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "provider"),
    [
        ("a@gmail.com", "google"),
        ("a@GoogleMail.com", "google"),
        ("a@outlook.com", "microsoft"),
        ("a@hotmail.co.uk", "microsoft"),
        ("a@live.fr", "microsoft"),
        ("a@msn.com", "microsoft"),
        ("a@yahoo.com.br", "yahoo"),
        ("a@aol.com", "yahoo"),
        ("a@me.com", "apple"),
        ("a@mac.com", "apple"),
        ("a@icloud.com", "apple"),
        ("a@me.example.com", "me.example.com"),
        ("a@outlook.example", "outlook.example"),
        ("a@gmail.de", "gmail.de"),
        ("a@acorn.test.", "acorn.test"),
        ("a@mail.acorn.test", "google"),
    ],
)
def test_who_runs_a_mailbox(address, provider):
    assert Providers(domains={"mail.acorn.test": "google"}).of(address) == provider


@pytest.mark.parametrize(
    ("text", "slows"),
    [
        ("4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints", True),
        ("4.7.28 Our system has detected an unusual rate of unsolicited mail", True),
        ("4.7.650 The mail server has been temporarily rate limited due to IP reputation", True),
        ("4.7.1 deferred due to reputation", True),
        ("4.2.2 mailbox full", False),
        ("4.7.1 greylisted, try again in 300 seconds", False),
    ],
)
def test_words_that_slow_a_lane(text, slows):
    assert is_reputation("temp", text) is slows
    assert not is_reputation("perm", text)


def test_strikes_are_counted_in_a_row():
    assert strikes(0, [True, True]) == 2
    assert strikes(2, [True]) == 3
    assert strikes(2, [False, True]) == 1
    assert strikes(2, []) == 2
