"""What `nurture doctor` sees of the way out: the records of the domains that mail comes from, and the relay that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from app.config import is_loopback
from app.errors import DnsAway, SendError
from app.finding import Finding
from app.providers.dns import Dns
from app.providers.smtp import Smtp
from app.rules import mail_domain
from app.rules.mail_domain import SPF_LOOKUPS, Term

SMALLEST_SIZE = 1_000_000  # octets that a relay must take: a mail has a tenth of that at most, an answer with a picture more


def domain(dns: Dns, name: str, keys: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """SPF with its lookups (B-09), DKIM of the keys that Nurture signs with, DMARC and the mail hosts of a domain that mail comes from
    (B-02). `keys` are what `flow.dkim.list_keys` says. Asks the DNS, changes nothing; a DNS that does not answer is one finding."""
    try:
        yield from _spf(dns, name)
        yield from _dkim(dns, name, keys)
        yield from _dmarc(dns, name)
        yield from _hosts(dns, name)
    except DnsAway as away:
        yield Finding(f"dns of {name}", False, f"{away}. Nothing is known of its records; is there a way out to port 53?")


def relay(transport: Smtp, name: str = "relay", setting: str = "SMTP_URL") -> Finding:
    """Opens a connection as sending does: TLS as the setting says, signing in, and what the relay offers. Sends nothing (S-17).
    `setting` says where it is named."""
    where = f"{transport.host}:{transport.port}"
    try:
        offers, secure = asyncio.run(_greeted(transport))
    except SendError as error:
        said = error.text.removeprefix(f"{where}: ")
        return Finding(name, False, f"{where} takes no mail: {f'{error.code} ' if error.code else ''}{said}. Mail waits; see {setting}")
    size = int(offers.get("SIZE") or 0) if (offers.get("SIZE") or "0").isdigit() else 0
    said = [secure or "without TLS", f"signed in as {transport.user}" if transport.user else "no sign-in"]
    said.append(f"up to {size / 1e6:.0f} MB" if size else "no limit of size told")
    if size and size < SMALLEST_SIZE:
        return Finding(name, False, f"{where}: {', '.join(said)}. Mails over {size:,} octets would be refused: raise the relay's limit")
    if secure is None and not is_loopback(transport.host):
        said.append("anybody on the way can read and change the mail")
        return Finding(name, False, f"{where}: {', '.join(said)}. Use smtps:// or ?tls=starttls")
    return Finding(name, True, f"{where}: {', '.join(said)}")


async def _greeted(transport: Smtp) -> tuple[Mapping[str, str], str | None]:
    connection = await transport.open()
    try:
        secured = connection.wire.transport.get_extra_info("ssl_object")
        return connection.offers, secured.version() if secured else None
    finally:
        await connection.close()


# Records -----------------------------------------------------------------------------------------------------------------


def _spf(dns: Dns, name: str) -> Iterator[Finding]:
    what = f"spf of {name}"
    records = mail_domain.spf_records(dns.texts(name))
    if len(records) != 1:
        problem = f"{len(records)} SPF records, and receivers believe none: leave one" if records else "no SPF record"
        yield Finding(what, False, f'{problem}. Publish: {name} TXT "v=spf1 include:<your relay\'s SPF domain> -all"')
        return
    terms = mail_domain.spf_terms(records[0])
    if terms is None:
        yield Finding(what, False, f"not a record that receivers read: {records[0]}")
        return
    count, problems = _Walk(dns).count(name, terms)
    if mail_domain.everybody(terms):
        problems.append("+all lets anybody send in your name: end it with -all or ~all")
    if count > SPF_LOOKUPS:
        problems.append(f"receivers give up after {SPF_LOOKUPS} lookups and call it an error: remove includes that nobody needs")
    seen = f"{records[0]} ({count} of {SPF_LOOKUPS} lookups)"
    yield Finding(what, not problems, "; ".join([seen, *problems]))


class _Walk:
    """Follows what an SPF record includes. A record that includes itself, or too many, ends the walk: that is a finding, not a loop."""

    def __init__(self, dns: Dns):
        self.dns = dns

    def count(self, name: str, terms: Iterable[Term], above: tuple[str, ...] = ()) -> tuple[int, list[str]]:
        """The lookups of the record and of all it includes, and what is wrong with them."""
        lookups, problems = 0, []
        for term in terms:
            if not term.asks or lookups > 2 * SPF_LOOKUPS:
                continue
            lookups += 1
            if term.follows is None:
                continue
            inner = term.follows.lower().rstrip(".")
            if inner in (name, *above):
                problems.append(f"{inner} includes itself")
                continue
            found = mail_domain.spf_records(self.dns.texts(inner))
            inside = mail_domain.spf_terms(found[0]) if len(found) == 1 else None
            if inside is None:
                problems.append(f"{term.name}:{inner} has no SPF record that can be read, so the whole is an error")
                continue
            more, wrong = self.count(inner, inside, (*above, name))
            lookups += more
            problems += wrong
        return lookups, problems


def _dkim(dns: Dns, name: str, keys: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    what = f"dkim of {name}"
    signing = [one for one in keys if one["state"] == "active"]
    if not signing:
        yield Finding(what, True, "the relay has to sign: Nurture holds no active key of this domain (nurture dkim make)")
    for key in signing:
        place = key["name"]
        matches = mail_domain.dkim_matches(dns.texts(place), key["value"])
        if matches:
            yield Finding(what, True, f"{place} has the key that signs")
        else:
            problem = "is another key, so every signature fails" if matches is False else "is not published, so no signature counts"
            yield Finding(what, False, f'{place} {problem}. Publish: {place} TXT "{key["value"]}"')


def _dmarc(dns: Dns, name: str) -> Iterator[Finding]:
    what = f"dmarc of {name}"
    for place in mail_domain.parents(name):
        texts = dns.texts(f"_dmarc.{place}")
        if policy := mail_domain.dmarc_policy(texts):
            yield Finding(what, True, f"_dmarc.{place} says {policy}")
            return
        if any(one.lower().startswith("v=dmarc1") for one in texts):
            yield Finding(what, False, f"_dmarc.{place} is broken or there twice: {'; '.join(texts)[:300]}")
            return
    yield Finding(what, False, f'no DMARC record, which the large mailbox providers ask for. Publish: _dmarc.{name} TXT "v=DMARC1; p=none"')


def _hosts(dns: Dns, name: str) -> Iterator[Finding]:
    what = f"mail hosts of {name}"
    hosts = dns.mail_hosts(name)
    if hosts == ["."] or not (hosts or dns.addresses(name)):
        yield Finding(what, False, "it takes no mail, and receivers distrust senders whom nobody can answer. Publish an MX record")
        return
    yield Finding(what, True, ", ".join(hosts[:5]) or "no MX record; its address takes the mail")
