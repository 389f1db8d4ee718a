"""The DNS: what a sending domain says of itself. Asks, and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import dns.exception
import dns.resolver
import dns.reversename

from app.errors import DnsAway

PATIENCE = 3.0  # seconds for one question, over all servers


class Dns:
    """Asks the resolver of this machine, or the `servers` given as (address, port).

    Every question is asked once in the life of an object. A name that is not there, or has no record of the kind, gives an empty list;
    raises DnsAway when no server answers, which says nothing of the name.
    """

    def __init__(self, servers: Sequence[tuple[str, int]] = (), patience: float = PATIENCE):
        self.patience = patience
        self._resolver = dns.resolver.Resolver(configure=not servers)
        if servers:
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(*one) for one in servers]
        self._ask = cache(self._look_up)

    def texts(self, name: str) -> list[str]:
        """The TXT records, their parts joined."""
        return [b"".join(one.strings).decode("utf-8", "replace") for one in self._ask(name, "TXT")]

    def mail_hosts(self, name: str) -> list[str]:
        """The hosts of the MX records, the preferred ones first; `.` alone says that no mail is taken (RFC 7505)."""
        found = sorted(self._ask(name, "MX"), key=lambda one: one.preference)
        return [one.exchange.to_text().rstrip(".") or "." for one in found]

    def addresses(self, name: str) -> list[str]:
        return [one.address for kind in ("A", "AAAA") for one in self._ask(name, kind)]

    def names_of(self, address: str) -> list[str]:
        """The names that an address points back to."""
        return [one.target.to_text().rstrip(".") for one in self._ask(dns.reversename.from_address(address).to_text(), "PTR")]

    def _look_up(self, name: str, kind: str) -> tuple:
        try:
            return tuple(self._resolver.resolve(name, kind, search=False, lifetime=self.patience))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.YXDOMAIN):
            return ()
        except (dns.exception.Timeout, dns.resolver.NoNameservers, dns.resolver.NoResolverConfiguration) as error:
            raise DnsAway(f"the DNS does not answer for {name} {kind}: {str(error).splitlines()[0][:200]}") from error
        except (dns.exception.DNSException, UnicodeError):
            return ()  # no name that the DNS could hold
