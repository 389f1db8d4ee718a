"""The keys that sign mail: made here, sealed in the database, one of each algorithm active for a domain.

make ─▶ publish the record in the DNS ─▶ activate ─▶ … ─▶ retire      an activated key takes the place of the one before
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.exc import IntegrityError

from app.config import Settings
from app.errors import InputError, NotFound
from app.flow import mime
from app.flow.seals import Sealed, seal, unseal
from app.flow.signing import RSA_LEAST, Key, PrivateKey, Signer
from app.models import dkim_key

RSA_BITS = 2048
RSA_MOST = 4096  # longer ones are verified by nobody (RFC 8301 asks for no more)
ALGORITHMS = ("rsa", "ed25519")

_SELECTOR = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_PURPOSE = "dkim"


def make_key(
    conn: Connection,
    settings: Settings,
    domain: str,
    now: datetime,
    *,
    selector: str | None = None,
    algorithm: str = "rsa",
    bits: int = RSA_BITS,
    pem: bytes | None = None,
) -> dict[str, Any]:
    """Makes a key, or takes the private key of `pem`, and returns what `list_keys` says of it. It signs nothing before it is activated.

    The selector is the month and the algorithm's letter unless it is given. Raises InputError: a bad domain or selector, one that is used
    already, an RSA key under 1,024 or over 4,096 bits (B-10), a file that holds no such key.
    """
    domain = _domain(domain)
    private = _made(algorithm, bits) if pem is None else _loaded(pem)
    algorithm = "rsa" if isinstance(private, rsa.RSAPrivateKey) else "ed25519"
    selector = selector or f"n{now:%Y%m}{algorithm[0]}"
    if not _SELECTOR.fullmatch(selector) or len(selector) > 63:
        raise InputError("must be small letters, digits and hyphens", "selector")
    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    row = {
        "domain": domain,
        "selector": selector,
        "algorithm": algorithm,
        "bits": private.key_size if isinstance(private, rsa.RSAPrivateKey) else 256,
        "sealed": seal(settings, _PURPOSE, b64encode(plain).decode()),
        "record": _record(private),
        "created_at": now,
    }
    try:
        with conn.begin_nested():
            conn.execute(dkim_key.insert().values(row))
    except IntegrityError as error:
        raise InputError(f"there is a key {selector} of {domain} already; choose another with --selector", "selector") from error
    return _shown(_find(conn, domain, selector))


def list_keys(conn: Connection) -> list[dict[str, Any]]:
    """Every key with its DNS record and its state, never its private half."""
    return [_shown(row) for row in conn.execute(select(dkim_key).order_by(dkim_key.c.domain, dkim_key.c.created_at, dkim_key.c.id))]


def find_key(conn: Connection, domain: str, selector: str) -> dict[str, Any]:
    """One of them. Raises NotFound."""
    return _shown(_find(conn, _domain(domain), selector))


def activate_key(conn: Connection, settings: Settings, domain: str, selector: str) -> dict[str, Any]:
    """Has the key sign the domain's mail from the next batch on, instead of the one of its algorithm that did. Raises NotFound, and
    InputError for a retired key or one that cannot be opened here."""
    row = _find(conn, _domain(domain), selector)
    if row.sealed is None:
        raise InputError("is retired and has no private half any more; make another", "selector")
    _opened(settings, row)
    conn.execute(update(dkim_key).where(dkim_key.c.domain == row.domain, dkim_key.c.algorithm == row.algorithm).values(active=False))
    conn.execute(update(dkim_key).where(dkim_key.c.id == row.id).values(active=True))
    return find_key(conn, domain, selector)


def retire_key(conn: Connection, domain: str, selector: str, now: datetime) -> dict[str, Any]:
    """Ends the key: it signs nothing any more and its private half is gone. Raises NotFound."""
    row = _find(conn, _domain(domain), selector)
    conn.execute(update(dkim_key).where(dkim_key.c.id == row.id).values(active=False, sealed=None, retired_at=row.retired_at or now))
    return find_key(conn, domain, selector)


@dataclass(slots=True)
class Signers:
    """The signers of the domains that have an active key, as of the last `refresh`. Opened keys are kept, since opening one takes longer
    than a hundred signatures."""

    of: Mapping[str, Signer] = field(default_factory=dict)
    shut: Mapping[str, str] = field(default_factory=dict)  # domains whose key cannot be opened, and why: their mail must wait
    _marks: tuple[tuple[int, str], ...] = ()

    def refresh(self, conn: Connection, settings: Settings) -> None:
        """Looks which keys are active, by one small statement."""
        marks = tuple(map(tuple, conn.exec_driver_sql(_ACTIVE)))
        if marks == self._marks:
            return
        keys: dict[str, list[Key]] = {}
        shut: dict[str, str] = {}
        for row in conn.execute(select(dkim_key).where(dkim_key.c.active)):
            try:
                keys.setdefault(row.domain, []).append(Key(row.selector, _opened(settings, row)))
            except Sealed as error:
                shut[row.domain] = error.problem
        self.of = {domain: Signer(domain, found) for domain, found in keys.items() if domain not in shut}
        self.shut, self._marks = shut, marks


def signers_now(conn: Connection, settings: Settings) -> Signers:
    """For whoever signs one letter now and then."""
    found = Signers()
    found.refresh(conn, settings)
    return found


_ACTIVE = "select id, md5(sealed) from dkim_key where active order by id"


def _opened(settings: Settings, row: Row) -> PrivateKey:
    again = f"nurture dkim make {row.domain}, and activate it"
    plain = unseal(settings, _PURPOSE, row.sealed, f"DKIM key {row.selector} of {row.domain}", again)
    return load_der_private_key(b64decode(plain), None)


def _made(algorithm: str, bits: int) -> PrivateKey:
    if algorithm not in ALGORITHMS:
        raise InputError(f"must be one of {', '.join(ALGORITHMS)}", "algorithm")
    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    _check_bits(bits)
    return rsa.generate_private_key(65537, bits)


def _loaded(pem: bytes) -> PrivateKey:
    try:
        private = load_pem_private_key(pem[:65536], None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"is not a private key in PEM without a password: {error}"[:200], "file") from error
    if not isinstance(private, PrivateKey):
        raise InputError("is neither an RSA nor an Ed25519 key", "file")
    if isinstance(private, rsa.RSAPrivateKey):
        _check_bits(private.key_size)
    return private


def _check_bits(bits: int) -> None:
    if not RSA_LEAST <= bits <= RSA_MOST:
        raise InputError(f"must be from {RSA_LEAST} to {RSA_MOST}", "bits")


def _record(private: PrivateKey) -> str:
    public = private.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        return "v=DKIM1; k=rsa; p=" + b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    return "v=DKIM1; k=ed25519; p=" + b64encode(public.public_bytes_raw()).decode()


def _domain(value: str) -> str:
    domain = mime.wire_domain(value)
    if domain is None:
        raise InputError("is not the name of a domain", "domain")
    return domain


def _find(conn: Connection, domain: str, selector: str) -> Row:
    row = conn.execute(select(dkim_key).where(dkim_key.c.domain == domain, dkim_key.c.selector == selector)).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {selector} of {domain}: nurture dkim list")
    return row


def _shown(row: Row) -> dict[str, Any]:
    state = "active" if row.active else "retired" if row.retired_at else "waiting"
    return {
        "domain": row.domain,
        "selector": row.selector,
        "algorithm": row.algorithm,
        "bits": row.bits,
        "state": state,
        "name": f"{row.selector}._domainkey.{row.domain}",
        "type": "TXT",
        "value": row.record,
        "created_at": row.created_at,
        "retired_at": row.retired_at,
    }
