"""Masking of a receiver's URL for logs and rows, and the secret parts of the URL. Pure.

Many receivers have a token in the path (Slack, Zapier, Discord), others in the query. A token looks like any other word
of a path, so only common words of such paths are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote, urlsplit

MASK = "***"
SHOWN = frozenset({
    "api", "callback", "callbacks", "catch", "event", "events", "hook", "hooks", "in", "inbound", "incoming",
    "ingest", "integrations", "lead", "leads", "nigredo", "nigredo-event", "nigredo-events", "notifications",
    "notify", "public", "receive", "receiver", "rest", "services", "v1", "v2", "v3", "v4", "webhook",
    "webhooks", "workflows",
})  # fmt: skip
"""Path segments that are shown; every other segment is masked."""
_SECRET_MIN = 4
"""Shortest secret part, in characters: shorter parts are no secrets, and masking them would damage ordinary words."""
_BETWEEN_PARTS = re.compile(r"[/;,=&:]")


def shown_url(url: str) -> str:
    """Return scheme, host, port and path, with every unknown segment of the path masked and the query left out."""
    parts = urlsplit(url)
    path = "/".join(segment if not segment or segment in SHOWN else MASK for segment in parts.path.split("/"))
    return f"{parts.scheme}://{parts.netloc}{path}"


def secrets_of(url: str) -> frozenset[str]:
    """Return the hidden parts of a URL, both percent-encoded and decoded."""
    return frozenset(part for part in _hidden(url) if len(part) >= _SECRET_MIN and part not in SHOWN)


def _hidden(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    values = [value for pair in parse_qsl(parts.query, keep_blank_values=True) for value in pair]
    for text in (*parts.path.split("/"), parts.query, *values):
        for written in (text, unquote(text)):
            yield written
            yield from _BETWEEN_PARTS.split(written)
