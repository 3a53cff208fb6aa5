"""Leads as PostgreSQL has them, with the endpoints that took each: for leads that the log lost; blocking."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address as address_of
from typing import Any
from uuid import UUID

import psycopg

from nigredo.db import describe
from nigredo.errors import DependencyDown
from nigredo.networks import client_network
from nigredo.settings import Settings
from schemas.events import Contact, Lead

COMPONENT = "recover"
FETCH_ROWS = 2000
STORED = b"""
SELECT l.id, l.name, l.email, l.message, l.extra, l.source, l.form_id, l.ip_address, l.user_agent, l.created_at,
       f.verdict, f.submitted_at, f.submission_partition, f.submission_offset,
       ARRAY(SELECT DISTINCT w.endpoint FROM nigredo.webhook_logs AS w WHERE w.lead_id = l.id AND w.success)
FROM nigredo.leads AS l JOIN nigredo.form_submissions AS f ON f.id = l.id
ORDER BY l.created_at, l.id
"""


def stored_leads(settings: Settings) -> Iterator[tuple[Lead, frozenset[str]]]:
    """Yield every stored lead, oldest first, as the event that it came from, with the endpoints that took it.

    Reads in parts, so that memory does not grow with the table. Raises DependencyDown.
    """
    try:
        with (
            psycopg.connect(
                settings.database_url,
                connect_timeout=max(2, round(settings.db_pool_timeout_s)),
                application_name=settings.function(COMPONENT),
            ) as connection,
            connection.cursor(name="stored_leads") as cursor,
        ):
            cursor.itersize = FETCH_ROWS
            cursor.execute(STORED)
            for row in cursor:
                yield _lead(row), frozenset(row[14])
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
