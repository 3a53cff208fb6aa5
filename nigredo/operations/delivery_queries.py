"""Delivery queries on PostgreSQL: failed attempts, and leads without a successful attempt; blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from nigredo.errors import DependencyDown
from nigredo.operations.recovery.beyond import UnloggedLeads
from nigredo.postgres.pool import describe
from nigredo.settings import Settings
from schemas.events import DeliveryAttempt

COMPONENT = "webhook"
FAILURES = """
SELECT id, lead_id, endpoint, attempt, status_code, error_message, sent_at
FROM nigredo.webhook_logs
WHERE success = false AND sent_at > %(since)s AND (%(endpoint)s::text IS NULL OR endpoint = %(endpoint)s)
ORDER BY sent_at DESC
LIMIT %(limit)s
"""
UNDELIVERED = """
SELECT l.id AS lead_id, l.created_at AS taken_at, l.lead_partition, l.lead_offset,
       tried.attempts, tried.sent_at AS last_sent_at, tried.status_code, tried.error_message
FROM nigredo.leads AS l
LEFT JOIN LATERAL (
    SELECT count(*) OVER () AS attempts, w.sent_at, w.status_code, w.error_message
    FROM nigredo.webhook_logs AS w
    WHERE w.lead_id = l.id AND w.endpoint = %(endpoint)s
    ORDER BY w.sent_at DESC
    LIMIT 1
) AS tried ON true
WHERE l.created_at > %(since)s
  AND NOT EXISTS (
    -- By time too: a recreated log counts from 0 again.
    SELECT 1 FROM unnest(%(partitions)s::integer[], %(starts)s::bigint[]) AS start(partition, lead_offset)
    WHERE l.created_at < %(begun)s
      AND l.lead_partition = start.partition AND l.lead_offset < start.lead_offset
  )
  AND NOT EXISTS (
    SELECT 1 FROM nigredo.webhook_logs AS w WHERE w.lead_id = l.id AND w.endpoint = %(endpoint)s AND w.success
  )
ORDER BY l.created_at, l.id
LIMIT %(limit)s
"""
DELIVERED = """
SELECT DISTINCT lead_id FROM nigredo.webhook_logs WHERE lead_id = ANY(%(ids)s) AND endpoint = %(endpoint)s AND success
"""
ATTEMPTS_KEPT = timedelta(days=365)
"""Retention of attempts: an older lead may have been delivered without a trace."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt, with the columns of the operations runbook."""

    id: UUID
    lead_id: UUID
    endpoint: str
    attempt: int
    status_code: int | None
    error_message: str | None
    sent_at: datetime


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A lead that the endpoint does not have, with its last attempt; None in the attempt's fields without one."""

    lead_id: UUID
    taken_at: datetime
    lead_partition: int
    lead_offset: int
    attempts: int | None
    last_sent_at: datetime | None
    status_code: int | None
    error_message: str | None


def failures(settings: Settings, endpoint: str | None, since: datetime, limit: int) -> Sequence[Failure]:
    """Return the newest failed attempts at an endpoint (None for all), newest first. Raises DependencyDown."""
    return _rows(settings, Failure, FAILURES, {"endpoint": endpoint, "since": since, "limit": limit})


@dataclass(frozen=True, slots=True)
class Begun:
    """Time and offsets by partition at which an endpoint began; earlier leads are not sent to the endpoint."""

    at: datetime
    starts: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Id:
    lead_id: UUID


def undelivered(
    settings: Settings, endpoint: str, since: datetime, limit: int, beyond: UnloggedLeads, begun: Begun | None
) -> Sequence[Undelivered]:
    """Return the leads without a successful attempt at an endpoint, oldest first.

    beyond: records that the log holds and the tables do not. begun: None for an endpoint that gets every lead.
    Raises DependencyDown.
    """
    starts = {} if begun is None else begun.starts
    gone = {*beyond.delivered, *beyond.erased}
    values = {
        "endpoint": endpoint,
        "since": since,
        # As many rows more may turn out to be delivered or erased by the log.
        "limit": limit + len(gone),
        "begun": None if begun is None else begun.at,
        "partitions": list(starts),
        "starts": list(starts.values()),
    }
    found = [row for row in _rows(settings, Undelivered, UNDELIVERED, values) if row.lead_id not in gone]
    known = {row.lead_id for row in found} | gone
    logged = {
        lead_id: lead
        for lead_id, lead in beyond.leads.items()
        if lead_id not in known
        and not (begun and lead.at < begun.at and lead.offset < begun.starts.get(lead.partition, 0))
    }
    if logged:
        ids = {"ids": list(logged), "endpoint": endpoint}
        delivered = {row.lead_id for row in _rows(settings, _Id, DELIVERED, ids)}
        found += [
            Undelivered(lead_id, lead.at, lead.partition, lead.offset, None, None, None, None)
            for lead_id, lead in logged.items()
            if lead_id not in delivered
        ]
    found = sorted(found, key=lambda row: (row.taken_at, row.lead_id))[:limit]
    return [_with_attempts(row, beyond.attempts.get(row.lead_id, ())) for row in found]


def _with_attempts(row: Undelivered, made: Sequence[DeliveryAttempt]) -> Undelivered:
    """Return the row with the attempts that only the log holds counted in."""
    later = [attempt for attempt in made if row.last_sent_at is None or attempt.sent_at > row.last_sent_at]
    if not later:
        return row
    last, attempts = max(later, key=lambda attempt: attempt.sent_at), (row.attempts or 0) + len(later)
    return replace(
        row,
        attempts=attempts,
        last_sent_at=last.sent_at,
        status_code=last.status_code,
        error_message=last.error_message,
    )


def _rows(settings: Settings, row: type[Any], statement: str, values: dict[str, Any]) -> Sequence[Any]:
    try:
        with (
            psycopg.connect(
                settings.database_url,
                autocommit=True,
                connect_timeout=max(2, round(settings.db_pool_timeout_s)),
                application_name=settings.function(COMPONENT),
                options="-c statement_timeout=30000",
            ) as connection,
            connection.cursor(row_factory=class_row(row)) as cursor,
        ):
            return cursor.execute(statement.encode(), values).fetchall()
    except psycopg.Error as error:
        raise DependencyDown(describe(error)) from error
