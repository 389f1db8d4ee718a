"""Hearing: reports become facts once, in any order, and what follows from them is done (I-01, W-03, 3.2, S-05)."""

import random
import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from cast_listening import URLS, add_account, add_contact, add_message, publish
from conftest import NOW
from sqlalchemy import event, text

from app.flow import outcome, respond
from app.flow.claims import claim
from app.flow.hear import FORGED, STRANGER, UNSENT, hear
from app.flow.history import of_database
from app.flow.track import record_hit, settle_due
from app.flow.world import Letter, Reply
from app.models import consent, message
from app.queue import Bells
from app.rules.delivery import Ending
from app.rules.reports import Report
from app.rules.signals import Request

SENT = NOW - timedelta(hours=1)
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"


class Stage:
    """One contact of one account, and the messages that were sent to her."""

    def __init__(self, engine):
        self.engine = engine
        with engine.begin() as conn:
            self.cast = publish(conn)
            self.account = add_account(conn, owner_name="Olga", owner_email="olga@csm.test")
            self.contact = add_contact(conn, self.account)
        self.links = self.cast.links

    def letter(self, sent_at=SENT, contact=None, **values):
        with self.engine.begin() as conn:
            made = add_message(conn, self.cast, self.account, contact or self.contact, sent_at=sent_at, **values)
            conn.execute(message.update().where(message.c.id == made).values(message_header=f"<{made.hex}@acme.example>"))
            return made

    def report(self, letter, kind="bounced", at=NOW, key="1", **values):
        return Report(kind, at, key, token=self.links.short_token(letter), **values)

    def hear(self, *reports, now=NOW, source="mail"):
        with self.engine.begin() as conn:
            return hear(conn, reports, source, now)

    def rows(self, query, **values):
        with self.engine.connect() as conn:
            return [tuple(row) for row in conn.execute(text(query), values)]

    def suppressed(self):
        return self.rows("select person, scope, reason from suppression where lifted_at is null order by id")

    def facts(self):
        return self.rows("select kind, key from delivery_event order by id")

    def events(self):
        return self.rows("select name from event where source_id = 0 order by id")

    def everything(self):
        """All that hearing may write, without the ids that the database counts."""
        return {
            "facts": self.rows("select message_id, kind, at, detail, key from delivery_event order by 1, 2, 5"),
            "closed": self.rows("select person, scope, reason from suppression order by 1, 2"),
            "consent": self.rows("select person, purpose, granted from consent order by 1, 2"),
            "ledger": self.rows("select message_id, gate, verdict, reason from decision order by 1, 4"),
            "events": self.rows("select message_id, name, occurred_at from event order by 1"),
            "alerts": self.rows("select id, step_id, payload ->> 'text' from effect order by 1"),
            "states": self.rows("select id, state from message order by 1"),
            "hits": self.rows("select message_id, kind, link, at, verdict from hit order by 1, 2, 3, 4"),
        }


@pytest.fixture
def stage(engine):
    return Stage(engine)


# Which message ---------------------------------------------------------------------------------------------------------


def test_i01_a_message_is_known_by_its_token_its_header_or_its_id(stage):
    letter = stage.letter()
    for number, named in enumerate(
        (
            {"token": stage.links.short_token(letter)},
            {"token": stage.links.short_token(letter).upper()},
            {"token": stage.links.mailbox(letter, "bounce", "bounce.example.com")},
            {"token": stage.links.mailbox(letter, "reply", "bounce.example.com").partition("@")[0]},
            {"token": str(letter)},
            {"message_header": f"<{letter.hex}@acme.example>"},
            {"message_header": f"{letter.hex.upper()}@ACME.example"},
        )
    ):
        heard = stage.hear(Report("delivered", NOW, str(number), **named))
        assert [(one.message, one.problem, one.fresh) for one in heard.findings] == [(letter, None, True)], named


