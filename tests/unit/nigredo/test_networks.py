"""Client address of a request behind proxies, and the client network that the limit counts by."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.control.state import NetworkSet
from nigredo.networks import client_address, client_network, parse_hop, parse_network, unmapped, within
from nigredo.settings import Settings

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PROXIES = (*LOOPBACK, ip_network("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "forwarded", "client"),
    [
        ("198.51.100.7", None, None, "198.51.100.7"),
        ("198.51.100.7", "192.0.2.1", None, "198.51.100.7"),
        ("127.0.0.1", "192.0.2.1", None, "192.0.2.1"),
        ("127.0.0.1", "203.0.113.9, 192.0.2.1", None, "192.0.2.1"),
        ("127.0.0.1", "203.0.113.9, 192.0.2.1, 10.1.1.1", None, "192.0.2.1"),
        ("127.0.0.1", "10.1.1.1, 10.2.2.2", None, "10.1.1.1"),
        ("127.0.0.1", "192.0.2.1:4711", None, "192.0.2.1"),
        ("127.0.0.1", "[2001:db8::1]:4711", None, "2001:db8::1"),
        ("127.0.0.1", "::ffff:192.0.2.1", None, "192.0.2.1"),
        ("::ffff:127.0.0.1", "192.0.2.1", None, "192.0.2.1"),
        ("127.0.0.1", "192.0.2.1, nonsense", None, "127.0.0.1"),
        ("127.0.0.1", "nonsense, 192.0.2.1", None, "192.0.2.1"),
        ("127.0.0.1", "", None, "127.0.0.1"),
        ("127.0.0.1", None, "for=192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", None, 'proto=https;For="[2001:db8::1]:4711";by=10.0.0.1', "2001:db8::1"),
        ("127.0.0.1", None, "for=203.0.113.9, for=192.0.2.1;proto=http, for=10.1.1.1", "192.0.2.1"),
        ("127.0.0.1", None, "for=_hidden, for=10.1.1.1", "10.1.1.1"),
        ("127.0.0.1", None, "proto=https", "127.0.0.1"),
        # A proxy that appends to X-Forwarded-For passes a forged Forwarded header from the client.
        ("127.0.0.1", "192.0.2.1", "for=203.0.113.9", "192.0.2.1"),
    ],
)
def test_the_client_is_the_right_most_hop_that_is_not_trusted(
    peer: str, forwarded_for: str | None, forwarded: str | None, client: str
) -> None:
    assert client_address(peer, forwarded_for, forwarded, PROXIES) == ip_address(client)


@given(st.text(max_size=60), st.sampled_from(["192.0.2.1", "2001:db8::7"]))
def test_whatever_a_client_writes_before_its_proxy_changes_nothing(written: str, client: str) -> None:
    assert client_address("127.0.0.1", f"{written}, {client}", None, LOOPBACK) == ip_address(client)


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_header_gives_some_address(forwarded_for: str, forwarded: str) -> None:
    assert client_address("127.0.0.1", forwarded_for, None, LOOPBACK)
    assert client_address("127.0.0.1", None, forwarded, LOOPBACK)


@given(st.ip_addresses(v=6), st.ip_addresses(v=6))
def test_ipv6_counts_by_its_64(one: IPv6Address, other: IPv6Address) -> None:
    same = int(one) >> 64 == int(other) >> 64
    if unmapped(one) == one and unmapped(other) == other:
        assert (client_network(one) == client_network(other)) is same


@given(st.ip_addresses(v=4))
def test_a_mapped_ipv4_address_counts_as_the_ipv4_address(address: IPv4Address) -> None:
    assert client_network(address) == str(address) == client_network(IPv6Address(f"::ffff:{address}"))


@given(st.ip_addresses(v=4))
def test_a_translated_ipv4_address_counts_as_the_ipv4_address(address: IPv4Address) -> None:
    translated = IPv6Address(int(IPv6Address("64:ff9b::")) + int(address))

    assert client_network(translated) == str(address)
    assert parse_hop(f"[{translated}]:443") == address
    assert within(translated, [ip_network(address)])
    assert client_network(IPv6Address("64:ff9b:1::1")) == "64:ff9b:1::/64"


def test_networks_of_the_other_family_never_match() -> None:
    assert not within(ip_address("2001:db8::1"), [ip_network("0.0.0.0/0")])
    assert within(ip_address("::ffff:10.1.2.3"), [ip_network("10.0.0.0/8")])


def test_a_zone_is_no_part_of_an_address() -> None:
    assert parse_hop("fe80::1%eth0") == ip_address("fe80::1")


@given(st.text("0123456789.", max_size=17) | st.ip_addresses(v=4).map(str))
def test_an_ipv4_hop_is_read_as_strictly_as_the_standard_library_does(text: str) -> None:
    try:
        expected = ip_address(text)
    except ValueError:
        expected = None

    assert parse_hop(text) == expected


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("::ffff:198.51.100.7", "198.51.100.7/32"),
        ("::ffff:198.51.100.0/120", "198.51.100.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("64:ff9b::198.51.100.7", "198.51.100.7/32"),
        ("64:ff9b::10.0.0.0/104", "10.0.0.0/8"),
        # A translator's prefix is not every IPv4 address.
        ("64:ff9b::/96", "64:ff9b::/96"),
        (" ::FFFF:c633:6407 ", "198.51.100.7/32"),
        ("198.51.100.0/24", "198.51.100.0/24"),
        ("2001:db8::/32", "2001:db8::/32"),
        # Wider than the mapped addresses, so an ordinary IPv6 network.
        ("::/0", "::/0"),
    ],
)
def test_a_mapped_network_is_the_ipv4_network(text: str, meant: str) -> None:
    assert parse_network(text) == ip_network(meant)


@pytest.mark.parametrize("text", ["198.51.100.7/24", "::ffff:198.51.100.7/120", "nowhere", "", "1.2.3.4/33"])
def test_what_is_no_network_is_refused_and_host_bits_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_network(text)


def test_host_bits_may_be_allowed_in_a_mapped_network_too() -> None:
    assert parse_network("::ffff:198.51.100.7/120", strict=False) == ip_network("198.51.100.0/24")


@pytest.mark.parametrize("name", ["TRUSTED_PROXIES", "RATE_LIMIT_EXEMPT", "WEBHOOK_ALLOWED_NETWORKS"])
def test_a_setting_of_networks_covers_the_addresses_that_were_meant(name: str) -> None:
    found = Settings.parse(name, "::ffff:198.51.100.0/120, 2001:db8::/32")

    assert within(ip_address("198.51.100.7"), found)
    assert within(ip_address("::ffff:198.51.100.7"), found)
    assert not within(ip_address("198.51.101.7"), found)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_mapped_network_covers_what_the_plain_one_does(address: IPv4Address, length: int) -> None:
    mapped = parse_network(f"::ffff:{address}/{96 + length}", strict=False)

    assert mapped == ip_network((address, length), strict=False)
    assert NetworkSet([mapped]).cover(address)
