"""Spooling publisher: sends submissions to Kafka, or to the spool while Kafka is unavailable, and drains it in order.

With a spool the producer never gives up. A record that Kafka did not acknowledge within PATIENCE_S is spooled, its
request is answered, and the record stays in flight: its late acknowledgement deletes it from the spool and shows that
Kafka is back. So a record is sent twice only after a crash in between. While the spool holds an entry that the producer
has not received, new records queue behind it; the producer keeps the order from there on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ingest.publishing.spool import BATCH_MAX, Entry, Spool, Spooled
from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, NigredoError, RecordRefused
from nigredo.kafka.publisher import AckedPosition, Overloaded, Publisher
from nigredo.observability.logs import get_logger
from schemas.topics import SUBMISSIONS

log = get_logger()

PATIENCE_S = 1.0
"""A submission not acknowledged within this time is spooled; a healthy Kafka needs a small fraction of it."""
LOOK_EVERY_S = 0.1
REPORT_EVERY_S = 10.0
DELETE_EXPIRED_EVERY_S = 3600.0
RECORD_MAX_BYTES = 1_000_000
"""The largest record the topic accepts: librdkafka's own bound, a little less than the broker's default."""
LARGE_BYTES = RECORD_MAX_BYTES // 2
"""Records with a smaller value are not measured exactly, because key and headers are some hundred bytes."""

Acknowledgement = AckedPosition | None
"""Position of a record in Kafka; None when it is durable in the spool."""


@dataclass(slots=True)
class _Sent:
    """A record in flight to Kafka, due for the spool at `due` (the event loop's clock, seconds)."""

    entry: Entry
    answer: asyncio.Future[Acknowledgement]
    due: float
    spooled: asyncio.Future[int] | None = None
    """Resolves to the number of its copy in the spool; None while there is no copy."""


class SpoolingPublisher:
    """Makes submissions durable, in Kafka or in the spool. Belongs to an event loop; `run` drains the spool."""

    def __init__(
        self,
        publisher: Publisher,
        spool: Spool | None,
        drained: Callable[[Entry, AckedPosition], None] = lambda *_: None,
        refit: Callable[[], Awaitable[Callable[[bytes], bytes]]] | None = None,
    ) -> None:
        """drained: called with an entry of the spool and its position once Kafka acknowledged it.

        refit: called whenever Kafka is back; returns the function that makes the value to send from a spooled value.
        May raise DependencyDown.
        """
        self._publisher = publisher
        self._spool = spool
        self._drained = drained
        self._refit = refit
        self._value: Callable[[bytes], bytes] = bytes
        self._loop = asyncio.get_running_loop()
        # In the order of sending, so that the first is due first.
        self._sent: dict[asyncio.Future[AckedPosition], _Sent] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._overdue_timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._behind = spool is not None and not spool.empty
        """Whether new records queue in the spool behind its entries."""
        self._kafka_up = False
        """Whether the latest result from Kafka was an acknowledgement."""
        self._held: list[tuple[Entry, asyncio.Future[Acknowledgement]]] | None = None
        """Records sent while the last entries of the spool are passed to the producer, for some milliseconds."""

    def send(self, entry: Entry) -> asyncio.Future[Acknowledgement]:
        """Return a future that resolves once the record is durable.

        The future fails with DependencyDown when neither Kafka nor the spool stored the record in time (the record may
        be in Kafka all the same), and with RecordRefused when Kafka can never accept it. Raises either where this is
        known at once.
        """
        if len(entry.value) > LARGE_BYTES and entry.size_bytes > RECORD_MAX_BYTES:
            raise RecordRefused("too_large", "the record is larger than the topic takes")
        if self._spool is None:
            return self._publish(entry)  # type: ignore[return-value] # a future that is only awaited
        answer: asyncio.Future[Acknowledgement] = self._loop.create_future()
        if self._held is not None:
            self._held.append((entry, answer))
        else:
            self._dispatch(entry, answer)
        return answer

    def _dispatch(self, entry: Entry, answer: asyncio.Future[Acknowledgement]) -> None:
        if self._behind:
            self._put(entry, answer)
            return
        try:
            acknowledged = self._publish(entry)
        except DependencyDown:
            self._put(entry, answer)
            return
        except RecordRefused as error:
            answer.set_exception(error)
            return
        self._sent[acknowledged] = _Sent(entry, answer, self._loop.time() + PATIENCE_S)
        acknowledged.add_done_callback(self._acknowledged)
        if self._overdue_timer is None:
            self._overdue_timer = self._loop.call_later(LOOK_EVERY_S, self._spool_overdue)

    def _publish(self, entry: Entry) -> asyncio.Future[AckedPosition]:
        return self._publisher.publish(SUBMISSIONS, key=entry.key, value=entry.value, headers=entry.headers)

    def _put(self, entry: Entry, answer: asyncio.Future[Acknowledgement]) -> asyncio.Future[int] | None:
        """Spool a record; `answer` resolves once it is on disk."""
        if self._spool is None:
            return None

        def written(future: asyncio.Future[int]) -> None:
            error = future.exception()
            if answer.done():
                return
            if error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)

        try:
            spooled = self._spool.put(entry)
        except DependencyDown as error:
            answer.set_exception(error)
            return None
        spooled.add_done_callback(written)
        self._behind = True
        self._wake.set()
        return spooled

    def _spool_overdue(self) -> None:
        """Spool all records in flight as soon as the first is overdue, because Kafka does not accept them now."""
        now = self._loop.time()
        on_time = [sent for sent in self._sent.values() if sent.spooled is None and not sent.answer.done()]
        if on_time and on_time[0].due <= now:
            log.warning("submissions not acknowledged by Kafka, spooling", records=len(on_time))
            self._kafka_up = False
            for sent in on_time:
                sent.spooled = self._put(sent.entry, sent.answer)
        self._overdue_timer = self._loop.call_later(LOOK_EVERY_S, self._spool_overdue) if self._sent else None

    def _acknowledged(self, future: asyncio.Future[AckedPosition]) -> None:
        sent = self._sent.pop(future)
        error = None if future.cancelled() else future.exception()
        self._kafka_up = error is None
        if sent.spooled is not None:
            if error is None and not future.cancelled():
                self._late.add(task := asyncio.create_task(self._unspool(sent, sent.spooled, future.result())))
                task.add_done_callback(self._late.discard)
            return
        if sent.answer.done():
            return
        if error is None:
            sent.answer.set_result(future.result())
        elif isinstance(error, DependencyDown):
            self._put(sent.entry, sent.answer)
        else:
            sent.answer.set_exception(error)

    async def _unspool(self, sent: _Sent, spooled: asyncio.Future[int], position: AckedPosition) -> None:
        """Delete a record's copy from the spool, because Kafka acknowledged it late."""
        try:
            number = await spooled
        except DependencyDown:
            return
        if self._spool is not None:
            await self._spool.remove([number])
        self._drained(sent.entry, position)

    async def run(self) -> None:
        """Drain the spool to Kafka in order whenever it holds entries, and delete expired refusals; until cancelled."""
        spool, backoff = self._spool, Backoff(longest_s=2.0)
        if spool is None:
            return
        self._wake.set()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(DELETE_EXPIRED_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._refit is not None and not spool.empty:
                    await self._wait_in_flight(spool)
                    self._value = await self._refit()
                while not spool.empty:
                    await self._wait_in_flight(spool)
                    await self._remove_acknowledged(spool, await self._publish_next(spool))
                self._behind = not spool.empty
                backoff.reset()
            except Exception as error:
                # No other task drains the spool, so this one goes on while the process lives.
                reason = str(error) if isinstance(error, DependencyDown) else type(error).__name__
                log.warning("spool not drained, retrying", records=spool.records, reason=reason)
                self._behind, self._kafka_up = True, False
                self._wake.set()
                await asyncio.sleep(backoff.next_wait_s())
            else:
                await _delete_expired(spool)

    async def _wait_in_flight(self, spool: Spool) -> None:
        """Wait for records in flight that also have a copy in the spool: an acknowledgement deletes the copy."""
        while waiting := {future for future, sent in self._sent.items() if sent.spooled is not None} | self._late:
            await _wait_some(waiting, spool)

    async def _publish_next(self, spool: Spool) -> Sequence[tuple[Spooled, asyncio.Future[AckedPosition]]]:
        """Publish the next entries of the spool; the last entries together with the records sent meanwhile.

        Without the second rule a steady stream of records would add an entry for each that is drained, for ever.
        """
        if not self._kafka_up or spool.records > BATCH_MAX:
            return self._publish_all(await spool.first())
        self._held = []
        sent: Sequence[tuple[Spooled, asyncio.Future[AckedPosition]]] = ()
        try:
            await spool.written()
            sent = self._publish_all(await spool.first())
            return sent
        finally:
            self._behind = len(sent) < spool.records or spool.writing
            held, self._held = self._held, None
            for entry, answer in held:
                self._dispatch(entry, answer)

    def _publish_all(self, entries: Sequence[Spooled]) -> Sequence[tuple[Spooled, asyncio.Future[AckedPosition]]]:
        """Publish entries up to the first that the full producer does not accept."""
        sent: list[tuple[Spooled, asyncio.Future[AckedPosition]]] = []
        for spooled in entries:
            try:
                entry = spooled.entry
                sent.append((spooled, self._publish(Entry(entry.key, self._value(entry.value), entry.headers))))
            except Overloaded:
                break
            except NigredoError as error:
                refused: asyncio.Future[AckedPosition] = self._loop.create_future()
                refused.set_exception(error)
                sent.append((spooled, refused))
        return sent

    async def _remove_acknowledged(
        self, spool: Spool, sent: Sequence[tuple[Spooled, asyncio.Future[AckedPosition]]]
    ) -> None:
        """Delete acknowledged entries from the spool, in order. Raises the first failure, such as DependencyDown."""
        if not sent:
            # The producer is full, or a row is being written.
            await asyncio.sleep(LOOK_EVERY_S / 10)
        waiting: set[asyncio.Future[AckedPosition]] = {future for _, future in sent}
        while waiting:
            waiting = await _wait_some(waiting, spool)
        acknowledged: list[int] = []
        failure: BaseException | None = None
        for (spooled, future), error in zip(sent, [future.exception() for _, future in sent], strict=True):
            failure = error
            if isinstance(failure, RecordRefused):
                failure = None
                await self._quarantine(spool, spooled)
            elif failure is not None:
                break
            else:
                self._kafka_up = True
                acknowledged.append(spooled.number)
                self._drained(spooled.entry, future.result())
        if acknowledged:
            await spool.remove(acknowledged)
        if failure is not None:
            raise failure

    async def _quarantine(self, spool: Spool, spooled: Spooled) -> None:
        lead_id = dict(spooled.entry.headers).get("ce_id", b"").decode()
        log.error("spooled submission refused by Kafka, quarantined", lead_id=lead_id, number=spooled.number)
        await spool.quarantine(spooled.number)

    async def close(self) -> None:
        """Spool the records in flight, so that the process can end; call after `run` was cancelled."""
        if self._overdue_timer is not None:
            self._overdue_timer.cancel()
        if self._spool is None:
            return
        if self._sent:
            await asyncio.wait(set(self._sent), timeout=PATIENCE_S)
        for sent in self._sent.values():
            if sent.spooled is None and not sent.answer.done():
                sent.spooled = self._put(sent.entry, sent.answer)
        if self._late:
            await asyncio.wait(self._late, timeout=PATIENCE_S)
        await self._spool.close()


async def _delete_expired(spool: Spool) -> None:
    """Delete expired refusals; a failure is only logged, because forms do not depend on it."""
    try:
        await spool.delete_expired_refusals()
    except Exception as error:
        log.warning("expired refusals not deleted from the spool", reason=type(error).__name__)


async def _wait_some(waiting: set[Any], spool: Spool) -> set[Any]:
    """Wait up to REPORT_EVERY_S for these futures, log when none is done by then, and return the pending ones."""
    done, left = await asyncio.wait(waiting, timeout=REPORT_EVERY_S, return_when=asyncio.ALL_COMPLETED)
    if not done:
        log.warning("spooled submissions not acknowledged by Kafka, waiting", spooled=spool.records)
    return left
