"""Handles a topic's records batch by batch, strictly in order, and commits only what was made durable.

This is the only place of the processors that decides what is committed. Faust delivers the records and runs the group;
its own bookkeeping of offsets is switched off (`faust_app.py`), because it commits past events that are still in flight
and can stop for good. Assigned partitions and the order of their records: `assignment.py`; retrying and parking:
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
from processors.engine.assignment import Assignment, name_of
from processors.engine.batch_executor import BatchExecutor
from processors.engine.faust_app import commit_positions
from processors.engine.handler import AssignmentLost, BatchHandler
from processors.engine.instrumentation import count_batch
from processors.engine.probe import Probe

log = get_logger()

BATCH_MAX = 1000
BATCH_MAX_BYTES = 16 * 1024 * 1024
"""Of the values taken; a batch is over once it is reached."""
COMMIT_EVERY_S = 0.5
COMMIT_TIMEOUT_S = 5.0
COMMIT_AGAIN_S = 1.0
SETTLE_S = 4.0
"""How long a rebalance or a stop waits for the batch in hand; the group waits for us meanwhile."""
VOID_WITHIN_S = 60.0
"""How long a batch may take to find that it is void: longer than any statement of the database."""


class StreamProcessor:
    """Connects a handler to a Faust app. Make it before the app starts; it registers all it needs."""

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
        self.probe = Probe(app, self.assignment, watch, proof, health, self._distrust)
        self._attempts = BatchExecutor(handler, health, parking, self.assignment.tell_ready)
        self._parking = parking
        self._batch_max = batch_max
        self._idle = asyncio.Event()
        self._idle.set()
        self._failures = Backoff(longest_s=10.0)
        self._to_commit: dict[TP, LogPosition] = {}
        self._last_commit = 0.0
        self._late_commit: asyncio.Task[None] | None = None
        self._committing = asyncio.Lock()
        # Without its acknowledgements: Faust would remember every one for a commit that never comes.
        channel = app.topic(*topics, key_serializer="raw", value_serializer="raw", acks=False)
        app.agent(channel, name="in_order", concurrency=1)(self._consume)
        app.on_partitions_revoked.connect(self._revoked)
        app.on_rebalance_complete.connect(self._assigned)
        app.on_before_shutdown.connect(self._shut_down)

    @property
    def positions(self) -> Mapping[TP, int] | None:
        """The next offsets; for the watchdog, from its thread."""
        return self.assignment.positions

    def lacking_s(self) -> float:
        """For how long partitions were in no member's hands; for the watchdog, from its thread."""
        return self.probe.lacking_s()

    # --- assignments ---------------------------------------------------------------------------------------------

    async def _revoked(self, *_: Any, **__: Any) -> None:
        """Faust awaits this before the group goes on, and delivers nothing meanwhile."""
        self._health.waiting("an assignment of partitions")
        await self._settle()
        self.assignment.revoked()
        self._parking.forget()
        self._to_commit.clear()

    async def _settle(self) -> None:
        """Let the batch in hand come to its end and commit it: half done it would be done again by the next owner."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), SETTLE_S)
        await self._commit()

    async def _assigned(self, *_: Any, **__: Any) -> None:
        self.assignment.assigned()
        self.probe.start()

    async def _distrust(self) -> None:
        """Begin every partition again, as the log is now; what is in hand was read from another log, and is void."""
        self._health.waiting("a log that is not the one that was read before")
        self.assignment.revoked()
        self._parking.forget()
        self._to_commit.clear()
        epoch = self.assignment.epoch
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), VOID_WITHIN_S)
        # Revoked meanwhile, they begin when the group is assigned again.
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
        # Not `stream.events()` alone: that acknowledges when the loop's body ends, also when it failed.
        async for first in cast(faust.Stream[Any], stream).noack().events():
            epoch, read_s = self.assignment.epoch, time.monotonic()
            messages = [first.message]
            try:
                await self._take_arrived(messages, queue, epoch)
                if batch := [_record(message) for message in messages if await self._next(message, epoch)]:
                    await self._finish(batch, epoch, read_s)
            except BaseException:
                # Cancelled: Faust may start the agent again in this very assignment, on the record after these.
                self.assignment.restart({message.tp for message in messages}, epoch)
                raise

    async def _take_arrived(self, messages: list[Any], queue: Any, epoch: int) -> None:
        """Take what else has arrived, as it is: Faust would go round its loop once for each.

        Under a backlog Faust hands on a hundred records in every turn of the event loop; it is given its turns until
        the batch is full, since each batch waits for the broker all the same.
        """
        left = BATCH_MAX_BYTES - len(messages[0].value or b"")
        while len(messages) < self._batch_max and left > 0:
            if queue.empty():
                await asyncio.sleep(0)
                if queue.empty() or epoch != self.assignment.epoch:
                    return
            message = queue.get_nowait().message
            messages.append(message)
            left -= len(message.value or b"")

    async def _next(self, message: Any, epoch: int) -> bool:
        tp, offset = message.tp, message.offset
        return self.assignment.is_next(tp, offset, epoch) or await self.assignment.accept_or_seek(tp, offset, epoch)

    async def _finish(self, batch: Sequence[Record], epoch: int, read_s: float) -> None:
        """Do the work of what was collected, then note it for the commit. A batch of an older assignment is dropped."""
        self._idle.clear()
        try:
            await self._attempts.execute(batch, lambda: epoch == self.assignment.epoch)
            count_batch([record.topic for record in batch])
            last = {TP(record.topic, record.partition): record for record in batch}
            done = {tp: record.position(self.assignment.topic_id(tp)) for tp, record in last.items()}
            self.assignment.done(done, read_s)
            self._to_commit |= done
            await self._commit_soon()
            self._failures.reset()
            self.assignment.tell_ready()
        except AssignmentLost:
            log.info("a batch was dropped", records=len(batch))
            self._begin_afresh(batch, epoch)
        except Exception as error:
            # Nothing may leave the agent: Faust would go on with the next record, and this batch would be lost.
            # Its text may quote a record, so only its name is told.
            log.error("a batch failed", error=name_of(error), records=len(batch))
            self._health.waiting(f"a batch that failed with {name_of(error)}")
            await asyncio.sleep(self._failures.next_wait_s())
            self._begin_afresh(batch, epoch)
        finally:
            self._idle.set()

    def _begin_afresh(self, batch: Sequence[Record], epoch: int) -> None:
        self.assignment.restart({TP(record.topic, record.partition) for record in batch}, epoch)

    # --- commits -------------------------------------------------------------------------------------------------

    def _begun(self, positions: Mapping[TP, LogPosition]) -> None:
        self._to_commit |= positions
        self._commit_in(COMMIT_EVERY_S)

    async def _commit_now(self, positions: Mapping[TP, LogPosition]) -> None:
        self._to_commit |= positions
        await self._commit()

    async def _commit_soon(self) -> None:
        """Commit at once, but at most twice a second; what is left over follows by itself."""
        wait_s = self._last_commit + COMMIT_EVERY_S - time.monotonic()
        if wait_s <= 0:
            await self._commit()
        else:
            self._commit_in(wait_s)

    def _commit_in(self, wait_s: float) -> None:
        if self._late_commit is None:
            self._late_commit = asyncio.create_task(self._commit_after(wait_s))

    async def _commit_after(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        self._late_commit = None
        await self._commit()

    async def _commit(self) -> None:
        """Commit what is durable. A commit that fails is repeated, as long as the partitions are ours."""
        # One at a time: an older one that fails late and is repeated would put the group back.
        async with self._committing:
            offsets, self._to_commit = self._to_commit, {}
            if offsets:
                self._last_commit, epoch = time.monotonic(), self.assignment.epoch
                try:
                    done = await asyncio.wait_for(commit_positions(self._app, offsets), COMMIT_TIMEOUT_S)
                    failed = None if done else "refused"
                except Exception as error:
                    failed = name_of(error)
                if failed is not None:
                    log.warning("offsets were not committed", error=failed)
                    if epoch == self.assignment.epoch:
                        # Without another record nothing else would ever commit them, and the lag would stay.
                        self._to_commit = offsets | self._to_commit
                        self._commit_in(COMMIT_AGAIN_S)


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
