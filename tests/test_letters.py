"""What a mail says of whom it comes from, in which language, and whose question its buttons answer."""

from __future__ import annotations

import re
from datetime import timedelta
from email import message_from_bytes
from uuid import uuid4

import pytest
from sqlalchemy import select

from app.flow.deliver import run as deliver
from app.flow.links import Links, load_keyring
from app.flow.prepare import mail_from
from app.flow.publish import publish
from app.models import message
from app.providers.memory import MemoryTransport
from app.queue import Bells
from app.rules.lifecycle import Sender
from tests.stories import LIFECYCLE, START, at, group, identify, make_account, post, publish_campaigns, run, track

ASK = """
name: Ask
stage: onboarding
topic: survey
sender: csm
trigger: {event: signed_up}
recipients: {roles: [admin]}
steps:
  - {id: ask, survey: nps, question: "How likely?", email: ask.mjml, subject: One question, subjects: {de: Eine Frage}}
  - {id: pause, wait: 5d}
  - {id: again, email: again.mjml, subject: "Still one question", reminds: ask}
"""
SENDERS = "senders: {default: {name: Sample, email: hello@example.com}, csm: {name: Team, email: team@example.com, owner: true}}"


def test_a_reminder_asks_the_question_of_the_mail_that_it_reminds_of(engine, tmp_path, settings):
    lifecycle = LIFECYCLE.replace("senders: {default: {name: Sample, email: hello@example.com}}", SENDERS)
    publish_campaigns(engine, tmp_path / "campaigns", {"onboarding/ask": ASK}, lifecycle=lifecycle)
    owner = {"name": "Sam Sample", "email": "sam@example.com"}
    post(engine, group(name="Acorn", owner=owner), identify(email="ada@example.com", first_name="Ada", roles="admin"), track("signed_up"))
    now, sink = START, MemoryTransport()
    for offset in ("0s", "1m", "5d1m", "5d2m"):
        now = at(offset)
        run(engine, now)
        deliver(engine, settings, uuid4(), lambda now=now: now, Bells(None), transport=sink)
    assert all("From: Sam Sample <sam@example.com>" in letter.data.decode("utf-8", "replace") for letter in sink.letters)
    with engine.connect() as conn:
        ids = {row.step_id: row.id for row in conn.execute(select(message))}
        links = Links(settings.base_url, load_keyring(conn))
    for letter in sink.letters:
        tokens = set(re.findall(r"/s/([A-Za-z0-9_-]+)", _decoded(letter.data)))
        assert {links.read(token, "survey")[0] for token in tokens} == {ids["ask"]}


def _decoded(data: bytes) -> str:
    parts = message_from_bytes(data).walk()
    return "\n".join(part.get_payload(decode=True).decode("utf-8") for part in parts if part.get_content_maintype() == "text")


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (None, ("Team", "team@example.com", None)),
        ("sam@example.com", ("Sam", "sam@example.com", "sam@example.com")),
        ("sam@elsewhere.test", ("Sam", "team@example.com", "sam@elsewhere.test")),
        ("not an address", ("Team", "team@example.com", None)),
        ("sam@example.com\r\nBcc: x@example.com", ("Team", "team@example.com", None)),
    ],
)
def test_mail_in_the_name_of_the_owner(owner, expected):
    sender = Sender(name="Team", email="team@example.com", owner=True)
    found = mail_from(sender, make_account(owner_name="Sam", owner_email=owner))
    assert (found.name, found.email, found.reply_to) == expected


def test_a_sender_without_owner_is_left_alone():
    sender = Sender(name="Team", email="team@example.com")
    assert mail_from(sender, make_account(owner_name="Sam", owner_email="sam@example.com")) is sender


def test_the_subject_is_in_the_language_of_the_template(engine, tmp_path, settings):
    folder = tmp_path / "campaigns"
    lifecycle = LIFECYCLE.replace("senders: {default: {name: Sample, email: hello@example.com}}", SENDERS)
    publish_campaigns(engine, folder, {"onboarding/ask": ASK}, lifecycle=lifecycle)
    german = (folder / "onboarding/ask/ask.mjml").read_text("utf-8").replace("Hello", "Hallo")
    (folder / "onboarding/ask/ask.de.mjml").write_text(german, "utf-8")
    with engine.begin() as conn:
        publish(conn, folder, START + timedelta(minutes=1))
    post(engine, group(name="Acorn"), identify(email="ada@example.com", locale="de-AT", roles="admin"), track("signed_up"))
    run(engine)
    sink = MemoryTransport()
    deliver(engine, settings, uuid4(), lambda: START, Bells(None), transport=sink)
    assert "Subject: Eine Frage" in sink.letters[0].data.decode("utf-8", "replace")
