"""What mail providers tell (email-standards 3.3): each one valid, tampered with, replayed, doubled, out of order, hostile."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.request import Request, urlopen

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.event import listen

from app import cli, create_app, doctor
from app.errors import CallError, InputError, NotFound, Refused
from app.flow import hooks
from app.flow.hooks import add_hook, find_hook, open_confirmation, process_due, remove_hook, retry_call, rotate_hook
from app.flow.seals import Sealed
from app.flow.track import settle_due
from app.providers.hooks import PROVIDERS as READERS
from app.providers.hooks import sns
from app.providers.hooks.call import Call, when
from app.providers.outgoing import Caller
from app.queue import Bells, find_due
from app.rules.reports import classify
from tests.cast_listening import BROWSER, URLS, add_letter, publish
from tests.conftest import dsn
from tests.processes import eventually
from tests.providers import ADDRESS, CERTIFICATE, PROVIDERS, TOPIC, Mailgun, Postmark, SendGrid, Ses, Sns, certificate_of, sns_key
from tests.test_console import Page, link, token_of
from tests.test_up import Engine, command, environment

NAMES = sorted(PROVIDERS)
NOW = datetime.now(UTC)  # the web asks the clock
HOUR_AGO = NOW - timedelta(hours=1)


class Desk:
    """An installation with a hook, a letter that was sent an hour ago, and what plays Amazon SNS."""

    def __init__(self, app, client, cloud, authority):
        self.app, self.client, self.cloud, self.context = app, client, cloud, authority[1]
        self.where = app.extensions["nurture"]
        self.engine, self.settings = self.where.engine, replace(self.where.settings, allow_hosts=frozenset({cloud.place}))
        self.caller = Caller(self.settings.allow_hosts, context=self.context)
        app.extensions["nurture-certificates"] = sns.Certificates(self.caller)
        with self.engine.begin() as conn:
            self.cast = publish(conn)
            self.message = add_letter(conn, self.cast, sent_at=HOUR_AGO)
            self.header = f"<{self.message.hex}@acme.example>"
            conn.execute(text("update message set message_header = :h"), {"h": self.header})
        self.token = self.cast.links.short_token(self.message)

    def provider(self, name, **options):
        made = PROVIDERS[name]()
        if name == "ses":
            made.url = self.cloud.url
            options = {"stand_in": self.cloud.url, **options}
        with self.engine.begin() as conn:
            made.add(conn, self.settings, NOW, **options)
        return made

    def post(self, provider, call, path=None):
        body, headers = call
        return self.client.post(path or provider.path, data=body, headers=headers)

    def work(self, now=None, bells=None):
        return process_due(self.engine, self.settings, lambda: now or datetime.now(UTC), bells or Bells(None), self.caller)

    def rows(self, query, **values):
        with self.engine.connect() as conn:
            return [dict(row) for row in conn.execute(text(query), values).mappings()]

    def calls(self):
        return self.rows("select * from hook_call order by id")

    def facts(self):
        return sorted(row["kind"] for row in self.rows("select kind from delivery_event"))

    def suppressed(self):
        return [(row["person"], row["reason"]) for row in self.rows("select * from suppression where lifted_at is null")]

    def raised(self, name):
        return self.rows("select * from event where name = :name", name=name)


@pytest.fixture
def cloud(authority):
    with Sns(authority[0]) as server:
        yield server


@pytest.fixture
def desk(app, client, cloud, authority):
    return Desk(app, client, cloud, authority)


# Every provider ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_w02_a_valid_call_is_stored_answered_and_heard(desk, name):
    provider = desk.provider(name)
    answer = desk.post(provider, provider.call(provider.bounce(desk.token)))
    assert (answer.status_code, answer.json) == (200, {"taken": 1, "known": 0})
    assert desk.facts() == [] and desk.suppressed() == [], "the answer does not wait for what follows"
    assert desk.calls()[0]["state"] == "waiting"
    assert desk.work() == 1
    (stored,) = desk.calls()
    assert (stored["state"], stored["reports"], stored["matched"], stored["message_id"]) == ("done", 1, 1, desk.message)
    assert "5.1.1" in stored["raw"] and stored["kind"] in ("Bounce", "bounce", "failed")
    assert desk.facts() == ["bounced"]
    assert desk.suppressed() == [(ADDRESS, "bounced")]
    (fact,) = desk.rows("select * from delivery_event")
    assert fact["detail"]["sort"] == "hard" and fact["detail"]["detail"]["provider"] == name
    assert abs(fact["at"] - datetime.now(UTC)) < timedelta(minutes=1), "the event's own time"


@pytest.mark.parametrize("name", NAMES)
def test_w01_what_was_tampered_with_is_refused_and_kept_to_be_looked_at(desk, name):
    provider = desk.provider(name)
    body, headers = provider.call(provider.bounce(desk.token))
    if name == "postmark":
        calls = [provider.call(provider.bounce(desk.token), password="x" * 43), (body, {}), provider.call({}, user="other")]
        calls += [(body, {"Authorization": bad}) for bad in ("Basic", "Basic !!!", "Basic /w==", "Bearer x", "Basic bnVydHVyZQ==")]
    elif name == "mailgun":
        other = json.loads(body)
        other["signature"]["timestamp"] = str(int(other["signature"]["timestamp"]) - 1)
        calls = [(json.dumps(other).encode(), headers)]
        calls += [
            (json.dumps({**other, "signature": bad}).encode(), headers) for bad in (None, [], "x", {}, {"signature": 1, "token": "ü"})
        ]
        calls += [(json.dumps({**other, "signature": {**other["signature"], "signature": "ü" * 64}}).encode(), headers)]
    else:
        calls = [(body.replace(b"550", b"551"), headers), (body.replace(b"example.org", b"example.com"), headers)]
    if name == "sendgrid":
        for header in list(headers)[:2]:
            calls += [(body, {**headers, header: bad}) for bad in ("", "?", "AAAA", "x" * 5000)]
        other = SendGrid()
        calls.append(other.signed(body))
    if name == "ses":
        read = json.loads(body)
        changes = [
            ("Signature", "AAAA"),
            ("Signature", "?"),
            ("Signature", None),
            ("SigningCertURL", 7),
            ("Timestamp", None),
            ("MessageId", []),
        ]
        changes += [("Message", "{}"), ("Subject", "new"), ("Type", "SubscriptionConfirmation"), ("Type", None), ("SignatureVersion", "3")]
        calls += [(json.dumps({**read, key: value}).encode(), headers) for key, value in changes]
    for call in calls:
        answer = desk.post(provider, call)
        assert answer.status_code == 401, (call, answer.json)
        assert answer.mimetype == "application/problem+json"
    desk.work()
    assert desk.facts() == [] and desk.suppressed() == []
    assert {row["state"] for row in desk.calls()} == {"refused"} and all(row["reason"] for row in desk.calls())
    with pytest.raises(InputError, match="refused"), desk.engine.begin() as conn:
        retry_call(conn, desk.calls()[0]["id"])
    assert desk.post(provider, (body, headers)).status_code == 200, "a forged one does not use up the true one"


@pytest.mark.parametrize("name", NAMES)
def test_w03_fifty_times_at_once_is_one_change(desk, name):
    provider = desk.provider(name)
    call = provider.call(provider.bounce(desk.token))

    def post(_):
        return desk.app.test_client().post(provider.path, data=call[0], headers=call[1])

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(post, range(50)))
        assert {one.status_code for one in answers} == {200}
        assert sum(one.json["taken"] for one in answers) == 1 and sum(one.json["known"] for one in answers) == 49
        list(threads.map(lambda _: desk.work(), range(4)))
    assert len(desk.calls()) == 1 and desk.facts() == ["bounced"] and len(desk.suppressed()) == 1
    assert len(desk.raised("nurture.email_bounced")) == 1
    assert desk.post(provider, call).json == {"taken": 0, "known": 1}, "replayed later"
    with desk.engine.begin() as conn:
        retry_call(conn, desk.calls()[0]["id"])
    assert desk.work() == 1
    assert desk.facts() == ["bounced"] and len(desk.raised("nurture.email_bounced")) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [("bounce", "delivery"), ("delivery", "bounce")])
def test_w03_a_late_delivery_never_erases_a_bounce(desk, name, order):
    provider = desk.provider(name)
    for what in order:
        assert desk.post(provider, provider.call(getattr(provider, what)(desk.token))).status_code == 200
        desk.work()
    assert desk.facts() == ["bounced", "delivered"]
    assert desk.suppressed() == [(ADDRESS, "bounced")]
    assert desk.rows("select state from message") == [{"state": "sent"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_complaint_stops_all_mail(desk, name):
    provider = desk.provider(name)
    desk.post(provider, provider.call(provider.complaint(desk.token)))
    desk.work()
    assert desk.facts() == ["complained"] and desk.suppressed() == [(ADDRESS, "complained")]


@pytest.mark.parametrize("name", NAMES)
def test_w04_what_is_unknown_is_stored_and_ignored(desk, name):
    provider = desk.provider(name)
    assert desk.post(provider, provider.call(provider.unknown(desk.token))).status_code == 200
    assert desk.post(provider, provider.call({**provider.delivery(desk.token), "new field": {"of": ["them"]}})).status_code == 200
    desk.work()
    unknown, known = desk.calls()
    assert (unknown["state"], unknown["reports"], unknown["matched"]) == ("done", 0, 0) and "3" in unknown["raw"]
    assert (known["state"], known["matched"]) == ("done", 1)
    assert desk.facts() == ["delivered"]


@pytest.mark.parametrize("name", NAMES)
def test_a_strangers_or_forged_token_changes_nothing(desk, name):
    provider = desk.provider(name)

    forged = desk.token[:-1] + ("a" if desk.token[-1] != "a" else "b")
    for token in (forged, "x", "nonsense " * 20, None):
        assert (
            desk.post(provider, provider.call(provider.bounce(token, **({"ID": token} if name == "postmark" else {})))).status_code == 200
        )
    desk.work()
    assert desk.facts() == [] and desk.suppressed() == []
    assert {(row["state"], row["matched"]) for row in desk.calls()} == {("done", 0)}
    assert {row["reason"] for row in desk.calls()} == {"its token was not made here", "no message of ours is meant"}


@pytest.mark.parametrize("name", ["ses", "sendgrid", "mailgun"])
def test_m02_our_message_id_is_the_second_way(desk, name):
    provider = desk.provider(name)
    desk.post(provider, provider.call(provider.delivery(None, header=desk.header)))
    desk.work()
    assert desk.facts() == ["delivered"]
    (fact,) = desk.rows("select detail from delivery_event")
    assert fact["detail"]["detail"]["id"], "the provider's own id of the message is kept"


def test_m02_ses_gives_our_token_back_as_a_tag_too(desk):
    provider = desk.provider("ses")
    event = provider.delivery(None)
    event["mail"]["tags"]["nurture_send"] = [desk.token]
    desk.post(provider, provider.call(event))
    desk.work()
    assert desk.facts() == ["delivered"]


@pytest.mark.parametrize("name", NAMES)
def test_garbage_gets_a_clear_answer_and_never_500(desk, name):
    provider = desk.provider(name)
    deep, wide = b"[" * 100_000, b'{"a":' * 300 + b"1" + b"}" * 300
    bodies = [b"", b"null", b"0", b'"x"', b"[]", b"{}", b"\xff\xfe", b"\x00", deep, wide, b'{"a": NaN}', b'{"Type": ["Notification"]}']
    bodies += [b'{"signature": {"token": {}}}', b'{"RecordType": 7}', b"[1, null, []]", b'{"event-data": "\\u0000"}', b"<xml/>", b"a=b"]
    for body in bodies:
        for signed in (True, False):
            headers = {}
            if signed and name == "sendgrid":
                _, headers = provider.signed(body)
            elif signed and name == "postmark":
                _, headers = provider.call({})
            answer = desk.post(provider, (body, headers))
            assert answer.status_code in ((200, 400) if headers else (401,)), (body[:20], answer.status_code)
    huge = b"{" + b" " * (1024 * 1024) + b"}"
    assert desk.post(provider, (huge, {})).status_code == 413
    desk.work()
    assert desk.facts() == [] and not [row for row in desk.calls() if row["state"] == "waiting"]


@pytest.mark.parametrize("name", NAMES)
def test_an_address_is_random_and_of_one_provider(desk, name):
    provider = desk.provider(name)
    call = provider.call(provider.bounce(desk.token))
    assert len(provider.hook.id) == 32
    for path in (f"/hooks/{name}/x", f"/hooks/{name}/%00", f"/hooks/resend/{provider.hook.id}", f"/hooks/{name}/{provider.hook.id[:-1]}"):
        assert desk.post(provider, call, path).status_code == 404
    other = NAMES[NAMES.index(name) - 1]
    assert desk.post(provider, call, f"/hooks/{other}/{provider.hook.id}").status_code == 404
    assert desk.client.get(provider.path).status_code == 405
    with desk.engine.begin() as conn:
        remove_hook(conn, provider.hook.id)
    assert desk.post(provider, call).status_code == 404 and desk.calls() == []


@pytest.mark.parametrize("name", NAMES)
def test_w06_when_our_database_is_away_the_answer_is_503(desk, name, postgres, database):
    provider = desk.provider(name)
    call = provider.call(provider.bounce(desk.token))
    with psycopg.connect(dsn(postgres.url("postgres")), autocommit=True) as admin:
        place = database.partition("?")[0].rpartition("/")[2]
        admin.execute(f"alter database {place} allow_connections false")
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", [place])
        try:
            answer = desk.post(provider, call)
            assert answer.status_code == 503 and answer.headers["Retry-After"]
        finally:
            admin.execute(f"alter database {place} allow_connections true")
    assert desk.post(provider, call).json == {"taken": 1, "known": 0}


def test_a_bell_is_rung_and_the_tick_finds_what_waits(desk):
    provider = desk.provider("mailgun")
    with desk.engine.connect() as conn:
        assert not find_due(conn, NOW).hooks
    desk.post(provider, provider.call(provider.delivery(desk.token)))
    with desk.engine.connect() as conn:
        assert find_due(conn, NOW).hooks
    desk.work()
    with desk.engine.connect() as conn:
        assert not find_due(conn, NOW).hooks


# Opens and clicks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_opens_and_clicks_are_facts_by_class_and_opens_never_trigger(desk, name):
    provider = desk.provider(name)
    agent = BROWSER["User-Agent"]
    desk.post(provider, provider.call(provider.opened(desk.token, agent)))
    desk.post(provider, provider.call(provider.clicked(desk.token, URLS[0], agent)))
    desk.work()
    settle_due(desk.engine, lambda: datetime.now(UTC) + timedelta(minutes=2), Bells(None))
    verdicts = {row["kind"]: row["verdict"] for row in desk.rows("select kind, verdict from hit")}
    assert verdicts == {"open": "human", "click": "human"}
    assert len(desk.raised("nurture.email_clicked")) == 1
    assert {row["name"] for row in desk.rows("select name from event")} == {"nurture.email_clicked"}


@pytest.mark.parametrize("name", ["sendgrid", "mailgun"])
def test_t04_a_providers_word_that_a_machine_opened_wins(desk, name):
    provider = desk.provider(name)
    desk.post(provider, provider.call(provider.opened(desk.token, BROWSER["User-Agent"], machine=True)))
    desk.work()
    settle_due(desk.engine, lambda: datetime.now(UTC) + timedelta(minutes=2), Bells(None))
    assert [row["verdict"] for row in desk.rows("select verdict from hit")] == ["machine"]
    assert "opened" not in desk.facts()


# SES through SNS -------------------------------------------------------------------------------------------------------


def test_w10_a_foreign_topic_is_refused_before_anything_is_fetched(desk, cloud):
    provider = desk.provider("ses")
    other = TOPIC.replace("123456789012", "210987654321")
    for call in (
        provider.call(provider.bounce(desk.token), topic=other),
        provider.confirmation(f"{cloud.url}/?Action=ConfirmSubscription", topic=other),
        provider.call("bye", "UnsubscribeConfirmation", topic=other, Token="t", SubscribeURL=cloud.url),
    ):
        answer = desk.post(provider, call)
        assert answer.status_code == 403 and "another topic" in answer.json["detail"]
    assert desk.work() == 0 and cloud.asked == [] and desk.suppressed() == []


def test_w10_the_certificate_is_fetched_once(desk, cloud):
    provider = desk.provider("ses")
    for _ in range(5):
        assert desk.post(provider, provider.call(provider.delivery(desk.token))).status_code == 200
    assert cloud.asked == [CERTIFICATE]


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com.evil.test/SimpleNotificationService-1.pem",
        "https://evil.test/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com@evil.test/SimpleNotificationService-1.pem",
        "https://user@sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com/other.pem",
        "https://sns.eu-west-1.amazonaws.com/a/SimpleNotificationService-1.pem",
        "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem?x=y",
        "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-../x.pem",
        "https://s3.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
        "https://sns.eu_west.amazonaws.com/SimpleNotificationService-1.pem",
        "https://bucket.sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem",
        "https://127.0.0.1/SimpleNotificationService-1.pem",
        "https://[::1/SimpleNotificationService-1.pem",
        "file:///etc/passwd",
        "",
    ],
)
def test_w10_a_certificate_from_elsewhere_is_not_fetched(desk, cloud, url):
    """Also where NURTURE_ALLOW_HOSTS allows the place for other ends: without a stand-in only Amazon's own will do."""
    provider = desk.provider("ses", stand_in=None)
    for place in (url, cloud.url + CERTIFICATE):
        answer = desk.post(provider, provider.call(provider.bounce(desk.token), SigningCertURL=place))
        assert answer.status_code == 401, answer.json
    assert cloud.asked == [] and desk.work() == 0


