"""The programmes of the documentation: every one passes the check, and the table names only those there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.config import CODE
from app.flow.check import check
from app.flow.world import World, book_of
from tests.stories import MAIL, write_campaigns

PAGE = (CODE / "docs" / "programmes.md").read_text("utf-8")


def folder(root: Path) -> Path:
    lifecycle, *campaigns = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    named = {text.splitlines()[0].removeprefix("# ").strip(): text for text in campaigns}
    write_campaigns(root, named, lifecycle=lifecycle)
    for key, text in named.items():
        for template in re.findall(r"email: ([a-z0-9-]+\.mjml)", text):
            (root / key / template).write_text(MAIL, "utf-8")
    return root


@pytest.fixture(scope="module")
def programmes(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("programmes") / "campaigns")


def test_every_programme_passes_the_check(programmes):
    campaigns, problems = check(programmes)
    assert [str(one) for one in problems] == []
    assert len(campaigns.folders) >= 18
    World(book_of(campaigns))


def test_the_table_names_programmes_that_there_are(programmes):
    campaigns, _ = check(programmes)
    keys = {one.key for one in campaigns.folders}
    table = PAGE.partition("## Every line")[2]
    named = set(re.findall(r"(?<![/\w])((?:onboarding|adoption|renewal)/[a-z-]+)", table))
    assert named <= keys
    assert keys - named == set(), "a programme that no line of the table uses"
