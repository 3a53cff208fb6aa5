"""What an attempt at delivery adds to the metrics."""

from __future__ import annotations

from nigredo import metrics
from nigredo.clock import utc_now
from nigredo.metric import OTHER
from schemas.events import Lead
from sinks.webhook.delivery import Attempt
from sinks.webhook.retry import DELIVERED


def count_attempt(endpoint: str, lead: Lead, attempt: Attempt) -> None:
    """Count an attempt that is over; of a lead that was taken also how long that took since its form was."""
    metrics.WEBHOOK_ATTEMPT.of().observe(attempt.duration_ms / 1000)
    if attempt.outcome == DELIVERED:
        metrics.WEBHOOK_SUCCESS.of(endpoint).inc()
        metrics.END_TO_END.of("delivered").observe((utc_now() - lead.taken_at).total_seconds())
    else:
        metrics.WEBHOOK_FAILURE.of(endpoint, reason_of(attempt)).inc()


def reason_of(attempt: Attempt) -> str:
    """Say how an attempt failed: `timeout`, `connect` (not reached, or cut off), `4xx`, `5xx`, or `other`."""
    if attempt.status_code is not None:
        told = f"{attempt.status_code // 100}xx"
        return told if told in ("4xx", "5xx") else OTHER
    text = attempt.error_message or ""
    return "timeout" if text.startswith(("Connection timeout", "ETIMEDOUT")) else "connect"
