"""The persister and what happens to databases and workers: leads wait, come, and are there once."""

from __future__ import annotations

import os
import signal
import time

from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, eventually
from schemas.topics import LEADS
from tests.e2e.test_limit_across_workers import second_worker

STORED = "SELECT count(*) FROM nigredo.leads WHERE id = ANY(%s::uuid[])"
AWAY_S = 10.0
TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'nigredo-persister%%' AND pid <> pg_backend_pid()"""


def posted(stack: Stack, count: int) -> list[str]:
    return [stack.post().json()["id"] for _ in range(count)]


def all_stored(stack: Stack, ids: list[str], *, within_s: float = 90) -> None:
    eventually(lambda: stack.rows(STORED, ids) == [(len(ids),)], within_s=within_s, every_s=0.2, what="the leads' rows")


def test_a_database_that_is_away_for_long_is_waited_for_without_a_restart(stack: Stack) -> None:
    all_stored(stack, posted(stack, 3))
    before = stack.status()["parts"]["persister"]
    assert stack.nigredo("stop", "postgres").code == 0
    try:
        # While no lead comes, too.
        eventually(lambda: stack.status()["parts"]["persister"]["waiting_for"], within_s=60, what="what it waits for")
        ids, began = [], time.monotonic()
        while time.monotonic() - began < AWAY_S:
            ids += posted(stack, 1)
            time.sleep(0.2)
        eventually(lambda: stack.status()["parts"]["persister"]["waiting_for"], within_s=60, what="what it waits for")
    finally:
        assert stack.nigredo("start", "postgres").code == 0

    all_stored(stack, ids)
    after = stack.status()["parts"]["persister"]
    assert (after["pid"], after["restarts"]) == (before["pid"], before["restarts"])


def test_connections_that_an_operator_ends_lose_nothing(stack: Stack) -> None:
    ids = []
    for _ in range(5):
        ids += posted(stack, 5)
        stack.rows(TERMINATE)
    all_stored(stack, ids)


def test_a_frozen_persister_that_wakes_up_late_writes_nothing_twice_and_moves_no_offset_back(stack: Stack) -> None:
    all_stored(stack, posted(stack, 3))
    frozen = stack.status()["parts"]["persister"]["pid"]
    with second_worker(stack, "persister"):
        os.kill(frozen, signal.SIGSTOP)
        try:
            ids = posted(stack, 12)
            # Only once its session is over may the other one have its partitions.
            all_stored(stack, ids)
            touched = stack.rows(
                "UPDATE nigredo.leads SET status = 'called' WHERE id = ANY(%s::uuid[]) RETURNING 1", ids
            )
            assert len(touched) == len(ids)
            stood = offsets(stack)
        finally:
            os.kill(frozen, signal.SIGCONT)
        more = posted(stack, 12)
        all_stored(stack, more)

    all_stored(stack, newest := posted(stack, 6))
    assert all(offsets(stack)[partition] >= offset for partition, offset in stood.items())
    called = "SELECT count(*) FROM nigredo.leads WHERE id = ANY(%s::uuid[]) AND status = 'called'"
    assert stack.rows(called, ids) == [(len(ids),)]
    eventually(lambda: committed(stack) == offsets(stack), within_s=60, every_s=0.3, what="the group's own offsets")
    assert stack.rows(STORED, newest) == [(len(newest),)]


def offsets(stack: Stack) -> dict[int, int]:
    return dict(
        stack.rows("SELECT partition, max(next_offset) FROM nigredo.stream_offsets WHERE topic = %s GROUP BY 1", LEADS)
    )


def committed(stack: Stack) -> dict[int, int | None]:
    reader = TopicReader(stack.settings(), "test")
    found = reader.committed("nigredo-persister-dev", LEADS, reader.partitions(LEADS))
    return {partition: offset for partition, offset in found.items() if partition in offsets(stack)}
