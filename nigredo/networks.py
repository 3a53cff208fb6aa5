"""Client addresses and networks: reading them, the network a client counts for, the address behind proxies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, inet_pton

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

HOP_MAX = 100
TRANSLATED = IPv6Address("64:ff9b::").packed[:12]


def client_network(address: Address) -> str:
    """Return the key a client is limited by: the IPv4 address itself, or the IPv6 /64.

    A provider hands a household a /64 or more; counting single IPv6 addresses would be no limit at all. An IPv4
    address in IPv6 clothes (`::ffff:192.0.2.1`, `64:ff9b::192.0.2.1`) counts as the IPv4 address.
    """
    address = unmapped(address)
    if isinstance(address, IPv4Address):
        return as_text(address)
    return str(ip_network((address, 64), strict=False))


def unmapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for: IPv4-mapped, or translated; anything else as it is.

    A translator in front of servers that only speak IPv6 (RFC 6052, 7755) puts all IPv4 clients into one /96.
    """
    if isinstance(address, IPv4Address):
        return address
    if address.packed.startswith(TRANSLATED):
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address


def parse_network(text: str, *, strict: bool = True) -> Network:
    """Return the network that a person or a setting names; the IPv4 network where IPv6 addresses stand for IPv4 ones
    (`::ffff:192.0.2.0/120`), as `unmapped` has addresses compared.

    strict: refuse an address with host bits after its prefix length. Raises ValueError.
    """
    network = ip_network(text.strip(), strict=strict)
    first = unmapped(network.network_address)
    if not isinstance(network, IPv6Network) or not isinstance(first, IPv4Address):
        return network
    # To trust a translator's whole prefix must not become to trust every IPv4 address.
    least = 96 if network.network_address.ipv4_mapped else 96 + 8
    return IPv4Network((first, network.prefixlen - 96)) if network.prefixlen >= least else network


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Say whether an address lies in one of the networks."""
    if networks:
        address = unmapped(address)
        for network in networks:
            if address in network:
                return True
    return False


def parse_hop(text: str) -> Address | None:
    """Return the address of one hop as proxies write it: bare, `v4:port`, `[v6]`, `[v6]:port`, quoted; else None."""
    return _parse_hop(text) if len(text) <= HOP_MAX else None


# The hops of proxies come with every request, and making an address costs as much as a hundred look-ups.
@lru_cache(maxsize=4096)
def _parse_hop(text: str) -> Address | None:
    try:
        # What nearly every hop is, read as strictly as `ip_address` does in a fifth of its time.
        return IPv4Address(inet_pton(AF_INET, text.strip()))
    except (OSError, ValueError):
        pass
    text = text.strip().strip('"').strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return unmapped(ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def client_address(peer: str, forwarded_for: str | None, forwarded: str | None, trusted: Sequence[Network]) -> Address:
    """Return the client's address: the right-most hop that is not a trusted proxy.

    peer: the socket's own peer. forwarded_for: `X-Forwarded-For`; forwarded: `Forwarded` (RFC 7239), read only when
    the first is not there, for nearly every proxy appends to `X-Forwarded-For` and lets a `Forwarded` that the client
    made up pass. Hops further left were written by whoever we do not trust and count for nothing. A hop that is no
    address ends the walk at the last proxy that is known, so that nobody frees himself by writing nonsense.
    """
    address = parse_hop(peer)
    if address is None:
        # A Unix socket or a test client; nothing outside can reach us that way.
        address = IPv4Address("127.0.0.1")
    hops = forwarded_for.split(",") if forwarded_for is not None else _forwarded_hops(forwarded or "")
    for hop in reversed(hops):
        if not within(address, trusted):
            break
        before = parse_hop(hop)
        if before is None:
            break
        address = before
    return address


# Each request needs it twice or more, and writing an address costs several times what finding its text does.
@lru_cache(maxsize=4096)
def as_text(address: Address) -> str:
    """Return an address as it stands in records and lines of the log."""
    return str(address)


def _forwarded_hops(forwarded: str) -> list[str]:
    """Return the `for` of each element of a `Forwarded` header; an element without one as an empty hop."""
    hops = []
    for element in forwarded.split(","):
        pairs = (pair.partition("=") for pair in element.split(";"))
        hops.append(next((value for name, _, value in pairs if name.strip().lower() == "for"), ""))
    return hops
