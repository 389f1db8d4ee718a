"""An SMTP server that misbehaves on order and counts what it accepted. Raw sockets, a thread per connection.

Inside a test: `with FaultySmtp({"rcpt": [["reply", "550 5.1.1 no such user"]]}) as server:`. As a process, so that workers can be
killed around it: `python tests/faulty_smtp.py '{"faults": {…}, "log": "path"}'` prints its port.

`faults` maps a phase (accept, ehlo, starttls, auth, mail, rcpt, data, body, dot) to a list of actions, used up one by one, one per
time the phase is reached; a phase without actions behaves. Actions:

    ["reply", "451 4.2.0 later"]   says that instead
    ["close"]                      closes without a word
    ["hang", seconds]              says nothing for so long, then goes on
    ["hold", path]                 says nothing while the file exists, then goes on
    ["raw", "text"]                writes the text as it is, then goes on without a reply of its own
    ["flood", bytes]               writes so many bytes without a line end
    ["sink"]                       `body` only: stops reading for good
    ["reply+close", "250 ok"]      says that and closes

A message is accepted when its final dot was read and no fault of the phase `dot` refuses it with 4xx or 5xx: `accepted` counts them by
Message-ID. What was reached is logged as one JSON object per line, flushed before the reply: {"phase": …, "id": …}.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections import Counter


class FaultySmtp:
    """See the module. `pipelining` and `size` shape what EHLO offers; `tls` is a server context: None, or with `implicit`."""

    def __init__(self, faults=None, *, pipelining=True, size=None, tls=None, implicit=False, login=None, log=None, extra=()):
        self.faults = {phase: list(actions) for phase, actions in (faults or {}).items()}
        self.pipelining, self.size, self.tls, self.implicit, self.login = pipelining, size, tls, implicit, login
        self.extra = extra
        self.log = open(log, "a", buffering=1) if log else None  # noqa: SIM115 — closed with the server
        self.accepted: Counter[str] = Counter()
        self.messages: list[bytes] = []
        self.reached: list[str] = []
        self.commands: list[str] = []
        self.dots = 0
        self.connections = 0
        self.lock = threading.Lock()
        self.open: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> FaultySmtp:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self._start(self._listen)
        return self

    def __exit__(self, *_) -> None:
        # `shutdown` wakes the thread that waits in accept(); close alone does not.
        for sock in [self.listener, *self.open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self.threads:
            thread.join(5)
        if self.log:
            self.log.close()

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def _start(self, target, *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                self.connections += 1
                self.open.append(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, ssl.SSLError, EOFError):
            if self.implicit:
                sock = self._secure(sock)
            Dialogue(self, sock).run()
        with contextlib.suppress(OSError):
            sock.close()

    def _secure(self, sock: socket.socket) -> ssl.SSLSocket:
        secure = self.tls.wrap_socket(sock, server_side=True)
        with self.lock:
            self.open.append(secure)
        return secure

    def note(self, phase: str, mail_id: str | None = None) -> None:
        with self.lock:
            self.reached.append(phase)
            if self.log:
                self.log.write(json.dumps({"phase": phase, "id": mail_id}) + "\n")

    def next_fault(self, phase: str):
        with self.lock:
            waiting = self.faults.get(phase)
            return waiting.pop(0) if waiting else None


class Dialogue:
    def __init__(self, server: FaultySmtp, sock: socket.socket):
        self.server, self.sock = server, sock
        self.input = sock.makefile("rb")

    def run(self) -> None:
        self.answer("accept", "220 faulty.test ready")
        while True:
            line = self.input.readline()
            if not line:
                return
            text = line.decode("ascii").strip()
            with self.server.lock:
                self.server.commands.append(text)
            verb = text.split(" ")[0].split(":")[0].upper()
            handler = getattr(self, "on_" + verb.lower(), None)
            if handler is None:
                self.say("502 5.5.1 unknown command")
            elif handler(text) == "end":
                return

    def on_ehlo(self, text: str) -> None:
        server = self.server
        offers = ["faulty.test"]
        offers += ["PIPELINING"] * server.pipelining + [f"SIZE {server.size}"] * bool(server.size)
        offers += ["STARTTLS"] * bool(server.tls and not isinstance(self.sock, ssl.SSLSocket))
        offers += ["AUTH PLAIN LOGIN"] * bool(server.login) + list(server.extra) + ["8BITMIME"]
        self.answer("ehlo", "\r\n".join(f"250{'-' if index < len(offers) - 1 else ' '}{offer}" for index, offer in enumerate(offers)))

    def on_helo(self, text: str) -> None:
        self.say("250 faulty.test")

    def on_starttls(self, text: str) -> None:
        if self.answer("starttls", "220 go ahead"):
            self.sock = self.server._secure(self.sock)
            self.input = self.sock.makefile("rb")

    def on_auth(self, text: str) -> None:
        import base64

        user, password = self.server.login
        good = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        self.answer("auth", "235 2.7.0 in" if text.split(" ")[-1] == good else "535 5.7.8 no")

    def on_rset(self, text: str) -> None:
        self.say("250 2.0.0 reset")

    def on_noop(self, text: str) -> None:
        self.say("250 2.0.0 ok")

    def on_quit(self, text: str) -> str:
        self.say("221 2.0.0 bye")
        return "end"

    def on_mail(self, text: str) -> None:
        self.mail_ok = self.answer("mail", "250 2.1.0 ok")
        self.rcpt_ok = False

    def on_rcpt(self, text: str) -> None:
        if not self.mail_ok:
            self.say("503 5.5.1 MAIL first")
        else:
            self.rcpt_ok = self.answer("rcpt", "250 2.1.5 ok")

    def on_data(self, text: str) -> str | None:
        if not getattr(self, "rcpt_ok", False):
            self.say("554 5.5.1 no valid recipients")
            return None
        if not self.answer("data", "354 go on"):
            return None
        return self.read_body()

    def read_body(self) -> str | None:
        lines = [self.input.readline()]
        mail_id = None
        while lines[-1] and lines[-1] != b".\r\n":
            if lines[-1].lower().startswith(b"message-id:"):
                mail_id = lines[-1].split(b":", 1)[1].strip().decode()
            if lines[-1] == b"\r\n" and "body" not in getattr(self, "done", ()):
                self.done = ("body",)
                self.server.note("body", mail_id)
                self.act("body")
            lines.append(self.input.readline())
        self.done = ()
        if not lines[-1]:
            return "end"
        self.accept(b"".join(lines[:-1]), mail_id)
        return None

    def accept(self, data: bytes, mail_id: str | None) -> None:
        server = self.server
        with server.lock:
            server.dots += 1
        fault = server.next_fault("dot")
        said = fault[1] if fault and fault[0].startswith("reply") else ""
        if not re.match("[45]", said):
            with server.lock:
                server.accepted[mail_id or "?"] += 1
                server.messages.append(data.replace(b"\r\n..", b"\r\n."))
            server.note("accepted", mail_id)
        server.note("dot", mail_id)
        if self.perform(fault):
            self.say("250 2.0.0 queued as 4711")

    def answer(self, phase: str, reply: str) -> bool:
        """The normal reply, unless a fault says otherwise. True when the phase went well."""
        self.server.note(phase)
        if self.act(phase):
            self.say(reply)
            return reply[0] in "23"
        return False

    def act(self, phase: str) -> bool:
        return self.perform(self.server.next_fault(phase))

    def perform(self, fault) -> bool:
        """Does the fault. True when the normal reply is still to be said."""
        if fault is None:
            return True
        kind, *rest = fault
        if kind == "hang":
            time.sleep(rest[0])
            return True
        if kind == "hold":
            while os.path.exists(rest[0]):
                time.sleep(0.01)
            return True
        if kind == "sink":
            threading.Event().wait(30)
            raise EOFError
        if kind == "flood":
            chunk = b"2" * 65536
            for _ in range(rest[0] // len(chunk) + 1):
                self.sock.sendall(chunk)
            return False
        if kind == "raw":
            self.sock.sendall(rest[0].encode("latin-1"))
            return False
        if kind.startswith("reply"):
            self.say(rest[0])
        if kind.endswith("close"):
            self.sock.shutdown(socket.SHUT_RDWR)
            raise EOFError
        return False

    def say(self, reply: str) -> None:
        self.sock.sendall(reply.encode("ascii") + b"\r\n")


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    with FaultySmtp(told.pop("faults", {}), **told) as main:
        print(main.port, flush=True)
        threading.Event().wait()
