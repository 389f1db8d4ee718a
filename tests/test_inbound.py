"""Mail that comes in: kept first, each once, read in a job, and never lost or answered (I-01, I-06, I-07, U-11)."""

import threading

import pytest
from bounces import corpus, hostile, mail
from conftest import NOW
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from test_hear import Stage

from app.errors import InputError, NotFound
from app.flow.access import create_key, revoke_key
from app.flow.inbound import LIMIT, retry, take, work
from app.queue import Bells, find_due

DOMAIN = "bounce.example.com"


class Post(Stage):
    """A stage with a letter that was sent, and mail that comes in."""

    def __init__(self, engine):
        super().__init__(engine)
        self.sent = self.letter()
        self.bounce, self.unsubscribe, self.reply = (
            self.links.mailbox(self.sent, kind, DOMAIN) for kind in ("bounce", "unsubscribe", "reply")
        )
        self.samples = {one.name: one for one in corpus(self.bounce, self.links.short_token(self.sent), f"<{self.sent.hex}@acme.example>")}

    def take(self, raw, **values):
        with self.engine.begin() as conn:
            return take(conn, raw, NOW, via="http", **values)

    def work(self):
        return work(self.engine, lambda: NOW, Bells(None))

    def mails(self, *columns):
        return self.rows(f"select {', '.join(columns)} from inbound_mail order by id")


@pytest.fixture
def post(engine):
    return Post(engine)


def test_i07_the_same_bytes_are_one_mail(post):
    raw = post.samples["postfix, no such user"].raw
    assert post.take(raw) is not None and post.take(raw) is None
    assert post.work() == 1 and post.take(raw) is None and post.work() == 0
    assert post.mails("state", "kind", "problem", "message_id") == [("done", "bounce", None, post.sent)]
    assert post.suppressed() == [("ada@example.org", "bounced", "bounced")]


def test_every_mail_of_the_corpus_is_matched_and_kept(post):
    for one in post.samples.values():
        assert post.take(one.raw) is not None
    assert post.work() == len(post.samples)
    found = {bytes(raw): (state, kind, message) for raw, state, kind, message in post.mails("raw", "state", "kind", "message_id")}
    for one in post.samples.values():
        notes = one.name in ("arf, virus", "arf, other")
        assert found[one.raw] == ("done", one.kind, None if notes else post.sent), one.name


def test_i01_a_forged_address_is_put_aside_and_changes_nothing(post):
    before = post.everything()
    raw = post.samples["postfix, no such user"].raw
    forged = post.bounce[:41] + ("a" if post.bounce[41] != "a" else "b") + post.bounce[42:]
    post.take(raw.replace(post.bounce.encode(), forged.encode()))
    post.take(
        post.samples["postfix, known by what it returns"].raw.replace(post.sent.hex.encode(), b"0" * 32).replace(b"X-Nurture-Send", b"X-No")
    )
    post.take(mail({"From": "ada@example.org", "To": post.unsubscribe.replace("u+", "r+"), "Subject": "Re"}, "Hello"))
    post.work()
    assert post.mails("state", "problem", "message_id") == [
        ("done", "forged", None),
        ("done", "no_message", None),
        ("done", "forged", None),
    ]
    assert post.everything() == before


def test_u11_a_mail_unsubscribes_from_the_topic_of_its_message(post):
    post.take(mail({"From": "somebody@else.example", "To": post.unsubscribe, "Subject": "unsubscribe"}, ""))
    post.work()
    assert post.suppressed() == [("ada@example.org", "product", "unsubscribed")]
    assert post.rows("select person, purpose, granted, method from consent") == [("ada@example.org", "product", False, "mail")]
    assert post.mails("kind", "message_id") == [("unsubscribe", post.sent)]


def test_an_answer_is_told_and_kept(post):
    post.take(
        mail({"From": "Ada <ada@example.org>", "To": post.reply, "Subject": "Re: Welcome"}, "Call me.\n\n> Hello Ada"),
        sender="ada@example.org",
    )
    post.work()
    assert post.events() == [("nurture.email_replied",)]
    assert post.mails("kind", "author", "subject", "text") == [("reply", "ada@example.org", "Re: Welcome", "Call me.")]
    ((said,),) = post.rows("select payload ->> 'text' from effect")
    assert "Call me." in said and "Hello Ada" not in said


def test_nothing_is_ever_answered(post):
    """The only mail that follows goes to the owner of the account, who is one of ours."""
    for one in post.samples.values():
        post.take(one.raw)
    post.take(mail({"From": "ada@example.org", "To": post.reply, "Subject": "Re"}, "Hello"))
    messages = post.rows("select count(*) from message")
    post.work()
    assert post.rows("select count(*) from message") == messages
    assert post.rows("select distinct payload ->> 'to', kind from effect") == [("owner", "alert")]


