"""Surveys in mails: Q-01, Q-02, Q-05 to Q-09."""

import re
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cast_listening import BROWSER, CAMPAIGN, QUESTION, add_account, add_contact, add_letter, add_message, path, publish
from sqlalchemy import text

from app.errors import InputError, SurveyClosed, TooOften
from app.flow.respond import answer, clean, find_message, find_step
from app.models import message

SENT = datetime.now(UTC) - timedelta(days=1)
MONTH = timedelta(days=30)


@pytest.fixture
def cast(engine):
    with engine.begin() as conn:
        return publish(conn)


@pytest.fixture
def asked(engine, cast):
    with engine.begin() as conn:
        return add_letter(conn, cast, "ask", sent_at=SENT)


@pytest.fixture
def url(cast, asked):
    return path(cast.links.survey(asked))


def rows(engine, query):
    with engine.connect() as conn:
        return [dict(row) for row in conn.execute(text(query)).mappings()]


def nonce(client, url):
    return re.search(r'name="nonce" value="([0-9a-f]+)"', client.get(url).text)[1]


def send(client, url, score, comment="", **more):
    return client.post(url, data={"nonce": nonce(client, url), "score": str(score), "comment": comment, **more})


def chosen(page):
    return re.findall(r'value="(\d+)" required checked', page.text)


def test_the_link_of_a_score_shows_it_chosen_and_answers_nothing(client, engine, cast, asked):
    for score in (0, 7, 10):
        page = client.get(path(cast.links.survey(asked, score)), headers=BROWSER)
        assert page.status_code == 200 and chosen(page) == [str(score)] and QUESTION in page.text
        assert "Set-Cookie" not in page.headers and "<script" not in page.text
    assert rows(engine, "select * from response") == [] and rows(engine, "select * from event") == []
    hits = rows(engine, "select kind, link from hit order by id")
    assert hits == [{"kind": "survey", "link": score} for score in (0, 7, 10)]


def test_q04_whoever_fetches_every_score_answers_nothing(client, engine, cast, asked):
    for method in ("HEAD", "GET", "OPTIONS"):
        for score in range(11):
            client.open(path(cast.links.survey(asked, score)), method=method, headers=BROWSER)
    for table in ("response", "event", "delivery_event"):
        assert rows(engine, f"select * from {table}") == []
    assert send(client, path(cast.links.survey(asked)), 9).status_code == 200  # the person's own answer still counts
    assert [row["score"] for row in rows(engine, "select score from response")] == [9]


@pytest.mark.parametrize("score", ["11", "-1", "x", "5.0", "９", "9" * 400, "%20"])
def test_a_score_off_the_scale_in_the_link_chooses_nothing(client, url, score):
    page = client.get(f"{url}/{score}")
    assert page.status_code == 200 and chosen(page) == []


def test_an_answer_is_counted_and_told(client, engine, asked, url):
    before = rows(engine, "select assess_at from account")[0]["assess_at"]
    done = send(client, url + "/9", 9, " Saves me\r\na day <b>\x07 \U0001f600 ")
    assert before is None and done.status_code == 200 and "Thank you" in done.text
    assert "Set-Cookie" not in done.headers and "Location" not in done.headers
    [kept] = rows(engine, "select * from response")
    assert (kept["survey"], kept["question"], kept["score"], kept["comment"]) == ("nps", QUESTION, 9, "Saves me\na day <b> \U0001f600")
    assert kept["revision"] == 1 and len(rows(engine, "select * from response_revision")) == 1
    [event] = rows(engine, "select * from event")
    enrollment = rows(engine, "select enrollment_id from message")[0]["enrollment_id"]
    assert (event["name"], event["message_id"]) == ("nurture.survey_responded", f"response:{asked}:{QUESTION}:1")
    assert (event["account_key"], event["contact_key"], event["occurred_at"]) == ("acme", "ada", kept["answered_at"])
    assert event["properties"] == {
        "survey": "nps",
        "question": QUESTION,
        "score": 9,
        "comment": kept["comment"],
        "campaign": "onboarding/first-value",
        "step": "ask",
        "message": str(asked),
        "enrollment": str(enrollment),
        "revision": 1,
        "previous": None,
    }
    assert rows(engine, "select assess_at from account")[0]["assess_at"] == kept["answered_at"]
    assert len(rows(engine, "select * from event_pending")) == 1


def test_q05_the_last_answer_counts_and_the_history_is_kept(client, engine, url):
    for score, comment in ((3, "slow"), (9, "fixed"), (9, "fixed")):
        assert send(client, url, score, comment).status_code == 200
    assert rows(engine, "select score, comment, revision from response") == [{"score": 9, "comment": "fixed", "revision": 2}]
    assert [row["score"] for row in rows(engine, "select score from response_revision order by revision")] == [3, 9]
    events = rows(engine, "select properties from event order by id")
    assert [(one["properties"]["revision"], one["properties"]["previous"]) for one in events] == [(1, None), (2, 3)]
    page = client.get(url)
    assert chosen(page) == ["9"] and "fixed" in page.text and "You have answered already" in page.text
    assert chosen(client.get(url + "/2")) == ["2"]


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"score": ""}, "choose a number from 0 to 10"),
        ({"score": "11"}, "choose a number from 0 to 10"),
        ({"score": "-1"}, "choose a number"),
        ({"score": "7.5"}, "choose a number"),
        ({"score": "７"}, "choose a number"),
        ({"score": "9" * 5000}, "choose a number"),
        ({"score": "7", "comment": "x" * 4001}, "4,000 characters"),
        ({"score": "7", "nonce": "0" * 32}, "out of date"),
        ({"score": "7", "nonce": ""}, "out of date"),
    ],
)
def test_a_wrong_answer_is_said_and_the_words_are_not_lost(client, engine, url, form, says):
    form = {"nonce": nonce(client, url), "comment": "my words", **form}
    page = client.post(url, data=form)
    assert page.status_code == 400 and says in page.text and form["comment"][:200] in page.text
    assert rows(engine, "select * from response") == [] and rows(engine, "select * from event") == []


