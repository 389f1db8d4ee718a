"""The reading API: what it answers, against its own description; who may ask; what is refused and how."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import fsum
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from sqlalchemy import text

from app.flow import access
from app.models import consent, erasure, suppression
from app.web.api import OPERATIONS
from app.web.openapi import PREFIX, page_of
from tests.conftest import dsn
from tests.seeding import seed

NOW = datetime.now(UTC)  # the API asks the clock


@pytest.fixture
def seeded(app):
    with app.extensions["nurture"].engine.begin() as conn:
        return seed(conn, NOW, 20)


@pytest.fixture
def api(app, client):
    """Calls the API with a key of the scope that is asked for."""
    keys = {}
    with app.extensions["nurture"].engine.begin() as conn:
        for scope in access.SCOPES:
            keys[scope] = access.create_key(conn, scope, scope, NOW)

    def call(path, method="GET", scope="read", **options):
        return client.open(PREFIX + path, method=method, headers={"Authorization": f"Bearer {keys[scope]}"}, **options)

    return call


@pytest.fixture
def described(client):
    return client.get("/openapi.json").json


def conforms(described, schema, value):
    whole = {"$ref": "#/root", "root": schema, "components": described["components"]}
    problems = [f"{list(error.absolute_path)}: {error.message[:200]}" for error in Draft202012Validator(whole).iter_errors(value)]
    assert not problems, problems


def test_the_description_is_valid_openapi_and_names_every_route(app, described):
    validate(described)
    found = {(path, method.upper()) for path, methods in described["paths"].items() for method in methods}
    assert found == {(one.path, one.method) for one in OPERATIONS.values()}
    rules = {rule.rule.removeprefix(PREFIX) for rule in app.url_map.iter_rules() if rule.rule.startswith(PREFIX)}
    assert rules == {path.replace("{", "<key:").replace("}", ">") for path in described["paths"]}


def test_every_answer_is_as_described(api, described, seeded, app):
    with app.extensions["nurture"].engine.begin() as conn:
        message = conn.execute(text("select m.id from message m join hit h on h.message_id = m.id limit 1")).scalar_one()
        task = conn.execute(text("select id from task where state = 'open' limit 1")).scalar_one()
        person = conn.execute(text("select person from contact where external_id = 'u-1-0'")).scalar_one()
        conn.execute(suppression.insert().values(person=person, scope="all", reason="manual", created_at=NOW))
        conn.execute(consent.insert().values(person=person, purpose="all", granted=False, at=NOW, method="page"))
        done = {
            "id": uuid4(),
            "kind": "contact",
            "subject": "erased:x",
            "requested_at": NOW,
            "requested_by": "operator",
            "finished_at": NOW,
        }
        conn.execute(erasure.insert().values(**done))
    ids = {
        "erasure": str(done["id"]),
        "account": seeded[1],
        "contact": "u-1-0",
        "campaign": "onboarding/first-value",
        "message": str(message),
        "task": str(task),
    }
    asked = 0
    for one in OPERATIONS.values():
        if one.method != "GET":
            continue
        path = one.path
        for name, value in ids.items():
            path = path.replace(f"{{{name}}}", quote(value, safe="/"))
        answer = api(path, scope=one.scope)
        assert answer.status_code == 200, (path, answer.get_data(as_text=True))
        assert answer.mimetype == "application/json"
        schema = page_of(one.returns) if one.paged else {"$ref": f"#/components/schemas/{one.returns}"}
        conforms(described, schema, answer.json)
        if "data" in answer.json and one.path != "/holds":
            assert answer.json["data"], path
        asked += 1
    assert asked >= 14


@pytest.mark.parametrize("number", range(0, 20, 17))
def test_an_account_is_found_by_an_id_with_slashes_spaces_and_signs(api, seeded, number):
    key = seeded[number]
    assert "/" in key and " " in key and "#" in key
    for path in (quote(key, safe=""), quote(key, safe="/")):
        found = api(f"/accounts/{path}").json
        assert found["id"] == key
        assert api(f"/accounts/{path}/timeline").json["data"]
        assert api(f"/accounts/{path}/health").status_code == 200


@pytest.mark.parametrize("key", ["a//b", "/a", "a/", "..", "%", "a b", "日本", "🦔", "a/timeline", "a?b&c=d"])
def test_any_external_id_works(api, app, key):
    with app.extensions["nurture"].engine.begin() as conn:
        conn.execute(
            text("insert into contact (external_id, created_at) values (:key, now())"),
            {"key": key},
        )
    found = api(f"/contacts/{quote(key, safe='')}")
    assert found.status_code == 200 and found.json["id"] == key


def test_health_has_contributions_that_sum_to_the_score(api, seeded):
    scored = 0
    for key in seeded:
        health = api(f"/accounts/{quote(key, safe='')}").json["health"]
        if health["score"] is None:
            assert health["contributions"] == []
            continue
        assert fsum(one["contribution"] for one in health["contributions"]) == pytest.approx(health["score"], abs=1e-9)
        assert health["band"] in ("green", "yellow", "red")
        scored += 1
    assert scored > 10


def test_milestones_say_what_is_reached_expected_and_overdue(api, seeded):
    states = set()
    for key in seeded:
        found = {one["name"]: one for one in api(f"/accounts/{quote(key, safe='')}").json["milestones"]}
        assert set(found) == {"setup_completed", "report_shared", "first_value"}
        for one in found.values():
            states.add(one["state"])
            assert (one["reached_at"] is not None) == (one["state"] in ("reached", "late"))
    assert {"reached", "late", "overdue", "expected"} <= states


@pytest.mark.parametrize(
    ("path", "order"),
    [("/accounts", "id"), ("/accounts?sort=name", "name"), ("/accounts?sort=health", "health"), ("/messages", None), ("/decisions", None)],
)
def test_paging_shows_everything_once(api, seeded, path, order):
    joint = "&" if "?" in path else "?"
    seen, cursor = [], ""
    while cursor is not None:
        answer = api(f"{path}{joint}limit=7" + (f"&cursor={cursor}" if cursor else ""))
        assert answer.status_code == 200 and len(answer.json["data"]) <= 7
        seen += [one.get("id") or str(one) for one in answer.json["data"]]
        cursor = answer.json["next"]
    whole = [one.get("id") or str(one) for one in api(f"{path}{joint}limit=200").json["data"]]
    assert seen == whole and len(seen) > 14
    assert order is None or len(set(seen)) == len(seeded)


def test_a_timeline_pages_through_every_kind_in_order(api, seeded):
    key = quote(seeded[1], safe="")
    seen, cursor = [], ""
    while cursor is not None:
        answer = api(f"/accounts/{key}/timeline?limit=4" + (f"&cursor={cursor}" if cursor else "")).json
        seen += answer["data"]
        cursor = answer["next"]
    whole = api(f"/accounts/{key}/timeline?limit=200").json["data"]
    assert seen == whole
    assert [one["at"] for one in seen] == sorted((one["at"] for one in seen), reverse=True)
    assert {"event", "stage"} <= {one["kind"] for one in seen}
    assert {one["kind"] for one in api(f"/accounts/{key}/timeline?kinds=stage,event").json["data"]} == {"event", "stage"}


def test_filters(api, seeded):
    everything = api("/accounts?limit=200").json["data"]
    for name, pick in (
        ("stage", lambda one: one["stage"]),
        ("band", lambda one: one["health"]["band"]),
        ("touch", lambda one: one["touch"]),
    ):
        value = pick(everything[1])
        got = api(f"/accounts?{name}={value or 'unknown'}&limit=200").json["data"]
        assert [one["id"] for one in got] == [one["id"] for one in everything if pick(one) == value]
    assert [one["id"] for one in api(f"/accounts?search={seeded[3].upper()}").json["data"]] == [seeded[3]]
    assert api("/accounts?search=100%25_").json["data"] == []
    assert {one["state"] for one in api("/messages?state=sent").json["data"]} == {"sent"}
    assert {one["account"] for one in api(f"/enrollments?account={seeded[2]}").json["data"]} <= {seeded[2]}
    assert {one["verdict"] for one in api("/decisions?verdict=no").json["data"]} <= {"no"}


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/accounts/nobody", 404, "nobody"),
        ("/contacts/nobody", 404, "nobody"),
        ("/contacts/nobody/explain", 404, "nobody"),
        ("/campaigns/nothing", 404, "nothing"),
        ("/messages/nonsense", 404, "nonsense"),
        ("/messages/00000000-0000-0000-0000-000000000001", 404, "0001"),
        ("/accounts?limit=0", 400, "limit"),
        ("/accounts?limit=x", 400, "limit"),
        ("/accounts?limit=9999999999999999999999", 400, "limit"),
        ("/accounts?cursor=x", 400, "cursor"),
        ("/accounts?cursor=W10", 400, "cursor"),
        ("/accounts?cursor=WzFlNDAwXQ", 400, "cursor"),
        ("/messages?cursor=WyI5OTk5OS0wMS0wMVQwMDowMDowMFoiLCAieCJd", 400, "cursor"),
        ("/accounts?band=blue", 400, "band"),
        ("/accounts?sort=x", 400, "sort"),
        ("/accounts?colour=red", 400, "colour"),
        ("/messages?state=x", 400, "state"),
        ("/messages?enrollment=x", 400, "enrollment"),
        ("/decisions?verdict=x", 400, "verdict"),
        ("/surveys?survey=x", 400, "survey"),
        ("/nowhere", 404, ""),
        ("/accounts/a%00b", 404, ""),
    ],
)
def test_what_cannot_be_answered_is_a_problem_document(api, seeded, described, path, status, says):
    answer = api(path)
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.mimetype == "application/problem+json"
    conforms(described, {"$ref": "#/components/schemas/Problem"}, answer.json)
    assert answer.json["status"] == status and says in answer.get_data(as_text=True)


def test_scopes(api, seeded):
    assert api("/accounts", scope="write").status_code == 403
    assert api("/accounts", scope="admin").status_code == 200
    assert api("/holds", "POST", json={"account": seeded[1], "reason": "x"}).status_code == 403
    assert api("/holds/1", "DELETE").status_code == 403
    assert api("/accounts", "POST", scope="admin").status_code == 405


def test_a_revoked_key_stops_at_once(api, app, seeded):
    assert api("/accounts").status_code == 200
    with app.extensions["nurture"].engine.begin() as conn:
        for key in access.list_keys(conn):
            access.revoke_key(conn, key.id, NOW)
    assert api("/accounts").status_code == 401


def test_a_hold_is_made_shown_and_released(api, seeded, described):
    until = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    made = api("/holds", "POST", "admin", json={"account": seeded[1], "reason": "In conversation", "until": until})
    assert made.status_code == 201, made.get_data(as_text=True)
    conforms(described, {"$ref": "#/components/schemas/Hold"}, made.json)
    shown = api(f"/accounts/{seeded[1]}").json["holds"]
    assert [one["reason"] for one in shown] == ["In conversation"]
    assert made.json["id"] in [one["id"] for one in api("/holds").json["data"]]
    assert api(f"/holds/{made.json['id']}", "DELETE", "admin").status_code == 204
    assert api(f"/accounts/{seeded[1]}").json["holds"] == []
    assert api(f"/holds/{made.json['id']}", "DELETE", "admin").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 5000,
        b'{"account": "acct-00001"}',
        b'{"account": "acct-00001", "reason": ""}',
        b'{"account": "acct-00001", "reason": "x", "colour": "red"}',
        b'{"account": "acct-00001", "contact": "u-1-0", "reason": "x"}',
        b'{"reason": "x"}',
        b'{"account": 5, "reason": "x"}',
        b'{"account": "acct-00001", "reason": "x", "until": "2020-01-01T00:00:00Z"}',
        b'{"account": "acct-00001", "reason": "x", "until": "2030-01-01T00:00:00"}',
        b'{"account": "acct-00001", "reason": "x", "until": "9999-12-31T23:59:59-12:00"}',
        b'{"account": "acct-00001", "reason": "\\u0000"}',
        b'{"account": "acct-00001", "reason": "\\ud800"}',
        b'{"account": "\xff", "reason": "x"}',
    ],
)
def test_a_hold_that_cannot_be_meant_is_refused(api, seeded, body):
    before = api("/holds").json
    answer = api("/holds", "POST", "admin", data=body)
    assert answer.status_code == 400, answer.get_data(as_text=True)
    assert answer.mimetype == "application/problem+json"
    assert api("/holds").json == before


def test_explain_answers_with_the_decisions(api, seeded):
    found = api("/contacts/u-1-0/explain").json
    assert {one["campaign"] for one in found["decisions"]} == {
        "onboarding/first-value",
        "onboarding/onboarding-survey",
        "adoption/scheduled-reports",
    }
    assert all(one["reason"] and one["text"] and one["verdict"] in ("yes", "no", "wait") for one in found["decisions"])
    only = api("/contacts/u-1-0/explain?campaign=onboarding/first-value").json
    assert {one["campaign"] for one in only["decisions"]} == {"onboarding/first-value"}
    assert api("/contacts/u-1-0/explain?campaign=x").status_code == 404
    assert api(f"/contacts/u-1-0/explain?account={seeded[5]}").status_code == 404


def test_explain_tells_the_gates_in_order_at_any_moment_of_the_past(api, seeded):
    an_hour_ago = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for path in ("/contacts/u-1-0/explain", f"/accounts/{quote(seeded[0])}/explain"):
        found = api(f"{path}?at={an_hour_ago}").json
        assert found["at"] == an_hour_ago and found["stories"]
        for story in api(path).json["stories"]:
            assert [one["gate"] for one in story["gates"]][:3] == ["trigger", "campaign", "enrollment"] and len(story["gates"]) == 16
            assert story["first_failed"] in (None, *(one["gate"] for one in story["gates"] if one["verdict"] in ("no", "wait")))
        for wrong in ("yesterday", "2999-01-01", "2026-13-01"):
            answer = api(f"{path}?at={wrong}")
            assert answer.status_code == 400 and answer.json["detail"].startswith("at: ")
    assert api("/accounts/nobody/explain").status_code == 404


def test_before_anything_is_published_the_lists_are_empty_not_broken(api):
    for path in ("/accounts", "/contacts", "/messages", "/enrollments", "/decisions", "/surveys", "/campaigns", "/holds"):
        answer = api(path)
        assert answer.status_code == 200 and answer.json["data"] == []


def test_health_checks_and_metrics_need_no_key_and_name_nobody(client, seeded):
    assert client.get("/healthz").json["status"] == "ok"
    assert client.get("/readyz").json == {"status": "ok", "database": "ok", "redis": "ok"}
    shown = client.get("/metrics").get_data(as_text=True)
    for name in (
        "nurture_oldest_pending_event_age_seconds 0.0",
        "nurture_oldest_due_message_age_seconds",
        "nurture_unknown_messages",
        "nurture_duplicate_events_refused_total",
        "nurture_parked_occurrences 0.0",
        'nurture_messages{state="sent"}',
        "nurture_events_received_total 500.0",
    ):
        assert name in shown
    assert "@" not in shown and "acct" not in shown


def test_with_the_database_away_it_is_alive_not_ready_and_says_try_again(app, client, api, postgres, database):
    name = database.rpartition("/t_")[2].partition("?")[0]
    with psycopg.connect(dsn(postgres.url("postgres")), autocommit=True) as conn:
        conn.execute(f'alter database "t_{name}" with allow_connections false')
        conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (f"t_{name}",))
    assert client.get("/healthz").status_code == 200
    answer = client.get("/readyz")
    assert answer.status_code == 503 and answer.json["database"].startswith("away")
    assert api("/accounts").status_code == 503
    assert client.get("/metrics").status_code == 503


# Modes of campaigns --------------------------------------------------------------------------------------------------

KEY = "/campaigns/onboarding/first-value"


def test_a_campaign_is_paused_and_resumed(api, app, seeded, described):
    with app.extensions["nurture"].engine.begin() as conn:
        conn.execute(text("update enrollment set due_at = now() where state = 'active' and step_id is not null"))
    assert api(f"{KEY}/mode").json["mode"] == "live"
    done = api(f"{KEY}/pause", "POST", "admin")
    conforms(described, {"$ref": "#/components/schemas/ModeChanged"}, done.json)
    assert (done.json["before"], done.json["after"]) == ("live", "paused")
    shown = api(f"{KEY}/mode").json
    conforms(described, {"$ref": "#/components/schemas/Mode"}, shown)
    waiting = sum(one["count"] for one in shown["overdue"])
    assert shown["mode"] == "paused" and shown["since"] and waiting
    refused = api(f"{KEY}/resume", "POST", "admin", json={})
    assert (refused.status_code, refused.mimetype, refused.json["field"]) == (400, "application/problem+json", "overdue")
    assert f"{waiting} are overdue" in refused.json["detail"]
    done = api(f"{KEY}/resume", "POST", "admin", json={"overdue": "skip"})
    assert done.status_code == 200 and done.json["messages"] + done.json["skipping"] + done.json["effects"] == waiting
    assert api(f"{KEY}/mode").json["mode"] == "live"


def test_a_mode_is_changed_as_the_command_changes_it(api, seeded, described):
    done = api(f"{KEY}/mode", "POST", "admin", json={"mode": "archived", "was": "live", "exit": True})
    conforms(described, {"$ref": "#/components/schemas/ModeChanged"}, done.json)
    assert done.json["after"] == "archived" and done.json["leaving"] > 0
    assert api(f"{KEY}/mode", "POST", "admin", json={"mode": "paused"}).json["before"] == "archived"


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (f"{KEY}/mode", {"mode": "draft"}, 400, "live can become paused or archived"),
        (f"{KEY}/mode", {"mode": "live"}, 400, "live already"),
        (f"{KEY}/mode", {"mode": "loud"}, 400, "mode"),
        (f"{KEY}/mode", {}, 400, "mode"),
        (f"{KEY}/mode", {"mode": "paused", "exit": True}, 400, "exit"),
        (f"{KEY}/mode", {"mode": "paused", "was": "shadow"}, 400, "it is live now, not shadow"),
        (f"{KEY}/mode", {"mode": "paused", "overdue": "burn"}, 400, "overdue"),
        (f"{KEY}/resume", {}, 400, "it is live now, not paused"),
        ("/campaigns/no/such/pause", None, 404, "no/such"),
        ("/campaigns/no/such/mode", {"mode": "live"}, 404, "no/such"),
    ],
)
def test_a_change_that_cannot_be_is_a_problem_and_changes_nothing(api, seeded, described, path, body, status, says):
    answer = api(path, "POST", "admin", json=body)
    assert answer.status_code == status and answer.mimetype == "application/problem+json"
    conforms(described, {"$ref": "#/components/schemas/Problem"}, answer.json)
    assert says in answer.get_data(as_text=True)
    assert api(f"{KEY}/mode").json["mode"] == "live"


def test_modes_want_an_admin_key(api, seeded):
    for path in ("mode", "pause", "resume"):
        for scope in ("read", "write"):
            assert api(f"{KEY}/{path}", "POST", scope, json={"mode": "paused"}).status_code == 403
    assert api(f"{KEY}/mode").json["mode"] == "live"
