"""Metrics of the sink: delivery attempts, consumer lag and the age of the oldest undelivered lead."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from confluent_kafka import Consumer, TopicPartition

from nigredo.clock import utc_now
from nigredo.observability import metrics
from nigredo.observability.instrument import OTHER
from schemas.events import Lead
from schemas.topics import LEADS
from sinks.webhook.model import AttemptResult, Outcome


def count_attempt(endpoint: str, lead: Lead, attempt: AttemptResult, *, replay: bool) -> None:
    """Count a finished attempt and, for a delivered lead, observe the time since its form was accepted.

    Replays are left out of the end-to-end time, because the age of a replayed lead says nothing about delivery speed.
    """
    metrics.WEBHOOK_ATTEMPT.of().observe(attempt.duration_ms / 1000)
    if attempt.outcome == Outcome.DELIVERED:
        metrics.WEBHOOK_SUCCESS.of(endpoint).inc()
        if replay:
            return
        metrics.END_TO_END.of("delivered").observe((utc_now() - lead.taken_at).total_seconds())
    else:
        metrics.WEBHOOK_FAILURE.of(endpoint, reason_of(attempt)).inc()


def report_lag(consumer: Consumer, following: Mapping[int, int], endpoint: str, oldest: datetime | None) -> None:
    """Set the consumer lag of each assigned partition of `nigredo.leads`, and the age of the oldest undelivered lead.

    The lag uses the end offset that the client cached at its last fetch, so no request is sent.
    following: next offset to commit, by partition. oldest: when the oldest lead in flight was consumed; None without.
    """
    metrics.CONSUMER_LAG.keep([(LEADS, str(partition)) for partition in following])
    for partition, offset in following.items():
        marks = consumer.get_watermark_offsets(TopicPartition(LEADS, partition), cached=True)
        if marks is not None and marks[1] >= 0:
            metrics.CONSUMER_LAG.of(LEADS, str(partition)).set(max(0, marks[1] - offset))
    age_s = 0.0 if oldest is None else (utc_now() - oldest).total_seconds()
    metrics.WEBHOOK_OLDEST_UNDELIVERED_AGE.of(endpoint).set(age_s)


def reason_of(attempt: AttemptResult) -> str:
    """Return why an attempt failed: `timeout`, `connect` (not reached, or cut off), `4xx`, `5xx` or `other`."""
    if attempt.status_code is not None:
        status_class = f"{attempt.status_code // 100}xx"
        return status_class if status_class in ("4xx", "5xx") else OTHER
    text = attempt.error_message or ""
    return "timeout" if text.startswith(("Connection timeout", "ETIMEDOUT")) else "connect"
