"""Assigned partitions of one worker: starts each at a position the log confirms and tracks its next offset.

Every record that Faust delivers is checked here: it must follow the last record accepted from its partition, otherwise
the stream seeks back. Records of an earlier assignment are ignored. A partition whose stored position the log
contradicts is stopped. `processors/engine/probe.py` keeps checking the log while the process runs.
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
SEEK_GRACE_S = 5.0
"""Seconds after a seek in which out-of-order records count as leftovers; after them the seek may be repeated."""


class Assignment:
    """The partitions assigned to one worker. `epoch` counts assignments: records of an earlier epoch are ignored.

    commit, commit_soon: commit positions for the group, at once or with the next commit; they replace positions of the
    same partitions that are not committed yet.
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
        self._is_assigned = False
        self._starts: dict[TP, asyncio.Task[None]] = {}
        self._next: dict[TP, int] = {}
        self._topic_ids: dict[TP, str] = {}
        self._stopped: set[TP] = set()
        self._recent_seeks: dict[TP, tuple[int, float]] = {}
        self.trail = Trail()
        self.check_requested = asyncio.Event()
        """Set when a record arrives again below the next offset, because the log may have been replaced."""

    @property
    def positions(self) -> Mapping[TP, int] | None:
        """Next offset by assigned partition, -1 for a partition not started yet; None between two assignments.

        Leaves out stopped partitions, which wait for an operator. Safe to call from another thread.
        """
        if not self._is_assigned:
            return None
        offsets = dict.fromkeys(list(self._starts), -1) | dict(self._next)
        return {tp: offset for tp, offset in offsets.items() if tp not in self._stopped}

    def assigned(self, *, seek: bool = False) -> None:
        """Start every partition of the new assignment.

        seek: seek even to the committed offset, because the stream may have moved away from it.
        """
        self._is_assigned = True
        for tp in self._app.consumer.assignment():
            self._ensure_started(tp, seek=seek)
        self.report_ready()

    def revoked(self) -> None:
        """Release every partition. Starts and records in flight of this assignment are ignored from now on."""
        self.epoch += 1
        self._is_assigned = False
        for load in self._starts.values():
            load.cancel()
        for by_partition in (self._starts, self._next, self._topic_ids, self._recent_seeks):
            by_partition.clear()
        for tp in list(self._stopped):
            self._resume(tp)
        self._handler.revoked()

    def restart(self, partitions: Iterable[TP], epoch: int) -> None:
        """Restart partitions and seek to their start positions; does nothing when `epoch` is over."""
        if epoch == self.epoch:
            for tp in partitions:
                if running := self._starts.pop(tp, None):
                    # A start still running would finish later and overwrite the new start's position with its own.
                    running.cancel()
                self._next.pop(tp, None)
                self._resume(tp)
                self._ensure_started(tp, seek=True)

    def report_ready(self) -> None:
        """Report the process ready once every partition is started or stopped; a stopped one still holds it unready."""
        if all(tp in self._next or tp in self._stopped for tp in self._starts):
            self._health.ready()

    def done(self, positions: Mapping[TP, LogPosition], read_s: float) -> None:
        """Record positions whose results are durable. read_s: monotonic time at which the batch was read."""
        for tp, position in positions.items():
            self.trail.add(tp, position, read_s)

    def topic_id(self, tp: TP) -> str:
        """Return the topic id of a started partition, as it was when the partition started."""
        return self._topic_ids[tp]

    async def close(self) -> None:
        """End the assignment and close the handler."""
        self.epoch += 1
        if self._opened:
            await self._handler.close()

    # --- starting a partition ----------------------------------------------------------------------------------------

    def _ensure_started(self, tp: TP, *, seek: bool = False) -> asyncio.Task[None]:
        if tp not in self._starts:
            self._starts[tp] = asyncio.create_task(self._start(tp, self.epoch, seek=seek))
        return self._starts[tp]

    async def _start(self, tp: TP, epoch: int, *, seek: bool) -> None:
        """Start a partition, retrying while a dependency is unavailable; stop it when its position is refused."""
        backoff = Backoff(longest_s=5.0)
        while True:
            try:
                await self._open()
                await self._restore_contradicted(tp)
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
                log.warning("partition not started, retrying", topic=tp.topic, partition=tp.partition, error=str(error))
            except Exception as error:
                self._health.waiting(f"{tp.topic} partition {tp.partition} cannot be started")
                log.error("partition start failed", topic=tp.topic, partition=tp.partition, error=error_name(error))
            await asyncio.sleep(backoff.next_wait_s())
        if epoch == self.epoch:
            self._next[tp], self._topic_ids[tp] = start.next_offset, start.topic_id or ""
            self.trail.begin(tp, start, time.monotonic())
            if start != committed:
                # Lag is measured from the group's offset, and a committed offset without a proof gets one here.
                self._commit_soon({tp: start})
            self.report_ready()

    async def _committed(self, tp: TP) -> LogPosition | None:
        positions = await asyncio.to_thread(self._reader.positions, self._group, tp.topic, [tp.partition])
        return positions[tp.partition]

    async def _restore_contradicted(self, tp: TP) -> None:
        """Store and commit the first processed position that the log contradicts, because a later one hides the loss.

        Does nothing when the log contradicts none. Raises DependencyDown until the position is stored.
        """
        if not (processed := self.trail.of(tp)):
            return
        contradicted = (await asyncio.to_thread(self._proof.disproved, {tp: processed})).get(tp)
        if contradicted is None:
            return
        await self._handler.put_back(tp.topic, tp.partition, contradicted)
        await self._commit({tp: contradicted})
        if await self._committed(tp) != contradicted:
            raise DependencyDown(f"the position of {tp.topic} partition {tp.partition} cannot be restored yet")

    def _stop(self, tp: TP, epoch: int, reason: str) -> None:
        """Consume nothing from a partition and commit nothing for it until this assignment ends or restarts it."""
        if epoch == self.epoch:
            self._stopped.add(tp)
            self._health.hold(f"{tp.topic}[{tp.partition}]", reason)
            log.error("partition stopped", topic=tp.topic, partition=tp.partition, error=reason)
            self._count_stopped(tp.topic)
            self.report_ready()

    def _resume(self, tp: TP) -> None:
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
        """Accept a record that is the next of its partition and return True; the fast path, which most records take."""
        if self._next.get(tp) == offset and epoch == self.epoch:
            self._next[tp] = offset + 1
            return True
        return False

    async def accept_or_seek(self, tp: TP, offset: int, epoch: int) -> bool:
        """Accept a record that is the next of its partition and return True; seek back when a record was skipped.

        Returns False for every record that must not be processed now: repeated, too early, or of an earlier assignment.
        """
        while tp not in self._next:
            if epoch != self.epoch or tp in self._stopped or tp not in self._app.consumer.assignment():
                return False
            # Wait for the start without awaiting it, because a new assignment cancels it and must not cancel this task.
            await asyncio.wait({self._ensure_started(tp)})
        if epoch != self.epoch:
            return False
        expected = self._next[tp]
        if offset < expected:
            self.check_requested.set()
            return False
        if offset == expected:
            return self.is_next(tp, offset, epoch)
        if (
            self._recent_seeks.get(tp, (None, 0.0))[0] == expected
            and time.monotonic() - self._recent_seeks[tp][1] < SEEK_GRACE_S
        ):
            return False  # A leftover from before the seek, which is in flight.
        # In a compacted topic a gap is normal; only the log itself shows whether a record is missing.
        next_in_log = await self._next_in_log(tp, expected, epoch)
        if epoch != self.epoch:
            return False
        if next_in_log == offset:
            if TOPICS[tp.topic].config["cleanup.policy"] == "delete":
                log.error(
                    "records deleted from the log before they were read", next=offset, **position_fields(tp, expected)
                )
            self._next[tp] = offset + 1
            return True
        log.warning("record skipped by the stream, seeking back", **position_fields(tp, expected))
        try:
            await self._seek(tp, expected)
        except Exception as error:
            # The next record of the partition finds the gap again and repeats the seek.
            log.warning("seek failed", error=error_name(error), **position_fields(tp, expected))
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
        # `seek_wait` runs in the consumer's own thread, because a seek from this one would race with its fetches.
        await asyncio.wait_for(self._app.consumer.seek_wait({tp: offset}), SEEK_TIMEOUT_S)
        self._recent_seeks[tp] = (offset, time.monotonic())

    async def seek_again(self) -> None:
        """Repeat seeks after which no record arrived although the log has more, because Faust may have undone them."""
        for tp, (offset, at) in list(self._recent_seeks.items()):
            if self._next.get(tp) != offset:
                del self._recent_seeks[tp]
            elif time.monotonic() - at > SEEK_GRACE_S:
                _, end = await asyncio.to_thread(self._reader.watermarks, tp.topic, tp.partition)
                if end > offset and self._recent_seeks.get(tp) == (offset, at):
                    await self._seek(tp, offset)


def error_name(error: Exception) -> str:
    """Return the type name of an unexpected error, because its text may quote a record."""
    return type(error).__name__


def position_fields(tp: TP, offset: int) -> dict[str, Any]:
    """Return topic, partition and offset as the fields of a log line."""
    return {"topic": tp.topic, "partition": tp.partition, "offset": offset}
