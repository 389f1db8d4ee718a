"""An SMTP server of changing moods that counts. `python -m tests.moody_smtp SEED LOG` prints its port and serves until its
standard input ends, as it does when whoever started it dies.

By a seeded dice it defers, closes, hangs or answers slowly, at any phase; `SIGUSR1` calms it for good. It outlives everybody else, and
what it took is on record before anybody is told: LOG gets one JSON object per line, {"at": …, "id": Message-ID, "what": …}, written
before the reply. `what` is one of

    accepted     the message is taken
    no_answer    the reply to the final dot stays away: the connection is closed instead, in the body already or at the dot, whether the
                 message was taken or not
    deferred     4xx at the dot; like the one at RCPT, which has no message yet, it names a delay of two seconds
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time

LATER = "try again in 2 seconds"
# By phase: what may happen instead of the normal answer, and how likely it is.
MOODS = {
    "accept": {"close": 0.004},
    "mail": {"close": 0.004, "slow": 0.02},
    "rcpt": {"defer": 0.02, "close": 0.004, "slow": 0.02},
    "data": {"hang": 0.004, "close": 0.004, "slow": 0.02},
    "body": {"close": 0.006, "slow": 0.02},
    "dot": {"defer": 0.015, "defer+hang": 0.003, "slow": 0.15, "hang": 0.006, "lose": 0.004, "take": 0.004, "take+hang": 0.003},
}


class Moody:
    def __init__(self, seed: int, log: str):
        self.dice = random.Random(seed)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.calm = False

    def mood(self, phase: str) -> str:
        draw = self.dice.random()
        if self.calm:
            return ""
        for name, share in MOODS[phase].items():
            draw -= share
            if draw < 0:
                return name
        return ""

    async def pass_time(self, mood: str) -> None:
        """Raises EOFError where the mood is to close."""
        if mood == "slow":
            await asyncio.sleep(self.dice.uniform(0.02, 0.3))
        if mood.endswith("hang"):
            await asyncio.sleep(self.dice.uniform(1.0, 4.0))
        if mood == "close":
            raise EOFError

    def note(self, mail_id: str, what: str) -> None:
        os.write(self.log, json.dumps({"at": time.time(), "id": mail_id, "what": what}).encode() + b"\n")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, OSError, asyncio.LimitOverrunError):
            await self.talk(reader, writer)
        writer.close()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(reply: str, phase: str = "") -> None:
            if phase:
                await self.pass_time(self.mood(phase))
            writer.write(reply.encode() + b"\r\n")
            await writer.drain()

        await say("220 moody.test", "accept")
        recipient = False
        while line := await reader.readuntil(b"\r\n"):
            verb = line[:4].strip().upper().decode("ascii")
            if verb == "EHLO":
                await say("250-moody.test\r\n250-PIPELINING\r\n250-SIZE 20000000\r\n250 8BITMIME")
            elif verb == "MAIL":
                recipient = False
                await say("250 2.1.0 ok", "mail")
            elif verb == "RCPT":
                mood = self.mood("rcpt")
                await self.pass_time(mood)
                recipient = mood != "defer"
                await say("250 2.1.5 ok" if recipient else f"450 4.2.1 {LATER}")
            elif verb == "DATA" and recipient:
                await say("354 go on", "data")
                await self.take(await self.read(reader), say)
            elif verb == "DATA":
                await say("554 5.5.1 no valid recipients")
            elif verb == "QUIT":
                await say("221 2.0.0 bye")
                return
            else:
                await say("250 2.0.0 ok" if verb in ("RSET", "NOOP", "HELO") else "502 5.5.1 unknown command")

    async def read(self, reader: asyncio.StreamReader) -> str:
        """Reads a message to its final dot. Returns its Message-ID."""
        mail_id, in_body = "", False
        while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
            if not mail_id and line[:11].lower() == b"message-id:":
                mail_id = line[11:].strip().decode("ascii")
            if line == b"\r\n" and not in_body:
                in_body, mood = True, self.mood("body")
                if mood == "close":
                    # Whoever has written his dot before he noticed cannot know that it was never read.
                    self.note(mail_id, "no_answer")
                await self.pass_time(mood)
        return mail_id

    async def take(self, mail_id: str, say) -> None:
        mood = self.mood("dot")
        if mood.startswith("defer"):
            self.note(mail_id, "deferred")
            await self.pass_time(mood)
            await say(f"451 4.3.0 {LATER}")
            return
        if mood in ("lose", "take", "take+hang"):
            self.note(mail_id, "no_answer")
        if mood == "lose":
            raise EOFError
        # A server that hangs may take the message first or last.
        late = mood == "hang" and self.dice.random() < 0.5
        if late:
            await self.pass_time(mood)
        self.note(mail_id, "accepted")
        if not late:
            await self.pass_time(mood)
        if mood.startswith("take"):
            raise EOFError
        await say("250 2.0.0 queued")


async def main(seed: int, log: str) -> None:
    moody = Moody(seed, log)

    def calm() -> None:
        moody.calm = True

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, calm)
    over = asyncio.Event()
    loop.add_reader(sys.stdin, over.set)
    server = await asyncio.start_server(moody.serve, "127.0.0.1", 0, backlog=256, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await over.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
