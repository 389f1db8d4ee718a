"""Reading an IMAP folder: which mails are new, and their bytes. Writes nothing to it unless asked to delete what was taken."""

from __future__ import annotations

import imaplib
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from app.errors import MailboxError

TIMEOUT = 30.0
AT_ONCE = 500  # sizes asked for at once

_UID_AND_SIZE = re.compile(rb"UID (\d+)|RFC822\.SIZE (\d+)")


@dataclass(frozen=True, slots=True)
class Folder:
    """Where to look. `after` is what becomes of mails that were taken: keep or delete."""

    host: str
    port: int
    user: str
    password: str
    folder: str
    tls: bool
    after: str = "keep"

    @property
    def name(self) -> str:
        """What the folder is remembered by: everything but the password."""
        return f"{self.user}@{self.host}:{self.port}/{self.folder}"


def folder_of(url: str) -> Folder:
    """The folder of a `imaps://user:password@host/folder?after=delete`, as `config` has checked it. Parts are percent-encoded."""
    parts = urlsplit(url)
    tls = parts.scheme == "imaps"
    return Folder(
        parts.hostname or "",
        parts.port or (993 if tls else 143),
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        unquote(parts.path.strip("/")) or "INBOX",
        tls,
        parse_qs(parts.query).get("after", ["keep"])[0],
    )


@contextmanager
def open_folder(folder: Folder, context: ssl.SSLContext | None = None) -> Iterator[Box]:
    """The folder, read-only unless mails are to be deleted. Certificates are verified. Raises MailboxError, within the block too."""
    connection = None
    try:
        if folder.tls:
            secure = context or ssl.create_default_context()
            connection = imaplib.IMAP4_SSL(folder.host, folder.port, ssl_context=secure, timeout=TIMEOUT)
        else:
            connection = imaplib.IMAP4(folder.host, folder.port, timeout=TIMEOUT)
        connection.login(folder.user, folder.password)
        yield Box(connection, folder)
    except (imaplib.IMAP4.error, OSError, EOFError, UnicodeError) as error:
        # imaplib puts the command into its errors, and that of LOGIN holds the password.
        said = str(error).replace(folder.password, "…") if folder.password else str(error)
        raise MailboxError(f"{folder.host}: {said or type(error).__name__}"[:500]) from None
    finally:
        if connection is not None:
            with suppress(imaplib.IMAP4.error, OSError, EOFError):
                connection.logout()


class Box:
    """An open folder. `uidvalidity` says what its numbers are good for: another one, and all of them mean other mails."""

    def __init__(self, connection: imaplib.IMAP4, folder: Folder):
        self._connection, self._folder = connection, folder
        quoted = '"' + folder.folder.replace("\\", "\\\\").replace('"', '\\"') + '"'
        _ok(connection.select(quoted, readonly=folder.after != "delete"))
        self.uidvalidity = int(_ok(connection.response("UIDVALIDITY"))[0])

    def sizes(self, after: int) -> Iterator[tuple[int, int]]:
        """The numbers and sizes of the mails with numbers over `after`, in order."""
        found = _ok(self._connection.uid("SEARCH", None, f"UID {after + 1}:*"))
        # `n:*` names the last mail even if its number is lower.
        uids = sorted({int(one) for line in found if line for one in line.split() if int(one) > after})
        for start in range(0, len(uids), AT_ONCE):
            some = ",".join(map(str, uids[start : start + AT_ONCE]))
            sizes: dict[int, int] = {}
            for line in _ok(self._connection.uid("FETCH", some, "(UID RFC822.SIZE)")):
                told = _UID_AND_SIZE.findall(line if isinstance(line, bytes) else b"")
                number = next((int(uid) for uid, _ in told if uid), None)
                if number is not None:
                    sizes[number] = next((int(size) for _, size in told if size), 0)
            yield from sorted(sizes.items())

    def fetch(self, uid: int, most: int | None = None) -> bytes | None:
        """The mail, or its first `most` bytes, without marking it as seen. None when it is gone."""
        part = "(UID BODY.PEEK[])" if most is None else f"(UID BODY.PEEK[]<0.{most}>)"
        for line in _ok(self._connection.uid("FETCH", str(uid), part)):
            if isinstance(line, tuple):
                return line[1]
        return None

    def delete(self, uid: int) -> None:
        """Marks the mail as deleted and, where the server can do so for one mail, removes it."""
        _ok(self._connection.uid("STORE", str(uid), "+FLAGS.SILENT", r"(\Deleted)"))
        if "UIDPLUS" in self._connection.capabilities:
            _ok(self._connection.uid("EXPUNGE", str(uid)))


def _ok(answer: tuple[str, list]) -> list:
    status, data = answer
    if status not in ("OK", "UIDVALIDITY") or (status == "UIDVALIDITY" and not (data and data[0])):
        raise imaplib.IMAP4.error(f"{status} {data!r}"[:300])
    return data
