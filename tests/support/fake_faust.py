"""Fakes of Faust, its log and a handler, so that a test can inject faults that are rare in the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from faust.types import TP

from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka.parking import Before, Bounds, Parking
from nigredo.kafka.positions.log_watch import PartitionObservation
from nigredo.kafka.record import Record
from nigredo.log_position import LogNow, LogPosition, Mark, PositionRefused, compare, from_metadata
from nigredo.observability.health import Health
from processors.engine.handler import AssignmentLost, Decoded
from processors.engine.stream_processor import StreamProcessor
from schemas.events import Event

TOPIC = "nigredo.submissions"
TIMESTAMP_MS = 1_700_000_000_000
BOUNDS = Bounds(in_a_row_max=20, share_max=0.25)


class Signal:
    def __init__(self) -> None:
        self.send: Callable[[], Awaitable[None]]

    def connect(self, receiver: Callable[[], Awaitable[None]]) -> None:
        self.send = receiver


class FakeApp:
    """The part of a Faust app that `StreamProcessor` uses."""

    def __init__(self, partitions: int = 1, topic: str = TOPIC) -> None:
        self.topic_name = topic
        self.conf = SimpleNamespace(id="group")
        self.on_partitions_revoked = Signal()
        self.on_rebalance_complete = Signal()
        self.on_before_shutdown = Signal()
        self.consumer = self._thread = self
        self.commits: list[dict[TP, LogPosition]] = []
        self.seeks: list[tuple[TP, int]] = []
        self.partitions = partitions
        self.refuse_commits = False
        self.agent_function: Callable[[Any], Awaitable[None]]

    def topic(self, *_: str, **__: Any) -> None:
        return None

    def agent(self, *_: Any, **__: Any) -> Callable[[Callable[[Any], Awaitable[None]]], None]:
        def register(function: Callable[[Any], Awaitable[None]]) -> None:
            self.agent_function = function

        return register

    def assignment(self) -> set[TP]:
        return {TP(self.topic_name, number) for number in range(self.partitions)}

    async def seek_wait(self, offsets: dict[TP, int]) -> None:
        self.seeks += offsets.items()

    def highwater(self, _: TP) -> int | None:
        return None

    def _ensure_consumer(self) -> FakeApp:
        return self

    async def call_thread(self, call: Callable[[], Awaitable[bool]]) -> bool:
        return await call()

    async def commit(self, offsets: dict[Any, Any]) -> None:
        if self.refuse_commits:
            raise ConnectionError
        self.commits.append({tp: from_metadata(at.offset, at.metadata)[0] for tp, at in offsets.items()})

    def position(self, partition: int = 0) -> LogPosition | None:
        """Return the position that the group last committed for a partition; None without one."""
        found = [offsets[tp] for offsets in self.commits for tp in offsets if tp.partition == partition]
        return found[-1] if found else None

    def committed(self, partition: int = 0) -> int | None:
        found = self.position(partition)
        return None if found is None else found.next_offset


class FakeLog:
    """A log with every offset from 0 to its end, except for the gaps that compaction left (`holes`).

    A record's key shows which log it belongs to: `cut` starts another log at an offset, as a lost tail does.
    """

    def __init__(self, app: FakeApp, holes: Sequence[int] = ()) -> None:
        self._app = app
        self.holes = set(holes)
        self.topic_id = "first"
        self.start, self.end, self.epoch = 0, 100, 0
        self.keys: dict[int, bytes] = {}
        self.topics = [app.topic_name]
        self.missing: list[str] = []
        self.unassigned: list[tuple[str, int]] = []
        self.away = False
        self.confirmed = 0

    def key(self, offset: int) -> bytes:
        return self.keys.get(offset, b"k")

    def cut(self, end: int, grown_to: int) -> None:
        """Replace the tail from offset `end` by another one that ends at `grown_to`, as after a broker's crash."""
        self.keys |= dict.fromkeys(range(end, 200), b"other")
        self.end, self.epoch = grown_to, self.epoch + 1

    def positions(self, _: str, __: str, partitions: Sequence[int]) -> dict[int, LogPosition | None]:
        return {partition: self._app.position(partition) or LogPosition(0) for partition in partitions}

    def watermarks(self, _: str, __: int) -> tuple[int, int]:
        return (self.start, self.end)

    def next_offset(self, _: str, __: int, offset: int, *, deadline_s: float) -> int:
        return next(n for n in range(offset, 201) if n not in self.holes)

    def now(self, _: str, __: int, asks_at: int, *, deadline_s: float) -> LogNow:
        found = next((n for n in range(max(self.start, asks_at), self.end) if n not in self.holes), None)
        mark = None if found is None else Mark.of(found, TIMESTAMP_MS, self.key(found), self.epoch)
        return LogNow(self.topic_id, self.start, self.end, mark)

    def look(self) -> PartitionObservation:
        if self.away:
            raise DependencyDown("Kafka does not answer")
        return PartitionObservation(self.missing, self.unassigned)

    def disproved(self, positions: Mapping[TP, Sequence[LogPosition]]) -> dict[TP, LogPosition]:
        found = {}
        for tp, kept in positions.items():
            for position in kept:
                if not compare(position, self.now(*tp, position.asks_at, deadline_s=1)).believed:
                    found[tp] = position
                    break
        self.confirmed += not found
        return found

    def close(self) -> None:
        pass


