"""The classes of email-standards 3.2, one test for each row, and when an address is given up. No database."""

from datetime import timedelta
from uuid import UUID

import pytest
from conftest import NOW
from hypothesis import given
from hypothesis import strategies as st

from app.rules.reports import SORTS, Report, Sighting, classify, gone


def bounced(text="", kind="bounced", **values):
    return Report(kind, NOW, "1", text=text, **values)


ROWS = {
    "hard": [
        {"status": "5.1.1"},
        {"status": "5.1.2"},
        {"status": "5.1.3"},
        {"status": "5.1.6"},
        {"status": "5.1.10", "text": "550 5.1.10 Recipient not found: domain has a null MX"},
        {"status": "5.2.1", "text": "550 5.2.1 The email account is disabled"},
        {"status": "5.2.1", "text": "account inactive"},
        {"status": "5.7.13"},
        {"status": "5.7.17"},
        {"status": "5.7.18"},
        {"text": "550 5.1.1 <nobody@example.org>: Recipient address rejected: User unknown", "code": 550},
        {"code": 550, "text": "User unknown in virtual mailbox table"},
        {"code": 551, "text": "no such user here"},
        {"code": 553, "text": "sorry, no mailbox here by that name. (#5.7.1 not)"[:39]},
        {"text": "User nobody (nobody@example.org) not listed in Domino Directory"},
    ],
    "host": [
        {"status": "5.4.4", "text": "Host or domain name not found. Name service error: Host not found"},
        {"status": "5.4.1", "text": "NXDOMAIN"},
        {"text": "Unrouteable address"},
        {"text": "Sorry, I couldn't find any host named gone.example."},
    ],
    "full": [
        {"status": "5.2.2"},
        {"status": "4.2.2"},
        {"code": 552, "text": "552 mailbox size exceeded"},
        {"text": "550 5.2.2 over quota, and quite spammy", "code": 550},
        {"text": "The mailbox is full"},
        {"code": 452, "text": "too much mail"},
    ],
    "soft": [
        {"status": "4.0.0"},
        {"status": "4.4.7", "text": "delivery time expired"},
        {"status": "5.4.7", "text": "delivery time expired"},
        {"status": "4.4.1", "text": "connection timed out"},
        {"status": "4.4.3", "text": "DNS server failure"},
        {"code": 421, "text": "try again later"},
        {"code": 550, "status": "4.4.7", "text": "the enhanced code wins"},
        {"status": "5.2.1", "text": "mailbox temporarily locked"},
        {"text": "I was unable to deliver your message"},
    ],
    "block": [
        {"status": "5.7.1"},
        {"status": "5.7.515"},
        {"status": "5.7.26", "text": "550 5.7.26 Unauthenticated email is not accepted"},
        {"status": "5.6.0"},
        {"status": "5.3.4", "text": "message too big"},
        {"code": 554, "text": "554 Message rejected as spam"},
        {"code": 550, "text": "blocked using zen.spamhaus.org"},
        {"code": 550, "text": "Denied by policy"},
        {"status": "4.7.0", "text": "our system has detected an unusual rate"},
        {"status": "4.4.7", "text": "expired; last answer: temporarily deferred due to poor reputation"},
    ],
    "configuration": [{"status": "5.1.7"}, {"status": "5.1.8"}, {"status": "5.7.27"}, {"status": "5.5.2"}, {"status": "5.5.4"}],
    "auto_reply": [{"sort": "auto_reply", "kind": "replied"}],
}


@pytest.mark.parametrize(("wanted", "said"), [(sort, said) for sort, rows in ROWS.items() for said in rows], ids=str)
def test_each_row_of_the_table(wanted, said):
    assert classify(bounced(**said)) == wanted


def test_what_the_provider_says_goes_first_and_nonsense_goes_unheard():
    assert classify(bounced("550 5.1.1 user unknown", sort="block")) == "block"
    assert classify(bounced("550 5.1.1 user unknown", sort="whatever")) == "hard"
    assert classify(bounced("user unknown", status="no code at all")) == "hard"


def test_s13_the_enhanced_code_first_the_basic_code_second_the_text_last():
    assert classify(bounced("blocked as spam", status="5.1.1", code=421)) == "hard"
    assert classify(bounced("user unknown", status="5.7.1", code=550)) == "block"
    assert classify(bounced("user unknown", code=421)) == "soft"
    assert classify(bounced("user unknown", kind="deferred")) == "soft"
    assert classify(bounced("5.1.1 in the text counts where the field is missing")) == "hard"


@given(
    st.text(max_size=300),
    st.none() | st.integers(),
    st.none() | st.text(max_size=12) | st.from_regex(r"[245]\.\d{1,3}\.\d{1,3}", fullmatch=True),
)
def test_whatever_is_said_has_a_class(text, code, status):
    assert classify(bounced(text, code=code, status=status)) in SORTS


# When an address is given up ------------------------------------------------------------------------------------------


def seen(*days_and_kinds):
    return [Sighting(UUID(int=number), NOW + timedelta(days=day), kind) for number, (day, kind) in enumerate(days_and_kinds)]


def test_a_host_is_given_up_at_the_second_sighting_a_day_apart():
    assert gone(seen((0, "host"))) is None
    assert gone(seen((0, "host"), (0.99, "host"))) is None
    assert gone(seen((0, "host"), (1, "host"))) == ("bounced", (UUID(int=0), UUID(int=1)))
    assert gone(seen((0, "host"), (0.5, "good"), (1, "host"))) is None
    assert gone(seen((0, "host"), (1, "soft"))) is None


def test_one_message_that_comes_back_twice_is_one_sighting():
    twice = [Sighting(UUID(int=1), NOW + timedelta(days=day), "host") for day in (0, 3)]
    assert gone(twice) is None
    soft = [Sighting(UUID(int=number % 4), NOW + timedelta(days=number * 3), "soft") for number in range(12)]
    assert gone(soft) is None


def test_soft_results_of_five_sends_over_two_weeks():
    assert gone(seen((0, "soft"), (4, "soft"), (8, "soft"), (12, "soft"))) is None
    assert gone(seen((0, "soft"), (4, "soft"), (8, "soft"), (12, "soft"), (13.9, "soft"))) is None
    assert gone(seen((0, "soft"), (4, "soft"), (8, "soft"), (12, "soft"), (14, "soft")))[0] == "soft_limit"
    # Many on one day are one outage.
    assert gone(seen(*((0, "soft") for _ in range(50)))) is None
    assert gone(seen(*((0, "soft") for _ in range(50)), (14, "soft")))[0] == "soft_limit"


@pytest.mark.parametrize("place", range(1, 5))
def test_a_delivery_or_a_click_in_between_starts_anew(place):
    told = seen((0, "soft"), (4, "soft"), (8, "soft"), (12, "soft"), (14, "soft"))
    told.append(Sighting(UUID(int=99), told[place].at - timedelta(hours=1), "good"))
    assert gone(told) is None


@given(st.lists(st.tuples(st.floats(0, 60), st.sampled_from(["soft", "host", "good"])), max_size=14), st.randoms())
def test_the_order_in_which_it_becomes_known_does_not_matter(told, random):
    told = seen(*told)
    shuffled = random.sample(told, len(told))
    assert gone(shuffled) == gone(told)
