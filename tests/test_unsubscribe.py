"""One-click unsubscribe (RFC 8058, U-01 to U-10) and the page of topics."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from cast_listening import BROWSER, add_account, add_contact, add_letter, add_message, path, publish
from sqlalchemy import text

from app.models import message, suppression

ONE_CLICK = {"List-Unsubscribe": "One-Click"}
SENT = datetime.now(UTC) - timedelta(minutes=10)


@pytest.fixture
def letter(engine):
    with engine.begin() as conn:
        cast = publish(conn)
        return cast.links, add_letter(conn, cast, sent_at=SENT)


@pytest.fixture
def url(letter):
    return path(letter[0].unsubscribe(letter[1]))


@pytest.fixture
def page(letter):
    return path(letter[0].preferences(letter[1]))


def closed(engine, person="ada@example.org"):
    with engine.connect() as conn:
        rows = conn.execute(text("select scope from suppression where person = :p and lifted_at is null order by scope"), {"p": person})
        return [row.scope for row in rows]


def logged(engine):
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(text("select person, purpose, granted, method from consent order by id"))]


def events(engine):
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(text("select kind, detail from delivery_event order by id"))]


def nonce(page):
    return re.search(r'name="nonce" value="([0-9a-f]+)"', page.text)[1]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_u04_one_click_in_both_encodings(client, engine, url, kind):
    answer = client.post(url, data=ONE_CLICK, content_type=kind)
    assert answer.status_code == 200
    assert len(answer.data) < 100
    assert "Set-Cookie" not in answer.headers and "Location" not in answer.headers
    assert closed(engine) == ["product"]
    assert logged(engine) == [("ada@example.org", "product", False, "one_click")]
    assert events(engine) == [("unsubscribed", {"scope": "product", "method": "one_click"})]


def test_u04_the_body_counts_even_where_the_content_type_is_odd(client, engine, url):
    assert client.post(url, data=b"List-Unsubscribe=One-Click\r\n", content_type="text/plain").status_code == 200
    assert closed(engine) == ["product"]


@pytest.mark.parametrize("body", [{}, {"List-Unsubscribe": "No"}, {"other": "1"}])
def test_a_post_that_does_not_mean_it_changes_nothing(client, engine, url, body):
    assert client.post(url, data=body).status_code == 400
    assert closed(engine) == []


def test_u07_the_second_time_is_200_and_changes_nothing(client, engine, url):
    for _ in range(3):
        assert client.post(url, data=ONE_CLICK).status_code == 200
    assert closed(engine) == ["product"] and len(logged(engine)) == 1 and len(events(engine)) == 1


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("token", ["x", "A" * 48, "A" * 5000, "%00", "..%2f"])
def test_u07_a_bad_token_is_404_with_one_body(client, letter, method, token):
    answer = getattr(client, method)(f"/u/{token}", data=ONE_CLICK)
    assert answer.status_code == 404
    if method == "get" and "/" not in token and "%2f" not in token:
        assert "This link does not work" in answer.text


def test_u08_providers_post_from_few_addresses(client, engine, url):
    assert {client.post(url, data=ONE_CLICK, environ_base={"REMOTE_ADDR": "192.0.2.1"}).status_code for _ in range(100)} == {200}


def test_u10_the_link_works_years_later(client, engine, letter, url):
    with engine.begin() as conn:
        conn.execute(message.update().values(settled_at=SENT - timedelta(days=3000), values=None, links=None))
    assert client.post(url, data=ONE_CLICK).status_code == 200
    assert closed(engine) == ["product"]


def test_the_page_has_one_button_that_unsubscribes_and_offers_the_rest(client, engine, url):
    answer = client.get(url, headers=BROWSER)
    assert answer.text.count("<button") == 1 and "Getting more out of the product" in answer.text
    done = client.post(url, data={"page": "1", **ONE_CLICK})
    assert done.status_code == 200 and "Location" not in done.headers and "Set-Cookie" not in done.headers
    assert "You are unsubscribed" in done.text and 'value="survey" checked' in done.text and 'value="product" checked' not in done.text
    assert logged(engine) == [("ada@example.org", "product", False, "page")]
    assert "You are unsubscribed" in client.get(url).text


def test_undo(client, engine, url, page):
    done = client.post(url, data={"page": "1", **ONE_CLICK})
    answer = client.post(page, data={"nonce": nonce(done), "action": "again", "again": "product"})
    assert answer.status_code == 200 and 'value="product" checked' in answer.text
    assert closed(engine) == []
    assert [row[2] for row in logged(engine)] == [False, True]
    assert client.post(url, data=ONE_CLICK).status_code == 200
    assert closed(engine) == ["product"] and len(events(engine)) == 2


def test_choosing_topics(client, engine, page):
    form = {"nonce": nonce(client.get(page)), "action": "save"}
    client.post(page, data={**form, "topic": ["product"]})
    assert closed(engine) == ["survey"]
    client.post(page, data={**form, "topic": ["survey", "made-up"]})
    assert closed(engine) == ["product"]
    client.post(page, data={**form, "action": "everything"})
    assert closed(engine) == ["all", "product"]
    answer = client.post(page, data={**form, "topic": ["product"]})
    assert closed(engine) == ["survey"]
    assert 'value="product" checked' in answer.text and 'value="survey" checked' not in answer.text
    client.post(page, data={**form, "topic": ["product", "survey"]})
    assert closed(engine) == []
    before = len(logged(engine))
    client.post(page, data={**form, "topic": ["product", "survey"]})
    assert len(logged(engine)) == before


def test_a_choice_without_the_pages_nonce_changes_nothing(client, engine, page, url):
    for wrong in ({}, {"nonce": "0" * 32}):
        answer = client.post(page, data={**wrong, "action": "everything"})
        assert answer.status_code == 400 and "Please choose once more" in answer.text
    assert closed(engine) == [] and logged(engine) == []


def test_everything_is_always_offered_and_without_a_cookie(client, page):
    answer = client.get(page)
    assert "Stop everything" in answer.text and "Set-Cookie" not in answer.headers
    assert "a…@example.org" in answer.text and "ada@example.org" not in answer.text


@pytest.mark.parametrize("reason", ["bounced", "complained", "manual"])
def test_p04_what_the_person_did_not_close_is_not_opened_here(client, engine, page, reason):
    form = {"nonce": nonce(client.get(page)), "action": "save", "topic": ["product", "survey"]}
    with engine.begin() as conn:
        conn.execute(suppression.insert().values(person="ada@example.org", scope="all", reason=reason, created_at=SENT))
    answer = client.post(page, data=form)
    assert closed(engine) == ["all"]
    assert 'name="topic"' not in answer.text and "sending" in answer.text


def test_transactional_mail_has_no_opt_out(client, engine, letter, url):
    with engine.begin() as conn:
        conn.execute(message.update().values(topic="transactional"))
    assert "<button" not in client.get(url).text
    assert client.post(url, data=ONE_CLICK).status_code == 200
    assert closed(engine) == []


def test_a_person_with_two_contacts_and_a_new_address_is_closed_as_one(client, engine):
    with engine.begin() as conn:
        cast = publish(conn)
        account_id = add_account(conn)
        ada = add_contact(conn, account_id)
        add_contact(conn, account_id, "ada2", address="ADA@example.org", person="ada@example.org")
        sent = add_message(conn, cast, account_id, ada, sent_at=SENT)
        conn.execute(text("update contact set person = 'ada@new.example.org' where id = :id"), {"id": ada})
    assert client.post(path(cast.links.unsubscribe(sent)), data=ONE_CLICK).status_code == 200
    assert closed(engine) == closed(engine, "ada@new.example.org") == ["product"]


def test_withdrawing_tracking_is_logged_and_can_be_taken_back(client, engine, page):
    form = {"nonce": nonce(client.get(page)), "action": "privacy"}
    client.post(page, data=form)
    assert [row[1:3] for row in logged(engine)] == [("open_tracking", False), ("click_tracking", False)]
    client.post(page, data={**form, "opens": "on", "clicks": "on"})
    assert [row[1:3] for row in logged(engine)][2:] == [("open_tracking", True), ("click_tracking", True)]


def test_pages_are_kept_to_themselves(client, letter, url, page):
    for address in (url, page, "/u/bad"):
        headers = client.get(address).headers
        assert (
            headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store" and "noindex" in headers["X-Robots-Tag"]
        )
        assert "script" not in headers["Content-Security-Policy"] and "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    body = client.get(page).text
    assert "<script" not in body and not re.search(r'(?:src|href)="(?!/|mailto:|data:,)', body)


@pytest.mark.parametrize("method", ["get", "head", "options"])
def test_u06_a_thousand_looks_change_nothing(client, engine, url, method):
    """Scanners follow the link in the header and in the body, again and again."""
    for _ in range(1000 if method == "get" else 100):
        answer = getattr(client, method)(url, headers=BROWSER)
        assert answer.status_code == 200 and "Set-Cookie" not in answer.headers and "Location" not in answer.headers
    assert closed(engine) == [] and logged(engine) == [] and events(engine) == []


def test_u04_neither_cookie_nor_origin_nor_referrer_matter(client, engine, url):
    hostile = {
        "Origin": "https://evil.example",
        "Referer": "https://evil.example/x",
        "Cookie": "session=forged",
        "Sec-Fetch-Site": "cross-site",
    }
    answer = client.post(url, data=ONE_CLICK, headers=hostile)
    assert answer.status_code == 200 and "Set-Cookie" not in answer.headers
    assert answer.content_type.startswith("text/plain") and closed(engine) == ["product"]


def test_u02_the_address_alone_says_who_and_what_and_nobody_can_make_one(client, engine, url):
    """Any changed bit of the token is a stranger's: 404 with the same body."""
    head, _, token = url.rpartition("/")
    bodies = set()
    for place in range(0, 48, 5):
        other = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        answer = client.post(f"{head}/{other}", data=ONE_CLICK)
        assert answer.status_code == 404
        bodies.add(re.sub(r'nonce="[^"]*"', "", answer.text))
    assert len(bodies) == 1 and closed(engine) == []


def test_x39_a_page_that_is_posted_without_end_is_told_to_wait_and_everything_can_always_be_stopped(client, engine, page):
    token = nonce(client.get(page))
    seen = [client.post(page, data={"nonce": token, "action": "save", "topic": "product"}).status_code for _ in range(25)]
    assert seen[:20] == [200] * 20 and seen[-1] == 429
    assert client.post(page, data={"nonce": token, "action": "everything"}).status_code == 200
    assert "all" in closed(engine)
