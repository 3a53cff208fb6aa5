"""Rows of a batch: maps each record's event to the rows of its tables. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from nigredo.kafka.record import Record
from processors.engine.handler import Decoded
from schemas.events import DeliveryAttempt, Lead, RateLimitState, Rejection
from schemas.topics import LEADS

Row = dict[str, Any]


@dataclass(slots=True)
class Rows:
    """Rows that one batch writes, by primary key; within a batch the later record of a key wins.

    erased: ids of leads to delete. freed: networks whose row is deleted, with the input offset of their empty window.
    """

    leads: dict[UUID, Row] = field(default_factory=dict)
    erased: set[UUID] = field(default_factory=set)
    form_submissions: dict[UUID, Row] = field(default_factory=dict)
    rate_limits: dict[str, Row] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)
    webhook_logs: dict[UUID, Row] = field(default_factory=dict)


def rows_of(records: Sequence[Decoded]) -> Rows:
    """Return the rows of a batch; events without a table add none."""
    rows = Rows()
    for record, event in records:
        match event:
            case Lead():
                rows.leads[event.id] = _lead(event, record)
                rows.erased.discard(event.id)
                rows.form_submissions[event.id] = _submission(event, "released" if event.released else "accepted", None)
            case Rejection():
                if rows.form_submissions.get(event.id, {}).get("verdict") not in ("accepted", "released"):
                    retry = None if event.retry_at is None else f"retry at {event.retry_at.isoformat()}"
                    rows.form_submissions[event.id] = _submission(event, event.reason, event.spam_sign or retry)
            case RateLimitState():
                _count(rows, event, record)
            case DeliveryAttempt():
                rows.webhook_logs[event.id] = _attempt(event)
            case None if record.topic == LEADS and record.key is not None:
                # A lead's tombstone erases the person; a rebuild from the topic must not bring the rows back.
                erased = UUID(record.key.decode())
                rows.erased.add(erased)
                rows.leads.pop(erased, None)
                rows.form_submissions.pop(erased, None)
    return rows


def _lead(lead: Lead, record: Record) -> Row:
    return {
        "id": str(lead.id),
        "name": lead.contact.name,
        "email": lead.contact.email,
        "message": lead.contact.message,
        "extra": dict(lead.contact.extra),
        "source": lead.source,
        "form_id": lead.form_id,
        "ip_address": lead.ip_address,
        "user_agent": lead.user_agent,
        "created_at": lead.taken_at.isoformat(),
        "lead_partition": record.partition,
        "lead_offset": record.offset,
    }


def _submission(event: Lead | Rejection, verdict: str, reason: str | None) -> Row:
    return {
        "id": str(event.id),
        "ip_address": event.ip_address,
        "user_agent": event.user_agent,
        "source": event.source,
        "form_id": event.form_id,
        "verdict": verdict,
        "reason": reason,
        "submitted_at": event.submitted_at.isoformat(),
        "submission_partition": event.submission_partition,
        "submission_offset": event.submission_offset,
    }


def _count(rows: Rows, state: RateLimitState, record: Record) -> None:
    """Add a window's row, or free the network when the window is empty; ignore windows older than the batch has."""
    network = state.client_network
    latest = rows.rate_limits.get(network, {}).get("input_offset", rows.freed.get(network, -1))
    if latest > state.input_offset:
        return
    if not state.accepted and not state.refused:
        rows.rate_limits.pop(network, None)
        rows.freed[network] = state.input_offset
        return
    rows.freed.pop(network, None)
    rows.rate_limits[network] = {
        "ip_address": network,
        "submission_count": len(state.accepted) + state.refused,
        "window_start": (state.accepted[0].at if state.accepted else state.updated_at).isoformat(),
        "updated_at": state.updated_at.isoformat(),
        "input_partition": record.partition,
        "input_offset": state.input_offset,
    }


def _attempt(attempt: DeliveryAttempt) -> Row:
    return {
        "id": str(attempt.id),
        "lead_id": str(attempt.lead_id),
        "endpoint": attempt.endpoint,
        "webhook_url": attempt.webhook_url,
        "attempt": attempt.attempt,
        "status_code": attempt.status_code,
        "success": attempt.outcome == "delivered",
        "error_message": attempt.error_message,
        "sent_at": attempt.sent_at.isoformat(),
        "duration_ms": attempt.duration_ms,
        "is_replay": attempt.replay,
        # PostgreSQL's text type accepts every character but NUL.
        "answer_excerpt": attempt.answer_excerpt and attempt.answer_excerpt.replace("\0", ""),
    }
