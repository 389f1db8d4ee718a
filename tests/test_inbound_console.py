"""What staff see of mail that came in: pages and commands. Nothing of it is shown as HTML (I-06), nothing is changed without a form."""

import json
import re
from datetime import timedelta

import pytest
from bounces import mail
from conftest import NOW
from sqlalchemy import text
from test_console import Page, link
from test_inbound import Post

from app import doctor
from app.cli import main

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def post(engine):
    made = Post(engine)
    made.take(made.samples["postfix, no such user"].raw, recipient=made.bounce, sender="")
    made.take(mail({"From": "Ada <ada@example.org>", "To": made.reply, "Subject": f"Re: {SCRIPT}"}, f"Call me {SCRIPT}"))
    made.take(
        made.samples["postfix, no such user"].raw.replace(made.bounce.encode(), (made.bounce[:30] + "@" + "bounce.example.com").encode())
    )
    made.take(b"\x00\xff not a mail \x1b[31m")
    made.work()
    made.take(b"Subject: later\r\n\r\nwaits")
    return made


@pytest.fixture
def staff(client, post):
    assert client.get(link(post.engine)).status_code == 303
    return client


def test_the_list_says_what_each_was_taken_for(staff, post):
    answer = staff.get("/console/inbound")
    assert answer.status_code == 200
    text = Page(answer.text).words
    for said in ("Bounce", "Hard 5.1.1", "Reply", "put aside and changed nothing", "Unreadable", "Waiting", "ada@example.org"):
        assert said in text, said
    assert SCRIPT not in answer.text and f"/console/messages/{post.sent}" in answer.text
    assert "inbound" in staff.get(f"/console/messages/{post.sent}").text


@pytest.mark.parametrize(
    ("query", "count"), [("kind=bounce", 2), ("state=aside", 2), ("state=waiting", 1), ("kind=reply", 1), ("state=failed", 0)]
)
def test_filters(staff, query, count):
    assert len(re.findall(r'href="/console/inbound/\d+"', staff.get(f"/console/inbound?{query}").text)) == count


def test_a_filter_that_cannot_be_used_is_said(staff):
    assert staff.get("/console/inbound?kind=spam").status_code == 400
    assert staff.get("/console/inbound?cursor=x").status_code == 400
    assert staff.get("/console/inbound/999").status_code == 404 and staff.get(f"/console/inbound/{2**70}").status_code == 404


def test_one_mail_with_its_bytes_as_text(staff, post):
    (bounce,), (reply,), (forged,), (garbage,), (waiting,) = post.mails("id")
    page = staff.get(f"/console/inbound/{reply}")
    assert f"Call me {SCRIPT}" in Page(page.text).words and SCRIPT not in page.text
    shown = Page(staff.get(f"/console/inbound/{bounce}").text).words
    assert "550 5.1.1" in shown and "nobody@example.org" in shown
    for mail_id, raw in post.mails("id", "raw"):
        assert staff.get(f"/console/inbound/{mail_id}").status_code == 200
        answer = staff.get(f"/console/inbound/{mail_id}/raw")
        assert answer.data == bytes(raw) and answer.headers["Content-Type"].startswith("text/plain")
        assert answer.headers["Content-Disposition"].startswith("attachment") and "sandbox" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert staff.get("/console/inbound/999/raw").status_code == 404


def test_reading_again_takes_a_form_of_this_page(staff, post):
    ((bounce,), *_) = post.mails("id")
    assert staff.post(f"/console/inbound/{bounce}").status_code == 400
    token = re.search(r'name="csrf_token" value="([^"]+)"', staff.get(f"/console/inbound/{bounce}").text)[1]
    answer = staff.post(f"/console/inbound/{bounce}", data={"csrf_token": token})
    assert answer.status_code == 303 and post.mails("state")[0] == ("waiting",)


def test_without_a_session_there_is_nothing(client, post):
    for path in ("/console/inbound", "/console/inbound/1", "/console/inbound/1/raw"):
        answer = client.get(path)
        assert answer.status_code == 401 and "ada@" not in answer.text


@pytest.fixture
def run(post, settings, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("NURTURE_HOME", str(settings.home))

    def go(*words):
        code = main(["inbound", *map(str, words)])
        return code, capsys.readouterr().out

    return go


def test_the_commands(post, run):
    code, out = run("list", "--json")
    listed = json.loads(out)
    assert code == 0 and [one["kind"] for one in listed] == [None, "unreadable", "bounce", "reply", "bounce"]
    assert [one["problem"] for one in json.loads(run("list", "--state", "aside", "--json")[1])] == [None, "forged"]
    assert len(json.loads(run("list", "--kind", "reply", "--limit", "1", "--json")[1])) == 1
    assert "\x1b" not in run("list")[1]
    shown = json.loads(run("show", listed[-1]["id"], "--json")[1])
    assert shown["message"] == str(post.sent) and shown["reports"][0]["sort"] == "hard"
    assert "5.1.1" in run("show", listed[-1]["id"])[1]
    assert json.loads(run("retry", "all", "--json")[1]) == {"retried": 2}
    assert json.loads(run("retry", listed[-1]["id"], "--json")[1]) == {"retried": 1}
    assert run("show", 999)[0] == 2 and run("retry", "x")[0] == 2 and run("list", "--kind", "x")[0] == 2
    assert post.work() == 4


def test_doctor_says_what_an_operator_must_look_at(post, settings):
    def findings():
        return {one.what: one for one in doctor.examine(settings, post.engine, NOW + timedelta(minutes=1))}

    assert "sender settings" not in findings() and "mailbox" not in findings()
    post.take(post.samples["our sender address refused"].raw)
    post.work()
    with post.engine.begin() as conn:
        conn.execute(text("insert into mailbox (name, due_at, error) values ('u@h:993/INBOX', :now, 'no such user')"), {"now": NOW})
        conn.execute(text("update inbound_mail set state = 'failed', processed_at = :now where kind = 'reply'"), {"now": NOW})
    seen = findings()
    assert not seen["sender settings"].good and "5.1.8 Bad sender" in seen["sender settings"].seen
    assert not seen["mailbox"].good and "no such user" in seen["mailbox"].seen
    assert not seen["inbound mail"].good and "1 could not be dealt with" in seen["inbound mail"].seen
