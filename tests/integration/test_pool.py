"""A pool whose sessions were ended, all at once, gives good ones at the next call."""

from __future__ import annotations

import asyncio
import time

from nigredo.db import make_pool
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
