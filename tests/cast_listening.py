"""People at a customer, and messages that were sent to them: what the tests of listening start from."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

from conftest import NOW
from ruamel.yaml import YAML
from sqlalchemy import Connection, select

from app.config import CODE
from app.flow.compose import Compiled, compile_mail
from app.flow.links import Links, load_keyring
from app.models import account, campaign, campaign_version, contact, enrollment, lifecycle_version, membership, message, template

LIFECYCLE = YAML(typ="safe", pure=True).load((CODE / "campaigns" / "lifecycle.yaml").read_text())
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "Accept-Language": "en-GB,en;q=0.9",
    "Sec-Fetch-Mode": "navigate",
    "Accept": "text/html",
}
QUESTION = "How likely are you to recommend us to a colleague?"
MAIL = """
<mj-section><mj-column>
  <mj-text>Hello {{ contact.first_name | default("there") }}, this is about {{ account.name }}.</mj-text>
  <mj-button href="https://app.example.com/start">Open the app</mj-button>
  <mj-text><a href="https://docs.example.com/a?b=1&amp;c=2">Read the guide</a>, <a href="https://www.example.com/three">three</a>,
    <a href="https://www.example.com/four">four</a></mj-text>
</mj-column></mj-section>
"""
URLS = [
    "https://app.example.com/start",
    "https://docs.example.com/a?b=1&c=2",
    "https://www.example.com/three",
    "https://www.example.com/four",
]
STEPS = [
    {"id": "welcome", "email": "welcome.mjml", "subject": "Welcome"},
    {
        "id": "setup",
        "wait_for": {"milestone": "setup_completed", "timeout": "3d"},
        "on_timeout": [
            {
                "id": "stuck",
                "branch": [{"else": [{"id": "ask", "survey": "nps", "question": QUESTION, "email": "ask.mjml", "subject": "One"}]}],
            }
        ],
    },
    {"id": "csat", "survey": "csat", "question": "Was the help any good?", "email": "csat.mjml", "subject": "Two"},
    {"id": "ces", "survey": "ces", "question": "How easy was it to set up?", "email": "ces.mjml", "subject": "Three"},
]
CAMPAIGN = {"name": "First value", "stage": "onboarding", "topic": "product", "trigger": {"event": "x"}, "steps": STEPS}


@dataclass(frozen=True)
class Cast:
    """One published campaign with two mails, and whoever was added."""

    campaign_id: int
    version_id: int
    links: Links


def blocks() -> dict[str, str]:
    return {path.name: path.read_text() for path in Path(CODE / "campaigns" / "brand").glob("*.mjml")}


def publish(conn: Connection, lifecycle: dict = LIFECYCLE, base_url: str = "http://127.0.0.1:8000") -> Cast:
    conn.execute(lifecycle_version.insert().values(hash=uuid4().hex, definition=lifecycle, published_at=NOW))
    campaign_id = conn.execute(
        campaign.insert().values(key="onboarding/first-value", name="First value", mode="live").returning(campaign.c.id)
    ).scalar_one()
    version_id = conn.execute(
        campaign_version.insert()
        .values(campaign_id=campaign_id, number=1, hash="h", definition=CAMPAIGN, published_at=NOW)
        .returning(campaign_version.c.id)
    ).scalar_one()
    for step in ("welcome", "ask"):
        survey = {"survey": "nps", "question": QUESTION} if step == "ask" else {}
        _write(conn, version_id, step, compile_mail(MAIL, "Welcome", path=f"{step}.mjml", blocks=blocks(), **survey))
    return Cast(campaign_id, version_id, Links(base_url, load_keyring(conn)))


def _write(conn: Connection, version_id: int, step: str, made: Compiled) -> None:
    links = [{"url": link.url, "label": link.label, "track": link.track} for link in made.links]
    row = {"version_id": version_id, "step_id": step, "locale": "", "path": f"{step}.mjml", "source": MAIL, "links": links}
    conn.execute(template.insert().values(**row, subject=made.subject, html=made.html, text=made.text, reads=sorted(made.reads)))


def add_account(conn: Connection, key: str = "acme", **values) -> int:
    values = {"name": key.title(), "stage": "onboarding", "created_at": NOW - timedelta(days=400), "partition": 3} | values
    return conn.execute(account.insert().values(external_id=key, **values).returning(account.c.id)).scalar_one()


def add_contact(conn: Connection, account_id: int, key: str = "ada", **values) -> int:
    address = f"{key}@example.org"
    values = {"address": address, "person": address, "first_name": key.title(), "created_at": NOW} | values
    contact_id = conn.execute(contact.insert().values(external_id=key, **values).returning(contact.c.id)).scalar_one()
    conn.execute(membership.insert().values(account_id=account_id, contact_id=contact_id, joined_at=NOW))
    return contact_id


def add_message(conn: Connection, cast: Cast, account_id: int, contact_id: int, step: str = "welcome", *, sent_at=NOW, **values) -> UUID:
    """A message of `step` that the relay took at `sent_at`."""
    enrollment_id, message_id = uuid4(), uuid4()
    same = {"campaign_id": cast.campaign_id, "version_id": cast.version_id, "account_id": account_id, "partition": 3, "occurrence": 1}
    enrolled = {"state": "finished", "position": {}, "entry": {}, "entered_at": sent_at}
    conn.execute(enrollment.insert().values(id=enrollment_id, **same, **enrolled))
    row = {
        "kind": "email" if step == "welcome" else "survey",
        "topic": "product",
        "priority": 50,
        "created_at": sent_at,
        "due_at": sent_at,
        "expires_at": sent_at + timedelta(days=3),
        "state": "sent",
        "dot_at": sent_at,
        "settled_at": sent_at,
        "person": conn.execute(select(contact.c.person).where(contact.c.id == contact_id)).scalar_one(),
        "subject": "Welcome",
        "values": {"contact": {"first_name": "Ada"}, "account": {"name": "Acme <b>"}},
        "links": URLS,
    } | values
    conn.execute(message.insert().values(id=message_id, enrollment_id=enrollment_id, step_id=step, contact_id=contact_id, **same, **row))
    return message_id


def add_letter(conn: Connection, cast: Cast, step: str = "welcome", **values) -> UUID:
    """A message to Ada of Acme, who are made with it."""
    account_id = add_account(conn)
    return add_message(conn, cast, account_id, add_contact(conn, account_id), step, **values)


def path(url: str) -> str:
    return url.removeprefix("http://127.0.0.1:8000")
