"""Erasing people and accounts (P-10): nothing that names them is left anywhere, what must stay does, killed jobs go on."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import redis
from cast_listening import BROWSER, LIFECYCLE, add_account, add_contact, add_message, path, publish
from pydantic_core import to_json
from sqlalchemy import select, text

from app import models
from app.cli import main
from app.db import insert_rows
from app.errors import NotFound
from app.flow import consents, erase, holding, respond, tombstones, track
from app.flow.access import create_key
from app.flow.advance import run_partition
from app.flow.consents import Said
from app.flow.export import collect, write_zip
from app.flow.ingest import accept
from app.flow.items import Item
from app.flow.past import rebuild
from app.queue import Bells
from app.rules.facts import partition_of
from tests.conftest import NOW

ADDRESS, KEY = "ada.lovelace@example.org", "user-ada-4711"
SENT = datetime.now(UTC) - timedelta(minutes=10)


def clock():
    return datetime.now(UTC)


def post(engine, kind, properties, *, account=None, contact=None, name=None, at=None):
    at = at or clock()
    with engine.begin() as conn:
        count = conn.execute(text("select partitions from installation")).scalar_one()
        accept(conn, 1, [Item(uuid4().hex, kind, name or kind, account, contact, properties, at)], at, count)
    for place in {partition_of(account or contact, count)}:
        run_partition(engine, Bells(None), place, clock)


@pytest.fixture
def world(engine):
    """Ada and Ben of Acme, with something in every table that could know of Ada."""
    with engine.begin() as conn:
        cast = publish(conn, LIFECYCLE | {"usage": {"logins": {"event": "logged_in", "contacts": True}}})
        conn.execute(text("insert into source (id, name) values (1, 'product') on conflict do nothing"))
    for key, address, first in ((KEY, ADDRESS, "Ada"), ("user-ben", "ben@example.org", "Ben")):
        post(engine, "group", {"name": "Acme"}, account="acme", contact=key)
        post(
            engine,
            "identify",
            {"email": address, "first_name": first, "last_name": f"Lovelace of {key}", "title": "CEO"},
            account="acme",
            contact=key,
        )
        post(engine, "track", {"page": f"/of/{address}"}, account="acme", contact=key, name="logged_in")
    with engine.begin() as conn:
        account_id = conn.execute(select(models.account.c.id)).scalar_one()
        people = {row.external_id: row.id for row in conn.execute(select(models.contact))}
        sent = {}
        for key, address in ((KEY, ADDRESS), ("user-ben", "ben@example.org")):
            values = {"contact": {"first_name": f"Lovelace of {key}"}, "account": {"name": "Acme"}}
            sent[key] = add_message(
                conn, cast, account_id, people[key], sent_at=SENT, values=values, subject=f"For {key}", reply=f"250 {address} ok"
            )
            due = add_message(conn, cast, account_id, people[key], sent_at=SENT, state="due", settled_at=None, values=None, links=None)
            row = {
                "account_id": account_id,
                "campaign_id": cast.campaign_id,
                "version_id": cast.version_id,
                "step_id": "x",
                "occurrence": 1,
            }
            wait = conn.execute(select(models.message.c.enrollment_id).where(models.message.c.id == due)).scalar_one()
            conn.execute(
                models.enrollment.update()
                .where(models.enrollment.c.id == wait)
                .values(
                    state="active",
                    step_id="welcome",
                    contact_id=people[key] if key == "user-ben" else None,
                    entry={"contact": key, "event": "logged_in", "properties": {"email": address}},
                    position={"open": [str(due)], "got": {"welcome": {key: 1}}, "responder": key},
                )
            )
            conn.execute(
                models.outbox.insert().values(message_id=sent[key], sender="s@x.y", recipient=key, raw=key.encode(), captured_at=SENT)
            )
            conn.execute(
                models.effect.insert().values(
                    **row, id=uuid4(), kind="alert", enrollment_id=wait, payload={"text": f"{key} {address}"}, created_at=SENT, due_at=SENT,
                    state="done", settled_at=SENT, contact_id=people[key],
                )
            )  # fmt: skip
            conn.execute(
                models.lane.insert().values(
                    transport="default", provider=f"{sent[key].hex[:8]}.example", reply=f"550 5.7.1 <{address}> refused", changed_at=SENT
                )
            )
            conn.execute(
                models.task.insert().values(
                    id=uuid4(), account_id=account_id, title=f"Call {address}", note=key, created_at=SENT, state="open"
                )
            )
            conn.execute(
                models.decision.insert().values(
                    at=SENT,
                    account_id=account_id,
                    contact_id=people[key],
                    gate="recipient",
                    verdict="no",
                    reason="wrong_role",
                    evidence={"who": key},
                )
            )
            conn.execute(
                models.delivery_event.insert().values(message_id=sent[key], kind="sent", at=SENT, detail={"reply": key}, key="attempt:1")
            )
            conn.execute(
                models.reservation.insert().values(
                    message_id=sent[key],
                    person=address,
                    account_id=account_id,
                    topic="product",
                    campaign_id=1,
                    step_id="x",
                    shadow=False,
                    at=SENT,
                )
            )
            made = conn.execute(
                models.response.insert()
                .values(
                    message_id=sent[key], account_id=account_id, contact_id=people[key], campaign_id=cast.campaign_id, survey="nps",
                    question="q", score=9, comment=f"I am {key}", answered_at=SENT,
                )
                .returning(models.response.c.id)
            ).scalar_one()  # fmt: skip
            revision = {"response_id": made, "revision": 1, "score": 9, "comment": f"I am {key}", "answered_at": SENT}
            insert_rows(conn, models.response_revision, [revision])
            track.record_hit(conn, sent[key], "click", 0, SENT, track.Request(f"Browser of {key}", "en", "navigate", False, "192.0.2.0/24"))
            holding.hold(conn, f"talks with {key}", clock(), contact=key)
            letter = respond.find_message(conn, sent[key])
            said = Said("page", "contact", network="192.0.2.0/24", words={"product": "Product"})
            respond.unsubscribe(conn, letter, "product", clock(), method="page", network=None, said=said)
            respond.permit(conn, letter, False, False, clock(), said=said)
            respond.pause(conn, letter, clock(), said=said)
            conn.execute(models.contact_alias.insert().values(previous_key=f"anon-{key}", contact_key=key, at=SENT))
            conn.execute(
                models.parked.insert().values(
                    partition=1,
                    account_key="other",
                    occurrence="event:1",
                    error="x",
                    traceback=f"address {key} of {address}",
                    parked_at=SENT,
                )
            )
        conn.execute(
            models.account.update().values(
                candidates=[{"campaign": "x", "event": {"contact": KEY}, "expires_at": clock().isoformat()}],
                watched={f"inactive:user:30:{KEY}": "x", "inactive:user:30:user-ben": "y"},
            )
        )
    return cast, account_id, people, sent


def everything(engine) -> str:
    """All that is stored, as text, a line for each row."""
    lines = []
    with engine.connect() as conn:
        for table in models.metadata.sorted_tables:
            for row in conn.execute(select(table)).mappings():
                plain = {name: value.decode("latin-1") if isinstance(value, bytes) else value for name, value in row.items()}
                lines.append(f"{table.name}: {to_json(plain).decode()}")
    return "\n".join(lines)


def erased(engine, kind, key, tmp_path):
    with engine.begin() as conn:
        asked = erase.request(conn, kind, key, "operator", clock())
    erase.work(engine, clock, tmp_path)
    with engine.connect() as conn:
        return erase.receipt(conn, asked.id)


def test_every_table_that_may_know_somebody_is_in_the_list():
    telling = {"contact_id", "contact_key", "account_id", "account_key", "person", "address", "recipient", "message_id", "sender", "email"}
    listed = {rule.table for rule in erase.RULES}
    keys_only = {"event_key"}  # 16 bytes of a hash of the message id: what makes an event count once
    for table in models.metadata.sorted_tables:
        referred = {key.column.table.name for key in table.foreign_keys} & {
            "contact",
            "account",
            "message",
            "response",
            "enrollment",
            "event",
        }
        if table.name in ("contact", "account") or referred or telling & {column.name for column in table.columns}:
            assert table.name in listed | keys_only, f"say in app/flow/erase.py how {table.name} is erased"


def test_nothing_that_names_an_erased_contact_is_left(engine, world, tmp_path, redis_server):
    before = everything(engine)
    assert before.count(KEY) > 20 and before.count(ADDRESS) > 10 and f"Lovelace of {KEY}" in before
    done = erased(engine, "contact", KEY, tmp_path)
    left = everything(engine)
    assert done.finished_at and done.counts["event"] >= 3 and done.counts["message"] == 2
    for needle in (KEY, ADDRESS, "ada.lovelace", "Ada Lovelace", f"Lovelace of {KEY}"):
        assert needle not in left, [line for line in left.splitlines() if needle in line][:3]
    assert left.count("user-ben") > 15 and "ben@example.org" in left
    stored = redis.Redis.from_url(redis_server)
    assert not any(KEY.encode() in key or ADDRESS.encode() in key for key in stored.keys("*"))
    assert KEY not in str(done.plain()) and ADDRESS not in str(done.plain()) and "operator" in done.requested_by


def test_what_counts_is_kept(engine, world, tmp_path):
    cast, account_id, _, sent = world
    with engine.connect() as conn:
        keys = conn.execute(text("select count(*) from event_key")).scalar_one()
    erased(engine, "contact", KEY, tmp_path)
    with engine.connect() as conn:
        assert conn.execute(text("select count(*) from message where state = 'sent'")).scalar_one() == 2
        assert conn.execute(text("select score, comment from response order by id")).all()[0] == (9, None)
        assert conn.execute(text("select count(distinct contact_key) from usage_person")).scalar_one() == 2
        assert conn.execute(text("select count(*) from event_key")).scalar_one() >= keys
        past = rebuild(conn, "acme", NOW, [clock()], clock())
        assert past.problem == "events_pruned"
        active = conn.execute(text("select position from enrollment where state = 'active' order by entered_at")).scalars().all()
        assert len(active) == 2 and not any(KEY in str(one) for one in active)
        assert conn.execute(text("select state, reason from message where state = 'skipped'")).all() == [("skipped", "erased")]
        assert "user-ben" in str(conn.execute(select(models.account.c.watched)).scalar_one())


def test_an_erasure_may_be_killed_anywhere_and_asked_for_twice(engine, world, tmp_path, monkeypatch):
    monkeypatch.setattr(erase, "BATCH", 1)
    with engine.begin() as conn:
        first = erase.request(conn, "contact", KEY, "operator", clock())
    with engine.connect() as conn:
        assert respond.find_message(conn, world[3][KEY]).contact_key.startswith("erased:")  # nobody knows them from here on
    steps = 0
    while True:
        with engine.connect() as conn:
            row = conn.execute(erase._NEXT, {"waiting": []}).first()
            if row is None:
                break
            erase._step(conn, row, clock(), tmp_path)
            conn.rollback()  # killed before the commit
        with engine.begin() as conn:
            erase._step(conn, conn.execute(erase._NEXT, {"waiting": []}).first(), clock(), tmp_path)
        steps += 1
    assert steps > 15
    with engine.begin() as conn:
        again = erase.request(conn, "contact", KEY, "operator", clock())
    assert again.id == first.id and again.finished_at
    assert KEY not in everything(engine)
    with engine.begin() as conn, pytest.raises(NotFound):
        erase.request(conn, "contact", "never-heard-of", "operator", clock())


def test_mail_on_the_wire_is_waited_for(engine, world, tmp_path):
    sent = world[3][KEY]
    with engine.begin() as conn:
        conn.execute(text("update message set state = 'in_dot' where id = :id"), {"id": sent})
        asked = erase.request(conn, "contact", KEY, "operator", clock())
    assert erase.work(engine, clock, tmp_path) == 0
    with engine.begin() as conn:
        assert erase.receipt(conn, asked.id).finished_at is None
        conn.execute(text("update message set state = 'sent' where id = :id"), {"id": sent})
    assert erase.work(engine, clock, tmp_path) == 1
    assert ADDRESS not in everything(engine)


def test_links_of_erased_mail_answer_politely_and_unsubscribing_still_works(client, engine, world, tmp_path):
    cast, _, _, sent = world
    erased(engine, "contact", KEY, tmp_path)
    links, letter = cast.links, sent[KEY]
    view = client.get(path(links.view(letter)), headers=BROWSER)
    assert view.status_code == 410 and "no longer kept" in view.text
    assert client.get(path(links.survey(letter)), headers=BROWSER).status_code in (404, 410)
    assert client.get(path(links.open(letter))).status_code == 200
    page = client.get(path(links.preferences(letter)), headers=BROWSER)
    assert page.status_code == 200 and "Acme" not in page.text and "erased:" not in page.text
    assert client.get(path(links.click(letter, 0)), headers=BROWSER).status_code == 302
    with engine.begin() as conn:
        conn.execute(text("delete from suppression"))
    assert client.post(path(links.unsubscribe(letter)), data={"List-Unsubscribe": "One-Click"}).status_code == 200
    with engine.connect() as conn:
        [row] = conn.execute(select(models.suppression)).all()
        assert row.person == tombstones.pseudonyms(conn, [ADDRESS])[ADDRESS] and row.scope == "product"
        assert (
            conn.execute(
                text("select count(*) from hit h join message m on m.id = h.message_id where m.id = :id"), {"id": letter}
            ).scalar_one()
            == 0
        )


def test_a_tombstone_suppresses_the_address_when_it_is_posted_again(client, engine, world, tmp_path):
    cast, _, _, sent = world
    erased(engine, "contact", KEY, tmp_path)
    post(engine, "identify", {"email": ADDRESS.upper()}, account="acme", contact="another-id")
    with engine.connect() as conn:
        rows = conn.execute(select(models.suppression.c.person, models.suppression.c.scope, models.suppression.c.reason)).all()
        assert (ADDRESS, "product", "unsubscribed") in rows and not any(row.person.startswith("erased:") for row in rows)
    # The link of the mail from before closes the address itself, now that it is known again.
    with engine.begin() as conn:
        conn.execute(text("update message set topic = 'survey' where id = :id"), {"id": sent[KEY]})
    client.post(path(cast.links.unsubscribe(sent[KEY])), data={"List-Unsubscribe": "One-Click"})
    with engine.connect() as conn:
        closed = conn.execute(select(models.suppression.c.scope).where(models.suppression.c.person == ADDRESS)).scalars().all()
    assert sorted(closed) == ["product", "survey"]
    erased(engine, "contact", "another-id", tmp_path)
    assert ADDRESS not in everything(engine)
    with engine.connect() as conn:
        assert len(conn.execute(select(models.suppression).where(models.suppression.c.person.like("erased:%"))).all()) == 2


@pytest.mark.parametrize("reason", ["bounced", "complained"])
def test_a_bounce_and_a_complaint_outlive_the_erasure(engine, world, tmp_path, reason):
    with engine.begin() as conn:
        conn.execute(
            models.suppression.insert().values(person=ADDRESS, scope=reason, reason=reason, created_at=SENT, evidence={"reply": ADDRESS})
        )
    erased(engine, "contact", KEY, tmp_path)
    post(engine, "identify", {"email": ADDRESS}, account="acme", contact="another-id")
    with engine.connect() as conn:
        assert conn.execute(
            select(models.suppression.c.reason).where(models.suppression.c.scope == reason, models.suppression.c.person == ADDRESS)
        ).one()


def test_an_address_that_another_contact_has_keeps_its_choices(engine, world, tmp_path):
    with engine.begin() as conn:
        add_contact(conn, world[1], "twin", address=ADDRESS, person=ADDRESS)
    done = erased(engine, "contact", KEY, tmp_path)
    assert "another contact" in done.notes[0]
    with engine.connect() as conn:
        assert consents.read(conn, [ADDRESS])
        assert conn.execute(select(models.suppression.c.scope).where(models.suppression.c.person == ADDRESS)).scalars().all() == ["product"]
        assert respond.find_message(conn, world[3][KEY]).people == (ADDRESS,)


def test_an_account_goes_with_those_who_belong_to_no_other(engine, world, tmp_path):
    with engine.begin() as conn:
        other = add_account(conn, "birch")
        conn.execute(models.membership.insert().values(account_id=other, contact_id=world[2]["user-ben"], joined_at=NOW))
    done = erased(engine, "account", "acme", tmp_path)
    left = everything(engine)
    for needle in (KEY, ADDRESS, 'Acme"', '"acme"'):
        assert needle not in left, [line for line in left.splitlines() if needle in line][:3]
    assert "ben@example.org" in left and "birch" in left
    assert done.finished_at and done.counts["membership"] == 2
    with engine.connect() as conn:
        assert conn.execute(text("select count(*) from message where state = 'sent'")).scalar_one() == 2


def test_an_export_has_everything_and_an_erasure_deletes_its_file(engine, world, tmp_path):
    with engine.connect() as conn:
        name = erase.export_name(conn, "contact", KEY, clock())
        assert KEY not in name
        with (tmp_path / name).open("w+b") as file:
            counts = write_zip(conn, "contact", KEY, clock(), file)
        whole = collect(conn, "contact", KEY, clock())
    with zipfile.ZipFile(tmp_path / name) as archive:
        assert ADDRESS in archive.read("profile.json").decode()
        assert {one.removesuffix(".json") for one in archive.namelist()} == {"profile", "about", *counts}
    for part in ("events", "messages", "consents", "answers", "delivery_events", "hits", "suppressions", "holds", "decisions"):
        assert counts[part] == len(whole[part]) > 0, part
    assert "ben@example.org" not in str(whole)
    done = erased(engine, "contact", KEY, tmp_path)
    assert done.counts["export files"] == 1 and not (tmp_path / name).exists()


def test_the_api(engine, world, client, tmp_path):
    with engine.begin() as conn:
        read, admin = ({"Authorization": f"Bearer {create_key(conn, scope, scope, clock())}"} for scope in ("read", "admin"))
    [said] = [one for one in client.get(f"/api/v1/contacts/{KEY}/consents", headers=read).json["data"] if one["purpose"] == "product"]
    assert (said["words"], said["network"], said["granted"]) == ("Product", "192.0.2.0/24", False)
    assert client.get(f"/api/v1/contacts/{KEY}/export", headers=read).status_code == 403
    assert client.get(f"/api/v1/contacts/{KEY}/export", headers=admin).json["profile"]["address"] == ADDRESS
    assert client.get("/api/v1/accounts/acme/export", headers=admin).json["health"] == []
    asked = client.post(f"/api/v1/contacts/{KEY}/erase", headers=admin)
    assert asked.status_code == 202 and asked.json["finished_at"] is None and asked.json["requested_by"] == "API key admin"
    assert client.get(f"/api/v1/contacts/{KEY}", headers=read).status_code == 404
    assert erase.work(engine, clock, tmp_path) == 1
    done = client.get(f"/api/v1/erasures/{asked.json['id']}", headers=admin).json
    assert done["finished_at"] and done["counts"]["event"] >= 3
    assert client.post(f"/api/v1/contacts/{KEY}/erase", headers=admin).json["id"] == done["id"]
    assert client.get("/api/v1/erasures/x", headers=admin).status_code == 404
    assert client.post("/api/v1/contacts/nobody/erase", headers=admin).status_code == 404


def test_the_commands(engine, world, settings, monkeypatch, capsys):
    for name, value in {"NURTURE_HOME": settings.home, "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["export", "contact", KEY]) == 0
    assert [file.name.split("-")[0] for file in settings.exports.iterdir()] == ["contact"]
    assert main(["consents", KEY]) == 0 and "open_tracking" in capsys.readouterr().out
    assert main(["erase", "contact", KEY]) == 2 and "--yes" in capsys.readouterr().err
    assert main(["erase", "contact", KEY, "--yes"]) == 0
    shown = capsys.readouterr().out
    assert "Receipt of an erasure" in shown and KEY not in shown and ADDRESS not in shown
    assert main(["erase", "contact", KEY, "--yes"]) == 0 and capsys.readouterr().out == shown
    assert not list(settings.exports.iterdir()) and KEY not in everything(engine)
