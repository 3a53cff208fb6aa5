"""Materialized view of a compacted topic: read to its recorded end, then followed, by a consumer without a group.

One thread reads, and calls the view's state (`ViewState`) from that thread only. While Kafka is unavailable the state
stays as it is. A topic that was deleted and created again, got more partitions, or has another log is loaded again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_trail import Arrivals, Trail
from nigredo.kafka.publisher import client_config, describe_error
from nigredo.kafka.topic_reader import READ_AHEAD, LoadProgress, TopicReader, mark_of
from nigredo.log_position import LogPosition
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings

log = get_logger()

BATCH_MAX = 5000
POLL_S = 0.1
CALL_TIMEOUT_S = 3.0
COMPARED_EVERY_S = 3.0


class Row(NamedTuple):
    """One record. A tuple rather than a dataclass, because loading a topic creates hundreds of thousands."""

    key: bytes | None
    value: bytes | None
    """None for a tombstone: the key was deleted."""
    partition: int
    offset: int
    timestamp_ms: int


class ViewState(Protocol):
    """State built from a topic's records. An error raised here makes the view load the topic again after a back-off."""

    def begin(self) -> None:
        """Start a load: every record is applied again. The previous contents stay current until `loaded`."""

    def apply(self, rows: Sequence[Row]) -> None:
        """Apply the next records, at most `BATCH_MAX`, in offset order within a partition.

        Called at least every `POLL_S` seconds, also without rows, so that the state can expire entries by time.
        """

    def loaded(self) -> None:
        """Make the records applied since `begin` current: they are all that the topic held when the load started."""


class MaterializedView:
    """Reads one whole topic into a `ViewState` and follows it, from `open` to `close`."""

    def __init__(self, settings: Settings, component: str, topic: str, state: ViewState) -> None:
        self._topic = topic
        self._state = state
        self._config = client_config(settings, settings.function(component)) | {
            "group.id": f"{settings.function(component)}-view",  # Required by the client; never joined.
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # An offset that no longer exists means missed records: the error makes the view load the topic again.
            "auto.offset.reset": "error",
            **READ_AHEAD,
        }
        self._reader = TopicReader(settings, component)
        self._proof = LogProof(settings, component)
        self._loaded = threading.Event()
        self._stopping = threading.Event()
        self._backoff = Backoff(longest_s=2.0)
        self._thread = threading.Thread(target=self._run, name=f"view-{topic}", daemon=True)

    def open(self) -> None:
        """Start reading; returns at once."""
        self._thread.start()

    @property
    def loaded(self) -> bool:
        """Whether the topic was loaded completely once. Stays true during a reload, which leaves the state current."""
        return self._loaded.is_set()

    def wait_loaded(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for the load; return whether it is complete. Blocks: call in a command or thread."""
        return self._loaded.wait(timeout_s)

    def close(self, *, deadline_s: float = 5.0) -> None:
        """Stop the thread and wait at most `deadline_s` for its end. Blocks. Safe to call again."""
        self._stopping.set()
        self._proof.close()
        if self._thread.is_alive():
            self._thread.join(deadline_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._read()
            except (DependencyDown, KafkaException) as error:
                reason = str(error) if isinstance(error, DependencyDown) else describe_error(error.args[0])
                log.warning("view interrupted, reloading topic", topic=self._topic, reason=reason)
            except Exception as error:
                # The thread goes on, because a view that silently stopped changing would not be noticed.
                log.error("view failed, reloading topic", topic=self._topic, reason=type(error).__name__)
            self._stopping.wait(self._backoff.next_wait_s())

    def _read(self) -> None:
        """Load and follow the topic until `close`. Any error, of Kafka or of the state, requires a new load."""
        consumer = Consumer(self._config)
        try:
            partitions, topic_id = self._partitions(consumer), self._topic_id()
            marks = self._begin(consumer, partitions)
            loading = LoadProgress(
                self._topic, {partition: end for partition, (low, end) in marks.items() if low < end}
            )
            followed = _Followed(self._topic, topic_id, {partition: end for partition, (_, end) in marks.items()})
            while not loading.over(consumer):
                loading.took(self._apply_next(consumer, followed))
                if self._stopping.is_set():
                    return
            self._state.loaded()
            self._loaded.set()
            self._backoff.reset()
            followed.begin()
            compared_at = time.monotonic()
            while not self._stopping.is_set():
                self._apply_next(consumer, followed)
                if time.monotonic() - compared_at > COMPARED_EVERY_S:
                    compared_at = time.monotonic()
                    if (change := self._change(consumer, partitions, followed)) is not None:
                        raise DependencyDown(change)
        finally:
            consumer.close()

    def _begin(self, consumer: Consumer, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Assign every partition from its log start; return log start and log end of each."""
        marks: dict[int, tuple[int, int]] = {}
        for partition in partitions:
            found = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=CALL_TIMEOUT_S)
            if found is None:
                raise DependencyDown(f"Kafka did not report the end of {self._topic}")
            marks[partition] = found
        self._state.begin()
        consumer.assign([TopicPartition(self._topic, partition, low) for partition, (low, _) in marks.items()])
        return marks

    def _partitions(self, consumer: Consumer) -> list[int]:
        found = consumer.list_topics(self._topic, timeout=CALL_TIMEOUT_S).topics.get(self._topic)
        if found is None or found.error is not None or not found.partitions:
            raise DependencyDown(f"there is no topic {self._topic} yet")
        return sorted(found.partitions)

    def _topic_id(self) -> str:
        found = self._reader.topic_ids([self._topic]).get(self._topic)
        if found is None:
            raise DependencyDown(f"there is no topic {self._topic} yet")
        return found

    def _change(self, consumer: Consumer, partitions: Sequence[int], followed: _Followed) -> str | None:
        """Return how the topic differs from the loaded one; None without a difference or while Kafka is unavailable."""
        try:
            if self._partitions(consumer) != partitions:
                return "partitions were added"
            return followed.compare(self._proof)
        except (DependencyDown, KafkaException):
            return None

    def _apply_next(self, consumer: Consumer, followed: _Followed) -> int:
        """Apply the records fetched so far, after waiting at most `POLL_S` for the first; return their number."""
        first = consumer.poll(POLL_S)
        # Further fetched records come without a wait: a single change is applied at once, many as one batch.
        messages: list[Message] = [] if first is None else [first, *consumer.consume(BATCH_MAX - 1, 0)]
        good = [message for message in messages if message.error() is None]
        self._state.apply(
            [Row(m.key(), m.value(), m.partition() or 0, m.offset() or 0, m.timestamp()[1]) for m in good]
        )
        followed.take(list({message.partition(): message for message in good}.values()))
        for message in messages:
            if (error := message.error()) is not None:
                # The topic was deleted or the offset no longer exists: only a full load recovers the missed records.
                raise DependencyDown(describe_error(error))
        return len(messages)


