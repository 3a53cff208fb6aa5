"""Warning about a proxy that TRUSTED_PROXIES does not name: all clients behind it share one limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nigredo.networks import Network, client_network, parse_hop, within
from nigredo.observability import metrics
from nigredo.observability.logs import get_logger

NOTICE_EVERY_S = 3600.0

log = get_logger()


class ForwardingNotice:
    """Counts requests whose forwarding headers are ignored, and logs the first of each hour."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted
        self._next_at = float("-inf")

    def look(self, peer: str, headers: Mapping[str, str], now: float) -> None:
        """Check a request's peer and headers (names in lower case). now: seconds on a monotonic clock."""
        if "x-forwarded-for" not in headers and "forwarded" not in headers:
            return
        address = parse_hop(peer)
        if address is None or within(address, self._trusted):
            return
        metrics.UNTRUSTED_FORWARDING.of().inc()
        if now >= self._next_at:
            self._next_at = now + NOTICE_EVERY_S
            log.warning(
                "forwarding headers of an untrusted peer count for nothing",
                peer=client_network(address),
                hint="name your proxy in TRUSTED_PROXIES, otherwise all its clients share one limit",
            )