def test_i01_what_is_not_ours_changes_nothing(stage):
    letter = stage.letter()
    good = stage.links.short_token(letter)
    forged = good[:-1] + ("a" if good[-1] != "a" else "b")
    before = stage.everything()
    cases = [
        ({"token": forged}, FORGED),
        ({"token": f"b+{forged}", "message_header": f"<{letter.hex}@acme.example>"}, FORGED),
        ({"token": f"r+{good}"}, FORGED),
        ({"token": "b+x\x00"}, FORGED),
        ({"token": stage.links.short_token(uuid4())}, STRANGER),
        ({"token": str(uuid4())}, STRANGER),
        ({"message_header": f"<{letter.hex}@other.example>"}, STRANGER),
        ({"message_header": "<CA+1234@mail.gmail.com>"}, STRANGER),
        ({"recipient": "ada@example.org"}, STRANGER),
        ({}, STRANGER),
    ]
    reports = [Report("bounced", NOW, "1", status="5.1.1", **{"recipient": "ada@example.org", **named}) for named, _ in cases]
    heard = stage.hear(*reports)
    assert [(one.message, one.problem) for one in heard.findings] == [(None, problem) for _, problem in cases]
    assert len(heard.unmatched) == len(cases) and heard.fresh == 0
    assert stage.everything() == before


def test_a_message_that_never_went_out_cannot_come_back(stage):
    letter = stage.letter(state="due", dot_at=None, settled_at=None)
    assert stage.hear(stage.report(letter, status="5.1.1")).findings[0].problem == UNSENT
    assert stage.suppressed() == []


# Bounces ---------------------------------------------------------------------------------------------------------------


def test_a_hard_bounce_closes_the_address_that_it_went_to(stage):
    letter = stage.letter()
    with stage.engine.begin() as conn:
        conn.execute(text("update contact set person = 'new@example.org', address = 'new@example.org'"))
    heard = stage.hear(stage.report(letter, status="5.1.1", code=550, text="550 5.1.1 User unknown", recipient="ada@forwarded.example"))
    assert heard.fresh == 1 and heard.partitions
    assert stage.suppressed() == [("ada@example.org", "bounced", "bounced")]
    ((detail,),) = stage.rows("select detail from delivery_event")
    assert detail["sort"] == "hard" and detail["source"] == "mail" and detail["recipient"] == "ada@forwarded.example"
    assert stage.rows("select gate, verdict, reason, evidence ->> 'sort' from decision") == [("send", "no", "bounced", "hard")]
    assert stage.events() == [("nurture.email_bounced",)]


@pytest.mark.parametrize("said", [{"status": "5.7.1"}, {"status": "5.1.8"}, {"sort": "block"}, {"status": "5.2.2"}, {"status": "4.4.7"}])
def test_one_bounce_of_another_class_closes_nothing(stage, said):
    assert stage.hear(stage.report(stage.letter(), **said)).fresh == 1
    assert stage.suppressed() == []


def test_a_block_never_counts_against_the_contact(stage):
    for day in range(0, 40, 2):
        letter = stage.letter(NOW + timedelta(days=day))
        stage.hear(stage.report(letter, at=NOW + timedelta(days=day, hours=1), status="5.7.1", text="spam"), now=NOW + timedelta(days=41))
    assert stage.suppressed() == []


def test_a_host_that_is_missing_twice_a_day_apart(stage):
    letters = [stage.letter(NOW + timedelta(days=day)) for day in (0, 0, 2)]
    for letter, hours in zip(letters, (1, 2, 50), strict=True):
        assert stage.suppressed() == []
        stage.hear(stage.report(letter, at=NOW + timedelta(hours=hours), status="5.4.4"), now=NOW + timedelta(hours=hours))
    assert stage.suppressed() == [("ada@example.org", "bounced", "bounced")]


def softly(stage, count=5, every=4):
    """Mail to Ada that comes back for now, one every few days."""
    letters = [stage.letter(NOW + timedelta(days=every * number)) for number in range(count)]
    return letters, [
        stage.report(letter, at=NOW + timedelta(days=every * number, hours=1), status="4.4.7") for number, letter in enumerate(letters)
    ]


def test_five_soft_results_over_two_weeks_close_the_address(stage):
    letters, reports = softly(stage)
    stage.hear(*reports[:-1], now=NOW + timedelta(days=60))
    assert stage.suppressed() == []
    stage.hear(reports[-1], now=NOW + timedelta(days=60))
    assert stage.suppressed() == [("ada@example.org", "bounced", "soft_limit")]
    with stage.engine.connect() as conn:
        evidence = conn.execute(text("select evidence from suppression")).scalar_one()
        assert evidence["messages"] == [str(one) for one in letters]
        # The page of a link says what it says of every address that came back.
        assert respond.choices(conn, respond.find_message(conn, letters[0]), NOW + timedelta(days=60)).barred == "soft_limit"