def test_w10_amazons_own_hosts_may_be_asked_and_nothing_inside():
    for url in ("https://sns.eu-west-1.amazonaws.com", "https://sns.cn-north-1.amazonaws.com.cn"):
        sns.check_place(f"{url}/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem", None, sns._CERTIFICATE)
    inside = sns.Certificates(Caller(resolve=lambda *_: ["10.0.0.7"]))
    with pytest.raises(CallError) as caught:
        inside.key("https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem", None, NOW)
    assert caught.value.outcome == "refused"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((302, {"Location": "https://127.0.0.1/"}, b""), 401),
        ((404, {}, b""), 401),
        ((200, {}, b"x" * (64 * 1024 + 1)), 401),
        ((200, {}, b"no certificate"), 401),
        ((200, {}, certificate_of(rsa.generate_private_key(65537, 2048))), 401),
        ((200, {}, certificate_of(rsa.generate_private_key(65537, 1024))), 401),
        ((200, {}, certificate_of(ec.generate_private_key(ec.SECP256R1()))), 401),
        ((500, {}, b""), 503),
        ((429, {}, b""), 503),
        ("close", 503),
        ((200, {"Content-Length": "9000"}, b"-----BEGIN"), 503),
    ],
)
def test_w10_what_is_no_certificate_of_theirs_is_refused_and_our_trouble_is_503(desk, cloud, answer, status):
    provider = desk.provider("ses")
    good = cloud.serves[CERTIFICATE]
    cloud.serves[CERTIFICATE] = answer
    call = provider.call(provider.bounce(desk.token))
    assert desk.post(provider, call).status_code == status
    assert desk.suppressed() == [] and len(desk.calls()) == (status == 401)
    if status == 503:
        cloud.serves[CERTIFICATE] = good
        assert desk.post(provider, call).status_code == 200, "it comes again, and then it is taken"


