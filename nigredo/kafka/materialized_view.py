"""A compacted topic kept in memory: read to its recorded end, then followed, by a consumer without a group.

One thread reads; whoever keeps what it says (`Keeper`) is called from that thread alone. Kafka may be away for any
time: what is known stands meanwhile. A topic that was made again, grew, or came back with another log is loaded again.
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
    """One record. A tuple and not a dataclass: hundreds of thousands are made while a topic is loaded."""

    key: bytes | None
    value: bytes | None
    """None is a tombstone: the key is gone."""
    partition: int
    offset: int
    timestamp_ms: int


class ViewState(Protocol):
    """Keeps what a topic says. What it raises makes the view load the topic again after a while, from `begin` on."""

    def begin(self) -> None:
        """Start afresh: every record comes again. What was known stands until `loaded`."""

    def apply(self, rows: Sequence[Row]) -> None:
        """Take the next records, in order within a partition, at most `BATCH_MAX`.

        Called every `POLL_S` seconds at least, then perhaps without a row: for what time alone changes.
        """

    def loaded(self) -> None:
        """Take over what came since `begin`: it is all that the topic held when it was begun."""


class MaterializedView:
    """Reads all of one topic for a keeper, from `open` to `close`."""

    def __init__(self, settings: Settings, component: str, topic: str, keeper: ViewState) -> None:
        self._topic = topic
        self._keeper = keeper
        self._config = client_config(settings, settings.function(component)) | {
            "group.id": f"{settings.function(component)}-view",  # Required by the client; never joined.
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # An offset that is gone means that records were missed: told, so that all is loaded again.
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
        """Begin to read; returns at once."""
        self._thread.start()

    @property
    def loaded(self) -> bool:
        """Whether the keeper has had the whole topic once. Stays so: what it knew stands while it is loaded again."""
        return self._loaded.is_set()

    def wait_loaded(self, timeout_s: float) -> bool:
        """Wait until loaded, for at most `timeout_s`; return whether it is. Blocks: for a command or a thread."""
        return self._loaded.wait(timeout_s)

    def close(self, *, deadline_s: float = 5.0) -> None:
        """End the thread. Blocks until it has ended, for at most `deadline_s`; may be called again."""
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
                log.warning("a topic is loaded again", topic=self._topic, reason=reason)
            except Exception as error:
                # Nobody else would notice that what it keeps no longer changes.
                log.error("a topic is loaded again", topic=self._topic, reason=type(error).__name__)
            self._stopping.wait(self._backoff.next_wait_s())

    def _read(self) -> None:
        """Load and follow until closed. Raises DependencyDown or what the keeper raised: then all is to be loaded."""
        consumer = Consumer(self._config)
        try:
            partitions, topic_id = self._partitions(consumer), self._topic_id()
            marks = self._begin(consumer, partitions)
            loading = LoadProgress(
                self._topic, {partition: end for partition, (low, end) in marks.items() if low < end}
            )
            followed = _Followed(self._topic, topic_id, {partition: end for partition, (_, end) in marks.items()})
            while not loading.over(consumer):
                loading.took(self._hand_over(consumer, followed))
                if self._stopping.is_set():
                    return
            self._keeper.loaded()
            self._loaded.set()
            self._backoff.reset()
            followed.begin()
            compared_at = time.monotonic()
            while not self._stopping.is_set():
                self._hand_over(consumer, followed)
                if time.monotonic() - compared_at > COMPARED_EVERY_S:
                    compared_at = time.monotonic()
                    if (change := self._change(consumer, partitions, followed)) is not None:
                        raise DependencyDown(change)
        finally:
            consumer.close()

    def _begin(self, consumer: Consumer, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Start to read every partition at its beginning; return where each begins and ends."""
        marks: dict[int, tuple[int, int]] = {}
        for partition in partitions:
            found = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=CALL_TIMEOUT_S)
            if found is None:
                raise DependencyDown(f"Kafka did not tell where {self._topic} ends")
            marks[partition] = found
        self._keeper.begin()
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
        """Return how the topic is another one than the one that was loaded; None while it is not, or Kafka is away."""
        try:
            if self._partitions(consumer) != partitions:
                return "partitions were added"
            return followed.compare(self._proof)
        except (DependencyDown, KafkaException):
            return None

    def _hand_over(self, consumer: Consumer, followed: _Followed) -> int:
        """Give the keeper what is there, after waiting at most `POLL_S` for something; return how much it was."""
        first = consumer.poll(POLL_S)
        # Whatever else has arrived comes without a further wait: a single change is told at once, many together.
        messages: list[Message] = [] if first is None else [first, *consumer.consume(BATCH_MAX - 1, 0)]
        good = [message for message in messages if message.error() is None]
        self._keeper.apply(
            [Row(m.key(), m.value(), m.partition() or 0, m.offset() or 0, m.timestamp()[1]) for m in good]
        )
        followed.take(list({message.partition(): message for message in good}.values()))
        for message in messages:
            if (error := message.error()) is not None:
                # A topic that was deleted, an offset that is gone: what was missed only loading everything can tell.
                raise DependencyDown(describe_error(error))
        return len(messages)


class _Followed:
    """How far a topic was read, to be compared with the log."""

    def __init__(self, topic: str, topic_id: str, ends: Mapping[int, int]) -> None:
        """ends: of all partitions, as they were when reading began."""
        self._topic_id = topic_id
        self._positions = {(topic, partition): LogPosition(end, topic_id) for partition, end in ends.items()}
        self._trail = Trail()
        self._arrivals = Arrivals()

    def begin(self) -> None:
        """Begin to compare from here on: everything up to the ends was read."""
        for place, position in self._positions.items():
            self._trail.begin(place, position, time.monotonic())

    def take(self, messages: Sequence[Message]) -> None:
        """Take the last record that came of each partition."""
        for message in messages:
            place, at = (message.topic() or "", message.partition() or 0), mark_of(message)
            next_offset = max(at.offset + 1, self._positions[place].next_offset)
            self._positions[place] = LogPosition(next_offset, self._topic_id, at)
            self._trail.add(place, self._positions[place], time.monotonic())
            self._arrivals.arrived([place])

    def compare(self, proof: LogProof) -> str | None:
        """Return how the log differs from what was read, or that it is not read any more. Raises DependencyDown."""
        kept = {place: self._trail.of(place) for place in self._positions}
        found = proof.compare(kept)
        if found.disproved:
            return "the log is not the one that was read"
        for place, positions in kept.items():
            self._trail.confirmed(place, positions)
        waiting = [place for place, at in self._positions.items() if found.ends.get(place, 0) > at.next_offset]
        # Only a new client reads on: librdkafka may take every word about a leader for outdated.
        return "no record arrives though there are some" if self._arrivals.looked(waiting) else None
