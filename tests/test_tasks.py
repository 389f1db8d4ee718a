"""Tasks of staff: made by hand, listed, closed, opened again, given away; by command, by API, on the page."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text

from app import cli
from app.errors import InputError, NotFound
from app.flow import access
from app.flow.reading.tasks import counts, task, tasks
from app.flow.tasks import add_task, change_task
from app.web.openapi import PREFIX
from tests.cast import Cast
from tests.seeding import seed
from tests.test_api import conforms
from tests.test_console import Page, link, token_of

NOW = datetime.now(UTC)  # the console and the API ask the clock


@pytest.fixture
def conn(engine):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        cast.contact("ada", cast.account("acorn", owner_name="Olu Owner", owner_email="olu@example.com"))
        cast.account("beech")
        yield conn


# What a task is ------------------------------------------------------------------------------------------------------


def test_a_task_belongs_to_the_owner_unless_somebody_is_named(conn):
    first = task(conn, add_task(conn, "acorn", "Call\nthem", NOW, contact="ada", note="Why?", due_at=NOW + timedelta(days=1)), NOW)
    assert (first["title"], first["note"], first["contact"], first["state"], first["overdue"]) == (
        "Call them",
        "Why?",
        "ada",
        "open",
        False,
    )
    assert (first["assignee"], first["assignee_name"]) == ("olu@example.com", "Olu Owner")
    other = task(conn, add_task(conn, "acorn", "Call", NOW, assignee="desk@example.com"), NOW)
    assert (other["assignee"], other["assignee_name"]) == ("desk@example.com", None)
    assert task(conn, add_task(conn, "beech", "Call", NOW), NOW)["assignee"] is None


def test_a_task_is_closed_once_and_can_be_opened_again(conn):
    made = add_task(conn, "acorn", "Call", NOW)
    assert change_task(conn, made, NOW, state="done", outcome="They start on Monday")
    later = NOW + timedelta(hours=1)
    assert not change_task(conn, made, later, state="done"), "asking twice changes nothing"
    found = task(conn, made, later)
    assert (found["state"], found["outcome"], found["closed_at"]) == ("done", "They start on Monday", NOW)
    with pytest.raises(InputError, match="done already"):
        change_task(conn, made, later, state="dismissed")
    assert change_task(conn, str(made), later, state="open")
    found = task(conn, made, later)
    assert (found["state"], found["outcome"], found["closed_at"]) == ("open", None, None)
    assert change_task(conn, made, later, state="dismissed")
    assert counts(conn, later) == {"open": 0, "overdue": 0}


def test_a_task_is_given_away(conn):
    made = add_task(conn, "acorn", "Call", NOW)
    change_task(conn, made, NOW, assignee="desk@example.com")
    assert (task(conn, made, NOW)["assignee"], task(conn, made, NOW)["assignee_name"]) == ("desk@example.com", None)
    change_task(conn, made, NOW, assignee=None)
    assert task(conn, made, NOW)["assignee"] is None


def test_what_cannot_be_meant_changes_nothing(conn):
    made = add_task(conn, "acorn", "Call", NOW)
    for wrong in (
        {"state": "lost"},
        {"assignee": "nobody at all"},
        {"outcome": "of an open task"},
        {"state": "done", "outcome": "x" * 4001},
    ):
        with pytest.raises(InputError):
            change_task(conn, made, NOW, **wrong)
    for missing in (uuid4(), "no id", ""):
        with pytest.raises(NotFound):
            change_task(conn, missing, NOW, state="done")
        with pytest.raises(NotFound):
            task(conn, missing, NOW)
    for wrong in ({"title": " "}, {"title": "x" * 501}, {"title": "x", "note": "x" * 4001}, {"title": "x", "assignee": "x"}):
        with pytest.raises(InputError):
            add_task(conn, "acorn", wrong.pop("title"), NOW, **wrong)
    with pytest.raises(NotFound):
        add_task(conn, "nobody", "Call", NOW)
    assert len(tasks(conn, NOW, state="all").items) == 1


@pytest.mark.parametrize("state", ["ghosted", "shadow"])
def test_a_task_that_was_only_kept_is_nobodys(conn, state):
    made = add_task(conn, "acorn", "Call", NOW)
    conn.execute(text("update task set state = :state"), {"state": state})
    assert tasks(conn, NOW, state="all").items == [] and counts(conn, NOW)["open"] == 0
    with pytest.raises(NotFound):
        task(conn, made, NOW)
    with pytest.raises(NotFound):
        change_task(conn, made, NOW, state="open")


def test_lists_are_filtered_ordered_and_paged(conn):
    due = [None, NOW - timedelta(days=1), NOW + timedelta(days=3), NOW + timedelta(days=1), None]
    for number, at in enumerate(due):
        add_task(conn, "acorn" if number % 2 else "beech", f"t{number}", NOW + timedelta(seconds=number), due_at=at)

    def titles(**wanted):
        found, cursor = [], None
        while True:
            page = tasks(conn, NOW, **wanted, cursor=cursor, limit=2)
            found += [one["title"] for one in page.items]
            if (cursor := page.next) is None:
                return found

    assert titles()[:3] == ["t1", "t3", "t2"] and sorted(titles()[3:]) == ["t0", "t4"]
    assert titles(overdue=True) == ["t1"]
    assert titles(account="acorn") == ["t1", "t3"]
    assert titles(assignee="OLU@example.com") == ["t1", "t3"] and sorted(titles(assignee="nobody")) == ["t0", "t2", "t4"]
    assert titles(state="all") == ["t4", "t3", "t2", "t1", "t0"]
    assert titles(state="done") == [] and titles(campaign="onboarding/first-value") == []
    with pytest.raises(InputError):
        titles(state="lost")


# By command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nurture(engine, database, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("NURTURE_HOME", str(tmp_path / "home"))
    with engine.begin() as conn:
        cast = Cast(conn, NOW, lifecycle={"channels": {"team": "The team's chat"}})
        cast.account("acorn", owner_name="Olu Owner", owner_email="olu@example.com")

    def call(*words):
        code = cli.main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_commands_of_tasks(nurture):
    assert "There is nothing to do." in nurture("tasks", "list")[1]
    code, said, _ = nurture("tasks", "add", "--account", "acorn", "--due", "1d", "--note", "Soon", "Call them", "--json")
    assert code == 0
    made = json.loads(said)["id"]
    assert re.search(rf"{made}  \d{{4}}-\d\d-\d\d  open +Olu Owner: Call them \(Acorn\)", nurture("tasks", "list")[1])
    assert json.loads(nurture("tasks", "list", "--json")[1])[0]["note"] == "Soon"
    assert "nothing" in nurture("tasks", "list", "--overdue")[1] and "nothing" in nurture("tasks", "list", "--assignee", "x@example.com")[1]
    assert nurture("tasks", "done", made, "--outcome", "They start")[0] == 0
    assert "nothing" in nurture("tasks", "list")[1] and "done" in nurture("tasks", "list", "--all")[1]
    code, said, complaint = nurture("tasks", "dismiss", made)
    assert code == 2 and not said and "done already" in complaint
    assert json.loads(nurture("tasks", "reopen", made, "--json")[1])["state"] == "open"
    assert json.loads(nurture("tasks", "assign", made, "desk@example.com", "--json")[1])["assignee"] == "desk@example.com"
    assert json.loads(nurture("tasks", "assign", made, "nobody", "--json")[1])["assignee"] is None
    assert nurture("tasks", "dismiss", made)[0] == 0
    for wrong in (
        ["tasks", "done", "x"],
        ["tasks", "add", "--account", "gone", "x"],
        ["tasks", "add", "--account", "acorn", "x", "--due", "x"],
    ):
        code, said, complaint = nurture(*wrong)
        assert code == 2 and not said and complaint.startswith("nurture: ")


def test_the_commands_of_channels(nurture):
    code, said, _ = nurture("channels", "set", "team", "--slack", "https://hooks.example.com/services/secret-part")
    assert code == 0 and "hooks.example.com" in said and "secret" not in said and "lifecycle.yaml" not in said
    code, said, _ = nurture("channels", "set", "crm", "--webhook", "https://crm.example.com/in")
    secret = re.search(r"Signing secret: (whsec_\S+)", said)[1]
    assert "lifecycle.yaml does not declare it yet" in said
    assert secret not in nurture("channels", "set", "crm", "--webhook", "https://crm.example.com/in")[1], "never again"
    rotated = json.loads(nurture("channels", "set", "crm", "--webhook", "https://crm.example.com/in", "--rotate", "--json")[1])
    assert rotated["secret"].startswith("whsec_") and rotated["secret"] != secret
    listed = nurture("channels", "list")[1]
    assert "crm" in listed and "team" in listed and "whsec" not in listed and "secret-part" not in listed
    assert nurture("channels", "set", "mail", "--email", "team@example.com")[0] == 0
    code, said, _ = nurture("channels", "test", "mail")
    assert code == 0 and "250 captured" in said
    assert nurture("channels", "remove", "crm")[0] == 0
    for wrong in (["remove", "crm"], ["test", "crm"], ["set", "team", "--slack", "http://127.0.0.1/"], ["test", "team"]):
        code, said, complaint = nurture("channels", *wrong)
        assert code == 2 and not said and complaint.startswith("nurture: "), wrong


# By API and on the page ----------------------------------------------------------------------------------------------


@pytest.fixture
def seeded(app):
    with app.extensions["nurture"].engine.begin() as conn:
        return seed(conn, NOW, 40)


@pytest.fixture
def api(app, client, seeded):
    with app.extensions["nurture"].engine.begin() as conn:
        keys = {scope: access.create_key(conn, scope, scope, NOW) for scope in access.SCOPES}

    def call(path, method="GET", scope="read", **options):
        return client.open(PREFIX + path, method=method, headers={"Authorization": f"Bearer {keys[scope]}"}, **options)

    return call


def test_a_program_reads_and_closes_tasks(api, client):
    described = client.get("/openapi.json").json
    found = api("/tasks?limit=200").json["data"]
    assert {one["state"] for one in found} == {"open"}
    assert [one["due_at"] for one in found] == sorted(one["due_at"] for one in found)
    assert all(one["overdue"] for one in api("/tasks?overdue=true").json["data"])
    path = f"/tasks/{found[0]['id']}"
    assert api(path, "POST", "read", json={"state": "done"}).status_code == 403
    answer = api(path, "POST", "admin", json={"state": "done", "outcome": "They start", "assignee": "desk@example.com"})
    assert answer.status_code == 200
    conforms(described, {"$ref": "#/components/schemas/Task"}, answer.json)
    assert (answer.json["state"], answer.json["outcome"], answer.json["assignee"]) == ("done", "They start", "desk@example.com")
    assert api(path, "POST", "admin", json={"state": "dismissed"}).status_code == 400
    assert api(path, "POST", "admin", json={"state": "open", "assignee": None}).json["assignee"] is None
    for body, status in ((b"{", 400), (b'{"state": "lost"}', 400), (b'{"colour": "red"}', 400), (b'{"outcome": "\\u0000"}', 400)):
        assert api(path, "POST", "admin", data=body).status_code == status
    assert api("/tasks/none", "POST", "admin", json={}).status_code == api("/tasks/none").status_code == 404
    for query in ("state=lost", "overdue=1", "colour=red", "cursor=x"):
        assert api(f"/tasks?{query}").status_code == 400


@pytest.fixture
def staff(app, client, seeded):
    assert client.get(link(app.extensions["nurture"].engine)).status_code == 303
    return client


def page(staff, path="/console/tasks"):
    answer = staff.get(path)
    assert answer.status_code == 200
    found = Page(answer.get_data(as_text=True))
    assert not found.problems
    return found


def one(app, statement, **values):
    with app.extensions["nurture"].engine.begin() as conn:
        return conn.execute(text(statement), values).first()


def test_a_task_is_closed_and_opened_again_by_forms_that_cannot_be_forged(staff, app):
    ident, title = one(app, "select id, title from task where state = 'open' order by due_at limit 1")
    path = f"/console/tasks/{ident}"
    assert title in page(staff).words and "overdue" in page(staff).words
    assert staff.post(path, data={"do": "done"}).status_code == 400
    assert staff.get(path).status_code in (404, 405)
    assert one(app, "select state from task where id = :id", id=ident) == ("open",)
    token = token_of(staff)
    answer = staff.post(path, data={"csrf_token": token, "do": "done", "outcome": "They start", "show": "overdue"})
    assert answer.status_code == 303 and "show=overdue" in answer.headers["Location"]
    assert one(app, "select state, outcome from task where id = :id", id=ident) == ("done", "They start")
    said = page(staff, answer.headers["Location"]).words
    assert f"Done: {title}" in said and "Undo" in said
    assert "They start" in page(staff, "/console/tasks?show=done").words
    assert staff.post(path, data={"csrf_token": token, "do": "dismiss"}).status_code == 400, "whoever closed it first decides"
    assert staff.post(path, data={"csrf_token": token, "do": "reopen"}).status_code == 303
    assert one(app, "select state, outcome from task where id = :id", id=ident) == ("open", None)
    assert staff.post(path, data={"csrf_token": token, "do": "lose"}).status_code == 400
    assert staff.post("/console/tasks/none", data={"csrf_token": token, "do": "done"}).status_code == 404


def test_the_accounts_page_shows_its_tasks(staff, app):
    ident, key = one(app, "select t.id, a.external_id from task t join account a on a.id = t.account_id where t.state = 'open' limit 1")
    found = page(staff, f"/console/accounts/{key}")
    assert "Call them" in found.words and "Ask why." in found.words
    answer = staff.post(f"/console/tasks/{ident}", data={"csrf_token": token_of(staff), "do": "dismiss", "account": key})
    assert answer.status_code == 303 and answer.headers["Location"].endswith(f"/console/accounts/{key}#tasks")
    assert "Dismissed" in page(staff, f"/console/accounts/{key}").words


def test_filters_and_empty_states(staff, app):
    assert "No task matches." in page(staff, "/console/tasks?assignee=stranger@example.com").words
    assert "None yet." in page(staff, "/console/tasks?show=dismissed").words
    assert staff.get("/console/tasks?show=lost").status_code == 400
    nobodys = page(staff, "/console/tasks?assignee=nobody").words
    assert "Nobody" in nobodys and "Olu Owner" not in nobodys
    with app.extensions["nurture"].engine.begin() as conn:
        conn.execute(text("delete from task"))
    assert "There is nothing to do." in page(staff).words
    assert "Nothing is overdue." in page(staff, "/console/tasks?show=overdue").words