def test_w10_an_old_certificate_is_refused(desk, cloud):
    cloud.serves[CERTIFICATE] = (200, {}, certificate_of(sns_key()[0], days=(-9, -1)))
    provider = desk.provider("ses")
    answer = desk.post(provider, provider.call(provider.bounce(desk.token)))
    assert answer.status_code == 401 and "not valid at this time" in answer.json["detail"]


def test_w10_version_1_is_taken_only_where_it_is_allowed(desk):
    strict, lenient = desk.provider("ses"), desk.provider("ses", versions=[1, 2])
    strict.version = lenient.version = "1"
    answer = desk.post(strict, strict.call(strict.bounce(desk.token)))
    assert answer.status_code == 401 and "SignatureVersion to 2" in answer.json["detail"]
    assert desk.post(lenient, lenient.call(lenient.bounce(desk.token), Subject="Amazon SES")).status_code == 200
    lenient.version = "2"
    assert desk.post(lenient, lenient.call(lenient.delivery(desk.token))).status_code == 200


def test_w10_a_subscription_is_confirmed_while_it_is_expected(desk, cloud):
    provider = desk.provider("ses")
    cloud.serves["/"] = (200, {}, b"<ConfirmSubscriptionResponse/>")
    url = f"{cloud.url}/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=t0k"
    assert desk.post(provider, provider.confirmation(url)).status_code == 200
    assert [path for path in cloud.asked if path != CERTIFICATE] == [], "not before the answer"
    desk.work()
    assert cloud.asked[1:] == [url.removeprefix(cloud.url)]
    assert (desk.calls()[0]["state"], desk.calls()[0]["reason"]) == ("done", "the subscription was confirmed")


