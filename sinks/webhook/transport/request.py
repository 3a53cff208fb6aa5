"""What is sent: the body of the operations runbook, byte for byte the same at every attempt, and its headers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from nigredo.endpoints.secrets import signature
from schemas.events import Lead

USER_AGENT = "Nigredo-Webhook/1"
TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def body_of(lead: Lead) -> bytes:
    """Return the body for a lead: a function of the lead alone, so a retry or a replay sends the same bytes."""
    document = {
        "event_type": "lead.created",
        "timestamp": lead.taken_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lead": {
            "id": str(lead.id),
            "name": lead.contact.name,
            "email": lead.contact.email,
            "message": lead.contact.message,
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def headers_of(
    lead: Lead, body: bytes, attempt: int, now: datetime, secrets: Sequence[bytes], traceparent: str | None = None
) -> Mapping[str, str]:
    """Return the headers of one attempt: `webhook-id` is the lead id, the timestamp is the attempt's own."""
    headers = signed(str(lead.id), body, now, secrets) | {"nigredo-attempt": str(attempt)}
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return headers


def signed(webhook_id: str, body: bytes, now: datetime, secrets: Sequence[bytes]) -> dict[str, str]:
    """Return the headers that any request to a receiver has."""
    timestamp = str(int(now.timestamp()))
    return {
        "content-type": "application/json",
        # The beginning of the answer is kept for people to read.
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(webhook_id, timestamp, body, secrets),
    }


def traceparent_of(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """Return the trace that a record belongs to, as the W3C's Trace Context writes it; None without one."""
    for name, value in headers:
        if name == "traceparent" and value is not None and TRACEPARENT.fullmatch(value):
            return value.decode("ascii")
    return None
