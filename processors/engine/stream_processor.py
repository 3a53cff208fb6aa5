"""Stream processor: passes records to a handler in batches, strictly in order, and commits only durable results.

No other module of the processors decides what is committed. Faust delivers the records and runs the consumer group; its
own offset bookkeeping is switched off (`faust_app.py`), because it commits past events that are still in flight and can
stop for good. Assigned partitions and the order of their records: `assignment.py`; retries and parking:
`batch_executor.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import faust
from faust.types import TP

from nigredo.backoff import Backoff
from nigredo.clock import from_ms
from nigredo.kafka.parking import Parking
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_watch import LogWatch
from nigredo.kafka.record import Record
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import LogPosition
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from processors.engine.assignment import Assignment, error_name
from processors.engine.batch_executor import BatchExecutor
from processors.engine.faust_app import commit_positions
from processors.engine.handler import AssignmentLost, BatchHandler
from processors.engine.instrumentation import count_batch
from processors.engine.probe import Probe

log = get_logger()

BATCH_MAX = 1000
BATCH_MAX_BYTES = 16 * 1024 * 1024
"""Size of a batch's values at which no further record is added."""
COMMIT_EVERY_S = 0.5
COMMIT_TIMEOUT_S = 5.0
COMMIT_AGAIN_S = 1.0
"""Seconds before a failed commit is retried."""
SETTLE_S = 4.0
"""Seconds that a rebalance or a shutdown waits for the batch in flight, while the whole group waits for this member."""
STALE_BATCH_TIMEOUT_S = 60.0
"""Seconds that a batch may take to notice that its assignment is over; longer than any database statement."""


