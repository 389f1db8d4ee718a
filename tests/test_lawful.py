"""What the law asks of every mail: its class, who it is from, objections that count at once, nothing for third parties."""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from uuid import uuid4

import pytest
from sqlalchemy import select

from app import models
from app.errors import TemplateError
from app.flow.compose import compile_mail
from app.flow.deliver import Limits, run
from app.providers.memory import MemoryTransport
from app.queue import Bells
from tests.cast import Cast
from tests.conftest import NOW
from tests.mails import APPROVED, ROOT

BLOCKS = {path.name: path.read_text("utf-8") for path in (ROOT / "campaigns/brand").glob("*.mjml")}
QUICK = Limits(poll=0.02, gather=0.0, patience=(0.05,), back_off=1.0, heartbeat=0.2, farewell=0.5)
LINK, NAME, ADDRESS = '<a href="{{ mail.unsubscribe_url }}">Stop</a>', "{{ brand.name }}", "{{ brand.postal_address }}"


@pytest.fixture
def send(engine, settings):
    def send():
        transport = MemoryTransport()
        run(engine, settings, uuid4(), lambda: NOW, Bells(None), transport=transport, limits=QUICK)
        return [message_from_bytes(letter.data, policy=policy.default) for letter in transport.letters]

    return send


@pytest.mark.parametrize("scope", ["all", "transactional", "bounced", "complained", "manual"])
def test_p01_transactional_mail_skips_the_opt_out_and_obeys_the_rest(engine, send, scope):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, {"topic": "transactional"})
        person = cast.contact("ada")
        cast.message(person, topic="transactional")
        conn.execute(models.suppression.insert().values(person=person.address, scope=scope, reason="manual", created_at=NOW))
    assert len(send()) == (1 if scope in ("all", "transactional") else 0)


@pytest.mark.parametrize("asked", [False, True])
def test_p01_transactional_mail_is_not_tracked_unless_the_installation_says_so(engine, send, asked):
    with engine.begin() as conn:
        cast = Cast(conn, NOW, {"topic": "transactional"}, {"tracking": {"transactional": asked}})
        cast.message(cast.contact("ada"), topic="transactional")
    [mail] = send()
    html = mail.get_body(("html",)).get_content()
    assert ("/o/" in html, "/c/" in html) == (asked, asked)
    assert mail["List-Unsubscribe"] is None and mail["Auto-Submitted"] == "auto-generated"


def test_p01_the_class_is_fixed_with_the_message(engine, send):
    """A later version of another class changes nothing for who is inside: the row keeps its topic, the enrollment its version."""
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        person = cast.contact("ada")
        ident = cast.message(person)
        definition = conn.execute(select(models.campaign_version.c.definition)).scalar_one()
        newer = {"campaign_id": cast.campaign_id, "number": 2, "hash": "2", "published_at": NOW}
        conn.execute(models.campaign_version.insert().values(**newer, definition={**definition, "topic": "transactional"}))
        conn.execute(models.suppression.insert().values(person=person.address, scope="all", reason="unsubscribed", created_at=NOW))
    assert send() == []
    with engine.connect() as conn:
        assert conn.execute(select(models.message.c.topic, models.message.c.reason).where(models.message.c.id == ident)).one() == (
            "product",
            "opted_out",
        )


@pytest.mark.parametrize("missing", [LINK, NAME, ADDRESS])
def test_p02_a_mail_without_address_identity_or_opt_out_cannot_be_published(missing):
    parts = [part for part in (LINK, NAME, ADDRESS) if part != missing]
    body = f"<mjml><mj-body><mj-section><mj-column><mj-text>{' '.join(parts)}</mj-text></mj-column></mj-section></mj-body></mjml>"
    with pytest.raises(TemplateError, match="unsubscribe link|who sends|postal address"):
        compile_mail(body, "Hello", path="x.mjml", blocks=BLOCKS)
    whole = body.replace(" ".join(parts), " ".join((LINK, NAME, ADDRESS)))
    assert compile_mail(whole, "Hello", path="x.mjml", blocks=BLOCKS)


def test_p08_a_tracked_mail_leads_to_where_tracking_is_refused(engine, send):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        made = compile_mail("<mj-section><mj-column><mj-text>Hi</mj-text></mj-column></mj-section>", "Hi", path="x.mjml", blocks=BLOCKS)
        conn.execute(models.template.update().values(subject="Hi", html=made.html, text=made.text, links=[], reads=[]))
        ada, ben = cast.contact("ada"), cast.contact("ben", cast.account("birch"))
        cast.message(ada)
        cast.message(ben)
        for purpose in ("open_tracking", "click_tracking"):
            conn.execute(models.consent.insert().values(person=ben.address, purpose=purpose, granted=False, at=NOW, method="page"))
    found = {mail["To"].addresses[0].username: mail for mail in send()}
    for part in ("html", "plain"):
        bodies = {name: mail.get_body((part,)).get_content() for name, mail in found.items()}
        assert "#privacy" in bodies["ada"] and "#privacy" not in bodies["ben"], part
    assert "/o/" in found["ada"].get_body(("html",)).get_content() and "/o/" not in found["ben"].get_body(("html",)).get_content()


def test_p09_an_objection_stops_all_marketing_at_once(engine, send):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        ada = cast.contact("ada")
        cast.message(ada)
        cast.message(ada, "ask")
        conn.execute(models.suppression.insert().values(person=ada.address, scope="all", reason="unsubscribed", created_at=NOW))
    assert send() == []


def test_p12_no_shipped_mail_asks_a_third_party_for_anything():
    mails = list(APPROVED.glob("*.html"))
    assert len(mails) > 5
    for file in mails:
        html = file.read_text("utf-8")
        fetched = re.findall(r'<(?:img|link|script|iframe|source)\b[^>]*?(?:src|href)="([^"]+)"', html) + re.findall(
            r"url\(['\"]?([^'\")]+)", html
        )
        assert all(url.startswith("https://n.example/") for url in fetched), (file.name, fetched)
        assert "@import" not in html and "fonts.googleapis" not in html


def test_p13_headers_carry_nothing_personal_but_the_recipient(engine, send):
    with engine.begin() as conn:
        cast = Cast(conn, NOW)
        account = cast.account("acorn-ltd", name="Acorn Limited")
        cast.message(
            cast.contact("ada-4711", account, first_name="Ada", last_name="Lovelace", address="ada@acorn.test", person="ada@acorn.test")
        )
    [mail] = send()
    for name, value in mail.items():
        if name not in ("To", "Subject"):
            assert not re.search(r"ada-4711|lovelace|acorn-ltd|ada@|limited", str(value), re.IGNORECASE), (name, value)
