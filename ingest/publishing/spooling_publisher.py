"""Where a submission goes: to Kafka, or while Kafka does not take it to the spool, and from there to Kafka in order.

With a spool the producer never gives up. What Kafka did not acknowledge within a moment is spooled and answered, and
stays on its way too: its late acknowledgement takes it out of the spool again, and is what tells that Kafka is back.
So the same record is sent twice only where a crash lies between. As long as the spool holds anything that the producer
was not given, whatever is new goes behind it; the producer keeps the order from there on.
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
"""A submission that Kafka does not acknowledge within this is spooled: many times what Kafka needs when it is well."""
LOOK_EVERY_S = 0.1
TELL_EVERY_S = 10.0
FORGET_EVERY_S = 3600.0
RECORD_MAX_BYTES = 1_000_000
"""What the topic takes; librdkafka's own bound, and a little less than the broker's default."""
LARGE_BYTES = RECORD_MAX_BYTES // 2
"""Whose value is smaller needs no exact look: key and headers are some hundred bytes."""

Acknowledgement = AckedPosition | None
"""Where Kafka has a record; None when the spool has it."""


@dataclass(slots=True)
class _Sent:
    """A record that is on its way to Kafka."""

    entry: Entry
    answer: asyncio.Future[Acknowledgement]
    due: float
    spooled: asyncio.Future[int] | None = None
    """Its number in the spool, where it waits too."""


class SpoolingPublisher:
    """Keeps submissions, in Kafka or in the spool. Belongs to an event loop; `run` drains the spool meanwhile."""

    def __init__(
        self,
        publisher: Publisher,
        spool: Spool | None,
        drained: Callable[[Entry, AckedPosition], None] = lambda *_: None,
        refit: Callable[[], Awaitable[Callable[[bytes], bytes]]] | None = None,
    ) -> None:
        """drained: told where Kafka has what was answered before.

        refit: returns, whenever Kafka is there again, what makes the value to send of one that waited in the spool;
        may raise DependencyDown.
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
        self._look: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._behind = spool is not None and not spool.empty
        self._alive = False
        """Whether Kafka acknowledged the last that was heard of it."""
        self._held: list[tuple[Entry, asyncio.Future[Acknowledgement]]] | None = None
        """What comes in while the rest of the spool is given to the producer: some milliseconds."""

    def send(self, entry: Entry) -> asyncio.Future[Acknowledgement]:
        """Return a future that resolves once the record is durable.

        It fails with DependencyDown when neither Kafka nor the spool took it in time (Kafka may have it all the same)
        and with RecordRefused when Kafka can never take it. Raises either at once where it is known at once.
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
        if self._look is None:
            self._look = self._loop.call_later(LOOK_EVERY_S, self._look_for_overdue)

    def _publish(self, entry: Entry) -> asyncio.Future[AckedPosition]:
        return self._publisher.publish(SUBMISSIONS, key=entry.key, value=entry.value, headers=entry.headers)

    def _put(self, entry: Entry, answer: asyncio.Future[Acknowledgement]) -> asyncio.Future[int] | None:
        """Spool a record; its answer follows."""
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

    def _look_for_overdue(self) -> None:
        """Spool all that is on its way as soon as the first of it is overdue: Kafka does not take them at present."""
        now = self._loop.time()
        on_time = [sent for sent in self._sent.values() if sent.spooled is None and not sent.answer.done()]
        if on_time and on_time[0].due <= now:
            log.warning("Kafka does not acknowledge: submissions are spooled", records=len(on_time))
            self._alive = False
            for sent in on_time:
                sent.spooled = self._put(sent.entry, sent.answer)
        self._look = self._loop.call_later(LOOK_EVERY_S, self._look_for_overdue) if self._sent else None

    def _acknowledged(self, future: asyncio.Future[AckedPosition]) -> None:
        sent = self._sent.pop(future)
        error = None if future.cancelled() else future.exception()
        self._alive = error is None
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
        """Kafka took what was spooled meanwhile: out of the spool with it."""
        try:
            number = await spooled
        except DependencyDown:
            return
        if self._spool is not None:
            await self._spool.remove([number])
        self._drained(sent.entry, position)

    async def run(self) -> None:
        """Move what is in the spool to Kafka, in order, whenever there is something; until cancelled.

        What Kafka refused for good is let go of when it is past its time.
        """
        spool, backoff = self._spool, Backoff(longest_s=2.0)
        if spool is None:
            return
        self._wake.set()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(FORGET_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self._refit is not None and not spool.empty:
                    await self._settled(spool)
                    self._value = await self._refit()
                while not spool.empty:
                    await self._settled(spool)
                    await self._keep_all(spool, await self._next(spool))
                self._behind = not spool.empty
                backoff.reset()
            except Exception as error:
                # This task alone empties the spool: it does not end while the process lives.
                reason = str(error) if isinstance(error, DependencyDown) else type(error).__name__
                log.warning("the spool is not drained yet", records=spool.records, reason=reason)
                self._behind, self._alive = True, False
                self._wake.set()
                await asyncio.sleep(backoff.next_wait_s())
            else:
                await _forget_refused(spool)

    async def _settled(self, spool: Spool) -> None:
        """Wait for what is in the spool and still on its way too: if Kafka takes it, it takes its row along."""
        while waiting := {future for future, sent in self._sent.items() if sent.spooled is not None} | self._late:
            await _some(waiting, spool)

    async def _next(self, spool: Spool) -> Sequence[tuple[Spooled, asyncio.Future[AckedPosition]]]:
        """Give the next entries to the producer; the last of them only together with what comes in meanwhile.

        Else those who send one after another would put one more behind each that is taken out, for ever.
        """
        if not self._alive or spool.records > BATCH_MAX:
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
        """Publish entries, up to the first that the producer has no room for."""
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

    async def _keep_all(self, spool: Spool, sent: Sequence[tuple[Spooled, asyncio.Future[AckedPosition]]]) -> None:
        """Take entries out of the spool as far as Kafka has them all. Raises DependencyDown at the first it has not."""
        if not sent:
            # The producer has no room, or a row is being written.
            await asyncio.sleep(LOOK_EVERY_S / 10)
        waiting: set[asyncio.Future[AckedPosition]] = {future for _, future in sent}
        while waiting:
            waiting = await _some(waiting, spool)
        kept: list[int] = []
        failure: BaseException | None = None
        for (spooled, future), error in zip(sent, [future.exception() for _, future in sent], strict=True):
            failure = error
            if isinstance(failure, RecordRefused):
                failure = None
                await self._set_aside(spool, spooled)
            elif failure is not None:
                break
            else:
                self._alive = True
                kept.append(spooled.number)
                self._drained(spooled.entry, future.result())
        if kept:
            await spool.remove(kept)
        if failure is not None:
            raise failure

    async def _set_aside(self, spool: Spool, spooled: Spooled) -> None:
        lead_id = dict(spooled.entry.headers).get("ce_id", b"").decode()
        log.error("Kafka refuses a spooled submission: it is set aside", lead_id=lead_id, number=spooled.number)
        await spool.quarantine(spooled.number)

    async def close(self) -> None:
        """Spool what is still on its way, so that the process may end; call after `run` was cancelled."""
        if self._look is not None:
            self._look.cancel()
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


async def _forget_refused(spool: Spool) -> None:
    """Let go of what Kafka refused and is past its time; if the disk cannot, forms have nothing to do with that."""
    try:
        await spool.delete_expired_refusals()
    except Exception as error:
        log.warning("what Kafka refused is still in the spool, past its time", reason=type(error).__name__)


async def _some(waiting: set[Any], spool: Spool) -> set[Any]:
    """Wait until something of this is done, and tell now and then that nothing is; return what is not."""
    done, left = await asyncio.wait(waiting, timeout=TELL_EVERY_S, return_when=asyncio.ALL_COMPLETED)
    if not done:
        log.warning("Kafka does not acknowledge yet", spooled=spool.records)
    return left
