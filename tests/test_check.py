"""The check of a campaigns folder: every problem at once, each with its place."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from app.cli import main
from app.config import CODE
from app.errors import DefinitionError
from app.flow.check import check, read
from tests.stories import LIFECYCLE, write_campaigns

GOOD = """
name: Good
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
"""

LAUGHS = "b0: &b0 [x, x]\n" + "".join(f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]\n" for n in range(1, 30))
CONDITIONS = ["9**(9**9)", "x()", "(" * 3000 + "1" + ")" * 3000, "account.traits", "a }} {{ b", "account.__class__"]


def problems(tmp_path: Path, campaign: str = GOOD, **parts: str) -> list[str]:
    root = write_campaigns(tmp_path / "c", {"onboarding/x": campaign}, **parts)
    return [str(problem).replace("onboarding/x/", "") for problem in check(root)[1]]


def test_the_shipped_campaigns_have_no_problems():
    found, wrong = check(CODE / "campaigns")
    assert [str(one) for one in wrong] == []
    assert len(found.folders) >= 3


def test_every_problem_is_named_at_once_with_its_line(tmp_path):
    found = problems(
        tmp_path,
        GOOD.replace("stage: onboarding", "stage: onbording").replace("topic: product", "topic: product\nprioritty: 3")
        + "  - {id: hello, wait: soon}\n  - {id: fork, nothing: 1}\n",
    )
    assert [one.partition(": ")[0] for one in found] == ["campaign.yaml:5:1", "campaign.yaml:9:23", "campaign.yaml:10:5"]
    assert "prioritty: is not known here" in found[0]
    assert "'soon' is not a duration; write it like 3d" in found[1]
    assert "a step needs an id and one of email" in found[2]


def test_names_are_held_against_the_lifecycle(tmp_path):
    changed = GOOD.replace("stage: onboarding", "stage: onbording") + "  - {id: hello, wait: 1d}\n"
    changed += "audience: account.nam == 1 and account.traits.plna == 2\nrecipients: {roles: [boss]}\n"
    found = problems(tmp_path, changed)
    assert any("campaign.yaml:3:8: stage onbording is not declared" in one for one in found)
    assert any("the step id hello is used twice" in one for one in found)
    assert any("role boss is not declared" in one for one in found)
    assert any("did you mean account.name?" in one for one in found)


def test_a_template_that_reads_an_unknown_name_is_a_problem(tmp_path):
    found = problems(tmp_path, mail="<mj-section><mj-column><mj-text>{{ contact.frist_name }}</mj-text></mj-column></mj-section>")
    assert len(found) == 1
    assert "did you mean contact.first_name?" in found[0]


def test_a_missing_template_says_which_there_are(tmp_path):
    root = write_campaigns(tmp_path / "c", {"onboarding/x": GOOD})
    (root / "onboarding/x/hello.mjml").rename(root / "onboarding/x/helo.mjml")
    [found] = check(root)[1]
    assert "hello.mjml is not in the folder; there is helo.mjml" in str(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [unclosed", "campaign.yaml:"),
        (LAUGHS, "campaign.yaml:1:5: anchors (&) and aliases (*) are not used"),
        ("".join(f"b{n}: [x, x]\n" for n in range(10_000)), "campaign.yaml:5000:12: has more than 20000 values"),
        ("steps: " + "[" * 5000 + "]" * 5000, "nested"),
        ("x: " + "y" * 300_000, "larger than 256 KB"),
        ("", "campaign.yaml:1:1"),
        ("- just\n- a list\n", "campaign.yaml:1:1"),
        ("name: 1\nname: 2\n", "duplicate key"),
    ],
    ids=["broken", "billion laughs", "many", "deep", "large", "empty", "list", "twice"],
)
def test_hostile_and_broken_files_get_an_error_and_the_process_lives(tmp_path, text, said):
    root = write_campaigns(tmp_path / "c", {"onboarding/x": GOOD})
    (root / "onboarding/x/campaign.yaml").write_text(text)
    found = check(root)[1]
    assert any(said in str(one) for one in found), found


@pytest.mark.parametrize("source", CONDITIONS)
def test_hostile_conditions_are_refused(tmp_path, source):
    found = problems(tmp_path, GOOD + f"audience: {source!r}\n")
    assert len(found) == 1, found
    assert "campaign.yaml:8:1" in found[0]


def test_reading_a_wrong_folder_raises_with_all_problems(tmp_path):
    root = write_campaigns(tmp_path / "c", {"onboarding/x": "name: x\n", "onboarding/y": "name: y\n"}, lifecycle=LIFECYCLE)
    with pytest.raises(DefinitionError) as caught:
        read(root)
    assert {problem.file for problem in caught.value.problems} == {"onboarding/x/campaign.yaml", "onboarding/y/campaign.yaml"}


@pytest.mark.parametrize("survey", ["{score: [9]}", "{score: 3}", "{score: [6, 0]}", "{score: [0, 11]}", "{type: nsp}", "{scroe: [0, 6]}"])
def test_a_survey_trigger_that_could_not_run_is_refused(tmp_path, survey):
    found = problems(tmp_path, GOOD.replace("{event: signed_up}", f"{{survey: {survey}}}"))
    assert len(found) == 1 and found[0].startswith("campaign.yaml:5:") and "trigger.survey" in found[0]


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("metric: usage.login.last_30d", "metric: usage.logins.last_30d", "usage.login.last_30d is not a metric"),
        ("metric: surveys.nps", "metric: survey.nps", "surveys.nps is not a metric"),
        ("email: nobody", "email: success@example.com", "'nobody' is not an address"),
        ("app_url: javascript:alert(1)", "app_url: https://app.example.com/", "is not a web address"),
    ],
)
def test_what_would_go_wrong_in_silence_is_named_with_its_line(tmp_path, wrong, right, said):
    lifecycle = (CODE / "campaigns" / "lifecycle.yaml").read_text()
    assert lifecycle.count(right) == 1
    line = lifecycle[: lifecycle.index(right)].count("\n") + 1
    found = problems(tmp_path, lifecycle=lifecycle.replace(right, wrong))
    assert any(one.startswith(f"lifecycle.yaml:{line}:") and said in one for one in found), found


def test_programs_and_editors_get_the_same_as_people(tmp_path, capsys):
    root = write_campaigns(tmp_path / "c", {"onboarding/x": GOOD.replace("topic: product", "topic: prodct")})
    (root / "onboarding/x/old.mjml").write_text("x")
    assert main(["check", str(root), "--json", "--home", str(tmp_path / "home")]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [{name: row[name] for name in ("file", "line", "column", "rule", "severity", "fix")} for row in rows] == [
        {"file": "onboarding/x/campaign.yaml", "line": 4, "column": 8, "rule": "name", "severity": "error", "fix": "product"},
        {"file": "onboarding/x/old.mjml", "line": 1, "column": 1, "rule": "template", "severity": "warning", "fix": None},
    ]
    assert main(["check", str(root), "--home", str(tmp_path / "home")]) == 1
    said = capsys.readouterr().out.splitlines()
    for row, line in zip(rows, said, strict=True):
        assert line.startswith(f"{row['file']}:{row['line']}:{row['column']}: ") and row["problem"] in line
        assert re.fullmatch(r"\S+:\d+:\d+: .+ \[[a-z]+\]", line)


def test_warnings_leave_the_exit_code_alone(tmp_path, capsys):
    root = write_campaigns(tmp_path / "c", {"onboarding/x": GOOD})
    (root / "onboarding/x/old.mjml").write_text("x")
    assert main(["check", str(root), "--home", str(tmp_path / "home")]) == 0
    said = capsys.readouterr().out
    assert "old.mjml:1:1: warning: no step sends this template" in said and "1 campaigns" in said
    assert len(read(root).folders) == 1


def test_problems_of_several_files_come_together_and_each_once(tmp_path):
    mails = "<mj-section><mj-column><mj-text>{{ brand.nme }}</mj-text></mj-column></mj-section>"
    second = "  - {id: again, email: again.mjml, subject: Hello}\n"
    root = write_campaigns(tmp_path / "c", {"onboarding/x": GOOD + second, "onboarding/y": GOOD + "stge: x\n"}, mail=mails)
    (root / "brand" / "layout.mjml").write_text((root / "brand" / "layout.mjml").read_text().replace("<mj-body", "<mj-bdy", 1))
    found = [(one.file, one.rule, one.fix) for one in check(root)[1]]
    assert found[0] == ("brand/layout.mjml", "template", "mj-body")
    assert found.count(("brand/layout.mjml", "template", "mj-body")) == 1
    assert ("onboarding/x/hello.mjml", "name", "brand.name") in found and ("onboarding/x/again.mjml", "name", "brand.name") in found
    assert ("onboarding/y/campaign.yaml", "schema", "stage") in found


def test_what_the_brand_leaves_open_is_named_where_it_is_shown(tmp_path):
    shown = "<mj-section><mj-column>\n<mj-text>{{ brand.app_url }}</mj-text></mj-column></mj-section>"
    [found] = check(write_campaigns(tmp_path / "c", {"onboarding/x": GOOD}, mail=shown))[1]
    assert (found.line, found.column) == (2, 13) and "brand.app_url is not set in lifecycle.yaml" in found.message
    asked = shown.replace("{{ brand.app_url }}", "{% if brand.app_url %}{{ brand.app_url }}{% endif %}")
    assert check(write_campaigns(tmp_path / "d", {"onboarding/x": GOOD}, mail=asked))[1] == []


def test_every_rule_is_in_the_documentation():
    sources = [
        CODE / "app/flow/check.py",
        CODE / "app/flow/audience.py",
        CODE / "app/flow/weighing.py",
        *(CODE / "app/flow/checking").glob("*.py"),
    ]
    used = set()
    for path in sources:
        text = path.read_text("utf-8")
        used |= set(re.findall(r'\b(?:problem|warn)\(\s*"([a-z]+)"', text))
        used |= set(re.findall(r'\bProblem\([^"]*?,\s*"([a-z]+)"', text))
    table = re.findall(r"^\| `([a-z]+)` \|", (CODE / "docs/check.md").read_text("utf-8"), re.M)
    assert set(table) == used and len(used) >= 12


def test_checking_costs_little(tmp_path):
    """A folder of a hundred campaigns, all templates new: well under what one waits for."""
    campaigns = {f"onboarding/c{number}": GOOD.replace("hello.mjml", f"hello{number}.mjml") for number in range(100)}
    root = write_campaigns(tmp_path / "c", campaigns)
    for number, path in enumerate(sorted(root.glob("*/*/*.mjml"))):
        path.write_text(path.read_text().replace("Hello", f"Hello {number}"))
    begun = sum(os.times()[:4])
    found, wrong = check(root)
    assert not wrong and len(found.folders) == 100
    assert sum(os.times()[:4]) - begun < 5
