"""What follows from events in the database: the heart, with everything it writes."""

from __future__ import annotations

import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import to_json
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from app.flow import states
from app.flow.advance import advance, run_partition
from app.flow.ingest import accept
from app.flow.items import read_items
from app.migrate import config
from app.models import (
    account,
    contact,
    decision,
    enrollment,
    event,
    event_pending,
    membership,
    message,
    milestone,
    parked,
    source,
    stage_history,
    suppression,
    usage_day,
)
from app.queue import Bells
from app.rules.facts import partition_of
from tests.stories import at, busy, group, identify, post, publish_campaigns, run, track

WELCOME = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
  - {id: pause, wait: 2d}
  - {id: tips, email: tips.mjml, subject: Tips}
"""
ADA = (group(name="Acorn", touch="smb", plan="pro"), identify(email="Ada@Example.com", first_name="Ada", roles=["admin"]))


@pytest.fixture
def published(engine, tmp_path):
    publish_campaigns(engine, tmp_path / "campaigns", {"onboarding/welcome": WELCOME})
    return engine


def rows(engine, table, *columns):
    with engine.connect() as conn:
        return [tuple(row) for row in conn.execute(select(*columns or [table]).select_from(table).order_by(*columns or [table.c.id]))]


def count(engine, table) -> int:
    with engine.connect() as conn:
        return conn.execute(select(func.count()).select_from(table)).scalar_one()


def test_accounts_contacts_and_memberships_follow_from_the_events(published):
    post(published, *ADA, track("setup_completed"), track("logged_in"), track("logged_in"))
    run(published)
    assert rows(published, account, account.c.external_id, account.c.name, account.c.touch, account.c.stage) == [
        ("acorn", "Acorn", "smb", "onboarding")
    ]
    assert rows(published, contact, contact.c.external_id, contact.c.person, contact.c.first_name) == [("ada", "ada@example.com", "Ada")]
    assert rows(published, membership, membership.c.roles) == [(["admin"],)]
    assert rows(published, milestone, milestone.c.name, milestone.c.reached_at) == [("setup_completed", at())]
    assert rows(published, usage_day, usage_day.c.metric, usage_day.c.count) == [("logins", 2)]
    assert rows(published, stage_history, stage_history.c.stage, stage_history.c.left_at) == [("onboarding", None)]
    assert count(published, event_pending) == 0
    names = [name for (name,) in rows(published, event, event.c.name)]
    assert names == sorted(
        ["group", "identify", "logged_in", "logged_in", "nurture.milestone_reached", "nurture.stage_entered", "setup_completed"]
    )


def test_an_event_becomes_a_message_with_its_reasons(published):
    post(published, *ADA, track("signed_up"))
    run(published)
    assert rows(published, message, message.c.step_id, message.c.state, message.c.due_at) == [("hello", "due", at())]
    assert rows(published, decision, decision.c.gate, decision.c.reason) == [("recipient", "queued"), ("trigger", "enrolled")]


def test_timers_are_found_when_they_are_due(published):
    post(published, *ADA, track("signed_up"))
    run(published)
    with published.begin() as conn:
        conn.execute(update(enrollment).values(step_id="pause", position={}, due_at=at("2d")))
    assert run(published, at("1d")) == 1  # the account's daily look, which finds nothing
    assert [step for (step,) in rows(published, message, message.c.step_id)] == ["hello"]
    assert run(published, at("2d")) == 2
    assert [step for (step,) in rows(published, message, message.c.step_id)] == ["hello", "tips"]


def test_the_size_of_the_batch_changes_nothing(engine, tmp_path):
    """The same events, one at a time or all at once, end in the same rows."""
    publish_campaigns(engine, tmp_path / "campaigns", {"onboarding/welcome": WELCOME})
    for key, batch in (("one", 1), ("many", 1000)):
        items = (group(key, f"{key}-c", name="A"), identify(f"{key}-c", key, email=f"{key}@example.com", roles="admin"))
        post(engine, *items, track("signed_up", f"{key}-c", key), track("report_shared", f"{key}-c", key), now=at(), name=key)
        run(engine, batch=batch)
    with engine.connect() as conn:
        first, second = (states.load(conn, keys=[key], acting=True, metrics=["logins"], now=at())[key] for key in ("one", "many"))
    assert (
        (first.stage, set(first.milestones), first.due_at)
        == (second.stage, set(second.milestones), second.due_at)
        == (
            "adoption",
            {"first_value"},
            at("1d"),
        )
    )
    assert [one.step for one in first.enrollments] == [one.step for one in second.enrollments] == ["hello"]


def test_invariant_2_one_active_enrollment_whoever_runs(published):
    """The same trigger many times, advanced by four threads at once: one enrollment, one message."""
    post(published, *ADA)
    for number in range(20):
        post(published, {**track("signed_up"), "messageId": f"again-{number}"})
    place = partition_of("acorn", 64)
    threads = [threading.Thread(target=run_partition, args=(published, Bells(None), place, at), kwargs={"batch": 3}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(published)
    assert (count(published, enrollment), count(published, message), count(published, event_pending)) == (1, 1, 0)
    reasons = [reason for (reason,) in rows(published, decision, decision.c.reason)]
    assert reasons.count("already_enrolled") == 19


def test_invariant_3_one_effect_per_step_occurrence_and_contact(published):
    """Whatever is written again for the same step, occurrence and contact is not a second message."""
    post(published, *ADA, track("signed_up"))
    run(published)
    columns = [f'"{column.name}"' for column in message.c if column.name != "id"]
    copied = f"insert into message (id, {', '.join(columns)}) select gen_random_uuid(), {', '.join(columns)} from message"
    with published.begin() as conn, pytest.raises(IntegrityError, match="uq_message_enrollment_id"):
        conn.execute(text(copied))


def test_a_crash_in_the_middle_is_a_batch_that_never_happened(published):
    """The server kills the transaction just before it commits: nothing is written, and the next run does it all."""
    post(published, *ADA, track("signed_up"))
    with pytest.raises(OperationalError), published.begin() as conn:
        advance(conn, partition_of("acorn", 64), at(), 1000)
        with published.connect() as other:
            pid = conn.exec_driver_sql("select pg_backend_pid()").scalar()
            other.exec_driver_sql("select pg_terminate_backend(%(pid)s)", {"pid": pid})
    assert (count(published, account), count(published, event_pending)) == (0, 3)
    run(published)
    assert (count(published, message), count(published, event_pending)) == (1, 0)


def test_whoever_loses_a_deadlock_begins_again(published):
    """Somebody holds one of two people of the batch and then wants the other: PostgreSQL takes the batch back, which is done over."""
    post(published, *ADA, identify("ben", email="ben@example.com", roles=["user"]))
    run(published)
    post(published, identify(first_name="Augusta"), identify("ben", first_name="Benjamin"), now=at("1m"))
    mine = "select id from contact where external_id = %(key)s for update"
    advancing = threading.Thread(target=run_partition, args=(published, Bells(None), partition_of("acorn", 64), lambda: at("1m")))
    with published.begin() as other, published.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
        other.exec_driver_sql(mine, {"key": "ben"})
        advancing.start()
        while not watcher.exec_driver_sql("select count(*) from pg_locks where not granted").scalar():
            assert advancing.is_alive()
        other.exec_driver_sql(mine, {"key": "ada"})
    advancing.join(30)
    assert sorted(name for (name,) in rows(published, contact, contact.c.first_name)) == ["Augusta", "Benjamin"]
    assert (count(published, event_pending), count(published, parked)) == (0, 0)


def test_what_a_batch_that_never_happened_saw_is_seen_again(published):
    """Contacts are noted as seen once a day by each process: a note of a transaction that was rolled back does not count."""
    post(published, *ADA)
    run(published)
    with published.begin() as conn:
        conn.execute(text("create function away() returns trigger as $$ begin raise 'away'; end $$ language plpgsql"))
        conn.execute(text("create trigger away before delete on event_pending execute function away()"))
    post(published, track("logged_in"), now=at("1m"))
    run(published, at("1m"))
    assert count(published, parked) == 1
    with published.begin() as conn:
        conn.execute(text("drop trigger away on event_pending"))
        conn.execute(update(parked).values(released_at=at("2m")))
    run(published, at("2m"))
    assert rows(published, contact, contact.c.last_seen_at) == [(at("1m"),)]


def test_poison_parks_its_account_only(published):
    """An event that makes the rules raise is parked with its traceback; its account waits, the others go on; a retry goes on where it
    stopped."""
    post(published, *ADA, group("bolt", "bo"), identify("bo", "bolt", email="bo@example.com", roles="admin"))
    run(published)
    with published.begin() as conn:
        # No event we know of makes the rules raise, so the test damages what they read.
        conn.execute(update(account).where(account.c.external_id == "acorn").values(candidates=[{"damaged": True}]))
    post(published, group(name="Poison"), track("signed_up"), track("signed_up", "bo", "bolt"), now=at("1m"))
    run(published, at("1m"))
    [(key, what, trace)] = rows(published, parked, parked.c.account_key, parked.c.occurrence, parked.c.traceback)
    assert key == "acorn"
    assert what.startswith("event:")
    assert "KeyError: 'version'" in trace
    assert rows(published, event_pending, event_pending.c.account_key) == [("acorn",), ("acorn",)]
    assert count(published, message) == 1
    with published.begin() as conn:
        conn.execute(update(account).values(candidates=[]))
        conn.execute(update(parked).values(released_at=at("2m")))
    run(published, at("2m"))
    assert (count(published, message), count(published, event_pending)) == (2, 0)


def test_a_contact_without_account_belongs_to_its_sole_membership(published):
    post(published, *ADA)
    run(published)
    post(published, track("signed_up", "ada", None), now=at("1m"))
    run(published, at("1m"))
    assert count(published, message) == 1


def test_an_account_less_event_in_the_same_batch_waits_for_the_membership(published):
    post(published, track("signed_up", "ada", None), *ADA)
    run(published)
    assert count(published, message) == 1


def test_nobody_waits_for_a_membership_behind_a_parked_account(published):
    with published.begin() as conn:
        values = {"partition": partition_of("acorn", 64), "account_key": "acorn", "occurrence": "event:0", "error": "x", "traceback": "x"}
        conn.execute(parked.insert().values(**values, parked_at=at()))
    post(published, *ADA, track("signed_up", "ada", None))
    run(published)
    assert [reason for (reason,) in rows(published, decision, decision.c.reason)] == ["account_ambiguous"]
    assert rows(published, event_pending, event_pending.c.account_key) == [("acorn",), ("acorn",)]


def test_with_several_accounts_or_none_the_ledger_says_ambiguous(published):
    post(published, *ADA, group("bolt", "ada"), identify("lone", None, email="lone@example.com"))
    run(published)
    post(published, track("signed_up", "ada", None), track("signed_up", "lone", None), track("signed_up", "nobody", None), now=at("1m"))
    run(published, at("1m"))
    assert [reason for (reason,) in rows(published, decision, decision.c.reason)] == ["account_ambiguous"] * 3
    assert rows(published, contact, contact.c.external_id, contact.c.person)[1] == ("lone", "lone@example.com")
    assert count(published, event_pending) == 0


def test_a_contact_told_of_under_two_accounts_in_one_batch_keeps_everything(published):
    post(published, identify("ada", "acorn", first_name="Ada", roles="admin"), identify("ada", "bolt", last_name="L.", roles="user"))
    run(published)
    assert rows(published, contact, contact.c.first_name, contact.c.last_name) == [("Ada", "L.")]
    assert sorted(rows(published, membership, membership.c.roles)) == [(["admin"],), (["user"],)]


def test_an_alias_leads_later_events_to_the_contact(published):
    post(published, *ADA, {"type": "alias", "userId": "ada", "previousId": "old-ada"})
    run(published)
    post(published, track("signed_up", "old-ada", None), now=at("1m"))
    run(published, at("1m"))
    assert count(published, message) == 1


def test_who_is_anonymous_becomes_somebody_by_an_alias(published):
    """What was said under the anonymousId is the contact's once the alias is known, and mail finds it."""
    anonymous = {"anonymousId": "a-1", "context": {"groupId": "acorn"}}
    post(published, group(contact=None), {"type": "identify", **anonymous, "traits": {"email": "ada@example.com", "roles": "admin"}})
    run(published)
    post(published, {"type": "alias", "userId": "ada", "previousId": "a-1"}, now=at("1m"))
    run(published, at("1m"))
    post(published, track("signed_up"), {"type": "track", "event": "logged_in", **anonymous}, now=at("2m"))
    run(published, at("2m"))
    assert rows(published, contact, contact.c.external_id, contact.c.person) == [("ada", "ada@example.com")]
    assert count(published, message) == 1
    assert ("identify", "ada") in rows(published, event, event.c.name, event.c.contact_key)


