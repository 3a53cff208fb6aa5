"""Host names that a listener answers to, and foreign names that are refused."""

from __future__ import annotations

import pytest

from nigredo.observability.host_guard import may_ask

ANSWERED = (None, "", "localhost", "LocalHost:8082", "a.localhost:1", "127.0.0.1:8082", "[::1]:8082", "10.1.2.3")
CONFIGURED = ("fibonacci:8082", "Metrics.Example.com", "fibonacci.")
REFUSED = (
    "evil.example",
    "evil.example:8082",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "[::1].evil.example",
)
TRICKS = ("fibonacci.evil.example", "evil", "1", "notlocalhost", ":8082", "[evil.example]", "localhost@evil.example")


@pytest.mark.parametrize("host", [*ANSWERED, *CONFIGURED])
def test_addresses_loopback_names_and_configured_names_are_answered(host: str | None) -> None:
    assert may_ask(host, ("fibonacci", "metrics.example.com"))


@pytest.mark.parametrize("host", [*REFUSED, *TRICKS])
def test_every_other_name_is_refused(host: str) -> None:
    assert not may_ask(host, ("fibonacci",))
