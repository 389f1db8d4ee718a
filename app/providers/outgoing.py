"""Calls of other systems over HTTP: alerts to a chat, webhooks. The addresses come from people, so every call is made as if by an enemy.

Nothing here follows a redirect, uses a proxy of the environment, keeps a cookie, or connects to an address that was not checked
(X-20 to X-22). The signatures are those of Standard Webhooks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import io
import queue
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import idna

from app.errors import CallError, InputError
from app.providers.addresses import is_public
from app.providers.smtp import verifying_context

SECONDS = 10.0  # for the whole call, names and TLS included
LIMIT = 1024 * 1024  # of an answer's body; what comes after it is not read
SECRET = "whsec_"

_PORTS = {"https": 443, "http": 80}
_STRANGE = re.compile(r"[\x00-\x20\x7f-\x9f\\]")

Place = tuple[str, str, int]  # scheme, host in lower case, port
Resolver = Callable[[str, int], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side said. Header names are in lower case; of a name that came twice the first counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A checked URL: where to connect, and what to ask for there. `listed` says that the operator allows the place by setting."""

    place: Place
    path: str
    listed: bool


class Caller:
    """Makes calls. Threads may share one.

    `listed` are the places that the operator allows besides public ones (X-22). `resolve` gives the addresses of a name and is asked once
    for each call, `context` replaces the verifying default in tests that have a certificate authority of their own.
    """

    def __init__(
        self,
        listed: Iterable[Place] = (),
        *,
        resolve: Resolver | None = None,
        context: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
    ):
        self.listed = frozenset(listed)
        self.resolve = resolve or addresses_of
        self.seconds = seconds
        self._context = context

    def target(self, url: str) -> Target:
        """`url`, if a call may be made of it as far as its words say. Raises InputError: not https, a user name, an odd port, no host."""
        if len(url) > 2_000 or _STRANGE.search(url):
            raise InputError("has a space, a control character or a backslash in it, or is too long", "url")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(str(error), "url") from error
        place = (parts.scheme, _host(parts), port if port is not None else _PORTS.get(parts.scheme, 0))
        if "@" in parts.netloc:
            raise InputError("must not hold a user name or a password", "url")
        listed = place in self.listed
        if not listed and parts.scheme != "https":
            raise InputError("must begin with https://", "url")
        if not listed and place[2] != 443:
            raise InputError("must use port 443, unless the operator allows the host in NURTURE_ALLOW_HOSTS", "url")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(place, path if path.isascii() else _quoted(path), listed)

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Posts `body` and returns the answer, whatever its status.

        Raises CallError: `refused` when the call must not be made, `unsent` when nothing of it went out, `unknown` when it may have been
        taken and no answer came in time.
        """
        return self._call("POST", url, {**headers, "Content-Length": str(len(body))}, body, LIMIT)

    def get(self, url: str, limit: int = LIMIT) -> Answer:
        """Asks for `url`, and reads no more than `limit` bytes of what it answers. Raises CallError as `post` does, and `unknown` when the
        body ends early."""
        answer = self._call("GET", url, {}, b"", limit)
        told = answer.headers.get("content-length", "")
        if told.isdecimal() and len(answer.body) < min(int(told), limit):
            raise CallError("unknown", "the answer ended too early")
        return answer

    def _call(self, method: str, url: str, headers: Mapping[str, str], body: bytes, limit: int) -> Answer:
        deadline = Deadline(self.seconds)
        try:
            target = self.target(url)
        except InputError as error:
            raise CallError("refused", str(error)) from error
        sock = self._connected(target, self._addresses(target, deadline), deadline)
        try:
            return _exchange(sock, method, _request(method, target, headers) + body, deadline, limit)
        finally:
            sock.close()

    def _addresses(self, target: Target, deadline: Deadline) -> list[str]:
        """The addresses of the target's host, each of them one that may be called."""
        _, host, port = target.place
        found = _in_time(lambda: list(self.resolve(host, port)), deadline, f"the name {host} could not be resolved")
        if not found:
            raise CallError("unsent", f"the name {host} has no address")
        if not target.listed and (bad := [address for address in found if not is_public(address)]):
            raise CallError("refused", f"{host} is at {bad[0]}, which is not a public address")
        return found

    def _connected(self, target: Target, addresses: Sequence[str], deadline: Deadline) -> socket.socket:
        scheme, host, port = target.place
        problem: Exception | None = None
        for address in addresses:
            try:
                sock = socket.create_connection((address, port), timeout=deadline.left())
                try:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if scheme == "https":
                        sock.settimeout(deadline.left())
                        sock = (self._context or verifying_context()).wrap_socket(sock, server_hostname=host.strip("[]"))
                except BaseException:
                    sock.close()
                    raise
                return sock
            except (OSError, ValueError) as error:  # ValueError: a name that no certificate can carry
                problem = error
        raise CallError("unsent", f"{host}:{port}: {_said(problem)}") from problem


