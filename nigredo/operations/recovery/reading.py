"""Topics that a recovery reads, each once: a later call reads only the records appended since; blocking.

In memory at a time: the windows of all networks, as in all limiters together, and the ids of all leads.
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from confluent_kafka import Message

from nigredo.avro.codec import Codec, Undecodable
from nigredo.errors import DependencyDown
from nigredo.kafka.topic_reader import TopicReader
from nigredo.process import ready_codec
from nigredo.rate_limit.latest_windows import LatestWindows
from nigredo.settings import Settings
from schemas.events import DeliveryAttempt, Lead, Rejection
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS

READ_DEADLINE_S = 30.0
CHUNK_MIN = 5000
"""Records in the first chunk when a partition is read backwards; each further chunk is twice as long."""
CHUNK_MAX = 40_000
_PLACE = struct.Struct(">16siqq")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Submissions that have a verdict: a lead or a rejection."""

    ids: set[bytes] = field(default_factory=set)
    places: set[bytes] = field(default_factory=set)
    """The submission's record that each verdict names, packed by `place`."""


class Delivered(NamedTuple):
    """A delivered attempt: its partition in `nigredo.deliveries`, and the record's timestamp."""

    partition: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Final attempts at one endpoint, by lead: delivered or dead."""

    delivered: dict[bytes, Delivered] = field(default_factory=dict)
    dead: set[bytes] = field(default_factory=set)
    places: set[bytes] = field(default_factory=set)
    """The lead's record that each attempt names, packed by `place` without a time; replays left out, because a replay
    does not follow the order of the log."""


class Followed:
    """A topic read from its start; each call of `catch_up` passes the records appended since the last call."""

    def __init__(self, reader: TopicReader, topic: str, apply: Callable[[Message], None]) -> None:
        self._reader = reader
        self._topic = topic
        self._apply = apply
        self._next: dict[int, int] = {}

    def catch_up(self, partition: int | None = None) -> None:
        """Apply the new records of one partition, or of all, up to the present end. Raises DependencyDown."""
        partitions = self._reader.partitions(self._topic) if partition is None else [partition]
        offsets = dict(self._next)
        for message in self._reader.read_to_end(self._topic, partitions, deadline_s=READ_DEADLINE_S, offsets=offsets):
            self._apply(message)
            self._next[message.partition() or 0] = (message.offset() or 0) + 1


class Reading:
    """Cached topics of one pipeline, valid until a topic is created again. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, reader: TopicReader) -> None:
        self._settings = settings
        self._reader = reader
        self._codec: Codec | None = None
        self._windows: dict[int, LatestWindows] = {}
        self._lead_ids: set[bytes] = set()
        self._verdicts = Verdicts()
        self._deliveries: defaultdict[str, Deliveries] = defaultdict(Deliveries)
        self._windows_topic = Followed(reader, RATE_LIMITS, self._apply_window)
        self._leads_topic = Followed(reader, LEADS, lambda message: self._lead_ids.update(id_of(message)))
        self._verdict_topics = [Followed(reader, topic, self._apply_verdict) for topic in (LEADS, REJECTIONS)]
        self._deliveries_topic = Followed(reader, DELIVERIES, self._apply_delivery)

    def windows(self, partition: int) -> LatestWindows:
        """Return the newest windows of a partition's networks."""
        self._windows_topic.catch_up(partition)
        return self._windows.setdefault(partition, LatestWindows(self.codec()))

    def lead_ids(self) -> set[bytes]:
        """Return the id of every lead in the log, also of erased leads, so that an erased person is not restored."""
        self._leads_topic.catch_up()
        return self._lead_ids

    def verdicts(self) -> Verdicts:
        """Return the submissions that have a lead or a rejection in the log."""
        for topic in self._verdict_topics:
            topic.catch_up()
        return self._verdicts

    def deliveries(self, endpoint: str) -> Deliveries:
        """Return the final attempts at an endpoint that `nigredo.deliveries` holds."""
        self._deliveries_topic.catch_up()
        return self._deliveries[endpoint]

    def attempts(self, endpoint: str, ids: Collection[UUID]) -> Iterator[DeliveryAttempt]:
        """Yield deliveries of these leads to an endpoint. Reads the topic again, because only ids are cached."""
        keys, partitions = {str(lead_id).encode() for lead_id in ids}, self._reader.partitions(DELIVERIES)
        for message in self._reader.read_to_end(DELIVERIES, partitions, deadline_s=READ_DEADLINE_S):
            attempt = self.event(message) if message.key() in keys else None
            if isinstance(attempt, DeliveryAttempt) and (attempt.endpoint, attempt.outcome) == (endpoint, "delivered"):
                yield attempt

    def newest_first(self, topic: str, partition: int) -> Iterator[Message]:
        """Yield the records of a partition from its present end backwards, read in chunks as needed."""
        start, end = self._reader.watermarks(topic, partition)
        size = CHUNK_MIN
        while end > start:
            begin = max(start, end - size)
            yield from reversed(list(self._reader.between(topic, partition, begin, end)))
            end, size = begin, min(2 * size, CHUNK_MAX)

    def event(self, message: Message) -> object:
        """Return a record's event; None for a tombstone and for a record that cannot be decoded."""
        value = message.value()
        try:
            return None if value is None else self.codec().decode(message.topic() or "", value)
        except Undecodable:
            return None

    def codec(self) -> Codec:
        """Return a codec for leads, windows and deliveries; the first call prepares it."""
        if self._codec is None:
            self._codec = asyncio.run(ready_codec(self._settings, [LEADS, RATE_LIMITS, DELIVERIES]))
        return self._codec

    def _apply_window(self, message: Message) -> None:
        number = message.partition() or 0
        try:
            self._windows.setdefault(number, LatestWindows(self.codec())).take(message.key() or b"", message.value())
        except Undecodable as error:
            where = f"partition {number}, offset {message.offset()}"
            raise DependencyDown(f"a window in {RATE_LIMITS} cannot be read, {where}: {error}") from error

    def _apply_verdict(self, message: Message) -> None:
        self._verdicts.ids.update(id_of(message))
        event = self.event(message)
        if isinstance(event, Lead | Rejection):
            at = (event.submission_partition, event.submission_offset)
            self._verdicts.places.add(place(event.id.bytes, *at, as_ms(event.submitted_at)))

    def _apply_delivery(self, message: Message) -> None:
        attempt = self.event(message)
        if not isinstance(attempt, DeliveryAttempt) or attempt.outcome == "retry":
            return
        known, lead_id = self._deliveries[attempt.endpoint], attempt.lead_id.bytes
        if attempt.outcome == "dead":
            known.dead.add(lead_id)
        else:
            known.delivered[lead_id] = Delivered(message.partition() or 0, message.timestamp()[1])
        if not attempt.replay:
            known.places.add(place(lead_id, attempt.lead_partition, attempt.lead_offset))


def place(record_id: bytes, partition: int, offset: int, timestamp_ms: int = 0) -> bytes:
    """Return the packed identity of a record in any log: id, partition and offset, with its time where known."""
    return _PLACE.pack(record_id, partition, offset, timestamp_ms)


def as_ms(at: datetime) -> int:
    """Return a time in milliseconds since the epoch, as in a Kafka timestamp."""
    return round(at.timestamp() * 1000)


def id_of(message: Message) -> Iterator[bytes]:
    """Yield the lead id in a record's key, as 16 bytes; nothing when the key is no UUID."""
    try:
        yield UUID((message.key() or b"").decode()).bytes
    except ValueError:
        return
