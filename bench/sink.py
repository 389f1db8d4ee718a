"""An SMTP server that accepts everything as fast as it can, for benchmarks. `python -m bench.sink` prints its port and serves until killed.

One asyncio loop. It offers PIPELINING, keeps no mail, and answers `XCOUNT` with how many messages and octets it has accepted.
"""

from __future__ import annotations

import asyncio

_EHLO = b"250-sink\r\n250-PIPELINING\r\n250-SIZE 20000000\r\n250 8BITMIME\r\n"
_ANSWERS = {
    b"MAIL": b"250 2.1.0 ok\r\n",
    b"RCPT": b"250 2.1.5 ok\r\n",
    b"RSET": b"250 2.0.0 ok\r\n",
    b"NOOP": b"250 2.0.0 ok\r\n",
    b"EHLO": _EHLO,
    b"HELO": b"250 sink\r\n",
}


class Sink(asyncio.Protocol):
    accepted = 0
    octets = 0

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.buffer = bytearray()
        self.in_body = False
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        said = b""
        while True:
            if self.in_body:
                end = self.buffer.find(b"\r\n.\r\n", max(0, len(self.buffer) - len(data) - 4))
                if end < 0:
                    break
                Sink.accepted += 1
                Sink.octets += end + 2
                del self.buffer[: end + 5]
                self.in_body = False
                said += b"250 2.0.0 queued\r\n"
                data = bytes(self.buffer)
                continue
            end = self.buffer.find(b"\r\n")
            if end < 0:
                break
            line = bytes(self.buffer[:end])
            del self.buffer[: end + 2]
            verb = line[:4].upper()
            if verb == b"DATA":
                self.in_body = True
                data = bytes(self.buffer)
                said += b"354 go on\r\n"
            elif verb == b"QUIT":
                self.transport.write(said + b"221 2.0.0 bye\r\n")
                self.transport.close()
                return
            elif line == b"XCOUNT":
                said += b"250 %d %d\r\n" % (Sink.accepted, Sink.octets)
            else:
                said += _ANSWERS.get(verb, b"502 5.5.1 unknown\r\n")
        if said:
            self.transport.write(said)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0, backlog=128)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
