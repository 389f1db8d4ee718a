"""SMTP, driven phase by phase, so that "certainly not sent" and "perhaps sent" are never confused (S-01, table 2.1)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

from app.config import is_loopback
from app.errors import SendError, SettingError
from app.providers import Letter
from app.providers.addresses import is_public
from app.providers.wire import Lost, Reply, Wire
from app.rules.relays import relay_of

MAIL_PORTS = (25, 465, 587, 2465, 2525, 2587)  # where relays are offered; elsewhere something else may listen (S-20)
Place = tuple[str, str, int]  # smtp or smtps, host, port
Resolver = Callable[[str, int], Awaitable[list[str]]]

_BARE_CR = re.compile(rb"\r(?!\n)")
_ADDRESS = re.compile(r"[\x21-\x3b\x3d\x3f-\x7e]+@[A-Za-z0-9.:\[\]-]+")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait, for each command. The final dot's is long on purpose: a false alarm there would leave mail that nobody knows about
    (S-02). `connect` is for the name, the connection and TLS; `command` for the greeting and whatever has no limit of its own."""

    connect: float = 30
    command: float = 60
    mail: float | None = None
    rcpt: float | None = None
    data: float | None = None
    body: float = 180
    dot: float = 600

    def of(self, phase: str) -> float:
        return getattr(self, phase, None) or self.command


