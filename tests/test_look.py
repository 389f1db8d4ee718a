"""What the daily look at an account costs, whatever the number of campaigns."""

from __future__ import annotations

from dataclasses import replace
from time import process_time

from app.rules.facts import Account, Timer, Usage
from app.rules.journey import react
from tests.stories import at, make_account, make_book

WATCHING = (
    "{date: {field: account.renewal_date, offset: -%dd}}",
    "{usage: {metric: logins, drop: 0.%02d, window: 14d, at_least: 5}}",
    "{utilization: {above: 0.%02d}}",
    "{inactive: {role: champion, days: %d}}",
    "{inactive: {days: %d}}",
)
LISTENING = (
    "{event: opened_%d}",
    "{stage: adoption}\naudience: account.seats > %d",
    "{event: signed_up}\naudience: usage.logins.last_7d > %d",
)
DAYS = 40


def cost(triggers: tuple[str, ...], campaigns: int) -> float:
    """CPU seconds of one daily look: the least of three times forty, one after the other."""
    texts = [
        f"trigger: {triggers[one % len(triggers)] % (1 + one % 90)}\nsteps: [{{id: tell, alert: {{text: Look}}}}]"
        for one in range(campaigns)
    ]
    book, since = make_book(*texts), at("-1h").toordinal()
    account: Account = make_account(seats=20, renewal_date=at("300d"))
    ada = account.contacts["ada"]
    people = {f"p{number}": replace(ada, key=f"p{number}", last_seen_at=at("-1h")) for number in range(10)}
    usage = {"logins": Usage(tuple((since - day, 3) for day in range(365)), at("-1h"))}
    account = react(book, replace(account, contacts=people, usage=usage), Timer(at("1h"))).account
    times = []
    for _ in range(3):
        seen, began = account, process_time()
        for _ in range(DAYS):
            seen = react(book, seen, Timer(seen.due_at)).account
        times.append((process_time() - began) / DAYS)
    return min(times)


def test_campaigns_that_only_listen_cost_a_look_nothing():
    assert cost(LISTENING, 500) < 2 * cost(LISTENING, 20) + 50e-6


def test_a_look_with_five_hundred_campaigns_that_watch_stays_about_a_millisecond():
    """They ask some 450 different things about an account with ten people and a year of usage."""
    assert cost(WATCHING, 500) < 1.5e-3
