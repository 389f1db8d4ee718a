"""Moments: durations, wall clocks over every zone and every change of the clocks, windows."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.rules.timing import at_wall_clock, clock_time, days_later, duration, next_open, week_days, zone, zone_for
from tests.stories import make_account

ZONES = sorted(name for name in available_timezones() if not name.startswith(("posix/", "right/")) and name not in ("Factory", "localtime"))
zones = st.sampled_from(ZONES).map(ZoneInfo)
days = st.dates(date(2024, 1, 1), date(2030, 12, 31))
times = st.times().map(lambda value: value.replace(second=0, microsecond=0))
moments = st.datetimes(datetime(2024, 1, 1), datetime(2030, 12, 31)).map(lambda value: value.replace(tzinfo=UTC))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("3d", timedelta(days=3)),
        ("2d12h", timedelta(days=2.5)),
        ("90m", timedelta(minutes=90)),
        ("-90d", timedelta(days=-90)),
        ("1w", timedelta(7)),
    ],
)
def test_durations_are_read(text, span):
    assert duration(text) == span


@pytest.mark.parametrize("text", ["", "3", "d", "3 days", "1h2d", "-", 3, None, "9" * 40 + "d"])
def test_what_is_no_duration_says_how_to_write_one(text):
    with pytest.raises(ValueError, match="3d, 36h, 90m"):
        duration(text)


@pytest.mark.parametrize("text", ["9", "25:00", "24:01", "9:5", 9, None, "noon"])
def test_what_is_no_time_of_day_says_so(text):
    with pytest.raises(ValueError, match="time of day"):
        clock_time(text)


def test_weekdays_may_wrap_around():
    assert week_days("sat-mon") == {5, 6, 0}
    with pytest.raises(ValueError, match="weekdays"):
        week_days("someday")


def test_a_skipped_wall_clock_time_is_the_next_valid_instant():
    """2:30 on the night the clocks of Berlin jump from 2 to 3 is 3:00, which is 1:00 UTC."""
    assert at_wall_clock(date(2026, 3, 29), time(2, 30), ZoneInfo("Europe/Berlin")) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


def test_a_repeated_wall_clock_time_is_the_first_one():
    assert at_wall_clock(date(2026, 10, 25), time(2, 30), ZoneInfo("Europe/Berlin")) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


@given(days, times, zones)
def test_the_clocks_show_what_was_asked_for_or_the_time_is_skipped(day, at, where):
    moment = at_wall_clock(day, at, where)
    shown = moment.astimezone(where).replace(tzinfo=None)
    asked = datetime.combine(day, at)
    if shown == asked:
        # The first of the instants that show it: an hour or so before, the clocks did not.
        assert (moment - timedelta(hours=1)).astimezone(where).replace(tzinfo=None) != asked
    else:
        assert shown > asked
        # The very next instant after the gap: a second earlier the clocks showed a time before the one asked for.
        assert (moment - timedelta(seconds=1)).astimezone(where).replace(tzinfo=None) < asked


@given(moments, st.integers(0, 400), times, zones)
def test_calendar_days_never_go_back(since, number, at, where):
    later = days_later(since, number, at, where)
    assert later >= since
    assert (later.astimezone(where).date() - since.astimezone(where).date()).days in (number, number + 1)


@given(moments, st.frozensets(st.integers(0, 6), min_size=1), times, times, zones)
def test_a_window_opens_in_the_future_and_is_open_then(moment, weekdays, opens, closes, where):
    if opens == closes:
        return
    found = next_open(moment, weekdays, opens, closes, where, timedelta(minutes=15), "someone")
    assert found >= moment
    again = next_open(found, weekdays, opens, closes, where, timedelta(minutes=15), "someone")
    assert again == found, "what it names is a moment at which the window is open"
    assert found - moment <= timedelta(days=9)


def test_zones_fall_back_from_contact_to_account_to_installation():
    account = make_account(timezone="Europe/Berlin")
    assert [str(one) for one in zone_for(account, account.contacts["ada"], "UTC")] == ["Europe/Berlin", "account"]
    assert zone_for(make_account(), None, "Asia/Tokyo") == (ZoneInfo("Asia/Tokyo"), "installation")


@pytest.mark.parametrize("name", ["", None, "../../etc/passwd", "/etc/localtime", "Nowhere/Land", "x" * 100, "Europe"])
def test_what_is_no_zone_is_none(name):
    assert zone(name) is None