class StreamProcessor:
    """Connects a handler to a Faust app. Create it before the app starts, because it registers an agent and signals."""

    def __init__(
        self,
        app: faust.App,
        reader: TopicReader,
        watch: LogWatch,
        proof: LogProof,
        health: Health,
        topics: Sequence[str],
        handler: BatchHandler,
        parking: Parking,
        *,
        batch_max: int = BATCH_MAX,
    ) -> None:
        self._app = app
        self._health = health
        self._proof = proof
        self.assignment = Assignment(app, reader, proof, health, handler, self._commit_now, self._begun)
        self.probe = Probe(app, self.assignment, watch, proof, health, self._restart_partitions)
        self._executor = BatchExecutor(handler, health, parking, self.assignment.report_ready)
        self._parking = parking
        self._batch_max = batch_max
        self._idle = asyncio.Event()
        self._idle.set()
        self._failures = Backoff(longest_s=10.0)
        self._to_commit: dict[TP, LogPosition] = {}
        self._last_commit = 0.0
        self._scheduled_commit: asyncio.Task[None] | None = None
        self._committing = asyncio.Lock()
        # Without Faust's acknowledgements, because it would keep each of them for a commit that never happens.
        channel = app.topic(*topics, key_serializer="raw", value_serializer="raw", acks=False)
        app.agent(channel, name="in_order", concurrency=1)(self._consume)
        app.on_partitions_revoked.connect(self._revoked)
        app.on_rebalance_complete.connect(self._assigned)
        app.on_before_shutdown.connect(self._shut_down)

    @property
    def positions(self) -> Mapping[TP, int] | None:
        """Next offset by assigned partition (see `Assignment.positions`); read by the watchdog's thread."""
        return self.assignment.positions

    def unassigned_s(self) -> float:
        """Return for how many seconds partitions had no member of the group; called by the watchdog's thread."""
        return self.probe.unassigned_s()

    # --- assignments ---------------------------------------------------------------------------------------------

    async def _revoked(self, *_: Any, **__: Any) -> None:
        """Release the partitions. Faust awaits this before the rebalance continues, and delivers nothing meanwhile."""
        self._health.waiting("an assignment of partitions")
        await self._settle()
        self.assignment.revoked()
        self._parking.forget()
        self._to_commit.clear()

    async def _settle(self) -> None:
        """Let the batch in flight finish and commit it, so that the partitions' next owner does not repeat it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), SETTLE_S)
        await self._commit()

    async def _assigned(self, *_: Any, **__: Any) -> None:
        self.assignment.assigned()
        self.probe.start()

    async def _restart_partitions(self) -> None:
        """Restart every partition after the log was replaced or cut; drop the batch in flight, read before that."""
        self._health.waiting("its partitions to restart, because the log changed")
        self.assignment.revoked()
        self._parking.forget()
        self._to_commit.clear()
        epoch = self.assignment.epoch
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), STALE_BATCH_TIMEOUT_S)
        # Partitions revoked meanwhile start with the group's next assignment.
        if epoch == self.assignment.epoch:
            self.assignment.assigned(seek=True)

    async def _shut_down(self, *_: Any, **__: Any) -> None:
        self.probe.stop()
        self._proof.close()
        await self._settle()
        await self.assignment.close()

    # --- records -------------------------------------------------------------------------------------------------

    async def _consume(self, stream: faust.StreamT[Any]) -> None:
        queue = cast(faust.ChannelT[Any], stream.channel).queue
        # `noack()`, because plain `stream.events()` acknowledges a record when the loop's body ends, even in failure.
        async for first in cast(faust.Stream[Any], stream).noack().events():
            epoch, read_s = self.assignment.epoch, time.monotonic()
            messages = [first.message]
            try:
                await self._take_arrived(messages, queue, epoch)
                if batch := [_record(message) for message in messages if await self._is_next(message, epoch)]:
                    await self._finish(batch, epoch, read_s)
            except BaseException:
                # After a cancellation Faust may start the agent again in this assignment, on the record after these.
                self.assignment.restart({message.tp for message in messages}, epoch)
                raise

    async def _take_arrived(self, messages: list[Any], queue: Any, epoch: int) -> None:
        """Add the messages already queued to the batch, because Faust would run its whole loop for each of them.

        Under a backlog Faust queues about a hundred records in each turn of the event loop. It gets further turns until
        the batch is full, because every batch waits for the broker once, whatever its size.
        """
        bytes_left = BATCH_MAX_BYTES - len(messages[0].value or b"")
        while len(messages) < self._batch_max and bytes_left > 0:
            if queue.empty():
                await asyncio.sleep(0)
                if queue.empty() or epoch != self.assignment.epoch:
                    return
            message = queue.get_nowait().message
            messages.append(message)
            bytes_left -= len(message.value or b"")

    async def _is_next(self, message: Any, epoch: int) -> bool:
        tp, offset = message.tp, message.offset
        return self.assignment.is_next(tp, offset, epoch) or await self.assignment.accept_or_seek(tp, offset, epoch)

    async def _finish(self, batch: Sequence[Record], epoch: int, read_s: float) -> None:
        """Process a batch, then queue its positions for the commit. A batch of an earlier assignment is dropped."""
        self._idle.clear()
        try:
            await self._executor.execute(batch, lambda: epoch == self.assignment.epoch)
            count_batch([record.topic for record in batch])
            last = {TP(record.topic, record.partition): record for record in batch}
            done = {tp: record.position(self.assignment.topic_id(tp)) for tp, record in last.items()}
            self.assignment.done(done, read_s)
            self._to_commit |= done
            await self._commit_soon()
            self._failures.reset()
            self.assignment.report_ready()
        except AssignmentLost:
            log.info("batch dropped, assignment lost", records=len(batch))
            self._restart(batch, epoch)
        except Exception as error:
            # No exception may leave the agent, because Faust would continue with the next record and lose this batch.
            # Only the error's type is logged, because its text may quote a record.
            log.error("batch failed, restarting its partitions", error=error_name(error), records=len(batch))
            self._health.waiting(f"the retry of a batch that failed with {error_name(error)}")
            await asyncio.sleep(self._failures.next_wait_s())
            self._restart(batch, epoch)
        finally:
            self._idle.set()

    def _restart(self, batch: Sequence[Record], epoch: int) -> None:
        self.assignment.restart({TP(record.topic, record.partition) for record in batch}, epoch)

    # --- commits -------------------------------------------------------------------------------------------------

    def _begun(self, positions: Mapping[TP, LogPosition]) -> None:
        self._to_commit |= positions
        self._schedule_commit(COMMIT_EVERY_S)

    async def _commit_now(self, positions: Mapping[TP, LogPosition]) -> None:
        self._to_commit |= positions
        await self._commit()

    async def _commit_soon(self) -> None:
        """Commit at once, but at most every `COMMIT_EVERY_S`; otherwise schedule the commit."""
        wait_s = self._last_commit + COMMIT_EVERY_S - time.monotonic()
        if wait_s <= 0:
            await self._commit()
        else:
            self._schedule_commit(wait_s)

    def _schedule_commit(self, wait_s: float) -> None:
        if self._scheduled_commit is None:
            self._scheduled_commit = asyncio.create_task(self._commit_after(wait_s))

    async def _commit_after(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        self._scheduled_commit = None
        await self._commit()

    async def _commit(self) -> None:
        """Commit the durable positions; a failed commit is retried within the same assignment."""
        # One at a time, because an older commit that fails late and is retried would set the group's offsets back.
        async with self._committing:
            offsets, self._to_commit = self._to_commit, {}
            if offsets:
                self._last_commit, epoch = time.monotonic(), self.assignment.epoch
                try:
                    done = await asyncio.wait_for(commit_positions(self._app, offsets), COMMIT_TIMEOUT_S)
                    failed = None if done else "refused"
                except Exception as error:
                    failed = error_name(error)
                if failed is not None:
                    log.warning("offsets not committed", error=failed)
                    if epoch == self.assignment.epoch:
                        # Without a further record nothing else would commit them, and the reported lag would stay.
                        self._to_commit = offsets | self._to_commit
                        self._schedule_commit(COMMIT_AGAIN_S)


def _record(message: Any) -> Record:
    headers = message.headers or ()
    return Record(
        message.topic,
        message.partition,
        message.offset,
        from_ms(round(message.timestamp * 1000)),
        message.key,
        message.value,
        tuple(headers.items() if isinstance(headers, Mapping) else headers),
    )
