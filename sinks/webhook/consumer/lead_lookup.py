"""Lead look-up: reads the leads that retries and replays refer to by partition and offset.

One consumer without a group, in a thread of its own. Concurrent look-ups are batched, so that a replay of a range reads
the range about once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import client_config, describe_error
from nigredo.kafka.record import Record, record_of
from nigredo.settings import Settings
from schemas.topics import LEADS

BATCH_MAX = 500
POLL_S = 0.2
CALL_TIMEOUT_S = 5.0
DEADLINE_S = 30.0
TOGETHER_MAX = 10
"""Look-ups answered before the event loop runs other tasks."""
SKIP_MAX = 2000
"""Longest gap, in records, that is read through instead of skipped by a seek."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pending look-up and the future for its result."""

    partition: int
    offset: int
    key: bytes
    answer: asyncio.Future[Record | None]


class LeadLookup:
    """Reads leads by reference. Use on one event loop; call `close` at the end."""

    def __init__(self, settings: Settings, name: str) -> None:
        """name: client id, as the broker logs it."""
        self._config = client_config(settings, name) | {
            "group.id": f"{name}-leads",  # Required by the client; never joined.
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 16_384,
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="leads")
        self._wanted: list[Wanted] = []
        self._reading: asyncio.Task[None] | None = None
        self._consumer: Consumer | None = None
        self._closing = threading.Event()

    async def read(self, partition: int, offset: int, key: bytes) -> Record | None:
        """Return the record of the lead at this partition and offset; None when the lead was erased.

        A lead that was written again since, as the limiter may do after a crash, is found at its new offset. Raises
        DependencyDown.
        """
        wanted = Wanted(partition, offset, key, asyncio.get_running_loop().create_future())
        self._wanted.append(wanted)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_all())
        return await wanted.answer

    async def close(self) -> None:
        """End the thread and close the consumer."""
        self._closing.set()  # Stops a batch between its reads, because each has a deadline of its own.
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        loop = asyncio.get_running_loop()
        if self._consumer is not None:
            await loop.run_in_executor(self._thread, self._consumer.close)
        self._thread.shutdown(wait=False)

    async def _read_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._wanted:
            batch, self._wanted = self._wanted[:BATCH_MAX], self._wanted[BATCH_MAX:]
            try:
                found = await loop.run_in_executor(self._thread, self._read_batch, batch)
            except Exception as error:
                down = error if isinstance(error, DependencyDown) else DependencyDown(type(error).__name__)
                for wanted in batch:
                    if not wanted.answer.done():
                        wanted.answer.set_exception(down)
                continue
            for number, (wanted, record) in enumerate(zip(batch, found, strict=True)):
                if number % TOGETHER_MAX == 0:
                    await asyncio.sleep(0)  # A live lead would wait for all tasks that resume at once.
                if not wanted.answer.done():
                    wanted.answer.set_result(record)

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _read_batch(self, batch: Sequence[Wanted]) -> list[Record | None]:
        consumer = self._consumer = self._consumer or Consumer(self._config)
        found: dict[tuple[int, int], Record] = {}
        try:
            for partition in {wanted.partition for wanted in batch}:
                offsets = sorted({wanted.offset for wanted in batch if wanted.partition == partition})
                found |= {(partition, record.offset): record for record in self._at(consumer, partition, offsets)}
            return [self._current(consumer, found.get((wanted.partition, wanted.offset)), wanted) for wanted in batch]
        except KafkaException as error:
            raise DependencyDown(describe_error(error.args[0])) from error
        finally:
            consumer.unassign()

    def _current(self, consumer: Consumer, record: Record | None, wanted: Wanted) -> Record | None:
        """Return the record if it is the lead, else the lead's newest record further on, which compaction keeps.

        None when that is a tombstone. Raises DependencyDown.
        """
        if record is None or record.key != wanted.key:
            record = None
            for later in self._from(consumer, wanted.partition, wanted.offset):
                if later.key == wanted.key:
                    record = later
        return record if record is not None and record.value is not None else None

    def _at(self, consumer: Consumer, partition: int, offsets: Sequence[int]) -> list[Record]:
        """Return the records at these ascending offsets, as far as they exist. Raises DependencyDown."""
        found: list[Record] = []
        left = list(offsets)
        while left:
            for record in self._from(consumer, partition, left[0], until=left[-1]):
                while left and left[0] < record.offset:
                    left.pop(0)
                if left and left[0] == record.offset:
                    found.append(record)
                    left.pop(0)
                if not left or left[0] > record.offset + SKIP_MAX:
                    break
            else:
                return found
        return found

    def _from(self, consumer: Consumer, partition: int, offset: int, until: int | None = None) -> Iterator[Record]:
        """Yield the records from an offset through `until`, by default to the current end. Raises DependencyDown."""
        at, deadline = TopicPartition(LEADS, partition, offset), time.monotonic() + DEADLINE_S
        marks = consumer.get_watermark_offsets(at, timeout=CALL_TIMEOUT_S)
        if marks is None:
            raise DependencyDown(f"Kafka did not return the end offset of {LEADS} partition {partition}")
        low, end = marks
        end = end if until is None else min(end, until + 1)
        at.offset = position = max(low, offset)
        consumer.assign([at])
        while position < end:
            if self._closing.is_set():
                raise DependencyDown("the reader was closed")
            for message in consumer.consume(BATCH_MAX, POLL_S):
                if message.error() is None and (message.offset() or 0) < end:
                    yield record_of(message)
            # By the consumer's position, because compacted records never arrive.
            position = consumer.position([at])[0].offset
            if time.monotonic() > deadline:
                raise DependencyDown(f"{LEADS} partition {partition} could not be read within {DEADLINE_S:g} s")
