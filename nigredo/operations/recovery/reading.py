"""Topics that a recovery goes by, each read once: a later look takes only the records that came since; blocking.

In memory at a time: the windows of all networks, as in the limiters together, and the ids of leads.
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
"""Records that are read backwards at first; each part is twice as long as the one after it."""
CHUNK_MAX = 40_000
_PLACE = struct.Struct(">16siqq")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Submissions that have a lead or a rejection."""

    ids: set[bytes] = field(default_factory=set)
    places: set[bytes] = field(default_factory=set)
    """The record that each verdict is about (`place`)."""


class Delivered(NamedTuple):
    """A delivered attempt: the partition of `nigredo.deliveries` that it is in, and the record's own time."""

    partition: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Attempts at one endpoint that were the last ones of their leads."""

    delivered: dict[bytes, Delivered] = field(default_factory=dict)
    dead: set[bytes] = field(default_factory=set)
    places: set[bytes] = field(default_factory=set)
    """The record of each lead, without its time. Not of replays, which go by no order."""


class Followed:
    """A topic from its start on. Each call takes the records that came since the one before."""

    def __init__(self, reader: TopicReader, topic: str, take: Callable[[Message], None]) -> None:
        self._reader = reader
        self._topic = topic
        self._take = take
        self._next: dict[int, int] = {}

    def catch_up(self, partition: int | None = None) -> None:
        """Take what is new, in one partition or in all, up to the present end. Raises DependencyDown."""
        partitions = self._reader.partitions(self._topic) if partition is None else [partition]
        offsets = dict(self._next)
        for message in self._reader.read_to_end(self._topic, partitions, deadline_s=READ_DEADLINE_S, offsets=offsets):
            self._take(message)
            self._next[message.partition() or 0] = (message.offset() or 0) + 1


class Reading:
    """The topics of one pipeline, for as long as none of them is made again. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, reader: TopicReader) -> None:
        self._settings = settings
        self._reader = reader
        self._codec: Codec | None = None
        self._windows: dict[int, LatestWindows] = {}
        self._lead_ids: set[bytes] = set()
        self._verdicts = Verdicts()
        self._deliveries: defaultdict[str, Deliveries] = defaultdict(Deliveries)
        self._windows_topic = Followed(reader, RATE_LIMITS, self._take_window)
        self._leads_topic = Followed(reader, LEADS, lambda message: self._lead_ids.update(id_of(message)))
        self._verdict_topics = [Followed(reader, topic, self._take_verdict) for topic in (LEADS, REJECTIONS)]
        self._deliveries_topic = Followed(reader, DELIVERIES, self._take_delivery)

    def windows(self, partition: int) -> LatestWindows:
        """Return the windows of a partition's networks."""
        self._windows_topic.catch_up(partition)
        return self._windows.setdefault(partition, LatestWindows(self.codec()))

    def lead_ids(self) -> set[bytes]:
        """Return the id of every lead in the log, erased ones too: an erased person is not to come back."""
        self._leads_topic.catch_up()
        return self._lead_ids

    def verdicts(self) -> Verdicts:
        """Return the submissions that have a lead or a rejection."""
        for topic in self._verdict_topics:
            topic.catch_up()
        return self._verdicts

    def deliveries(self, endpoint: str) -> Deliveries:
        """Return the deliveries to an endpoint that are on record in the log."""
        self._deliveries_topic.catch_up()
        return self._deliveries[endpoint]

    def attempts(self, endpoint: str, ids: Collection[UUID]) -> Iterator[DeliveryAttempt]:
        """Yield deliveries of these leads to an endpoint. Reads them again: only their ids are kept."""
        keys, partitions = {str(lead_id).encode() for lead_id in ids}, self._reader.partitions(DELIVERIES)
        for message in self._reader.read_to_end(DELIVERIES, partitions, deadline_s=READ_DEADLINE_S):
            attempt = self.event(message) if message.key() in keys else None
            if isinstance(attempt, DeliveryAttempt) and (attempt.endpoint, attempt.outcome) == (endpoint, "delivered"):
                yield attempt

    def newest_first(self, topic: str, partition: int) -> Iterator[Message]:
        """Yield the records of a partition from its present end backwards, read in parts as they are taken."""
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
        """Return a codec for leads, windows and deliveries, ready from the first call on."""
        if self._codec is None:
            self._codec = asyncio.run(ready_codec(self._settings, [LEADS, RATE_LIMITS, DELIVERIES]))
        return self._codec

    def _take_window(self, message: Message) -> None:
        number = message.partition() or 0
        try:
            self._windows.setdefault(number, LatestWindows(self.codec())).take(message.key() or b"", message.value())
        except Undecodable as error:
            where = f"partition {number}, offset {message.offset()}"
            raise DependencyDown(f"a window in {RATE_LIMITS} cannot be read, {where}: {error}") from error

    def _take_verdict(self, message: Message) -> None:
        self._verdicts.ids.update(id_of(message))
        event = self.event(message)
        if isinstance(event, Lead | Rejection):
            at = (event.submission_partition, event.submission_offset)
            self._verdicts.places.add(place(event.id.bytes, *at, as_ms(event.submitted_at)))

    def _take_delivery(self, message: Message) -> None:
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
    """Return what only one record of all logs is: an id at an offset, with its time where the result has it."""
    return _PLACE.pack(record_id, partition, offset, timestamp_ms)


def as_ms(at: datetime) -> int:
    """Return a time as Kafka has it."""
    return round(at.timestamp() * 1000)


def id_of(message: Message) -> Iterator[bytes]:
    """Yield the lead id that is a record's key, as its 16 bytes; nothing for another key."""
    try:
        yield UUID((message.key() or b"").decode()).bytes
    except ValueError:
        return