def test_an_alias_waits_for_what_tells_of_the_former_id_in_another_partition(published):
    """A worker may have the account's partition in hand when another comes to the alias: the contact is renamed, not left behind."""
    new, own = next(
        (f"ada-{n}", partition_of(f"ada-{n}", 64)) for n in range(9) if partition_of(f"ada-{n}", 64) != partition_of("acorn", 64)
    )
    post(published, group(contact=None), identify("old", email="ada@example.com", roles="admin"))
    post(published, {"type": "alias", "userId": new, "previousId": "old"}, now=at("1m"))
    with published.begin() as conn:
        assert advance(conn, own, at("1m"), 1000).processed == 0
    assert count(published, event_pending) == 3
    run(published, at("1m"))
    run(published, at("1m"))
    assert count(published, event_pending) == 0
    assert rows(published, contact, contact.c.external_id, contact.c.person) == [(new, "ada@example.com")]


@pytest.mark.parametrize("batch", [1, 1000])
def test_whom_nobody_has_told_of_was_seen_all_the_same(published, batch):
    """A contact that is busy before it is told of was seen then, whether that comes in one batch or in two."""
    post(published, group(contact=None), track("logged_in", "late"), now=at())
    post(published, identify("late", email="late@example.com", roles="user"), now=at("1h"))
    for partition in range(64):
        run_partition(published, Bells(None), partition, lambda: at("1h"), batch=batch)
    assert rows(published, contact, contact.c.last_seen_at) == [(at(),)]


