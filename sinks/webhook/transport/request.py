"""Webhook request: the body of the operations runbook, byte for byte the same in every attempt, and its headers."""

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
    """Return the body for a lead. It depends on the lead alone, so that retries and replays send the same bytes."""
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
    """Return the headers of one attempt, with the lead id as `webhook-id` and `now` as timestamp."""
    headers = signed(str(lead.id), body, now, secrets) | {"nigredo-attempt": str(attempt)}
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return headers


def signed(webhook_id: str, body: bytes, now: datetime, secrets: Sequence[bytes]) -> dict[str, str]:
    """Return the headers of every request to a receiver, signed with all active secrets."""
    timestamp = str(int(now.timestamp()))
    return {
        "content-type": "application/json",
        # Uncompressed, because the start of the response is kept for operators to read.
        "accept-encoding": "identity",
        "user-agent": USER_AGENT,
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(webhook_id, timestamp, body, secrets),
    }


def traceparent_of(headers: Iterable[tuple[str, bytes | None]]) -> str | None:
    """Return a record's `traceparent` header (W3C Trace Context); None without a valid one."""
    for name, value in headers:
        if name == "traceparent" and value is not None and TRACEPARENT.fullmatch(value):
            return value.decode("ascii")
    return None
