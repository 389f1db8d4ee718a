"""The commands that steer campaigns, run as from a shell: what they print, what they change, and that they ask first."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text

from app import cli
from app.models import campaign, campaign_version, enrollment, event, event_pending
from tests.stories import at, group, identify, post, run, track, write_campaigns

KEY = "onboarding/welcome"
WELCOME = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
audience: account.touch == "smb"
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
  - {id: pause, wait: 2d}
  - {id: tips, email: tips.mjml, subject: Tips}
"""
SHORTER = WELCOME.replace("  - {id: pause, wait: 2d}\n", "")


@pytest.fixture
def shell(engine, database, tmp_path, monkeypatch, capsys):
    """Runs a command on the test's database; gives (exit code, what it printed, what it complained)."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("NURTURE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NURTURE_CAMPAIGNS", str(tmp_path / "campaigns"))
    write_campaigns(tmp_path / "campaigns", {KEY: WELCOME})

    def call(*words):
        code = cli.main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def edit(tmp_path):
    return lambda words, **parts: write_campaigns(tmp_path / "campaigns", {KEY: words}, **parts)


def sign_up(engine, *keys, now=None, **traits):
    items = []
    for key in keys:
        who = f"{key}-admin"
        items += [group(key, who, touch="smb", **traits), identify(who, key, email=f"{who}@example.com", roles=["admin"])]
        items.append(track("signed_up", who, key))
    now = now or datetime.now(UTC)
    post(engine, *items, now=now)
    run(engine, now)


def rows(engine, *columns):
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(select(*columns).order_by(*columns))]


def put(engine, step, due):
    with engine.begin() as conn:
        conn.execute(text("delete from message"))
        conn.execute(text("update enrollment set step_id = :step, position = '{}', due_at = :due"), {"step": step, "due": due})


# Publishing ----------------------------------------------------------------------------------------------------------


def test_publish_says_what_changes_and_a_dry_run_changes_nothing(shell, edit, engine):
    code, said, _ = shell("publish", "--dry-run")
    assert code == 0 and "new          live      version 1" in said and "dry run" in said
    assert rows(engine, campaign.c.key) == []
    assert shell("publish")[0] == 0
    sign_up(engine, "acorn", "bolt")
    edit(WELCOME.replace("wait: 2d", "wait: 5d"))
    code, said, _ = shell("publish", "--dry-run")
    assert code == 0 and "(was 1)" in said and "~ step pause: wait: 2d → 5d" in said
    assert "2 inside version 1 stay there: 2 at hello" in said
    assert rows(engine, campaign_version.c.number) == [(1,)]
    code, said, _ = shell("publish", "--json")
    (one,) = json.loads(said)
    assert (one["campaign"], one["what"], one["version"], one["before"]) == (KEY, "changed", 2, 1)
    assert one["changes"] == ["~ step pause: wait: 2d → 5d"]
    assert one["inside"] == [{"version": 1, "step": "hello", "count": 2}]
    assert "unchanged" in shell("publish")[1]


def test_a_problem_of_the_folder_is_named_and_nothing_published(shell, edit, engine):
    edit(WELCOME.replace("topic: product", "topic: nothing"))
    code, said, complaint = shell("publish")
    assert code == 2 and not said and "onboarding/welcome/campaign.yaml:4:8" in complaint
    assert rows(engine, campaign.c.key) == []


def test_move_lists_first_and_moves_only_when_somebody_agrees(shell, edit, engine):
    shell("publish")
    sign_up(engine, "acorn", "bolt")
    put(engine, "pause", datetime.now(UTC) + timedelta(days=2))
    edit(SHORTER)
    code, said, complaint = shell("publish", "--move")
    assert code == 0 and "Moving 2 in onboarding/welcome to version 2:" in said
    assert "2 at pause of version 1: goes on at tips: 2 mails at once" in said
    assert complaint == "Nobody was moved: nobody agreed. Pass --yes to agree.\n"
    assert rows(engine, event_pending.c.event_id) == []
    code, said, _ = shell("publish", "--move", "--yes")
    assert code == 0 and "2 are being moved." in said
    assert len(rows(engine, event_pending.c.event_id)) == 2
    # Again before anybody has looked: those are on their way already.
    assert "Nobody is inside an older version." in shell("publish", "--move", "--yes")[1]
    run(engine, datetime.now(UTC))
    assert rows(engine, enrollment.c.step_id) == [("tips",), ("tips",)]
    assert "Nobody is inside an older version." in shell("publish", "--move", "--yes")[1]


def test_move_as_a_dry_run_and_as_json(shell, edit, engine):
    shell("publish")
    sign_up(engine, "acorn")
    put(engine, "pause", datetime.now(UTC) + timedelta(days=2))
    edit(SHORTER)
    code, said, _ = shell("publish", "--move", "--dry-run", "--json")
    (one,) = json.loads(said)
    assert code == 0 and one["move"]["moving"] == 1 and one["move"]["mails"] == 1
    line = {"version": 1, "step": "pause", "kind": "wait", "how": "go", "target": "tips", "count": 1, "mails": 1, "effects": 0}
    assert one["move"]["lines"] == [line]
    assert rows(engine, campaign_version.c.number) == [(1,)] and rows(engine, event_pending.c.event_id) == []


def test_enroll_existing_lists_who_matches_and_enrolls_them_when_somebody_agrees(shell, engine):
    sample = [
        group("acorn", "a", touch="smb"),
        identify("a", "acorn", email="a@example.com", roles=["admin"]),
        group("bolt", None, touch="high"),
    ]
    write = shell("publish")
    assert write[0] == 0
    post(engine, *sample, now=datetime.now(UTC))
    run(engine, datetime.now(UTC))
    code, said, _ = shell("publish", "--enroll-existing", "--yes")
    assert code == 0 and "enter" not in said  # nothing is new or changed
    with engine.begin() as conn:
        conn.execute(text("update campaign set version_id = null"))
        conn.execute(text("delete from template"))
        conn.execute(text("delete from campaign_change"))
        conn.execute(text("delete from campaign_version"))
        conn.execute(text("delete from decision"))
        conn.execute(text("delete from campaign"))
    code, said, complaint = shell("publish", "--enroll-existing")
    assert "1 would enter onboarding/welcome, version 1 (live), with 1 mails to begin with:" in said
    assert "1 would not: The account or contact is not in the campaign's audience." in said
    assert "Nobody was enrolled" in complaint and rows(engine, enrollment.c.id) == []


# Versions ------------------------------------------------------------------------------------------------------------


def test_versions_diff_and_rollback(shell, edit, engine):
    shell("publish")
    edit(WELCOME.replace("wait: 2d", "wait: 5d"))
    code, said, _ = shell("diff", KEY)
    assert code == 1 and "-  wait: 2d\n+  wait: 5d" in said and "--- version 1/campaign.yaml" in said and "+++ folder/campaign.yaml" in said
    shell("publish")
    code, said, _ = shell("diff", KEY)
    assert code == 0 and said == "Version 2 and folder are the same.\n"
    code, said, _ = shell("diff", KEY, "1", "2", "--json")
    assert code == 1 and json.loads(said)["differs"] and json.loads(said)["old"] == "version 1"
    code, said, _ = shell("versions", KEY)
    assert code == 0 and [line[0] for line in said.splitlines()[:2]] == ["*", " "]
    assert [one["number"] for one in json.loads(shell("versions", KEY, "--json")[1])] == [2, 1]
    code, said, _ = shell("rollback", KEY)
    assert code == 0 and "enter version 1 again, not 2" in said and "Undo: nurture rollback onboarding/welcome 2" in said
    assert shell("diff", KEY)[0] == 1
    code, said, _ = shell("publish")
    assert code == 0 and said.startswith("rolled back  live      version 1") and "gone back from" in said
    assert json.loads(shell("rollback", KEY, "2", "--json")[1])["version"] == 2
    for wrong in (["versions", "no/such"], ["rollback", KEY, "9"], ["diff", KEY, "9"], ["rollback", KEY, "2"], ["diff", "no/such"]):
        code, said, complaint = shell(*wrong)
        assert code == 2 and not said and complaint.startswith("nurture: ")


# Modes ---------------------------------------------------------------------------------------------------------------


def test_modes_are_shown_and_changed(shell, engine):
    shell("publish")
    assert shell("mode", KEY)[1] == "onboarding/welcome is live.\n"
    code, said, _ = shell("pause", KEY)
    assert code == 0 and said == "onboarding/welcome is paused (was live).\nBack: nurture resume onboarding/welcome\n"
    assert json.loads(shell("mode", KEY, "--json")[1])["mode"] == "paused"
    assert shell("resume", KEY)[0] == 0
    code, said, complaint = shell("resume", KEY)
    assert code == 2 and complaint == "nurture: onboarding/welcome is live, not paused\n"
    code, said, complaint = shell("mode", KEY, "draft")
    assert code == 2 and "live can become paused or archived, not draft" in complaint
    assert shell("mode", KEY, "archived", "--exit")[0] == 0
    assert rows(engine, campaign.c.mode) == [("archived",)]


def test_resume_lists_what_is_overdue_and_changes_nothing_without_an_answer(shell, engine):
    shell("publish")
    sign_up(engine, "acorn", "bolt")
    put(engine, "pause", at())
    shell("pause", KEY)
    assert "2 at pause go on to tips" in shell("mode", KEY)[1]
    code, said, complaint = shell("resume", KEY)
    assert code == 2 and "2 at pause go on to tips, the first due 2026-03-02 09:00 UTC" in said
    assert "pass --overdue send, --overdue skip or --overdue exit" in complaint
    assert rows(engine, campaign.c.mode) == [("paused",)] and rows(engine, event_pending.c.event_id) == []
    code, said, _ = shell("resume", KEY, "--overdue", "exit", "--json")
    done = json.loads(said)
    assert code == 0 and done["leaving"] == 2 and done["waited"][0]["count"] == 2
    names = [name for (name,) in rows(engine, event.c.name)]
    assert names.count("nurture.enrollment_steered") == 2


# Enrolling -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def customers(shell, engine):
    """acorn and bolt would enter, cedar is not in the audience, and nobody can be reached at dune."""
    shell("publish")
    items = []
    for key, touch in (("acorn", "smb"), ("bolt", "smb"), ("cedar", "high"), ("dune", "smb")):
        who = f"{key}-admin"
        address = {"email": f"{who}@example.com"} if key != "dune" else {}
        items += [group(key, who, touch=touch), identify(who, key, roles=["admin"], **address)]
    post(engine, *items, now=datetime.now(UTC))
    run(engine, datetime.now(UTC))


def test_enroll_says_who_would_enter_and_who_not_and_asks(shell, engine, customers):
    code, said, complaint = shell("enroll", KEY, "--all")
    assert code == 1 and "3 would enter onboarding/welcome, version 1 (live), with 2 mails to begin with:" in said
    assert "acorn: hello to acorn-admin" in said and "dune: waits at hello" in said
    assert "1 would not: The account or contact is not in the campaign's audience. [audience: not_in_audience]" in said
    assert "Nobody was enrolled" in complaint and rows(engine, event_pending.c.event_id) == []


def test_enroll_by_name_enrolls_once_and_the_ledger_keeps_the_no(shell, engine, customers):
    code, said, _ = shell("enroll", KEY, "--account", "acorn", "cedar", "--yes", "--json")
    done = json.loads(said)
    assert code == 0 and (done["entering"], done["refused"], done["requested"]) == (1, 1, 2)
    assert shell("enroll", KEY, "--account", "acorn", "--yes")[0] == 1  # asked for already, and not looked at yet
    run(engine, datetime.now(UTC))
    assert len(rows(engine, enrollment.c.id)) == 1
    code, said, _ = shell("enroll", KEY, "--account", "acorn")
    assert code == 1 and "acorn would not [trigger: already_enrolled]" in said
    with engine.connect() as conn:
        found = conn.execute(text("select reason from decision d join account a on a.id = d.account_id where a.external_id = 'cedar'"))
        assert found.scalars().all() == ["not_in_audience"]


def test_enroll_everybody_takes_those_who_would_enter_and_again_nobody(shell, engine, customers):
    assert shell("enroll", KEY, "--all", "--yes")[0] == 0
    run(engine, datetime.now(UTC))
    assert len(rows(engine, enrollment.c.id)) == 3
    code, said, _ = shell("enroll", KEY, "--all", "--yes")
    assert code == 1 and "0 would enter" in said
    assert len(rows(engine, enrollment.c.id)) == 3


def test_a_contact_stands_for_its_account(shell, engine, customers):
    assert shell("enroll", KEY, "--contact", "bolt-admin", "--yes")[0] == 0
    run(engine, datetime.now(UTC))
    with engine.connect() as conn:
        assert conn.execute(text("select a.external_id from enrollment e join account a on a.id = e.account_id")).scalars().all() == [
            "bolt"
        ]


def test_who_cannot_be_enrolled_is_said(shell, engine, customers):
    post(engine, group("bolt", "acorn-admin"), now=datetime.now(UTC) + timedelta(seconds=1))
    run(engine, datetime.now(UTC) + timedelta(seconds=1))
    for wrong, problem in (
        ([], "name an account or a contact"),
        (["--all", "--account", "acorn"], "not both"),
        (["--account", "nobody"], "There is no account 'nobody'."),
        (["--contact", "nobody"], "There is no contact 'nobody'"),
        (["--contact", "acorn-admin"], "belongs to several accounts (acorn, bolt)"),
    ):
        code, said, complaint = shell("enroll", KEY, *wrong)
        assert code == 2 and not said and problem in complaint
    shell("pause", KEY)
    code, said, _ = shell("enroll", KEY, "--all", "--yes")
    assert code == 1 and "4 would not: The campaign was not live any more." in said
    assert rows(engine, enrollment.c.id) == []


def test_a_campaign_of_contacts_takes_every_contact_of_a_named_account(shell, edit, engine, customers):
    edit(WELCOME.replace("topic: product", "topic: product\nenrolls: contact"))
    shell("publish")
    post(
        engine,
        group("acorn", "second"),
        identify("second", "acorn", email="second@example.com"),
        now=datetime.now(UTC) + timedelta(seconds=1),
    )
    run(engine, datetime.now(UTC) + timedelta(seconds=1))
    code, said, _ = shell("enroll", KEY, "--account", "acorn", "--yes", "--json")
    assert code == 0
    assert sorted(one["contact"] for one in json.loads(said)["answers"]) == ["acorn-admin", "second"]
    run(engine, datetime.now(UTC) + timedelta(seconds=1))
    assert len(rows(engine, enrollment.c.contact_id)) == 2
