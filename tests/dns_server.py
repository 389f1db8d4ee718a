"""A small DNS server on loopback, which answers from a table: {name: {"TXT": [...], "MX": [...], "A": [...]}}."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Zone = Mapping[str, Mapping[str, Sequence[str]]]


@contextmanager
def serve(zone: Zone) -> Iterator[tuple[str, int]]:
    """Its address and port, as long as the block lasts. TXT texts are given plain, and longer ones go in parts as they do in reality."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, socket = self.request
            question = dns.message.from_wire(data)
            socket.sendto(_answer(zone, question).to_wire(), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address
        finally:
            server.shutdown()
            thread.join()


def _answer(zone: Zone, question: dns.message.Message) -> dns.message.Message:
    answer = dns.message.make_response(question)
    answer.flags |= dns.flags.RA
    (asked,) = question.question
    records = zone.get(asked.name.to_text().rstrip(".").lower())
    if records is None:
        answer.set_rcode(dns.rcode.NXDOMAIN)
    elif values := records.get(dns.rdatatype.to_text(asked.rdtype)):
        texts = [_parts(value) for value in values] if asked.rdtype == dns.rdatatype.TXT else values
        answer.answer.append(dns.rrset.from_text(asked.name, 60, "IN", dns.rdatatype.to_text(asked.rdtype), *texts))
    return answer


def _parts(text: str) -> str:
    parts = [text[start : start + 200] for start in range(0, len(text), 200)]
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)
