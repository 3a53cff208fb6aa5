"""Records that the log holds beyond the PostgreSQL tables: gaps by partition, leads and deliveries; blocking.

The persister fills the tables. While it lags, a query misses leads and shows delivered leads as undelivered, so that
commands complete the tables' answer from the log.
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
"""Upper bound of records that a command reads from the log; with a larger gap the command refuses."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of one partition that the tables do not hold: offsets [stored, end)."""

    topic: str
    partition: int
    stored: int
    end: int


@dataclass(frozen=True, slots=True)
class LoggedLead:
    """A lead in `nigredo.leads`, with its partition, offset and append time."""

    lead_id: UUID
    partition: int
    offset: int
    at: datetime


@dataclass(frozen=True, slots=True)
class UnloggedLeads:
    """Leads, erasures and attempts that the log holds and the tables do not."""

    leads: Mapping[UUID, LoggedLead]
    erased: Collection[UUID]
    attempts: Mapping[UUID, Sequence[DeliveryAttempt]]
    """Delivery attempts at the endpoint in question, by lead id."""

    @property
    def delivered(self) -> Collection[UUID]:
        """Ids of leads that one of these attempts delivered."""
        return {lead_id for lead_id, made in self.attempts.items() if any(a.outcome == "delivered" for a in made)}


def gaps(settings: Settings, topics: Collection[str], *, within_s: float = CAUGHT_UP_WITHIN_S) -> list[Gap]:
    """Return the gaps between these topics and the tables, after waiting up to `within_s` for the persister.

    Raises DependencyDown when Kafka or PostgreSQL do not answer.
    """
    reader, offsets, deadline = TopicReader(settings, COMPONENT), DatabaseOffsets(settings), time.monotonic() + within_s
    marks = {(topic, p): reader.watermarks(topic, p) for topic in topics for p in reader.partitions(topic)}
    while True:
        stored = offsets.standing()
        found = [
            Gap(*partition, max(low, stored.get(partition, low)), end)
            for partition, (low, end) in marks.items()
            if max(low, stored.get(partition, low)) < end
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(LOOK_EVERY_S)


def behind(found: Collection[Gap]) -> int:
    """Return an upper bound of the records that the tables lack; compaction may have removed some of the offsets."""
    return sum(gap.end - gap.stored for gap in found)


def beyond(settings: Settings, topics: WebhookTopics, endpoint: str, found: Collection[Gap]) -> UnloggedLeads:
    """Return the leads and deliveries in the gaps. Raises DependencyDown, also for more than READ_MAX records."""
    if (records := behind(found)) > READ_MAX:
        raise DependencyDown(
            f"the tables are {counted(records, 'record')} behind the log, so undelivered leads cannot be listed; "
            "the persister lags, see `nigredo status`; `nigredo webhook status` reads the log itself"
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
