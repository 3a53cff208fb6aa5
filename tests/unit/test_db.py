"""What is told of the database's troubles: the words operators search for, and nothing of a row."""

from __future__ import annotations

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from nigredo.db import describe


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (psycopg.OperationalError("connection refused"), "ECONNREFUSED: the database refuses connections"),
        (psycopg.OperationalError("connection timed out"), "Connection timeout"),
        (PoolTimeout("couldn't get a connection after 2.00 sec"), "Connection timeout: none in the pool"),
        (psycopg.OperationalError("server closed the connection"), "the database connection was lost"),
        (psycopg.errors.UniqueViolation("Key (email)=(ana@example.com)"), "UniqueViolation (SQLSTATE 23505)"),
        (KeyError("ana@example.com"), "KeyError"),
    ],
)
def test_a_trouble_has_its_name_and_no_value(error: Exception, told: str) -> None:
    assert describe(error) == told