class FakeStream:
    """A stream that delivers queued events until it is `ended` and empty."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.channel = self
        self.ended = False

    def noack(self) -> FakeStream:
        return self

    async def events(self) -> Any:
        while not (self.ended and self.queue.empty()):
            try:
                yield await asyncio.wait_for(self.queue.get(), 0.01)
            except TimeoutError:
                continue


class Recorder:
    """A handler that records its calls; each call of `work` first raises the next exception of `trouble`."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.parked: list[tuple[int, str]] = []
        self.trouble: list[BaseException] = []
        self.start = 0
        self.poison: set[int] = set()
        self.undecodable: set[int] = set()
        self.unforeseen: set[int] = set()
        self.refused: set[int] = set()
        self.before_work: Callable[[], Awaitable[None]] | None = None
        self.revocations = 0
        self.batches: list[int] = []
        self.refuse: Callable[[int, LogPosition | None], str | None] | None = None
        self.begun: list[tuple[int, LogPosition | None]] = []
        self.put_back_to: list[LogPosition] = []

    async def open(self) -> None:
        pass

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        if self.refuse is not None and (refused := self.refuse(partition, committed)):
            raise PositionRefused(refused)
        self.begun.append((partition, committed))
        if committed is not None and committed.last is not None:
            return committed
        return LogPosition(self.start, "first")

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        self.put_back_to.append(position)

    def revoked(self) -> None:
        self.revocations += 1

    async def decode(self, record: Record) -> Event | None:
        if record.offset in self.unforeseen:
            raise KeyError("what nobody thought of")
        if record.offset in self.undecodable:
            raise RecordRefused("undecodable", "no event")
        return None

    async def work(self, records: Sequence[Decoded], still_assigned: Callable[[], bool]) -> None:
        if self.before_work is not None:
            await self.before_work()
        if not still_assigned():
            raise AssignmentLost
        if self.trouble:
            raise self.trouble.pop(0)
        if any(record.offset in self.poison for record, _ in records):
            raise ZeroDivisionError
        if any(record.offset in self.refused for record, _ in records):
            raise RecordRefused("refused_by_database", "UniqueViolation")
        self.done += [(record.partition, record.offset) for record, _ in records]
        self.batches.append(len(records))

    async def park(self, record: Record, reason: str, error: str) -> None:
        self.parked.append((record.offset, reason))

    async def close(self) -> None:
        pass


class Rig:
    """A real `StreamProcessor` with fakes for everything around it."""

    def __init__(
        self,
        holes: Sequence[int] = (),
        partitions: int = 1,
        topic: str = TOPIC,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self.topic = topic
        self.app, self.stream, self.handler = FakeApp(partitions, topic), FakeStream(), Recorder()
        self.health = Health("test")
        self.log = FakeLog(self.app, holes)
        app, log = cast(Any, self.app), cast(Any, self.log)
        self.before = Before()
        parking = Parking(bounds, self.health, lambda _: self.before)
        self.in_order = StreamProcessor(app, log, log, log, self.health, [topic], self.handler, parking)

    def deliver(self, *offsets: int, partition: int = 0) -> None:
        for offset in offsets:
            message = SimpleNamespace(
                tp=TP(self.topic, partition), topic=self.topic, partition=partition, offset=offset,
                timestamp=TIMESTAMP_MS / 1000, key=self.log.key(offset), value=b"v", headers=[],
            )  # fmt: skip
            self.stream.queue.put_nowait(SimpleNamespace(message=message))

    async def finish(self) -> None:
        """Run until every delivered record was consumed and committed, then shut down."""
        await self.drain()
        await self.app.on_before_shutdown.send()

    async def drain(self) -> None:
        """Run the agent until it has consumed every delivered record."""
        self.stream.ended = True
        await asyncio.wait_for(cast(Any, self.app.agent_function(self.stream)), 20)

    def start(self) -> asyncio.Task[None]:
        """Start the agent as a task; the test cancels it."""
        return asyncio.ensure_future(cast(Any, self.app.agent_function(self.stream)))


def handled(rig: Rig) -> list[int]:
    """Return the offsets that were handled, in the order of handling."""
    return [offset for _, offset in rig.handler.done]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the code under test sets no event
            await asyncio.sleep(0.001)
