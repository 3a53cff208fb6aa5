"""Processes of the product: each component name used by operators, with the module whose `main()` runs it."""

from __future__ import annotations

from collections.abc import Mapping

PROCESSES: Mapping[str, str] = {
    "fibonacci": "nigredo.stack.parts.fibonacci",
    "ingest": "ingest.main",
    "rate-limiter": "processors.rate_limit.main",
    "persister": "processors.persistence.main",
    "webhook-sender": "sinks.webhook.main",
}
