"""Who may come in: API keys, one-time sign-in links, sessions of the console.

Only SHA-256 hashes are stored (X-33): each secret has 32 random bytes, is shown once and is found by its hash, so a stolen table
opens nothing. Everything here takes `now`; nothing here knows HTTP.

Scopes: `write` posts events and nothing else; `read` reads the API; `admin` reads and steers; `inbound` hands in mail that came and
nothing else. An `admin` key posts no events, as it has no source.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Row, and_, select, text, update

from app.errors import InputError
from app.models import api_key, console_session, sign_in_link, source

SCOPES = ("write", "read", "admin", "inbound")
LINK_LIFE = timedelta(hours=24)
SESSION_IDLE = timedelta(hours=12)
SESSION_LIFE = timedelta(days=7)
NOTED = timedelta(minutes=1)  # uses of a key or session are written down at most this often

_ALLOWS = {
    "write": frozenset({"write"}),
    "read": frozenset({"read"}),
    "admin": frozenset({"read", "admin"}),
    "inbound": frozenset({"inbound"}),
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is not revoked. `source_id` is whom its events come from; None for keys that post none."""

    id: str
    name: str
    scope: str
    source_id: int | None

    def allows(self, scope: str) -> bool:
        return scope in _ALLOWS[self.scope]


def create_key(conn: Connection, name: str, scope: str, now: datetime) -> str:
    """Makes a key and returns it: `nk_<id>_<secret>`. It cannot be shown again.

    A write key belongs to the source of its name, which is made if there is none: a second key of the same name posts for the same
    source, so that keys are rotated without posting anything twice. Raises InputError on a bad name or scope.
    """
    if scope not in SCOPES:
        raise InputError(f"must be one of {', '.join(SCOPES)}", "scope")
    name = name.strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise InputError("must be 1 to 100 printable characters", "name")
    if scope == "write" and name.lower() == "nurture":
        raise InputError("“nurture” is the engine's own source: choose another name", "name")
    key_id = secrets.token_hex(5)
    key = f"nk_{key_id}_{secrets.token_urlsafe(32)}"
    conn.execute(
        api_key.insert().values(
            id=key_id,
            name=name,
            scope=scope,
            hash=_hash(key),
            source_id=_source(conn, name) if scope == "write" else None,
            created_at=now,
        )
    )
    return key


def find_key(conn: Connection, presented: str, now: datetime | None = None) -> Key | None:
    """The key that was presented; None when it is unknown or revoked.

    With `now` the use is noted, once a minute at most and never waiting for another transaction that notes it.
    """
    if not presented.startswith("nk_") or len(presented) > 200:
        return None
    row = conn.execute(
        select(api_key.c.id, api_key.c.name, api_key.c.scope, api_key.c.source_id, api_key.c.last_used_at).where(
            api_key.c.hash == _hash(presented), api_key.c.revoked_at.is_(None)
        )
    ).first()
    if row is None:
        return None
    if now is not None and (row.last_used_at is None or row.last_used_at < now - NOTED):
        free = select(api_key.c.id).where(api_key.c.id == row.id).with_for_update(skip_locked=True).scalar_subquery()
        conn.execute(update(api_key).where(api_key.c.id == free).values(last_used_at=now))
    return Key(row.id, row.name, row.scope, row.source_id)


def list_keys(conn: Connection) -> list[Row]:
    """Every key ever made, revoked ones included, newest first; never a hash."""
    columns = (
        api_key.c.id,
        api_key.c.name,
        api_key.c.scope,
        api_key.c.source_id,
        api_key.c.created_at,
        api_key.c.last_used_at,
        api_key.c.revoked_at,
    )
    return list(conn.execute(select(*columns).order_by(api_key.c.created_at.desc(), api_key.c.id)))


def revoke_key(conn: Connection, key_id: str, now: datetime) -> bool:
    """Revokes the key of that id (the part between `nk_` and the next `_`) at once. False when there is no such valid key."""
    revoked = update(api_key).where(api_key.c.id == key_id, api_key.c.revoked_at.is_(None)).values(revoked_at=now)
    return conn.execute(revoked).rowcount == 1


def create_sign_in(conn: Connection, now: datetime) -> str:
    """A token that signs one person in to the console once, within 24 hours."""
    token = secrets.token_urlsafe(32)
    conn.execute(sign_in_link.insert().values(hash=_hash(token), created_at=now, expires_at=now + LINK_LIFE))
    return token


def sign_in(conn: Connection, token: str, now: datetime, user_agent: str | None = None) -> str | None:
    """Takes the link's token and gives a session's; None when the link is unknown, used or expired."""
    taken = conn.execute(
        update(sign_in_link)
        .where(sign_in_link.c.hash == _hash(token), sign_in_link.c.used_at.is_(None), sign_in_link.c.expires_at > now)
        .values(used_at=now)
    )
    if taken.rowcount != 1:
        return None
    session = secrets.token_urlsafe(32)
    agent = user_agent[:300].replace("\x00", "") if user_agent else None
    conn.execute(console_session.insert().values(hash=_hash(session), created_at=now, seen_at=now, user_agent=agent))
    return session


def session_valid(conn: Connection, token: str, now: datetime) -> bool:
    """Whether the session lives: seen within 12 hours, made within 7 days, not ended. Notes that it was seen, once a minute at most."""
    mine = _living(token, now)
    row = conn.execute(select(console_session.c.seen_at).where(mine)).first()
    if row is None:
        return False
    if row.seen_at < now - NOTED:
        conn.execute(update(console_session).where(mine).values(seen_at=now))
    return True


def end_session(conn: Connection, token: str, now: datetime) -> bool:
    """Ends one session (signing out). False when it had ended already."""
    return conn.execute(update(console_session).where(_living(token, now)).values(ended_at=now)).rowcount == 1


def end_all_sessions(conn: Connection, now: datetime) -> int:
    """Signs everybody out and voids every unused sign-in link. Returns the number of sessions ended."""
    conn.execute(update(sign_in_link).where(sign_in_link.c.used_at.is_(None)).values(used_at=now))
    return conn.execute(update(console_session).where(console_session.c.ended_at.is_(None)).values(ended_at=now)).rowcount


def _living(token: str, now: datetime):
    return and_(
        console_session.c.hash == _hash(token),
        console_session.c.ended_at.is_(None),
        console_session.c.seen_at > now - SESSION_IDLE,
        console_session.c.created_at > now - SESSION_LIFE,
    )


def _source(conn: Connection, name: str) -> int:
    # Looked up first: `on conflict` would use up a number of the small counter at every rotation.
    find = select(source.c.id).where(source.c.name == name)
    found = conn.execute(find).scalar()
    if found is not None:
        return found
    conn.execute(text("insert into source (name) values (:name) on conflict (name) do nothing"), {"name": name})
    return conn.execute(find).scalar_one()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
