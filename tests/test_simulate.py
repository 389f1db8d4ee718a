"""What campaigns will do: numbers that add up, what an edit changes, a page that a marketer can read and nobody can break."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from selectolax.lexbor import LexborHTMLParser as HTMLParser

from app.cli import main
from app.config import CODE
from app.errors import InputError
from app.flow.check import read
from app.flow.history import of_database, of_file
from app.flow.items import ITEM_BYTES
from app.flow.publish import publish_read
from app.flow.reporting import page
from app.flow.simulate import compare, published_writing, simulate, totals
from app.flow.world import book_of, compose_of
from app.rules.book import with_live
from tests.invented import BEGINS, write_events
from tests.stories import LIFECYCLE, START, at, group, identify, post, publish_campaigns, run, track, write_campaigns

YEAR = (BEGINS, BEGINS + timedelta(days=365))
WELCOME = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: "Hello {{ account.name }}"}
  - {id: pause, wait: 2d}
  - {id: tips, email: tips.mjml, subject: Tips}
"""


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> Path:
    return write_events(tmp_path_factory.mktemp("events") / "events.ndjson", accounts=24, each=20)


@pytest.fixture(scope="module")
def shipped(events):
    campaigns = read(CODE / "campaigns")
    history, problems = of_file(events)
    assert problems == []
    return simulate(book_of(campaigns), [history], *YEAR, compose=compose_of(campaigns))


def test_the_numbers_add_up(shipped):
    data = shipped.plain()
    sent = [one for one in data["messages"] if one["outcome"] in ("sent", "unknown")]
    assert data["totals"]["mails"] == len(sent) == sum(day["mails"] for day in data["days"]) > 50
    assert sum(row["mails"] for row in data["campaigns"]) == len(sent)
    assert len(data["days"]) == 366
    reached = {one["account"] for one in sent}
    assert not reached & {one["account"] for one in data["silent"]}
    assert data["totals"]["accounts"] == len(reached) + len(data["silent"])
    assert all(one["why"] for one in data["silent"])
    json.dumps(data)


def test_a_simulation_of_the_same_is_the_same(events):
    campaigns = read(CODE / "campaigns")
    first, second = (simulate(book_of(campaigns), [of_file(events)[0]], *YEAR) for _ in range(2))
    assert first.plain() == second.plain()


def test_what_an_edit_changes(events, tmp_path):
    folder = tmp_path / "campaigns"
    shutil.copytree(CODE / "campaigns", folder)
    file = folder / "onboarding/first-value/campaign.yaml"
    text = file.read_text("utf-8")
    assert "wait: 2d" in text
    file.write_text(text.replace("wait: 2d", "wait: 3d"), "utf-8")
    before, after = read(CODE / "campaigns"), read(folder)
    runs = [simulate(book_of(one), [of_file(events)[0]], *YEAR, compose=compose_of(one)) for one in (before, after)]
    changes = compare(*runs)
    moved = [(late.at - early.at, late.step) for early, late in changes.moved if late.campaign == "onboarding/first-value"]
    assert moved and {step for _, step in moved} <= {"share", "in-the-way"}
    assert timedelta(days=1) in {by for by, _ in moved}
    assert compare(runs[0], runs[0]).plain() == {"campaigns": [], "gained": [], "lost": [], "moved": [], "reworded": []}
    assert all(why for _, why in changes.lost)


def test_stored_history_gives_what_the_live_run_gave(engine, tmp_path):
    """The database's own events, run again, make the very messages that are in it."""
    folder = tmp_path / "campaigns"
    publish_campaigns(engine, folder, {"onboarding/welcome": WELCOME})
    for key in ("one", "two", "three"):
        items = (group(key, f"{key}-c", name=key), identify(f"{key}-c", key, email=f"{key}@example.com", roles="admin"))
        post(engine, *items, track("signed_up", f"{key}-c", key), name=key)
    run(engine)
    with engine.begin() as conn:
        live = set(conn.exec_driver_sql("select a.external_id, m.step_id from message m join account a on a.id = m.account_id").all())
        from app.flow.publish import book

        in_force = book(conn)
        histories = of_database(conn, until=at("10d"))
        found = simulate(in_force, histories, START, at("10d"), compose=published_writing(conn, in_force))
        assert conn.exec_driver_sql("select count(*) from message").scalar() == len(live)
    assert {(one.account, one.step) for one in found.sent} == live | {(key, "tips") for key in ("one", "two", "three")}
    assert {one.subject for one in found.sent} == {"Hello one", "Hello two", "Hello three", "Tips"}


