"""Lists of networks, and whether an address is in one. Pure."""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable


class Networks:
    """A set of IPv4 and IPv6 networks; asking takes a microsecond or two however many there are. Empty, it is false."""

    def __init__(self, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network] = ()):
        self._spans: dict[int, tuple[list[int], list[int]]] = {}
        networks = list(networks)
        for version in (4, 6):
            whole = sorted(ipaddress.collapse_addresses(one for one in networks if one.version == version))
            if whole:
                self._spans[version] = ([int(one.network_address) for one in whole], [int(one.broadcast_address) for one in whole])

    def __contains__(self, address: str | None) -> bool:
        if not self._spans or not address:
            return False
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        starts, ends = self._spans.get(parsed.version, ([], []))
        place = bisect_right(starts, int(parsed)) - 1
        return place >= 0 and int(parsed) <= ends[place]

    def __bool__(self) -> bool:
        return bool(self._spans)


def read_networks(text: str) -> Networks:
    """The networks of a list: addresses and networks such as 192.0.2.0/24, several on a line with spaces or commas; # begins a comment.

    Raises ValueError naming the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.partition("#")[0].replace(",", " ").split():
            try:
                found.append(ipaddress.ip_network(word, strict=False))
            except ValueError as error:
                raise ValueError(f"line {number}: {word!r} is neither an address nor a network such as 192.0.2.0/24") from error
    return Networks(found)
