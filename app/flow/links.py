"""The links in mails and the addresses that mail about them comes back to: both carry a signed token, and both are read here.

A token names a message, what the link is for, and the number of the link in the mail; nothing else, and no personal data (K-03).
Layout (email-standards 4.6): `kid(1) | type(1) | message uuid(16) | index(2) | HMAC-SHA256 truncated to 16`, base64url, 48 characters.
In the local part of an address, which has 64 octets and no case that could be relied on: `kid(1) | message uuid(16) | HMAC-SHA256
truncated to 8`, base32 in small letters, 40 characters, with a key of its own for each kind of address.
"""

from __future__ import annotations

import hmac
import re
from base64 import b32decode, b32encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection, select

from app.models import token_key

# The type bytes are in mails that people keep for years: never renumber, never reuse.
KINDS: Mapping[str, int] = {"click": 1, "open": 2, "unsubscribe": 3, "preferences": 4, "survey": 5, "view": 6}
MAX_INDEX = 0x0FFF
# What stands before the plus sign of an address, by what the address is for. In mails that people keep for years, too.
MAILBOXES: Mapping[str, str] = {"bounce": "b", "unsubscribe": "u", "reply": "r"}
HONEYPOT = MAX_INDEX  # the link that nobody sees; no mail that may be sent is large enough for 4096 others

_BODY = Struct(">BB16sH")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{48}")
_SHORT = re.compile(r"[a-z2-7]{40}")
_LOCAL_PART = re.compile(r"([bur])\+([a-z2-7]{40})")
_NO_KEY = bytes(32)


@dataclass(frozen=True, slots=True)
class Keyring:
    """The secrets that sign links, by key id; `current` signs new ones. Old ones verify for life (K-02, U-10)."""

    keys: Mapping[int, bytes]
    current: int


def load_keyring(conn: Connection) -> Keyring:
    """The ring of this database; the newest key is the current one. It is independent of `NURTURE_SECRET_KEY`."""
    rows = conn.execute(select(token_key.c.kid, token_key.c.secret).order_by(token_key.c.created_at, token_key.c.kid)).all()
    return Keyring({kid: bytes(secret) for kid, secret in rows}, rows[-1].kid)


