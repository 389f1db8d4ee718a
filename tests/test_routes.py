"""Conventions of the web: every route needs a session or a key, or is on the list of what is public."""

from __future__ import annotations

import re

import pytest

from app.web.api import OPERATIONS
from app.web.openapi import PREFIX

# Endpoint → why nobody has to say who he is.
PUBLIC = {
    "front": "sends to the console, which asks for a session",
    "static": "style sheet and icon",
    "console.take_sign_in": "the link is the credential, once",
    "health.alive": "health check",
    "health.ready": "health check",
    "health.metrics": "numbers without a customer",
    "api.description": "the description of the API",
}
# Blueprints of pages that the recipients of mail reach by signed links: a wrong token shows nothing.
BY_TOKEN = ("/c/", "/o/", "/u/", "/p/", "/s/", "/v/")
# Random addresses, whose calls are verified before they are read: they show nothing to anybody.
BY_SIGNATURE = "/hooks/"
# The write key is the basic-auth user.
BY_WRITE_KEY = "/v1/"
# Only without a relay, with a loopback base URL and Host and no forwarding headers.
ON_LOOPBACK = "/dev/outbox"


def routes(app):
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", lambda m: SAMPLE.get(m[1], "x1"), rule.rule)
        for method in sorted(rule.methods - {"OPTIONS"}):
            yield rule, method, path


SAMPLE = {
    "message_id": "00000000-0000-0000-0000-000000000001",
    "task_id": "00000000-0000-0000-0000-000000000001",
    "erasure_id": "00000000-0000-0000-0000-000000000001",
    "hold_id": "1",
    "mail_id": "1",
    "call_id": "1",
    "ident": "1",
    "filename": "console.css",
}


def test_every_route_is_authenticated_or_listed_as_public(app, client):
    with app.app_context():
        from app.flow import access
        from tests.conftest import NOW

        with app.extensions["nurture"].engine.begin() as conn:
            access.create_key(conn, "product", "write", NOW)
    open_routes, seen = [], 0
    for rule, method, path in routes(app):
        if rule.endpoint in PUBLIC or rule.rule.startswith((*BY_TOKEN, BY_SIGNATURE, ON_LOOPBACK)):
            continue
        seen += 1
        answer = client.open(path, method=method)
        if answer.status_code != 401:
            open_routes.append((method, rule.rule, answer.status_code))
    assert not open_routes
    assert seen > 40


def test_the_public_list_names_nothing_that_is_gone(app):
    assert set(PUBLIC) <= {rule.endpoint for rule in app.url_map.iter_rules()}


def test_a_made_up_token_shows_nothing_of_anybody(app, client):
    for rule, method, path in routes(app):
        if rule.rule.startswith(BY_TOKEN) and "<" in rule.rule:
            answer = client.open(path, method=method)
            # A pixel answers with a pixel whatever its token; the others say that the link is not valid.
            assert answer.status_code in (200, 400, 404, 405, 410), (method, path, answer.status_code)
            if answer.status_code == 200:
                assert rule.rule.startswith("/o/"), path


def test_wrong_keys_and_sessions_open_nothing(app, client):
    for rule, method, path in routes(app):
        if rule.rule.startswith(PREFIX):
            for header in ("Bearer nk_wrong_key", "Bearer ", "Basic bms6", "nk_x", "Bearer nk_" + "é" * 10):
                assert client.open(path, method=method, headers={"Authorization": header}).status_code == 401, (method, path)
    for cookie in ("x", "eyJ0b2tlbiI6IngifQ.aaaa.bbbb"):
        client.set_cookie("nurture", cookie)
        assert client.get("/console/accounts").status_code == 401


def test_every_api_route_is_an_operation_with_a_scope(app):
    found = {rule.endpoint for rule in app.url_map.iter_rules() if rule.rule.startswith(PREFIX)}
    assert found == set(OPERATIONS)
    assert all(one.scope in ("read", "admin") for one in OPERATIONS.values())
    assert all(one.scope == "admin" for one in OPERATIONS.values() if one.method != "GET")


@pytest.mark.parametrize("path", ["/console", "/api/v1/accounts", "/healthz", "/openapi.json"])
def test_every_answer_carries_the_security_headers(client, path):
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"]
