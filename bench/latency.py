"""Row F: how long it takes from posting an event until the relay has accepted the mail that it brings, on an idle system.

The whole engine as processes: web under gunicorn, the workers of `worker.py` (advance, deliver, clock), durable PostgreSQL and Redis, and
a relay of its own. One event at a time, each of a fresh account whose contact is known, each starting a shipped campaign. The clock
starts before the HTTP request is written and stops when the relay has read the final dot.
"""

from __future__ import annotations

import base64
import http.client
import json
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import quantiles
from time import perf_counter, sleep

from app import db
from app.config import CODE
from app.flow.access import create_key
from app.flow.publish import publish
from bench.ground import databases, environment, web
from bench.table import Line

EVENTS = 150
WARM_UP = 15


def latency() -> list[Line]:
    """Milliseconds from the event to the accepted mail: the median and the 99th percentile."""
    with _relay() as (port, accepted), databases(SMTP_URL=f"smtp://127.0.0.1:{port}") as settings:
        engine = db.connect(settings.database_url)
        with engine.begin() as conn:
            key = create_key(conn, "bench", "write", datetime.now(UTC))
            publish(conn, CODE / "campaigns", datetime.now(UTC))
        engine.dispose()
        with web(settings) as web_port, _workers(settings):
            took = [_once(web_port, key, number, accepted) for number in range(WARM_UP + EVENTS)][WARM_UP:]
    cuts = quantiles(took, n=100)
    note = f"{EVENTS} events one after the other; fastest {min(took):.1f} ms, slowest {max(took):.1f} ms"
    return [
        Line("F", "event posted → relay has accepted the mail, median", cuts[49], "ms", 25, at_most=True, note=note),
        Line("F", "the same, 99th percentile", cuts[98], "ms", 60, at_most=True),
    ]


def _once(port: int, key: str, number: int, accepted: threading.Semaphore) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    who = {"userId": f"u{number}", "context": {"groupId": f"a{number}"}}
    _post(connection, key, {"type": "identify", **who, "traits": {"email": f"u{number}@example.com", "roles": ["admin"]}})
    sleep(0.05)  # the account is known and the engine idle again when the event comes
    started = perf_counter()
    _post(connection, key, {"type": "track", "event": "workspace_created", **who})
    if not accepted.acquire(timeout=20):
        raise RuntimeError("the mail did not come within 20 s")
    took = (perf_counter() - started) * 1000
    connection.close()
    return took


def _post(connection: http.client.HTTPConnection, key: str, item: dict) -> None:
    basic = base64.b64encode(f"{key}:".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
    connection.request("POST", f"/v1/{item['type']}", json.dumps(item), headers)
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {said!r}")


@contextmanager
def _workers(settings):
    command = [sys.executable, "worker.py"]
    process = subprocess.Popen(command, cwd=CODE, env=environment(settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _relay():
    """A relay in this process, so that the moment of acceptance is read off the same clock."""
    accepted = threading.Semaphore(0)

    class Relay(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            self.say("220 relay")
            while line := self.rfile.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    self.say("250-relay\r\n250 PIPELINING")
                elif verb == b"DATA":
                    self.say("354 go on")
                    while self.rfile.readline() not in (b".\r\n", b""):
                        pass
                    accepted.release()
                    self.say("250 2.0.0 accepted")
                elif verb == b"QUIT":
                    self.say("221 2.0.0 bye")
                    return
                else:
                    self.say("250 2.0.0 ok")

        def say(self, reply: str) -> None:
            self.wfile.write(reply.encode() + b"\r\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Relay) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1], accepted
        finally:
            server.shutdown()


ROWS = {"F": latency}