def test_w10_a_subscription_that_nobody_expects_is_not_confirmed_until_somebody_does(desk, cloud):
    provider = desk.provider("ses")
    cloud.serves["/"] = (200, {}, b"")
    desk.post(provider, provider.confirmation(f"{cloud.url}/?a=b"))
    late = NOW + timedelta(hours=1, seconds=1)
    desk.work(late)
    assert desk.calls()[0]["state"] == "failed" and "nurture hooks confirm" in desk.calls()[0]["reason"]
    assert cloud.asked == [CERTIFICATE]
    with desk.engine.begin() as conn:
        assert open_confirmation(conn, provider.hook.id, late) == late + timedelta(hours=1)
    desk.work(late)
    assert desk.calls()[0]["state"] == "done" and cloud.asked == [CERTIFICATE, "/?a=b"]


@pytest.mark.parametrize(
    "url", ["https://evil.test/?Action=ConfirmSubscription", "http://sns.eu-west-1.amazonaws.com/", "https://127.0.0.1/"]
)
def test_w10_a_confirmation_elsewhere_is_refused(desk, cloud, url):
    provider = desk.provider("ses")
    assert desk.post(provider, provider.confirmation(url)).status_code == 401
    assert desk.work() == 0


def test_a_confirmation_that_amazon_refuses_fails_and_can_be_retried(desk, cloud):
    provider = desk.provider("ses")
    cloud.serves["/"] = (403, {}, b"")
    desk.post(provider, provider.confirmation(f"{cloud.url}/?a=b"))
    desk.work()
    assert desk.calls()[0]["state"] == "failed" and "403" in desk.calls()[0]["reason"]
    cloud.serves["/"] = (200, {}, b"")
    with desk.engine.begin() as conn:
        retry_call(conn, desk.calls()[0]["id"])
    desk.work()
    assert desk.calls()[0]["state"] == "done"


def test_a_subscription_that_ends_is_told_and_not_taken_up_again(desk, cloud):
    provider = desk.provider("ses")
    desk.post(provider, provider.call("bye", "UnsubscribeConfirmation", Token="t", SubscribeURL=f"{cloud.url}/?again"))
    desk.work()
    assert cloud.asked == [CERTIFICATE] and "ended" in desk.calls()[0]["reason"]


def test_what_else_is_published_on_the_topic_is_ignored(desk):
    provider = desk.provider("ses")
    for message in ("Successfully validated SNS topic for Amazon SES event publishing.", "", "[1]", '{"eventType": {}}', "[" * 5000):
        assert desk.post(provider, provider.call(message)).status_code == 200
    desk.work()
    assert {(row["state"], row["reports"]) for row in desk.calls()} == {("done", 0)}


def test_raw_delivery_is_named_as_the_mistake_it_is(desk):
    provider = desk.provider("ses")
    answer = desk.post(provider, (json.dumps(provider.bounce(desk.token)).encode(), {}))
    assert answer.status_code == 401 and "Raw message delivery" in answer.json["detail"]


def test_only_what_is_allowed_can_stand_in_for_amazon(desk, settings):
    for stand_in in (
        "https://127.0.0.1:1",
        "http://127.0.0.1:1",
        "https://evil.test",
        "sns.eu-west-1.amazonaws.com",
        desk.cloud.url + "/x",
    ):
        with pytest.raises(InputError), desk.engine.begin() as conn:
            add_hook(conn, desk.settings, "ses", NOW, topics=[TOPIC], stand_in=stand_in)


# SendGrid, Postmark, Mailgun -----------------------------------------------------------------------------------------


def test_one_call_of_sendgrid_carries_many_events_each_once(desk):
    provider = desk.provider("sendgrid")
    first, second = provider.delivery(desk.token), provider.bounce(desk.token)
    assert desk.post(provider, provider.call([first, second, first, provider.unknown(None)])).json == {"taken": 3, "known": 1}
    assert desk.post(provider, provider.call([second, first])).json == {"taken": 0, "known": 2}
    desk.work()
    assert desk.facts() == ["bounced", "delivered"]


def test_a_resubscription_at_sendgrid_changes_nothing(desk):
    provider = desk.provider("sendgrid")
    desk.post(provider, provider.call([provider.event("group_unsubscribe", desk.token, asm_group_id=7)]))
    desk.post(provider, provider.call([provider.event("group_resubscribe", desk.token, asm_group_id=7)]))
    desk.work()
    assert desk.facts() == ["unsubscribed"] and desk.suppressed() == [(ADDRESS, "unsubscribed")]


def test_postmark_may_use_a_header_instead_of_a_password(desk):
    provider = desk.provider("postmark")
    body, _ = provider.call(provider.delivery(desk.token))
    assert desk.post(provider, (body, {"X-Nurture-Hook": provider.secret})).status_code == 200
    assert desk.post(provider, (body, {"X-Nurture-Hook": provider.secret[:-1]})).status_code == 401
    assert provider.hook.address_with_password("https://mail.example.com") == (
        f"https://nurture:{provider.secret}@mail.example.com/hooks/postmark/{provider.hook.id}"
    )


def test_a_mailgun_token_counts_once_whatever_event_comes_with_it(desk):
    """The signature does not cover the event, so whoever saw one call could send any event under it."""
    provider = desk.provider("mailgun")
    assert desk.post(provider, provider.call(provider.delivery(desk.token), token="t" * 50)).json["taken"] == 1
    assert desk.post(provider, provider.call(provider.bounce(desk.token), token="t" * 50)).json["taken"] == 0
    desk.work()
    assert desk.facts() == ["delivered"]