def test_i06_whatever_is_sent_is_kept_and_the_others_go_on(post):
    nasty = [raw for raw in hostile(post.bounce).values() if len(raw) <= LIMIT]
    for raw in nasty:
        post.take(raw)
    post.take(post.samples["postfix, no such user"].raw)
    assert post.work() == len(nasty) + 1
    assert {bytes(raw) for (raw,) in post.mails("raw")} >= set(nasty)
    assert {state for (state,) in post.mails("state")} == {"done"}
    assert post.suppressed()[0] == ("ada@example.org", "bounced", "bounced")


def test_over_10_mb_is_refused(post):
    with pytest.raises(InputError, match="10 MB"):
        post.take(b"x" * (LIMIT + 1))


def test_an_envelope_that_means_no_good_is_kept_as_one_plain_line(post):
    post.take(b"Subject: a\r\n\r\nb", sender="<a@b>\r\nX: y\x00", recipient="ü" * 9000 + "@x")
    assert post.mails("sender", "recipient") == [("a@b>X:y", "@x")]


# When something goes wrong -----------------------------------------------------------------------------------------------


def test_what_our_own_fault_stops_is_failed_with_its_error_and_the_others_go_on(post):
    """A fault of the database in the middle of one mail: here, a table that hearing writes to refuses that message's facts."""
    with post.engine.begin() as conn:
        conn.execute(text("alter table delivery_event add constraint no_bounce check (kind <> 'bounced')"))
    post.take(post.samples["postfix, no such user"].raw)
    post.take(post.samples["away, as the standard says"].raw)
    assert post.work() == 2
    assert post.mails("state", "kind") == [("failed", None), ("done", "auto_reply")]
    assert "no_bounce" in post.mails("detail")[0][0]["notes"][0] and post.suppressed() == []
    with post.engine.begin() as conn:
        conn.execute(text("alter table delivery_event drop constraint no_bounce"))
        assert retry(conn) == 1
    assert post.work() == 1 and post.suppressed() == [("ada@example.org", "bounced", "bounced")]


def test_a_mail_that_ends_its_worker_again_and_again_is_given_up(post):
    post.take(post.samples["postfix, no such user"].raw)
    with post.engine.begin() as conn:
        conn.execute(text("update inbound_mail set attempts = 10"))
    assert post.work() == 1
    assert post.mails("state") == [("failed",)] and "ended its worker" in post.mails("detail")[0][0]["notes"][0]


def test_a_database_that_goes_away_leaves_the_mail_waiting(post):
    """The connection is cut on the server's side between the reading and the writing."""
    post.take(post.samples["postfix, no such user"].raw)

    def clock():
        with post.engine.connect() as conn:
            conn.execute(
                text(
                    "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()"
                )
            )
        return NOW

    with pytest.raises(OperationalError):
        work(post.engine, clock, Bells(None))
    assert post.mails("state") == [("waiting",)]
    assert post.work() == 1 and post.mails("state") == [("done",)]


def test_any_number_of_workers_read_each_mail_once(post):
    for one in post.samples.values():
        post.take(one.raw)
    done, failures = [], []

    def go():
        try:
            done.append(post.work())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=go) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == [] and sum(done) == len(post.samples)
    assert {state for (state,) in post.mails("state")} == {"done"}


def test_reading_again_changes_nothing(post):
    for one in post.samples.values():
        post.take(one.raw)
    post.work()
    before = post.everything()
    with post.engine.begin() as conn:
        for (mail_id,) in post.mails("id"):
            assert retry(conn, mail_id) == 1
    assert post.work() == len(post.samples)
    assert post.everything() == before
    with post.engine.begin() as conn, pytest.raises(NotFound):
        retry(conn, 999_999)


def test_a_mail_that_came_before_its_message_was_known_is_matched_when_tried_again(post):
    with post.engine.begin() as conn:
        conn.execute(text("update message set state = 'due', dot_at = null, settled_at = null"))
    post.take(post.samples["postfix, no such user"].raw)
    post.work()
    assert post.mails("problem") == [("never_sent",)]
    with post.engine.begin() as conn:
        conn.execute(text("update message set state = 'sent', dot_at = :now, settled_at = :now"), {"now": NOW})
        assert retry(conn) == 1
    post.work()
    assert post.mails("problem", "message_id") == [(None, post.sent)]


def test_the_erasure_of_a_message_takes_its_mails_along(post):
    post.take(post.samples["postfix, no such user"].raw)
    post.work()
    with post.engine.begin() as conn:
        conn.execute(text("delete from contact"))
    assert post.mails("id") == []


