"""Texts of database errors: in words operators search for, and without any value of a row."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from nigredo.errors import DependencyDown
from nigredo.postgres.pool import describe, make_pool, transaction
from nigredo.settings import Settings


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (psycopg.OperationalError("connection refused"), "ECONNREFUSED: the database refuses connections"),
        (psycopg.OperationalError("connection timed out"), "Connection timeout: the database does not answer"),
        (
            psycopg.OperationalError("failed to resolve host 'db': [Errno -2] Name"),
            "ENOTFOUND: the database's host name is not known",
        ),
        (
            psycopg.OperationalError('FATAL: password authentication failed for user "ana"'),
            "the database refuses the password, or none was found",
        ),
        (psycopg.OperationalError("FATAL: sorry, too many clients already"), "the database has no connection left"),
        (PoolTimeout("couldn't get a connection after 2.00 sec"), "Connection timeout: none in the pool"),
        (psycopg.OperationalError("server closed the connection"), "the database connection was lost"),
        (psycopg.errors.UniqueViolation("Key (email)=(ana@example.com)"), "UniqueViolation (SQLSTATE 23505)"),
        (
            psycopg.errors.UndefinedTable('relation "nigredo.leads" does not exist'),
            "UndefinedTable (SQLSTATE 42P01): the database has no tables of the product; nigredo migrate makes them",
        ),
        (KeyError("ana@example.com"), "KeyError"),
    ],
)
def test_an_error_text_has_a_name_and_no_value(error: Exception, text: str) -> None:
    assert describe(error) == text


def reading(port: int) -> str:
    """Return the error text of the second of two transactions in a row at a database on this port."""

    async def scenario() -> str:
        settings = Settings.from_environment({"DATABASE_URL": f"postgresql://nigredo@127.0.0.1:{port}/fibonacci"})
        pool = make_pool(replace(settings, db_pool_timeout_s=0.5), "persister")
        await pool.open()
        try:
            for _ in range(2):
                with pytest.raises(DependencyDown) as raised:
                    async with transaction(pool, deadline_s=20):
                        pass
        finally:
            await pool.close(timeout=1)
        return str(raised.value)

    return asyncio.run(scenario())


def test_a_pool_too_reports_that_the_database_refuses_connections() -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))

        assert reading(nobody_listens.getsockname()[1]) == "ECONNREFUSED: the database refuses connections"


def test_a_database_that_does_not_answer_is_reported_as_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert reading(silent.getsockname()[1]).startswith("Connection timeout: ")


def test_a_pool_that_could_connect_meanwhile_is_only_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(Settings.from_environment({}), "persister")
    pool.noted(psycopg.OperationalError("connection refused"))
    assert describe(PoolTimeout("none"), pool).startswith("ECONNREFUSED")

    pool.noted(None)

    assert describe(PoolTimeout("none"), pool) == "Connection timeout: none in the pool"
    pool.noted(psycopg.OperationalError("connection refused"))
    monkeypatch.setattr("nigredo.postgres.pool.UNREACHABLE_FOR_S", 0.0)
    assert describe(PoolTimeout("none"), pool) == "Connection timeout: none in the pool"
