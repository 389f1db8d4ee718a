"""Tests of campaigns: the shipped ones cover every branch, differences can be read, files that are wrong are named with their lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli import main
from app.config import CODE
from app.flow.trial import trials
from tests.stories import MAIL, write_campaigns

CAMPAIGN = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
goal: {event: done}
steps:
  - {id: hello, email: hello.mjml, subject: "Hello {{ account.name }}"}
  - {id: pause, wait: {days: 2, at: "09:00"}}
  - id: plan
    branch:
      - {when: account.traits.plan == "pro", steps: [{id: pro, email: pro.mjml, subject: Pro}]}
      - else: [{id: tell, alert: {text: "{{ account.name }} is on {{ account.traits.plan }}"}}]
  - {id: last, email: last.mjml, subject: Last}
"""


def write(tmp_path: Path, tests: str, campaign: str = CAMPAIGN, mail: str = MAIL) -> Path:
    root = write_campaigns(tmp_path / "campaigns", {"onboarding/welcome": campaign}, mail=mail)
    for name in ("pro.mjml", "last.mjml", "hello.mjml"):
        (root / "onboarding/welcome" / name).write_text(mail, "utf-8")
    (root / "onboarding/welcome/tests.yaml").write_text(tests, "utf-8")
    return root


def differences(root: Path) -> list[str]:
    found, problems = trials(root)
    assert problems == []
    return [f"{each.line}: {each}" for trial in found for one in trial.results for each in one.differences]


def test_every_step_and_branch_of_the_shipped_campaigns_is_tested():
    found, problems = trials(CODE / "campaigns")
    assert problems == []
    for trial in found:
        assert trial.results, f"{trial.campaign} has no tests"
        assert [str(each) for one in trial.results for each in one.differences] == []
        assert trial.missed == [], trial.campaign


def test_the_shipped_campaigns_pass_strictly(capsys):
    assert main(["test", str(CODE / "campaigns"), "--strict"]) == 0
    assert ", 0 failed, in " in capsys.readouterr().out


def test_a_difference_says_what_came_instead_and_why(tmp_path):
    root = write(
        tmp_path,
        """tests:
  - name: wrong in every way
    events: [{track: signed_up}, {at: 1d, track: done}]
    expect:
      - {mail: hello, to: ada, at: 1d}
      - {mail: hello, subject: Goodbye}
      - {mail: last, at: 2d}
      - {ended: finished}
      - {trait: {plan: pro}}
""",
    )
    met = "goal_met on day 1 at 09:00 (Tue 2026-03-03)"
    assert differences(root) == [
        "5: expected mail hello to ada on day 1 at 09:00 (Tue 2026-03-03); got mail hello to ada on day 0 at 09:00 (Mon 2026-03-02)",
        f"6: expected mail hello; got nothing ({met}: The goal is met.)",
        f"7: expected mail last on day 2 at 09:00 (Wed 2026-03-04); got nothing ({met}: The goal is met.)",
        f"8: expected finished; got {met}",
        "9: expected account.traits.plan to be 'pro'; got None",
    ]


def test_what_nobody_expected_is_a_difference(tmp_path):
    root = write(tmp_path, "tests:\n  - name: quiet\n    events: [{track: signed_up}]\n")
    said = differences(root)
    assert [one.partition("got ")[2].split(" on ")[0] for one in said] == ["mail hello to ada", "mail last to ada", "alert tell"]


def test_alerts_with_their_words_and_dates_over_summer_time_and_a_leap_day(tmp_path):
    root = write(
        tmp_path,
        """tests:
  - name: a leap day
    given: {account: {timezone: Europe/Berlin, name: Acorn, plan: solo}}
    start: 2028-02-27 08:00
    events: [{track: signed_up}]
    expect:
      - {mail: hello, subject: Hello Acorn}
      - {alert: tell, at: 2028-02-29 08:00, text: Acorn is on solo}
      - {mail: last, at: 2d}
      - {ended: finished}
  - name: summer time
    given: {account: {timezone: Europe/Berlin, plan: pro}}
    start: 2026-03-28 08:00
    events: [{track: signed_up}]
    expect:
      - {mail: hello}
      - {mail: pro, at: 2026-03-30 07:00}
      - {mail: last, at: 2026-03-30 07:00}
""",
    )
    assert differences(root) == []
    found, _ = trials(root)
    assert found[0].missed == ["goal, met"]


