"""Which addresses may be connected to on behalf of a name that somebody typed in (X-21)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = IPv6Network("::/96")


def is_public(address: str) -> bool:
    """Whether the Internet at large can be reached at `address`: judged by the address that it stands for where it embeds another
    (X-21)."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return all(one.is_global and not one.is_multicast and not _is_local_nat64(one) for one in _meant(found))


def _meant(address: IPv4Address | IPv6Address) -> list[IPv4Address | IPv6Address]:
    """The address itself, or those it embeds."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.sixtofour:
        return [address.sixtofour]
    if address.teredo:
        return list(address.teredo)
    if address in _NAT64 or address in _COMPATIBLE:
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]


def _is_local_nat64(address: IPv4Address | IPv6Address) -> bool:
    # Where such an address leads is a network's own affair, so nothing can be told from it.
    return isinstance(address, IPv6Address) and address in _LOCAL_NAT64
