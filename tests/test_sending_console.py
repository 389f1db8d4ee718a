"""The console's page of the way out: pauses, brakes and unknown messages, each with a button that does what it says once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from app.db import insert_rows
from app.models import brake
from tests.cast import Cast
from tests.test_console import Page, link, token_of

NOW = datetime.now(UTC)  # the console asks the clock
PAGE = "/console/sending"


@pytest.fixture
def engine(app):
    return app.extensions["nurture"].engine


@pytest.fixture
def doubt(engine):
    """An installation with one message of which nobody knows whether it arrived."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        dot = {"state": "unknown", "reason": "no_answer", "dot_at": NOW - timedelta(hours=1), "settled_at": NOW - timedelta(hours=1)}
        ident = cast.message(cast.contact("ada"), unknown_until=NOW + timedelta(hours=5), **dot)
        conn.execute(text("update message set person = 'ada@acorn.test'"))
        return ident


@pytest.fixture
def staff(client, engine, doubt):
    assert client.get(link(engine)).status_code == 303
    return client


def page(staff) -> Page:
    answer = staff.get(PAGE)
    assert answer.status_code == 200
    found = Page(answer.get_data(as_text=True))
    assert not found.problems
    return found


def press(staff, where: str, **form):
    return staff.post(f"{PAGE}/{where}", data={"csrf_token": token_of(staff, PAGE), **form})


def one(engine, statement: str, **values):
    with engine.connect() as conn:
        return conn.execute(text(statement), values).scalar()


def test_the_page_shows_what_carries_mail_and_what_is_in_doubt(staff):
    words = page(staff).words
    assert "default" in words and "Open" in words and "ada@acorn.test" in words and "it counts as sent" in words
    assert "Nurture signs nothing, so the relay has to." in words


def test_no_button_can_be_forged(staff, engine):
    for where in ("transports/default", "brakes/1", "unknown"):
        assert staff.post(f"{PAGE}/{where}", data={"action": "pause", "csrf_token": "x"}).status_code == 400
        assert staff.get(f"{PAGE}/{where}").status_code in (404, 405)
    assert one(engine, "select count(*) from transport where paused_at is not null") == 0


def test_a_transport_is_paused_and_goes_on(staff, engine):
    assert press(staff, "transports/default", action="pause").status_code == 303
    assert "Paused" in page(staff).words and "paused in the console" in page(staff).words
    assert press(staff, "transports/default", action="resume").status_code == 303
    assert one(engine, "select count(*) from transport where paused_at is not null") == 0
    assert press(staff, "transports/default", action="explode").status_code == 400
    assert press(staff, "transports/nobody", action="pause").status_code == 404


@pytest.mark.parametrize(("verdict", "state"), [("sent", "sent"), ("not_sent", "due")])
def test_an_unknown_message_is_settled_once(staff, engine, doubt, verdict, state):
    assert press(staff, "unknown", message=str(doubt), verdict=verdict).status_code == 303
    assert one(engine, "select state from message where id = :id", id=doubt) == state
    assert "No message is in doubt." in page(staff).words
    again = press(staff, "unknown", message=str(doubt), verdict="sent")
    assert again.status_code == 400 and "somebody or something was quicker" in again.get_data(as_text=True)
    assert press(staff, "unknown", message="'; drop table message", verdict="sent").status_code == 400
    assert press(staff, "unknown", message=str(doubt), verdict="perhaps").status_code == 400


def test_a_brake_is_taken_off(staff, engine):
    numbers = {"complained": 4, "delivered": 1000, "rate": 0.004, "limit": 0.003, "hours": 24}
    row = {"kind": "complaints", "action": "pause", "domain": "acorn.test", "provider": "", "numbers": numbers, "set_at": NOW}
    with engine.begin() as conn:
        (ident,) = insert_rows(conn, brake, [row], returning=("id",))[0]
    assert "Stopped" in page(staff).words
    assert press(staff, f"brakes/{ident}").status_code == 303
    assert one(engine, "select released_by from brake") == "console"
    assert "Stopped" not in page(staff).words
    assert press(staff, f"brakes/{ident}").status_code == 404
