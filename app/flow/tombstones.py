"""Tombstones: what is kept of an erased address, so that it stays suppressed where it was (P-10).

An erased address is a keyed hash. Its suppressions stand under that hash, and the messages that went to it name it, so that their
unsubscribe links go on working. When somebody posts the address anew, its suppressions are its own again. The key comes from the oldest
key of the links in mails, which is in every backup and never deleted.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection

from app.flow.links import derive, load_keyring

PREFIX = "erased:"


def pseudonyms(conn: Connection, texts: Iterable[str], purpose: str = "erased-address") -> dict[str, str]:
    """The keyed hash of each text, with its prefix; the same for the life of the installation."""
    wanted = list(dict.fromkeys(texts))
    if not wanted:
        return {}
    ring = load_keyring(conn)
    key = derive(ring.keys[min(ring.keys)], purpose)
    return {one: PREFIX + hmac.digest(key, one.encode(), "sha256").hex() for one in wanted}


def bury(conn: Connection, people: Sequence[str], now: datetime) -> dict[str, str]:
    """Puts tombstones in the place of these addresses, and returns them by address. Suppressions in force go to stand under the tombstone,
    and the address's consent log is deleted; not so for an address that another contact still has. May be repeated."""
    found = pseudonyms(conn, people)
    if not found:
        return {}
    living = set(conn.exec_driver_sql(_LIVING, {"people": list(found)}).scalars())
    # Those who are known are found by the links of old mail as themselves.
    stones = {"names": list(found.values()), "people": [one if one in living else None for one in found], "now": now}
    conn.exec_driver_sql(_BURY, stones)
    gone = [one for one in found if one not in living]
    names = {"people": gone, "names": [found[one] for one in gone]}
    conn.exec_driver_sql(_MOVE, names)
    conn.exec_driver_sql("delete from suppression where person = any(%(people)s)", names)
    conn.exec_driver_sql("delete from hold where person = any(%(people)s)", names)
    conn.exec_driver_sql("select set_config('nurture.erasing', 'on', true)")
    conn.exec_driver_sql("delete from consent where person = any(%(people)s)", names)
    conn.exec_driver_sql("select set_config('nurture.erasing', '', true)")
    return found


def revive(conn: Connection, people: Sequence[str]) -> None:
    """Gives addresses that are told anew the suppressions that stand under their tombstones. Before anybody asks what is closed."""
    found = pseudonyms(conn, people)
    known = dict(conn.exec_driver_sql(_REVIVE, {"people": list(found), "names": list(found.values())}).all())
    if known:
        both = {"names": list(known), "people": list(known.values())}
        conn.exec_driver_sql(_MOVE_BACK, both)
        conn.exec_driver_sql("delete from suppression where person = any(%(names)s)", both)


_LIVING = "select distinct person from contact where person = any(%(people)s)"
_BURY = """
insert into tombstone (pseudonym, erased_at, person)
select n, %(now)s, p from unnest(%(names)s::text[], %(people)s::text[]) as r(n, p) order by n
on conflict (pseudonym) do update set erased_at = excluded.erased_at, person = excluded.person"""
_MOVE = """
insert into suppression (person, scope, reason, created_at)
select r.n, s.scope, s.reason, s.created_at from unnest(%(people)s::text[], %(names)s::text[]) as r(p, n)
join suppression s on s.person = r.p and s.lifted_at is null
on conflict (person, scope) where lifted_at is null do nothing"""
_REVIVE = """
update tombstone t set person = r.p from unnest(%(people)s::text[], %(names)s::text[]) as r(p, n)
where t.pseudonym = r.n and t.person is null returning t.pseudonym, t.person"""
_MOVE_BACK = """
insert into suppression (person, scope, reason, evidence, created_at)
select r.p, s.scope, s.reason, '{"kept": "tombstone"}', s.created_at from unnest(%(people)s::text[], %(names)s::text[]) as r(p, n)
join suppression s on s.person = r.n and s.lifted_at is null
on conflict (person, scope) where lifted_at is null do nothing"""