def test_two_former_ids_of_one_contact_stop_nobody(published):
    post(published, identify("a-1"), identify("a-2"))
    run(published)
    aliases = [{"type": "alias", "userId": "ada", "previousId": former} for former in ("a-1", "a-2", "nobody", "ada")]
    post(published, *aliases, now=at("1m"))
    run(published, at("1m"))
    assert count(published, parked) == count(published, event_pending) == 0
    assert "ada" in {key for (key,) in rows(published, contact, contact.c.external_id)}


def test_old_events_and_history_enroll_nobody(published):
    post(published, *ADA, {**track("signed_up"), "timestamp": at("-4d").isoformat()})
    post(published, track("signed_up"), now=at("1m"), mark="backfill")
    run(published, at("1m"))
    assert count(published, message) == 0
    assert sorted(reason for (reason,) in rows(published, decision, decision.c.reason)) == ["backfill", "too_old"]


def test_invariant_7_versions_do_not_move(published, tmp_path):
    """Whoever is inside stays on the version they entered; who enters later gets the new one."""
    post(published, *ADA, track("signed_up"))
    run(published)
    publish_campaigns(published, tmp_path / "campaigns", {"onboarding/welcome": WELCOME.replace("wait: 2d", "wait: 9d")}, at("1h"))
    post(published, group("bolt", "bo"), identify("bo", "bolt", email="bo@example.com"), track("signed_up", "bo", "bolt"), now=at("2h"))
    run(published, at("2h"))
    with published.connect() as conn:
        found = conn.execute(
            text("select v.number, count(*) from enrollment e join campaign_version v on v.id = e.version_id group by 1 order by 1")
        )
        assert [tuple(row) for row in found] == [(1, 1), (2, 1)]