@pytest.mark.parametrize("good", ["delivered", "clicked", "replied"])
def test_anything_good_in_between_starts_the_count_anew(stage, good):
    _, reports = softly(stage)
    between = stage.letter(NOW + timedelta(days=9))
    link = {"link": URLS[0], "user_agent": BROWSER} if good == "clicked" else {}
    stage.hear(stage.report(between, good, NOW + timedelta(days=9, hours=2), **link), now=NOW + timedelta(days=9, hours=2))
    settle_due(stage.engine, lambda: NOW + timedelta(days=10), Bells(None))
    stage.hear(*reports, now=NOW + timedelta(days=60))
    assert stage.suppressed() == []


def test_a_delivery_says_nothing_good_where_the_same_message_came_back(stage):
    """SES says Delivery and then Bounce, for one message, and in any order."""
    letters, reports = softly(stage)
    deliveries = [stage.report(one, "delivered", at=report.at - timedelta(minutes=5)) for one, report in zip(letters, reports, strict=True)]
    stage.hear(*deliveries, *reports, now=NOW + timedelta(days=60))
    assert stage.suppressed() == [("ada@example.org", "bounced", "soft_limit")]


def test_what_was_known_when_somebody_opened_the_address_again_counts_no_more(stage):
    _, reports = softly(stage)
    stage.hear(*reports, now=NOW + timedelta(days=20))
    with stage.engine.begin() as conn:
        conn.execute(text("update suppression set lifted_at = :at"), {"at": NOW + timedelta(days=21)})
    stage.hear(
        stage.report(stage.letter(NOW + timedelta(days=22)), at=NOW + timedelta(days=22), status="4.2.2"), now=NOW + timedelta(days=22)
    )
    assert stage.suppressed() == []


def test_what_the_receiver_only_delays_is_a_fact_and_no_more(stage):
    """I-03."""
    letters, reports = softly(stage)
    for one, report in zip(letters, reports, strict=True):
        stage.hear(stage.report(one, "deferred", at=report.at, status="4.4.1"), now=NOW + timedelta(days=60))
    assert stage.suppressed() == [] and {kind for kind, _ in stage.facts()} == {"deferred"}


def test_two_contacts_with_one_address_are_one_person(stage):
    with stage.engine.begin() as conn:
        twin = add_contact(conn, stage.account, "twin", person="ada@example.org", address="ada@example.org")
    days = (0, 4, 8, 12, 16)
    letters = [stage.letter(NOW + timedelta(days=day), contact=stage.contact if day % 8 else twin) for day in days]
    stage.hear(
        *(stage.report(one, at=NOW + timedelta(days=day), status="4.2.2") for one, day in zip(letters, days, strict=True)),
        now=NOW + timedelta(days=20),
    )
    assert stage.suppressed() == [("ada@example.org", "bounced", "soft_limit")]


# Complaints and wishes ---------------------------------------------------------------------------------------------------


def test_a_complaint_closes_the_address_and_is_logged(stage):
    stage.hear(stage.report(stage.letter(), "complained", text="abuse"))
    assert stage.suppressed() == [("ada@example.org", "complained", "complained")]
    assert stage.rows("select person, purpose, granted, method from consent") == [("ada@example.org", "all", False, "complaint")]
    assert stage.rows("select reason from decision") == [("complained",)] and stage.events() == [("nurture.email_complained",)]


@pytest.mark.parametrize(("detail", "scope"), [({}, "product"), ({"scope": "all"}, "all"), ({"scope": "survey"}, "survey")])
def test_an_unsubscription_counts_for_its_topic(stage, detail, scope):
    stage.hear(stage.report(stage.letter(), "unsubscribed", detail=detail), source="sendgrid")
    assert stage.suppressed() == [("ada@example.org", scope, "unsubscribed")]
    assert stage.rows("select purpose, granted, method from consent") == [(scope, False, "sendgrid")]


def test_transactional_mail_has_no_opt_out(stage):
    stage.hear(stage.report(stage.letter(topic="transactional"), "unsubscribed"))
    assert stage.suppressed() == [] and stage.rows("select 1 from consent") == []


def test_not_spam_is_a_note(stage):
    stage.hear(stage.report(stage.letter(), "not_spam"))
    assert stage.facts() == [("not_spam", "1")] and stage.suppressed() == [] and stage.events() == []


