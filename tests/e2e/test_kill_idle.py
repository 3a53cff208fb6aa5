"""The runbook's statement against idle sessions, again and again while forms flow: nothing is lost, nothing stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import psycopg
import pytest

from nigredo.testing import Stack, any_ipv4_client, eventually
from tests.e2e.test_control import post

# As it stands there, with no patience left.
KILL_IDLE = b"""
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE datname = 'fibonacci'
  AND state = 'idle'
  AND state_change < NOW() - INTERVAL '0 minutes'
"""
FORMS, PAGES, MEANWHILE_S = 60, 3, 10.0


@contextmanager
def killing_idle_sessions(stack: Stack) -> Iterator[list[int]]:
    """Run the statement once a second in a session of its own; yield how many sessions each run ended."""
    ended, stop = list[int](), threading.Event()

    def run() -> None:
        with stack.database() as database:
            while not stop.is_set():
                ended.append(len(database.execute(KILL_IDLE).fetchall()))
                stop.wait(1.0)

    killer = threading.Thread(target=run)
    killer.start()
    try:
        yield ended
    finally:
        stop.set()
        killer.join(20)
        assert not killer.is_alive()


def rows(stack: Stack, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Look although our own session may be the one that is ended."""
    with suppress(psycopg.OperationalError):
        return stack.rows(query, *values)
    return []


def page(stack: Stack) -> int:
    token = {"Authorization": f"Bearer {stack.home.secret('api-key')}"}
    return httpx.get(f"{stack.url}/api/leads?limit=1", headers=token, timeout=20).status_code


@pytest.mark.thorough
def test_persister_reset_and_reads_go_on_while_idle_sessions_are_ended(stack: Stack) -> None:
    limited, restarts = any_ipv4_client(), stack.status()["parts"]["persister"]["restarts"]
    with killing_idle_sessions(stack) as ended:
        begun, ids = time.monotonic(), []
        while len(ids) < FORMS or time.monotonic() - begun < MEANWHILE_S:
            ids.append(post(stack, any_ipv4_client()).json()["id"])
        for _ in range(PAGES):
            eventually(lambda: page(stack) == 200, within_s=60, what="a page of leads")
        assert [post(stack, limited).status_code for _ in range(11)] == [202] * 10 + [429]
        delete = "DELETE FROM nigredo.rate_limits WHERE ip_address = %s RETURNING 1"
        eventually(lambda: rows(stack, delete, limited), within_s=60, what="the network's row")
        eventually(lambda: post(stack, limited).status_code == 202, within_s=60, what="a free network")
        stored = "SELECT count(*) FROM nigredo.leads WHERE id = ANY(%s::uuid[])"
        eventually(lambda: rows(stack, stored, ids) == [(len(ids),)], within_s=60, what="every lead's row")

    assert sum(ended) > 10, "nothing was ended: this proved nothing"
    assert stack.status()["parts"]["persister"]["restarts"] == restarts
    eventually(lambda: stack.status()["ready"], within_s=60, every_s=0.5, what="a stack that is ready")