def test_a_paused_campaign_freezes_its_timers(published):
    post(published, *ADA, track("signed_up"))
    run(published)
    with published.begin() as conn:
        conn.execute(update(enrollment).values(step_id="pause", position={}, due_at=at("2d")))
        conn.execute(text("update campaign set mode = 'paused'"))
    with published.connect() as conn:
        before = conn.execute(select(enrollment.c.step_id)).scalar_one()
    place = busy(published, at("3d"))
    for partition in place:
        run_partition(published, Bells(None), partition, lambda: at("3d"))
    assert rows(published, enrollment, enrollment.c.step_id) == [(before,)]


def test_a_busy_partition_is_not_called_done(published):
    post(published, *ADA)
    place = partition_of("acorn", 64)
    with published.begin() as holder:
        holder.execute(text("select pg_advisory_xact_lock(1, :p)"), {"p": place})
        rung = []
        bells = Bells(None)
        bells.advance = rung.append  # the bell itself is queue's to test
        assert run_partition(published, bells, place, at) == 0
        assert rung == [[place]]
    assert run(published) == 2


def test_usage_is_seen_by_conditions(engine, tmp_path):
    text_ = WELCOME.replace("trigger: {event: signed_up}", "trigger: {event: signed_up}\naudience: usage.logins.last_7d >= 2")
    publish_campaigns(engine, tmp_path / "campaigns", {"onboarding/welcome": text_})
    post(engine, *ADA, {**track("logged_in"), "timestamp": at("-2d").isoformat()}, track("signed_up"))
    run(engine)
    assert count(engine, message) == 0
    post(engine, track("logged_in"), track("signed_up"), now=at() + timedelta(hours=1))
    run(engine, at("1h"))
    assert count(engine, message) == 1


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.sampled_from(
        ["0001-01-01", "9999-12-31T23:59:59-14:00", "2026-02-30", "Europe/Berlin", "../../etc", "a@b.example", "a@b", "@", "x" * 400]
        + ["a@" + "b" * 300 + ".example", "ä@ü.example", "a\r\nBcc: b@c.example", "admin,champion", "\u202eevil", "de-AT", "1e999"]
    ),
)
JSON = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)
NAMES = ["name", "touch", "timezone", "owner", "seats", "created_at", "renewal_date", "revenue", "email", "first_name", "lastName", "roles"]
TRAITS = st.dictionaries(st.sampled_from([*NAMES, "locale", "plan", "partner", "title", "anything"]), JSON, max_size=8)
KINDS = st.sampled_from(["group", "identify", "track", "alias", "page"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(KINDS, TRAITS, st.sampled_from(["acorn", "bolt"]), st.sampled_from(["ada", "bo", None])), min_size=1, max_size=8))
def test_invariant_12_nothing_from_outside_stops_a_worker(published, story):
    """Whatever traits and properties say, nothing is parked, nothing stays pending, and the next account is served."""
    said = uuid4().hex
    items = []
    for number, (kind, traits, key, who) in enumerate(story):
        item = {"type": kind, "messageId": f"{said}-{number}", "context": {"groupId": key}, "timestamp": at().isoformat()}
        item |= {"userId": who} if who else {"anonymousId": "x"}
        item |= {"traits": traits} if kind in ("group", "identify") else {"properties": traits}
        item |= {"groupId": key} if kind == "group" else {"previousId": "old"} if kind == "alias" else {"event": "signed_up"}
        items.append(item)
    read, _ = read_items(to_json({"batch": items}), at())  # what the API refuses never comes this far
    with published.begin() as conn:
        ident = conn.execute(select(source.c.id).where(source.c.name == "odd")).scalar()
        ident = ident or conn.execute(source.insert().values(name="odd").returning(source.c.id)).scalar_one()
        accept(conn, ident, read, at(), 64)
    run(published)
    assert rows(published, parked, parked.c.traceback) == []
    assert count(published, event_pending) == 0