# Unknown ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sent", "delivered", "deferred", "bounced", "rejected", "complained", "opened", "clicked", "replied"])
def test_s05_whatever_comes_back_proves_that_it_went_out(stage, kind):
    letter = stage.letter(state="unknown", reason="worker_died", dot_at=SENT)
    stage.hear(stage.report(letter, kind))
    assert stage.rows("select state, reason from message") == [("sent", "proved_sent")]
    assert ("send", "yes", "proved_sent") in stage.rows("select gate, verdict, reason from decision")


def test_s05_a_machines_answer_proves_it_too(stage):
    letter = stage.letter(state="unknown", dot_at=SENT)
    stage.hear(stage.report(letter, "replied", sort="auto_reply"))
    assert stage.rows("select state from message") == [("sent",)]
    assert stage.facts() == [("auto_replied", "1")] and stage.events() == [] and stage.rows("select 1 from effect") == []


def test_s05_proof_that_came_before_the_message_became_unknown(stage):
    """The receiver was quicker than the recovery of the worker that died at the dot."""
    letter = stage.letter(state="in_dot", dot_at=SENT, settled_at=None, claim=uuid4(), worker_id=uuid4())
    stage.hear(stage.report(letter, "delivered"))
    assert stage.rows("select state from message") == [("in_dot",)]
    with stage.engine.begin() as conn:
        outcome.settle_unknown(conn, [letter], NOW)
    assert stage.rows("select state from message") == [("sent",)]


@pytest.mark.parametrize("agent", [BROWSER, "python-requests/2.32"])
def test_s05_a_link_that_was_fetched_proves_it_too_by_whomever(stage, agent):
    letter = stage.letter(state="unknown", dot_at=SENT, settled_at=SENT)
    with stage.engine.begin() as conn:
        record_hit(conn, letter, "open", None, NOW, Request(agent, "en", "navigate", True, None))
    assert stage.rows("select state from message") == [("unknown",)]
    settled(stage)
    assert stage.rows("select state, reason from message") == [("sent", "proved_sent")]


def test_s05_what_nothing_comes_back_of_stays_unknown(stage):
    letter, other = stage.letter(state="unknown", dot_at=SENT), stage.letter()
    stage.hear(stage.report(other, "delivered"))
    with stage.engine.begin() as conn:
        assert outcome.resolve(conn, [letter, other], NOW) == 0
    assert stage.rows("select state from message where id = :id", id=letter) == [("unknown",)]


# Answers ---------------------------------------------------------------------------------------------------------------


def test_an_answer_is_an_event_and_an_alert_to_the_owner(stage):
    letter = stage.letter()
    heard = stage.hear(stage.report(letter, "replied", key="a", text="Can we talk\ntomorrow?"))
    assert heard.alerts
    ((name, properties, account, contact),) = stage.rows("select name, properties, account_key, contact_key from event")
    assert (name, account, contact) == ("nurture.email_replied", "acme", "ada")
    assert properties["step"] == "welcome" and properties["message"] == str(letter) and properties["text"] == "Can we talk\ntomorrow?"
    ((payload, state),) = stage.rows("select payload, state from effect")
    assert state == "due" and payload["to"] == "owner" and payload["owner"]["email"] == "olga@csm.test"
    assert payload["text"].startswith('Ada answered "Welcome"') and "Can we talk\ntomorrow?" in payload["text"]
    # Another answer is told as well; the same again is not.
    assert stage.hear(stage.report(letter, "replied", key="b", text="Hello?")).alerts
    assert not stage.hear(stage.report(letter, "replied", key="b", text="Hello?")).alerts
    assert stage.rows("select occurrence from effect order by 1") == [(1,), (2,)]


def test_a_simulation_hears_of_what_was_heard(stage):
    """Invariant 10: the answer belongs to its message, a bounce is a fact, and so is what it closed."""
    letter, other = stage.letter(), stage.letter()
    stage.hear(stage.report(letter, "replied", key="a", text="Yes"), stage.report(other, status="5.1.1"))
    with stage.engine.connect() as conn:
        (told,) = of_database(conn, until=NOW)
    about = Letter(
        id=letter,
        account="acme",
        contact="ada",
        address="ada@example.org",
        person="ada@example.org",
        enrollment=uuid4(),
        campaign="onboarding/first-value",
        version=1,
        step="welcome",
        occurrence=1,
        kind="email",
        topic="product",
        priority=50,
        created_at=SENT,
        due_at=SENT,
        expires_at=NOW,
        settled_at=SENT,
    )
    assert told.feedback.after(about) == [(NOW, Reply("replied", comment="Yes", key="a"))]
    assert [one.name for one in told.events] == ["nurture.email_bounced"]
    assert [(one.person, one.scope) for one in told.suppressions] == [("ada@example.org", "bounced")]


