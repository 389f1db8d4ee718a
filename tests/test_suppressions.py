"""The suppression list by hand and by file: it only ever closes, and says who did what and why."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime

import pytest
from cast_listening import publish
from sqlalchemy import select, text

from app import models
from app.cli import main
from app.errors import InputError, NotFound
from app.flow import suppressing
from app.flow.access import create_key
from tests.conftest import NOW


@pytest.fixture
def conn(engine):
    with engine.begin() as conn:
        publish(conn)
        yield conn


def closed(conn):
    return conn.execute(text("select person, scope, reason from suppression where lifted_at is null order by id")).all()


def said(conn):
    return conn.execute(text("select person, purpose, granted, method, actor from consent order by id")).all()


def put(conn, data, **options):
    return suppressing.import_file(conn, data.encode(), NOW, by="operator", source="list.csv", **options)


def test_adding_and_lifting_leave_their_evidence(conn):
    suppressing.add(conn, "ADA@Example.org", "product", "unsubscribed", NOW, by="operator (ben)", method="operator", note="by phone")
    suppressing.add(conn, "ada@example.org", "all", "manual", NOW, by="operator (ben)", method="operator")
    assert closed(conn) == [("ada@example.org", "product", "unsubscribed"), ("ada@example.org", "manual", "manual")]
    with pytest.raises(InputError, match="by what right"):
        suppressing.lift(conn, "ada@example.org", "product", NOW, by="operator", method="operator", evidence=" ")
    assert suppressing.lift(conn, "ada@example.org", "product", NOW, by="ben", method="operator", evidence="asked by phone on Monday") == [
        "product"
    ]
    assert suppressing.lift(conn, "ada@example.org", "all", NOW, by="ben", method="operator", evidence="a mistake of ours") == ["manual"]
    with pytest.raises(NotFound):
        suppressing.lift(conn, "ada@example.org", "all", NOW, by="ben", method="operator", evidence="once more")
    assert said(conn) == [
        ("ada@example.org", "product", False, "operator", "operator (ben)"),
        ("ada@example.org", "manual", False, "operator", "operator (ben)"),
        ("ada@example.org", "product", True, "operator", "ben"),
        ("ada@example.org", "manual", True, "operator", "ben"),
    ]


@pytest.mark.parametrize(
    ("email", "scope", "reason", "field"),
    [("nobody", "all", "unsubscribed", "email"), ("a@b.org", "made-up", "unsubscribed", "scope"), ("a@b.org", "all", "bored", "reason"),
     ("a@b.org", "transactional", "unsubscribed", "scope"), ("a@b.org", "bounced", "manual", "scope")],
)  # fmt: skip
def test_what_is_wrong_is_named(conn, email, scope, reason, field):
    with pytest.raises(InputError) as error:
        suppressing.add(conn, email, scope, reason, NOW, by="x", method="operator")
    assert error.value.field == field and closed(conn) == []


def test_a_file_keeps_the_good_rows_and_names_the_others(conn):
    data = "Email,scope,reason,since\nada@example.org,,,\nnot an address,all,,\nben@example.org,survey,complained,2024-02-30\n\n"
    data += "cleo@example.org,all,bounced,2024-02-03\nADA@example.org,all,,\ndan@example.org,nothing,,\n"
    tried = put(conn, data, dry_run=True)
    assert closed(conn) == [] and said(conn) == []
    found = put(conn, data)
    assert tried.plain() == found.plain()
    assert (found.added, found.known) == (2, 1)
    assert [(one.row, one.column) for one in found.problems] == [(3, "email"), (4, "since"), (8, "scope")]
    assert closed(conn) == [("ada@example.org", "all", "unsubscribed"), ("cleo@example.org", "bounced", "bounced")]
    assert said(conn) == [("ada@example.org", "all", False, "import", "operator")]
    again = put(conn, data)
    assert (again.added, again.known) == (0, 3) and len(said(conn)) == 1


@pytest.mark.parametrize("data", [b"\xff\xfe", b"name\nx\n", b"email,state\na@b.org,active\n", b'email\n"a', b""])
def test_what_is_no_such_file_is_refused_whole(conn, data):
    with pytest.raises(InputError):
        suppressing.import_file(conn, data, NOW, by="x", source="f")
    assert closed(conn) == []


def test_x41_a_file_is_bounded(conn):
    with pytest.raises(InputError, match="50 MB"):
        suppressing.import_file(conn, b"email\n" + b"x" * suppressing.FILE_BYTES, NOW, by="test", source="big.csv")
    assert conn.execute(text("select count(*) from suppression")).scalar_one() == 0


def test_p04_no_file_opens_an_address(conn):
    suppressing.add(conn, "ada@example.org", "all", "unsubscribed", NOW, by="x", method="operator")
    for row in ("ada@example.org,all,manual", "ada@example.org,product,unsubscribed", "ada@example.org,all,unsubscribed"):
        put(conn, f"email,scope,reason\n{row}\n")
    assert ("ada@example.org", "all", "unsubscribed") in closed(conn)
    assert conn.execute(text("select count(*) from suppression where lifted_at is not null")).scalar_one() == 0
    assert not any(row.granted for row in said(conn))


def test_x42_a_spreadsheet_gets_no_formula(conn):
    for one in ("=cmd", "+1", "-1", "@x", "\tx", "\rx", "\x00x"):
        assert suppressing.safe_cell(one) == f"'{one}"
    assert suppressing.safe_cell("a=b") == "a=b" and suppressing.safe_cell(None) == ""
    conn.execute(models.suppression.insert().values(person="=cmd|'/c calc'!a1@x.org", scope="all", reason="manual", created_at=NOW))
    conn.execute(models.suppression.insert().values(person='+tag,"q"@x.org', scope="all", reason="manual", created_at=NOW))
    conn.execute(models.suppression.insert().values(person="erased:abc", scope="all", reason="manual", created_at=NOW))
    lines = "".join(suppressing.export_file(conn))
    assert lines.endswith("\r\n")
    rows = list(csv.DictReader(io.StringIO(lines, newline="")))
    assert [row["email"] for row in rows] == ["'=cmd|'/c calc'!a1@x.org", '\'+tag,"q"@x.org']


def test_an_export_can_be_imported_elsewhere(conn):
    for number, (scope, reason) in enumerate(
        [("all", "unsubscribed"), ("product", "unsubscribed"), ("all", "complained"), ("survey", "manual")]
    ):
        suppressing.add(conn, f"+p{number}@example.org", scope, reason, NOW, by="x", method="operator")
    before, lines = closed(conn), "".join(suppressing.export_file(conn))
    conn.execute(text("delete from suppression"))
    found = put(conn, lines)
    assert found.problems == [] and closed(conn) == before
    assert conn.execute(select(models.suppression.c.created_at)).scalars().all() == [NOW] * 4


def test_many_rows_are_one_statement_a_chunk(conn):
    found = put(conn, "email\n" + "".join(f"p{number}@example.org\n" for number in range(5000)))
    assert found.added == 5000


def test_the_api(engine, client):
    with engine.begin() as conn:
        publish(conn)
        now = datetime.now(UTC)
        read, admin = ({"Authorization": f"Bearer {create_key(conn, scope, scope, now)}"} for scope in ("read", "admin"))
    body = {"email": "ada@example.org", "scope": "product", "note": "ticket 12"}
    assert client.post("/api/v1/suppressions", json=body, headers=read).status_code == 403
    assert client.post("/api/v1/suppressions", json=body, headers=admin).status_code == 201
    assert client.post("/api/v1/suppressions", json={"email": "x"}, headers=admin).json["field"] == "email"
    [row] = client.get("/api/v1/suppressions?email=ADA@example.org", headers=read).json["data"]
    assert (row["scope"], row["evidence"]["by"], row["evidence"]["note"]) == ("product", "API key admin", "ticket 12")
    lift = {"email": "ada@example.org", "scope": "product", "evidence": "asked again, ticket 13"}
    assert client.post("/api/v1/suppressions/lift", json=lift, headers=admin).json["lifted"] == ["product"]
    assert client.get("/api/v1/retention", headers=read).json["kept"]


def test_the_commands(engine, settings, monkeypatch, capsys, tmp_path):
    with engine.begin() as conn:
        publish(conn)
    for name, value in {"NURTURE_HOME": settings.home, "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["suppressions", "add", "ada@example.org", "--scope", "survey"]) == 0
    file = tmp_path / "in.csv"
    file.write_text("email\nben@example.org\nwrong\n")
    assert main(["suppressions", "import", str(file), "--dry-run", "--json"]) == 1
    capsys.readouterr()
    assert main(["suppressions", "import", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == [
        {"row": 3, "column": "email", "problem": "is not an address that mail can be sent to"}
    ]
    assert main(["suppressions", "list", "--json"]) == 0
    assert {row["email"] for row in json.loads(capsys.readouterr().out)} == {"ada@example.org", "ben@example.org"}
    assert main(["suppressions", "export", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o600
    assert main(["suppressions", "lift", "ben@example.org", "--evidence", "asked by phone"]) == 0