def test_an_account_is_as_old_as_its_first_event_whatever_the_batch(engine, tmp_path):
    """Events may be stored in another order than they were received; and all that counts from the account's birth follows from it."""
    publish_campaigns(engine, tmp_path / "c", {})
    post(engine, track("logged_in", key="late"), now=at("2m"))
    post(engine, track("report_viewed", key="late"), now=at("1m"))
    run(engine, at("1h"))
    with engine.connect() as conn:
        assert conn.execute(select(account.c.created_at)).scalar_one() == at("1m")


SHARED = """
name: Shared
stage: onboarding
topic: product
trigger: {event: signed_up}
recipients: {roles: [admin, user], pick: first}
steps: [{id: hello, email: hello.mjml, subject: Hello}]
"""


@pytest.mark.parametrize("batch", [1000, 1])
def test_an_address_is_as_closed_as_it_is_whoever_has_it_now(engine, tmp_path, batch):
    """Whoever takes an address that bounced, or leaves one, is reached accordingly by the very batch that tells so."""
    publish_campaigns(engine, tmp_path / "c", {"onboarding/shared": SHARED})
    with engine.begin() as conn:
        conn.execute(suppression.insert().values(person="gone@example.com", scope="bounced", reason="bounced", created_at=at()))
    ben = identify("ben", email="ben@example.com", roles=["user"])
    post(engine, identify(email="gone@example.com", roles=["admin"]), ben, track("signed_up"))
    cy = identify("cy", "birch", email="gone@example.com", roles=["admin"])
    post(engine, cy, identify("cy", "birch", email="cy@example.com"), track("signed_up", "cy", "birch"), now=at("1m"))
    run(engine, at("2m"), batch=batch)
    with engine.connect() as conn:
        found = select(contact.c.external_id).select_from(message.join(contact, contact.c.id == message.c.contact_id))
        assert sorted(conn.execute(found).scalars()) == ["ben", "cy"]


