"""What became of deliveries, asked from outside: failed attempts and leads without a delivered one; blocking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from nigredo.db import describe
from nigredo.errors import DependencyDown
from nigredo.settings import Settings

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
    SELECT 1 FROM nigredo.webhook_logs AS w WHERE w.lead_id = l.id AND w.endpoint = %(endpoint)s AND w.success
  )
ORDER BY l.created_at, l.id
LIMIT %(limit)s
"""
ATTEMPTS_KEPT = timedelta(days=365)
"""An older lead may have been delivered without anything left that says so."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, in the columns of the operations runbook."""

    id: UUID
    lead_id: UUID
    endpoint: str
    attempt: int
    status_code: int | None
    error_message: str | None
    sent_at: datetime


@dataclass(frozen=True, slots=True)
class Undelivered:
    """One lead that the endpoint does not have, with its last attempt, if there was one."""

    lead_id: UUID
    taken_at: datetime
    lead_partition: int
    lead_offset: int
    attempts: int | None
    last_sent_at: datetime | None
    status_code: int | None
    error_message: str | None


def failures(settings: Settings, endpoint: str | None, since: datetime, limit: int) -> Sequence[Failure]:
    """Return the newest failed attempts at one endpoint, or at all, newest first. Raises DependencyDown."""
    return _rows(settings, Failure, FAILURES, {"endpoint": endpoint, "since": since, "limit": limit})


def undelivered(settings: Settings, endpoint: str, since: datetime, limit: int) -> Sequence[Undelivered]:
    """Return the leads without a delivered attempt at an endpoint, oldest first. Raises DependencyDown."""
    return _rows(settings, Undelivered, UNDELIVERED, {"endpoint": endpoint, "since": since, "limit": limit})


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