@pytest.mark.parametrize(("age", "status"), [(-20, 401), (-10, 200), (0, 200), (23 * 60, 200), (24 * 60 + 1, 401), (10**6, 401)])
def test_a_mailgun_signature_is_good_for_24_hours(desk, age, status):
    provider = desk.provider("mailgun")
    assert desk.post(provider, provider.call(provider.delivery(desk.token), age=timedelta(minutes=age))).status_code == status


# What the words mean ---------------------------------------------------------------------------------------------------


def told(name, event):
    provider = PROVIDERS[name]()
    provider.secret = provider.secret or "s" * 43
    body, _ = provider.call(event)
    raw = json.dumps(json.loads(body)[0]) if name == "sendgrid" else body.decode()
    return READERS[name].read(raw, datetime.now(UTC))


def kinds(name, event):
    return [(one.kind, classify(one) if one.kind in ("bounced", "deferred", "rejected") else one.sort) for one in told(name, event)]


def ses_bounce(kind, subtype, status=None, said=None):
    return Ses().bounce(
        "t",
        bounceType=kind,
        bounceSubType=subtype,
        bouncedRecipients=[
            {"emailAddress": ADDRESS, **({"status": status} if status else {}), **({"diagnosticCode": said} if said else {})}
        ],
    )


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (ses_bounce("Permanent", "General", "5.1.1", "smtp; 550 5.1.1 unknown"), [("bounced", "hard")]),
        (ses_bounce("Permanent", "General"), [("bounced", "hard")]),
        (ses_bounce("Permanent", "General", "5.7.1", "smtp; 550 5.7.1 blocked for spam"), [("bounced", "block")]),
        (ses_bounce("Permanent", "General", "5.4.4", "smtp; 550 5.4.4 no host"), [("bounced", "host")]),
        (ses_bounce("Permanent", "NoEmail"), [("bounced", "hard")]),
        (ses_bounce("Permanent", "OnAccountSuppressionList"), [("bounced", "hard")]),
        (ses_bounce("Permanent", "UnsubscribedRecipient"), [("unsubscribed", None)]),
        (ses_bounce("Transient", "MailboxFull", "5.2.2"), [("bounced", "full")]),
        (ses_bounce("Transient", "General", "4.4.7"), [("bounced", "soft")]),
        (ses_bounce("Transient", "ContentRejected"), [("bounced", "block")]),
        (ses_bounce("Undetermined", "Undetermined"), [("bounced", "soft")]),
        (Ses().event("Send", "t", "send"), [("sent", None)]),
        (Ses().event("Reject", "t", "reject", reason="Bad content"), [("rejected", "block")]),
        (Ses().event("Rendering Failure", "t", "failure", errorMessage="x"), [("rejected", "configuration")]),
        (
            Ses().event("DeliveryDelay", "t", "deliveryDelay", delayType="MailboxFull", delayedRecipients=[{"status": "4.2.2"}]),
            [("deferred", "full")],
        ),
        (Ses().event("Complaint", "t", "complaint", complaintFeedbackType="not-spam"), [("not_spam", None)]),
        (Ses().event("Subscription", "t", "subscription", newTopicPreferences={"unsubscribeAll": True}), [("unsubscribed", None)]),
        (
            Ses().event(
                "Subscription", "t", "subscription", newTopicPreferences={"topicSubscriptionStatus": [{"subscriptionStatus": "OptIn"}]}
            ),
            [],
        ),
        ({**Ses().delivery("t"), "eventType": None, "notificationType": "Delivery"}, [("delivered", None)]),
        (Ses().bounce("t", bouncedRecipients=[{"emailAddress": "a@x.test"}, {"emailAddress": "b@x.test"}]), [("bounced", "hard")] * 2),
    ],
)
def test_what_ses_says(event, wanted):
    assert kinds("ses", event) == wanted


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (SendGrid().event("processed", "t"), ("sent", None)),
        (SendGrid().event("deferred", "t", response="421 4.7.0 try later"), ("deferred", "block")),
        (SendGrid().event("deferred", "t", response="450 4.2.1 try later"), ("deferred", "soft")),
        (SendGrid().bounce("t"), ("bounced", "hard")),
        (SendGrid().bounce("t", status="", reason="", bounce_classification="Invalid Address"), ("bounced", "hard")),
        (SendGrid().bounce("t", bounce_classification="Reputation"), ("bounced", "block")),
        (SendGrid().bounce("t", type="blocked"), ("bounced", "block")),
        (SendGrid().bounce("t", status="5.2.2", reason="full"), ("bounced", "full")),
        (SendGrid().event("dropped", "t", reason="Bounced Address"), ("bounced", "hard")),
        (SendGrid().event("dropped", "t", reason="Unsubscribed Address"), ("unsubscribed", None)),
        (SendGrid().event("dropped", "t", reason="Spam Content"), ("rejected", "block")),
        (SendGrid().event("spamreport", "t"), ("complained", None)),
        (SendGrid().event("unsubscribe", "t"), ("unsubscribed", None)),
        (SendGrid().event("account_status_change", "t"), None),
    ],
)
def test_what_sendgrid_says(event, wanted):
    assert kinds("sendgrid", event) == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (Postmark().bounce("t"), ("bounced", "hard")),
        (Postmark().bounce("t", Details=""), ("bounced", "hard")),
        (Postmark().bounce("t", Details="smtp;554 5.7.1 rejected by spamhaus"), ("bounced", "block")),
        (Postmark().bounce("t", Type="SoftBounce"), ("bounced", "soft")),
        (Postmark().bounce("t", Type="Transient"), ("deferred", "soft")),
        (Postmark().bounce("t", Type="SpamNotification"), ("bounced", "block")),
        (Postmark().bounce("t", Type="AutoResponder"), ("replied", "auto_reply")),
        (Postmark().bounce("t", Type="SpamComplaint"), ("complained", None)),
        (Postmark().bounce("t", Type="Subscribe"), None),
        (Postmark().bounce("t", Type="SomethingNew"), None),
        (Postmark().event("SubscriptionChange", "t", SuppressSending=True, SuppressionReason="ManualSuppression"), ("unsubscribed", None)),
        (Postmark().event("SubscriptionChange", "t", SuppressSending=True, SuppressionReason="SpamComplaint"), ("complained", None)),
        (Postmark().event("SubscriptionChange", "t", SuppressSending=True, SuppressionReason="HardBounce"), ("bounced", "hard")),
        (Postmark().event("SubscriptionChange", "t", SuppressSending=False, SuppressionReason=None), None),
    ],
)
def test_what_postmark_says(event, wanted):
    assert kinds("postmark", event) == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (Mailgun().event("accepted", "t"), ("sent", None)),
        (Mailgun().bounce("t"), ("bounced", "hard")),
        (Mailgun().bounce("t", severity="temporary", **{"delivery-status": {"code": 452, "message": "4.2.2 full"}}), ("deferred", "full")),
        (Mailgun().bounce("t", reason="suppress-bounce", **{"delivery-status": {"code": 605, "message": ""}}), ("bounced", "hard")),
        (Mailgun().bounce("t", reason="suppress-complaint"), ("complained", None)),
        (Mailgun().bounce("t", reason="suppress-unsubscribe"), ("unsubscribed", None)),
        (Mailgun().bounce("t", reason="espblock"), ("bounced", "block")),
        (Mailgun().bounce("t", reason="old", **{"delivery-status": {"code": 602, "message": "too old"}}), ("bounced", "soft")),
        (Mailgun().event("rejected", "t", reject={"reason": "Sandbox"}), ("rejected", "soft")),
        (Mailgun().event("unsubscribed", "t"), ("unsubscribed", None)),
        (Mailgun().event("stored", "t"), None),
    ],
)
def test_what_mailgun_says(event, wanted):
    assert kinds("mailgun", event) == ([wanted] if wanted else [])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_reported_has_the_providers_facts(name):
    (one,) = told(name, PROVIDERS[name]().clicked("t0k", "https://x.test/a", "Browser/1"))
    assert (one.kind, one.token, one.link, one.user_agent, one.recipient) == ("clicked", "t0k", "https://x.test/a", "Browser/1", ADDRESS)
    assert one.at.tzinfo and abs(one.at - datetime.now(UTC)) < timedelta(minutes=1)
    assert ADDRESS not in one.key and ADDRESS not in json.dumps(one.detail), "no address but where it belongs"
    (bounced,) = told(name, PROVIDERS[name]().bounce("t0k"))
    assert bounced.status == "5.1.1" and (bounced.code == 550)
    assert bounced.key != one.key


