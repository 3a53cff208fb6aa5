"""The promise behind every 202: kill -9 of everything, in the middle of everything, loses nothing."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import psutil
import pytest

from nigredo.testing import Stack, any_client, eventually, running_stack

POSTS = 500
AT_ONCE = 16
KILL_AFTER = 200
"""Kill when this many were answered 202: the rest is under way or still to come."""


def kill_everything(stack: Stack) -> None:
    """Kill the supervisor first, so that it restarts nothing, then all it started."""
    family = stack.family()
    for process in family:
        with suppress(psutil.NoSuchProcess):  # A short-lived one, such as a worker of PostgreSQL, or another's child.
            process.kill()
    psutil.wait_procs(family, timeout=20)


@pytest.mark.embedded
def test_every_202_survives_kill_9_of_every_process() -> None:
    with running_stack() as stack:
        accepted: list[str] = []
        enough = threading.Event()
        dead = threading.Event()

        def post(_: int) -> None:
            if dead.is_set():
                return
            try:
                answer = stack.post(any_client())
            except httpx.HTTPError:
                return
            if answer.status_code == 202:
                accepted.append(answer.json()["id"])
                if len(accepted) >= KILL_AFTER:
                    enough.set()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            posts = pool.map(post, range(POSTS))
            assert enough.wait(180), "the stack is too slow for this test to mean anything"
            kill_everything(stack)
            dead.set()
            list(posts)
        assert KILL_AFTER <= len(accepted) < POSTS

        again = stack.nigredo("up", "--detach")

        assert again.code == 0, again.err
        stored = eventually(
            lambda: found if set(accepted) <= set(found := ids(stack, "nigredo.leads", "id")) else None,
            within_s=60,
            what="a row for every 202",
        )
        assert len(set(stored)) == len(stored)
        delivered = eventually(
            lambda: found if set(accepted) <= set(found := webhook_ids(stack)) else None,
            within_s=60,
            what="a webhook for every 202",
        )
        bodies = {(hook["headers"]["webhook-id"], hook["body"]) for hook in stack.received()}
        assert len(bodies) == len(dict(bodies)), "a repeated webhook must have the same body"
        assert max(Counter(delivered).values()) <= 2


def ids(stack: Stack, table: str, column: str) -> list[str]:
    return [str(row[0]) for row in stack.rows(f"SELECT {column} FROM {table}")]


def webhook_ids(stack: Stack) -> list[str]:
    return [hook["headers"]["webhook-id"] for hook in stack.received()]