class Smtp:
    """A relay. Opens connections as its URL says and never weaker (S-17).

    `smtps://` speaks TLS from the start; `smtp://` demands STARTTLS, except to a loopback address, where it speaks plainly unless
    `?tls=starttls`; `?tls=none` speaks plainly anywhere. It never falls back, and never signs in without TLS except to a loopback
    address: SettingError then. `context` replaces the verifying default in tests that have a certificate authority of their own.
    `hello` is the name to introduce ourselves by. `reset` sends RSET between letters (S-14). At most `letters` go over one
    connection, none larger than `size` octets (M-14); a connection that is not used for `idle` seconds is closed. `rate` is how many
    letters a second whoever sends may hand over; None is no limit.

    `listed` are the places that the operator allows besides public ones and this machine; None allows all, for a relay that the operator
    names in the environment (S-20). `resolve` gives the addresses of a name.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 16,
        hello: str = "localhost",
        timeouts: Timeouts | None = None,
        context: ssl.SSLContext | None = None,
        letters: int = 100,
        size: int = 10_000_000,
        reset: bool = True,
        idle: float = 60.0,
        rate: float | None = None,
        listed: Iterable[Place] | None = None,
        resolve: Resolver | None = None,
    ):
        parts = urlsplit(url)
        self.connections = connections
        self.host = parts.hostname
        self.service = relay_of(self.host)
        self.user = unquote(parts.username) if parts.username else None
        self.password = unquote(parts.password or "")
        self.tls = _tls(parts.scheme, parts.query, self.host)
        self.port = parts.port or (465 if self.tls == "implicit" else 25 if is_loopback(self.host) else 587)
        self.hello = hello
        self.timeouts = timeouts or Timeouts()
        self.letters = letters
        self.size = size
        self.reset = reset
        self.idle = idle
        self.rate = rate
        self.listed = None if listed is None else frozenset(listed)
        self.resolve = resolve or _resolve
        self._context = context
        if self.user and self.tls == "none" and not is_loopback(self.host):
            raise SettingError("SMTP_URL", "a user and a password go over TLS only; use smtps:// or ?tls=starttls")

    async def open(self) -> SmtpConnection:
        connection = SmtpConnection(self)
        try:
            await connection.connect()
        except (Lost, OSError, ssl.SSLError, TimeoutError) as error:
            connection.drop()
            untrusted = isinstance(error, ssl.SSLCertVerificationError)
            raise SendError("temp", "connect", f"{self.host}:{self.port}: {_said(error)}", setting=untrusted) from error
        except BaseException:
            connection.drop()
            raise
        return connection

    def context(self) -> ssl.SSLContext:
        return self._context or verifying_context()

    async def addresses(self) -> list[str]:
        """Where the host is, each of them an address that may be connected to. Raises SendError, OSError."""
        free = self.listed is None or is_loopback(self.host) or (_SCHEMES[self.tls == "implicit"], self.host, self.port) in self.listed
        if not free and self.port not in MAIL_PORTS:
            problem = f"port {self.port} is none of {', '.join(map(str, MAIL_PORTS))}; NURTURE_ALLOW_HOSTS may allow the place"
            raise SendError("temp", "connect", problem, setting=True)
        found = [self.host] if _is_address(self.host) else await self.resolve(self.host, self.port)
        if not free and (bad := [address for address in found if not is_public(address)]):
            problem = f"{self.host} is at {bad[0]}, which is not a public address; NURTURE_ALLOW_HOSTS may allow it"
            raise SendError("temp", "connect", problem, setting=True)
        return found


class SmtpConnection:
    """One dialogue with the relay. See `providers.Connection`."""

    def __init__(self, relay: Smtp):
        self.relay = relay
        self.carried = 0
        self.wire = Wire()
        self.offers: dict[str, str] = {}
        self._dirty = False

    @property
    def usable(self) -> bool:
        return self.wire.quiet and self.carried < self.relay.letters

    async def connect(self) -> None:
        """Greeting, EHLO, TLS, AUTH. Raises Lost, OSError or SendError, always before any letter."""
        relay, seconds = self.relay, self.relay.timeouts
        options = {}
        if relay.tls == "implicit":
            options = {"ssl": relay.context(), "server_hostname": relay.host, "ssl_handshake_timeout": seconds.connect}
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds.connect):
            # The addresses that were checked are the ones connected to: a name may say another thing the next moment.
            await self._connect(loop, await relay.addresses(), options)
        # Body and dot are two writes: without this each pair waits for the peer's delayed acknowledgement, 44 ms.
        self.wire.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greeting = await self.wire.reply(seconds.command)
        if greeting.code != 220:
            raise SendError("temp", "connect", greeting.text, greeting.code)
        await self._introduce()
        if relay.tls == "starttls":
            await self._starttls(loop)
            await self._introduce()
        if relay.user:
            await self._sign_in()

    async def _connect(self, loop: asyncio.AbstractEventLoop, addresses: Sequence[str], options: Mapping[str, Any]) -> None:
        for number, address in enumerate(addresses, 1):
            try:
                await loop.create_connection(lambda: self.wire, address, self.relay.port, **options)
                return
            except ssl.SSLError:
                raise
            except OSError:
                if number == len(addresses):
                    raise
                self.wire = Wire()

    async def begin(self, letter: Letter) -> None:
        stuffed = self._stuffed(letter)
        commands = self._envelope(letter, len(stuffed))
        self.carried += 1
        if not self.wire.quiet:
            self.wire.end("the server spoke out of turn")
        try:
            if "PIPELINING" in self.offers:
                await self._pipeline(commands)
            else:
                for phase, command in commands:
                    self._send(_PHASES.get(phase, phase), command)
                    self._judge(phase, await self._answer(phase))
        except SendError:
            self._dirty = True
            raise
        self._dirty = True
        try:
            self.wire.send(stuffed)
            await self.wire.drained(self.relay.timeouts.body)
        except Lost as lost:
            raise SendError("temp", "body", str(lost)) from lost

    async def finish(self) -> str:
        wire = self.wire
        if not wire.quiet:
            # The dot has not been written, so whatever the server says now, it has no message.
            early = wire.replies[0] if wire.replies else None
            wire.end("the server spoke before the end of the message")
            if early and early.code >= 400:
                raise SendError("temp" if early.code < 500 else "perm", "body", early.text, early.code)
            raise SendError("temp", "body", str(wire.lost))
        try:
            wire.send(b".\r\n")
        except Lost as lost:
            raise SendError("temp", "body", str(lost)) from lost
        try:
            reply = await wire.reply(self.relay.timeouts.dot)
        except Lost as lost:
            raise SendError("unknown", "dot", str(lost)) from lost
        if reply.code >= 400:
            self._judge("dot", reply)
        if reply.code >= 300:
            wire.end("a reply that fits no dot")
            raise SendError("unknown", "dot", reply.text, reply.code)
        self._dirty = False
        return str(reply)

    def drop(self) -> None:
        self.wire.end("dropped")

    async def close(self) -> None:
        with contextlib.suppress(Lost):
            self.wire.send(b"QUIT\r\n")
            await self.wire.reply(1)
        self.drop()

    async def _introduce(self) -> None:
        reply = await self._ask(f"EHLO {self.relay.hello}")
        if reply.code == 250:
            words = (line.split(None, 1) for line in reply.lines[1:] if line)
            self.offers = {word[0].upper(): word[1] if len(word) > 1 else "" for word in words}
        elif reply.code >= 500 and self.relay.tls != "starttls" and not self.relay.user:
            reply = await self._ask(f"HELO {self.relay.hello}")
        if reply.code != 250:
            raise SendError("temp", "connect", reply.text, reply.code)

    async def _starttls(self, loop: asyncio.AbstractEventLoop) -> None:
        if "STARTTLS" not in self.offers:
            raise SendError("temp", "connect", "the relay does not offer STARTTLS, and mail is never sent in the clear", setting=True)
        reply = await self._ask("STARTTLS")
        if reply.code != 220:
            raise SendError("temp", "connect", reply.text, reply.code)
        if not self.wire.quiet:
            # Bytes that came in the clear after the 220 would be read as if they had come over TLS.
            raise SendError("temp", "connect", "the relay sent more than it may before TLS")
        secure = await loop.start_tls(
            self.wire.transport,
            self.wire,
            self.relay.context(),
            server_hostname=self.relay.host,
            ssl_handshake_timeout=self.relay.timeouts.connect,
        )
        if secure is None:
            raise Lost("the server closed the connection during the TLS handshake")
        self.wire.connection_made(secure)

    async def _sign_in(self) -> None:
        relay = self.relay
        ways = self.offers.get("AUTH", "").upper().split()
        if "PLAIN" in ways or not ways:
            reply = await self._ask("AUTH PLAIN " + _base64(f"\0{relay.user}\0{relay.password}"))
        elif "LOGIN" in ways:
            reply = await self._ask("AUTH LOGIN")
            for secret in (relay.user, relay.password):
                if reply.code == 334:
                    reply = await self._ask(_base64(secret))
        else:
            problem = f"the relay signs in by {' '.join(ways)} only; PLAIN or LOGIN is needed"
            raise SendError("temp", "connect", problem, setting=True)
        if reply.code != 235:
            # 4xx is the relay's trouble (454 4.7.0), 5xx is ours.
            raise SendError("temp", "connect", f"signing in failed: {reply.text}", reply.code, setting=reply.code >= 500)

    async def _ask(self, command: str) -> Reply:
        if not self.wire.quiet:
            self.wire.end("the server spoke out of turn")
        self.wire.send(command.encode("ascii") + b"\r\n")
        return await self.wire.reply(self.relay.timeouts.command)

    def _stuffed(self, letter: Letter) -> bytes:
        data = letter.data
        if letter.plain:
            return data
        if _BARE_CR.search(data) or data.count(b"\r") != data.count(b"\n"):
            # Some servers end a message at a bare LF before a dot: what follows would be a message of its own (S-07).
            raise SendError("perm", "data", "the message has a bare CR or LF")
        data = data.replace(b"\r\n.", b"\r\n..")
        if data.startswith(b"."):
            data = b"." + data
        return data if data.endswith(b"\r\n") else data + b"\r\n"

    def _envelope(self, letter: Letter, size: int) -> list[tuple[str, bytes]]:
        for address, phase in ((letter.sender, "mail"), (letter.recipient, "rcpt")):
            if len(address) > 254 or not _ADDRESS.fullmatch(address):
                raise SendError("perm", phase, f"{address[:80]!r} is not an address that can be sent to")
        limit = self.relay.size
        offered = self.offers.get("SIZE", "")
        if offered.isdigit() and int(offered):
            limit = min(limit, int(offered[:12]))
        if size > limit:
            raise SendError("perm", "data", f"the message has {size} octets, the limit is {limit}", 552)
        sized = f" SIZE={size}" if "SIZE" in self.offers else ""
        commands = [("rset", b"RSET\r\n")] if self._dirty or (self.relay.reset and self.carried) else []
        return [
            *commands,
            ("mail", f"MAIL FROM:<{letter.sender}>{sized}\r\n".encode("ascii")),
            ("rcpt", f"RCPT TO:<{letter.recipient}>\r\n".encode("ascii")),
            ("data", b"DATA\r\n"),
        ]

    async def _pipeline(self, commands: list[tuple[str, bytes]]) -> None:
        """All commands in one write (RFC 2920). The first refusal counts; the replies after it are read to stay in step."""
        self._send("mail", b"".join(command for _, command in commands))
        refused: SendError | None = None
        for number, (phase, _) in enumerate(commands):
            try:
                reply = await self._answer(phase, len(commands) - number)
                if refused is None:
                    self._judge(phase, reply)
                elif reply.code == 354:
                    # It waits for a body although it refused the envelope. Ending the connection ends that without a message.
                    self.wire.end("the server wants a body for a refused envelope")
            except SendError as error:
                refused = refused or error
                if self.wire.lost:
                    break
        if refused:
            raise refused

    async def _answer(self, phase: str, ahead: int = 1) -> Reply:
        try:
            return await self.wire.reply(self.relay.timeouts.of(phase), ahead)
        except Lost as lost:
            raise SendError("temp", _PHASES.get(phase, phase), str(lost)) from lost

    def _send(self, phase: str, data: bytes) -> None:
        try:
            self.wire.send(data)
        except Lost as lost:
            raise SendError("temp", phase, str(lost)) from lost

    def _judge(self, phase: str, reply: Reply) -> None:
        if reply.code == 421:
            self.wire.end("the server said 421")
        expected = 354 if phase == "data" else 250
        if reply.code >= 400:
            raise SendError("temp" if reply.code < 500 else "perm", _PHASES.get(phase, phase), reply.text, reply.code)
        if reply.code != expected and not (phase == "rcpt" and reply.code in (251, 252)):
            self.wire.end("a reply that fits no command")
            raise SendError("temp", _PHASES.get(phase, phase), reply.text, reply.code)


async def _resolve(host: str, port: int) -> list[str]:
    """What the system's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(one[4][0] for one in found))


def _is_address(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


_PHASES = {"rset": "mail"}
_SCHEMES = ("smtp", "smtps")  # by whether TLS comes first


@cache
def verifying_context() -> ssl.SSLContext:
    """TLS ≥ 1.2 with certificates and names verified. Made once: reading the certificate authorities takes 20 ms."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _tls(scheme: str, query: str, host: str) -> str:
    if scheme == "smtps":
        return "implicit"
    if query:
        return query.removeprefix("tls=")
    return "none" if is_loopback(host) else "starttls"


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
