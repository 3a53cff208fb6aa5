"""PostgreSQL as every process of the product uses it: bounded pools, and errors that name no person's data."""

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
"""No statement of the product's own takes this long; one that does holds locks that others wait for."""

LOST = ("080", "57P")
"""How the SQLSTATEs begin of a connection that broke, and of a server that stops, crashed or does not let one in."""


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
"""How libpq and psycopg tell of a connection that could not be made, or broke, in lower case; the first that fits. They
give no code, and their texts hold names of hosts and users."""


UNREACHABLE_FOR_S = 300.0
"""What failed longer ago says nothing of the present."""


class Pool(AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]):
    """A pool that remembers why it has no connection: psycopg's own only tells that it has none to lend."""

    _failed_at = 0.0
    _why: str | None = None

    def noted(self, failure: psycopg.OperationalError | None) -> None:
        """Note what came of an attempt to connect."""
        self._failed_at, self._why = time.monotonic(), None if failure is None else describe(failure)

    @property
    def unreachable(self) -> str | None:
        """Why the database cannot be reached at present; None when it can, or was not tried lately."""
        return self._why if time.monotonic() - self._failed_at < UNREACHABLE_FOR_S else None


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

    class Connection(psycopg.AsyncConnection[TupleRow]):
        """A connection whose failed attempts are counted: the pool tries again by itself and tells nobody."""

        @classmethod
        async def connect(cls, conninfo: str = "", **options: Any) -> Self:
            """Connect as psycopg does."""
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
        # The library's own five minutes double its pauses up to minutes, and no other attempt begins meanwhile: a
        # database that is back would be found about as long after as it was away. Each request begins anew instead.
        reconnect_timeout=settings.db_pool_timeout_s,
        check=check,
        open=False,
    )
    return pool


def count_failure(pool: Pool, error: Exception) -> None:
    """Count what went wrong with a connection of the pool, or with getting one; a statement's own errors are not."""
    lost = isinstance(error, psycopg.OperationalError) and (error.sqlstate is None or error.sqlstate[:3] in LOST)
    if lost or isinstance(error, TimeoutError):
        metrics.DB_CONNECTION_ERRORS.of(_name(pool)).inc()


def _name(pool: Pool) -> str:
    options = pool.kwargs if isinstance(pool.kwargs, dict) else {}
    return str(options.get("application_name"))


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
        raise DependencyDown(describe(error, pool)) from error


def describe(error: Exception, pool: Pool | None = None) -> str:
    """Say what went wrong at the database in the words operators search for, without any value of a row.

    psycopg's own text may quote a failing row, so only the class and the SQLSTATE are used. pool: the pool that had no
    connection to lend, which knows why it could not make one.
    """
    if isinstance(error, PoolTimeout):
        return (pool and pool.unreachable) or "Connection timeout: none in the pool"
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        text = str(error).lower()
        return next((told for part, told in UNREACHABLE if part in text), "the database connection was lost")
    if isinstance(error, psycopg.errors.UndefinedTable):
        return "UndefinedTable (SQLSTATE 42P01): the database has no tables of the product; nigredo migrate makes them"
    if isinstance(error, psycopg.Error):
        return f"{type(error).__name__} (SQLSTATE {error.sqlstate})"
    return type(error).__name__
