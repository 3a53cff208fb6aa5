"""How far the tables are behind the log, and leads and deliveries that are in the log only; blocking, for commands.

The tables are the persister's: while it is behind, a lead that is not in them is not there for a query, and a delivered
one looks as if it were not.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from confluent_kafka import Message

from nigredo.clock import from_ms
from nigredo.endpoints.keys import from_key
from nigredo.errors import DependencyDown
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.rewind import DatabaseOffsets
from nigredo.operations.webhook_topics import WebhookTopics
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.events import DeliveryAttempt
from schemas.topics import DELIVERIES, LEADS

COMPONENT = "webhook"
CAUGHT_UP_WITHIN_S = 5.0
LOOK_EVERY_S = 0.1
READ_MAX = 200_000
"""Records beyond the tables that a command reads; past it the tables are too old to complete."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of one partition that the tables do not hold: from `stored` on, up to `end`."""

    topic: str
    partition: int
    stored: int
    end: int


@dataclass(frozen=True, slots=True)
class LoggedLead:
    """A lead in `nigredo.leads`, by its place."""

    lead_id: UUID
    partition: int
    offset: int
    at: datetime


@dataclass(frozen=True, slots=True)
class UnloggedLeads:
    """What the log holds beyond the tables."""

    leads: Mapping[UUID, LoggedLead]
    erased: Collection[UUID]
    attempts: Mapping[UUID, Sequence[DeliveryAttempt]]
    """At the endpoint in question, by their leads."""

    @property
    def delivered(self) -> Collection[UUID]:
        """Leads that the endpoint has by one of these attempts."""
        return {lead_id for lead_id, made in self.attempts.items() if any(a.outcome == "delivered" for a in made)}


def gaps(settings: Settings, topics: Collection[str], *, within_s: float = CAUGHT_UP_WITHIN_S) -> list[Gap]:
    """Return what the tables lack of what these topics hold now; waits a moment for the persister to store it.

    Raises DependencyDown when Kafka or the database do not answer: then it is not known.
    """
    reader, offsets, deadline = TopicReader(settings, COMPONENT), DatabaseOffsets(settings), time.monotonic() + within_s
    marks = {(topic, p): reader.watermarks(topic, p) for topic in topics for p in reader.partitions(topic)}
    while True:
        stored = offsets.standing()
        found = [
            Gap(*place, max(low, stored.get(place, low)), end)
            for place, (low, end) in marks.items()
            if max(low, stored.get(place, low)) < end
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_EVERY_S)


def behind(found: Collection[Gap]) -> int:
    """Return how many records the tables lack, at most: compaction leaves fewer than the offsets say."""
    return sum(gap.end - gap.stored for gap in found)


def beyond(settings: Settings, topics: WebhookTopics, endpoint: str, found: Collection[Gap]) -> UnloggedLeads:
    """Return leads and deliveries of the gaps. Raises DependencyDown, also when there is too much to read."""
    if (records := behind(found)) > READ_MAX:
        raise DependencyDown(
            f"the tables are {counted(records, 'record')} behind the log, so what is undelivered is not known; "
            "the persister is late, see `nigredo status`; `nigredo webhook status` asks the log"
        )
    reader = TopicReader(settings, COMPONENT)
    leads: dict[UUID, LoggedLead] = {}
    erased: set[UUID] = set()
    for gap, message in _messages(reader, found, LEADS):
        if (known := from_key(message.key())) is None:
            continue
        if message.value() is None:
            leads.pop(known[0], None)
            erased.add(known[0])
        else:
            at = from_ms(max(0, message.timestamp()[1]))
            leads[known[0]] = LoggedLead(known[0], gap.partition, message.offset() or 0, at)
    attempts = defaultdict[UUID, list[DeliveryAttempt]](list)
    for _, message in _messages(reader, found, DELIVERIES):
        attempt = topics.decode(DELIVERIES, message.value())
        if isinstance(attempt, DeliveryAttempt) and attempt.endpoint == endpoint:
            attempts[attempt.lead_id].append(attempt)
    return UnloggedLeads(leads, erased, dict(attempts))


def _messages(reader: TopicReader, found: Collection[Gap], topic: str) -> Iterator[tuple[Gap, Message]]:
    for gap in found:
        if gap.topic == topic:
            for message in reader.between(topic, gap.partition, gap.stored, gap.end):
                yield gap, message
