"""Known faults of Faust with records and offsets, injected one by one: none loses a record or a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types import TP
from structlog.testing import capture_logs

from nigredo.backoff import Backoff
from nigredo.settings import Settings
from processors.engine import assignment, probe, stream_processor
from processors.engine.faust_app import make_app
from schemas.topics import LEADS
from tests.support.fake_faust import TOPIC, Rig, handled, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_wait_s", lambda _: 0.001)
    monkeypatch.setattr(stream_processor, "SETTLE_S", 0.3)
    monkeypatch.setattr(stream_processor, "COMMIT_AGAIN_S", 0.01)


def test_a_batch_in_flight_when_the_agent_is_cancelled_is_handled_by_the_next_agent() -> None:
    async def scenario() -> Rig:
        rig = Rig(partitions=2)
        begun, never = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            begun.set()
            await never.wait()

        rig.handler.before_work = hang
        rig.deliver(0, 1)
        rig.deliver(0, partition=1)
        agent = rig.start()
        await begun.wait()
        agent.cancel()
        await asyncio.wait({agent})
        rig.handler.before_work = None
        # The seek delivers all records again, in the log's order.
        await until(lambda: len(rig.app.seeks) == 2)
        rig.deliver(0, 1, 2)
        rig.deliver(0, 1, partition=1)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert sorted(rig.app.seeks) == [(TP(TOPIC, 0), 0), (TP(TOPIC, 1), 0)]
    assert rig.handler.done == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert (rig.app.committed(0), rig.app.committed(1)) == (3, 2)


def test_after_a_cancelled_agent_nothing_is_committed_past_its_batch_in_flight() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        begun = asyncio.Event()

        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()

        rig.handler.before_work = hang
        rig.deliver(0, 1)
        agent = rig.start()
        await begun.wait()
        agent.cancel()
        await asyncio.wait({agent})
        rig.handler.before_work = None
        # Faust itself continues with the record after the ones it lost.
        rig.deliver(2, 3)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == []
    assert not rig.app.committed()


def test_while_a_batch_hangs_nothing_behind_it_is_committed() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            begun.set()
            await go_on.wait()

        rig.handler.before_work = hang
        rig.deliver(0)
        agent = rig.start()
        await begun.wait()
        rig.deliver(1, 2, 3)
        await asyncio.sleep(0.05)
        assert not rig.app.committed()
        go_on.set()
        await until(lambda: len(handled(rig)) == 4)
        agent.cancel()
        await rig.app.on_before_shutdown.send()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 2, 3]
    assert rig.app.committed() == 4


def test_records_in_any_order_are_handled_in_the_logs_order_and_none_is_committed_before_its_turn() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(2, 1, 0, 3, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    # 0 is the first record that may be handled; records that came too early come again after the seek.
    assert handled(rig) == [0]
    assert rig.app.committed() == 1
    assert (TP(TOPIC, 0), 0) in rig.app.seeks


def test_commits_that_stop_come_back_by_themselves_without_another_record() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.app.refuse_commits = True
        rig.deliver(0, 1, 2)
        await rig.drain()
        assert not rig.app.committed()
        rig.app.refuse_commits = False
        await until(lambda: rig.app.committed() == 3)
        return rig

    assert handled(asyncio.run(scenario())) == [0, 1, 2]


def test_a_commit_that_failed_never_overtakes_a_later_one() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.app.refuse_commits = True
        rig.deliver(0)
        await rig.drain()
        rig.app.refuse_commits = False
        rig.deliver(1, 2)
        await rig.finish()
        return rig

    assert asyncio.run(scenario()).app.committed() == 3


def test_a_commit_that_failed_is_not_repeated_for_partitions_that_are_gone() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.app.refuse_commits = True
        rig.deliver(0)
        await rig.drain()
        await rig.app.on_partitions_revoked.send()
        rig.app.refuse_commits = False
        await asyncio.sleep(0.05)
        return rig

    assert asyncio.run(scenario()).app.commits == []


def test_a_seek_that_was_undone_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "SEEK_GRACE_S", 0.02)
    monkeypatch.setattr(probe, "EVERY_S", 0.01)

    async def scenario() -> Rig:
        rig = Rig()
        await rig.app.on_rebalance_complete.send()
        rig.deliver(0, 3)
        await rig.drain()
        # No record arrives, although the log has more.
        await until(lambda: len(rig.app.seeks) > 2)
        rig.deliver(1, 2, 3)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert set(rig.app.seeks) == {(TP(TOPIC, 0), 1)}
    assert handled(rig) == [0, 1, 2, 3]


def test_records_left_in_the_queue_by_a_seek_cause_no_second_seek() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(0, 3, 4, 5, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.app.seeks == [(TP(TOPIC, 0), 1)]
    assert handled(rig) == [0, 1, 2]


def gone_on_after(holes: Sequence[int], topic: str) -> tuple[Rig, list[Any]]:
    async def scenario() -> Rig:
        rig = Rig(holes, topic=topic)
        rig.deliver(0, 4)
        await rig.finish()
        return rig

    with capture_logs() as logs:
        rig = asyncio.run(scenario())
    return rig, [line for line in logs if line["log_level"] == "error"]


def test_a_gap_in_a_compacted_topic_is_skipped_without_an_error() -> None:
    rig, errors = gone_on_after([1, 2, 3], LEADS)

    assert handled(rig) == [0, 4]
    assert rig.app.seeks == []
    assert errors == []


def test_a_range_that_was_deleted_before_it_was_read_is_skipped_and_logged_as_a_loss() -> None:
    rig, errors = gone_on_after([1, 2, 3], TOPIC)

    assert handled(rig) == [0, 4]
    assert [(line["offset"], line["next"]) for line in errors] == [(1, 4)]


def test_records_of_a_revoked_partition_are_dropped() -> None:
    async def scenario() -> Rig:
        rig = Rig(partitions=1)
        rig.deliver(0, partition=1)
        rig.deliver(0, partition=0)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.handler.done == [(0, 0)]
    assert list(rig.app.commits[0]) == [TP(TOPIC, 0)]


def test_a_partition_started_elsewhere_than_at_the_groups_offset_commits_its_start() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.start = 7
        await rig.app.on_rebalance_complete.send()
        await until(lambda: rig.app.committed() == 7)
        return rig

    assert asyncio.run(scenario()).app.seeks == [(TP(TOPIC, 0), 7)]


def test_faust_itself_commits_nothing_and_opens_no_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        app = make_app(Settings.from_environment({"NIGREDO_STATE_DIR": str(tmp_path)}), "test")
        sent: list[Any] = []
        consumer = cast(Any, app.consumer)
        consumer._commit = sent.append
        assert await consumer.commit({TP(TOPIC, 0)}) is False
        assert await consumer.commit() is False
        assert sent == []
        assert app.conf.web_enabled is False
        assert app.conf.stream_wait_empty is False

    asyncio.run(scenario())


@pytest.mark.parametrize("suspended", [False, True])
def test_a_record_is_handed_on_at_once_unless_the_flow_is_suspended(tmp_path: Path, *, suspended: bool) -> None:
    async def scenario() -> list[str]:
        app = make_app(Settings.from_environment({"NIGREDO_STATE_DIR": str(tmp_path)}), "test")
        consumer = cast(Any, app.consumer)
        consumer.suspend_flow = SimpleNamespace(is_set=lambda: suspended)
        app.flow_control.resume()
        order: list[str] = []

        async def hand_over() -> None:
            order.append("handed over")

        async def given_up() -> None:
            order.append("waited")
            await asyncio.sleep(10)

        await consumer.wait_first(hand_over(), given_up())
        return order

    assert asyncio.run(scenario()) == (["handed over", "waited"] if suspended else ["handed over"])
