"""What mail scanners do to a mail: take it apart and fetch everything in it, with HEAD and GET, and what the pages behind it link to.

Nothing that they do may count: `untouched` says what did.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from email import message_from_bytes, policy
from html import unescape
from urllib.parse import urljoin

CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"

# From the one that does not hide to the one that looks like a person in every header.
DISGUISES: tuple[Mapping[str, str], ...] = (
    {"User-Agent": "python-requests/2.32.5"},
    {},
    {"User-Agent": CHROME},
    {"User-Agent": CHROME, "Accept-Language": "en-GB,en;q=0.9", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"},
)

# What must be none of, whatever was fetched.
UNTOUCHED = {
    "suppressions": "select count(*) from suppression",
    "consent": "select count(*) from consent",
    "answers": "select count(*) from response",
    "revisions of answers": "select count(*) from response_revision",
    "human clicks": "select count(*) from hit where kind <> 'open' and verdict = 'human'",
    "clicks told to campaigns": "select count(*) from event where name = 'nurture.email_clicked'",
    "clicks and unsubscriptions of messages": "select count(*) from delivery_event where kind in ('clicked', 'unsubscribed')",
}

_ADDRESS = re.compile(r"/[coupsv]/[\w-]{48}(?:\.gif|/\d+)?")
_LINKED = re.compile(r"""\b(?:href|src|action)\s*=\s*["']([^"']+)["']""")


def addresses(raw: bytes, base_url: str) -> list[str]:
    """Every address of ours in a mail: in its HTML, its text and its headers; the picture first, as mail programs load it first."""
    mail = message_from_bytes(raw, policy=policy.default)
    parts = [unescape(mail.get_body(("html",)).get_content()), mail.get_body(("plain",)).get_content(), mail["List-Unsubscribe"] or ""]
    found = {match[0] for part in parts for match in re.finditer(re.escape(base_url) + _ADDRESS.pattern, part)}
    return sorted(found, key=lambda url: ("/o/" not in url, url))


def linked(page: str, url: str, base_url: str) -> set[str]:
    """What a page of ours links to on our side: a scanner that follows pages goes there, too."""
    found = {urljoin(url, unescape(match[1])) for match in _LINKED.finditer(page)}
    return {one for one in found if re.fullmatch(re.escape(base_url) + _ADDRESS.pattern, one)}


def follow(urls: list[str], base_url: str, fetch: Callable[[str, str], tuple[int, str]]) -> Iterator[tuple[str, str, int]]:
    """HEAD and GET of `urls` and of everything that the pages behind them link to. `fetch(method, url)` gives status and body, and must
    not follow redirects. Yields (method, url, status) of each request."""
    seen, waiting = set(urls), list(urls)
    while waiting:
        url = waiting.pop(0)
        status, body = fetch("HEAD", url)
        assert not body, url
        yield "HEAD", url, status
        status, body = fetch("GET", url)
        yield "GET", url, status
        fresh = linked(body, url, base_url) - seen
        seen |= fresh
        waiting += sorted(fresh)


def untouched(count: Callable[[str], int]) -> dict[str, int]:
    """What the fetching did that it must not do; empty when all is well. `count` runs a query for one number."""
    return {what: number for what, query in UNTOUCHED.items() if (number := count(query))}
