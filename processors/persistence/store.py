"""Rows and the offsets they came from, in one transaction; the database's offset is the authority on what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import psycopg
import psycopg_pool
from psycopg.types.json import Jsonb

from nigredo.db import STATEMENT_TIMEOUT_S, Pool, count_failure, describe
from nigredo.errors import DependencyDown, RecordRefused
from processors.handler import Stale
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
class Progress:
    """How far a batch moves one partition."""

    topic_id: str
    partition: int
    topic: str
    stood_at: int
    next_offset: int


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

    async def next_offset(self, topic_id: str, partition: int) -> int | None:
        """Return the first offset that is not stored; None for a partition never read. Raises DependencyDown."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._pool.connection() as connection:
                cursor = await connection.execute(
                    self._sql["begin_partition"], {"topic_id": topic_id, "partition": partition}
                )
                row = await cursor.fetchone()
                return None if row is None else int(row[0])
        except TimeoutError as error:
            count_failure(self._pool, error)
            raise DependencyDown("Connection timeout: the database does not answer") from error
        except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
            count_failure(self._pool, error)
            raise DependencyDown(describe(error, self._pool)) from error

    async def write(self, rows: Rows, progress: Sequence[Progress]) -> None:
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
                    for step in sorted(progress, key=lambda step: (step.topic_id, step.partition)):
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

    async def _move(self, connection: psycopg.AsyncConnection[Any], step: Progress) -> None:
        values = {
            "topic_id": step.topic_id,
            "partition": step.partition,
            "topic": step.topic,
            "stood_at": step.stood_at,
        }
        await connection.execute(self._sql["first_offset"], values | {"next_offset": step.stood_at})
        cursor = await connection.execute(self._sql["move_offset"], values | {"next_offset": step.next_offset})
        if await cursor.fetchone() is None:
            raise Stale(f"{step.topic} partition {step.partition} does not stand at {step.stood_at}")

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