class _Followed:
    """Positions up to which a topic was read, to be compared with the log."""

    def __init__(self, topic: str, topic_id: str, ends: Mapping[int, int]) -> None:
        """ends: end offset of every partition when the load started."""
        self._topic_id = topic_id
        self._positions = {(topic, partition): LogPosition(end, topic_id) for partition, end in ends.items()}
        self._trail = Trail()
        self._arrivals = Arrivals()

    def begin(self) -> None:
        """Start the trail at the ends, up to which every partition has been read."""
        for topic_partition, position in self._positions.items():
            self._trail.begin(topic_partition, position, time.monotonic())

    def take(self, messages: Sequence[Message]) -> None:
        """Advance the positions by the last record received from each partition."""
        for message in messages:
            topic_partition, mark = (message.topic() or "", message.partition() or 0), mark_of(message)
            next_offset = max(mark.offset + 1, self._positions[topic_partition].next_offset)
            self._positions[topic_partition] = LogPosition(next_offset, self._topic_id, mark)
            self._trail.add(topic_partition, self._positions[topic_partition], time.monotonic())
            self._arrivals.arrived([topic_partition])

    def compare(self, proof: LogProof) -> str | None:
        """Return how the log differs from the records read, or that reading stalls; None if neither.

        Raises DependencyDown.
        """
        trail = {topic_partition: self._trail.of(topic_partition) for topic_partition in self._positions}
        found = proof.compare(trail)
        if found.disproved:
            return "the log is not the one that was read"
        for topic_partition, positions in trail.items():
            self._trail.confirmed(topic_partition, positions)
        waiting = [
            topic_partition
            for topic_partition, at in self._positions.items()
            if found.ends.get(topic_partition, 0) > at.next_offset
        ]
        # Only a new client reads on, because librdkafka may ignore every leader it learns of as outdated.
        return "no record arrives though there are some" if self._arrivals.looked(waiting) else None