def test_the_score_of_the_address_is_not_an_answer(client, engine, url):
    form = {"nonce": nonce(client, url)}
    assert client.post(url + "/9", data=form).status_code == 400
    assert rows(engine, "select * from response") == []


def test_q06_a_nonce_is_good_for_its_own_token_only(client, engine, cast, asked, url):
    with engine.begin() as conn:
        account_id = add_account(conn, "other")
        other = add_message(conn, cast, account_id, add_contact(conn, account_id, "bob"), "ask", sent_at=SENT)
    page = client.post(path(cast.links.survey(other)), data={"nonce": nonce(client, url), "score": "9"})
    assert page.status_code == 400 and rows(engine, "select * from response") == []


def test_q06_one_token_cannot_flood(client, engine, url):
    form = {"nonce": nonce(client, url)}
    codes = [client.post(url, data={**form, "score": str(number % 10), "comment": str(number)}).status_code for number in range(14)]
    assert codes == [200] * 12 + [429] * 2
    assert len(rows(engine, "select * from event")) == 12


def test_q08_comments_are_text(client, engine, url):
    assert send(client, url, 5, "</textarea><script>alert(1)</script>{{ 7 * 7 }}").status_code == 200
    page = client.get(url).text
    assert "<script" not in page and "&lt;script&gt;" in page and "{{ 7 * 7 }}" in page
    assert send(client, url, 5, "nul\x00byte").status_code == 200
    assert rows(engine, "select comment from response")[0]["comment"] == "nulbyte"


def test_q05_after_thirty_days_the_survey_is_closed(client, engine, url):
    form = {"nonce": nonce(client, url), "score": "9"}
    with engine.begin() as conn:
        conn.execute(message.update().values(settled_at=SENT - MONTH))
    for page in (client.get(url), client.post(url, data=form)):
        assert page.status_code == 410 and "This survey is closed" in page.text
    assert rows(engine, "select * from response") == []


def test_a_message_that_asks_nothing_has_no_survey(client, engine, cast):
    with engine.begin() as conn:
        letter = add_letter(conn, cast, sent_at=SENT)
    assert client.get(path(cast.links.survey(letter))).status_code == 404
    assert client.post(path(cast.links.survey(letter)), data={"score": "9"}).status_code == 404


@pytest.mark.parametrize(("step", "scores"), [("ask", range(11)), ("csat", range(1, 6)), ("ces", range(1, 8))])
def test_each_kind_has_its_scale(client, engine, cast, step, scores):
    with engine.begin() as conn:
        asked = add_letter(conn, cast, step, sent_at=SENT)
    page = client.get(path(cast.links.survey(asked)))
    assert re.findall(r'name="score" value="(\d+)"', page.text) == [str(score) for score in scores]
    assert "<fieldset" in page.text and "<legend" in page.text


@pytest.mark.parametrize(("score", "says"), [(10, "good to hear"), (9, "good to hear"), (8, "for your answer"), (6, "frank"), (0, "frank")])
def test_the_thanks_fit_the_score(client, url, score, says):
    assert says in send(client, url, score).text


def test_the_rules_hold_without_the_page(engine, asked):
    now = SENT + timedelta(days=1)
    with engine.begin() as conn:
        found = find_message(conn, asked)

        def say(score, at=now, comment=None):
            return answer(conn, found, score, comment, at, closes_after=MONTH, partitions=64)

        with pytest.raises(InputError, match="from 0 to 10"):
            say(11)
        with pytest.raises(InputError, match="4,000"):
            say(1, comment="x" * 4001)
        with pytest.raises(SurveyClosed):
            say(1, at=SENT + MONTH)
        first = say(4)
        assert len(first.partitions) == 1 and (first.score, first.revision) == (4, 1)
        assert say(4, at=now + timedelta(hours=1)).partitions == frozenset()
        for number in range(11):
            say(number % 2, at=now + timedelta(minutes=number))
        with pytest.raises(TooOften):
            say(9, at=now + timedelta(minutes=20))
        assert say(9, at=now + timedelta(minutes=80)).revision == 13


def test_answers_at_the_same_time_make_one_response(app, engine, url):
    form = {"nonce": nonce(app.test_client(), url)}
    codes = []

    def post(score):
        codes.append(app.test_client().post(url, data={**form, "score": str(score)}).status_code)

    threads = [threading.Thread(target=post, args=(score,)) for score in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 4
    [kept] = rows(engine, "select revision from response")
    assert kept["revision"] == 4
    assert sorted(one["properties"]["revision"] for one in rows(engine, "select properties from event")) == [1, 2, 3, 4]


def test_steps_are_found_however_deep():
    assert find_step(CAMPAIGN, "ask")["question"] == QUESTION
    assert find_step(CAMPAIGN, "welcome")["email"] == "welcome.mjml"
    assert find_step(CAMPAIGN, "nowhere") is None and find_step({}, "x") is None and find_step(None, "x") is None


def test_comments_are_cleaned():
    assert clean(None) is None and clean(" \r\n\x00") is None
    assert clean("a\rb\r\nc\td\x7f\x1b[31m") == "a\nb\nc\td[31m"
    assert clean("עברית 🙂") == "עברית 🙂"
