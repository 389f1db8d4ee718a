"""Channels: where alerts and webhooks go. `lifecycle.yaml` names them, an installation gives them its addresses, kept sealed (X-44).

One whose address is said to be gone for good is disabled, and nothing is called there until somebody enables it by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert

from app.config import Settings
from app.errors import InputError, NotFound, RenderSkip
from app.flow import mime
from app.flow.seals import Sealed, seal, unseal
from app.models import setting
from app.providers.outgoing import Caller, new_secret

KINDS = ("slack", "webhook", "email")
OLD_SECRET_LIFE = timedelta(hours=24)  # how long both sign after a rotation

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PREFIX = "channel:"
_DISABLED = "channel_disabled:"


@dataclass(frozen=True, slots=True)
class Channel:
    """`address` is a URL or an email address. `secret` signs what goes to a webhook, and `old_secret` as well until `old_until`."""

    name: str
    kind: str
    address: str
    secret: str | None = None
    old_secret: str | None = None
    old_until: datetime | None = None

    def secrets(self, now: datetime) -> list[str]:
        """The secrets that sign at `now`, the newest first."""
        old = self.old_secret if self.old_until and self.old_until > now else None
        return [one for one in (self.secret, old) if one]

    @property
    def shown(self) -> str:
        """The address without what makes it a secret: of a URL, the host."""
        return self.address if self.kind == "email" else self.address.partition("://")[2].partition("/")[0]


def set_channel(
    conn: Connection, settings: Settings, name: str, kind: str, address: str, now: datetime, *, rotate: bool = False
) -> Channel:
    """Gives the channel its address, or another one; the caller shows `secret` once.

    A webhook gets a secret of its own the first time and keeps it when its address changes; `rotate` makes another, and the old one signs
    too for 24 hours. A disabled channel is enabled by it. Raises InputError on a bad name or address; calls nobody.
    """
    if not _NAME.fullmatch(name) or name == "owner":
        raise InputError("must be lower-case letters, digits and _, and not owner", "name")
    if kind not in KINDS:
        raise InputError(f"must be one of {', '.join(KINDS)}", "kind")
    if kind == "email":
        try:
            address = mime.address(address, "To")
        except RenderSkip as skip:
            raise InputError("is not an email address", "address") from skip
    else:
        Caller(settings.allow_hosts).target(address)
    try:
        known = find_channels(conn, settings, [name]).get(name)
    except Sealed:
        known = None
    made = Channel(name, kind, address)
    if kind == "webhook":
        made = _with_secret(made, known, now, rotate)
    elif rotate:
        raise InputError("only a webhook has a secret to rotate")
    row = {"name": _PREFIX + name, "value": _seal(settings, made), "secret": True}
    statement = insert(setting).values(row)
    conn.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"value": statement.excluded.value, "secret": True}))
    _enable(conn, name)
    return made


def disable_channel(conn: Connection, settings: Settings, called: Channel, why: str, now: datetime) -> bool:
    """Disables the channel, unless it has another address by now than the one that was `called`. Returns whether it did."""
    # A new address that is being set at this moment is waited for.
    conn.execute(select(setting.c.name).where(setting.c.name == _PREFIX + called.name).with_for_update())
    try:
        present = find_channels(conn, settings, [called.name]).get(called.name)
    except Sealed:
        return False
    if present is None or present.address != called.address:
        return False
    said = to_json({"at": now, "why": why[:200]}).decode()
    row = insert(setting).values(name=_DISABLED + called.name, value=said).on_conflict_do_nothing().returning(setting.c.name)
    return conn.execute(row).first() is not None


def enable_channel(conn: Connection, name: str) -> None:
    """Has alerts and webhooks go there again; what failed meanwhile stays as it is. Raises NotFound, InputError."""
    if not _enable(conn, name):
        if conn.execute(select(setting.c.name).where(setting.c.name == _PREFIX + name)).first() is None:
            raise NotFound(f"There is no channel {name} on this installation: nurture channels list")
        raise InputError(f"channel {name} is not disabled")


def find_disabled(conn: Connection, names: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """The disabled ones of these channels, or of all: {at, why}, by name."""
    statement = select(setting.c.name, setting.c.value).where(setting.c.name.startswith(_DISABLED, autoescape=True))
    if names is not None:
        statement = statement.where(setting.c.name.in_([_DISABLED + name for name in names]))
    return {row.name.removeprefix(_DISABLED): from_json(row.value) for row in conn.execute(statement.order_by(setting.c.name))}


def _enable(conn: Connection, name: str) -> bool:
    return bool(conn.execute(delete(setting).where(setting.c.name == _DISABLED + name)).rowcount)


def remove_channel(conn: Connection, name: str) -> None:
    """Forgets the channel's address and secrets. Raises NotFound."""
    if not conn.execute(delete(setting).where(setting.c.name == _PREFIX + name)).rowcount:
        raise NotFound(f"There is no channel {name} on this installation: nurture channels list")
    _enable(conn, name)


def find_channels(conn: Connection, settings: Settings, names: Iterable[str] | None = None) -> dict[str, Channel]:
    """The channels of these names that have an address, or all. Raises Sealed for one of another secret key, if it is asked for by name;
    of all, those are left out."""
    statement = select(setting.c.name, setting.c.value).where(setting.c.name.startswith(_PREFIX, autoescape=True)).order_by(setting.c.name)
    if names is not None:
        statement = statement.where(setting.c.name.in_([_PREFIX + name for name in names]))
    found = {}
    for row in conn.execute(statement):
        name = row.name.removeprefix(_PREFIX)
        try:
            found[name] = _unseal(settings, name, row.value)
        except Sealed:
            if names is not None:
                raise
    return found


def list_channels(conn: Connection, settings: Settings, declared: Mapping[str, str]) -> list[dict]:
    """Every channel that `lifecycle.yaml` declares or that has an address, by name: never a secret, of a URL only its host."""
    stored = conn.execute(select(setting.c.name).where(setting.c.name.startswith(_PREFIX, autoescape=True))).scalars()
    opened = find_channels(conn, settings)
    disabled = find_disabled(conn)
    sealed = {name.removeprefix(_PREFIX) for name in stored} - opened.keys()
    rows = []
    for name in sorted({*declared, *opened, *sealed}):
        one = opened.get(name)
        rows.append(
            {
                "name": name,
                "description": declared.get(name),
                "declared": name in declared,
                "kind": one.kind if one else None,
                "to": one.shown if one else None,
                "state": _state(one is not None, name in sealed, name in disabled),
                "disabled": disabled.get(name),
            }
        )
    return rows


def _state(opened: bool, sealed: bool, disabled: bool) -> str:
    if disabled:
        return "disabled"
    return "ready" if opened else "sealed under another secret key" if sealed else "has no address"


def _with_secret(made: Channel, known: Channel | None, now: datetime, rotate: bool) -> Channel:
    if known is None or known.secret is None:
        return replace(made, secret=new_secret())
    if rotate:
        return replace(made, secret=new_secret(), old_secret=known.secret, old_until=now + OLD_SECRET_LIFE)
    return replace(made, secret=known.secret, old_secret=known.old_secret, old_until=known.old_until)


def _seal(settings: Settings, channel: Channel) -> str:
    return seal(settings, "channels", asdict(channel))


def _unseal(settings: Settings, name: str, value: str) -> Channel:
    kept = unseal(settings, "channels", value, f"channel {name}", f"nurture channels set {name} …")
    until = kept.pop("old_until")
    return Channel(**kept, old_until=datetime.fromisoformat(until) if until else None)
