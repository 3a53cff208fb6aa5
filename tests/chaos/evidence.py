"""Everything that can be seen from outside after a run: the topics, the tables, what the receiver got, the groups."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from nigredo.avro.codec import Codec
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.kafka.record import record_of
from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack
from schemas.events import DeliveryAttempt, Event, Lead, Rejection
from schemas.topics import DEAD_LETTERS, DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS, SUBMISSIONS, WEBHOOK_DEAD
from tests.chaos.load import Answers

READ_DEADLINE_S = 60.0
CALL_TIMEOUT_S = 10.0
LimitRow = tuple[int, datetime, int, int]
"""A row of the rate limits: count, start of the window, and the partition and offset up to which it is true."""
READERS: Mapping[str, Sequence[str]] = {
    "rate-limiter": (SUBMISSIONS,),
    "persister": (LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES),
    "webhook-sender": (LEADS,),
}
"""What each consumer group reads."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An event and where it stands in its topic. `at` is the topic's own clock."""

    event: Event
    partition: int
    offset: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Receipt:
    """A webhook as the receiver got it."""

    webhook_id: str
    status: int
    body: str


@dataclass(frozen=True, slots=True)
class LeadRow:
    """What a row of the leads says that a person wrote, and from where."""

    name: str
    email: str
    message: str
    ip_address: str


@dataclass(slots=True)
class Evidence:
    """Evidence that a run left in the log and in PostgreSQL."""

    answers: Answers
    submissions: list[Placed] = field(default_factory=list)
    """Oldest first within each partition, as all that was read from a topic."""
    leads: list[Lead] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    attempts: list[DeliveryAttempt] = field(default_factory=list)
    parked: int = 0
    """Records on the dead-letter topics."""
    lead_rows: dict[str, LeadRow] = field(default_factory=dict)
    verdict_rows: dict[str, str] = field(default_factory=dict)
    limit_rows: dict[str, LimitRow] = field(default_factory=dict)
    attempt_rows: set[UUID] = field(default_factory=set)
    received: list[Receipt] = field(default_factory=list)
    lag: dict[str, int] = field(default_factory=dict)


def collect(stack: Stack, answers: Answers) -> Evidence:
    """Read it all."""
    settings = stack.settings()
    codec = Codec(PinnedSchemas(settings))
    log = _Log(TopicReader(settings, "chaos"), codec)
    found = Evidence(answers, submissions=list(log.read(SUBMISSIONS)), lag=Offsets(stack).lag())
    for placed in log.read(LEADS, REJECTIONS, DELIVERIES):
        match placed.event:
            case Lead():
                found.leads.append(placed.event)
            case Rejection():
                found.rejections.append(placed.event)
            case DeliveryAttempt():
                found.attempts.append(placed.event)
    found.parked = sum(1 for _ in log.read(DEAD_LETTERS, WEBHOOK_DEAD))
    rows = stack.rows("SELECT id::text, name, email, message, ip_address FROM nigredo.leads")
    found.lead_rows = {row[0]: LeadRow(*row[1:]) for row in rows}
    found.verdict_rows = dict(stack.rows("SELECT id::text, verdict FROM nigredo.form_submissions"))
    limits = "SELECT ip_address, submission_count, window_start, input_partition, input_offset FROM nigredo.rate_limits"
    found.limit_rows = {row[0]: row[1:] for row in stack.rows(limits)}
    found.attempt_rows = {row[0] for row in stack.rows("SELECT id FROM nigredo.webhook_logs")}
    found.received = [Receipt(got["headers"]["webhook-id"], got["status"], got["body"]) for got in stack.received()]
    return found


class _Log:
    def __init__(self, reader: TopicReader, codec: Codec) -> None:
        self._reader = reader
        self._codec = codec

    def read(self, *topics: str) -> Iterator[Placed]:
        for topic in topics:
            partitions = self._reader.partitions(topic)
            messages = self._reader.read_to_end(topic, partitions, deadline_s=READ_DEADLINE_S)
            for record in map(record_of, messages):
                # What no schema describes must not be there, so an error here is one that the run may end with.
                event = self._codec.decode(topic, record.value or b"")
                yield Placed(event, record.partition, record.offset, record.timestamp)


class Offsets:
    """How far the groups are behind what they read."""

    def __init__(self, stack: Stack) -> None:
        settings = stack.settings()
        self._stack = stack
        self._groups = {settings.function(name): topics for name, topics in READERS.items()}
        self._config: dict[str, Any] = stack.client_config()
        self._reader = TopicReader(settings, "chaos")

    def lag(self) -> dict[str, int]:
        """Return how many records each group has not committed, and how many the database has not stored."""
        topics = sorted({topic for topics in self._groups.values() for topic in topics})
        ends = self._ends(topics)
        admin, lag = AdminClient(self._config), {}
        for group, read in self._groups.items():
            asked = [ConsumerGroupTopicPartitions(group)]
            answer = admin.list_consumer_group_offsets(asked, request_timeout=CALL_TIMEOUT_S)[group]
            committed = {
                (at.topic, at.partition): at.offset for at in answer.result(CALL_TIMEOUT_S + 2).topic_partitions
            }
            lag[group] = _behind(ends, committed, read)
        ids = self._reader.topic_ids(topics)
        # One that was made again under its name has rows of its own.
        query = "SELECT topic, partition, next_offset FROM nigredo.stream_offsets WHERE topic_id = ANY(%s)"
        rows = self._stack.rows(query, list(ids.values()))
        stored = {(topic, partition): offset for topic, partition, offset in rows}
        return lag | {"database": _behind(ends, stored, READERS["persister"])}

    def _ends(self, topics: Sequence[str]) -> dict[tuple[str, int], int]:
        consumer = Consumer(self._config | {"group.id": "chaos", "enable.auto.commit": False})
        try:
            known = consumer.list_topics(timeout=CALL_TIMEOUT_S).topics
            places = [(topic, partition) for topic in topics for partition in known[topic].partitions]
            return {
                place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=CALL_TIMEOUT_S)[1]
                for place in places
            }
        finally:
            consumer.close()


def _behind(ends: Mapping[tuple[str, int], int], offsets: Mapping[tuple[str, int], int], topics: Sequence[str]) -> int:
    return sum(end - max(0, offsets.get(place, 0)) for place, end in ends.items() if place[0] in topics)


def sent_lead(body: str) -> Any:
    """Return the lead in a webhook's body."""
    return json.loads(body)["lead"]
