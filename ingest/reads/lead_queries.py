"""Lead queries: pages of stored leads, one lead, and one lead's trail. Reads PostgreSQL only."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import psycopg_pool
from psycopg.rows import dict_row

from nigredo.errors import DependencyDown
from nigredo.postgres.pool import Pool, count_failure, describe

DEADLINE_S = 5.0
LIMIT_MAX = 100
LEAD = "SELECT id, name, email, message, extra, status, source, form_id, created_at FROM nigredo.leads"
ONE = LEAD + " WHERE id = %(id)s"
FILTERS = {
    "status": "status = %(status)s",
    "source": "source = %(source)s",
    "before": "(created_at, id) < (%(before)s, %(before_id)s)",
}
NEWEST_FIRST = " ORDER BY created_at DESC, id DESC LIMIT %(limit)s"
SUBMITTED = """
SELECT verdict, reason, submitted_at, submission_partition, submission_offset
FROM nigredo.form_submissions WHERE id = %(id)s"""
STORED = "SELECT created_at, stored_at, status, lead_partition, lead_offset FROM nigredo.leads WHERE id = %(id)s"
ATTEMPTED = """
SELECT endpoint, attempt, sent_at, success, status_code, error_message, duration_ms
FROM nigredo.webhook_logs WHERE lead_id = %(id)s ORDER BY sent_at, attempt LIMIT 1000"""

Row = Mapping[str, Any]


class DatabaseDown(DependencyDown):
    """The database does not answer; reading is to be retried, and forms are accepted all the same."""


class BadCursor(ValueError):
    """A cursor that no page of leads returned."""


class LeadQueries:
    """Reads leads. The pool must be open; every call raises DatabaseDown when the database does not answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(
        self, *, limit: int, cursor: str | None, status: str | None, source: str | None
    ) -> tuple[Sequence[Row], str | None]:
        """Return leads, newest first, and the cursor of the next page, None after the last page. Raises BadCursor."""
        values: dict[str, Any] = {"status": status, "source": source, "before": None, "limit": limit + 1}
        if cursor is not None:
            values["before"], values["before_id"] = _from_cursor(cursor)
        conditions = [condition for name, condition in FILTERS.items() if values[name] is not None]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        (rows,) = await self._rows(values, LEAD + where + NEWEST_FIRST)
        more = _as_cursor(rows[limit - 1]) if len(rows) > limit else None
        return [_plain(row) for row in rows[:limit]], more

    async def lead(self, lead_id: UUID) -> Row | None:
        """Return a lead; None when none is stored under this id."""
        (rows,) = await self._rows({"id": lead_id}, ONE)
        return _plain(rows[0]) if rows else None

    async def trail(self, lead_id: UUID) -> Row | None:
        """Return a submission's verdict, lead and delivery attempts; None when no stage is stored."""
        submitted, stored, attempts = await self._rows({"id": lead_id}, SUBMITTED, STORED, ATTEMPTED)
        if not submitted and not stored:
            return None
        return {
            "id": str(lead_id),
            "submission": _plain(submitted[0]) if submitted else None,
            "lead": _plain(stored[0]) if stored else None,
            "deliveries": [_plain(attempt) for attempt in attempts],
        }

    async def _rows(self, values: Mapping[str, Any], *statements: str) -> Sequence[Sequence[Row]]:
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                self._pool.connection() as connection,
                _snapshot(connection, statements),
            ):
                cursor = connection.cursor(row_factory=dict_row)
                found = []
                for statement in statements:
                    await cursor.execute(statement.encode(), values)
                    found.append(await cursor.fetchall())
                return found
        except TimeoutError as error:
            count_failure(self._pool, error)
            raise DatabaseDown("Connection timeout: the database does not answer") from error
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed) as error:
            count_failure(self._pool, error)
            raise DatabaseDown(describe(error, self._pool)) from error


@asynccontextmanager
async def _snapshot(connection: psycopg.AsyncConnection[Any], statements: Sequence[str]) -> AsyncIterator[None]:
    """Run several statements on one snapshot: a lead stored between two of them would lack its submission."""
    if len(statements) == 1:
        yield
        return
    async with connection.transaction():
        await connection.execute(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def lead_id_of(text: str) -> UUID | None:
    """Parse a lead id from a path; None for a text that is no UUID in its usual form."""
    with suppress(ValueError):
        found = UUID(text)
        return found if str(found) == text.lower() else None
    return None


def _plain(row: Row) -> Row:
    """Return a row with times and ids as text."""
    return {name: _text(value) for name, value in row.items()}


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value) if isinstance(value, UUID) else value


def _as_cursor(row: Row) -> str:
    return base64.urlsafe_b64encode(f"{row['created_at'].isoformat()} {row['id']}".encode()).decode().rstrip("=")


def _from_cursor(text: str) -> tuple[datetime, UUID]:
    try:
        at, _, lead_id = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(" ")
        found = datetime.fromisoformat(at)
        if found.tzinfo is None:
            raise ValueError("without a time zone")
        return found, UUID(lead_id)
    except ValueError as error:
        raise BadCursor("not a cursor of a page of leads") from error
