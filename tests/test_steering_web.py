"""Steering through the console and the API: buttons that cannot be forged, that say what they do, and that change what was shown."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.flow import access
from app.web.openapi import PREFIX
from tests.seeding import seed
from tests.test_api import conforms
from tests.test_console import Page, link, token_of

NOW = datetime.now(UTC)  # the console and the API ask the clock
KEY = "onboarding/first-value"
PAGE = f"/console/campaigns/{KEY}"


@pytest.fixture
def database_engine(app):
    return app.extensions["nurture"].engine


@pytest.fixture
def seeded(database_engine):
    with database_engine.begin() as conn:
        return seed(conn, NOW, 40)


@pytest.fixture
def staff(client, database_engine, seeded):
    assert client.get(link(database_engine)).status_code == 303
    return client


def one(engine, statement, **values):
    with engine.begin() as conn:
        return conn.execute(text(statement), values).scalar()


def mode_of(engine):
    return one(engine, "select mode from campaign where key = :key", key=KEY)


def press(staff, where="mode", **form):
    return staff.post(f"{PAGE}/{where}", data={"csrf_token": token_of(staff), **form})


def page(staff):
    answer = staff.get(PAGE)
    assert answer.status_code == 200
    found = Page(answer.get_data(as_text=True))
    assert not found.problems
    return found


def buttons(staff):
    """What the buttons of the mode panel say, those that archive excepted."""
    panel = staff.get(PAGE).get_data(as_text=True).partition('id="mode"')[2].partition("</section>")[0]
    return [words for words in re.findall(r"<button[^>]*>([^<]+)</button>", panel) if not words.startswith("Archive")]


def test_a_campaign_is_paused_and_resumed_by_forms_that_cannot_be_forged(staff, database_engine):
    assert staff.post(f"{PAGE}/mode", data={"mode": "paused", "was": "live"}).status_code == 400
    assert staff.get(f"{PAGE}/mode").status_code in (404, 405)
    assert mode_of(database_engine) == "live" and buttons(staff) == ["Pause"]
    answer = press(staff, mode="paused", was="live")
    assert answer.status_code == 303 and answer.headers["Location"].endswith(f"{PAGE}?was=live")
    assert mode_of(database_engine) == "paused"
    said = Page(staff.get(answer.headers["Location"]).get_data(as_text=True)).words
    assert "It is paused now; it was live." in said and "Nothing is overdue." in said
    assert press(staff, mode="live", was="paused").status_code == 303 and mode_of(database_engine) == "live"


def test_what_is_overdue_is_listed_with_the_choice(staff, database_engine):
    press(staff, mode="paused", was="live")
    with database_engine.begin() as conn:
        late = "update enrollment set due_at = :late where state = 'active' and step_id in ('setup', 'breathe')"
        count = conn.execute(text(late), {"late": NOW - timedelta(days=2)}).rowcount
    assert count > 0
    found = page(staff)
    assert buttons(staff) == ["Resume: send it now", "Resume: skip it", "Resume: take them out"]
    assert "Overdue, the oldest first" in found.words and "2 days ago" in found.words
    refused = press(staff, mode="live", was="paused")
    assert (
        refused.status_code == 400
        and "Nothing was changed" in refused.get_data(as_text=True)
        and "overdue" in refused.get_data(as_text=True)
    )
    assert mode_of(database_engine) == "paused"
    assert press(staff, mode="live", was="paused", overdue="exit").status_code == 303
    assert mode_of(database_engine) == "live"
    raised = "select count(*) from event where name = 'nurture.enrollment_steered' and properties ->> 'reason' = 'exited_on_resume'"
    assert one(database_engine, raised) >= count


@pytest.mark.parametrize(
    ("mode", "shown"),
    [("draft", ["Start in shadow", "Go live"]), ("shadow", ["Go live", "Back to draft"]), ("archived", ["Unarchive"])],
)
def test_every_mode_has_its_buttons_and_no_others(staff, database_engine, mode, shown):
    one(database_engine, "update campaign set mode = :mode where key = :key returning id", mode=mode, key=KEY)
    assert page(staff) and buttons(staff) == shown


def test_a_button_changes_only_what_was_shown(staff, database_engine):
    """Somebody else has paused it meanwhile: pressing Archive on the old page does nothing."""
    press(staff, mode="paused", was="live")
    answer = press(staff, mode="archived", was="live")
    assert answer.status_code == 400 and "meanwhile" in answer.get_data(as_text=True)
    assert mode_of(database_engine) == "paused"
    for form in ({"mode": "burning", "was": "paused"}, {"mode": "live"}, {"mode": "live", "was": "paused", "overdue": "burn"}, {}):
        assert press(staff, **form).status_code == 400
    assert press(staff, mode="archived", was="paused", exit="yes").status_code == 303
    assert mode_of(database_engine) == "archived"
    assert staff.post("/console/campaigns/no/such/mode", data={"csrf_token": token_of(staff), "mode": "live"}).status_code == 404


def test_new_enrollments_enter_another_version_and_back(staff, database_engine):
    copied = """insert into campaign_version (campaign_id, number, hash, definition, published_at)
        select v.campaign_id, 2, 'second', v.definition, now() from campaign_version v join campaign k on k.id = v.campaign_id
        where k.key = :key returning id"""
    one(database_engine, copied, key=KEY)
    assert "Use: new enrollments enter version 2" in [attrs.get("aria-label") for attrs in page(staff).of("button")]
    answer = press(staff, "version", number="2", was="1")
    assert answer.status_code == 303
    said = Page(staff.get(answer.headers["Location"]).get_data(as_text=True)).words
    assert "New enrollments enter version 2 now; it was 1. Nobody inside was moved. Undo" in said
    assert press(staff, "version", number="1", was="1").status_code == 400
    for number in ("9", "x", "", "9" * 30):
        assert press(staff, "version", number=number, was="2").status_code in (400, 404)
    current = "select v.number from campaign k join campaign_version v on v.id = k.version_id where k.key = :key"
    assert one(database_engine, current, key=KEY) == 2
    assert press(staff, "version", number="1", was="2").status_code == 303
    assert one(database_engine, current, key=KEY) == 1


@pytest.mark.parametrize("was", ["<script>", "live", "1", "99", "draft' or 1=1", "x" * 3000])
def test_the_hint_shows_only_what_can_be(staff, was):
    found = Page(staff.get(PAGE, query_string={"was": was}).get_data(as_text=True))
    assert not found.problems and "script" not in [tag for tag, _ in found.tags]
    assert "class" not in dict(found.of("div")[0]) or "It is live now" not in found.words


# The API -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(app, client, database_engine, seeded):
    keys = {}
    with database_engine.begin() as conn:
        for scope in access.SCOPES:
            keys[scope] = access.create_key(conn, scope, scope, NOW)

    def call(path, method="GET", scope="read", **options):
        return client.open(PREFIX + path, method=method, headers={"Authorization": f"Bearer {keys[scope]}"}, **options)

    return call


def test_versions_are_answered_as_described(api, client):
    described = client.get("/openapi.json").json
    answer = api(f"/campaigns/{KEY}/versions")
    assert answer.status_code == 200 and [version["number"] for version in answer.json["data"]] == [1]
    conforms(described, {"$ref": "#/components/schemas/Versions"}, answer.json)
    assert api("/campaigns/no/such/versions").status_code == 404


def test_enrolling_takes_an_admin_key_and_a_preview_changes_nothing(api, client, seeded, database_engine):
    described = client.get("/openapi.json").json
    path, body = f"/campaigns/{KEY}/enroll", {"accounts": seeded[1:9], "preview": True}
    assert api(path, "POST", "read", json=body).status_code == 403
    answer = api(path, "POST", "admin", json=body)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    conforms(described, {"$ref": "#/components/schemas/Enrolling"}, answer.json)
    found = answer.json
    assert found["entering"] + found["refused"] == len(found["answers"]) == 8 and found["requested"] == 0
    asked = "select count(*) from event where name = 'nurture.enroll_requested'"
    assert one(database_engine, asked) == 0
    done = api(path, "POST", "admin", json={**body, "preview": False}).json
    assert done["requested"] == 8 and one(database_engine, asked) == 8
    assert api(path, "POST", "admin", json={**body, "preview": False}).json["requested"] == 0


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, None),
        ({"accounts": ["nobody"]}, 404, None),
        ({"accounts": ["acct-00001"], "everybody": True}, 400, None),
        ({"accounts": "acct-00001"}, 400, "accounts"),
        ({"account": ["acct-00001"]}, 400, "account"),
        ({"accounts": ["x"] * 1001}, 400, "accounts"),
        ({"contacts": ["a\x00b"]}, 404, None),
    ],
)
def test_an_enrolling_that_cannot_be_meant_is_refused(api, body, status, field):
    answer = api(f"/campaigns/{KEY}/enroll", "POST", "admin", json=body)
    assert answer.status_code == status
    assert answer.json.get("field") == field


def test_a_campaign_that_takes_nobody_says_so(api, database_engine):
    one(database_engine, "update campaign set mode = 'paused' where key = :key returning id", key=KEY)
    body = {"accounts": ["acct-00001"]}
    found = api(f"/campaigns/{KEY}/enroll", "POST", "admin", json={**body, "preview": True}).json
    assert found["reasons"][0]["reason"] == "campaign_not_live"
    assert api(f"/campaigns/{KEY}/enroll", "POST", "admin", json=body).status_code == 400
    assert re.search("paused", api(f"/campaigns/{KEY}/enroll", "POST", "admin", json=body).json["detail"])
