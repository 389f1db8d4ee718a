"""The check of a campaigns folder: every problem at once, each with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

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
