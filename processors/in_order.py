"""Handles a topic's records batch by batch, strictly in order, and commits only what was made durable.

This is the only place of the processors that decides what is committed. Faust delivers the records and runs the group;
its own bookkeeping of offsets is switched off (`processors/faust_app.py`), because it commits past events that are
still in flight and can stop for good. What Faust delivers is checked: each record must follow the last one handled in
its partition, else the stream is sought back; and what belongs to an older assignment is dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

import faust
from faust.transport.consumer import Consumer
from faust.types import TP

from nigredo.backoff import Backoff
from nigredo.clock import from_ms
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.health import Health
from nigredo.log_reader import LogReader
from nigredo.record import Record
from nigredo.telemetry import get_logger
from processors.measuring import count_batch, tell_lag
from schemas.codec import Codec, Undecodable
from schemas.events import Event
from schemas.registry import RegistryUnavailable
from schemas.topics import TOPICS

log = get_logger()

BATCH_MAX = 500
COMMIT_EVERY_S = 0.5
COMMIT_TIMEOUT_S = 5.0
PARK_AFTER = 3
"""A record that failed this often alone, for no reason that could pass, is parked."""
FAILED_IN_A_ROW_MAX = 20
"""Records parked one after another for no known reason; then a release is broken, and parking would hide it."""
NEXT_OFFSET_DEADLINE_S = 10.0
SEEK_TIMEOUT_S = 10.0
SOUGHT_FOR_S = 5.0
SETTLE_S = 4.0
"""How long a rebalance or a stop waits for the batch in hand; the group waits for us meanwhile."""
PROBE_EVERY_S = 3.0


class Stale(Exception):
    """The assignment this batch belongs to is over; somebody else may own its partitions by now."""


Decoded = tuple[Record, Event | None]
"""A record and its event; None for a tombstone."""


class Handler(Protocol):
    """The work of one processor."""

    async def open(self) -> None:
        """Make what needs the event loop. Called once, before everything else; may raise DependencyDown."""

    async def begin(self, topic: str, partition: int, committed: int | None) -> int:
        """Get ready for a partition that was just assigned and return the offset of its first record to handle.

        Called again after DependencyDown, and afresh in every assignment and after Stale.
        """

    async def decode(self, record: Record) -> Event | None:
        """Return a record's event. Raises RecordRefused for what never can be read, DependencyDown."""

    async def work(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Do the work and return when its results are durable. The same records may come again: be idempotent.

        Raises DependencyDown for what may succeed later, RecordRefused when (one of) the records never can, Stale
        when `still_ours()` became false on the way or somebody else was found to do the same work.
        """

    async def park(self, record: Record, reason: str, error: str) -> None:
        """Put a record that can never be handled aside, durably, with the reason. May raise DependencyDown."""

    async def close(self) -> None:
        """Release what was opened."""


async def decode(codec: Codec, record: Record) -> Event | None:
    """Return a record's event with errors named for what they mean to `InOrder`."""
    if record.value is None:
        return None
    try:
        if codec.knows(record.value):
            return codec.decode(record.topic, record.value)
        return await asyncio.to_thread(codec.decode, record.topic, record.value)
    except Undecodable as error:
        raise RecordRefused("undecodable", str(error)) from error
    except RegistryUnavailable as error:
        raise DependencyDown(str(error)) from error


class InOrder:
    """Connects a handler to a Faust app. Make it before the app starts; it registers all it needs."""

    def __init__(
        self, app: faust.App, reader: LogReader, health: Health, topics: Sequence[str], handler: Handler
    ) -> None:
        self._app = app
        self._group: str = app.conf.id
        self._health = health
        self._handler = handler
        self._reader = reader
        self._opening = asyncio.Lock()
        self._opened = False
        self._topics = topics
        self._idle = asyncio.Event()
        self._idle.set()
        self._failed_in_a_row = 0
        self._failures = Backoff(longest_s=10.0)
        self._sought: dict[TP, tuple[int, float]] = {}
        self._probe: asyncio.Task[None] | None = None
        self._epoch = 0
        self._loads: dict[TP, asyncio.Task[None]] = {}
        self._next: dict[TP, int] = {}
        self._batch: list[tuple[int, faust.Event]] = []
        self._to_commit: dict[TP, int] = {}
        self._last_commit = 0.0
        self._late_commit: asyncio.Task[None] | None = None
        # Without its acknowledgements: Faust would remember every one for a commit that never comes.
        channel = app.topic(*topics, key_serializer="raw", value_serializer="raw", acks=False)
        app.agent(channel, name="in_order", concurrency=1)(self._consume)
        app.on_partitions_revoked.connect(self._revoked)
        app.on_rebalance_complete.connect(self._assigned)
        app.on_before_shutdown.connect(self._shut_down)

    # --- assignments ---------------------------------------------------------------------------------------------

    async def _revoked(self, *_: Any, **__: Any) -> None:
        """Faust awaits this before the group goes on, and delivers nothing meanwhile."""
        self._health.waiting("an assignment of partitions")
        await self._settle()
        self._epoch += 1
        for load in self._loads.values():
            load.cancel()
        for forgotten in (self._loads, self._next, self._to_commit, self._sought):
            forgotten.clear()

    async def _settle(self) -> None:
        """Let the batch in hand come to its end and commit it: half done it would be done again by the next owner."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), SETTLE_S)
        await self._commit()

    async def _assigned(self, *_: Any, **__: Any) -> None:
        for tp in self._app.consumer.assignment():
            self._load(tp)
        if self._probe is None:
            self._probe = asyncio.create_task(self._watch_broker())
        self._tell_ready()

    async def _watch_broker(self) -> None:
        """Say that the process is not ready while the broker does not answer; Faust alone would wait in silence."""
        away = False
        while True:
            try:
                await asyncio.to_thread(self._reader.partitions, self._topics[0])
                await self._seek_again()
                tell_lag(self._app.consumer, self._next)
                if away:
                    away = False
                    self._tell_ready()
            except DependencyDown as error:
                away = True
                self._health.waiting(str(error))
            except Exception as error:
                log.warning("the broker could not be watched", error=_name(error))
            await asyncio.sleep(PROBE_EVERY_S)

    async def _seek_again(self) -> None:
        """Repeat a seek after which nothing came although there is something: Faust's own may have undone it."""
        for tp, (offset, at) in list(self._sought.items()):
            if self._next.get(tp) != offset:
                del self._sought[tp]
            elif time.monotonic() - at > SOUGHT_FOR_S:
                _, end = await asyncio.to_thread(self._reader.watermarks, tp.topic, tp.partition)
                if end > offset and self._sought.get(tp) == (offset, at):
                    await self._seek(tp, offset)

    def _load(self, tp: TP, *, seek: bool = False) -> asyncio.Task[None]:
        if tp not in self._loads:
            self._loads[tp] = asyncio.create_task(self._begin(tp, self._epoch, seek=seek))
        return self._loads[tp]

    async def _begin(self, tp: TP, epoch: int, *, seek: bool) -> None:
        """Get ready for a partition, however long what that needs is away."""
        backoff = Backoff(longest_s=5.0)
        while True:
            try:
                await self._open()
                committed = await asyncio.to_thread(self._reader.committed, self._group, tp.topic, [tp.partition])
                start = await self._handler.begin(tp.topic, tp.partition, committed[tp.partition])
                if seek or start != committed[tp.partition]:
                    await self._seek(tp, start)
                break
            except DependencyDown as error:
                self._health.waiting(str(error))
                log.warning("a partition cannot be begun yet", topic=tp.topic, partition=tp.partition, error=str(error))
            except Exception as error:
                self._health.waiting(f"{tp.topic} partition {tp.partition} cannot be begun")
                log.error("a partition cannot be begun", topic=tp.topic, partition=tp.partition, error=_name(error))
            await asyncio.sleep(backoff.next_wait_s())
        if epoch == self._epoch:
            self._next[tp] = start
            self._tell_ready()

    async def _seek(self, tp: TP, offset: int) -> None:
        # In the consumer's own thread: from ours it would race with its fetches.
        await asyncio.wait_for(self._app.consumer.seek_wait({tp: offset}), SEEK_TIMEOUT_S)
        self._sought[tp] = (offset, time.monotonic())

    async def _open(self) -> None:
        async with self._opening:
            if not self._opened:
                await self._handler.open()
                self._opened = True

    def _tell_ready(self) -> None:
        if all(tp in self._next for tp in self._loads):
            self._health.ready()

    # --- records -------------------------------------------------------------------------------------------------

    async def _consume(self, stream: faust.StreamT[Any]) -> None:
        # Not `stream.events()`: that acknowledges when the loop's body ends, also when it failed.
        async for event in cast(faust.Stream[Any], stream).noack().events():
            epoch = self._epoch
            if await self._expected(event.message.tp, event.message.offset, epoch):
                self._batch.append((epoch, event))
            else:
                event.ack()
            if len(self._batch) >= BATCH_MAX or cast(faust.ChannelT[Any], stream.channel).empty():
                await self._finish_batch()

    async def _expected(self, tp: TP, offset: int, epoch: int) -> bool:
        """Say whether this is the record to handle next in its partition; if one is missing, seek back to it."""
        while tp not in self._next:
            # Not awaited itself: a new assignment cancels it, and that must not cancel us.
            await asyncio.wait({self._load(tp)})
            if epoch != self._epoch:
                return False
        expected = self._next[tp]
        if offset == expected:
            self._next[tp] = offset + 1
            return True
        if offset < expected:
            return False
        if self._sought.get(tp, (None, 0.0))[0] == expected and time.monotonic() - self._sought[tp][1] < SOUGHT_FOR_S:
            return False  # Left over from before the seek, which is under way.
        # In a compacted topic a gap may be right; only the log itself can tell.
        found = await self._next_in_log(tp, expected, epoch)
        if epoch != self._epoch:
            return False
        if found == offset:
            if TOPICS[tp.topic].config["cleanup.policy"] == "delete":
                log.error("records were deleted from the log before they were read", next=offset, **_at(tp, expected))
            self._next[tp] = offset + 1
            return True
        log.warning("the stream went past a record and is sought back", **_at(tp, expected))
        try:
            await self._seek(tp, expected)
        except Exception as error:
            # The next record of the partition finds the gap again and tries once more.
            log.warning("the stream could not be sought back", error=_name(error), **_at(tp, expected))
        return False

    async def _next_in_log(self, tp: TP, offset: int, epoch: int) -> int:
        backoff = Backoff(longest_s=5.0)
        while epoch == self._epoch:
            try:
                return await asyncio.to_thread(
                    self._reader.next_offset, tp.topic, tp.partition, offset, deadline_s=NEXT_OFFSET_DEADLINE_S
                )
            except DependencyDown as error:
                self._health.waiting(str(error))
            await asyncio.sleep(backoff.next_wait_s())
        return offset

    async def _finish_batch(self) -> None:
        """Do the work of what was collected, then note it for the commit. A batch of an older assignment is dropped."""
        batch, self._batch = self._batch, []
        epoch = self._epoch
        self._idle.clear()
        ours = [event for of_epoch, event in batch if of_epoch == epoch]
        try:
            if ours:
                decoded = await self._decode([_record(event) for event in ours], lambda: epoch == self._epoch)
                await self._until_done(decoded, lambda: epoch == self._epoch)
                count_batch([event.message.topic for event in ours])
                for event in ours:
                    self._to_commit[event.message.tp] = event.message.offset + 1
                await self._commit_soon()
                self._failures.reset()
                self._tell_ready()
        except Stale:
            log.info("a batch was dropped", records=len(ours))
            self._begin_afresh(ours, epoch)
        except Exception as error:
            # Nothing may leave the agent: Faust would go on with the next record, and this batch would be lost.
            # Its text may quote a record, so only its name is told.
            log.error("a batch failed", error=_name(error), records=len(ours))
            self._health.waiting(f"a batch that failed with {_name(error)}")
            await asyncio.sleep(self._failures.next_wait_s())
            self._begin_afresh(ours, epoch)
        finally:
            self._idle.set()
            # Only so that Faust lets go of them: what is committed is decided here.
            for _, event in batch:
                event.ack()

    def _begin_afresh(self, events: Sequence[faust.Event], epoch: int) -> None:
        """Load and seek the partitions of a batch again, as long as they are still ours."""
        if epoch == self._epoch:
            for tp in {event.message.tp for event in events}:
                self._loads.pop(tp, None)
                self._next.pop(tp, None)
                self._load(tp, seek=True)

    async def _decode(self, records: Sequence[Record], still_ours: Callable[[], bool]) -> list[Decoded]:
        """Decode what can be decoded and park the rest, waiting for the registry if it must be asked."""
        decoded: list[Decoded] = []
        for record in records:
            backoff, failures = Backoff(longest_s=5.0), 0
            while True:
                try:
                    decoded.append((record, await self._handler.decode(record)))
                    break
                except DependencyDown as error:
                    self._health.waiting(str(error))
                except Exception as error:
                    failures += 1
                    if self._may_be_parked(error, failures):
                        await self._park(record, error, still_ours)
                        break
                await asyncio.sleep(backoff.next_wait_s())
                if not still_ours():
                    raise Stale
        return decoded

    async def _until_done(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Handle records for as long as it takes; those that never can be are found one by one and parked."""
        backoff, failures = Backoff(longest_s=10.0), 0
        while records:
            if not still_ours():
                raise Stale
            try:
                await self._handler.work(records, still_ours)
                self._failed_in_a_row = 0
                self._tell_ready()
                return
            except Stale:
                raise
            except DependencyDown as error:
                self._health.waiting(str(error))
                log.warning("a batch waits", error=str(error), records=len(records))
            except Exception as error:
                if len(records) > 1:
                    for record in records:
                        await self._until_done([record], still_ours)
                    return
                failures += 1
                if self._may_be_parked(error, failures):
                    await self._park(records[0][0], error, still_ours)
                    return
                log.warning("a record failed", error=_name(error), **_place(records[0][0]))
            await asyncio.sleep(backoff.next_wait_s())

    def _may_be_parked(self, error: Exception, failures: int) -> bool:
        """Say whether a record is to blame for its failure; many in a row for no known reason blame the program."""
        if isinstance(error, RecordRefused):
            return True
        if failures < PARK_AFTER:
            return False
        if self._failed_in_a_row >= FAILED_IN_A_ROW_MAX:
            self._health.waiting(f"{FAILED_IN_A_ROW_MAX} records in a row failed with {_name(error)}: a person")
            return False
        self._failed_in_a_row += 1
        return True

    async def _park(self, record: Record, error: Exception, still_ours: Callable[[], bool]) -> None:
        refused = error if isinstance(error, RecordRefused) else RecordRefused("failed", type(error).__name__)
        backoff = Backoff(longest_s=10.0)
        while still_ours():
            try:
                await self._handler.park(record, refused.reason, refused.error)
                log.error("a record was parked", reason=refused.reason, error=refused.error, **_place(record))
                return
            except DependencyDown as down:
                self._health.waiting(str(down))
            await asyncio.sleep(backoff.next_wait_s())
        raise Stale

    # --- commits -------------------------------------------------------------------------------------------------

    async def _commit_soon(self) -> None:
        """Commit at once, but at most twice a second; what is left over follows by itself."""
        wait_s = self._last_commit + COMMIT_EVERY_S - time.monotonic()
        if wait_s <= 0:
            await self._commit()
        elif self._late_commit is None or self._late_commit.done():
            self._late_commit = asyncio.create_task(self._commit_after(wait_s))

    async def _commit_after(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        await self._commit()

    async def _commit(self) -> None:
        """Commit what is durable. A commit that fails costs a repetition, never a record."""
        offsets, self._to_commit = self._to_commit, {}
        if offsets:
            self._last_commit = time.monotonic()
            try:
                await asyncio.wait_for(cast(Consumer, self._app.consumer)._commit(offsets), COMMIT_TIMEOUT_S)
            except Exception as error:
                log.warning("offsets were not committed", error=_name(error))

    async def _shut_down(self, *_: Any, **__: Any) -> None:
        await self._settle()
        self._epoch += 1
        if self._probe is not None:
            self._probe.cancel()
        if self._opened:
            await self._handler.close()


def _record(event: faust.Event) -> Record:
    message = event.message
    headers: Any = message.headers or ()
    return Record(
        message.topic,
        message.partition,
        message.offset,
        from_ms(round(message.timestamp * 1000)),
        message.key,
        message.value,
        tuple(headers.items() if isinstance(headers, Mapping) else headers),
    )


def _name(error: Exception) -> str:
    return type(error).__name__


def _place(record: Record) -> dict[str, Any]:
    return _at(TP(record.topic, record.partition), record.offset)


def _at(tp: TP, offset: int) -> dict[str, Any]:
    return {"topic": tp.topic, "partition": tp.partition, "offset": offset}