def test_waiting_mail_rings(post):
    with post.engine.connect() as conn:
        assert not find_due(conn, NOW).mails
    post.take(b"Subject: a\r\n\r\nb")
    with post.engine.connect() as conn:
        assert find_due(conn, NOW).mails


# The endpoint --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key(engine):
    with engine.begin() as conn:
        return create_key(conn, "mail server", "inbound", NOW)


def endpoint(key):
    return f"/inbound/{key.split('_')[1]}"


def bearer(key, **more):
    return {"Authorization": f"Bearer {key}", **more}


def test_a_mail_server_hands_in_a_mail(post, client, key):
    raw = post.samples["postfix, no such user"].raw
    envelope = {"X-Envelope-From": "<>", "X-Envelope-To": post.bounce, "Content-Type": "message/rfc822"}
    answer = client.post(endpoint(key), data=raw, headers=bearer(key, **envelope))
    assert answer.status_code == 200 and answer.json["known"] is False and "Set-Cookie" not in answer.headers
    assert client.post(endpoint(key), data=raw, headers=bearer(key)).json == {"id": None, "known": True}
    assert post.mails("state", "sender", "recipient", "via") == [("waiting", "", post.bounce, "http")]  # I-06: not read here
    assert [bytes(one) for (one,) in post.mails("raw")] == [raw]
    post.work()
    assert post.suppressed() == [("ada@example.org", "bounced", "bounced")]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/plain", ""])
def test_the_body_is_kept_byte_for_byte_whatever_its_type_says(post, client, key, kind):
    raw = b"Subject: a=b&c=d\r\n\r\n--b\r\n\x00\xff%41+\r\n"
    assert client.post(endpoint(key), data=raw, headers=bearer(key), content_type=kind or None).status_code == 200
    assert [bytes(one) for (one,) in post.mails("raw")] == [raw]


def test_who_has_no_key_of_that_endpoint_is_refused(post, client, key, engine):
    with engine.begin() as conn:
        other, admin = create_key(conn, "other", "inbound", NOW), create_key(conn, "staff", "admin", NOW)
    tries = [
        ({}, endpoint(key)),
        (bearer(key + "x"), endpoint(key)),
        (bearer(other), endpoint(key)),
        (bearer(admin), endpoint(admin)),
        (bearer(key), "/inbound/nothing"),
    ]
    for headers, path in tries:
        assert client.post(path, data=b"Subject: a\r\n\r\n", headers=headers).status_code == 401
    assert client.get(endpoint(key), headers=bearer(key)).status_code == 405
    assert client.post(endpoint(key), data=b"S: a\r\n\r\n", auth=("mail", key)).status_code == 200
    with engine.begin() as conn:
        revoke_key(conn, key.split("_")[1], NOW)
    assert client.post(endpoint(key), data=b"S: b\r\n\r\n", headers=bearer(key)).status_code == 401
    assert len(post.mails("id")) == 1


def test_a_key_for_mail_opens_nothing_else(client, key):
    assert client.get("/api/v1/accounts", headers=bearer(key)).status_code == 403
    assert client.post("/v1/track", json={"event": "x", "userId": "u"}, auth=(key, "")).status_code == 403


def test_the_limits_of_a_body(post, client, key):
    assert client.post(endpoint(key), data=b" \r\n", headers=bearer(key)).status_code == 400
    assert client.post(endpoint(key), data=b"S: a\r\n\r\n" + b"x" * (LIMIT - 8), headers=bearer(key)).status_code == 200
    assert client.post(endpoint(key), data=b"S: a\r\n\r\n" + b"x" * LIMIT, headers=bearer(key)).status_code == 413
    assert len(post.mails("id")) == 1


def test_a_database_that_is_away_has_the_mail_server_try_again(client, key, engine, app):
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with engine.begin() as conn:
        conn.execute(text("alter table inbound_mail rename to elsewhere"))
    answer = client.post(endpoint(key), data=b"S: a\r\n\r\nb", headers=bearer(key))
    assert answer.status_code >= 500  # never 2xx, never 4xx: the mail server keeps the mail
    with engine.begin() as conn:
        conn.execute(text("alter table elsewhere rename to inbound_mail"))
    assert client.post(endpoint(key), data=b"S: a\r\n\r\nb", headers=bearer(key)).status_code == 200


def test_the_same_handed_in_by_many_at_once_is_one(post, app, key):
    answers = []

    def go():
        with app.test_client() as client:
            answers.append(client.post(endpoint(key), data=b"Subject: same\r\n\r\nx", headers=bearer(key)).json["known"])

    threads = [threading.Thread(target=go) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(answers) == [False] + [True] * 5 and len(post.mails("id")) == 1
