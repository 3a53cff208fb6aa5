"""Our own processes by the name operators use; each is the module's `main()`."""

from __future__ import annotations

from collections.abc import Mapping

PROCESSES: Mapping[str, str] = {
    "fibonacci": "nigredo.stack.parts.fibonacci",
    "ingest": "ingest.main",
    "rate-limiter": "processors.rate_limit.main",
    "persister": "processors.persistence.main",
    "webhook-sender": "sinks.webhook.main",
}
