"""Warning about a proxy that TRUSTED_PROXIES does not name: once an hour in the log, and in a metric."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from ingest.web.forwarding import NOTICE_EVERY_S, ForwardingNotice
from nigredo.observability import metrics

FORWARDED = {"x-forwarded-for": "198.51.100.7"}


def counted() -> float:
    return float(metrics.UNTRUSTED_FORWARDING.of()._value.get())


@pytest.mark.parametrize("headers", [FORWARDED, {"forwarded": "for=198.51.100.7"}])
def test_forwarding_headers_of_an_untrusted_peer_are_counted_each_and_logged_once_an_hour(
    headers: dict[str, str],
) -> None:
    notice, before = ForwardingNotice([]), counted()

    with capture_logs() as lines:
        for at in (0.0, 1.0, NOTICE_EVERY_S - 1, NOTICE_EVERY_S):
            notice.look("203.0.113.9", headers, at)

    assert counted() - before == 4
    assert [(line["log_level"], line["peer"]) for line in lines] == [("warning", "203.0.113.9")] * 2
    assert "198.51.100.7" not in str(lines)


@pytest.mark.parametrize(
    ("peer", "headers"), [("10.0.0.1", FORWARDED), ("203.0.113.9", {"user-agent": "curl"}), ("", FORWARDED)]
)
def test_a_named_proxy_and_a_request_without_such_headers_are_no_news(peer: str, headers: dict[str, str]) -> None:
    notice, before = ForwardingNotice([ip_network("10.0.0.0/8")]), counted()

    with capture_logs() as lines:
        notice.look(peer, headers, 0.0)

    assert counted() == before
    assert lines == []
