"""The outbox: mail without a relay is read there, by whoever sits at the machine and by nobody else."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from app import create_app
from app.config import load
from app.flow.deliver import Limits, run
from app.queue import Bells
from tests.cast import Cast
from tests.conftest import NOW

LOCAL = {"base_url": "http://127.0.0.1:8000"}


@pytest.fixture
def captured(engine, settings):
    """Two mails to Ada and Bob in the outbox; Bob's is the newer."""
    from uuid import uuid4

    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        acorn = cast.account()
        ids = [cast.message(cast.contact(name, acorn, first_name=first)) for name, first in (("ada", "Ada"), ("bob", "Bób <i>"))]
    for ident in ids:
        with engine.begin() as conn:
            conn.execute(
                text("update message set due_at = :at where id <> :id and state = 'due'"), {"at": NOW.replace(year=2027), "id": ident}
            )
            conn.execute(text("update message set due_at = :at where id = :id"), {"at": NOW, "id": ident})
        run(engine, settings, uuid4(), lambda: NOW, Bells(None), limits=Limits(gather=0))
    return ids


def test_programs_read_it_as_a_list_newest_first(client, captured):
    found = client.get("/dev/outbox.json", **LOCAL).get_json()
    assert [mail["to"] for mail in found] == ["bob@acorn.test", "ada@acorn.test"]
    mail = found[1]
    assert set(mail) == {"id", "to", "from", "subject", "headers", "text", "html", "campaign", "step", "captured_at"}
    assert (mail["from"], mail["subject"], mail["campaign"], mail["step"]) == (
        "success@acorn.test",
        "Hello Ada",
        "onboarding/first-value",
        "welcome",
    )
    assert mail["captured_at"] == NOW.isoformat()
    assert ["List-Unsubscribe-Post", "List-Unsubscribe=One-Click"] in mail["headers"]
    assert "Hello Ada of Acorn." in mail["html"] and mail["text"].startswith("Hello Ada of Acorn.\n")
    assert found[0]["subject"] == "Hello Bób <i>" and "Bób &lt;i&gt;" in found[0]["html"]


def test_people_read_it_in_a_browser(client, captured):
    page = client.get("/dev/outbox", **LOCAL)
    assert page.status_code == 200 and "Hello Bób &lt;i&gt;" in page.text and "<script" not in page.text
    number = client.get("/dev/outbox.json", **LOCAL).get_json()[1]["id"]
    page = client.get(f"/dev/outbox/{number}", **LOCAL)
    assert page.status_code == 200 and "sandbox=" in page.text and "allow-scripts" not in page.text and "allow-same-origin" not in page.text
    assert "List-Unsubscribe" in page.text and f"/dev/outbox/{number + 1}" in page.text
    mail = client.get(f"/dev/outbox/{number}/html", **LOCAL)
    policy = mail.headers["Content-Security-Policy"]
    assert "Hello Ada of Acorn." in mail.text
    assert "default-src 'none'" in policy and "sandbox" in policy and "allow-scripts" not in policy
    assert client.get("/dev/outbox/999999", **LOCAL).status_code == 404


def test_an_empty_outbox_says_what_to_do(client):
    page = client.get("/dev/outbox", **LOCAL)
    assert page.status_code == 200 and "No mail yet" in page.text
    assert client.get("/dev/outbox.json", **LOCAL).get_json() == []


@pytest.mark.parametrize("path", ["/dev/outbox", "/dev/outbox.json", "/dev/outbox/1", "/dev/outbox/1/html"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "mail.example.com"},
        {"Host": "evil.test:8000"},
        {"Host": "127.0.0.1.evil.test"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"X-Forwarded-Host": "127.0.0.1"},
        {"X-Forwarded-Proto": "https"},
        {"Forwarded": "for=10.0.0.1"},
    ],
)
def test_nobody_else_sees_it(client, captured, path, headers):
    assert client.get(path, **LOCAL, headers=headers).status_code == 404


@pytest.mark.parametrize("told", [{"SMTP_URL": "smtp://127.0.0.1:2525"}, {"NURTURE_BASE_URL": "https://mail.example.com"}])
def test_it_is_gone_with_a_relay_or_a_public_address(settings, told, tmp_path):
    environ = {
        "NURTURE_HOME": str(tmp_path / "other"),
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        **told,
    }
    app = create_app(load(environ))
    for path in ("/dev/outbox", "/dev/outbox.json", "/dev/outbox/1"):
        assert app.test_client().get(path, **LOCAL).status_code == 404
    app.extensions["nurture"].engine.dispose()


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_every_loopback_name_will_do(client, host):
    assert client.get("/dev/outbox.json", base_url=f"http://{host}").status_code == 200
