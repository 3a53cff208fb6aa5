"""Which partitions are ours at present, and which record of each comes next.

What Faust delivers is checked here: each record must follow the last one handled in its partition, else the stream is
sought back; and what belongs to an older assignment counts no more. A partition is begun at a position that the log
bears out, or not at all; `processors/engine/probe.py` looks after the log while the process runs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import faust
from faust.types import TP

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_trail import Trail
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import LogPosition, PositionRefused
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from processors.engine.handler import BatchHandler
from schemas.topics import TOPICS

log = get_logger()

NEXT_OFFSET_DEADLINE_S = 10.0
SEEK_TIMEOUT_S = 10.0
SOUGHT_FOR_S = 5.0


class Assignment:
    """The partitions of one worker. `epoch` counts the assignments: what was taken under an older one is void.

    commit, commit_soon: commit positions for the group, in the place of what waits to be committed for the partitions.
    """

    def __init__(
        self,
        app: faust.App,
        reader: TopicReader,
        proof: LogProof,
        health: Health,
        handler: BatchHandler,
        commit: Callable[[Mapping[TP, LogPosition]], Awaitable[None]],
        commit_soon: Callable[[Mapping[TP, LogPosition]], None],
    ) -> None:
        self._app = app
        self._group: str = app.conf.id
        self._reader = reader
        self._proof = proof
        self._health = health
        self._handler = handler
        self._commit = commit
        self._commit_soon = commit_soon
        self._opening = asyncio.Lock()
        self._opened = False
        self.epoch = 0
        self._settled = False
        self._loads: dict[TP, asyncio.Task[None]] = {}
        self._next: dict[TP, int] = {}
        self._topic_ids: dict[TP, str] = {}
        self._stopped: set[TP] = set()
        self._sought: dict[TP, tuple[int, float]] = {}
        self.trail = Trail()
        self.doubted = asyncio.Event()
        """Set when a record came that was there before: the log may have begun again."""

    @property
    def positions(self) -> Mapping[TP, int] | None:
        """The next record of each partition of ours, -1 for one that is not begun; None between two assignments.

        One that is stopped is left out: it waits for an operator. May be asked from another thread.
        """
        if not self._settled:
            return None
        mine = dict.fromkeys(list(self._loads), -1) | dict(self._next)
        return {tp: offset for tp, offset in mine.items() if tp not in self._stopped}

    def assigned(self, *, seek: bool = False) -> None:
        """Begin every partition that is ours from now on.

        seek: also where the stream already stands there, since it may stand elsewhere by now.
        """
        self._settled = True
        for tp in self._app.consumer.assignment():
            self._load(tp, seek=seek)
        self.tell_ready()

    def revoked(self) -> None:
        """Let go of every partition; what is begun or taken under this assignment is void."""
        self.epoch += 1
        self._settled = False
        for load in self._loads.values():
            load.cancel()
        for forgotten in (self._loads, self._next, self._topic_ids, self._sought):
            forgotten.clear()
        for tp in list(self._stopped):
            self._go_on(tp)
        self._handler.revoked()

    def restart(self, partitions: Iterable[TP], epoch: int) -> None:
        """Begin partitions again, and seek them, as long as they are still ours."""
        if epoch == self.epoch:
            for tp in partitions:
                if begun := self._loads.pop(tp, None):
                    # One that is still at it would end later and put what is older in the place of the new one's.
                    begun.cancel()
                self._next.pop(tp, None)
                self._go_on(tp)
                self._load(tp, seek=True)

    def tell_ready(self) -> None:
        """Say that the process works, once every partition is begun; a stopped one is told in any case."""
        if all(tp in self._next or tp in self._stopped for tp in self._loads):
            self._health.ready()

    def done(self, positions: Mapping[TP, LogPosition], read_s: float) -> None:
        """Note what is durable from now on, and when its first record was taken."""
        for tp, position in positions.items():
            self.trail.add(tp, position, read_s)

    def topic_id(self, tp: TP) -> str:
        """Return the id that the topic of a begun partition had when it was begun."""
        return self._topic_ids[tp]

    async def close(self) -> None:
        """End what was begun."""
        self.epoch += 1
        if self._opened:
            await self._handler.close()

    # --- beginning a partition ---------------------------------------------------------------------------------------

    def _load(self, tp: TP, *, seek: bool = False) -> asyncio.Task[None]:
        if tp not in self._loads:
            self._loads[tp] = asyncio.create_task(self._begin(tp, self.epoch, seek=seek))
        return self._loads[tp]

    async def _begin(self, tp: TP, epoch: int, *, seek: bool) -> None:
        """Get ready for a partition, however long what that needs is away."""
        backoff = Backoff(longest_s=5.0)
        while True:
            try:
                await self._open()
                await self._put_back(tp)
                committed = await self._committed(tp)
                start = await self._handler.begin(tp.topic, tp.partition, committed)
                if seek or committed is None or start.next_offset != committed.next_offset:
                    await self._seek(tp, start.next_offset)
                break
            except PositionRefused as error:
                if error.keep is not None:
                    await self._commit({tp: error.keep})
                self._stop(tp, epoch, str(error))
                return
            except DependencyDown as error:
                self._health.waiting(str(error))
                log.warning("a partition cannot be begun yet", topic=tp.topic, partition=tp.partition, error=str(error))
            except Exception as error:
                self._health.waiting(f"{tp.topic} partition {tp.partition} cannot be begun")
                log.error("a partition cannot be begun", topic=tp.topic, partition=tp.partition, error=name_of(error))
            await asyncio.sleep(backoff.next_wait_s())
        if epoch == self.epoch:
            self._next[tp], self._topic_ids[tp] = start.next_offset, start.topic_id or ""
            self.trail.begin(tp, start, time.monotonic())
            if start != committed:
                # Whoever measures lag believes the group, and a position without a proof gets it here.
                self._commit_soon({tp: start})
            self.tell_ready()

    async def _committed(self, tp: TP) -> LogPosition | None:
        found = await asyncio.to_thread(self._reader.positions, self._group, tp.topic, [tp.partition])
        return found[tp.partition]

    async def _put_back(self, tp: TP) -> None:
        """Store the first position of ours that the log contradicts, if there is one: a later one would hide the loss.

        Raises DependencyDown as long as that cannot be done.
        """
        if not (kept := self.trail.of(tp)):
            return
        wrong = (await asyncio.to_thread(self._proof.disproved, {tp: kept})).get(tp)
        if wrong is None:
            return
        await self._handler.put_back(tp.topic, tp.partition, wrong)
        await self._commit({tp: wrong})
        if await self._committed(tp) != wrong:
            raise DependencyDown(f"the position in {tp.topic} partition {tp.partition} cannot be put back yet")

    def _stop(self, tp: TP, epoch: int, reason: str) -> None:
        """Consume nothing of a partition, and commit nothing for it, as long as this assignment holds."""
        if epoch == self.epoch:
            self._stopped.add(tp)
            self._health.hold(f"{tp.topic}[{tp.partition}]", reason)
            log.error("a partition is stopped", topic=tp.topic, partition=tp.partition, error=reason)
            self._count_stopped(tp.topic)
            self.tell_ready()

    def _go_on(self, tp: TP) -> None:
        self._stopped.discard(tp)
        self._health.release(f"{tp.topic}[{tp.partition}]")
        self._count_stopped(tp.topic)

    def _count_stopped(self, topic: str) -> None:
        metrics.PARTITIONS_STOPPED.of(topic).set(Counter(tp.topic for tp in self._stopped)[topic])

    async def _open(self) -> None:
        async with self._opening:
            if not self._opened:
                await self._handler.open()
                self._opened = True

    # --- the next record ---------------------------------------------------------------------------------------------

    def is_next(self, tp: TP, offset: int, epoch: int) -> bool:
        """Take a record that is the next one of its partition; most are, and need no more than this."""
        if self._next.get(tp) == offset and epoch == self.epoch:
            self._next[tp] = offset + 1
            return True
        return False

    async def accept_or_seek(self, tp: TP, offset: int, epoch: int) -> bool:
        """Say whether this is the record to handle next in its partition; if one is missing, seek back to it."""
        while tp not in self._next:
            if epoch != self.epoch or tp in self._stopped or tp not in self._app.consumer.assignment():
                return False
            # Not awaited itself: a new assignment cancels it, and that must not cancel us.
            await asyncio.wait({self._load(tp)})
        if epoch != self.epoch:
            return False
        expected = self._next[tp]
        if offset < expected:
            self.doubted.set()
            return False
        if offset == expected:
            return self.is_next(tp, offset, epoch)
        if self._sought.get(tp, (None, 0.0))[0] == expected and time.monotonic() - self._sought[tp][1] < SOUGHT_FOR_S:
            return False  # Left over from before the seek, which is under way.
        # In a compacted topic a gap may be right; only the log itself can tell.
        found = await self._next_in_log(tp, expected, epoch)
        if epoch != self.epoch:
            return False
        if found == offset:
            if TOPICS[tp.topic].config["cleanup.policy"] == "delete":
                log.error("records were deleted from the log before they were read", next=offset, **place(tp, expected))
            self._next[tp] = offset + 1
            return True
        log.warning("the stream went past a record and is sought back", **place(tp, expected))
        try:
            await self._seek(tp, expected)
        except Exception as error:
            # The next record of the partition finds the gap again and tries once more.
            log.warning("the stream could not be sought back", error=name_of(error), **place(tp, expected))
        return False

    async def _next_in_log(self, tp: TP, offset: int, epoch: int) -> int:
        backoff = Backoff(longest_s=5.0)
        while epoch == self.epoch:
            try:
                return await asyncio.to_thread(
                    self._reader.next_offset, tp.topic, tp.partition, offset, deadline_s=NEXT_OFFSET_DEADLINE_S
                )
            except DependencyDown as error:
                self._health.waiting(str(error))
            await asyncio.sleep(backoff.next_wait_s())
        return offset

    async def _seek(self, tp: TP, offset: int) -> None:
        # In the consumer's own thread: from ours it would race with its fetches.
        await asyncio.wait_for(self._app.consumer.seek_wait({tp: offset}), SEEK_TIMEOUT_S)
        self._sought[tp] = (offset, time.monotonic())

    async def seek_again(self) -> None:
        """Repeat a seek after which nothing came although there is something: Faust's own may have undone it."""
        for tp, (offset, at) in list(self._sought.items()):
            if self._next.get(tp) != offset:
                del self._sought[tp]
            elif time.monotonic() - at > SOUGHT_FOR_S:
                _, end = await asyncio.to_thread(self._reader.watermarks, tp.topic, tp.partition)
                if end > offset and self._sought.get(tp) == (offset, at):
                    await self._seek(tp, offset)


def name_of(error: Exception) -> str:
    """Return what may be told of an error that nobody foresaw: its text may quote a record."""
    return type(error).__name__


def place(tp: TP, offset: int) -> dict[str, Any]:
    """Return a record's place as the keys of a log line."""
    return {"topic": tp.topic, "partition": tp.partition, "offset": offset}