def test_a_hole_is_seen(tmp_path):
    mail = "<mj-section><mj-column><mj-text>{{ contact.traits.title }}</mj-text></mj-column></mj-section>"
    root = write(tmp_path, "tests:\n  - {name: a, events: [{track: signed_up}], until: 1h, expect: [{mail: hello}]}\n", mail=mail)
    [said] = differences(root)
    assert "missing_value" in said and "contact.traits.title" in said


def test_what_no_test_comes_to_is_named(tmp_path):
    root = write(tmp_path, "tests:\n  - {name: a, events: [{track: signed_up}, {at: 1d, track: done}], expect: [{mail: hello}]}\n")
    found, _ = trials(root)
    assert set(found[0].missed) == {
        'branch plan, arm 1: account.traits.plan == "pro"',
        "branch plan, arm 2: else",
        "step pro",
        "step tell",
        "step last",
    }


def test_a_goal_and_a_condition_for_leaving_want_a_test_too(tmp_path):
    campaign = CAMPAIGN.replace("goal: {event: done}", 'goal: {event: done}\nexit_when: account.traits.plan == "none"')
    only = "tests:\n  - {name: a, events: [{track: signed_up}], until: 1h, expect: [{mail: hello}]}\n"
    left = (
        only + "  - {name: b, events: [{track: signed_up}, {at: 1h, group: {plan: none}}], expect: [{mail: hello}, {ended: exit_when}]}\n"
    )
    met = left + "  - {name: c, events: [{track: signed_up}, {at: 1h, track: done}], expect: [{mail: hello}, {ended: goal_met}]}\n"
    leaving = 'exit_when: account.traits.plan == "none"'
    for number, (tests, missed) in enumerate(((only, {"goal, met", leaving}), (left, {"goal, met"}), (met, set()))):
        root = write(tmp_path / str(number), tests, campaign)
        [trial], problems = trials(root)
        assert problems == [] and [one.differences for one in trial.results if not one.passed] == []
        assert {place for place in trial.missed if place.startswith(("goal", "exit"))} == missed