def test_a_hole_shows_before_anybody_would_be_skipped(tmp_path, events):
    mail = "<mj-section><mj-column><mj-text>You are {{ contact.first_name }}</mj-text></mj-column></mj-section>"
    campaign = WELCOME.replace("signed_up", "workspace_created")
    campaigns = read(write_campaigns(tmp_path / "c", {"onboarding/welcome": campaign}, mail=mail))
    found = simulate(book_of(campaigns), [of_file(events)[0]], *YEAR, compose=compose_of(campaigns))
    assert totals(found)["not_sent"] > 0
    assert {one["reason"] for one in found.plain()["reasons"]} == {"missing_value"}


def test_caps_say_who_lost_to_whom(tmp_path, events):
    lifecycle = LIFECYCLE + "caps: [{topic: product, per: person, at_most: 1, within: 7d}]\n"
    high = WELCOME.replace("signed_up", "workspace_created") + "priority: 90\n"
    low = WELCOME.replace("signed_up", "workspace_created").replace("name: Welcome", "name: Low") + "priority: 10\n"
    campaigns = read(write_campaigns(tmp_path / "c", {"onboarding/high": high, "onboarding/low": low}, lifecycle=lifecycle))
    found = simulate(book_of(campaigns), [of_file(events)[0]], *YEAR)
    lost = found.plain()["caps"]
    assert lost and all(one["lost_to"].startswith(("onboarding/high", "onboarding/low")) for one in lost)
    assert lost[0]["lost_to"].startswith("onboarding/high")


def test_the_campaigns_that_are_not_asked_about_run_all_the_same(tmp_path, events):
    """Their caps and surveys count; the report says what they took, and is about the chosen ones alone."""
    lifecycle = LIFECYCLE + "caps: [{topic: product, per: person, at_most: 1, within: 7d}]\n"
    welcome = WELCOME.replace("signed_up", "workspace_created")
    high = welcome.replace("steps:", "priority: 90\nsteps:", 1)
    low = welcome.replace("name: Welcome", "name: Low").replace("steps:", "priority: 10\nsteps:", 1)
    low += "  - {id: ask, survey: nps, question: nps-low, email: ask.mjml, subject: One question, topic: survey}\n"
    high += "  - {id: ask, survey: nps, question: nps-high, email: ask.mjml, subject: One question, topic: survey}\n"
    draft = welcome.replace("name: Welcome", "name: Draft\nmode: draft")
    texts = {"onboarding/high": high, "onboarding/low": low, "onboarding/draft": draft}
    folder = write_campaigns(tmp_path / "c", texts, lifecycle=lifecycle)
    book = book_of(read(folder))
    run_of = lambda book, chosen=None: simulate(book, [of_file(events)[0]], *YEAR, chosen=chosen)  # noqa: E731
    every, narrowed = run_of(book), run_of(with_live(book, ["onboarding/low"]), ["onboarding/low"])
    mine = [one for one in every.letters if one.campaign == "onboarding/low"]
    assert mine and narrowed.letters == mine
    assert any(one.reason == "capped" for one in mine) and any(one.reason == "survey_quarantine" for one in mine)
    data = narrowed.plain()
    assert [row["campaign"] for row in data["campaigns"]] == ["onboarding/low"]
    assert data["caps"] == [one for one in every.plain()["caps"] if "onboarding/low/" in one["message"] + one["lost_to"]]
    assert {one["lost_to"] for one in data["caps"]} == {"onboarding/high/hello"}
    (other,) = data["others"]
    assert other["campaign"] == "onboarding/high" and other["mails"] == sum(one.campaign == "onboarding/high" for one in every.sent)
    assert other["caps_taken"] == sum(one["times"] for one in data["caps"])
    assert other["surveys_taken"] == data["surveys"]["stopped_by_quarantine"] > 0
    sent = sum(one.campaign == "onboarding/low" for one in every.sent)
    assert data["totals"]["mails"] == sum(day["mails"] for day in data["days"]) == sent
    close = data["collisions"]["pairs"]
    assert all("onboarding/low/" in one["first"] + one["second"] for one in close)
    # A chosen draft runs as if it were live, and the others with it.
    data = run_of(with_live(book, ["onboarding/draft"]), ["onboarding/draft"]).plain()
    assert data["campaigns"][0]["entered"] > 0 and {one["campaign"] for one in data["others"]} == {"onboarding/high", "onboarding/low"}


