"""The commands about one customer, run as from a shell: explain, hold, sign-in."""

from __future__ import annotations

import json

import pytest

from app import cli
from app.flow import access
from tests.stories import START, group, identify, post, publish_campaigns, run
from tests.test_explain import WELCOME


@pytest.fixture
def nurture(engine, database, tmp_path, monkeypatch, capsys):
    """Runs the command on the test's database; gives (exit code, what it printed, what it complained)."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("NURTURE_HOME", str(tmp_path / "home"))
    publish_campaigns(engine, tmp_path / "campaigns", {"a/welcome": WELCOME})
    post(engine, group(touch="smb"), identify(email="ada@example.com", roles=["admin"]))
    run(engine, START)

    def call(*words):
        code = cli.main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_explain(nurture):
    code, said, _ = nurture("explain", "Ada@example.com")
    assert code == 0 and "Not entered. What starts the campaign has never happened here." in " ".join(said.split())
    code, said, _ = nurture("explain", "ada", "--account", "acorn", "--campaign", "a/welcome", "--json")
    assert code == 0 and json.loads(said)["decisions"][0]["reason"] == "never_happened"
    for wrong in (["nobody"], ["ada", "--campaign", "x"], ["ada", "--account", "x"]):
        code, said, complaint = nurture("explain", *wrong)
        assert code == 2 and not said and complaint.startswith("nurture: There is no")


def test_a_hold_is_added_listed_and_released(nurture):
    code, said, _ = nurture("hold", "add", "--account", "acorn", "--reason", "Open ticket", "--for", "14d", "--json")
    assert code == 0
    made = json.loads(said)["id"]
    assert "account acorn  Open ticket" in nurture("hold", "list")[1]
    assert nurture("hold", "release", str(made))[0] == 0
    assert "Nobody is on hold." in nurture("hold", "list")[1]
    for wrong in (["--for", "x", "--account", "acorn"], ["--account", "nobody"], [], ["--account", "acorn", "--contact", "ada"]):
        code, said, complaint = nurture("hold", "add", *wrong)
        assert code == 2 and not said and complaint.startswith("nurture: ")
    assert nurture("hold", "release", "99")[0] == 2


def test_sign_in_prints_a_link_that_works_once_and_can_end_every_session(nurture, engine):
    first = json.loads(nurture("sign-in", "--json")[1])["link"]
    with engine.begin() as conn:
        session = access.sign_in(conn, first.rpartition("/")[2], START)
        assert session and access.session_valid(conn, session, START)
    unused = json.loads(nurture("sign-in", "--json")[1])["link"]
    code, said, _ = nurture("sign-in", "--end-all")
    assert code == 0 and "1 session(s) ended." in said and "/console/sign-in/" in said
    with engine.begin() as conn:
        assert not access.session_valid(conn, session, START)
        assert access.sign_in(conn, unused.rpartition("/")[2], START) is None
