"""Who fetched a link: a person, or a machine that follows every link of a mail? Pure.

A hit is stored with its signals, each with a weight; their sum is the score and the score gives the verdict (email-standards 4.3).
Everything here can be recomputed from what is stored, so an operator can read why a hit was not counted.

    scanner_agent   100  a known scanner, crawler, HTTP library, or no User-Agent at all
    honeypot        100  it fetched the link that nobody sees (off unless the operator wants it, B-08)
    burst            80  at least 3 different links of one message within 5 s, or at least 3 that are 60 % of them within 30 s
    sweep            60  all links (at least 2) of several recipients at one domain from one network within a minute
    at_once          50  at most 2 s after the relay took the message, or after it was reported as delivered
    soon             30  at most 10 s after it
    listed           40  from a network of the operator's list of scanners and data centres
    bare_request     30  no Accept-Language, or no `Sec-Fetch-Mode: navigate` from what claims to be a current browser
    no_image         10  a link is followed before any image of the mail was loaded

80 and more is a scanner, 40 to 79 suspected, less is human. A burst counts for every hit that is part of it and for the images that the
same network loads with it; the honeypot for everything that the same network fetches of the message within 10 minutes. Opens by the image
fetchers of mailbox providers are `machine` (fetched before anybody looked) or `proxy` (fetched when somebody looked), T-02.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

SCANNER_AGENT, HONEYPOT, BURST, SWEEP, AT_ONCE, LISTED, SOON, BARE_REQUEST, NO_IMAGE = (
    "scanner_agent",
    "honeypot",
    "burst",
    "sweep",
    "at_once",
    "listed",
    "soon",
    "bare_request",
    "no_image",
)
WEIGHTS: Mapping[str, int] = {
    SCANNER_AGENT: 100,
    HONEYPOT: 100,
    BURST: 80,
    SWEEP: 60,
    AT_ONCE: 50,
    LISTED: 40,
    SOON: 30,
    BARE_REQUEST: 30,
    NO_IMAGE: 10,
}
# What each signal saw, for whoever reads why a hit was not counted.
SENTENCES: Mapping[str, str] = {
    SCANNER_AGENT: "it calls itself a scanner or a program, or nothing at all",
    HONEYPOT: "its network fetched the link that nobody sees",
    BURST: "at least three links of the mail within seconds",
    SWEEP: "all links of several people's mail from one network within a minute",
    AT_ONCE: "within 2 seconds of the mail's arrival",
    LISTED: "from a network on the list of scanners",
    SOON: "within 10 seconds of the mail's arrival",
    BARE_REQUEST: "a browser would have said more of itself",
    NO_IMAGE: "no image of the mail was loaded before",
}
SCANNER_FROM = 80
SUSPECTED_FROM = 40

BURST_LINKS = 3
BURST_WITHIN = timedelta(seconds=5)
SLOW_BURST_SHARE = 0.6
SLOW_BURST_WITHIN = timedelta(seconds=30)
SWEEP_WITHIN = timedelta(minutes=1)
SWEEP_LINKS = 2
TRAPPED_WITHIN = timedelta(minutes=10)

_SCANNERS = re.compile(
    r"""
      ^\s*$
    | (?<!cu)bot(?![a-z0-9]) | crawl | spider | slurp | preview | scanner | sandbox | url\s?scan | linkcheck | validator | monitor
    | barracuda | mimecast | proofpoint | forcepoint | zscaler | cloudmark | messagelabs | symantec | trend\s?micro | bitdefender
    | sophos | fortinet | fireeye | ironport | safelinks | mcafee | kaspersky | vade
    | ^curl | wget | libwww | lwp:: | python | urllib | requests/ | httpx | aiohttp | go-http | java/ | okhttp | apache-http | jakarta
    | node-fetch | ^node\b | undici | axios | ^got\b | ruby | faraday | guzzle | ^php | scrapy | winhttp | powershell | restsharp | dart:io
    | headless | phantomjs | puppeteer | playwright | selenium
    | facebookexternalhit | ^whatsapp | skypeuripreview | google-safety | appengine-google | googleimageproxy | ggpht
    | yahoomailproxy
    """,
    re.IGNORECASE | re.VERBOSE,
)
_PROXIES = re.compile(r"GoogleImageProxy|ggpht|YahooMailProxy", re.IGNORECASE)
_BARE_MOZILLA = "Mozilla/5.0"  # Apple Mail Privacy Protection; no browser calls itself only that
_GMAIL_PREFETCH = "Chrome/42.0.2311.135"
_BROWSERS = (
    # The first versions that send Sec-Fetch-Mode. Chromium's siblings carry Chrome/N too.
    (re.compile(r"\b(?:Chrome|CriOS)/(\d+)"), 76),
    (re.compile(r"\bFirefox/(\d+)"), 90),
    (re.compile(r"\bVersion/(\d+)\.\d.*Safari/"), 17),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a request told of itself. `trustworthy` says whether the address is one to which browsers send Sec-Fetch headers
    (https, or this machine); `network` is the sender's address truncated to /24 or /48 (T-06); `listed` whether the address is in
    the operator's list of scanners."""

    user_agent: str
    accept_language: str
    fetch_mode: str
    trustworthy: bool
    network: str | None
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One stored hit, as the judging across hits needs it. `link` tells different links of one kind apart."""

    id: int
    message: object
    kind: str
    link: int | None
    at: datetime
    network: str | None = None
    domain: str | None = None


def signals(kind: str, request: Request, *, since_sent: timedelta | None, image_loaded: bool) -> dict[str, int]:
    """The signals that one request shows by itself, with their weights. `since_sent` is None when the sending time is unknown."""
    found = []
    if _SCANNERS.search(request.user_agent) or (kind != "open" and request.user_agent.strip() == _BARE_MOZILLA):
        found.append(SCANNER_AGENT)
    if kind == HONEYPOT:
        found.append(HONEYPOT)
    if quick := quickness(since_sent):
        found.append(quick)
    if request.listed:
        found.append(LISTED)
    # Images are fetched without `navigate`, and by mail programs that send no Accept-Language.
    if kind != "open":
        if not request.accept_language or (
            request.trustworthy and request.fetch_mode != "navigate" and _sends_fetch_mode(request.user_agent)
        ):
            found.append(BARE_REQUEST)
        if not image_loaded:
            found.append(NO_IMAGE)
    return {name: WEIGHTS[name] for name in found}


def quickness(since: timedelta | None) -> str | None:
    """The signal that a time after the message's arrival gives, if any."""
    if since is None or since > timedelta(seconds=10):
        return None
    return AT_ONCE if since <= timedelta(seconds=2) else SOON