# The page ------------------------------------------------------------------------------------------------------------


def test_the_page_has_a_calendar_and_loads_nothing(shipped):
    html = page(shipped, "Sample: what the campaigns will do")
    tree = HTMLParser(html)
    assert len(tree.css("section.month")) == 12
    assert not tree.css("script, link, img, iframe, form")
    assert "http" not in "".join(node.attributes.get("href") or "" for node in tree.css("a"))
    counted = sum(int(node.text()) for node in tree.css("section.month td .count"))
    assert counted == totals(shipped)["mails"]
    targets = {node.attributes["href"][1:] for node in tree.css("section.month a")}
    assert targets == {node.attributes["id"] for node in tree.css("details[id]")}
    assert tree.css_first("svg").attributes["aria-label"].startswith("Mails per week")
    assert "<b>Books</b>" not in html and "&lt;b&gt;Books&lt;/b&gt;" in html


def test_a_page_of_nothing_says_so(tmp_path):
    campaigns = read(CODE / "campaigns")
    html = page(simulate(book_of(campaigns), [], *YEAR), "Sample")
    assert "No mail at all in this period" in html


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_writes_words_json_and_a_page(events, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["simulate", str(CODE / "campaigns"), "--events", str(events), "--html", str(target)]) == 0
    said = capsys.readouterr().out
    assert "onboarding/first-value" in said and "Nothing was sent." in said
    assert target.read_text("utf-8").startswith("<!doctype html>")
    only = ["--campaign", "onboarding/first-value", "--from", "2027-04-01", "--to", "2027-05-01", "--json"]
    assert main(["simulate", str(CODE / "campaigns"), "--events", str(events), *only]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {one["campaign"] for one in data["messages"]} == {"onboarding/first-value"}
    assert all("2027-04-01" <= one["at"] < "2027-05-02" for one in data["messages"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--from", "soon"], "--from: 'soon' is not a date"),
        (["--from", "2027-05-01", "--to", "2027-04-01"], "the period must begin before it ends"),
        (["--campaign", "onboarding/nothing"], "there is no campaign onboarding/nothing"),
    ],
)
def test_what_is_wrong_is_said(events, capsys, arguments, problem):
    assert main(["simulate", str(CODE / "campaigns"), "--events", str(events), *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_bad_lines_are_named_and_the_rest_is_run(tmp_path, capsys):
    file = write_events(tmp_path / "events.ndjson", accounts=3, each=5)
    file.write_text("nonsense\n" + file.read_text("utf-8") + '{"type": "track"}\n', "utf-8")
    assert main(["simulate", str(CODE / "campaigns"), "--events", str(file)]) == 1
    told = capsys.readouterr()
    assert "line 1: " in told.err and "3 accounts" in told.out
    last = len(file.read_text("utf-8").splitlines())
    assert main(["simulate", str(CODE / "campaigns"), "--events", str(file), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [one["line"] for one in data["problems"]] == [1, last] and all(one["problem"] for one in data["problems"])
    assert data["totals"]["accounts"] == 3 and data["totals"]["events"] == last - 2
    file.write_text("nonsense\n", "utf-8")
    assert main(["simulate", str(CODE / "campaigns"), "--events", str(file)]) == 2


def test_a_line_without_end_is_named_and_the_next_is_taken(tmp_path):
    file = write_events(tmp_path / "events.ndjson", accounts=1, each=3)
    good = file.read_text("utf-8")
    file.write_text(f"{'x' * 5 * ITEM_BYTES}\n{good}", "utf-8")
    history, problems = of_file(file)
    assert len(history.events) == len(good.splitlines())
    assert [(one.line, one.problem) for one in problems] == [(1, f"is larger than {ITEM_BYTES // 1024} KB")]


def test_a_broken_archive_is_said_to_be_broken(tmp_path):
    whole = gzip.compress(write_events(tmp_path / "events.ndjson", accounts=3, each=30).read_bytes())
    for name, content in (("short", whole[: len(whole) // 2]), ("bent", whole[:500] + bytes(500) + whole[1000:])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            of_file(tmp_path / name)


def test_days_are_those_of_the_installation(tmp_path, capsys):
    """What is sent late in the evening there belongs to that day, wherever the reader is; a date given means its midnight there."""
    lifecycle = LIFECYCLE.replace("timezone: UTC", "timezone: America/Los_Angeles")
    folder = write_campaigns(tmp_path / "c", {"onboarding/welcome": WELCOME}, lifecycle=lifecycle)
    late = "2026-03-02T23:30:00-08:00"
    calls = [
        {"type": "group", "groupId": "acorn", "timestamp": late, "traits": {"name": "Acorn"}},
        {**identify(email="ada@example.com", roles="admin"), "timestamp": late},
        {**track("signed_up"), "timestamp": late},
    ]
    file, target = tmp_path / "events.ndjson", tmp_path / "page.html"
    file.write_text("".join(json.dumps(call) + "\n" for call in calls), "utf-8")
    command = ["simulate", str(folder), "--events", str(file), "--from", "2026-03-02", "--to", "2026-03-03", "--json"]
    assert main([*command, "--html", str(target)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["from"], data["to"]) == ("2026-03-02T08:00:00+00:00", "2026-03-03T08:00:00+00:00")
    assert data["timezone"] == "America/Los_Angeles"
    assert [(day["day"], day["mails"]) for day in data["days"]] == [("2026-03-02", 1)]
    text = HTMLParser(target.read_text("utf-8"))
    assert text.css_first("#day-2026-03-02") and "America/Los_Angeles" in text.body.text()


def test_a_long_run_says_how_far_it_is_on_a_terminal_only(events, capsys, monkeypatch):
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    command = ["simulate", str(CODE / "campaigns"), "--events", str(events), "--json"]
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(command) == 0
    told = [line for line in terminal.getvalue().split("\r") if line.strip()]
    moments = [line.split(" at ")[1].strip() for line in told if " at " in line]
    assert len(set(moments)) > 5 and moments == sorted(moments)
    assert terminal.getvalue().rsplit("\r", 1)[1].strip() == "" and json.loads(capsys.readouterr().out)["totals"]["accounts"] == 24


def test_against_what_is_published(tmp_path, capsys, database, monkeypatch, engine, events):
    monkeypatch.setenv("DATABASE_URL", database)
    folder = tmp_path / "campaigns"
    shutil.copytree(CODE / "campaigns", folder)
    with engine.begin() as conn:
        publish_read(conn, read(folder), START)
    command = ["simulate", str(folder), "--events", str(events), "--against", "published"]
    assert main(command) == 0
    assert "Nobody gets another mail" in capsys.readouterr().out
    file = folder / "onboarding/first-value/campaign.yaml"
    file.write_text(file.read_text("utf-8").replace("wait: 2d", "wait: 4d"), "utf-8")
    assert main([*command, "--json"]) == 0
    changes = json.loads(capsys.readouterr().out)["changes"]
    assert changes["campaigns"][0]["campaign"] == "onboarding/first-value" and changes["campaigns"][0]["moved"] > 0
