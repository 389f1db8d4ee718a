"""The events API over HTTP: who may post, what bad input gets, that 200 means committed and once means once."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from http.client import HTTPConnection
from time import monotonic
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from sqlalchemy import select

from app import create_app
from app.config import load
from app.flow.access import create_key, revoke_key
from app.flow.items import KINDS
from app.models import event, event_pending
from app.web import events
from bench.ground import web
from tests.conftest import NOW, dsn
from tests.test_ingest import BAD, ITEMS

GOOD = {"type": "track", "event": "report_viewed", "userId": "ada", "context": {"groupId": "acorn"}}


@pytest.fixture
def key(engine):
    with engine.begin() as conn:
        return create_key(conn, "shop", "write", NOW)


def basic(key, password=""):
    return {"Authorization": "Basic " + b64encode(f"{key}:{password}".encode()).decode()}


def good(message_id):
    return {**GOOD, "messageId": message_id}


def names(engine):
    with engine.connect() as conn:
        return list(conn.execute(select(event.c.message_id).order_by(event.c.id)).scalars())


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_call_is_taken(client, engine, key, kind, slash):
    body = {"event": "e", "userId": "ada", "previousId": "x", "groupId": "acorn", "messageId": kind, "type": "whatever"}
    answer = client.post(f"/v1/{kind}{slash}", json=body, headers=basic(key))
    assert (answer.status_code, answer.json) == (200, {"success": True})
    with engine.connect() as conn:
        (row,) = conn.execute(select(event.c.message_id, event.c.kind)).all()
        assert tuple(row) == (kind, kind)
        assert conn.execute(select(event_pending.c.event_id)).all()


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_batch_is_taken_gzipped_or_not(client, engine, key, slash):
    plain = json.dumps({"batch": [good("1"), good("2")]}).encode()
    halves = gzip.compress(plain[:40]) + gzip.compress(plain[40:])  # a body of two gzip members is one body
    for body, headers in [(plain, {}), (gzip.compress(plain), {"Content-Encoding": "gzip"}), (gzip.compress(plain), {}), (halves, {})]:
        answer = client.post(f"/v1/batch{slash}", data=body, headers=basic(key) | headers)
        assert (answer.status_code, answer.json) == (200, {"success": True})
    assert names(engine) == ["1", "2"]
    assert client.post("/v1/batch", json={"batch": []}, headers=basic(key)).json == {"success": True}


def test_the_write_key_may_stand_in_the_body(client, engine, key):
    assert client.post("/v1/track", json={**good("1"), "writeKey": key}).status_code == 200
    assert client.post("/v1/track", json={**good("2"), "writeKey": key + "x"}).status_code == 401
    assert client.post("/v1/track", json={**good("3"), "writeKey": 7}).status_code == 401
    # What the header says counts; the body is not asked for a second opinion.
    assert client.post("/v1/track", json={**good("4"), "writeKey": key}, headers=basic("nk_unknown_key")).status_code == 401
    assert names(engine) == ["1"]


@pytest.mark.parametrize("authorization", [None, "Basic", "Basic ", "Basic !!!", "Bearer x", "Basic " + b64encode(b"nobody:").decode()])
def test_an_unknown_key_is_refused(client, engine, authorization):
    headers = {"Authorization": authorization} if authorization else {}
    for body in (json.dumps(good("1")), "{broken"):
        answer = client.post("/v1/track", data=body, headers=headers)
        assert (answer.status_code, answer.json["code"], answer.mimetype) == (401, "unknown_key", "application/problem+json")
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert names(engine) == []


@pytest.mark.parametrize("scope", ["read", "admin"])
def test_a_key_of_another_scope_is_refused(client, engine, scope):
    with engine.begin() as conn:
        other = create_key(conn, "reader", scope, NOW)
    answer = client.post("/v1/track", json=good("1"), headers=basic(other))
    assert (answer.status_code, answer.json["code"]) == (403, "wrong_scope")


def test_a_revoked_key_ends_within_seconds(engine, key):
    door = events.Door(engine)
    with engine.begin() as conn:
        read = create_key(conn, "reader", "read", NOW)
    assert (door.key(key, NOW).name, door.key(read, NOW).name) == ("shop", "reader")
    with engine.begin() as conn:
        assert revoke_key(conn, key.split("_")[1], NOW)
    moment = timedelta(microseconds=1)
    assert door.key(key, NOW + events.KEY_KEPT - moment).name == "shop"
    assert door.key(key, NOW + events.KEY_KEPT) is None
    assert door.key(key, NOW) is None
    assert door.key(read, NOW + events.KEY_KEPT).name == "reader"


def gzip_of(size):
    """A gzip body that inflates to `size` zeros, made without holding them."""
    maker = zlib.compressobj(9, wbits=31)
    parts = [maker.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, maker.flush()])


DEEP = b"[" * 5000 + b"]" * 5000
DEEP_ITEM = b'{"type": "track", "event": "e", "userId": "u", "properties": {"a": ' + DEEP + b"}}"
BAD_BODIES = [
    ("empty", b"", {}, 400, "empty"),
    ("broken JSON", b'{"batch": [', {}, 400, "line 1 column 11"),
    ("not UTF-8", b'{"batch": ["\xff"]}', {}, 400, "line 1"),
    ("5,000 deep", DEEP, {}, 400, "recursion"),
    (
        "5,000 deep in an item",
        b'{"batch": [{"type": "track", "event": "e", "userId": "u", "properties": {"a": ' + DEEP + b"}}]}",
        {},
        400,
        "recursion",
    ),
    ("a list", b"[]", {}, 400, "object"),
    ("no batch", b'{"items": []}', {}, 400, "batch"),
    ("a batch that is no list", b'{"batch": "all"}', {}, 400, "batch"),
    ("over 500 KB", json.dumps({"batch": [], "x": "x" * 512_000}).encode(), {}, 413, "500 KB"),
    ("1 MB", b" " * 2**20, {}, 413, "500 KB"),
    ("more than 1 MB", b" " * (2**20 + 1), {}, 413, "1,048,576"),
    ("over 500 KB inflated", gzip.compress(b'{"batch": []}' + b" " * 512_000), {"Content-Encoding": "gzip"}, 413, "inflating"),
    ("a gzip bomb", gzip_of(900 * 2**20), {"Content-Encoding": "gzip"}, 413, "inflating"),
    ("broken gzip", b"\x1f\x8b" + b"x" * 50, {"Content-Encoding": "gzip"}, 400, "gzip"),
    ("half a gzip", gzip.compress(b'{"batch": []}')[:-9], {"Content-Encoding": "gzip"}, 400, "gzip"),
    ("wrongly said to be gzip", b"not gzip", {"Content-Encoding": "gzip"}, 400, "line 1"),
    ("an encoding we do not know", b"x", {"Content-Encoding": "br"}, 415, "br"),
    ("a form", b"batch=1", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "multipart/form-data"),
    ("a table", b"event,user\n1,2", {"Content-Type": "text/csv"}, 415, "text/csv"),
]


@pytest.mark.parametrize(("body", "headers", "status", "says"), [case[1:] for case in BAD_BODIES], ids=[case[0] for case in BAD_BODIES])
def test_a_bad_body_is_refused_clearly(client, engine, key, body, headers, status, says):
    answer = client.post("/v1/batch", data=body, headers={"Content-Type": "application/json"} | basic(key) | headers)
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    assert says in answer.json["detail"]
    assert answer.json["message"] == answer.json["detail"]
    assert client.post("/v1/batch", json={"batch": [good("after")]}, headers=basic(key)).status_code == 200
    assert names(engine) == ["after"]


@pytest.mark.parametrize("mimetype", ["text/plain", "application/x-www-form-urlencoded", "text/csv", "application/vnd.api+json", ""])
def test_json_is_taken_whatever_it_is_called(client, key, mimetype):
    answer = client.post("/v1/track", data=json.dumps(good("1")), headers=basic(key) | {"Content-Type": mimetype})
    assert answer.status_code == 200


def test_bad_items_are_all_named_and_the_good_ones_stored(client, engine, key):
    texts, fields = [], []
    for _, item, field in BAD:
        if field is not None and field != "sentAt":
            texts += [json.dumps(good(f"good {len(fields)}")), item if isinstance(item, str) else json.dumps(item)]
            fields.append(field)
    answer = client.post("/v1/batch", data=f'{{"batch": [{", ".join(texts)}]}}', headers=basic(key))
    assert (answer.status_code, answer.json["success"]) == (200, True)
    assert [(error["index"], error["field"]) for error in answer.json["errors"]] == [(2 * n + 1, field) for n, field in enumerate(fields)]
    assert all(set(error) == {"index", "messageId", "field", "problem"} for error in answer.json["errors"])
    assert names(engine) == [f"good {n}" for n in range(len(fields))]


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("track", {"userId": "ada"}, "event"),
        ("track", {"event": "e"}, "userId"),
        ("track", {"event": "nurture.x", "userId": "ada"}, "event"),
        ("identify", {"traits": {}}, "userId"),
        ("group", {"userId": "ada"}, "groupId"),
        ("alias", {"userId": "ada"}, "previousId"),
        ("page", {"name": 7, "userId": "ada"}, "name"),
        ("screen", {}, "userId"),
        ("track", {**GOOD, "properties": {"a": "\x00"}}, "properties.a"),
        ("track", {**GOOD, "properties": {"a": "\ud800"}}, "properties.a"),
        ("track", {**GOOD, "properties": {"a": float("nan")}}, "properties.a"),
        ("track", {**GOOD, "timestamp": "the day before"}, "timestamp"),
    ],
)
def test_a_bad_single_call_is_400_and_names_the_field(client, engine, key, kind, body, field):
    answer = client.post(f"/v1/{kind}", data=json.dumps({"messageId": "m", **body}), headers=basic(key))
    assert (answer.status_code, answer.json["field"], answer.json["messageId"]) == (400, field, "m")
    assert answer.json["code"] == "bad_item"
    assert names(engine) == []


def test_a_single_call_over_32_kb_is_too_large(client, key):
    answer = client.post("/v1/track", json={**GOOD, "properties": {"a": "x" * 32_768}}, headers=basic(key))
    assert (answer.status_code, answer.json["code"]) == (413, "too_large")


def test_thousands_of_bad_items_get_a_bounded_answer(client, key):
    answer = client.post("/v1/batch", json={"batch": [0] * 100_000}, headers=basic(key))
    assert (answer.status_code, len(answer.json["errors"]), answer.json["errors_left_out"]) == (200, 1000, 99_000)
    assert len(answer.data) < 100_000


def test_only_post_is_answered(client, key):
    answer = client.get("/v1/track", headers=basic(key))
    assert (answer.status_code, answer.json["code"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]
    assert client.post("/v1/unknown", json={}, headers=basic(key)).json["code"] == "not_found"


def test_answers_carry_the_security_headers(client, key):
    for answer in (client.post("/v1/track", json=good("1"), headers=basic(key)), client.get("/nowhere")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Strict-Transport-Security" not in answer.headers


def test_a_browser_gets_a_page_and_nothing_of_the_path_is_markup(client):
    answer = client.get("/<script>", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert b"<script>" not in answer.data
    assert client.get("/nowhere").mimetype == "application/problem+json"


def test_an_unexpected_error_says_nothing_of_itself(settings):
    app = create_app(settings)

    @app.get("/breaks")
    def breaks():
        raise RuntimeError("secret")

    with app.test_client() as client:
        answer = client.get("/breaks")
        app.extensions["nurture"].engine.dispose()
    assert (answer.status_code, answer.json["code"]) == (500, "internal_error")
    assert b"secret" not in answer.data


def test_hsts_where_the_site_speaks_tls(settings):
    app = create_app(
        load({"NURTURE_HOME": str(settings.home), "DATABASE_URL": settings.database_url, "NURTURE_BASE_URL": "https://n.example"})
    )
    with app.test_client() as client:
        assert "includeSubDomains" in client.get("/nowhere").headers["Strict-Transport-Security"]
    app.extensions["nurture"].engine.dispose()


def test_a_database_that_is_away_is_503_and_nothing_is_lost(client, engine, postgres, database, key):
    assert client.post("/v1/track", json=good("before"), headers=basic(key)).status_code == 200
    name = database.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(dsn(postgres.url("postgres")), autocommit=True) as admin:
        admin.execute(f"alter database {name} allow_connections false")
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [name])
        for presented in (key, "nk_unknown_key"):
            answer = client.post("/v1/track", json=good("during"), headers=basic(presented))
            assert (answer.status_code, answer.json["code"], answer.headers["Retry-After"]) == (503, "unavailable", "2")
        admin.execute(f"alter database {name} allow_connections true")
    assert client.post("/v1/track", json=good("during"), headers=basic(key)).status_code == 200
    engine.dispose()
    assert names(engine) == ["before", "during"]


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(item=ITEMS)
def test_no_item_ever_gets_a_500_or_costs_a_neighbour(client, engine, key, item):
    unique = uuid4().hex
    batch = [good(unique + "a"), item, good(unique + "b")]
    answer = client.post("/v1/batch", data=json.dumps({"batch": batch}), headers=basic(key))
    assert (answer.status_code, answer.json["success"]) == (200, True)
    assert {error["index"] for error in answer.json.get("errors", [])} <= {1}
    with engine.connect() as conn:
        assert len(conn.execute(select(event.c.id).where(event.c.message_id.startswith(unique))).all()) == 2
    for kind in KINDS:
        assert client.post(f"/v1/{kind}", data=json.dumps(item), headers=basic(key)).status_code in (200, 400)


@contextmanager
def wire(port, key):
    """One keep-alive connection of a real client; gives a function that posts and returns status and answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)

    def post(path, body, **headers):
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), basic(key) | headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    with closing(connection):
        yield post


