"""Client addresses and networks: parsing, the network that a client is limited by, the address behind proxies. Pure."""

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

    IPv6 clients are counted by the /64 because a provider assigns each household a /64 or more, so that a limit per
    single IPv6 address would limit nothing. An IPv4-mapped or translated address (`::ffff:192.0.2.1`,
    `64:ff9b::192.0.2.1`) counts as the IPv4 address.
    """
    address = unmapped(address)
    if isinstance(address, IPv4Address):
        return as_text(address)
    return str(ip_network((address, 64), strict=False))


def unmapped(address: Address) -> Address:
    """Return the IPv4 address inside an IPv4-mapped or translated IPv6 address; any other address unchanged.

    Translated addresses matter because a translator in front of IPv6-only servers (RFC 6052, 7755) puts all IPv4
    clients into one /96.
    """
    if isinstance(address, IPv4Address):
        return address
    if address.packed.startswith(TRANSLATED):
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address


def parse_network(text: str, *, strict: bool = True) -> Network:
    """Return the network written by an operator or in a setting; an IPv4-mapped or translated network
    (`::ffff:192.0.2.0/120`) becomes the IPv4 network, so that it covers the addresses that `unmapped` returns.

    strict: refuse host bits after the prefix length. Raises ValueError.
    """
    network = ip_network(text.strip(), strict=strict)
    first = unmapped(network.network_address)
    if not isinstance(network, IPv6Network) or not isinstance(first, IPv4Address):
        return network
    # A translator's whole prefix stays an IPv6 network, so that trusting the prefix does not trust every IPv4 address.
    least = 96 if network.network_address.ipv4_mapped else 96 + 8
    return IPv4Network((first, network.prefixlen - 96)) if network.prefixlen >= least else network


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Return whether an address lies in one of the networks."""
    if networks:
        address = unmapped(address)
        for network in networks:
            if address in network:
                return True
    return False


def parse_hop(text: str) -> Address | None:
    """Return the address of one hop as proxies write it: bare, `v4:port`, `[v6]`, `[v6]:port`, quoted; else None."""
    return _parse_hop(text) if len(text) <= HOP_MAX else None


# Cached because every request carries its hops, and parsing an address costs as much as a hundred look-ups.
@lru_cache(maxsize=4096)
def _parse_hop(text: str) -> Address | None:
    try:
        # Fast path for plain IPv4, the usual hop: as strict as `ip_address` and five times as fast.
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

    peer: address of the socket's peer. forwarded_for: the `X-Forwarded-For` header. forwarded: the `Forwarded` header
    (RFC 7239), read only without `X-Forwarded-For`, because nearly every proxy appends to `X-Forwarded-For` and passes
    a `Forwarded` header forged by the client. Hops further left come from untrusted hosts and are ignored. A hop that
    is no address ends the walk at the last trusted proxy, so that a client cannot escape the limit with nonsense.
    """
    address = parse_hop(peer)
    if address is None:
        # A Unix socket or a test client: no remote client connects without an address.
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


# Cached because each request needs the text twice or more, and formatting costs several times a look-up.
@lru_cache(maxsize=4096)
def as_text(address: Address) -> str:
    """Return an address as written in records and log lines."""
    return str(address)


def _forwarded_hops(forwarded: str) -> list[str]:
    """Return the `for` parameter of each element of a `Forwarded` header; an empty text where there is none."""
    hops = []
    for element in forwarded.split(","):
        pairs = (pair.partition("=") for pair in element.split(";"))
        hops.append(next((value for name, _, value in pairs if name.strip().lower() == "for"), ""))
    return hops
