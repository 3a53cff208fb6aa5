"""Where a submission goes: to Kafka, or while Kafka does not take it to the spool, and from there to Kafka in order.

With a spool the producer never gives up. What Kafka did not acknowledge within a moment is spooled and answered, and
stays on its way too: its late acknowledgement takes it out of the spool again, and is what tells that Kafka is back.
So the same record is sent twice only where a crash lies between. As long as anything waits in the spool, whatever is
new goes behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ingest.spool import Entry, Spool, Spooled
from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka import Overloaded, Position, Publisher
from nigredo.telemetry import get_logger
from schemas.topics import SUBMISSIONS

log = get_logger()

PATIENCE_S = 1.0
"""A submission that Kafka does not acknowledge within this is spooled: many times what Kafka needs when it is well."""
LOOK_EVERY_S = 0.1
TELL_EVERY_S = 10.0
RECORD_MAX_BYTES = 1_000_000
"""What the topic takes; librdkafka's own bound, and a little less than the broker's default."""

Kept = Position | None
"""Where Kafka has a record; None when the spool has it."""


@dataclass(slots=True)
class _Sent:
    """A record that is on its way to Kafka."""

    entry: Entry
    answer: asyncio.Future[Kept]
    due: float
    spooled: asyncio.Future[int] | None = None
    """Its number in the spool, where it waits too."""


class Outlet:
    """Keeps submissions, in Kafka or in the spool. Belongs to an event loop; `run` drains the spool meanwhile."""

    def __init__(
        self, publisher: Publisher, spool: Spool | None, drained: Callable[[Entry, Position], None] = lambda *_: None
    ) -> None:
        """drained: told where Kafka has what was answered before."""
        self._publisher = publisher
        self._spool = spool
        self._drained = drained
        self._loop = asyncio.get_running_loop()
        # In the order of sending, so that the first is due first.
        self._sent: dict[asyncio.Future[Position], _Sent] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()

    def send(self, entry: Entry) -> asyncio.Future[Kept]:
        """Return a future that resolves once the record is durable.

        It fails with DependencyDown when neither Kafka nor the spool took it in time (Kafka may have it all the same)
        and with RecordRefused when Kafka can never take it. Raises either at once where it is known at once.
        """
        if entry.size_bytes > RECORD_MAX_BYTES:
            raise RecordRefused("too_large", "the record is larger than the topic takes")
        if self._spool is None:
            return self._publish(entry)  # type: ignore[return-value] # a future that is only awaited
        answer: asyncio.Future[Kept] = self._loop.create_future()
        if not self._spool.empty:
            self._put(entry, answer)
            return answer
        try:
            acknowledged = self._publish(entry)
        except DependencyDown:
            self._put(entry, answer)
            return answer
        self._sent[acknowledged] = _Sent(entry, answer, self._loop.time() + PATIENCE_S)
        acknowledged.add_done_callback(self._acknowledged)
        if self._look is None:
            self._look = self._loop.call_later(LOOK_EVERY_S, self._look_for_overdue)
        return answer

    def _publish(self, entry: Entry) -> asyncio.Future[Position]:
        return self._publisher.publish(SUBMISSIONS, key=entry.key, value=entry.value, headers=entry.headers)

    def _put(self, entry: Entry, answer: asyncio.Future[Kept]) -> asyncio.Future[int] | None:
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
        self._wake.set()
        return spooled

    def _look_for_overdue(self) -> None:
        """Spool all that is on its way as soon as the first of it is overdue: Kafka does not take them at present."""
        now = self._loop.time()
        on_time = [sent for sent in self._sent.values() if sent.spooled is None and not sent.answer.done()]
        if on_time and on_time[0].due <= now:
            log.warning("Kafka does not acknowledge: submissions are spooled", records=len(on_time))
            for sent in on_time:
                sent.spooled = self._put(sent.entry, sent.answer)
        self._look = self._loop.call_later(LOOK_EVERY_S, self._look_for_overdue) if self._sent else None

    def _acknowledged(self, future: asyncio.Future[Position]) -> None:
        sent = self._sent.pop(future)
        error = None if future.cancelled() else future.exception()
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

    async def _unspool(self, sent: _Sent, spooled: asyncio.Future[int], position: Position) -> None:
        """Kafka took what was spooled meanwhile: out of the spool with it."""
        try:
            number = await spooled
        except DependencyDown:
            return
        if self._spool is not None:
            await self._spool.remove([number])
        self._drained(sent.entry, position)

    async def run(self) -> None:
        """Move what is in the spool to Kafka, in order, whenever there is something; until cancelled."""
        if self._spool is None:
            return
        backoff = Backoff(longest_s=2.0)
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if await self._drain(self._spool):
                    log.info("the spool is empty again")
                backoff.reset()
            except Exception as error:
                # This task alone empties the spool: it does not end while the process lives.
                reason = str(error) if isinstance(error, DependencyDown) else type(error).__name__
                log.warning("the spool is not drained yet", records=self._spool.records, reason=reason)
                self._wake.set()
                await asyncio.sleep(backoff.next_wait_s())

    async def _drain(self, spool: Spool) -> bool:
        """Empty the spool; return whether there was something in it. Raises DependencyDown."""
        found = False
        while not spool.empty:
            # What is on its way still may take its own row out; whatever is sent now comes behind it anyway.
            while waiting := {future for future, sent in self._sent.items() if sent.spooled is not None} | self._late:
                done, _ = await asyncio.wait(waiting, timeout=TELL_EVERY_S)
                if not done:
                    log.warning("Kafka does not acknowledge yet", spooled=spool.records)
            entries = await spool.first()
            if entries:
                found = True
                await self._send_all(spool, entries)
            else:
                # About to be written.
                await asyncio.sleep(LOOK_EVERY_S / 10)
        return found

    async def _send_all(self, spool: Spool, entries: Sequence[Spooled]) -> None:
        """Publish entries and take them out of the spool up to the first that failed. Raises DependencyDown then."""
        sent: list[tuple[Spooled, asyncio.Future[Position]]] = []
        refused: Overloaded | None = None
        for spooled in entries:
            try:
                sent.append((spooled, self._publish(spooled.entry)))
            except Overloaded as overloaded:
                refused = overloaded
                break
            except RecordRefused:
                await self._set_aside(spool, spooled)
        waiting: set[asyncio.Future[Position]] = {future for _, future in sent}
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=TELL_EVERY_S)
            if not done:
                log.warning("Kafka does not acknowledge yet", spooled=spool.records)
        kept: list[int] = []
        failure: BaseException | None = refused
        for spooled, future in sent:
            error = future.exception()
            if isinstance(error, RecordRefused):
                await self._set_aside(spool, spooled)
            elif error is not None:
                failure = error
                break
            else:
                kept.append(spooled.number)
                self._drained(spooled.entry, future.result())
        if kept:
            await spool.remove(kept)
        if failure is not None:
            raise failure

    async def _set_aside(self, spool: Spool, spooled: Spooled) -> None:
        lead_id = dict(spooled.entry.headers).get("ce_id", b"").decode()
        log.error("Kafka refuses a spooled submission: it stays in the file", lead_id=lead_id, number=spooled.number)
        await spool.set_aside(spooled.number)

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