@pytest.mark.parametrize(
    ("tests", "line", "problem"),
    [
        ("tests:\n  - name: a\n    expect: [{mail: helo}]\n", 3, "helo is not a step of onboarding/welcome"),
        ("tests:\n  - name: a\n    events: [{track: x, by: bob}]\n", 3, "bob is not among the contacts"),
        ("tests:\n  - name: a\n    along: [onboarding/none]\n", 3, "there is no campaign onboarding/none"),
        ("tests:\n  - name: a\n    evnts: []\n", 3, "evnts"),
        ("tests:\n  - name: a\n    events: [{at: soon, track: x}]\n", 3, "'soon' is no time"),
        ("tests:\n  - name: a\n    events: [{answer: hello}]\n", 3, "an answer has a step and a score"),
        ("tests:\n  - name: a\n    events: [{}]\n", 3, "exactly one thing happens"),
        ("tests:\n  - name: a\n    expect: [{stage: onbording}]\n", 3, "there is no stage onbording"),
        ("tests:\n  - name: a\n    expect: [{milestone: nonsense}]\n", 3, "there is no milestone nonsense"),
        ("tests:\n  - name: a\n    expect: [{reason: goal_mat}]\n", 3, "there is no reason goal_mat"),
        ("tests:\n  - name: a\n    expect: [{skip: hello, why: missing_valu}]\n", 3, "there is no reason missing_valu"),
        ('tests:\n  - name: a\n    start: "9999-12-31 00:00"\n', 3, "is too far away"),
        ('tests:\n  - name: a\n    start: "0001-01-01 00:00"\n', 3, "is too far away"),
        ('tests:\n  - name: a\n    events: [{at: "9999-12-31 23:59", track: x}]\n', 3, "is too far away"),
        ("tests:\n  - name: a\n    until: 9999w\n", 3, "a test lasts at most 3660d"),
        ("tests: 7\n", 1, "tests"),
        ("tests:\n  - name: [\n", 3, ""),
        ("a: &a [*a]\n", 1, ""),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path, tests, line, problem):
    root = write(tmp_path, tests)
    _, problems = trials(root)
    assert problems and problems[0].file == "onboarding/welcome/tests.yaml"
    assert any(problem in one.message for one in problems)
    assert abs(problems[0].line - line) <= 1


def test_the_command(tmp_path, capsys):
    root = write(tmp_path, "tests:\n  - {name: fine, events: [{track: signed_up}, {at: 1d, track: done}], expect: [{mail: hello}]}\n")
    assert main(["test", str(root)]) == 0
    said = capsys.readouterr().out
    assert "✓ fine" in said and "1 passed, 0 failed" in said and "places were come to by no test" in said
    assert main(["test", str(root), "--strict"]) == 1
    capsys.readouterr()
    assert main(["test", str(root), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["campaigns"][0]["tests"][0]["passed"] is True
    assert main(["test", str(root), "--campaign", "onboarding/none"]) == 2
    (root / "onboarding/welcome/tests.yaml").write_text("tests:\n  - {name: bad, expect: [{mail: hello}]}\n", "utf-8")
    assert main(["test", str(root)]) == 1
    assert "✗ bad" in capsys.readouterr().out


ZONED = """tests:
  - name: by the clock of the account
    given:
      account: {timezone: America/New_York, plan: pro}
      contacts: {ada: {roles: [admin]}, ben: {roles: [user], email: ben@example.com}}
      suppressions: {ben: [product]}
      milestones: [setup_completed]
    start: 2026-03-04 15:00
    events: [{at: {day: friday, time: "17:30"}, track: signed_up}]
    expect:
      - {mail: hello, to: ada, at: {day: 2, time: "17:30"}}
      - {mail: pro, to: ada, at: {day: sunday, time: "09:00"}}
      - {mail: last, to: ada, at: 2026-03-08 13:00}
      - {milestone: setup_completed}
"""


def test_times_by_weekday_and_the_clock_of_the_account(tmp_path):
    """Over the night in which New York puts its clocks forward."""
    assert differences(write(tmp_path, ZONED)) == []
    late = ZONED.replace('{day: sunday, time: "09:00"}', '{day: wednesday, time: "09:00"}')
    (said,) = differences(write(tmp_path, late))
    # The story starts on a Wednesday at 10:00 there: the first Wednesday at 9:00 is the next.
    assert said == (
        "12: expected mail pro to ada on day 7 at 09:00 (Wed 2026-03-11, America/New_York); "
        "got mail pro to ada on day 4 at 09:00 (Sun 2026-03-08, America/New_York)"
    )


def test_what_is_so_before_the_story_begins(tmp_path):
    campaign = (
        CAMPAIGN.replace("stage: onboarding", "stage: adoption")
        .replace("audience:", "")
        .replace(
            "goal: {event: done}",
            "audience: stage.name == 'adoption' and milestone.first_value.reached\nrecipients: {roles: [admin, user]}",
        )
    )
    story = """tests:
  - name: where it stands
    given:
      account: {plan: pro}
      contacts: {ada: {roles: [admin]}, ben: {roles: [user]}}
      stage: adoption
      milestones: [first_value]
      suppressions: {ben: [all], ada: [survey]}
    events: [{track: signed_up}]
    expect: [{mail: hello, to: ada}, {mail: pro, to: ada}, {mail: last, to: ada}, {stage: adoption}, {milestone: first_value}]
"""
    assert differences(write(tmp_path, story, campaign)) == []
    assert len(differences(write(tmp_path, story.replace("      stage: adoption\n", ""), campaign))) == 3 + 1
    wrong = story.replace("stage: adoption\n", "stage: adaption\n").replace("[first_value]\n", "[first_valve]\n").replace("[all]", "[al]")
    _, problems = trials(write(tmp_path, wrong.replace("ada: [survey]", "eve: [survey]"), campaign))
    assert [(one.line, one.message.split(";")[0]) for one in problems] == [
        (6, "there is no stage adaption"),
        (7, "there is no milestone first_valve"),
        (8, "al cannot be closed"),
        (8, "eve is not among the contacts"),
    ]


def test_the_json_says_everything(tmp_path, capsys):
    root = write(tmp_path, ZONED + "  - name: wrong\n    events: [{track: signed_up}]\n    expect: [{mail: hallo}]\n")
    assert main(["test", str(root), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["passed"], data["failed"]) == (1, 0)
    assert [(one["line"], one["fix"]) for one in data["problems"]] == [(17, "hello")]
    (test,) = data["campaigns"][0]["tests"]
    assert data["missed"] == len(data["campaigns"][0]["missed"])
    assert test["came"] == [
        {"kind": "mail", "step": "hello", "to": "ada", "at": "2026-03-06T22:30:00+00:00"},
        {"kind": "mail", "step": "pro", "to": "ada", "at": "2026-03-08T13:00:00+00:00"},
        {"kind": "mail", "step": "last", "to": "ada", "at": "2026-03-08T13:00:00+00:00"},
    ]
