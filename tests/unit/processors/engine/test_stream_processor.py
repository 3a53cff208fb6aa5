"""Stream processor: records are handled in the log's order, and only handled records are committed.

Faust is a fake (`tests/support/fake_faust.py`); the real one runs in the end-to-end tests.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from faust.types import TP

from nigredo.backoff import Backoff
from nigredo.log_position import LogPosition, PositionRefused
from processors.engine import stream_processor
from processors.engine.handler import AssignmentLost
from tests.support.fake_faust import TOPIC, Rig, handled, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_wait_s", lambda _: 0.001)
    monkeypatch.setattr(stream_processor, "SETTLE_S", 0.3)


def test_records_are_handled_in_order_and_then_committed() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 2]
    assert rig.app.committed() == 3


def test_under_a_backlog_a_batch_is_filled_over_several_turns_of_the_event_loop() -> None:
    async def scenario() -> Rig:
        rig = Rig()

        async def hand_on() -> None:
            for start in range(0, 90, 10):
                rig.deliver(*range(start, start + 10))
                await asyncio.sleep(0)

        handing_on = asyncio.create_task(hand_on())
        await asyncio.sleep(0)  # Give it a turn, because a stream that is ended and empty stops.
        await rig.finish()
        await handing_on
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == list(range(90))
    assert rig.handler.batches == [90]


def test_a_batch_is_over_once_it_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_processor, "BATCH_MAX_BYTES", 10)

    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(*range(25))
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == list(range(25))
    assert rig.handler.batches == [10, 10, 5]


def test_a_record_of_a_new_assignment_is_not_added_to_a_batch_of_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    really_sleep = asyncio.sleep

    async def scenario() -> Rig:
        rig, turns = Rig(), 0

        async def sleep(delay: float) -> None:
            nonlocal turns
            turns += delay == 0
            if turns == 1:
                turns += 1
                await rig.app.on_partitions_revoked.send()
                await rig.app.on_rebalance_complete.send()
                rig.deliver(0, 1)
            await really_sleep(delay)

        monkeypatch.setattr(asyncio, "sleep", sleep)
        rig.deliver(0)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1]
    assert rig.app.seeks == []


def test_a_record_delivered_twice_is_handled_once() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(0, 1, 0, 1, 2)
        await rig.finish()
        return rig

    assert handled(asyncio.run(scenario())) == [0, 1, 2]


def test_a_record_that_faust_skipped_is_sought_back_and_nothing_is_committed_past_it() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(0, 1, 4, 5)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1]
    assert (TP(TOPIC, 0), 2) in rig.app.seeks
    assert rig.app.committed() == 2


def test_a_gap_left_by_compaction_is_no_skipped_record() -> None:
    async def scenario() -> Rig:
        rig = Rig(holes=[2, 3])
        rig.deliver(0, 1, 4, 5)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 4, 5]
    assert rig.app.seeks == []
    assert rig.app.committed() == 6


def test_a_rebalance_waits_for_the_batch_in_flight_so_that_it_is_not_processed_twice() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        begun = asyncio.Event()

        async def slow() -> None:
            begun.set()
            await asyncio.sleep(0.05)

        rig.handler.before_work = slow
        rig.deliver(0, 1)
        rig.stream.ended = True
        working = rig.start()
        await begun.wait()
        await rig.app.on_partitions_revoked.send()
        await working
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1]
    assert rig.app.committed() == 2


def test_the_handler_releases_its_partitions_once_the_batch_in_flight_is_done() -> None:
    async def scenario() -> list[int]:
        rig, found = Rig(), list[int]()

        async def slow() -> None:
            await asyncio.sleep(0.05)
            found.append(rig.handler.revocations)

        rig.handler.before_work = slow
        rig.deliver(0)
        rig.stream.ended = True
        working = rig.start()
        await until(lambda: not rig.in_order._idle.is_set())
        await rig.app.on_partitions_revoked.send()
        await working
        return [*found, rig.handler.revocations]

    assert asyncio.run(scenario()) == [0, 1]


def test_a_rebalance_in_the_middle_of_a_batch_drops_it_whole() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.before_work = rig.app.on_partitions_revoked.send
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == []
    assert rig.app.committed() == 0


def test_after_a_rebalance_the_stream_goes_on_where_the_handler_says() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(0, 1)
        await asyncio.wait_for(until_handled(rig, 2), 5)
        await rig.app.on_partitions_revoked.send()
        rig.handler.start = 2
        await rig.app.on_rebalance_complete.send()
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    async def until_handled(rig: Rig, count: int) -> None:
        await rig.drain()
        assert len(rig.handler.done) == count

    assert handled(asyncio.run(scenario())) == [0, 1, 2]


def test_a_batch_that_another_worker_already_processed_restarts_its_partition() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.trouble = [AssignmentLost()]
        rig.deliver(0)
        await rig.drain()
        await until(lambda: bool(rig.app.seeks))
        rig.deliver(0)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.app.seeks == [(TP(TOPIC, 0), 0)]
    assert handled(rig) == [0]


def test_a_partition_whose_database_offset_is_behind_is_sought_back_even_without_a_record() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.start = 5
        await rig.app.on_rebalance_complete.send()
        await until(lambda: rig.health.waiting_for is None)
        return rig

    assert asyncio.run(scenario()).app.seeks == [(TP(TOPIC, 0), 5)]


def test_a_refused_position_is_committed_as_the_handler_asks() -> None:
    """A position without a proof would be believed as soon as the log has grown past it."""
    keep = LogPosition(5, "first", past_end=True)

    async def scenario() -> Rig:
        rig = Rig()

        async def begin(*_: object) -> LogPosition:
            raise PositionRefused("its tail was lost", keep)

        rig.handler.begin = begin  # type: ignore[method-assign]
        await rig.app.on_rebalance_complete.send()
        await until(lambda: bool(rig.in_order.assignment._stopped))
        return rig

    assert asyncio.run(scenario()).app.position() == keep


def test_partitions_revoked_while_their_log_is_in_doubt_wait_for_the_next_assignment() -> None:
    async def scenario() -> bool:
        rig = Rig()
        await rig.app.on_rebalance_complete.send()
        await until(lambda: rig.health.waiting_for is None)
        rig.in_order._idle.clear()
        restarting = asyncio.ensure_future(rig.in_order._restart_partitions())
        await asyncio.sleep(0)
        rig.in_order.assignment.revoked()
        rig.in_order._idle.set()
        await restarting
        return rig.in_order.positions is None

    assert asyncio.run(scenario())


def test_partitions_are_committed_each_by_itself() -> None:
    async def scenario() -> Rig:
        rig = Rig(partitions=2)
        rig.deliver(0, 1, partition=0)
        rig.deliver(0, partition=1)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert (rig.app.committed(0), rig.app.committed(1)) == (2, 1)


def test_a_commit_that_fails_late_does_not_put_the_group_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_processor, "COMMIT_EVERY_S", 0.01)
    monkeypatch.setattr(stream_processor, "COMMIT_AGAIN_S", 0.001)

    async def scenario() -> Rig:
        rig = Rig()
        succeed, first = rig.app.commit, asyncio.Event()

        async def fails_late(offsets: dict[TP, Any]) -> None:
            rig.app.commit = succeed  # type: ignore[method-assign]
            first.set()
            await asyncio.sleep(0.2)
            raise ConnectionError

        rig.deliver(0)
        await rig.drain()
        rig.app.commit = fails_late  # type: ignore[method-assign]
        rig.deliver(1)
        await rig.drain()  # Soon after the last commit, so this commit is scheduled.
        await first.wait()
        await asyncio.sleep(0.02)
        rig.deliver(2)
        await rig.drain()
        await until(lambda: rig.app.committed() == 3)
        await asyncio.sleep(0.3)  # Time for the failed commit to be retried, if it is.
        await rig.finish()
        return rig

    assert asyncio.run(scenario()).app.committed() == 3


def test_a_restarted_partition_is_not_overwritten_by_a_start_that_was_still_running() -> None:
    """The agent is cancelled while it waits for a partition; Faust starts it again in the same assignment."""

    async def scenario() -> Rig:
        rig = Rig()
        slow, over, asked = asyncio.Event(), asyncio.Event(), 0

        async def begin(*_: object) -> LogPosition:
            nonlocal asked
            asked += 1
            if asked == 1:
                try:
                    await slow.wait()
                finally:
                    over.set()
            return LogPosition(0, "first")

        rig.handler.begin = begin  # type: ignore[method-assign]
        rig.deliver(0)
        first = rig.start()
        await until(lambda: asked == 1)
        first.cancel()
        await asyncio.wait({first})
        rig.deliver(0, 1, 2)
        second = rig.start()
        await until(lambda: handled(rig) == [0, 1, 2])
        slow.set()
        await until(over.is_set)
        rig.deliver(3)
        await until(lambda: 3 in handled(rig))
        second.cancel()
        await asyncio.wait({second})
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 2, 3]
    assert all(offset == 0 for _, offset in rig.app.seeks)
    assert len(rig.app.seeks) == 1
