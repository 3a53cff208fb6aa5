"""Producer for batches, for callers that need to know only that every record of a batch was acknowledged.

`nigredo/kafka/publisher.py` reports the offset of each record. Here no Python code runs for an acknowledged record:
librdkafka calls back for failures only, and a batch is complete when no record is in flight.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import BY_KEY, Headers, Overloaded, Silence, answers, as_product_error, fail_left, give_up
from nigredo.observability.logs import get_logger

log = get_logger()

LINGER_MS = 20
"""Linger while a batch is being produced; the complete batch is flushed, which ends the linger."""
LOOK_EVERY_S = 0.1
AFTER_AN_ERROR_S = 0.5


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to produce. Without a `partition`, the key decides."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int = BY_KEY


class _Batch:
    """Records that are acknowledged together."""

    __slots__ = ("error", "future")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.error: Exception | None = None

    def failed(self, error: KafkaError | None, _: Message) -> None:
        """Store the batch's first failure; librdkafka calls this in the flushing thread, for failed records only."""
        if error is not None and self.error is None:
            self.error = as_product_error(error)


class BatchPublisher:
    """An idempotent producer that gives every batch one future on the event loop.

    Bound to the event loop in which it is created: `publish_all` must be called there. Always `await close()`.
    """

    def __init__(self, config: dict[str, Any], *, in_flight_max: int) -> None:
        """config: of `producer_config`. in_flight_max: batches that may be in flight at a time."""
        self._config = config | {"linger.ms": LINGER_MS, "delivery.report.only.error": True}
        self._in_flight_max = in_flight_max
        self._loop = asyncio.get_running_loop()
        self._fatal = False
        self._silence = Silence()
        self._left = 0
        self._producer = Producer(self._config)
        # Held while a batch is produced, so that all its records go to the same producer.
        self._lock = threading.Lock()
        self._waiting: list[_Batch] = []
        self._some_wait = threading.Event()
        self._stopping = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="kafka-batches", daemon=True)
        self._flusher.start()

    def publish_all(self, records: Iterable[Outgoing]) -> asyncio.Future[None]:
        """Produce records; the future resolves once all in-sync replicas have stored every record.

        records: may be a generator; the first records are sent while the last are being created.
        The future fails with DependencyDown when the delivery timeout passes first, and with RecordRefused when the
        broker can never accept one of the records. Raises at once Overloaded, the same two errors, or any error of the
        generator. After an error some of the records may have been written.
        """
        if self._stopping.is_set() or len(self._waiting) >= self._in_flight_max:
            raise Overloaded("too many batches wait for Kafka's acknowledgement")
        batch = _Batch(self._loop.create_future())
        empty = True
        try:
            with self._lock:
                produce, failed = self._producer.produce, batch.failed
                for record in records:
                    empty = False
                    produce(
                        record.topic, record.value, record.key, record.partition, failed, headers=list(record.headers)
                    )
                if not empty:
                    self._waiting.append(batch)
                    self._some_wait.set()
        except BufferError as error:
            raise Overloaded("the producer's queue is full") from error
        except KafkaException as error:
            raise as_product_error(error.args[0]) from error
        if empty:
            batch.future.set_result(None)
        return batch.future

    def publish(self, topic: str, *, key: bytes | None, value: bytes | None) -> asyncio.Future[None]:
        """Produce one record as a batch of its own; see `publish_all`."""
        return self.publish_all([Outgoing(topic, key, value)])

    async def close(self, *, deadline_s: float = 5.0) -> int:
        """Wait at most `deadline_s` for the batches in flight; fail those not acknowledged, and return their number."""
        try:
            if waiting := {batch.future for batch in self._waiting if not batch.future.done()}:
                await asyncio.wait(waiting, timeout=deadline_s)
        finally:
            self._stopping.set()
            self._some_wait.set()
        await asyncio.to_thread(self._flusher.join, 2.0)
        # Lets the callbacks run that the thread scheduled last.
        await asyncio.sleep(0)
        return fail_left(batch.future for batch in self._waiting)

    # --- in the flushing thread --------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while not self._stopping.is_set():
            # Copied before the flush: a batch produced during the flush may have records queued when the flush ends.
            waiting = tuple(self._waiting)
            try:
                self._finish(waiting, self._left_of(waiting))
            except Exception as error:
                # Every future in flight depends on this thread, so an error must not end it.
                log.error("producer flush failed", error=type(error).__name__)
                self._stopping.wait(AFTER_AN_ERROR_S)

    def _left_of(self, waiting: Sequence[_Batch]) -> int:
        """Return how many records are still in flight after a flush of at most `LOOK_EVERY_S`."""
        try:
            if waiting:
                left = self._producer.flush(LOOK_EVERY_S)
                if not self._silent(left):
                    return left
                log.error("producer replaced: Kafka answers, but no record was acknowledged")
                self._replace("Kafka acknowledged nothing")
                return 1
            if not self._some_wait.wait(LOOK_EVERY_S):
                self._producer.poll(0)
        except KafkaException as error:
            # The Python client reports a fatal error by raising it here, and never through `error_cb`.
            if not error.args[0].fatal():
                raise
            self._fatal = True
        if self._fatal:
            log.error("producer replaced after a fatal error")
            self._replace("Kafka: a fatal error of the producer")
        return 1

    def _silent(self, left: int) -> bool:
        """Return whether the producer must be replaced, because Kafka answers but acknowledges no record."""
        fewer, self._left, now_s = left < self._left, left, time.monotonic()
        if fewer or not left:
            self._silence.ends()
        if left:
            self._silence.waits(now_s)
        return self._silence.look_due(now_s) and self._silence.looked(now_s, answered=answers(self._producer))

    def _finish(self, waiting: Sequence[_Batch], left: int) -> None:
        """Resolve the failed batches, and every batch when no record is in flight."""
        done = [batch for batch in waiting if not left or batch.error is not None]
        if done:
            with self._lock:
                self._waiting = [batch for batch in self._waiting if batch not in done]
                if not self._waiting:
                    self._some_wait.clear()
            # The loop is closed when the process is ending; then no caller waits for these batches.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_resolve, done)

    def _replace(self, reason: str) -> None:
        """Switch to a new producer, because an idempotent producer refuses all records after a fatal error.

        Every batch in flight fails, whether or not the old producer reports its records.
        """
        self._silence.ends()
        fresh = Producer(self._config)
        with self._lock:
            old, self._producer, self._fatal = self._producer, fresh, False
            for batch in self._waiting:
                batch.error = batch.error or DependencyDown(reason)
        give_up(old)


def _resolve(done: Sequence[_Batch]) -> None:
    for batch in done:
        if batch.future.done():
            continue
        if batch.error is not None:
            batch.future.set_exception(batch.error)
        else:
            batch.future.set_result(None)
