"""Rows and the offsets they came from, in one transaction; the database's offset is the authority on what is stored."""

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
"""The server's own timeout holds only while the server is there to keep it."""
NEVER = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
)
"""What the same rows will always get: split the batch, and park the record that is alone to blame."""
TRANSACTION_TRIES = 3
"""A deadlock or a serialization failure is nobody's fault and passes; more of them in a row is something else."""


@dataclass(frozen=True, slots=True)
class OffsetStep:
    """How far a batch moves one partition."""

    topic: str
    partition: int
    stood_at: int
    position: LogPosition

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of the statements that store it."""
        last = self.position.last
        return {
            "topic_id": self.position.topic_id,
            "partition": self.partition,
            "topic": self.topic,
            "stood_at": self.stood_at,
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
    """Writes batches. The pool must be open."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._sql = load_queries()

    async def position(self, topic_id: str, partition: int) -> LogPosition | None:
        """Return the position after what is stored; None for a partition never read. Raises DependencyDown."""
        async with self._connection() as connection:
            values = {"topic_id": topic_id, "partition": partition}
            row = await (await connection.execute(self._sql["read_position"], values)).fetchone()
        if row is None:
            return None
        next_offset, last, timestamp_ms, key_crc32 = row
        # The previous release's process leaves the proof of an earlier record, or of a later one after a rewind.
        mark = None if last is None or last >= next_offset else Mark(last, timestamp_ms, key_crc32)
        return LogPosition(next_offset, topic_id, mark)

    async def begin(self, progress: OffsetStep) -> bool:
        """Store where a partition begins; False when its row is not as it stood. Raises DependencyDown."""
        async with self._connection() as connection:
            cursor = await connection.execute(self._sql["begin_position"], progress.values)
            return await cursor.fetchone() is not None

    async def put_back(self, progress: OffsetStep) -> None:
        """Store a position in the place of a later one. Raises DependencyDown."""
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
        """Store a batch, all of it or nothing.

        Raises Stale when a partition does not stand where the batch began, RecordRefused when the database can never
        take one of the rows, DependencyDown for everything that may pass.
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
            raise AssignmentLost(f"{step.topic} partition {step.partition} does not stand at {step.stood_at}")

    async def _write(self, connection: psycopg.AsyncConnection[Any], rows: Rows) -> None:
        writes: list[tuple[str, Sequence[Row]]] = [
            ("insert_leads", list(rows.leads.values())),
            ("upsert_form_submissions", list(rows.form_submissions.values())),
            ("upsert_rate_limits", list(rows.rate_limits.values())),
            ("insert_webhook_logs", list(rows.webhook_logs.values())),
        ]
        for name, many in writes:
            if many:
                await connection.execute(self._sql[name], {"rows": Jsonb(many)})
        if rows.erased:
            await connection.execute(self._sql["delete_leads"], {"ids": list(rows.erased)})
            await connection.execute(self._sql["delete_form_submissions"], {"ids": list(rows.erased)})
        if rows.freed:
            freed = [{"ip_address": network, "input_offset": offset} for network, offset in rows.freed.items()]
            await connection.execute(self._sql["bookkeeping"])
            await connection.execute(self._sql["delete_rate_limits"], {"rows": Jsonb(freed)})
