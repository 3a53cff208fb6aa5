"""A pool whose sessions were ended, all at once, gives good ones at the next call."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace

from psycopg_pool import PoolTimeout

from nigredo.postgres.pool import make_pool
from nigredo.testing import Stack, eventually
from tests.e2e.test_kill_idle import KILL_IDLE

SESSIONS = 8


def end_idle_sessions(stack: Stack, pids: set[int]) -> None:
    standing = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"

    def ended() -> bool:
        with stack.database() as database:
            database.execute(KILL_IDLE)
        return stack.rows(standing, list(pids)) == [(0,)]

    eventually(ended, within_s=60, every_s=0.1, what="the end of all of them")


def test_sessions_that_an_operator_ended_are_all_found_dead_at_once(stack: Stack) -> None:
    async def scenario() -> tuple[int, float]:
        pool = make_pool(stack.settings(), "test", size_max=SESSIONS)
        await pool.open()
        try:
            held = [await pool.getconn() for _ in range(SESSIONS)]
            for connection in held:
                await pool.putconn(connection)
            pids = {connection.info.backend_pid for connection in held}
            await asyncio.to_thread(end_idle_sessions, stack, pids)
            begun = time.monotonic()
            async with pool.connection() as connection:
                await connection.execute("SELECT 1")
            return len(pids), time.monotonic() - begun
        finally:
            await pool.close()

    found, took_s = asyncio.run(scenario())

    assert found == SESSIONS
    # One by one, the pool's own waits would add up to 2 s at the third of them, and that is where it gives up.
    assert took_s < stack.settings().db_pool_timeout_s


def test_a_database_that_was_away_is_found_by_the_next_request_and_not_after_a_pause_as_long(stack: Stack) -> None:
    """The library doubles the pauses of one attempt; an attempt must be over before they grow."""

    async def scenario() -> float:
        settings = stack.settings()
        away = replace(settings, database_url=f"{settings.database_url} port=1")
        pool = make_pool(away, "test", size_max=1)
        await pool.open()
        try:
            deadline = time.monotonic() + 4 * settings.db_pool_timeout_s
            while time.monotonic() < deadline:
                with suppress(PoolTimeout):
                    await pool.getconn()
            pool.conninfo = settings.database_url  # It is back.
            begun = time.monotonic()
            while True:
                try:
                    async with pool.connection():
                        return time.monotonic() - begun
                except PoolTimeout:
                    assert time.monotonic() - begun < 60
        finally:
            await pool.close()

    # With the library's own patience the next attempt would come up to 8 s later.
    assert asyncio.run(scenario()) < 6
