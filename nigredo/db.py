"""PostgreSQL as every process of the product uses it: bounded pools, and errors that name no person's data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from nigredo import metrics
from nigredo.errors import DependencyDown
from nigredo.settings import Settings

Pool = AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]

STATEMENT_TIMEOUT_S = 30.0
"""No statement of the product's own takes this long; one that does holds locks that others wait for."""

LOST = ("080", "57P")
"""How the SQLSTATEs begin of a connection that broke, and of a server that stops, crashed or does not let one in."""


class _Connection(psycopg.AsyncConnection[TupleRow]):
    """A connection whose failed attempts are counted: the pool tries again by itself and tells nobody."""

    @classmethod
    async def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connect as psycopg does."""
        try:
            return await super().connect(conninfo, **options)
        except psycopg.OperationalError:
            metrics.DB_CONNECTION_ERRORS.of(str(options.get("application_name"))).inc()
            raise


def make_pool(settings: Settings, component: str, *, size_max: int | None = None) -> Pool:
    """Return a closed pool; `await pool.open()` starts it without waiting for the database.

    Limits are the operations runbook's: at most 10 connections a process, 30 s idle, 2 s to get one. A connection
    that the server ended (fail-over, an operator's kill-idle statement) is found before it is handed out.
    """

    async def check(connection: psycopg.AsyncConnection[TupleRow]) -> None:
        try:
            await AsyncConnectionPool.check_connection(connection)
        except psycopg.Error:
            # Whatever ended this one ended others too. The pool would find them one by one, with a second and more
            # between two of them: with three of them nobody would get a connection in time.
            await pool.drain()
            raise

    pool: Pool = AsyncConnectionPool(
        settings.database_url,
        connection_class=_Connection,
        kwargs={
            "application_name": settings.function(component),
            "connect_timeout": max(1, round(settings.db_pool_timeout_s)),
            "options": f"-c statement_timeout={int(STATEMENT_TIMEOUT_S * 1000)}",
            "autocommit": True,
            # A host that vanished is noticed within half a minute, not when the kernel gives up.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
        min_size=0,
        max_size=min(size_max or settings.db_pool_max, settings.db_pool_max),
        max_idle=settings.db_pool_idle_s,
        timeout=settings.db_pool_timeout_s,
        check=check,
        open=False,
    )
    return pool


def count_failure(pool: Pool, error: Exception) -> None:
    """Count what went wrong with a connection of the pool, or with getting one; a statement's own errors are not."""
    lost = isinstance(error, psycopg.OperationalError) and (error.sqlstate is None or error.sqlstate[:3] in LOST)
    if lost or isinstance(error, TimeoutError):
        options = pool.kwargs if isinstance(pool.kwargs, dict) else {}
        metrics.DB_CONNECTION_ERRORS.of(str(options.get("application_name"))).inc()


def ping(settings: Settings) -> None:
    """Ask the database for nothing, on a connection of its own; blocks, for a thread. Raises DependencyDown."""
    options = "-c statement_timeout=5000"
    timeout_s = max(1, round(settings.db_pool_timeout_s))
    try:
        with psycopg.connect(settings.database_url, connect_timeout=timeout_s, options=options) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise DependencyDown(describe(error)) from error


@contextmanager
def connected(settings: Settings, component: str) -> Iterator[psycopg.Connection]:
    """Lend a command one connection of its own. Raises DependencyDown."""
    try:
        with psycopg.connect(
            settings.database_url,
            application_name=settings.function(component),
            connect_timeout=max(1, round(settings.db_pool_timeout_s)),
            options=f"-c statement_timeout={int(STATEMENT_TIMEOUT_S * 1000)}",
            autocommit=True,
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise DependencyDown(describe(error)) from error


@asynccontextmanager
async def transaction(pool: Pool, *, deadline_s: float) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
    """Lend a connection for one transaction that is over, either way, within the deadline. Raises DependencyDown."""
    try:
        async with asyncio.timeout(deadline_s), pool.connection() as connection, connection.transaction():
            yield connection
    except TimeoutError as error:
        count_failure(pool, error)
        raise DependencyDown("Connection timeout: the database does not answer") from error
    except (psycopg.Error, PoolTimeout) as error:
        count_failure(pool, error)
        raise DependencyDown(describe(error)) from error


def describe(error: Exception) -> str:
    """Say what went wrong at the database in the words operators search for, without any value of a row.

    psycopg's own text may quote a failing row, so only the class and the SQLSTATE are used.
    """
    if isinstance(error, PoolTimeout):
        return "Connection timeout: none in the pool"
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        text = str(error).lower()
        if "refused" in text:
            return "ECONNREFUSED: the database refuses connections"
        return "Connection timeout" if "timeout" in text or "timed out" in text else "the database connection was lost"
    if isinstance(error, psycopg.Error):
        return f"{type(error).__name__} (SQLSTATE {error.sqlstate})"
    return type(error).__name__
