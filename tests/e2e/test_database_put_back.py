"""A database that was put back in time, as a restored backup is, catches up from the topics by itself."""

from __future__ import annotations

from nigredo.testing import Stack, eventually

BACK = "UPDATE nigredo.stream_offsets SET next_offset = 0 RETURNING 1"
LOSE = "DELETE FROM nigredo.leads WHERE id = ANY(%s::uuid[]) RETURNING 1"
STORED = "SELECT count(*) FROM nigredo.leads WHERE id = ANY(%s::uuid[])"
LEADS = 12


def taken_and_stored(stack: Stack) -> list[str]:
    ids = [stack.post().json()["id"] for _ in range(LEADS)]
    eventually(lambda: stack.rows(STORED, ids) == [(LEADS,)], within_s=60, what="the leads' rows")
    return ids


def put_back(stack: Stack, ids: list[str]) -> None:
    assert len(stack.rows(LOSE, ids)) == LEADS
    assert stack.rows(BACK)


def test_while_the_persister_was_stopped(stack: Stack) -> None:
    ids = taken_and_stored(stack)
    assert stack.nigredo("stop", "persister").code == 0
    try:
        put_back(stack, ids)
    finally:
        assert stack.nigredo("start", "persister").code == 0

    eventually(lambda: stack.rows(STORED, ids) == [(LEADS,)], within_s=60, what="the lost rows, without a new record")


def test_under_a_running_persister(stack: Stack) -> None:
    ids = taken_and_stored(stack)
    put_back(stack, ids)

    def again() -> bool:
        # A partition is found behind when the next record of it comes.
        stack.post()
        return stack.rows(STORED, ids) == [(LEADS,)]

    eventually(again, within_s=60, every_s=0.1, what="the lost rows")
    newest = stack.post().json()["id"]
    eventually(lambda: stack.rows(STORED, [newest]) == [(1,)], within_s=60, what="the work going on")
