"""Acknowledging in order: seeded with what Faust is known to do, nothing is lost and nothing is committed too early.

Faust itself is played here by a few lines that hand over events; the real one runs in the end-to-end tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types import TP

from nigredo.errors import DependencyDown, RecordRefused
from nigredo.health import Health
from nigredo.record import Record
from processors import in_order
from processors.in_order import Decoded, InOrder, Stale
from schemas.events import Event

TOPIC = "nigredo.submissions"


class Signal:
    def __init__(self) -> None:
        self.send: Callable[[], Awaitable[None]]

    def connect(self, receiver: Callable[[], Awaitable[None]]) -> None:
        self.send = receiver


class FakeApp:
    """As much of a Faust app as `InOrder` uses."""

    def __init__(self, partitions: int = 1) -> None:
        self.conf = SimpleNamespace(id="group")
        self.on_partitions_revoked = Signal()
        self.on_rebalance_complete = Signal()
        self.on_before_shutdown = Signal()
        self.consumer = self
        self.commits: list[dict[TP, int]] = []
        self.seeks: list[tuple[TP, int]] = []
        self.partitions = partitions
        self.agent_function: Callable[[Any], Awaitable[None]]

    def topic(self, *_: str, **__: Any) -> None:
        return None

    def agent(self, *_: Any, **__: Any) -> Callable[[Callable[[Any], Awaitable[None]]], None]:
        def register(function: Callable[[Any], Awaitable[None]]) -> None:
            self.agent_function = function

        return register

    def assignment(self) -> set[TP]:
        return {TP(TOPIC, number) for number in range(self.partitions)}

    async def seek_wait(self, offsets: dict[TP, int]) -> None:
        self.seeks += offsets.items()

    async def _commit(self, offsets: dict[TP, int]) -> bool:
        self.commits.append(offsets)
        return True

    def committed(self, partition: int = 0) -> int | None:
        found = [offsets[tp] for offsets in self.commits for tp in offsets if tp.partition == partition]
        return found[-1] if found else None


class FakeLog:
    """A log with every offset from 0 to 99, but for the holes that compaction left."""

    def __init__(self, holes: Sequence[int] = ()) -> None:
        self.holes = set(holes)

    def committed(self, _: str, __: str, partitions: Sequence[int]) -> dict[int, int | None]:
        return dict.fromkeys(partitions, 0)

    def partitions(self, _: str) -> list[int]:
        return [0]

    def watermarks(self, _: str, __: int) -> tuple[int, int]:
        return (0, 100)

    def next_offset(self, _: str, __: int, offset: int, *, deadline_s: float) -> int:
        return next(n for n in range(offset, 101) if n not in self.holes)


class FakeStream:
    """Hands events over; `empty` when the queue holds no more."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.channel = self

    def empty(self) -> bool:
        return self.queue.empty() or self.queue._queue[0] is None  # type: ignore[attr-defined]

    def noack(self) -> FakeStream:
        return self

    async def events(self) -> Any:
        while True:
            event = await self.queue.get()
            if event is None:
                return
            yield event