def with_arrival(found: Mapping[str, int], since: timedelta) -> Mapping[str, int]:
    """The signals of a hit, given the time since an arrival that was reported later. Of two times the quicker counts."""
    quick = quickness(since)
    if quick is None or AT_ONCE in found:
        return found
    return {**{name: weight for name, weight in found.items() if name != SOON}, quick: WEIGHTS[quick]}


def score(found: Mapping[str, int]) -> int:
    """The sum of the weights."""
    return sum(found.values())


def verdict(kind: str, found: Mapping[str, int], user_agent: str) -> str:
    """human, suspected or scanner; for opens also machine or proxy."""
    if kind == "open":
        if user_agent.strip() == _BARE_MOZILLA or _GMAIL_PREFETCH in user_agent:
            return "machine"
        if _PROXIES.search(user_agent):
            return "proxy"
    total = score(found)
    return "scanner" if total >= SCANNER_FROM else "suspected" if total >= SUSPECTED_FROM else "human"


def bursts(hits: Iterable[Hit], links_of: Mapping[object, int]) -> set[int]:
    """The ids of the hits that are part of a burst: of all of it, the first hit too, whatever the order they are given in.

    `links_of` holds the number of different links of each message. Images are not links, but are part of a burst from their network.
    Fewer than 3 different links are never a
    burst: a person may well follow both links of a mail.
    """
    found: set[int] = set()
    for message, of_message in _by(hits, lambda hit: hit.message).items():
        ordered = sorted((hit for hit in of_message if hit.kind != "open"), key=lambda hit: hit.at)
        many = max(BURST_LINKS, SLOW_BURST_SHARE * links_of.get(message, 0)) if links_of.get(message) else float("inf")
        crowd = _crowded(ordered, BURST_WITHIN, BURST_LINKS) | _crowded(ordered, SLOW_BURST_WITHIN, many)
        if crowd:
            links = [hit for hit in ordered if hit.id in crowd]
            found |= crowd | {one.id for one in of_message if one.kind == "open" and _beside(one, links, SLOW_BURST_WITHIN)}
    return found


def trapped(hits: Iterable[Hit]) -> set[int]:
    """The ids of the hits that come from where the honeypot of the same message was fetched from, at about that time."""
    found: set[int] = set()
    for of_message in _by(hits, lambda hit: hit.message).values():
        traps = [hit for hit in of_message if hit.kind == HONEYPOT]
        if traps:
            found.update(one.id for one in of_message if _beside(one, traps, TRAPPED_WITHIN))
    return found


def _beside(one: Hit, others: Iterable[Hit], within: timedelta) -> bool:
    return one.network is not None and any(one.network == other.network and abs(one.at - other.at) <= within for other in others)


def sweeps(hits: Iterable[Hit], links_of: Mapping[object, int]) -> set[int]:
    """The ids of the clicks that are part of a sweep: one network following all links of several messages to one domain."""
    found: set[int] = set()
    clicks = [hit for hit in hits if hit.kind == "click" and hit.network and hit.domain and links_of.get(hit.message, 0) >= SWEEP_LINKS]
    for of_network in _by(clicks, lambda hit: (hit.network, hit.domain)).values():
        ordered = sorted(of_network, key=lambda hit: hit.at)
        start = 0
        for end, last in enumerate(ordered):
            while last.at - ordered[start].at > SWEEP_WITHIN:
                start += 1
            window = _by(ordered[start : end + 1], lambda hit: hit.message)
            whole = [hits for message, hits in window.items() if len({hit.link for hit in hits}) >= links_of[message]]
            if len(whole) >= 2:
                found.update(hit.id for hits in whole for hit in hits)
    return found


def _crowded(ordered: Sequence[Hit], within: timedelta, links: float) -> set[int]:
    found: set[int] = set()
    start = 0
    for end, last in enumerate(ordered):
        while last.at - ordered[start].at > within:
            start += 1
        window = ordered[start : end + 1]
        if len({(hit.kind, hit.link) for hit in window}) >= links:
            found.update(hit.id for hit in window)
    return found


def _by(hits: Iterable[Hit], key) -> dict[object, list[Hit]]:
    groups: dict[object, list[Hit]] = defaultdict(list)
    for hit in hits:
        groups[key(hit)].append(hit)
    return groups


def _sends_fetch_mode(user_agent: str) -> bool:
    return any((found := pattern.search(user_agent)) and int(found[1]) >= first for pattern, first in _BROWSERS)
