"""Leads, verdicts and deliveries stored in PostgreSQL, read to restore records that the log lost; blocking."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address as address_of
from typing import Any
from uuid import UUID

import psycopg
from confluent_kafka import Message

from nigredo.clock import from_ms
from nigredo.errors import DependencyDown
from nigredo.networks import client_network
from nigredo.postgres.pool import describe
from nigredo.settings import Settings
from schemas.events import Contact, DeliveryAttempt, Lead, Submission

COMPONENT = "recover"
FETCH_ROWS = 2000
STORED = b"""
SELECT l.id, l.name, l.email, l.message, l.extra, l.source, l.form_id, l.ip_address, l.user_agent, l.created_at,
       f.verdict, f.submitted_at, f.submission_partition, f.submission_offset,
       l.lead_partition, l.lead_offset,
       ARRAY(SELECT DISTINCT w.endpoint FROM nigredo.webhook_logs AS w WHERE w.lead_id = l.id AND w.success)
FROM nigredo.leads AS l JOIN nigredo.form_submissions AS f ON f.id = l.id
ORDER BY l.created_at, l.id
"""
DELIVERED = b"""
SELECT w.lead_id, w.is_replay, l.lead_partition, l.lead_offset
FROM nigredo.webhook_logs AS w LEFT JOIN nigredo.leads AS l ON l.id = w.lead_id
WHERE w.endpoint = %(endpoint)s AND w.success
"""
ATTEMPTS = b"""
SELECT DISTINCT ON (lead_id) id, lead_id, endpoint, webhook_url, attempt, sent_at, duration_ms, status_code,
       error_message, is_replay, answer_excerpt
FROM nigredo.webhook_logs
WHERE endpoint = %(endpoint)s AND success AND lead_id = ANY(%(ids)s)
ORDER BY lead_id, sent_at DESC
"""
VERDICTS = b"SELECT id, submission_partition, submission_offset, submitted_at FROM nigredo.form_submissions"
NO_OFFSET = -1
"""Lead offset of an attempt that is published again, because its lead may have another offset in the present log."""


@dataclass(frozen=True, slots=True)
class DeliveredLead:
    """A lead that an endpoint accepted, and its partition and offset when stored; offset None without a lead row."""

    lead_id: UUID
    replay: bool
    lead_partition: int
    lead_offset: int | None


def stored_leads(settings: Settings) -> Iterator[tuple[Lead, frozenset[str], tuple[int, int]]]:
    """Yield every stored lead, oldest first: its event, the endpoints that accepted it, its (partition, offset).

    Reads in chunks, so that memory does not grow with the table. Raises DependencyDown.
    """
    for row in _rows(settings, STORED):
        yield _lead(row), frozenset(row[16]), (row[14], row[15])


def delivered_leads(settings: Settings, endpoint: str) -> Iterator[DeliveredLead]:
    """Yield the stored deliveries to an endpoint. Reads in chunks. Raises DependencyDown."""
    for lead_id, replay, partition, offset in _rows(settings, DELIVERED, {"endpoint": endpoint}):
        yield DeliveredLead(UUID(str(lead_id)), replay, partition or 0, offset)


def stored_verdicts(settings: Settings) -> Iterator[tuple[UUID, int, int, datetime]]:
    """Yield each judged submission: id, partition, offset and append time. Reads in chunks. Raises DependencyDown."""
    for submission_id, partition, offset, submitted_at in _rows(settings, VERDICTS):
        yield UUID(str(submission_id)), partition, offset, submitted_at


def delivered_attempts(settings: Settings, endpoint: str, ids: Collection[UUID]) -> Iterator[DeliveryAttempt]:
    """Yield the newest successful attempt at an endpoint for each of these leads. Raises DependencyDown."""
    for row in _rows(settings, ATTEMPTS, {"endpoint": endpoint, "ids": list(ids)}):
        attempt_id, lead_id, name, url, attempt, sent_at, duration_ms, status_code, error, replay, excerpt = row
        yield DeliveryAttempt(
            id=UUID(str(attempt_id)),
            lead_id=UUID(str(lead_id)),
            endpoint=name,
            webhook_url=url,
            attempt=attempt,
            sent_at=sent_at,
            duration_ms=duration_ms,
            outcome="delivered",
            status_code=status_code,
            error_message=error,
            lead_partition=0,
            lead_offset=NO_OFFSET,
            replay=replay,
            answer_excerpt=excerpt,
        )


def accepted_lead(event: Submission, message: Message) -> Lead:
    """Return the lead of an accepted submission; the message gives its append time, partition and offset."""
    return Lead(
        id=event.id,
        client_network=event.client_network,
        ip_address=event.ip_address,
        user_agent=event.user_agent,
        form_id=event.form_id,
        source=event.source,
        contact=event.contact,
        taken_at=event.taken_at,
        submitted_at=from_ms(message.timestamp()[1]),
        released=False,
        submission_partition=message.partition() or 0,
        submission_offset=message.offset() or 0,
    )


def _rows(settings: Settings, statement: bytes, values: dict[str, Any] | None = None) -> Iterator[tuple[Any, ...]]:
    try:
        with (
            psycopg.connect(
                settings.database_url,
                connect_timeout=max(2, round(settings.db_pool_timeout_s)),
                application_name=settings.function(COMPONENT),
            ) as connection,
            connection.cursor(name=COMPONENT) as cursor,
        ):
            cursor.itersize = FETCH_ROWS
            cursor.execute(statement, values)
            yield from cursor
    except psycopg.Error as error:
        raise DependencyDown(describe(error)) from error


def _lead(row: tuple[Any, ...]) -> Lead:
    lead_id, name, email, message, extra, source, form_id, ip_address, user_agent, created_at = row[:10]
    verdict, submitted_at, partition, offset = row[10:14]
    return Lead(
        id=UUID(str(lead_id)),
        client_network=client_network(address_of(ip_address)),
        ip_address=ip_address,
        user_agent=user_agent,
        form_id=form_id,
        source=source,
        contact=Contact(name, email, message, extra),
        taken_at=created_at,
        submitted_at=submitted_at,
        released=verdict == "released",
        submission_partition=partition,
        submission_offset=offset,
    )