@pytest.mark.parametrize("batch", [1000, 1])
def test_an_event_of_the_same_instant_puts_no_daily_look_off(engine, tmp_path, batch):
    silent = """
    name: Silent
    stage: onboarding
    topic: product
    enrolls: contact
    trigger: {inactive: {days: 2}}
    steps: [{id: miss, email: miss.mjml, subject: Miss}]
    """
    publish_campaigns(engine, tmp_path / "c", {"onboarding/silent": silent})
    post(engine, *ADA)
    run(engine, at("1h"))
    post(engine, group(plan="free"), now=at("2d"))
    run(engine, at("50h"), batch=batch)
    assert rows(engine, message, message.c.step_id, message.c.created_at) == [("miss", at("2d"))]


@pytest.mark.parametrize("batch", [1000, 1])
def test_a_late_event_does_not_make_a_contact_seen_earlier(engine, tmp_path, batch):
    publish_campaigns(engine, tmp_path / "c", {})
    post(engine, *ADA)
    run(engine, at("1m"))
    late = track("logged_in") | {"timestamp": at("2d").isoformat()}
    post(engine, track("logged_in"), now=at("3d"))
    post(engine, late, now=at("3d1h"))
    run(engine, at("3d2h"), batch=batch)
    assert rows(engine, contact, contact.c.last_seen_at) == [(at("3d"),)]


@pytest.mark.parametrize("batch", [1000, 1])
def test_who_is_no_contact_yet_is_seen_as_soon_as_he_is_one(engine, tmp_path, batch):
    """What somebody did before anybody told of him is known when he is told of, and the days after that are seen as well."""
    publish_campaigns(engine, tmp_path / "c", {})
    post(engine, group(contact=None), track("logged_in"))
    run(engine, batch=batch)
    post(engine, track("logged_in"), *ADA, now=at("1h"))
    run(engine, at("1h"), batch=batch)
    assert rows(engine, contact, contact.c.last_seen_at) == [(at("1h"),)]
    post(engine, track("logged_in"), now=at("26h"))
    run(engine, at("26h"), batch=batch)
    assert rows(engine, contact, contact.c.last_seen_at) == [(at("26h"),)]


