"""SSRF guard: refused, public and allowed addresses in every notation."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinks.webhook.transport.ssrf_guard import is_refused

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "192.0.0.192", "168.63.129.16", "3fff::1",
    "169.254.169.254", "100.64.0.1", "100.127.255.255", "224.0.0.1", "239.255.255.255", "255.255.255.255", "240.0.0.1",
    "192.0.2.1", "198.18.0.1", "192.88.99.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1",
    "ff02::1", "ff0e::1", "fec0::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "64:ff9b:1:ffff::10.0.0.1",
    "2002:7f00:1::", "2002:0a00:0001::1", "2002:a9fe:a9fe::", "2002:c0a8:101::", "2001::1", "::127.0.0.1", "100::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
          "2002:808:808::1", "172.32.0.1", "100.128.0.1"]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert is_refused(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_accepted(address: str) -> None:
    assert not is_refused(address)


@given(st.sampled_from([a for a in PRIVATE if ip_address(a.partition("%")[0]).version == 4]))
def test_a_refused_address_is_refused_in_every_ipv6_notation(address: str) -> None:
    number = int(ip_address(address))

    assert is_refused(f"::ffff:{address}")
    assert is_refused(f"64:ff9b::{address}")
    assert is_refused(f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1")


def test_an_allowed_network_is_accepted_in_every_notation_and_no_other_is() -> None:
    allowed = [ip_network("127.0.0.0/8"), ip_network("fd00::/8")]

    assert not is_refused("127.0.0.1", allowed)
    assert not is_refused("::ffff:127.0.0.1", allowed)
    assert not is_refused("fd00::7", allowed)
    assert is_refused("10.0.0.1", allowed)
    assert is_refused("::1", allowed)