# Opens and clicks --------------------------------------------------------------------------------------------------------


def settled(stage, minutes=2):
    settle_due(stage.engine, lambda: NOW + timedelta(minutes=minutes), Bells(None))


def test_a_click_that_a_provider_saw_is_judged_like_ours(stage):
    letter = stage.letter()
    stage.hear(stage.report(letter, "clicked", link=URLS[1], user_agent=BROWSER))
    assert stage.events() == []
    settled(stage)
    assert stage.events() == [("nurture.email_clicked",)]
    assert ("clicked", "link:1") in stage.facts()


@pytest.mark.parametrize("said", [{"user_agent": "python-requests/2.32"}, {"user_agent": BROWSER, "machine": True}])
def test_a_scanner_that_a_provider_saw_raises_nothing(stage, said):
    stage.hear(stage.report(stage.letter(), "clicked", link=URLS[1], **said))
    settled(stage)
    assert stage.events() == [] and [kind for kind, _ in stage.facts()] == ["click_reported"]


def test_a_burst_of_a_provider_is_a_burst(stage):
    letter = stage.letter()
    reports = [stage.report(letter, "clicked", key=url, link=url, user_agent=BROWSER) for url in URLS]
    stage.hear(*reports)
    settled(stage)
    assert stage.rows("select distinct verdict from hit") == [("scanner",)] and stage.events() == []


def test_a_click_on_our_own_link_came_to_us_by_itself(stage):
    letter = stage.letter()
    stage.hear(stage.report(letter, "clicked", link=stage.links.click(letter, 1), user_agent=BROWSER))
    stage.hear(stage.report(letter, "clicked", key="2", link="https://elsewhere.example/", user_agent=BROWSER))
    assert stage.rows("select 1 from hit") == []


@pytest.mark.parametrize(
    ("said", "verdict", "counts"),
    [
        ({"user_agent": BROWSER}, "human", True),
        ({"user_agent": BROWSER, "machine": True}, "machine", False),
        ({"user_agent": "Mozilla/5.0"}, "machine", False),
        ({"user_agent": "Mozilla/5.0 (via ggpht.com GoogleImageProxy)"}, "proxy", True),
    ],
)
def test_t04_the_class_of_an_open(stage, said, verdict, counts):
    stage.hear(stage.report(stage.letter(), "opened", **said))
    assert stage.rows("select verdict from hit") == [(verdict,)]
    settled(stage)
    assert (("opened", "first") in stage.facts()) is counts and stage.events() == []


def test_t05_of_somebody_who_withdrew_the_permission_nothing_is_kept(stage):
    with stage.engine.begin() as conn:
        for purpose in ("open_tracking", "click_tracking"):
            row = {"person": "ada@example.org", "purpose": purpose, "granted": False, "at": NOW, "method": "page"}
            conn.execute(consent.insert().values(**row))
    letter = stage.letter()
    heard = stage.hear(stage.report(letter, "opened", user_agent=BROWSER), stage.report(letter, "clicked", link=URLS[0]))
    assert [one.message for one in heard.findings] == [letter, letter] and heard.fresh == 0
    assert stage.facts() == [] and stage.rows("select 1 from hit") == []


# Once, in any order, whatever it says ------------------------------------------------------------------------------------


def many(stage):
    """Reports of every kind about several messages."""
    letters = [stage.letter(NOW - timedelta(days=20 - number * 4)) for number in range(5)] + [stage.letter(state="unknown", dot_at=SENT)]
    reports = [
        stage.report(one, at=NOW - timedelta(days=20 - 4 * number, hours=-1), status="4.2.2") for number, one in enumerate(letters[:5])
    ]
    reports += [stage.report(letters[2], "bounced", key="2", at=NOW, status="5.1.1"), stage.report(letters[5], "delivered", at=NOW)]
    reports += [stage.report(letters[0], "replied", at=NOW, text="Hm"), stage.report(letters[1], "complained", at=NOW)]
    reports += [
        stage.report(letters[3], "unsubscribed", at=NOW),
        stage.report(letters[3], "clicked", at=NOW, link=URLS[0], user_agent=BROWSER),
    ]
    return [*reports, stage.report(letters[4], "deferred", at=NOW, key="d"), Report("bounced", NOW, "1", token="b+nonsense")]