class Links:
    """Makes the links of mails and reads their tokens. Immutable and free of I/O: share one between threads.

    `base_url` has no slash at the end. Every method that makes a link returns an absolute URL whose last character is a letter or
    a digit (K-04).
    """

    def __init__(self, base_url: str, keyring: Keyring):
        self.base_url = base_url
        self.keyring = keyring
        # A key per purpose, so that the type is bound twice: by the key and by the signed byte (K-01, K-02).
        self._keys = {(kid, kind): derive(secret, "link/" + name) for kid, secret in keyring.keys.items() for name, kind in KINDS.items()}
        self._mail_keys = {(kid, kind): derive(secret, "mail/" + kind) for kid, secret in keyring.keys.items() for kind in MAILBOXES}

    def click(self, message_id: UUID, index: int) -> str:
        """The tracked link number `index` (0 to 4095) of a message."""
        return f"{self.base_url}/c/{self._token(1, message_id, index)}"

    def honeypot(self, message_id: UUID) -> str:
        """The link that nobody sees: looks like any other, leads nowhere."""
        return self.click(message_id, HONEYPOT)

    def open(self, message_id: UUID) -> str:
        """The pixel."""
        return f"{self.base_url}/o/{self._token(2, message_id)}.gif"

    def unsubscribe(self, message_id: UUID) -> str:
        """The page, and the one-click target, that stops the message's topic."""
        return f"{self.base_url}/u/{self._token(3, message_id)}"

    def preferences(self, message_id: UUID) -> str:
        """The page that offers all topics."""
        return f"{self.base_url}/p/{self._token(4, message_id)}"

    def view(self, message_id: UUID) -> str:
        """The message in a browser."""
        return f"{self.base_url}/v/{self._token(6, message_id)}"

    def survey(self, message_id: UUID, score: int | None = None) -> str:
        """The survey page, with `score` preselected. Opening it answers nothing (Q-01)."""
        page = f"{self.base_url}/s/{self._token(5, message_id)}"
        return page if score is None else f"{page}/{score}"

    def read(self, token: str, kind: str) -> tuple[UUID, int] | None:
        """The message and the link number that `token` names, if it was signed here for `kind`; else None.

        A bad signature, an unknown key, another kind and a malformed token are all the same None. The comparison takes the same
        time whatever is wrong with the signature (K-05).
        """
        if not _TOKEN.fullmatch(token):
            return None
        raw = urlsafe_b64decode(token)
        kid, kind_byte, message, index = _BODY.unpack_from(raw)
        wanted = KINDS[kind]
        key = self._keys.get((kid, wanted))
        signature = hmac.digest(key or _NO_KEY, raw[:20], "sha256")[:16]
        same = hmac.compare_digest(signature, raw[20:])
        if not same or key is None or kind_byte != wanted:
            return None
        return UUID(bytes=message), index & MAX_INDEX

    def knows(self, token: str) -> bool:
        """Whether the key that `token` claims to be signed with is in the ring: if not, a newer ring may have it."""
        return not _TOKEN.fullmatch(token) or urlsafe_b64decode(token)[0] in self.keyring.keys

    def mailbox(self, message_id: UUID, kind: str, domain: str) -> str:
        """The address at `domain` to which mail about a message comes back: `bounce` is the envelope sender (M-12), `unsubscribe` the
        one in List-Unsubscribe (U-11), `reply` the one for Reply-To (I-05). The local part has 42 characters."""
        return f"{MAILBOXES[kind]}+{self.short_token(message_id, kind)}@{domain}"

    def short_token(self, message_id: UUID, kind: str = "bounce") -> str:
        """The token of such an address: 40 characters, a to z and 2 to 7. That of kind `bounce` is the one for headers and for the
        metadata that providers send back."""
        body = bytes((self.keyring.current,)) + message_id.bytes
        key = self._mail_keys[self.keyring.current, kind]
        return b32encode(body + hmac.digest(key, body, "sha256")[:8]).decode().lower()

    def read_mailbox(self, address: str) -> tuple[str, UUID] | None:
        """The kind of an address, or of its local part, and the message that it names; None unless it was signed here. Letters may have
        become capitals on the way."""
        found = _LOCAL_PART.fullmatch(address.partition("@")[0].strip().lower())
        if found is None:
            return None
        kind = next(name for name, letter in MAILBOXES.items() if letter == found[1])
        message = self.read_short(found[2], kind)
        return message and (kind, message)

    def read_short(self, token: str, kind: str = "bounce") -> UUID | None:
        """The message of a short token signed here for `kind`; else None, whatever is wrong with it (K-05)."""
        token = token.strip().lower()
        if not _SHORT.fullmatch(token):
            return None
        raw = b32decode(token.upper())
        key = self._mail_keys.get((raw[0], kind))
        same = hmac.compare_digest(hmac.digest(key or _NO_KEY, raw[:17], "sha256")[:8], raw[17:])
        return UUID(bytes=raw[1:17]) if same and key is not None else None

    def nonce(self, token: str, purpose: str) -> str:
        """A value that only a page made for `token` can know: what a form posts back instead of a cookie (Q-06)."""
        # The oldest key, so that a page opened before a new key came can still be sent.
        key = _page_key(self.keyring.keys[min(self.keyring.keys)])
        return hmac.digest(key, f"{purpose}\x1f{token}".encode(), "sha256").hex()[:32]

    def _token(self, kind: int, message_id: UUID, index: int = 0) -> str:
        if not 0 <= index <= MAX_INDEX:
            raise ValueError(f"a mail has at most {MAX_INDEX + 1} links, not {index + 1}")
        kid = self.keyring.current
        key = self._keys[kid, kind]
        message = message_id.bytes
        while True:
            body = _BODY.pack(kid, kind, message, index)
            token = urlsafe_b64encode(body + hmac.digest(key, body, "sha256")[:16]).decode()
            if token[-1] not in "-_":
                return token
            # Mail programs that make links of plain text leave a punctuation mark at the end out (K-04). The four high bits of
            # the index are free, and another value there gives another signature.
            index += MAX_INDEX + 1


def derive(secret: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, from which no other purpose's key follows."""
    return HKDF(SHA256(), 32, salt=None, info=b"nurture/" + purpose.encode()).derive(secret)


@lru_cache(maxsize=8)
def _page_key(secret: bytes) -> bytes:
    return derive(secret, "page")
