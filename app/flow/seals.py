"""Seals: what is kept secret at rest, under keys derived from NURTURE_SECRET_KEY (X-44).

A sealed text begins with the id of its key, so that one of another NURTURE_SECRET_KEY is known for what it is.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic_core import from_json, to_json

from app.config import Settings
from app.errors import InputError


class Sealed(InputError):
    """Something was sealed under another secret key, and cannot be opened."""


def seal(settings: Settings, purpose: str, value: Any) -> str:
    """`value`, anything JSON can carry, sealed for `purpose`."""
    key = _key(settings.secret_key, purpose)
    return f"{_key_id(key)}.{Fernet(key).encrypt(to_json(value)).decode()}"


def unseal(settings: Settings, purpose: str, sealed: str, what: str, again: str) -> Any:
    """What was sealed for `purpose`. Raises Sealed, which says `what` it is and the command that sets it `again`."""
    key = _key(settings.secret_key, purpose)
    key_id, _, token = sealed.partition(".")
    try:
        if key_id != _key_id(key):
            raise InvalidToken
        return from_json(Fernet(key).decrypt(token))
    except InvalidToken:
        raise Sealed(f"{what} was sealed under another NURTURE_SECRET_KEY; set it again: {again}") from None


@lru_cache(maxsize=16)
def _key(secret_key: str, purpose: str) -> bytes:
    """Derived, so that what signs the console's sessions and what seals are not the same key, nor those of two purposes."""
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=f"nurture {purpose}".encode()).derive(secret_key.encode())
    return urlsafe_b64encode(derived)


def _key_id(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]