def test_said_twice_it_changes_nothing(stage):
    reports = many(stage)
    assert stage.hear(*reports).fresh == len(reports) - 1
    before = stage.everything()
    again = stage.hear(*reports, now=NOW + timedelta(hours=3))
    assert again.fresh == 0 and not again.partitions and not again.alerts
    assert stage.everything() == before
    assert stage.hear(*reports, *reports).fresh == 0


@pytest.mark.parametrize("seed", range(4))
def test_w03_any_order_one_by_one_or_all_at_once(stage, seed):
    reports = many(stage)
    with stage.engine.connect() as conn:
        before = conn.begin()
        hear(conn, reports, "mail", NOW)
        wanted = {
            "facts": conn.execute(text("select message_id, kind, key from delivery_event order by 1, 2, 3")).all(),
            "closed": conn.execute(text("select person, scope from suppression order by 1, 2")).all(),
            "events": conn.execute(text("select message_id, name from event order by 1")).all(),
            "states": conn.execute(text("select id, state from message order by 1")).all(),
        }
        before.rollback()
    random.Random(seed).shuffle(reports)
    for one in reports:
        stage.hear(one)
    found = {
        "facts": stage.rows("select message_id, kind, key from delivery_event order by 1, 2, 3"),
        "closed": stage.rows("select person, scope from suppression order by 1, 2"),
        "events": stage.rows("select message_id, name from event order by 1"),
        "states": stage.rows("select id, state from message order by 1"),
    }
    assert {name: [tuple(row) for row in rows] for name, rows in wanted.items()} == found


def test_the_same_heard_by_many_at_once_counts_once(stage):
    reports = many(stage)
    fresh, failures = [], []

    def work(seed):
        mine = random.Random(seed).sample(reports, len(reports))
        try:
            fresh.append(sum(stage.hear(*mine[start : start + 3]).fresh for start in range(0, len(mine), 3)))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == [] and sum(fresh) == len(reports) - 1
    assert len(stage.facts()) == len(reports) - 1 and len(stage.rows("select 1 from effect")) == 1


def test_hostile_words_are_kept_within_bounds(stage):
    letter = stage.letter()
    nasty = "\x00\ud800\x1b[31m" + "x" * 50_000
    report = stage.report(
        letter,
        key=nasty,
        text=nasty,
        status=nasty,
        recipient=nasty,
        link=nasty,
        user_agent=nasty,
        sort=nasty,
        detail={"a": "\x00", "b": float("nan"), "c": object()},
    )
    large = stage.report(
        letter, "replied", key="l", text=nasty, at=(NOW + timedelta(days=900)).replace(tzinfo=None), detail={"x": "y" * 9000}
    )
    assert stage.hear(report, large).fresh == 2
    for kind, at, size in stage.rows("select kind, at, length(detail::text) from delivery_event"):
        assert size < 20_000 and at <= NOW, kind
    assert stage.hear(report, large).fresh == 0


def test_many_reports_take_no_more_statements_than_one(stage):
    letters = [stage.letter() for _ in range(120)]
    counts = []

    def count(*_):
        counts[-1] += 1

    event.listen(stage.engine, "before_cursor_execute", count)
    for some in (letters[:1], letters[1:]):
        counts.append(0)
        stage.hear(*(stage.report(one, "bounced", status="5.1.1") for one in some))
    event.remove(stage.engine, "before_cursor_execute", count)
    assert counts[0] == counts[1] < 20


# What the relay itself refuses --------------------------------------------------------------------------------------------


def test_a_relays_own_refusals_count_with_what_is_reported(stage):
    """552 at RCPT, five times over more than two weeks."""
    for day in range(0, 20, 4):
        assert stage.suppressed() == []
        at = NOW + timedelta(days=day)
        stage.letter(at, state="due", dot_at=None, settled_at=None)
        with stage.engine.begin() as conn:
            (row,) = claim(conn, uuid4(), at, 1)
            end = Ending("skipped", "rejected", "rejected", sort="full", enhanced="5.2.2")
            outcome.settle(conn, [outcome.Outcome(row, end, at, reply="552 5.2.2 full", person="ada@example.org")], at, 64)
    assert stage.suppressed() == [("ada@example.org", "bounced", "soft_limit")]
