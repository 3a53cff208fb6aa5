"""PostgreSQL connections: bounded pools, transactions with a deadline, and error texts without a person's data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from nigredo.errors import DependencyDown
from nigredo.observability import metrics
from nigredo.settings import Settings

STATEMENT_TIMEOUT_S = 30.0
"""Upper bound of a statement: none of the product's takes this long, and a hanging one would hold locks."""

LOST = ("080", "57P")
"""SQLSTATE prefixes of a broken connection, and of a server that is stopping, crashed or refusing connections."""

UNREACHABLE = (
    ("refused", "ECONNREFUSED: the database refuses connections"),
    ("no such file", "ECONNREFUSED: nothing listens on the database's socket"),
    ("could not translate host name", "ENOTFOUND: the database's host name is not known"),
    ("failed to resolve host", "ENOTFOUND: the database's host name is not known"),
    ("no route to host", "EHOSTUNREACH: there is no route to the database's host"),
    ("network is unreachable", "ENETUNREACH: the database's network cannot be reached"),
    ("certificate verify failed", "the database's certificate is not accepted"),
    ("root certificate", "the database's certificate cannot be checked: no authority to trust was found"),
    ("password", "the database refuses the password, or none was found"),
    ("starting up", "the database is starting up"),
    ("shutting down", "the database is shutting down"),
    ("too many clients", "the database has no connection left"),
    ("connection slots", "the database has no connection left"),
    ("does not exist", "the database or the role does not exist"),
    ("timeout", "Connection timeout: the database does not answer"),
    ("timed out", "Connection timeout: the database does not answer"),
    ("reset by peer", "ECONNRESET: the database broke the connection"),
)
"""(part, text): part of libpq's or psycopg's message, in lower case, about a connection that failed or broke, and the
text for operators; the first match counts. The libraries give no code, and their messages hold host and user names."""

UNREACHABLE_FOR_S = 300.0
"""Time for which a failed connection attempt is reported as the current reason."""


class Pool(AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]):
    """A pool that remembers why connecting failed; psycopg's pool reports only that no connection is available."""

    _failed_at = 0.0
    _why: str | None = None

    def noted(self, failure: psycopg.OperationalError | None) -> None:
        """Record the outcome of a connection attempt; None for success."""
        self._failed_at, self._why = time.monotonic(), None if failure is None else describe(failure)

    @property
    def unreachable(self) -> str | None:
        """Why the last connection attempt failed; None if it succeeded or is older than `UNREACHABLE_FOR_S`."""
        return self._why if time.monotonic() - self._failed_at < UNREACHABLE_FOR_S else None


def make_pool(settings: Settings, component: str, *, size_max: int | None = None) -> Pool:
    """Return a closed pool; `await pool.open()` starts it without waiting for the database.

    component: names the connections in pg_stat_activity. size_max: lowers the DB_POOL_MAX of the settings.
    The defaults are the operations runbook's: at most 10 connections per process, 30 s idle, 2 s to get a connection.
    Each connection is checked before it is lent, so that one closed by the server (fail-over, an operator's kill-idle
    statement) is replaced.
    """

    async def check(connection: psycopg.AsyncConnection[TupleRow]) -> None:
        try:
            await AsyncConnectionPool.check_connection(connection)
        except psycopg.Error:
            # The cause that closed this connection closed others too. The pool would find them one by one, a second or
            # more apart: with three broken connections, no caller would get a connection in time.
            await pool.drain()
            raise

    class Connection(psycopg.AsyncConnection[TupleRow]):
        """A connection whose failed attempts are counted, because the pool retries without reporting them."""

        @classmethod
        async def connect(cls, conninfo: str = "", **options: Any) -> Self:
            """Connect as psycopg does, and record the outcome in the pool."""
            try:
                connection = await super().connect(conninfo, **options)
            except psycopg.OperationalError as error:
                metrics.DB_CONNECTION_ERRORS.of(_name(pool)).inc()
                pool.noted(error)
                raise
            pool.noted(None)
            return connection

    pool = Pool(
        settings.database_url,
        connection_class=Connection,
        kwargs={
            "application_name": settings.function(component),
            "connect_timeout": max(1, round(settings.db_pool_timeout_s)),
            "options": f"-c statement_timeout={int(STATEMENT_TIMEOUT_S * 1000)}",
            "autocommit": True,
            # A vanished host is noticed within half a minute, not after the kernel's default of many minutes.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
        min_size=0,
        max_size=min(size_max or settings.db_pool_max, settings.db_pool_max),
        max_idle=settings.db_pool_idle_s,
        timeout=settings.db_pool_timeout_s,
        # During the library's default of five minutes its pauses double up to minutes, and no other attempt starts: a
        # database that is available again would be found only after about the length of its outage. With the short
        # timeout each request starts a new attempt.
        reconnect_timeout=settings.db_pool_timeout_s,
        check=check,
        open=False,
    )
    return pool


def count_failure(pool: Pool, error: Exception) -> None:
    """Count a lost connection, or a time-out while getting one; errors of a statement itself are not counted."""
    lost = isinstance(error, psycopg.OperationalError) and (error.sqlstate is None or error.sqlstate[:3] in LOST)
    if lost or isinstance(error, TimeoutError):
        metrics.DB_CONNECTION_ERRORS.of(_name(pool)).inc()


def _name(pool: Pool) -> str:
    options = pool.kwargs if isinstance(pool.kwargs, dict) else {}
    return str(options.get("application_name"))


def ping(settings: Settings) -> None:
    """Check that the database answers, on a separate connection. Blocks: call in a thread. Raises DependencyDown."""
    options = "-c statement_timeout=5000"
    timeout_s = max(1, round(settings.db_pool_timeout_s))
    try:
        with psycopg.connect(settings.database_url, connect_timeout=timeout_s, options=options) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise DependencyDown(describe(error)) from error


@contextmanager
def connected(settings: Settings, component: str) -> Iterator[psycopg.Connection]:
    """Lend a separate connection, for a command. Blocks. Raises DependencyDown."""
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
    """Lend a connection for one transaction, which is committed or rolled back within `deadline_s`.

    Raises DependencyDown when the deadline passes or the database fails.
    """
    try:
        async with asyncio.timeout(deadline_s), pool.connection() as connection, connection.transaction():
            yield connection
    except TimeoutError as error:
        count_failure(pool, error)
        raise DependencyDown("Connection timeout: the database does not answer") from error
    except (psycopg.Error, PoolTimeout) as error:
        count_failure(pool, error)
        raise DependencyDown(describe(error, pool)) from error


def describe(error: Exception, pool: Pool | None = None) -> str:
    """Return a database error's text for operators, in words they search for and without any value of a row.

    Only class and SQLSTATE are used, because psycopg's own text may quote a failing row. pool: the pool that raised a
    PoolTimeout, which remembers why connecting failed.
    """
    if isinstance(error, PoolTimeout):
        return (pool and pool.unreachable) or "Connection timeout: none in the pool"
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        message = str(error).lower()
        return next((text for part, text in UNREACHABLE if part in message), "the database connection was lost")
    if isinstance(error, psycopg.errors.UndefinedTable):
        return "UndefinedTable (SQLSTATE 42P01): the database has no tables of the product; nigredo migrate makes them"
    if isinstance(error, psycopg.Error):
        return f"{type(error).__name__} (SQLSTATE {error.sqlstate})"
    return type(error).__name__
