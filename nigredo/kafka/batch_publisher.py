"""Producing to Kafka batch by batch, where what counts is that every record of a batch was acknowledged.

`nigredo/kafka/publisher.py` reports the offset of each record. Here no Python code runs for an acknowledged record:
librdkafka calls back for failures alone, and a batch is complete when no record is in flight.
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
"""While a batch is still being handed over. Once it is whole, it is flushed, and nothing lingers."""
LOOK_EVERY_S = 0.1
AFTER_AN_ERROR_S = 0.5


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to be produced. Without a `partition` its key decides."""

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
        """Keep the first failure; called by librdkafka in the flushing thread, for records that failed alone."""
        if error is not None and self.error is None:
            self.error = as_product_error(error)


class BatchPublisher:
    """An idempotent producer whose every batch answers with one future on the event loop.

    Belongs to the event loop it was made in; `publish_all` is called there. Always `await close()`.
    """

    def __init__(self, config: dict[str, Any], *, in_flight_max: int) -> None:
        """config: of `producer_config`. in_flight_max: how many batches may wait."""
        self._config = config | {"linger.ms": LINGER_MS, "delivery.report.only.error": True}
        self._in_flight_max = in_flight_max
        self._loop = asyncio.get_running_loop()
        self._fatal = False
        self._silence = Silence()
        self._left = 0
        self._producer = Producer(self._config)
        # Held while a batch is handed over whole: a batch belongs to one producer.
        self._lock = threading.Lock()
        self._waiting: list[_Batch] = []
        self._some_wait = threading.Event()
        self._stopping = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="kafka-batches", daemon=True)
        self._flusher.start()

    def publish_all(self, records: Iterable[Outgoing]) -> asyncio.Future[None]:
        """Hand records to Kafka; the future resolves once all in-sync replicas have every one of them.

        records: may be made one by one as they are taken; the first are on their way while the last are made.
        The future fails with DependencyDown when the delivery timeout passed first, and with RecordRefused when the
        broker can never take one of them: any of the others may have been written. Both, Overloaded, and whatever
        making a record raises may be raised at once, then too with some of them written perhaps.
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
        """Hand over one record, as `publish_all` does."""
        return self.publish_all([Outgoing(topic, key, value)])

    async def close(self, *, deadline_s: float = 5.0) -> int:
        """Wait until everything is acknowledged, at most `deadline_s`; return how many batches were not."""
        try:
            if waiting := {batch.future for batch in self._waiting if not batch.future.done()}:
                await asyncio.wait(waiting, timeout=deadline_s)
        finally:
            self._stopping.set()
            self._some_wait.set()
        await asyncio.to_thread(self._flusher.join, 2.0)
        # Lets what the thread still handed over come first.
        await asyncio.sleep(0)
        return fail_left(batch.future for batch in self._waiting)

    # --- in the flushing thread --------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while not self._stopping.is_set():
            # Taken before the flush: what is handed over during it may not be on its way yet when it ends.
            waiting = tuple(self._waiting)
            try:
                self._finish(waiting, self._left_of(waiting))
            except Exception as error:
                # This thread is what every waiting future depends on: it does not end while the publisher lives.
                log.error("the producer's thread met an error", error=type(error).__name__)
                self._stopping.wait(AFTER_AN_ERROR_S)

    def _left_of(self, waiting: Sequence[_Batch]) -> int:
        """Return how many records are on their way still, after a while of waiting for them."""
        try:
            if waiting:
                left = self._producer.flush(LOOK_EVERY_S)
                if not self._silent(left):
                    return left
                log.error("producer replaced: nothing was acknowledged though Kafka answers")
                self._replace("Kafka acknowledged nothing")
                return 1
            if not self._some_wait.wait(LOOK_EVERY_S):
                self._producer.poll(0)
        except KafkaException as error:
            # So the Python client tells of a fatal error, and never by `error_cb`.
            if not error.args[0].fatal():
                raise
            self._fatal = True
        if self._fatal:
            log.error("producer replaced after a fatal error")
            self._replace("Kafka: a fatal error of the producer")
        return 1

    def _silent(self, left: int) -> bool:
        """Say whether the producer is to be replaced, since Kafka answers it and acknowledges none of the records."""
        fewer, self._left, now_s = left < self._left, left, time.monotonic()
        if fewer or not left:
            self._silence.ends()
        if left:
            self._silence.waits(now_s)
        return self._silence.look_due(now_s) and self._silence.looked(now_s, answered=answers(self._producer))

    def _finish(self, waiting: Sequence[_Batch], left: int) -> None:
        """Answer the batches that failed, and all of them if nothing is left on its way."""
        done = [batch for batch in waiting if not left or batch.error is not None]
        if done:
            with self._lock:
                self._waiting = [batch for batch in self._waiting if batch not in done]
                if not self._waiting:
                    self._some_wait.clear()
            # The loop may be closed: the process is ending and nobody waits for these any more.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_resolve, done)

    def _replace(self, reason: str) -> None:
        """Go on with a new producer: an idempotent one refuses all work for good after a fatal error.

        What the old one still had has failed, whether or not it comes to say so.
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