def test_times_are_the_events_own_and_never_in_the_future():
    assert when("2026-03-02T09:00:00.5Z", NOW) == datetime(2026, 3, 2, 9, 0, 0, 500_000, tzinfo=UTC)
    assert when("2026-03-02T09:00:00-05:00", NOW) == datetime(2026, 3, 2, 14, tzinfo=UTC)
    assert when("2019-11-05T16:33:54.9070259Z", NOW) == datetime(2019, 11, 5, 16, 33, 54, 907_025, tzinfo=UTC), "as Postmark writes it"
    assert when(1772442000, NOW) == when("1772442000", NOW) == datetime(2026, 3, 2, 9, tzinfo=UTC)
    for bad in (None, "", "yesterday", [], {}, True, -5, 10**30, float("inf"), "9" * 400, "2999-01-01T00:00:00Z", "1970-01-01T00:00:00Z"):
        assert when(bad, NOW) == NOW


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def mangled(draw, value):
    """`value` with some of its parts replaced by anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(JSON)
    if isinstance(value, dict):
        return {key: mangled(draw, one) for key, one in value.items()}
    return [mangled(draw, one) for one in value] if isinstance(value, list) else value


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_event_makes_reading_raise(data):
    name = data.draw(st.sampled_from(NAMES))
    provider = PROVIDERS[name]()
    whole = [provider.bounce("t"), provider.delivery("t"), provider.complaint("t"), provider.clicked("t", "u", "a"), provider.unknown("t")]
    event = mangled(data.draw, data.draw(st.sampled_from(whole)))
    raw = {
        "ses": {"Type": "Notification", "Message": json.dumps(event)},
        "mailgun": {"event-data": event},
    }.get(name, event)
    for one in READERS[name].read(json.dumps(raw), NOW):
        assert one.at <= NOW and len(one.text) <= 2000 and "\x00" not in one.text
        classify(one)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()), header=st.text(max_size=50))
def test_no_body_makes_verifying_raise_anything_but_a_refusal(body, header):
    names = ("authorization", "x-nurture-hook", "x-twilio-email-event-webhook-signature", "x-twilio-email-event-webhook-timestamp")
    call = Call(body, dict.fromkeys(names, header), NOW)
    for provider in (SendGrid(), Mailgun(), Postmark(), Ses()):
        secrets = tuple(hooks.Secret(one) for one in (provider.secret or "s" * 40,))
        known = hooks.Hook("x", provider.name, None, {"topics": [TOPIC], "versions": [2]}, secrets, None, NOW)
        with pytest.raises(Refused) as caught:
            hooks.verify(known, call, sns.Certificates(Caller()))
        assert caught.value.status == 401


# Secrets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sendgrid", "postmark", "mailgun"])
def test_w05_two_secrets_count_during_a_rotation_and_are_sealed(desk, name):
    old, new = desk.provider(name), PROVIDERS[name]()
    new.secret = {"mailgun": "key-" + "f" * 32}.get(name, new.secret)
    with desk.engine.begin() as conn:
        made = rotate_hook(conn, desk.settings, old.hook.id, NOW, secret=new.secret)
        new.secret, new.hook = made.secrets[0].secret, made
    for provider in (old, new):
        assert desk.post(provider, provider.call(provider.delivery(desk.token))).status_code == 200
    third = PROVIDERS[name]()
    third.secret = {"mailgun": "key-" + "e" * 32}.get(name, third.secret)
    with desk.engine.begin() as conn:
        made = rotate_hook(conn, desk.settings, old.hook.id, NOW, secret=third.secret, keep=timedelta(0))
        assert len(made.secrets) == 2 and len(made.active(NOW)) == 1
    for provider in (old, new):
        assert desk.post(provider, provider.call(provider.delivery(desk.token))).status_code == 401
    stored = json.dumps(desk.rows("select * from hook"), default=str)
    assert not [one for one in (old.secret, new.secret, made.secrets[0].secret) if one in stored]


def test_a_hook_sealed_under_another_key_is_503_until_it_is_rotated(desk):
    provider = desk.provider("mailgun")
    moved = replace(desk.settings, secret_key="another secret key of at least 32 characters")
    app = create_app(moved)
    try:
        body, headers = provider.call(provider.delivery(desk.token))
        assert app.test_client().post(provider.path, data=body, headers=headers).status_code == 503
        with desk.engine.begin() as conn:
            with pytest.raises(Sealed, match="nurture hooks rotate"):
                find_hook(conn, moved, provider.hook.id)
            assert len(rotate_hook(conn, moved, provider.hook.id, NOW, secret=provider.secret).secrets) == 1
        assert app.test_client().post(provider.path, data=body, headers=headers).status_code == 200
    finally:
        app.extensions["nurture"].engine.dispose()


@pytest.mark.parametrize(
    ("provider", "options", "field"),
    [
        ("resend", {}, "provider"),
        ("ses", {}, "topic"),
        ("ses", {"topics": ["arn:aws:sqs:eu-west-1:1:x"]}, "topic"),
        ("ses", {"topics": [TOPIC], "secret": "x"}, "secret"),
        ("ses", {"topics": [TOPIC], "versions": [3]}, "signature-version"),
        ("sendgrid", {}, "secret"),
        ("sendgrid", {"secret": "AAAA"}, "secret"),
        ("sendgrid", {"secret": "é"}, "secret"),
        ("mailgun", {"secret": "short"}, "secret"),
        ("mailgun", {"secret": Mailgun.secret, "topics": [TOPIC]}, "topic"),
        ("postmark", {"secret": "with space and so on"}, "secret"),
        ("postmark", {"transport": "No Name"}, "transport"),
    ],
)
def test_what_cannot_be_a_hook_is_named(desk, provider, options, field):
    with pytest.raises(InputError) as caught, desk.engine.begin() as conn:
        add_hook(conn, desk.settings, provider, NOW, **options)
    assert caught.value.field == field


# What goes wrong -------------------------------------------------------------------------------------------------------


def test_a_poisoned_call_fails_alone_and_can_be_retried(desk, monkeypatch):
    provider = desk.provider("sendgrid")
    desk.post(provider, provider.call([provider.delivery(desk.token), provider.bounce(desk.token)]))
    raw = desk.calls()[0]["raw"]
    with desk.engine.begin() as conn:
        conn.execute(text("update hook_call set raw = 'no json' where id = (select min(id) from hook_call)"))
    assert desk.work() == 2
    failed, done = desk.calls()
    assert (failed["state"], done["state"]) == ("failed", "done") and "not JSON" in failed["reason"]
    assert desk.facts() == ["bounced"]
    with desk.engine.begin() as conn:
        conn.execute(text("update hook_call set raw = :raw where id = :id"), {"raw": raw, "id": failed["id"]})
        retry_call(conn, failed["id"])
        with pytest.raises(NotFound):
            retry_call(conn, 10**9)
    desk.work()
    assert desk.facts() == ["bounced", "delivered"]


def test_a_call_that_makes_hearing_raise_fails_alone(desk):
    """A trigger of the database plays the bug: it refuses one kind of fact."""
    provider = desk.provider("sendgrid")
    with desk.engine.begin() as conn:
        conn.execute(text("alter table delivery_event add constraint no_delivered check (kind <> 'delivered')"))
    desk.post(provider, provider.call([provider.delivery(desk.token), provider.bounce(desk.token), provider.complaint(desk.token)]))
    assert desk.work() == 3
    assert [row["state"] for row in desk.calls()] == ["failed", "done", "done"]
    assert "could not be heard" in desk.calls()[0]["reason"]
    assert desk.facts() == ["bounced", "complained"]


def test_refused_calls_cannot_fill_the_disk(desk):
    provider = desk.provider("postmark")
    with desk.engine.begin() as conn:
        for number in range(230):
            hooks.note_refusal(conn, provider.hook, Call(b"%d" % number + b"x" * 100_000, {}, NOW), Refused(401, "is wrong"))
            hooks.note_refusal(conn, provider.hook, Call(b"%d" % number + b"x" * 100_000, {}, NOW), Refused(401, "is wrong"))
    kept = desk.calls()
    assert len(kept) == hooks.REFUSED_KEPT and max(len(row["raw"]) for row in kept) == hooks.REFUSED_BYTES
    assert kept[-1]["raw"].startswith("229x")


def test_a_batch_fits_into_memory(desk, monkeypatch):
    provider = desk.provider("sendgrid")
    monkeypatch.setattr(hooks, "BATCH_BYTES", 1000)
    desk.post(provider, provider.call([provider.event("delivered", desk.token, pad="x" * 900) for _ in range(20)]))
    seen = []
    listen(desk.engine, "commit", lambda conn: seen.append(1))
    assert desk.work() == 20
    assert len(seen) >= 10, "no more than fits at once"


def test_a_call_goes_with_its_message(desk):
    """Erasing a contact's messages takes what providers said of them along (P-10)."""
    provider = desk.provider("mailgun")
    desk.post(provider, provider.call(provider.bounce(desk.token)))
    desk.work()
    with desk.engine.begin() as conn:
        conn.execute(text("delete from message"))
    assert desk.calls() == []


