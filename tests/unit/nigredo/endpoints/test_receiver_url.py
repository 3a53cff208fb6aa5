"""Masking of a receiver's URL: no row, log line or quoted answer shows its token."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from nigredo.endpoints.receiver_url import secrets_of, shown_url
from schemas.events import Contact, Lead
from sinks.webhook.transport.response_excerpt import excerpt_of

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LEAD = Lead(
    uuid4(), "192.0.2.1", "192.0.2.1", None, None, None, Contact("Ana", "ana@example.com", "Oi", {}),
    NOON, NOON, False, 0, 0,
)  # fmt: skip

# Not a real token; concatenated, so that secret scanners do not report this file.
SLACK = "/".join(("https://hooks.slack.com/services", "T0000", "B0000", "x" * 24))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.alquimista.ai/public/nigredo-event", "https://api.alquimista.ai/public/nigredo-event"),
        ("http://127.0.0.1:8082/public/nigredo-event", "http://127.0.0.1:8082/public/nigredo-event"),
        (SLACK, "https://hooks.slack.com/services/***/***/***"),
        ("https://hooks.zapier.com/hooks/catch/123456/abc123/", "https://hooks.zapier.com/hooks/catch/***/***/"),
        ("https://discord.com/api/webhooks/1234/a-token", "https://discord.com/api/webhooks/***/***"),
        ("https://hook.eu1.make.com/abcdefghijkl", "https://hook.eu1.make.com/***"),
        ("https://x.example/bot12:AB/send", "https://x.example/***/***"),
        ("https://x.example/hook;jsessionid=1?key=secret#part", "https://x.example/***"),
        ("https://x.example/hook?key=secret", "https://x.example/hook"),
        ("https://[2001:db8::1]:8443/hook", "https://[2001:db8::1]:8443/hook"),
        ("https://x.example", "https://x.example"),
        ("https://x.example/", "https://x.example/"),
    ],
)
def test_of_a_path_only_common_words_are_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("url", "quoted"),
    [
        ("https://x.example/hooks/s3cr3t-token", "Cannot POST /hooks/s3cr3t-token"),
        ("https://x.example/hooks/s3cr3t%2Ftoken", "no route s3cr3t/token"),
        ("https://x.example/hooks?key=s3cr3t-token", "Unknown key S3CR3T-TOKEN, see /hooks?key=s3cr3t-token"),
        ("https://x.example/bot12:s3cr3t-token/send", "token s3cr3t-token is not known"),
    ],
)
def test_an_error_page_that_quotes_the_token_is_kept_without_it(url: str, quoted: str) -> None:
    kept = excerpt_of(quoted.encode(), LEAD, secrets=secrets_of(url)) or ""

    assert "s3cr3t" not in kept.lower()
    assert "***" in kept


def test_nothing_of_the_usual_url_is_masked_in_an_answer() -> None:
    assert not secrets_of("http://127.0.0.1:8082/public/nigredo-event")
