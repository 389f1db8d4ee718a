"""Reading items is strict about each and kind to its neighbours; storing is once, in order, in one statement."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from hashlib import blake2b
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import to_json
from sqlalchemy import func, select

from app.errors import EventError
from app.flow.ingest import Own, accept, raise_own
from app.flow.items import EARLIEST, KINDS, Item, read_items
from app.models import doubled, event, event_key, event_pending
from app.rules.facts import partition_of
from tests.conftest import NOW

GOOD = {"type": "track", "event": "report_viewed", "userId": "ada", "messageId": "good"}


def read(*items, **envelope):
    return read_items(json.dumps({"batch": list(items), **envelope}).encode(), NOW)


def track(**more):
    return {**GOOD, "messageId": "m", **more}


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


BAD = [
    ("no object", ["a", 1], None),
    ("null", None, None),
    ("no type", {"userId": "ada"}, "type"),
    ("unknown type", track(type="trak"), "type"),
    ("type of the wrong type", track(type={"a": 1}), "type"),
    ("track without event", {"type": "track", "userId": "ada"}, "event"),
    ("blank event", track(event="  "), "event"),
    ("event of the wrong type", track(event=7), "event"),
    ("long event", track(event="e" * 256), "event"),
    ("own name", track(event="nurture.health_changed"), "event"),
    ("own name of a page", {"type": "page", "name": "nurture.x", "userId": "ada"}, "name"),
    ("own name of a screen", {"type": "screen", "name": "nurture.x", "userId": "ada"}, "name"),
    ("page name of the wrong type", {"type": "page", "name": [], "userId": "ada"}, "name"),
    ("nobody", {"type": "track", "event": "e"}, "userId"),
    ("page of nobody", {"type": "page", "name": "home"}, "userId"),
    ("blank user", track(userId=" "), "userId"),
    ("identify of nobody", {"type": "identify", "context": {"groupId": "acorn"}}, "userId"),
    ("group without groupId", {"type": "group", "userId": "ada"}, "groupId"),
    ("groupId of the wrong type", {"type": "group", "groupId": ["acorn"]}, "groupId"),
    ("alias without userId", {"type": "alias", "previousId": "a"}, "userId"),
    ("alias without previousId", {"type": "alias", "userId": "a"}, "previousId"),
    ("userId of the wrong type", track(userId=True), "userId"),
    ("userId a fraction", track(userId=1.5), "userId"),
    ("long userId", track(userId="u" * 256), "userId"),
    ("endless userId", track(userId=10**200), "userId"),
    ("long anonymousId", track(anonymousId="u" * 256), "anonymousId"),
    ("long messageId", track(messageId="m" * 256), "messageId"),
    ("messageId of the wrong type", track(messageId={"a": 1}), "messageId"),
    ("context of the wrong type", track(context=[1]), "context"),
    ("context.groupId of the wrong type", track(context={"groupId": {}}), "context.groupId"),
    ("context.traits of the wrong type", {"type": "identify", "userId": "ada", "context": {"traits": 5}}, "context.traits"),
    ("properties of the wrong type", track(properties="many"), "properties"),
    ("traits of the wrong type", {"type": "identify", "userId": "ada", "traits": [1]}, "traits"),
    ("NUL in a value", track(properties={"a": [{"b": "x\x00y"}]}), "properties.a[0].b"),
    ("NUL in a list", track(properties={"a": ["\x00"]}), "properties.a[0]"),
    ("NUL in a key", track(properties={"a": {"b\x00": 1}}), "properties.a.b�"),
    ("NUL in a messageId", track(messageId="\x00"), "messageId"),
    ("NUL in a userId", track(userId="a\x00"), "userId"),
    ("NUL in an event", track(event="a\x00"), "event"),
    ("NUL in a group", track(context={"groupId": "a\x00"}), "context.groupId"),
    ("NUL in a page's name", {"type": "page", "name": "\x00", "userId": "ada"}, "name"),
    ("NUL in a previous id", {"type": "alias", "userId": "ada", "previousId": "\x00"}, "previousId"),
    ("half a surrogate pair", track(properties={"a": "\ud83d"}), "properties.a"),
    ("half a surrogate pair in an id", track(userId="\udc00"), "userId"),
    ("NaN", track(properties={"a": {"b": float("nan")}}), "properties.a.b"),
    ("Infinity", track(properties={"a": [float("-inf")]}), "properties.a[0]"),
    ("endless number", track(properties={"a": 10**100}), "properties.a"),
    ("a number of thousands of digits", '{"type":"track","userId":"a","event":"e","properties":{"a":' + "9" * 5000 + "}}", None),
    ("deep", track(properties=nested(9)), "properties" + ".a" * 8),
    ("deeper than the parser goes", track(properties=nested(400)), "properties" + ".a" * 8),
    ("5,000 deep", '{"type":"track","userId":"a","event":"e","properties":{"a":' + "[" * 5000 + "]" * 5000 + "}}", None),
    ("long key", track(properties={"k" * 256: 1}), "properties." + "k" * 40 + "…"),
    ("large", track(properties={"a": "x" * 33_000}), None),
    ("large by what is dropped", track(context={"a": "x" * 33_000}), None),
    ("no time", track(timestamp="yesterday"), "timestamp"),
    ("a time of the wrong type", track(timestamp=1772442000), "timestamp"),
    ("year 10000", track(timestamp="10000-01-01T00:00:00Z"), "timestamp"),
    ("month 13", track(originalTimestamp="2026-13-01T00:00:00Z"), "originalTimestamp"),
    ("no sentAt", track(timestamp="2026-03-02T09:00:00Z", sentAt="soon"), "sentAt"),
]


@pytest.mark.parametrize(("item", "field"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_item_is_named_and_its_neighbours_are_kept(item, field):
    text = item if isinstance(item, str) and item.startswith("{") else json.dumps(item)
    good, last = json.dumps(GOOD), json.dumps({**GOOD, "messageId": "last"})
    items, problems = read_items(f'{{"batch": [{good}, {text}, {last}], "sentAt": "2026-03-02T09:00:00Z"}}'.encode(), NOW)
    assert [item.message_id for item in items] == ["good", "last"]
    assert [(problem.index, problem.field) for problem in problems] == [(1, field)]
    assert problems[0].problem
    to_json(problems)  # can be said in an answer


# A single call's type is its path, and its size is limited as a whole.
SINGLE = [case for case in BAD if isinstance(case[1], dict) and case[1].get("type") in list(KINDS) and case[2]]


@pytest.mark.parametrize(("item", "field"), [case[1:] for case in SINGLE], ids=[case[0] for case in SINGLE])
def test_a_bad_single_call_names_the_same_field(item, field):
    items, problems = read_items(json.dumps(item).encode(), NOW, item["type"])
    assert items == []
    assert [(problem.index, problem.field) for problem in problems] == [(0, field)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"batch": [', "line 1 column 11"),
        (b'{"batch":\n[{"type": "track",}]}', "line 2"),
        (b'{"batch": [{"type": "track"}]} x', "trailing"),
        (b'{"batch": [{"a": \x01}]}', "line 1"),
        (b'{"batch": [{"a": "\xff"}]}', "line 1"),
        (b'{"batch": [{"a": "\\ud800"}, {"b": tru}]}', "line 1"),
        (b"[" * 5000, "recursion"),
        (b"[" * 5000 + b"]" * 5000, "recursion"),
        (b'{"batch": ' + b"[" * 5000 + b"]" * 5000 + b"}", "recursion"),
        (b'{"batch": [' + b'"\\"' * 50_000, "line 1"),
        (b"[]", "object"),
        (b'"batch"', "object"),
        (b"{}", "batch"),
        (b'{"batch": {"a": 1}}', "batch"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_as_a_whole(body, says):
    with pytest.raises(EventError, match=says):
        read_items(body, NOW)


def at(*args, **kw):
    return datetime(*args, **kw, tzinfo=UTC)


@pytest.mark.parametrize(
    ("item", "occurred_at"),
    [
        ({}, NOW),
        ({"timestamp": "2026-03-02T08:59:58.123456Z"}, at(2026, 3, 2, 8, 59, 58, 123456)),
        ({"timestamp": "2026-03-02T08:59:58.123456789Z"}, at(2026, 3, 2, 8, 59, 58, 123456)),
        ({"timestamp": "2026-03-02T10:59:58+02:00"}, at(2026, 3, 2, 8, 59, 58)),
        ({"timestamp": "2026-03-02T08:00:00"}, at(2026, 3, 2, 8)),  # naive is UTC
        ({"timestamp": "2026-03-01"}, at(2026, 3, 1)),
        ({"timestamp": "2026-03-02T09:00:01Z"}, NOW),  # the future is clamped to the arrival
        ({"timestamp": "9999-12-31T23:59:59.999999Z"}, NOW),
        ({"timestamp": "9999-12-31T23:59:59-23:59"}, NOW),
        ({"timestamp": "0001-01-01T00:00:00Z"}, EARLIEST),
        ({"timestamp": "0001-01-01T00:00:00+23:59"}, EARLIEST),
        ({"timestamp": "1969-12-31T23:59:59Z"}, EARLIEST),
        # The client's clock is an hour ahead: 10 minutes before it sent.
        ({"timestamp": "2026-03-02T09:50:00Z", "sentAt": "2026-03-02T10:00:00Z"}, at(2026, 3, 2, 8, 50)),
        ({"originalTimestamp": "2026-03-02T09:50:00Z", "sentAt": "2026-03-02T10:00:00Z"}, at(2026, 3, 2, 8, 50)),
        ({"timestamp": "0001-01-01T00:00:00Z", "sentAt": "0001-01-01T01:00:00Z"}, at(2026, 3, 2, 8)),
        ({"timestamp": "9999-12-31T22:00:00Z", "sentAt": "9999-12-31T23:00:00Z"}, at(2026, 3, 2, 8)),
        ({"timestamp": "2026-03-02T09:00:00Z", "sentAt": "0001-01-01T00:00:00Z"}, NOW),
        ({"sentAt": "2026-03-02T10:00:00Z"}, NOW),
    ],
)
def test_times(item, occurred_at):
    (found,), problems = read(track(**item))
    assert problems == []
    assert found.occurred_at == occurred_at


def test_the_batch_gives_defaults():
    envelope = {"sentAt": "2026-03-02T10:00:00Z", "context": {"groupId": "acorn", "locale": "de"}}
    items, problems = read(
        track(messageId="1", timestamp="2026-03-02T09:00:00Z"),
        track(messageId="2", timestamp="2026-03-02T09:00:00Z", sentAt="2026-03-02T09:00:00Z", context={"groupId": "birch"}),
        {"type": "identify", "userId": "ada", "messageId": "3", "context": {"traits": {"email": "ada@acorn.example"}}},
        **envelope,
    )
    assert problems == []
    assert [item.account_key for item in items] == ["acorn", "birch", "acorn"]
    assert [item.occurred_at for item in items] == [NOW - timedelta(hours=1), NOW, NOW]
    assert items[2].properties == {"email": "ada@acorn.example", "locale": "de"}


@pytest.mark.parametrize(("envelope", "field"), [({"sentAt": "soon"}, "sentAt"), ({"context": 5}, "context")])
def test_a_wrong_default_is_named_and_costs_no_item(envelope, field):
    items, problems = read(GOOD, **envelope)
    assert len(items) == 1
    assert [(problem.index, problem.field) for problem in problems] == [(None, field)]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (track(userId=42, properties=None, context=None), ("track", "report_viewed", None, "42", {})),
        (track(context={"groupId": 7}, properties={"a": 1}), ("track", "report_viewed", "7", "ada", {"a": 1})),
        ({"type": "track", "event": "e", "anonymousId": "x", "context": {"groupId": "acorn"}}, ("track", "e", "acorn", "x", {})),
        ({"type": "track", "event": "e", "context": {"groupId": "acorn"}}, ("track", "e", "acorn", None, {})),
        (
            {"type": "group", "groupId": "acorn", "userId": "ada", "traits": {"name": "Acorn"}},
            ("group", "group", "acorn", "ada", {"name": "Acorn"}),
        ),
        ({"type": "group", "groupId": "acorn"}, ("group", "group", "acorn", None, {})),
        (
            {"type": "identify", "userId": "ada", "traits": {"a": 1}, "context": {"traits": {"a": 0, "b": 2}, "timezone": "Asia/Tokyo"}},
            ("identify", "identify", None, "ada", {"a": 1, "b": 2, "timezone": "Asia/Tokyo"}),
        ),
        (
            {"type": "identify", "userId": "ada", "traits": {"locale": "fr"}, "context": {"locale": "de", "groupId": "acorn"}},
            ("identify", "identify", "acorn", "ada", {"locale": "fr"}),
        ),
        ({"type": "page", "userId": "ada", "name": "Home"}, ("page", "Home", None, "ada", {})),
        ({"type": "screen", "userId": "ada"}, ("screen", "screen", None, "ada", {})),
        ({"type": "alias", "userId": "ada", "previousId": "anon-1"}, ("alias", "alias", None, "ada", {"previous_id": "anon-1"})),
        (track(event="Früh 🎉", userId="مريم", properties={"שם": "😀"}), ("track", "Früh 🎉", None, "مريم", {"שם": "😀"})),
        (track(unknown=1, integrations={"All": True}), ("track", "report_viewed", None, "ada", {})),
        (track(properties=nested(8)), ("track", "report_viewed", None, "ada", nested(8))),
    ],
)
def test_what_becomes_of_an_item(raw, expected):
    (item,), problems = read(raw)
    assert problems == []
    assert (item.kind, item.name, item.account_key, item.contact_key, dict(item.properties)) == expected


def test_a_missing_message_id_is_made():
    items, _ = read(*[{key: GOOD[key] for key in ("type", "event", "userId")}] * 3)
    assert len({item.message_id for item in items}) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "type",
    "event",
    "userId",
    "anonymousId",
    "groupId",
    "messageId",
    "context",
    "properties",
    "traits",
    "timestamp",
    "sentAt",
    "name",
)
ITEMS = JSON | st.fixed_dictionaries(
    {"type": st.sampled_from(["track", "identify", "group", "page", "screen", "alias"])},
    optional={name: JSON for name in FIELDS[1:]} | {"context": st.dictionaries(st.sampled_from(["groupId", "traits", "locale"]), JSON)},
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(item=ITEMS, place=st.integers(0, 2))
def test_whatever_an_item_is_its_neighbours_are_stored(engine, item, place):
    """Invariant 12 for the inbox: what is read can be stored, what cannot be read is named."""
    unique = uuid4().hex
    batch = [{**GOOD, "messageId": f"{unique}-{n}"} for n in range(2)]
    batch.insert(place, item)
    items, problems = read_items(json.dumps({"batch": batch}).encode(), NOW)
    assert len(items) + len(problems) == 3
    with engine.begin() as conn:
        accept(conn, 1, items, NOW, 64)
        kept = select(func.count()).select_from(event).where(event.c.message_id.startswith(unique))
        assert conn.execute(kept).scalar_one() == 2


def stored(conn, source_id=1):
    return list(conn.execute(select(event).where(event.c.source_id == source_id).order_by(event.c.id)))


def item(message_id="m", **more):
    fields = dict(kind="track", name="e", account_key="acorn", contact_key="ada", properties={"n": 1}, occurred_at=NOW)
    return Item(message_id, **(fields | more))


def test_a_stored_event_is_what_was_posted(engine):
    occurred_at, received_at = NOW - timedelta(microseconds=7), NOW + timedelta(microseconds=1)
    with engine.begin() as conn:
        accepted = accept(conn, 1, [item("ä😀", occurred_at=occurred_at, properties={"a": [1, None, "x"], "é": 1.5})], received_at, 64)
        (row,) = stored(conn)
        (pending,) = conn.execute(select(event_pending)).all()
        (key,) = conn.execute(select(event_key)).all()
    place = partition_of("acorn", 64)
    assert (accepted.fresh, accepted.refused, accepted.partitions) == (1, 0, {place})
    assert (row.message_id, row.kind, row.name, row.account_key, row.contact_key) == ("ä😀", "track", "e", "acorn", "ada")
    assert (row.properties, row.occurred_at, row.received_at) == ({"a": [1, None, "x"], "é": 1.5}, occurred_at, received_at)
    assert (row.mark, row.depth) == (None, 0)
    assert tuple(pending) == (row.id, place, "acorn", "ada", received_at)
    assert tuple(key) == (1, UUID(bytes=blake2b("ä😀".encode()).digest()[:16]))


def test_old_events_and_history_are_marked(engine):
    three_days = timedelta(days=3)
    with engine.begin() as conn:
        accept(
            conn,
            1,
            [item("just", occurred_at=NOW - three_days), item("old", occurred_at=NOW - three_days - timedelta(microseconds=1))],
            NOW,
            64,
        )
        accept(conn, 1, [item("history", occurred_at=EARLIEST)], NOW, 64, mark="backfill")
        assert [row.mark for row in stored(conn)] == [None, "too_old", "backfill"]
        assert stored(conn)[2].occurred_at == EARLIEST


def test_order_is_kept_and_doubles_are_counted(engine):
    with engine.begin() as conn:
        assert accept(conn, 1, [], NOW, 64).fresh == 0
        names = [f"m{n}" for n in range(300)]
        first = accept(conn, 1, [item(name, account_key=None, contact_key=f"c{n % 7}") for n, name in enumerate(names)], NOW, 64)
        again = accept(conn, 1, [item("m5", name="other"), item("new"), item("new"), item("m299")], NOW, 64)
        assert [row.message_id for row in stored(conn)] == [*names, "new"]
        assert (first.fresh, first.refused, again.fresh, again.refused) == (300, 0, 1, 3)
        assert first.partitions == {partition_of(f"c{n}", 64) for n in range(7)}
        assert conn.execute(select(doubled.c.source_id, doubled.c.refused)).all() == [(1, 3)]
        assert accept(conn, 2, [item("m5")], NOW, 64).fresh == 1  # another source, another event
        accept(conn, 1, [item("m5")], NOW, 64)
        assert conn.execute(select(doubled.c.refused)).scalar_one() == 4


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_invariant_1_once_in(engine, data):
    """Any split into batches, any repetition, any mixture of sources: each (source, message id) is stored once, and waits once."""
    unique = uuid4().hex
    given_events = data.draw(st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 9)), max_size=40))
    fresh = 0
    with engine.begin() as conn:
        before = conn.execute(select(func.count()).select_from(event_pending)).scalar_one()
        while given_events:
            cut = data.draw(st.integers(1, len(given_events)))
            part, given_events = given_events[:cut], given_events[cut:] + data.draw(st.sampled_from([[], given_events[:1]]))
            for source_id in (1, 2):
                accepted = accept(conn, source_id, [item(f"{unique}-{n}") for source, n in part if source == source_id], NOW, 64)
                fresh += accepted.fresh
            if len(part) == 1 and given_events == part:
                given_events = []
        rows = conn.execute(select(event.c.source_id, event.c.message_id).where(event.c.message_id.startswith(unique))).all()
        after = conn.execute(select(func.count()).select_from(event_pending)).scalar_one()
    assert len(rows) == len(set(rows)) == fresh == after - before


def test_batches_with_the_same_events_in_any_order_never_wait_in_a_circle(engine):
    items = [item(f"m{n}") for n in range(400)]

    def post(turn):
        with engine.begin() as conn:
            return accept(conn, 1, items if turn % 2 else items[::-1], NOW, 64).fresh

    with ThreadPoolExecutor(8) as pool:
        fresh = list(pool.map(post, range(16)))
    assert sorted(fresh) == [0] * 15 + [400]
    with engine.begin() as conn:
        assert len(stored(conn)) == 400
        assert conn.execute(select(doubled.c.refused)).scalar_one() == 15 * 400


def test_own_events_are_raised_once_and_inherit(engine):
    old = NOW - timedelta(days=9)
    events = [
        Own("nurture.health_changed", "health:1", {"score": 50.0, "band": "red"}, "acorn", None, NOW),
        Own("nurture.milestone_reached", "reached:1", {"milestone": "setup"}, None, "ada", old, mark="backfill", depth=3),
        Own("nurture.email_clicked", "click:1", {}, "acorn", "ada", old),  # its age is not ours to judge
    ]
    with engine.begin() as conn:
        assert raise_own(conn, [], NOW, 64) == set()
        assert raise_own(conn, events, NOW, 64) == {partition_of("acorn", 64), partition_of("ada", 64)}
        assert raise_own(conn, events, NOW, 64) == set()
        rows = stored(conn, 0)
    assert [(row.name, row.kind, row.mark, row.depth) for row in rows] == [
        ("nurture.health_changed", "track", None, 0),
        ("nurture.milestone_reached", "track", "backfill", 3),
        ("nurture.email_clicked", "track", None, 0),
    ]
    assert [row.occurred_at for row in rows] == [NOW, old, old]


def test_times_are_stored_in_any_zone(engine):
    east = NOW.astimezone(timezone(timedelta(hours=14)))
    with engine.begin() as conn:
        accept(conn, 1, [item(occurred_at=east)], NOW, 64)
        assert stored(conn)[0].occurred_at == NOW