# Commands and pages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def nurture(desk, database, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("NURTURE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NURTURE_BASE_URL", "http://127.0.0.1:8000")

    def call(*words, said=None):
        monkeypatch.setattr("sys.stdin", io.StringIO(said or ""))
        capsys.readouterr()  # what the web logged before
        code = cli.main(list(words))
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_the_commands_of_hooks(desk, nurture):
    code, _, said = nurture("hooks", "add", "postmark", "--transport", "bulk")
    assert code == 2 and "there is no transport bulk" in said
    assert nurture("transports", "add", "bulk", "smtp://127.0.0.1:2525")[0] == 0
    code, out, _ = nurture("hooks", "add", "postmark", "--transport", "bulk", "--json")
    made = json.loads(out)
    assert code == 0 and made["address"] == f"http://127.0.0.1:8000/hooks/postmark/{made['id']}" and made["transport"] == "bulk"
    assert made["secret"] in made["address_with_password"]
    code, out, _ = nurture("hooks", "add", "mailgun", "--secret", "-", said=Mailgun.secret + "\n")
    assert code == 0 and Mailgun.secret not in out and "where no provider can reach it" in out
    code, out, _ = nurture("hooks", "add", "ses", "--topic", TOPIC, "--signature-version", "1", "--json")
    ses = json.loads(out)
    assert ses["topics"] == [TOPIC] and ses["confirm_until"] and "secret" not in ses
    assert nurture("hooks", "add", "ses")[0] == 2 and "ses, sendgrid, postmark, mailgun" in nurture("hooks", "add", "resend")[2]
    assert nurture("hooks", "list", "--json")[1].count('"address"') == 3
    listed = {one["provider"]: one for one in json.loads(nurture("hooks", "list", "--json")[1])}
    assert listed["ses"]["signature_versions"] == [1, 2] and listed["ses"]["confirms"] and listed["postmark"]["secrets"] == 1
    assert made["secret"] not in nurture("hooks", "list", "--json")[1]

    provider = Postmark()
    provider.hook, provider.secret = hooks.Hook(made["id"], "postmark", None, {}, (), None, NOW), made["secret"]
    desk.post(provider, provider.call(provider.bounce(desk.token)))
    desk.post(provider, provider.call(provider.bounce(desk.token), password="wrong" * 5))
    desk.work()
    refused, heard = json.loads(nurture("hooks", "received", "--json")[1])
    assert (heard["state"], heard["matched"], heard["message"]) == ("done", 1, str(desk.message))
    assert (refused["verified"], refused["reason"]) == (False, "the password is wrong")
    assert json.loads(nurture("hooks", "received", "--state", "refused", "--json")[1]) == [refused]
    assert json.loads(nurture("hooks", "received", "--hook", ses["id"], "--json")[1]) == []
    assert json.loads(json.loads(nurture("hooks", "received", str(heard["id"]), "--json")[1])["raw"])["Type"] == "HardBounce"
    assert "1 of 1 matched" in nurture("hooks", "received")[1] and "HardBounce" in nurture("hooks", "received", str(heard["id"]))[1]
    assert nurture("hooks", "received", "999")[0] == 2
    assert nurture("hooks", "retry", str(refused["id"]))[0] == 2
    assert nurture("hooks", "retry", str(heard["id"]))[0] == 0 and desk.calls()[0]["state"] == "waiting"

    code, out, _ = nurture("hooks", "rotate", made["id"], "--keep", "2d", "--json")
    turned = json.loads(out)
    assert turned["secret"] != made["secret"] and turned["old_until"]
    assert desk.post(provider, provider.call(provider.delivery(desk.token))).status_code == 200
    assert nurture("hooks", "rotate", made["id"], "--keep", "soon")[0] == 2
    assert nurture("hooks", "rotate", ses["id"])[0] == 2
    assert nurture("hooks", "confirm", ses["id"])[0] == 0 and nurture("hooks", "confirm", made["id"])[0] == 2
    assert nurture("hooks", "remove", made["id"])[0] == 0 and nurture("hooks", "remove", made["id"])[0] == 2
    assert len(json.loads(nurture("hooks", "list", "--json")[1])) == 2