class Recorder:
    """A handler that remembers; `trouble` is raised, one a call, before anything is done."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.parked: list[tuple[int, str]] = []
        self.trouble: list[BaseException] = []
        self.start = 0
        self.poison: set[int] = set()
        self.undecodable: set[int] = set()
        self.unforeseen: set[int] = set()
        self.before_work: Callable[[], Awaitable[None]] | None = None

    async def open(self) -> None:
        pass

    async def begin(self, topic: str, partition: int, committed: int | None) -> int:
        return self.start

    async def decode(self, record: Record) -> Event | None:
        if record.offset in self.unforeseen:
            raise KeyError("what nobody thought of")
        if record.offset in self.undecodable:
            raise RecordRefused("undecodable", "no event")
        return None

    async def work(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        if self.before_work is not None:
            await self.before_work()
        if not still_ours():
            raise Stale
        if self.trouble:
            raise self.trouble.pop(0)
        if any(record.offset in self.poison for record, _ in records):
            raise ZeroDivisionError
        self.done += [(record.partition, record.offset) for record, _ in records]

    async def park(self, record: Record, reason: str, error: str) -> None:
        self.parked.append((record.offset, reason))

    async def close(self) -> None:
        pass


class Rig:
    """An `InOrder` with everything around it played."""

    def __init__(self, holes: Sequence[int] = (), partitions: int = 1) -> None:
        self.app, self.stream, self.handler = FakeApp(partitions), FakeStream(), Recorder()
        self.health = Health("test")
        self.acked: list[int] = []
        InOrder(cast(Any, self.app), cast(Any, FakeLog(holes)), self.health, [TOPIC], self.handler)

    def deliver(self, *offsets: int, partition: int = 0) -> None:
        for offset in offsets:
            message = SimpleNamespace(
                tp=TP(TOPIC, partition), topic=TOPIC, partition=partition, offset=offset,
                timestamp=1_700_000_000.0, key=b"k", value=b"v", headers=[],
            )  # fmt: skip
            event = SimpleNamespace(message=message, ack=lambda o=offset: self.acked.append(o))
            self.stream.queue.put_nowait(event)

    async def finish(self) -> None:
        """Run until everything delivered was taken and committed."""
        self.stream.queue.put_nowait(None)
        await asyncio.wait_for(cast(Any, self.app.agent_function(self.stream)), 20)
        await self.app.on_before_shutdown.send()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the code under test tells nobody
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_order.Backoff, "next_wait_s", lambda _: 0.001)
    monkeypatch.setattr(in_order, "SETTLE_S", 0.3)


def handled(rig: Rig) -> list[int]:
    return [offset for _, offset in rig.handler.done]


def test_records_are_handled_in_order_and_then_committed() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 2]
    assert rig.app.committed() == 3
    assert rig.acked == [0, 1, 2]


def test_what_is_delivered_twice_is_handled_once() -> None:
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


def test_a_hole_that_compaction_left_is_no_skipped_record() -> None:
    async def scenario() -> Rig:
        rig = Rig(holes=[2, 3])
        rig.deliver(0, 1, 4, 5)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 4, 5]
    assert rig.app.seeks == []
    assert rig.app.committed() == 6


def test_a_dependency_that_is_away_loses_nothing_and_commits_nothing() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.trouble = [DependencyDown("away")] * 4
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1, 2]
    assert rig.handler.parked == []
    assert [max(offsets.values()) for offsets in rig.app.commits] == [3]


def test_an_exception_in_the_middle_of_a_batch_is_found_parked_and_the_others_are_handled() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.poison = {1}
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 2]
    assert rig.handler.parked == [(1, "failed")]
    assert rig.app.committed() == 3


def test_a_record_that_cannot_be_decoded_is_parked_at_once() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.undecodable = {0}
        rig.deliver(0, 1)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.handler.parked == [(0, "undecodable")]
    assert handled(rig) == [1]


def test_a_record_that_breaks_the_decoder_itself_stops_nothing() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.unforeseen = {1}
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.handler.parked == [(1, "failed")]
    assert handled(rig) == [0, 2]
    assert rig.app.committed() == 3


def test_a_broken_release_parks_a_few_records_and_then_waits_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_order, "FAILED_IN_A_ROW_MAX", 3)

    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.unforeseen = set(range(10))
        rig.deliver(*range(10))
        working = asyncio.ensure_future(rig.app.agent_function(rig.stream))
        await until(lambda: "a person" in (rig.health.waiting_for or ""))
        working.cancel()
        await asyncio.wait({working})
        return rig

    rig = asyncio.run(scenario())
    assert [offset for offset, _ in rig.handler.parked] == [0, 1, 2]
    assert rig.app.commits == []


def test_a_rebalance_waits_for_the_batch_in_hand_so_that_it_is_not_done_twice() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        begun = asyncio.Event()

        async def slow() -> None:
            begun.set()
            await asyncio.sleep(0.05)

        rig.handler.before_work = slow
        rig.deliver(0, 1)
        rig.stream.queue.put_nowait(None)
        working = asyncio.ensure_future(rig.app.agent_function(rig.stream))
        await begun.wait()
        await rig.app.on_partitions_revoked.send()
        await working
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [0, 1]
    assert rig.app.committed() == 2


def test_a_rebalance_in_the_middle_of_a_batch_drops_it_whole() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.before_work = rig.app.on_partitions_revoked.send
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == []
    assert rig.app.commits == []


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
        rig.stream.queue.put_nowait(None)
        await cast(Any, rig.app.agent_function(rig.stream))
        assert len(rig.handler.done) == count

    assert handled(asyncio.run(scenario())) == [0, 1, 2]


def test_work_that_finds_somebody_else_at_it_begins_the_partition_afresh() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.trouble = [Stale()]
        rig.deliver(0)
        rig.stream.queue.put_nowait(None)
        await cast(Any, rig.app.agent_function(rig.stream))
        await until(lambda: bool(rig.app.seeks))
        rig.deliver(0)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.app.seeks == [(TP(TOPIC, 0), 0)]
    assert handled(rig) == [0]


def test_a_partition_of_which_the_database_is_behind_is_sought_back_even_without_a_record() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.start = 5
        await rig.app.on_rebalance_complete.send()
        await until(lambda: rig.health.waiting_for is None)
        return rig

    assert asyncio.run(scenario()).app.seeks == [(TP(TOPIC, 0), 5)]


def test_partitions_are_committed_each_by_itself() -> None:
    async def scenario() -> Rig:
        rig = Rig(partitions=2)
        rig.deliver(0, 1, partition=0)
        rig.deliver(0, partition=1)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert (rig.app.committed(0), rig.app.committed(1)) == (2, 1)
