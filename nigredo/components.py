"""Processes of the product: each component name used by operators, with the module whose `main()` runs it."""

from __future__ import annotations

from collections.abc import Mapping

INGEST = "ingest"
CREATE_LEAD = "create-lead"
RATE_LIMITER = "rate-limiter"
PERSISTER = "persister"
WEBHOOK_SENDER = "webhook-sender"
"""Names of processes, and of components in consumer groups, client ids and the log field `function`. The component of
ingest is `create-lead`, because earlier dashboards and alarms search for that name."""

PROCESSES: Mapping[str, str] = {
    "fibonacci": "nigredo.stack.parts.fibonacci",
    INGEST: "ingest.main",
    RATE_LIMITER: "processors.rate_limit.main",
    PERSISTER: "processors.persistence.main",
    WEBHOOK_SENDER: "sinks.webhook.main",
}
