"""SSRF guard: refuses to connect to addresses that are not public, in any notation. Pure.

Neither a malicious URL nor a name that resolves to another address later may give access to the network that the sender
runs in (server-side request forgery). So the address itself is checked at the time of the connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from nigredo.networks import Address, Network

# `is_global` is true for these, because they can lead to public addresses. RFC 6052, RFC 8215, RFC 3056, RFC 4380.
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_REFUSED = [
    ip_network(text)
    for text in (
        "64:ff9b:1::/48",  # Local-use NAT64: private by definition.
        "2001::/32",  # Teredo: may hide any IPv4 address.
        "192.88.99.0/24",  # 6to4 relays, deprecated.
        "100.64.0.0/10",  # Carrier-grade NAT.
        "192.0.0.0/24",  # Protocol assignments, and a cloud's metadata; older Pythons cover only a part.
        "168.63.129.16/32",  # A cloud's internal services, at an address that looks public.
        "3fff::/20",  # Documentation.
        "fec0::/10",  # Site-local, deprecated but still routed in places.
    )
]


def is_refused(text: str, allowed: Iterable[Network] = ()) -> bool:
    """Return whether connecting to an address is forbidden. allowed: networks accepted although they are not public."""
    address = ip_address(text.partition("%")[0])
    embedded = _embedded(address)
    # An allowed network covers the embedded address too, so that the notation does not matter.
    if any(each in network for each in {address, embedded} for network in allowed if network.version == each.version):
        return False
    if any(each in network for each in {address, embedded} for network in _REFUSED if network.version == each.version):
        return True
    # The embedded address counts, because the address that wraps it is never public itself.
    return not embedded.is_global or embedded.is_multicast or embedded.is_reserved


def _embedded(address: Address) -> Address:
    """Return the IPv4 address embedded in an IPv6 address, or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _6TO4:
            return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
