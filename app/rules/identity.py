"""What `identify` and `group` events teach about accounts and contacts.

Values are resolved by `(occurred_at, message_id)` per key: an older fact never overwrites a newer one, whatever order the two arrive
in. A value of the wrong type is kept raw among the traits, where it reads as missing, and nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from app.rules.facts import Account, Contact, Event, renew
from app.rules.timing import zone

TOUCHES = ("high", "mid", "smb")
_LOCAL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]{1,64}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def learn(account: Account, event: Event) -> tuple[Account, set[str]]:
    """The account after an identify or group event, and the roots (`account`, `contact`) of what changed.

    The contact of the event must be among `account.contacts` if its row exists (as a stranger without `joined_at`, if need be).
    """
    roots: set[str] = set()
    if event.kind == "group":
        changed = _account_values(account, event)
        if changed is not account:
            account = changed
            roots.add("account")
    contact = account.contacts.get(event.contact or "")
    if contact is not None:
        changed = contact
        if event.kind == "identify":
            changed = _roles(contact_values(contact, event), account.key, event)
        if changed.joined_at is None:
            changed = renew(changed, joined_at=event.occurred_at)
        if changed is not contact:
            account = renew(account, contacts={**account.contacts, contact.key: changed})
            roots.add("contact")
    return account, roots


def contact_values(contact: Contact, event: Event) -> Contact:
    """The contact after an identify event; also for a contact that belongs to no account, or to several. Roles are the membership's."""
    fresh, clocks = _fresh(contact.clocks, event, {name: value for name, value in event.properties.items() if name != "roles"})
    if not fresh:
        return contact
    fields: dict[str, Any] = {}
    traits = dict(contact.traits)
    for name, value in fresh.items():
        if name == "email":
            person = normalise(value)
            fields["address"], fields["person"] = (value.strip(), person) if person else (None, None)
            fields["suppressed"] = event.closed
            known = person is not None
        elif rule := _CONTACT.get(name):
            fields[rule[0]] = rule[1](value)
            known = fields[rule[0]] is not None
        else:
            known = False
        _keep(traits, name, None if known else value)
    return renew(contact, **fields, traits=traits, clocks=clocks)


def _roles(contact: Contact, account: str, event: Event) -> Contact:
    if "roles" not in event.properties:
        return contact
    clock = f"roles@{account}"
    fresh, clocks = _fresh(contact.clocks, event, {clock: event.properties["roles"]})
    return renew(contact, roles=role_names(fresh[clock]), clocks=clocks) if fresh else contact


def normalise(address: object) -> str | None:
    """The person behind an address: the same for every spelling that reaches the same mailbox as far as anybody can know.

    Local part case-folded, domain as lower-case A-labels (M-11). None where `address` is not one that mail can be sent to.
    """
    if not isinstance(address, str):
        return None
    local, at, domain = address.strip().rpartition("@")
    if not at or not _LOCAL.fullmatch(local) or local.startswith(".") or local.endswith(".") or ".." in local:
        return None
    try:
        domain = domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return None
    labels = domain.split(".")
    if len(domain) > 253 or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        return None
    return f"{local.casefold()}@{domain}"


def role_names(value: object) -> frozenset[str]:
    """Roles as given: a list, or names with commas between them."""
    names = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return frozenset(name.strip().lower()[:63] for name in names if isinstance(name, str) and name.strip())


def moment(value: object) -> datetime | None:
    """An ISO date or time as an aware UTC datetime; None for anything else, or out of what a database can hold."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        found = datetime.fromisoformat(value.strip())
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _account_values(account: Account, event: Event) -> Account:
    fresh, clocks = _fresh(account.clocks, event, event.properties)
    if not fresh:
        return account
    fields: dict[str, Any] = {}
    traits = dict(account.traits)
    for name, value in fresh.items():
        if name == "owner":
            owner = value if isinstance(value, Mapping) else {}
            fields["owner_name"], fields["owner_email"] = _text(owner.get("name")), _text(owner.get("email"))
            fields["owner_timezone"] = _zone(owner.get("timezone"))
            known = bool(owner)
        elif rule := _ACCOUNT.get(name):
            fields[rule[0]] = rule[1](value)
            known = fields[rule[0]] is not None
        else:
            known = False
        _keep(traits, name, None if known else value)
    return renew(account, **fields, traits=traits, clocks=clocks)


def _fresh(clocks: Mapping[str, Any], event: Event, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `given` values of the event that are newer than what is known, and the clocks afterwards."""
    mine = [event.occurred_at.astimezone(UTC).isoformat(), event.message_id]
    fresh = {name: value for name, value in given.items() if list(clocks.get(name, ())) < mine}
    return fresh, {**clocks, **{name: mine for name in fresh}}


def _keep(traits: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        traits.pop(name, None)
    else:
        traits[name] = value


def _text(value: object) -> str | None:
    return value.strip()[:500] or None if isinstance(value, str) else None


def _seats(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _amount(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15 else None


def _zone(value: object) -> str | None:
    return value if isinstance(value, str) and zone(value) else None


def _locale(value: object) -> str | None:
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", value) else None


_Rule = tuple[str, Callable[[Any], Any]]
_ACCOUNT: dict[str, _Rule] = {
    "name": ("name", _text),
    "touch": ("touch", lambda value: value if value in TOUCHES else None),
    "timezone": ("timezone", _zone),
    "seats": ("seats", _seats),
    "created_at": ("customer_since", moment),
    "renewal_date": ("renewal_date", moment),
    "revenue": ("revenue", _amount),
}
_CONTACT: dict[str, _Rule] = {
    "first_name": ("first_name", _text),
    "firstName": ("first_name", _text),
    "last_name": ("last_name", _text),
    "lastName": ("last_name", _text),
    "timezone": ("timezone", _zone),
    "locale": ("locale", _locale),
}
