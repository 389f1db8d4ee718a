"""The long proof that mail scanners change nothing (`make scanners`): a running installation, real mail, concurrent scanners.

`nurture up` sends the mails of the shipped campaigns to its outbox. Scanners in several networks fetch every address of each, with HEAD
and GET, and what the pages behind them link to, as soon as the mail is there. Then a Chromium with JavaScript shows some dozen mails and
follows all of their links. Then the minute of judging passes, and nothing may have changed: see `scanning.UNTOUCHED`. At last a person
clicks, half a minute after the mail, and that must be told to the campaigns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import quantiles

import psycopg

from tests import stories
from tests.browser import Chromium, Mailbox, installed
from tests.conftest import dsn
from tests.scanning import CHROME, DISGUISES, addresses, follow, untouched
from tests.test_end_to_end import key_of, post, urls_of
from tests.test_up import Engine

AT_ONCE = 2.0  # seconds after sending
BATCH = 8
FOLLOW = """<script>
for (const a of document.querySelectorAll('a[href*="127.0.0.1"]')) {
  fetch(a.href, {mode: 'no-cors', credentials: 'include'});
  const f = document.createElement('iframe'); f.src = a.href; document.body.append(f);
}
</script>"""
CLICK = "<script>setTimeout(() => document.querySelector('a[href*=\"/c/\"]').click(), 500)</script>"


@dataclass(frozen=True)
class Mail:
    id: int
    message: str
    raw: bytes
    captured_at: datetime

    @property
    def html(self) -> str:
        return message_from_bytes(self.raw, policy=policy.default).get_body(("html",)).get_content()


def people(number: int, start: int) -> list[dict]:
    """Half of them begin, half have reached their first value: the first get a mail with links, the others a question with scores."""
    items = []
    for one in range(start, start + number):
        person, account = f"p{one}", f"a{one}"
        items += [
            stories.group(account, person, name=f"Account {one}", touch="smb"),
            stories.identify(person, account, email=f"{person}@d{one % 50}.example", first_name="Mara", roles=["admin"]),
            stories.track("workspace_created" if one % 2 else "report_shared", person, account),
        ]
    return items


class Run:
    """One installation, the mails it has sent, and what was fetched of them."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.base = f"http://127.0.0.1:{engine.port}"
        self.key = key_of(engine, "write")
        self.conn = psycopg.connect(dsn(urls_of(engine)["database_url"]), autocommit=True)
        self.lock = threading.Lock()
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.began: list[float] = []
        self.ended: list[float] = []
        self.made = 0
        self._last = 0

    def mails(self, number: int, seconds: float = 60) -> list[Mail]:
        """Has mails sent to `number` new people, and returns them when they are in the outbox."""
        items = [{"messageId": f"s{self.made}-{place}", **item} for place, item in enumerate(people(number, self.made))]
        self.made += number
        status = post(self.engine, self.key, items)
        if status != 200:
            raise RuntimeError(f"the events were answered with {status}")
        found: list[Mail] = []
        deadline = time.monotonic() + seconds
        while len(found) < number:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(found)} of {number} mails were sent within {seconds:g} s")
            # Numbers are given before they are committed, so that a smaller one may come after a greater one.
            query = "select id, message_id, raw, captured_at from outbox where id > %s and id <> all(%s) order by id"
            rows = self.conn.execute(query, [self._last, [one.id for one in found]]).fetchall()
            found += [Mail(row[0], str(row[1]), bytes(row[2]), row[3]) for row in rows]
            time.sleep(0.005)
        self._last = max(one.id for one in found)
        return found

    def scan(self, mail: Mail) -> None:
        """Fetches everything of a mail, from a network and in a disguise of its own."""
        headers = DISGUISES[mail.id % len(DISGUISES)]
        wire = HTTPConnection("127.0.0.1", self.engine.port, timeout=30, source_address=(f"127.0.{mail.id % 200 + 1}.7", 0))
        with self.lock:
            self.began.append((datetime.now(UTC) - mail.captured_at).total_seconds())

        def fetch(method: str, url: str) -> tuple[int, str]:
            for attempt in (1, 2):  # a kept connection may be shut just as it is used
                try:
                    wire.request(method, url.removeprefix(self.base), headers={"Accept-Encoding": "identity", **headers})
                    answer = wire.getresponse()
                    body = answer.read()
                    break
                except (HTTPException, ConnectionError):
                    wire.close()
                    if attempt == 2:
                        raise
            if answer.headers["Set-Cookie"]:
                raise RuntimeError(f"{url} sets a cookie")
            return answer.status, body.decode() if "text/html" in (answer.headers["Content-Type"] or "") else ""

        for method, url, status in follow(addresses(mail.raw, self.base), self.base, fetch):
            with self.lock:
                self.requests[method, url.removeprefix(self.base)[1], status] += 1
        wire.close()
        with self.lock:
            self.ended.append((datetime.now(UTC) - mail.captured_at).total_seconds())

    def browse(self, mail: Mail, browser: Chromium, mailbox: Mailbox, pages: dict[str, str]) -> None:
        """Shows a mail in a browser that runs a script over it, and opens all of its links in tabs."""
        before = self.count(f"select count(*) from hit where message_id = '{mail.message}'")
        urls = addresses(mail.raw, self.base)
        pages[f"/{mail.id}"] = mail.html.replace("</body>", FOLLOW + "</body>")
        tabs = [browser.open(url) for url in (f"{mailbox.url}/{mail.id}", *urls)]
        wanted = before + len(urls)
        self.wait(lambda: self.count(f"select count(*) from hit where message_id = '{mail.message}'") >= wanted, 60, "the browser's hits")
        browser.shut(tabs)

    def count(self, query: str) -> int:
        return self.conn.execute(query).fetchone()[0]

    def wait(self, true: Callable[[], object], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: not within {seconds:g} s")
            time.sleep(0.1)

    def settled(self) -> None:
        self.wait(lambda: self.count("select count(*) from hit where settled_at is null") == 0, 300, "judging")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scanners", description=__doc__.partition("\n")[0])
    parser.add_argument("--mails", type=int, default=1000)
    parser.add_argument("--browsed", type=int, default=36, help="mails that a Chromium with JavaScript follows")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nurture-scanners-") as folder:
        Path(folder).chmod(0o755)
        engine = Engine(Path(folder) / "home")
        try:
            return _prove(Run(engine.ready()), options.mails, options.browsed)
        finally:
            engine.close()


def _prove(run: Run, number: int, browsed: int) -> int:
    began = time.monotonic()
    with ThreadPoolExecutor(BATCH) as pool:
        for start in range(0, number, BATCH):
            list(pool.map(run.scan, run.mails(min(BATCH, number - start))))
    took = time.monotonic() - began
    late = sum(seconds > AT_ONCE for seconds in run.began)
    print(f"{number} mails, {sum(run.requests.values())} requests in {took:.0f} s")
    print(f"  from sending to the first fetch: {_spread(run.began)}; to the last: {_spread(run.ended)}")
    print(f"  mails whose scan began later than {AT_ONCE:g} s: {late}")
    for (method, kind, status), times in sorted(run.requests.items()):
        print(f"  {method:4} /{kind}/ {status}: {times}")
    problems = [f"answers other than 200 and 302: {found}"] if (found := {s for _, _, s in run.requests} - {200, 302}) else []
    problems += [f"{late} mails were not scanned within {AT_ONCE:g} s: too slow a machine to prove it"] if late > number / 20 else []
    problems += ["not every kind of link was followed"] if {kind for _, kind, _ in run.requests} != set("coupsv") else []
    if installed() and browsed:
        _browse(run, browsed)
    elif browsed:
        print("No Chromium on this machine: the part with a browser and the one with a person are left out.")
    run.settled()
    for kind, verdict, times in run.conn.execute("select kind, verdict, count(*) from hit group by 1, 2 order by 1, 2").fetchall():
        print(f"  judged: {kind} {verdict}: {times}")
    problems += [f"{what}: {times}" for what, times in untouched(run.count).items()]
    problems += [f"{extra} mails more than were asked for"] if (extra := run.count("select count(*) from outbox") - run.made) else []
    if installed() and browsed:
        problems += _person(run)
    print("\n".join(problems) or "Nothing has changed.")
    return 1 if problems else 0


def _browse(run: Run, number: int) -> None:
    pages: dict[str, str] = {}
    mailbox, browser = Mailbox(pages), Chromium(CHROME)
    try:
        for start in range(0, number, 4):
            for mail in run.mails(min(4, number - start)):
                run.browse(mail, browser, mailbox, pages)
        print(f"{number} mails followed by Chromium with JavaScript")
    finally:
        browser.close()
        mailbox.close()


def _person(run: Run) -> list[str]:
    """A person looks at a mail half a minute after it came, and follows one link."""
    run.made += run.made % 2 == 0  # who begins gets a mail with a tracked link
    [mail] = run.mails(1)
    time.sleep(max(0.0, 31 - (datetime.now(UTC) - mail.captured_at).total_seconds()))
    mailbox, browser = Mailbox({"/mail": mail.html.replace("</body>", CLICK + "</body>")}), Chromium(CHROME)
    clicks = f"select count(*) from hit where kind = 'click' and message_id = '{mail.message}'"
    try:
        browser.open(mailbox.url + "/mail")
        run.wait(lambda: run.count(clicks), 60, "the click")
    finally:
        browser.close()
        mailbox.close()
    clicked = time.monotonic()
    told = "select count(*) from event where name = 'nurture.email_clicked' and properties ->> 'message' = "
    run.wait(lambda: run.count(f"{told} '{mail.message}'"), 150, "the click of a person, told")
    print(f"a person's click was told after {time.monotonic() - clicked:.0f} s")
    return [] if run.count("select count(*) from event where name = 'nurture.email_clicked'") == 1 else ["more clicks were told than one"]


def _spread(seconds: list[float]) -> str:
    cuts = quantiles(seconds, n=100)
    return f"p50 {cuts[49]:.2f} s, p95 {cuts[94]:.2f} s, longest {max(seconds):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