@pytest.mark.processes
def test_the_same_event_posted_five_times_at_once_is_one(settings, engine, key):
    with web(settings) as port, ExitStack() as stack, ThreadPoolExecutor(5) as pool:
        wires = [stack.enter_context(wire(port, key)) for _ in range(5)]
        for turn in range(20):
            answers = list(pool.map(lambda post, turn=turn: post("/v1/track", good(f"m{turn}")), wires))
            assert answers == [(200, {"success": True})] * 5
    assert names(engine) == [f"m{turn}" for turn in range(20)]


@pytest.mark.processes
def test_bad_bodies_leave_the_worker_alive(settings, engine, key):
    """Through gunicorn, where a body that is refused early is still on the wire."""
    with web(settings, workers=1) as port:
        for turn, (_, body, headers, status, _) in enumerate(BAD_BODIES):
            with wire(port, key) as post:
                assert post("/v1/batch", body, **headers)[0] == status
            with wire(port, key) as post:
                assert post("/v1/batch", {"batch": [good(f"m{turn}")]}) == (200, {"success": True})
    assert names(engine) == [f"m{turn}" for turn in range(len(BAD_BODIES))]


@pytest.mark.processes
def test_events_are_taken_while_redis_is_down(settings, engine, key):
    with closing(socket.socket()) as dead:
        dead.bind(("127.0.0.1", 0))  # bound and not listening: refuses every connection
        alone = replace(settings, redis_url=f"redis://127.0.0.1:{dead.getsockname()[1]}/0")
        with web(alone) as port, wire(port, key) as post:
            began = monotonic()
            for turn in range(20):
                assert post("/v1/track", good(f"m{turn}")) == (200, {"success": True})
            assert monotonic() - began < 10
    assert names(engine) == [f"m{turn}" for turn in range(20)]