class Deadline:
    """A moment that everything a call does must be over by: a server that sends a byte now and then gains nothing."""

    def __init__(self, seconds: float):
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left. Raises TimeoutError when there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left


def addresses_of(host: str, port: int) -> list[str]:
    """What the system's resolver says."""
    return list(dict.fromkeys(found[4][0] for found in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)))


def new_secret() -> str:
    """A secret to sign with, as Standard Webhooks writes it."""
    return SECRET + base64.b64encode(secrets.token_bytes(32)).decode()


def signed(keys: Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a signed webhook: its id, the time in seconds since 1970, and a signature for each of `keys`."""
    content = f"{webhook_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(_key(one), content, hashlib.sha256)).decode() for one in keys)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET))


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").rstrip(".")
    if not host:
        raise InputError("names no host", "url")
    if ":" in host:
        return f"[{host}]"
    try:
        host = host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise InputError(f"{host} is not a host's name", "url") from error
    if not re.fullmatch(r"[a-z0-9_.-]{1,253}", host):
        raise InputError(f"{host} is not a host's name", "url")
    return host


def _quoted(path: str) -> str:
    return "".join(one if one.isascii() else "".join(f"%{byte:02X}" for byte in one.encode("utf-8", "replace")) for one in path)


def _in_time(work: Callable[[], list[str]], deadline: Deadline, problem: str) -> list[str]:
    """What `work` gives. The system's resolver knows no time limit, so it is left behind in a thread of its own when it takes too long."""
    done: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except (OSError, UnicodeError) as error:
            done.put((None, error))

    threading.Thread(target=run, name="resolve", daemon=True).start()
    try:
        found, error = done.get(timeout=deadline.left())
    except (queue.Empty, TimeoutError):
        raise CallError("unsent", f"{problem}: timed out") from None
    if error is not None:
        raise CallError("unsent", f"{problem}: {_said(error)}") from error
    return found


def _request(method: str, target: Target, headers: Mapping[str, str]) -> bytes:
    scheme, host, port = target.place
    lines = [f"{method} {target.path} HTTP/1.1", f"Host: {host}" + ("" if port == _PORTS[scheme] else f":{port}")]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Connection: close", "", ""]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or "\0" in head:
        raise CallError("refused", "a header would hold a line end")
    return head.encode("ascii")


def _exchange(sock: socket.socket, method: str, request: bytes, deadline: Deadline, limit: int) -> Answer:
    try:
        rest = memoryview(request)
        while rest:
            sock.settimeout(deadline.left())
            rest = rest[sock.send(rest) :]
        response = http.client.HTTPResponse(_Readable(sock, deadline), method=method)
        response.begin()
    except (OSError, http.client.HTTPException) as error:
        raise CallError("unknown", f"no answer: {_said(error)}") from error
    headers: dict[str, str] = {}
    for name, value in response.getheaders():
        headers.setdefault(name.lower(), value)
    return Answer(response.status, headers, _body(response, limit))


def _body(response: http.client.HTTPResponse, limit: int) -> bytes:
    """As much as comes in time, within the limit: the status has said already what there is to know."""
    parts, size = [], 0
    try:
        while size < limit and (part := response.read1(min(65536, limit - size))):
            parts.append(part)
            size += len(part)
    except (OSError, http.client.HTTPException, ValueError):
        pass
    return b"".join(parts)


class _Readable:
    """A socket as `HTTPResponse` wants one, whose every read ends with the call's deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline):
        self._sock, self._deadline = sock, deadline

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        return io.BufferedReader(_Timed(self._sock, self._deadline))


class _Timed(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: Deadline):
        super().__init__()
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)


def _said(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:300]
