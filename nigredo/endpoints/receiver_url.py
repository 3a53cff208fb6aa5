"""The URL of a receiver as it may be shown, and what of it is secret. Pure.

Many receivers have their token in the path (Slack, Zapier, Discord), others in the query. A path's words cannot be told
from a token by their looks, so only those that such paths are commonly made of are shown.
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
_SECRET_MIN = 4
"""A shorter part is no secret worth the name, and would be masked in the middle of words."""
_BETWEEN_PARTS = re.compile(r"[/;,=&:]")


def shown_url(url: str) -> str:
    """Return scheme, host, port and the path, of which every unknown segment is masked."""
    parts = urlsplit(url)
    path = "/".join(segment if not segment or segment in SHOWN else MASK for segment in parts.path.split("/"))
    return f"{parts.scheme}://{parts.netloc}{path}"


def secrets_of(url: str) -> frozenset[str]:
    """Return the parts of a URL that are not shown, as they are written and as they are meant."""
    return frozenset(part for part in _hidden(url) if len(part) >= _SECRET_MIN and part not in SHOWN)


def _hidden(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    values = [value for pair in parse_qsl(parts.query, keep_blank_values=True) for value in pair]
    for text in (*parts.path.split("/"), parts.query, *values):
        for written in (text, unquote(text)):
            yield written
            yield from _BETWEEN_PARTS.split(written)
