"""Store: writes rows and their records' offsets in one transaction, so that the stored offset shows what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
import psycopg_pool
from psycopg.types.json import Jsonb

from nigredo.errors import DependencyDown, RecordRefused
from nigredo.log_position import LogPosition, Mark
from nigredo.postgres.pool import STATEMENT_TIMEOUT_S, Pool, count_failure, describe
from processors.engine.handler import AssignmentLost
from processors.persistence.rows import Row, Rows

DEADLINE_S = STATEMENT_TIMEOUT_S + 5.0
"""Client-side deadline in seconds, because the server's statement timeout does not apply while the server is down."""
NEVER = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
)
"""Errors that the same rows always cause: split the batch and park the record that causes the error on its own."""
TRANSACTION_TRIES = 3
"""Attempts at a transaction with a deadlock or serialization failure; more in a row count as an outage."""


@dataclass(frozen=True, slots=True)
class OffsetStep:
    """One partition's stored offset, moved from `expected_offset` to `position` by a batch."""

    topic: str
    partition: int
    expected_offset: int
    position: LogPosition

    @property
    def values(self) -> dict[str, Any]:
        """Parameters of the statements that store the position."""
        last = self.position.last
        return {
            "topic_id": self.position.topic_id,
            "partition": self.partition,
            "topic": self.topic,
            "stood_at": self.expected_offset,
            "next_offset": self.position.next_offset,
            "last_offset": None if last is None else last.offset,
            "last_ms": None if last is None else last.timestamp_ms,
            "last_key": None if last is None else last.key_crc32,
        }


def load_queries() -> Mapping[str, bytes]:
    """Return the statements of `queries.sql` by name."""
    text = (resources.files("processors.persistence") / "queries.sql").read_text(encoding="utf-8")
    named = (part.partition("\n") for part in text.split("-- :name ")[1:])
    return {name.strip(): statement.encode() for name, _, statement in named}


class Store:
    """Stores batches and positions in PostgreSQL. The pool must be open."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sql = load_queries()

    async def position(self, topic_id: str, partition: int) -> LogPosition | None:
        """Return the stored position, after the last stored record; None without one. Raises DependencyDown."""
        async with self._connection() as connection:
            values = {"topic_id": topic_id, "partition": partition}
            row = await (await connection.execute(self._sql["read_position"], values)).fetchone()
        if row is None:
            return None
        next_offset, last, timestamp_ms, key_crc32 = row
        # A process of the previous release leaves an earlier record's proof, or a later one's after a rewind.
        mark = None if last is None or last >= next_offset else Mark(last, timestamp_ms, key_crc32)
        return LogPosition(next_offset, topic_id, mark)

    async def begin(self, progress: OffsetStep) -> bool:
        """Store a partition's start position; False when its stored offset has changed. Raises DependencyDown."""
        async with self._connection() as connection:
            cursor = await connection.execute(self._sql["begin_position"], progress.values)
            return await cursor.fetchone() is not None

    async def put_back(self, progress: OffsetStep) -> None:
        """Store a position, replacing a later one. Raises DependencyDown."""
        async with self._connection() as connection:
            await connection.execute(self._sql["put_back"], progress.values)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        try:
            async with asyncio.timeout(DEADLINE_S), self._pool.connection() as connection:
                yield connection
        except TimeoutError as error:
            count_failure(self._pool, error)
            raise DependencyDown("Connection timeout: the database does not answer") from error
        except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
            count_failure(self._pool, error)
            raise DependencyDown(describe(error, self._pool)) from error

    async def write(self, rows: Rows, progress: Sequence[OffsetStep]) -> None:
        """Store a batch's rows and offsets, all or nothing.

        Raises AssignmentLost when a partition's stored offset is not `expected_offset`, RecordRefused when the database
        can never accept one of the rows, DependencyDown when a retry may succeed.
        """
        for attempt in range(1, TRANSACTION_TRIES + 1):
            try:
                async with (
                    asyncio.timeout(DEADLINE_S),
                    self._pool.connection() as connection,
                    connection.transaction(),
                ):
                    # Always in the same order, so that two writers wait for each other instead of deadlocking.
                    for step in sorted(progress, key=lambda step: (step.topic, step.partition)):
                        await self._move(connection, step)
                    await self._write(connection, rows)
                return
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
                if attempt == TRANSACTION_TRIES:
                    raise DependencyDown(describe(error)) from error
            except TimeoutError as error:
                count_failure(self._pool, error)
                raise DependencyDown("Connection timeout: the database does not answer") from error
            except NEVER as error:
                raise RecordRefused("refused_by_database", describe(error)) from None
            except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
                count_failure(self._pool, error)
                raise DependencyDown(describe(error, self._pool)) from error

    async def _move(self, connection: psycopg.AsyncConnection[Any], step: OffsetStep) -> None:
        cursor = await connection.execute(self._sql["move_offset"], step.values)
        if await cursor.fetchone() is None:
            raise AssignmentLost(
                f"stored offset of {step.topic} partition {step.partition} is not {step.expected_offset}"
            )

    async def _write(self, connection: psycopg.AsyncConnection[Any], rows: Rows) -> None:
        writes: list[tuple[str, Sequence[Row]]] = [
            ("insert_leads", list(rows.leads.values())),
            ("upsert_form_submissions", list(rows.form_submissions.values())),
            ("upsert_rate_limits", list(rows.rate_limits.values())),
            ("insert_webhook_logs", list(rows.webhook_logs.values())),
        ]
        for name, table_rows in writes:
            if table_rows:
                await connection.execute(self._sql[name], {"rows": Jsonb(table_rows)})
        if rows.erased:
            await connection.execute(self._sql["delete_leads"], {"ids": list(rows.erased)})
            await connection.execute(self._sql["delete_form_submissions"], {"ids": list(rows.erased)})
        if rows.freed:
            freed = [{"ip_address": network, "input_offset": offset} for network, offset in rows.freed.items()]
            await connection.execute(self._sql["bookkeeping"])
            await connection.execute(self._sql["delete_rate_limits"], {"rows": Jsonb(freed)})
