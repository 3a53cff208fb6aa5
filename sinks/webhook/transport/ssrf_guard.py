"""Where nothing may be sent to: addresses that are not public, however they are written. Pure.

A URL that an operator was talked into, or a name that answers one address today and another tomorrow, must not turn
the sink into a way into the network it runs in (server-side request forgery). So the address itself is judged, when
it is connected to.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from nigredo.networks import Address, Network

# `is_global` calls these public, for they lead to public addresses too. RFC 6052, RFC 8215, RFC 3056, RFC 4380.
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_REFUSED = [
    ip_network(text)
    for text in (
        "64:ff9b:1::/48",  # NAT64 of a site's own: private by definition.
        "2001::/32",  # Teredo: whatever IPv4 address is hidden in it.
        "192.88.99.0/24",  # Relays of 6to4, long withdrawn.
        "100.64.0.0/10",  # Carrier-grade NAT.
        "192.0.0.0/24",  # Protocol assignments, and a cloud's metadata; older Pythons know a part of it only.
        "168.63.129.16/32",  # A cloud's own services, that only its machines see, at an address that looks public.
        "3fff::/20",  # Documentation.
        "fec0::/10",  # Site-local, deprecated and still routed here and there.
    )
]


def is_refused(text: str, allowed: Iterable[Network] = ()) -> bool:
    """Say whether nothing may be sent to an address. allowed: networks that are fine although they are not public."""
    address = ip_address(text.partition("%")[0])
    plain = _inner(address)
    # What is allowed is the address that is meant, however it is written.
    if any(each in network for each in {address, plain} for network in allowed if network.version == each.version):
        return False
    if any(each in network for each in {address, plain} for network in _REFUSED if network.version == each.version):
        return True
    # The way itself is no public address by the letter; what it leads to is what counts.
    return not plain.is_global or plain.is_multicast or plain.is_reserved


def _inner(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _6TO4:
            return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
