"""Persister: stores each batch of records in the tables, together with the offsets of its records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from nigredo.avro.codec import Codec
from nigredo.clock import utc_now
from nigredo.components import PERSISTER
from nigredo.errors import DependencyDown
from nigredo.kafka.dead_letters import park
from nigredo.kafka.publisher import HOLD_INPUT_DELIVERY_TIMEOUT_S, Publisher, producer_config
from nigredo.kafka.record import Record
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import Finding, LogNow, LogPosition, PositionRefused, compare, proven, refusal
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.postgres.pool import Pool, make_pool
from nigredo.process import ready_codec
from nigredo.settings import Settings
from processors.engine.handler import AssignmentLost, Decoded, decode
from processors.persistence.maintenance.clocks import earlier_now
from processors.persistence.maintenance.jobs import Jobs
from processors.persistence.maintenance.reset_outbox import ResetOutbox
from processors.persistence.maintenance.row_retention import RowRetention
from processors.persistence.maintenance.topic_retention import TopicRetention
from processors.persistence.reachable import Reachable
from processors.persistence.rows import rows_of
from processors.persistence.store import OffsetStep, Store
from schemas.events import Event, Lead
from schemas.topics import AUDIT, DEAD_LETTERS, LEADS, SUBMISSIONS

log = get_logger()

POOL_MAX = 4
"""Connections: one for writing, one for a partition that starts meanwhile, two for the maintenance jobs."""
REGISTRY_DEADLINE_S = 10.0
"""Seconds to wait for the registry before the process reports it as missing and tries again."""
IN_FLIGHT_MAX = 1000
READ_DEADLINE_S = 10.0


class Persister:
    """Batch handler that stores records. The database's offsets are the authority, not the consumer group's."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._reachable = Reachable(health)
        self._reader = TopicReader(settings, PERSISTER)
        self._stored: dict[tuple[str, int], int] = {}
        self._topic_ids: dict[str, str] = {}
        self._codec: Codec
        self._publisher: Publisher
        self._pool: Pool
        self._store: Store
        self._resets: ResetOutbox
        self._jobs: Jobs

    async def open(self) -> None:
        """Connect to registry, Kafka and database, and start the maintenance jobs. Raises DependencyDown."""
        settings = self._settings
        self._codec = await ready_codec(settings, [DEAD_LETTERS, SUBMISSIONS, AUDIT], deadline_s=REGISTRY_DEADLINE_S)
        config = producer_config(
            settings, settings.function(PERSISTER), delivery_timeout_s=HOLD_INPUT_DELIVERY_TIMEOUT_S
        )
        self._publisher = Publisher(config, in_flight_max=IN_FLIGHT_MAX)
        self._pool = make_pool(settings, PERSISTER, size_max=POOL_MAX)
        await self._pool.open()
        self._store = Store(self._pool)
        self._resets = ResetOutbox(settings, self._pool, self._codec, self._reachable)
        now = partial(earlier_now, self._pool, utc_now)
        self._jobs = Jobs(self._resets, RowRetention(self._pool), TopicRetention(settings, PERSISTER, now))

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        """Return the position stored in the database, or the start of the log when the log contradicts it.

        Reading all of the log again is safe, because writing is idempotent. Raises PositionRefused when leads were
        deleted from the log unread, DependencyDown.
        """
        topic_id = (await asyncio.to_thread(self._reader.topic_ids, [topic])).get(topic)
        if topic_id is None:
            raise DependencyDown(f"there is no topic {topic}")
        stored = await self._store.position(topic_id, partition)
        asks_at = 0 if stored is None else stored.asks_at
        now = await asyncio.to_thread(self._reader.now, topic, partition, asks_at, deadline_s=READ_DEADLINE_S)
        if now.topic_id != topic_id:
            raise DependencyDown(f"the topic {topic} is being recreated")
        start = self._start(topic, partition, stored, now)
        if start != stored:
            expected = start.next_offset if stored is None else stored.next_offset
            if not await self._store.begin(OffsetStep(topic, partition, expected, start)):
                raise DependencyDown(f"the stored offset of {topic} partition {partition} changed meanwhile")
        self._topic_ids[topic] = topic_id
        self._stored[topic, partition] = start.next_offset
        return start

    def _start(self, topic: str, partition: int, stored: LogPosition | None, now: LogNow) -> LogPosition:
        at, log_start = {"topic": topic, "partition": partition}, LogPosition(now.start, now.topic_id)
        if stored is None:
            if now.end > now.start:
                # The database is new or was emptied, or the topic was recreated; nothing shows what was stored before.
                log.warning("no stored position, reading all of the log", end=now.end, **at)
            return log_start
        finding = compare(stored, now)
        if finding.believed:
            return proven(stored, now)
        reason = refusal(self._settings.function(PERSISTER), topic, partition, stored, now, finding)
        if finding is Finding.TRIMMED and topic == LEADS:
            raise PositionRefused(reason)
        if finding is Finding.TRIMMED:
            # No loss, because rows expire with their records: the rows would be deleted by now.
            log.warning("records expired before they were stored", next=stored.next_offset, start=now.start, **at)
        else:
            log.error("log contradicts the stored position, reading all of it again", error=reason, **at)
        return log_start

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        """Store a position that the log contradicts, replacing a later one. Raises DependencyDown."""
        await self._store.put_back(OffsetStep(topic, partition, position.next_offset, position))

    def revoked(self) -> None:
        """Drop the cached offsets of every partition, because another worker may move them on."""
        self._stored.clear()

    async def decode(self, record: Record) -> Event | None:
        """Return a record's event; None for a tombstone. Raises RecordRefused, DependencyDown."""
        return await decode(self._codec, record)

    async def work(self, records: Sequence[Decoded], still_assigned: Callable[[], bool]) -> None:
        """Store a batch and its offsets in one transaction.

        Raises AssignmentLost when a stored offset is not the batch's first, RecordRefused, DependencyDown.
        """
        last = {(record.topic, record.partition): record for record, _ in records}
        progress = [
            OffsetStep(topic, partition, self._stored[topic, partition], record.position(self._topic_ids[topic]))
            for (topic, partition), record in last.items()
        ]
        await self._store.write(rows_of(records), progress)
        self._reachable.answered()
        if not still_assigned():
            raise AssignmentLost
        self._stored.update({topic_partition: record.next_offset for topic_partition, record in last.items()})
        now = utc_now()
        taken_at = [event.taken_at for _, event in records if isinstance(event, Lead)]
        metrics.END_TO_END.of("persisted").observe_all([(now - at).total_seconds() for at in taken_at])

    async def park(self, record: Record, reason: str, error: str) -> None:
        """Dead-letter a record that can never be stored. Raises DependencyDown."""
        await park(self._publisher, self._codec, self._settings.function(PERSISTER), record, reason, error)

    async def close(self) -> None:
        """Stop the maintenance jobs and close the connections, within a few seconds."""
        await self._jobs.close()
        await self._resets.close()
        await self._publisher.close()
        await self._pool.close(timeout=5.0)
