"""Every route against hostile ids, queries, forms and bodies: an answer below 500, quickly, whoever asks (X-35, X-38, X-48)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import cycle

import pytest
from pydantic import BaseModel

from app.flow import access
from app.web import api
from app.web.api import OPERATIONS
from tests.seeding import seed

NOW = datetime.now(UTC)

HUGE = "9" * 30
IDS = ["x", HUGE, "9223372036854775807", "%00", "%ED%A0%80", "a%0d%0aX-Bad:%201"]
VALUES = ["", "\x00a\x00", HUGE, "-1", "a\r\nX-Bad: 1", "' or 1=1 --" + "é" * 2000]
BODIES = [
    b"",
    b"null",
    b"[]",
    b"{",
    b'"x"',
    b"NaN",
    b"\xff\xfe{}",
    b"[" * 100_000,
    b'{"a":' * 10_000,
    b'{"reason":"\\u0000","account":"\\u0000"}',
    b'{"reason":"\\ud800","contact":"\\ud800","email":"\\ud800@x","evidence":"\\ud800"}',
    b'{"email":"\\u0000@example.com","evidence":"\\u0000","scope":"\\u0000","note":"\\u0000"}',
    b'{"accounts":["\\u0000"],"contacts":["\\u0000"],"preview":true}',
    b'{"until":"9999-12-31T23:59:59+14:00","reason":"x","account":"acme"}',
    b'{"state":"\\u0000","assignee":"\\u0000","outcome":"\\u0000"}',
    b'{"mode":"live","was":"live","overdue":"send","exit":1e400}',
]
# What a form of the console may send; each is given each of VALUES.
FIELDS = (
    "key",
    "again",
    "reason",
    "kind",
    "days",
    "mode",
    "was",
    "overdue",
    "number",
    "do",
    "outcome",
    "account",
    "show",
    "assignee",
    "action",
    "message",
    "verdict",
)
PARAMETERS = ("search", "cursor", "sort", "stage", "band", "owner", "show", "state", "kind", "message", "hook", "at", "assignee", "changed")


@pytest.fixture
def seeded(app):
    with app.extensions["nurture"].engine.begin() as conn:
        return seed(conn, NOW, 5)


@pytest.fixture
def keys(app):
    with app.extensions["nurture"].engine.begin() as conn:
        made = [access.create_key(conn, f"admin {number}", "admin", NOW) for number in range(10)]
        return {"admin": cycle(made), "inbound": access.create_key(conn, "mail", "inbound", NOW)}


@pytest.fixture
def staff(app, client):
    """A client that is signed in, and what its forms carry."""
    with app.extensions["nurture"].engine.begin() as conn:
        token = access.create_sign_in(conn, NOW)
    assert client.get(f"/console/sign-in/{token}").status_code == 303
    page = client.get("/console/tasks").text
    found = re.search(r'name="csrf_token" value="([^"]+)"', page) or re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    return client, found[1]


def rules(app, start: str):
    """Every route that begins so, with a hostile id in each place."""
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(start):
            for value in IDS if "<" in rule.rule else IDS[:1]:
                path = re.sub(r"<[^>]+>", lambda _, value=value: value, rule.rule)
                for method in sorted(rule.methods - {"OPTIONS", "HEAD"}):
                    yield method, path


def below_500(answer, *what):
    assert answer.status_code < 500, (*what, answer.status_code, answer.text[:300])
    assert "X-Bad" not in answer.headers


def test_the_api_survives_any_id_query_and_body(app, client, seeded, keys):
    done = 0

    def told() -> dict[str, str]:
        return {"Authorization": f"Bearer {next(keys['admin'])}"}  # many keys: none of them is made to wait

    for method, path in rules(app, "/api/v1"):
        bodies = BODIES if method == "POST" and ("/x" in path or path.count("/") < 4) else BODIES[:1]
        for body in bodies:
            below_500(client.open(path, method=method, data=body, headers=told()), method, path, body[:80])
            done += 1
    for one in ("/accounts", "/contacts", "/messages", "/decisions", "/enrollments", "/suppressions", "/surveys", "/tasks"):
        for name in (
            "cursor",
            "limit",
            "account",
            "contact",
            "campaign",
            "search",
            "state",
            "email",
            "sort",
            "step",
            "scope",
            "enrollment",
        ):
            for value in VALUES:
                below_500(client.get(f"/api/v1{one}", query_string={name: value}, headers=told()), one, name, value[:40])
    assert done > 200


def test_the_console_survives_any_id_query_and_form(app, seeded, staff):
    client, csrf = staff
    for method, path in rules(app, "/console"):
        if path.endswith("/sign-out") or "/sign-in/" in path:
            continue
        if method == "GET":
            below_500(client.get(path), path)
            continue
        for value in VALUES:
            form = {"csrf_token": csrf, **dict.fromkeys(FIELDS, value)}
            below_500(client.post(path, data=form), path, value[:40])
            form |= {"do": "done", "mode": "paused", "was": "live", "kind": "account", "days": "7"}
            below_500(client.post(path, data=form), path, value[:40])
    for rule in ("/console/accounts", "/console/tasks", "/console/inbound", "/console/hooks", "/console/privacy", "/console/messages"):
        for name in PARAMETERS:
            for value in VALUES:
                below_500(client.get(rule, query_string={name: value}), rule, name, value[:40])


def test_x30_no_form_of_the_console_is_taken_without_its_token(app, seeded, staff):
    client, csrf = staff
    forms = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/console") and "POST" in rule.methods]
    assert len(forms) >= 8
    for rule in forms:
        path = re.sub(r"<[^>]+>", lambda found: "1" if "int:" in found[0] else "x", rule.rule)
        for form in ({}, {"csrf_token": ""}, {"csrf_token": csrf[:-1]}, {"csrf_token": "\x00"}):
            answer = client.post(path, data=form)
            assert answer.status_code == 400 and "did not come from this page" in answer.text, path
    assert client.get("/console").status_code == 200


def test_x35_no_body_of_the_api_takes_a_field_that_is_not_its_own(app, client, keys):
    seen = 0
    for one in OPERATIONS.values():
        if one.body:
            path = "/api/v1" + re.sub(r"{\w+}", "x", one.path)
            headers = {"Authorization": f"Bearer {next(keys['admin'])}"}
            answer = client.open(path, method=one.method, json={"surprise": 1}, headers=headers)
            assert answer.status_code == 400, path
            seen += 1
    assert seen >= 7
    models = [one for one in vars(api).values() if isinstance(one, type) and issubclass(one, BaseModel) and one is not BaseModel]
    assert len(models) >= 6 and all(one.model_config.get("extra") == "forbid" for one in models)


@pytest.mark.parametrize("start", ["/c/", "/o/", "/u/", "/p/", "/s/", "/v/", "/hooks/", "/inbound/", "/v1/"])
def test_public_routes_survive_any_id_and_body(app, client, seeded, keys, start):
    for method, path in rules(app, start):
        for body in BODIES if method == "POST" else BODIES[:1]:
            for kind in ("application/json", "multipart/form-data; boundary=x"):
                told = {"Content-Type": kind, "Authorization": f"Bearer {keys['inbound']}"}
                below_500(client.open(path, method=method, data=body, headers=told), method, path, body[:80])