def test_what_was_rolled_back_was_not_seen(engine, tmp_path):
    publish_campaigns(engine, tmp_path / "c", {})
    post(engine, *ADA)
    run(engine)
    post(engine, track("logged_in"), now=at("1h"))
    with engine.connect() as conn:
        advance(conn, busy(engine, at("1h"))[0], at("1h"), 100)
        conn.rollback()
    run(engine, at("1h"))
    assert rows(engine, contact, contact.c.last_seen_at) == [(at("1h"),)]


@pytest.mark.parametrize("batch", [1000, 1])
def test_who_was_seen_under_the_former_id_was_seen(engine, tmp_path, batch):
    publish_campaigns(engine, tmp_path / "c", {})
    post(engine, group(contact="a-1"), identify("a-1", email="a@example.com"))
    run(engine)
    post(engine, track("logged_in", "a-1"), {"type": "alias", "userId": "ada", "previousId": "a-1"}, now=at("1h"))
    run(engine, at("1h"), batch=batch)
    assert rows(engine, contact, contact.c.external_id, contact.c.last_seen_at) == [("ada", at("1h"))]


SILENT = """
name: Silent
stage: onboarding
topic: product
enrolls: contact
reentry: {after: 1h}
trigger: {inactive: {days: 2}}
steps: [{id: miss, email: miss.mjml, subject: Miss}]
"""


def silences(engine):
    return [name for (name,) in rows(engine, event, event.c.name) if name == "nurture.contact_inactive"]


def test_a_silence_is_told_once_whatever_the_contact_is_called(engine, tmp_path):
    publish_campaigns(engine, tmp_path / "c", {"onboarding/silent": SILENT})
    post(engine, group(contact="a-1"), identify("a-1", email="a@example.com"))
    run(engine)
    run(engine, at("3d"))
    assert len(silences(engine)) == 1
    post(engine, {"type": "alias", "userId": "ada", "previousId": "a-1"}, now=at("73h"))
    for day in range(4, 8):
        run(engine, at(f"{day}d"))
    assert rows(engine, contact, contact.c.external_id) == [("ada",)] and len(silences(engine)) == 1


def test_what_was_told_before_an_update_is_not_told_again(engine, tmp_path):
    """An older database called people by their ids in what an account remembers."""
    publish_campaigns(engine, tmp_path / "c", {"onboarding/silent": SILENT})
    post(engine, group(), identify(email="ada@example.com"))
    run(engine)
    run(engine, at("3d"))
    with engine.begin() as conn:
        command.downgrade(config(conn), "0002")
        assert conn.execute(text("select jsonb_object_keys(watched) from account")).scalars().all() == ["inactive:*:2@ada"]
        command.upgrade(config(conn), "head")
    run(engine, at("5d"))
    assert len(silences(engine)) == 1


def test_who_leaves_by_an_event_that_nothing_else_hears_begins_elsewhere_with_his_people(engine, tmp_path):
    leaving = WELCOME.replace("steps:", "exit_when: event.name == 'cancelled'\nsteps:").replace("hello.mjml", "hi.mjml")
    after = """
    name: After
    stage: onboarding
    topic: product
    trigger: {campaign: {campaign: onboarding/welcome, result: exited}}
    recipients: {roles: [admin]}
    steps: [{id: sorry, email: sorry.mjml, subject: Sorry}]
    """
    publish_campaigns(engine, tmp_path / "c", {"onboarding/welcome": leaving, "onboarding/after": after})
    post(engine, *ADA, track("signed_up"))
    run(engine)
    post(engine, track("cancelled"), now=at("1h"))
    run(engine, at("1h"))
    assert ("sorry",) in rows(engine, message, message.c.step_id)
