"""Test request to a receiver, sent by the code of real deliveries but without a lead, a log entry or a metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from uuid import uuid4

from nigredo.clock import utc_now
from nigredo.endpoints.endpoint import Endpoint
from nigredo.endpoints.secrets import active, read_secrets
from nigredo.settings import Settings
from sinks.webhook.model import AttemptResult
from sinks.webhook.transport.client import WebhookClient
from sinks.webhook.transport.request import signed

PROBE_HEADER = "x-nigredo-probe"
TEST_LEAD: Mapping[str, str] = {"id": "test-id", "name": "Test", "email": "test@example.com", "message": "Test"}
"""The test lead of the operations runbook."""


def probe_body(now: datetime, *, empty_lead: bool) -> bytes:
    """Return the runbook's test body with the current time, because a receiver may refuse an old one as a replay."""
    lead = {} if empty_lead else dict(TEST_LEAD)
    document = {"event_type": "lead.created", "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"), "lead": lead}
    return json.dumps(document, separators=(",", ":")).encode()


async def probe(settings: Settings, endpoint: Endpoint, *, empty_lead: bool) -> AttemptResult:
    """Send a test request and return the result. Raises ConfigurationError when the secret file is not usable."""
    now = utc_now()
    keys = active(read_secrets(endpoint.secret_file), now)
    body = probe_body(now, empty_lead=empty_lead)
    # A fresh id each time: a receiver that deduplicates by webhook-id would answer 200 without processing the test.
    headers = signed(f"test-{uuid4()}", body, now, keys) | {PROBE_HEADER: "1"}
    client = WebhookClient(endpoint.url, connections_max=1, allowed=settings.webhook_allowed_networks)
    try:
        timeout_s = endpoint.timeout_s or settings.webhook_timeout_s
        attempt, _ = await client.send(body, headers, now, timeout_s=timeout_s)
        return attempt
    finally:
        await client.close()