def test_the_doctor_speaks_of_refused_calls(desk):
    def found(at=None):
        return [one for one in doctor.examine(desk.settings, desk.engine, at or datetime.now(UTC)) if one.what == "provider webhooks"]

    assert [one.good for one in found()] == [True]
    provider = desk.provider("postmark")
    desk.post(provider, provider.call(provider.delivery(desk.token)))
    assert "Do the workers run?" in found(datetime.now(UTC) + timedelta(minutes=6))[0].seen
    desk.work()
    desk.post(provider, (b"{}", {}))
    assert [one.good for one in found()] == [True, False] and "1 refused and 0 failed" in found()[1].seen
    assert re.search(r"^nurture_oldest_provider_webhook_age_seconds 0\.0$", desk.client.get("/metrics").text, re.M)


def test_the_pages_show_what_came_and_read_it_again(desk, client):
    assert client.get(link(desk.engine)).status_code == 303

    def page(path):
        answer = client.get(path)
        assert answer.status_code == 200
        found = Page(answer.get_data(as_text=True))
        assert not found.problems
        return found

    assert "Nothing was told yet." in page("/console/hooks").words
    provider, other = desk.provider("sendgrid", transport="default"), desk.provider("ses")
    hostile = '"><script>alert(1)</script>'
    desk.post(
        provider, provider.call([provider.bounce(desk.token), provider.bounce("x"), provider.unknown(None), provider.event(hostile, None)])
    )
    desk.post(provider, (hostile.encode(), {}))
    desk.post(other, other.call(other.delivery(desk.token)))
    assert "Waiting" in page("/console/hooks?state=waiting").words
    desk.work()
    shown = page("/console/hooks")
    for words in ("Matched", "Unmatched", "Nothing to hear", "Refused", "transport default", TOPIC, "Confirms subscriptions", "1 refused"):
        assert words in shown.words, words
    assert not shown.of("script") and hostile in shown.words
    assert "Nothing of the kind." in page("/console/hooks?state=failed").words
    assert client.get("/console/hooks?state=lost").status_code == 400
    ids = {(row["kind"], row["state"], row["matched"]): row["id"] for row in desk.calls()}
    heard, refused = ids["bounce", "done", 1], ids["", "refused", None]
    assert (
        "5.1.1" in page(f"/console/hooks/{heard}").words
        and f"/console/messages/{desk.message}" in client.get(f"/console/hooks/{heard}").text
    )
    assert "Read it once more" not in page(f"/console/hooks/{refused}").words
    assert '"eventType": "Delivery"' in page(f"/console/hooks/{max(ids.values())}").words, "what SNS packs is unpacked"
    assert client.get("/console/hooks/99999999999999999999").status_code == 404
    token = token_of(client)
    assert client.post(f"/console/hooks/{heard}").status_code == 400, "no forged form"
    answer = client.post(f"/console/hooks/{heard}", data={"csrf_token": token})
    assert answer.status_code == 303 and answer.headers["Location"].endswith(f"/console/hooks/{heard}")
    assert client.post(f"/console/hooks/{refused}", data={"csrf_token": token}).status_code == 400
    assert client.post("/console/hooks/999", data={"csrf_token": token}).status_code == 404
    assert desk.work() == 1 and desk.facts() == ["bounced", "delivered"]


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_from_the_providers_call_to_the_closed_address(tmp_path):
    """Real processes: the mail of the outbox bounces, says Mailgun over HTTP, and a worker closes the address at once."""
    engine = Engine(tmp_path / "home")
    try:
        engine.ready()
        base = f"http://127.0.0.1:{engine.port}"

        def nurture(*words):
            words = command(*words, "--home", engine.home, "--json")
            done = subprocess.run(words, env=environment({}), capture_output=True, text=True, check=True)
            return json.loads(done.stdout)

        def fetch(path, body=None, headers=None):
            with urlopen(Request(base + path, body, headers or {}), timeout=10) as answer:
                return json.load(answer)

        about = {"userId": "ada", "groupId": "acorn", "context": {"groupId": "acorn"}}
        batch = [
            {"type": "group", "traits": {"name": "Acorn Ltd", "touch": "smb"}, **about},
            {"type": "identify", "traits": {"email": ADDRESS, "first_name": "Ada", "roles": ["admin"]}, **about},
            {"type": "track", "event": "workspace_created", **about},
        ]
        key = nurture("keys", "create", "product")["key"]
        basic = {"Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode(), "Content-Type": "application/json"}
        assert fetch("/v1/batch", json.dumps({"batch": batch}).encode(), basic) == {"success": True}
        mail = eventually(lambda: fetch("/dev/outbox.json"), 30)[0]
        header = dict(mail["headers"])["Message-ID"]

        provider = Mailgun()
        made = nurture("hooks", "add", "mailgun", "--secret", provider.secret)
        provider.hook = hooks.Hook(made["id"], "mailgun", None, {}, (), None, NOW)
        body, headers = provider.call(provider.bounce(None, header=header))
        assert fetch(provider.path, body, headers) == {"taken": 1, "known": 0}
        began = time.monotonic()
        eventually(lambda: engine.query("select count(*) from suppression where reason = 'bounced'"), 20)
        assert time.monotonic() - began < 10
        assert [one["matched"] for one in nurture("hooks", "received")] == [1]
    finally:
        engine.close()
