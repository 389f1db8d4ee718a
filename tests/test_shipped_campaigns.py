"""The campaigns that come with Nurture, through the real engine: who gets what, when, and why it ends."""

from __future__ import annotations

from datetime import timedelta
from email import message_from_bytes, policy
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text

from app import models
from app.cli import main
from app.config import CODE
from app.errors import DefinitionError, NotFound
from app.flow import proof
from app.flow.deliver import Limits
from app.flow.deliver import run as deliver
from app.flow.publish import publish
from app.flow.respond import answer, find_message
from app.providers.memory import MemoryTransport
from app.queue import Bells
from tests import stories
from tests.conftest import NOW

QUICK = Limits(poll=0.02, gather=0.0, patience=(0.05,), back_off=1.0, heartbeat=0.2, farewell=0.5)
CAMPAIGNS = CODE / "campaigns"


class World:
    """An installation with the shipped campaigns and a clock that goes where it is told to."""

    def __init__(self, engine, settings, now=NOW):
        self.engine = engine
        self.settings = settings
        self.now = now
        self.transport = MemoryTransport()
        with engine.begin() as conn:
            publish(conn, CAMPAIGNS, now)

    def post(self, *items: dict) -> None:
        self.now += timedelta(seconds=1)  # a time of their own gives the items message ids of their own
        stories.post(self.engine, *items, now=self.now)
        self.settle()

    def later(self, **span: float) -> None:
        self.now += timedelta(**span)
        self.settle()

    def settle(self) -> None:
        """Advances and delivers until neither has anything left to do at this moment."""
        while True:
            sent = len(self.transport.letters)
            moved = stories.run(self.engine, self.now)
            deliver(self.engine, self.settings, uuid4(), lambda: self.now, Bells(None), transport=self.transport, limits=QUICK)
            if not moved and len(self.transport.letters) == sent:
                return

    @property
    def mails(self) -> list[tuple[str, str]]:
        """(step, address) of everything sent, in order."""
        with self.engine.connect() as conn:
            steps = dict(conn.execute(select(models.message.c.id, models.message.c.step_id)).all())
        return [(steps[letter.message_id], letter.recipient) for letter in self.transport.letters]

    def ends(self) -> dict[str, tuple[str, str | None]]:
        with self.engine.connect() as conn:
            rows = conn.execute(text("select c.key, e.state, e.end_reason from enrollment e join campaign c on c.id = e.campaign_id")).all()
        return {key: (state, reason) for key, state, reason in rows}


@pytest.fixture
def world(engine, settings):
    return World(engine, settings)


def newcomer(**traits) -> list[dict]:
    """What the README's first example posts: an account with a name, a person with an address."""
    return [
        stories.group("birch", "mara", name="Birch & Sons", **traits),
        stories.identify("mara", "birch", email="mara@birch.example", first_name="Mara", roles=["admin"]),
    ]


def event(name: str, **properties) -> dict:
    return stories.track(name, "mara", "birch", **properties)


def test_a_newcomers_first_event_yields_the_welcome_at_once(world):
    world.post(*newcomer(), event("workspace_created"))
    assert world.mails == [("welcome", "mara@birch.example")]
    mail = message_from_bytes(world.transport.letters[0].data, policy=policy.default)
    assert mail["Subject"] == "Mara, your first report in ten minutes"
    assert "at Birch & Sons" in mail.get_body(("plain",)).get_content()
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_accounts_with_a_csm_of_their_own_are_left_to_them(world):
    world.post(*newcomer(touch="high"), event("workspace_created"))
    assert world.mails == []


def test_who_never_comes_back_gets_the_smaller_step_and_at_last_the_question(world):
    world.post(*newcomer(touch="smb"), event("workspace_created"))
    world.later(days=3, minutes=1)
    world.later(days=2, minutes=1)
    world.later(days=7, minutes=1)
    assert [step for step, _ in world.mails] == ["welcome", "come-back", "share", "in-the-way"]
    assert world.ends()["onboarding/first-value"] == ("exited", "exit_step")


def test_who_signs_in_but_does_not_finish_gets_the_two_steps_left(world):
    world.post(*newcomer(), event("workspace_created"))
    world.later(days=1)
    world.post(event("logged_in"))
    world.later(days=2, minutes=1)
    assert [step for step, _ in world.mails] == ["welcome", "setup-help"]


def test_who_sets_up_goes_on_and_the_goal_ends_it(world):
    world.post(*newcomer(), event("workspace_created"))
    world.later(hours=5)
    world.post(event("setup_completed"))
    world.later(days=2, minutes=1)
    assert [step for step, _ in world.mails] == ["welcome", "share"]
    world.post(event("report_shared"))
    state, reason = world.ends()["onboarding/first-value"]
    assert state != "active" and reason == "goal_met"
    world.later(days=20)
    assert "in-the-way" not in [step for step, _ in world.mails]


