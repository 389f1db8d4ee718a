"""DKIM signatures (RFC 6376, 8301, 8463): which headers a signature covers, and how it is made.

Headers are canonicalised relaxed, the body simple: it is ours, 7 bit and ends as it should, so that there is nothing to relax and one
hash over it is all it takes. RSA costs half a millisecond and is done without the interpreter's lock, so sign in threads.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

RSA_LEAST = 1024  # RFC 8301
# Named once more than they occur: whoever puts another one in front breaks the signature (U-03).
OVERSIGNED = ("from", "to", "subject", "reply-to", "content-type")
OVERSIGNED_WHERE_PRESENT = ("list-unsubscribe", "list-unsubscribe-post")

PrivateKey = RSAPrivateKey | Ed25519PrivateKey
_FOLD = re.compile(rb"\r\n(?=[ \t])")


@dataclass(frozen=True, slots=True)
class Key:
    """A private key and the selector under which its public half is published."""

    selector: str
    private: PrivateKey

    @property
    def algorithm(self) -> str:
        return "rsa" if isinstance(self.private, RSAPrivateKey) else "ed25519"


class Signer:
    """Signs the mail of one domain. Immutable: threads may share one.

    With an RSA key and an Ed25519 key both sign, the RSA one first; every receiver knows RSA (B-10). SHA-1 is never used, and an RSA key
    shorter than 1,024 bits raises ValueError.
    """

    def __init__(self, domain: str, keys: Sequence[Key]):
        if not keys:
            raise ValueError("a signer needs a key")
        for key in keys:
            if isinstance(key.private, RSAPrivateKey) and key.private.key_size < RSA_LEAST:
                raise ValueError(f"an RSA key of {key.private.key_size} bits is too short; {RSA_LEAST} is the least")
        self.domain = domain
        self.keys = tuple(sorted(keys, key=lambda one: one.algorithm != "rsa"))

    def sign(self, data: bytes, at: datetime, unsigned: Collection[str] = ()) -> bytes:
        """`data`, a whole message with CRLF line ends, with its signatures in front; it must not be changed after that.

        All headers are covered except those of the names `unsigned` (in small letters), which a relay is known to take out or to write
        anew. Raises ValueError for a message without a From or with two headers of a kind that may stand once (B-08).
        """
        end = data.index(b"\r\n\r\n")
        names, canonical = _headers(data[:end], unsigned)
        covered = _covered(names)
        body = _body(data[end + 4 :])
        digest = b64encode(sha256(body).digest()).decode()
        signatures = []
        for key in self.keys:
            header = (
                f"DKIM-Signature: v=1; a={key.algorithm}-sha256; c=relaxed/simple; d={self.domain};\r\n s={key.selector}; "
                f"t={int(at.timestamp())};\r\n h={covered};\r\n bh={digest};\r\n b="
            )
            # Relaxed, and without a line end: the signature's own header comes last.
            own = b"dkim-signature:" + b" ".join(header.partition(":")[2].encode().split())
            value = b64encode(_signature(key.private, canonical + own)).decode()
            signatures.append(header + "\r\n ".join(value[start : start + 72] for start in range(0, len(value), 72)) + "\r\n")
        return "".join(signatures).encode() + data


def _signature(private: PrivateKey, signed: bytes) -> bytes:
    if isinstance(private, RSAPrivateKey):
        return private.sign(signed, PKCS1v15(), SHA256())
    return private.sign(sha256(signed).digest())  # RFC 8463: the hash is what is signed


def _headers(head: bytes, unsigned: Collection[str]) -> tuple[tuple[str, ...], bytes]:
    """The names of the headers to cover, in their order, and their relaxed form, each with its line end."""
    names, lines = [], []
    for line in _FOLD.sub(b"", head).split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.strip().lower()
        text = name.decode("ascii")
        if text in unsigned:
            continue
        names.append(text)
        lines += (name, b":", b" ".join(value.split()), b"\r\n")
    return tuple(names), b"".join(lines)


@lru_cache(maxsize=64)
def _covered(names: tuple[str, ...]) -> str:
    """The value of h=. Mails of one kind have the same headers, so this is worked out once for many."""
    if "from" not in names:
        raise ValueError("a message without From cannot be signed")
    if len(set(names)) < len(names):
        raise ValueError("a header stands twice")
    more = [*OVERSIGNED, *(name for name in OVERSIGNED_WHERE_PRESENT if name in names)]
    lines, line = [], ""
    for name in [*names, *more]:
        if line and len(line) + len(name) > 70:
            lines.append(line)
            line = ""
        line += f"{name}:"
    return "\r\n ".join([*lines, line]).rstrip(":")


def _body(body: bytes) -> bytes:
    """Simple: empty lines at the end do not count, and the last line has an end."""
    if not body.endswith(b"\r\n"):
        return body + b"\r\n"
    while body.endswith(b"\r\n\r\n"):
        body = body[:-2]
    return body
