"""Keys, sign-in links and sessions: what opens, what does not, and for how long."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import text

from app.errors import InputError
from app.flow import access
from tests.conftest import NOW


def test_a_key_is_found_by_what_was_shown_once_and_only_its_hash_is_stored(engine):
    with engine.begin() as conn:
        key = access.create_key(conn, "product", "write", NOW)
        found = access.find_key(conn, key)
        stored = conn.execute(text("select k::text from api_key k")).scalar_one()
    prefix, key_id, secret = key.split("_", 2)
    assert prefix == "nk" and len(secret) == 43
    assert found == access.Key(key_id, "product", "write", found.source_id)
    assert secret not in stored


@pytest.mark.parametrize("presented", ["", "nk_", "nk_x_y", "nope", "nk_" + "a" * 300, "nk_\x00_x", "nk_\ud800"])
def test_what_is_no_key_finds_none(engine, presented):
    with engine.begin() as conn:
        access.create_key(conn, "product", "write", NOW)
        assert access.find_key(conn, presented) is None


def test_a_key_with_one_character_changed_finds_none(engine):
    with engine.begin() as conn:
        key = access.create_key(conn, "product", "read", NOW)
        changed = key[:-1] + ("A" if key[-1] != "A" else "B")
        assert access.find_key(conn, changed) is None
        assert access.find_key(conn, key) is not None


def test_scopes(engine):
    allowed = {}
    with engine.begin() as conn:
        for scope in access.SCOPES:
            key = access.find_key(conn, access.create_key(conn, scope, scope, NOW))
            allowed[scope] = {s for s in access.SCOPES if key.allows(s)}
            assert (key.source_id is not None) == (scope == "write")
    assert allowed == {"write": {"write"}, "read": {"read"}, "admin": {"read", "admin"}, "inbound": {"inbound"}}


def test_two_write_keys_of_one_name_share_the_source(engine):
    with engine.begin() as conn:
        first = access.find_key(conn, access.create_key(conn, "product", "write", NOW))
        second = access.find_key(conn, access.create_key(conn, "product", "write", NOW))
        other = access.find_key(conn, access.create_key(conn, "crm", "write", NOW))
    assert first.source_id == second.source_id != other.source_id
    assert 0 not in (first.source_id, other.source_id)


@pytest.mark.parametrize(("name", "scope"), [("", "read"), ("x" * 101, "read"), ("a\nb", "read"), ("ok", "root"), ("Nurture", "write")])
def test_bad_names_and_scopes_are_refused(engine, name, scope):
    with engine.begin() as conn, pytest.raises(InputError):
        access.create_key(conn, name, scope, NOW)


def test_a_revoked_key_is_refused_at_once(engine):
    with engine.begin() as conn:
        key = access.create_key(conn, "product", "read", NOW)
        key_id = access.find_key(conn, key).id
        assert access.revoke_key(conn, key_id, NOW)
        assert access.find_key(conn, key) is None
        assert not access.revoke_key(conn, key_id, NOW)
        assert [(k.id, k.revoked_at) for k in access.list_keys(conn)] == [(key_id, NOW)]


def test_the_last_use_is_written_once_a_minute_and_never_waits(engine):
    def last_used():
        with engine.connect() as conn:
            return conn.execute(text("select last_used_at from api_key")).scalar_one()

    with engine.begin() as conn:
        key = access.create_key(conn, "product", "write", NOW)
    for seconds, expected in ((0, 0), (59, 0), (61, 61)):
        with engine.begin() as conn:
            access.find_key(conn, key, NOW + timedelta(seconds=seconds))
        assert last_used() == NOW + timedelta(seconds=expected)
    later = NOW + timedelta(hours=1)
    with engine.begin() as holder, engine.begin() as conn:
        access.find_key(holder, key, later)
        conn.execute(text("set local lock_timeout = 200"))
        assert access.find_key(conn, key, later) is not None


def test_a_sign_in_link_works_once_within_24_hours(engine):
    with engine.begin() as conn:
        token = access.create_sign_in(conn, NOW)
        session = access.sign_in(conn, token, NOW + timedelta(hours=23), "Firefox")
        assert session and access.session_valid(conn, session, NOW + timedelta(hours=23))
        assert access.sign_in(conn, token, NOW + timedelta(hours=23)) is None
        late = access.create_sign_in(conn, NOW)
        assert access.sign_in(conn, late, NOW + timedelta(hours=24)) is None
        assert access.sign_in(conn, "made-up", NOW) is None


def test_a_link_used_by_many_at_once_signs_one_in(engine):
    with engine.begin() as conn:
        token = access.create_sign_in(conn, NOW)
    got, start = [], threading.Barrier(5)

    def use():
        start.wait()
        with engine.begin() as conn:
            got.append(access.sign_in(conn, token, NOW))

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 5 and sum(session is not None for session in got) == 1


def test_a_session_ends_idle_after_12_hours_and_for_good_after_7_days(engine):
    with engine.begin() as conn:
        idle = access.sign_in(conn, access.create_sign_in(conn, NOW), NOW)
        busy = access.sign_in(conn, access.create_sign_in(conn, NOW), NOW)
        assert access.session_valid(conn, idle, NOW + timedelta(hours=11, minutes=59))
        hours = 0
        while access.session_valid(conn, busy, NOW + timedelta(hours=hours)):
            hours += 1
        assert hours == 7 * 24
        assert not access.session_valid(conn, idle, NOW + timedelta(hours=24))


def test_signing_out_ends_one_session_and_signing_all_out_ends_every_one(engine):
    with engine.begin() as conn:
        tokens = [access.sign_in(conn, access.create_sign_in(conn, NOW), NOW) for _ in range(3)]
        unused = access.create_sign_in(conn, NOW)
        assert access.end_session(conn, tokens[0], NOW)
        assert [access.session_valid(conn, token, NOW) for token in tokens] == [False, True, True]
        assert access.end_all_sessions(conn, NOW) == 2
        assert not any(access.session_valid(conn, token, NOW) for token in tokens)
        assert access.sign_in(conn, unused, NOW) is None