@pytest.mark.parametrize(
    ("score", "step"), [(10, "promoter"), (9, "promoter"), (8, "passive"), (7, "passive"), (6, "detractor"), (0, "detractor")]
)
def test_the_survey_follows_the_first_value_and_the_answer_is_answered(world, score, step):
    world.post(*newcomer(), event("report_shared"))
    assert world.mails == [("ask", "mara@birch.example")]
    message_id: UUID = world.transport.letters[0].message_id
    world.later(hours=1)
    with world.engine.begin() as conn:
        answer(conn, find_message(conn, message_id), score, "Fine <b>really</b>", world.now, closes_after=timedelta(days=30), partitions=64)
    world.settle()
    assert [one for one, _ in world.mails] == ["ask", step]
    if step == "detractor":
        html = message_from_bytes(world.transport.letters[1].data, policy=policy.default).get_body(("html",)).get_content()
        assert "Fine &lt;b&gt;really&lt;/b&gt;" in html


def test_silence_after_the_survey_ends_it(world):
    world.post(*newcomer(), event("report_shared"))
    world.later(days=14, minutes=1)
    assert [step for step, _ in world.mails] == ["ask"]
    assert world.ends()["onboarding/onboarding-survey"] == ("exited", "exit_step")


def test_use_of_reports_brings_two_tips_to_the_person_who_used_them(world):
    world.post(*newcomer(), stories.identify("ben", "birch", email="ben@birch.example", first_name="Ben", roles=["user"]))
    world.post(event("report_shared"))
    world.post(stories.track("feature_used", "ben", "birch", feature="exports"))
    assert "schedule" not in [step for step, _ in world.mails]
    world.post(stories.track("feature_used", "ben", "birch", feature="reports"))
    assert world.mails[-1] == ("schedule", "ben@birch.example")
    world.later(days=5)
    assert world.mails[-1] == ("alerts", "ben@birch.example")


def test_whoever_schedules_a_report_needs_no_more_tips(world):
    world.post(*newcomer(), event("report_shared"), event("feature_used", feature="reports"))
    world.later(days=1)
    world.post(event("report_scheduled"))
    world.later(days=20)
    assert [step for step, _ in world.mails if step in ("schedule", "alerts")] == ["schedule"]
    assert world.ends()["adoption/scheduled-reports"][1] == "goal_met"


# nurture render ------------------------------------------------------------------------------------------------------


def test_every_mail_can_be_looked_at_with_sample_values():
    for key, step in (
        ("onboarding/first-value", "in-the-way"),
        ("onboarding/onboarding-survey", "ask"),
        ("adoption/scheduled-reports", "alerts"),
    ):
        draft = proof.draft(CAMPAIGNS, key, step)
        mail = proof.render(draft, proof.sample_values(draft, NOW), "http://127.0.0.1:8000")
        assert "Mara" in mail.text and "http://127.0.0.1:8000/u/sample" in mail.html and "/c/" not in mail.html


def test_a_mail_can_be_looked_at_with_stored_values(world):
    world.post(*newcomer(), event("workspace_created"))
    draft = proof.draft(CAMPAIGNS, "onboarding/first-value", "setup-help")
    with world.engine.connect() as conn:
        facts = proof.stored_values(conn, draft, "birch", None, NOW)
        assert facts == proof.stored_values(conn, draft, "birch", "mara", NOW)
        assert "every admin of Birch & Sons" in proof.render(draft, facts, "http://127.0.0.1:8000").text
        for account, contact in (("nobody", None), ("birch", "nobody")):
            with pytest.raises(NotFound):
                proof.stored_values(conn, draft, account, contact, NOW)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFound, match="onboarding/first-value"):
        proof.draft(CAMPAIGNS, "onboarding/first", "welcome")
    with pytest.raises(NotFound, match="welcome, come-back"):
        proof.draft(CAMPAIGNS, "onboarding/first-value", "nope")
    root = stories.write_campaigns(tmp_path / "c", {"a/b": "name: ["})
    with pytest.raises(DefinitionError):
        proof.draft(root, "a/b", "x")


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NURTURE_CAMPAIGNS", raising=False)
    page = tmp_path / "mail.html"
    done = main(["render", "onboarding/first-value", "welcome", "--home", str(tmp_path / "home"), "--html", str(page)])
    assert done == 0 and capsys.readouterr().out.startswith("Subject: Mara, your first report in ten minutes\n")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert main(["render", "onboarding/nope", "x", "--home", str(tmp_path / "home")]) == 2
    assert "there is no campaign onboarding/nope" in capsys.readouterr().err
