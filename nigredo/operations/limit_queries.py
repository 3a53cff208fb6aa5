"""Queries on the limiter's tables in PostgreSQL: the busiest client networks, and submissions that became leads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from nigredo.postgres.pool import connected
from nigredo.settings import Settings

COMPONENT = "control"
BUSIEST = """
SELECT ip_address, submission_count, window_start
FROM nigredo.rate_limits
WHERE window_start > NOW() - INTERVAL '1 hour'
ORDER BY submission_count DESC
LIMIT %s
"""
"""Statement of the operations runbook, word for word."""
ACCEPTED = "SELECT id FROM nigredo.form_submissions WHERE id = ANY(%s) AND verdict IN ('accepted', 'released')"


def busiest_networks(settings: Settings, limit: int) -> Sequence[tuple[str, int, datetime]]:
    """Return client network, submissions and window start of the busiest networks of the last hour, busiest first.

    Refused submissions count too. Raises DependencyDown.
    """
    with connected(settings, COMPONENT) as connection:
        return connection.execute(BUSIEST, [limit]).fetchall()


def accepted_submissions(settings: Settings, ids: Collection[UUID]) -> set[UUID]:
    """Return which of these submissions are stored as accepted or released. Raises DependencyDown."""
    with connected(settings, COMPONENT) as connection:
        return {row[0] for row in connection.execute(ACCEPTED, [list(ids)]).fetchall()}
