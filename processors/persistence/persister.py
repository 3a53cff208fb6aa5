"""The persister's work: a batch of records into the tables, with the offsets they came from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from nigredo.avro.codec import Codec
from nigredo.clock import utc_now
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

COMPONENT = "persister"
POOL_MAX = 4
"""One for the writing, one for a partition that is begun meanwhile, one for each of the chores."""
REGISTRY_DEADLINE_S = 10.0
"""After it the process says what it waits for, and tries again."""
IN_FLIGHT_MAX = 1000
READ_DEADLINE_S = 10.0


class Persister:
    """Stores what the topics hold. The database says where each partition goes on, not the consumer group."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._reachable = Reachable(health)
        self._reader = TopicReader(settings, COMPONENT)
        self._stored: dict[tuple[str, int], int] = {}
        self._topic_ids: dict[str, str] = {}
        self._codec: Codec
        self._publisher: Publisher
        self._pool: Pool
        self._store: Store
        self._resets: ResetOutbox
        self._chores: Jobs

    async def open(self) -> None:
        """Connect. Raises DependencyDown."""
        settings = self._settings
        self._codec = await ready_codec(settings, [DEAD_LETTERS, SUBMISSIONS, AUDIT], deadline_s=REGISTRY_DEADLINE_S)
        config = producer_config(
            settings, settings.function(COMPONENT), delivery_timeout_s=HOLD_INPUT_DELIVERY_TIMEOUT_S
        )
        self._publisher = Publisher(config, in_flight_max=IN_FLIGHT_MAX)
        self._pool = make_pool(settings, COMPONENT, size_max=POOL_MAX)
        await self._pool.open()
        self._store = Store(self._pool)
        self._resets = ResetOutbox(settings, self._pool, self._codec, self._reachable)
        now = partial(earlier_now, self._pool, utc_now)
        self._chores = Jobs(self._resets, RowRetention(self._pool), TopicRetention(settings, COMPONENT, now))

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        """Return where the database says that the partition goes on, as far as the log bears it out.

        Writing is idempotent, so whatever was not read for certain is read (again) from the start of the log. Raises
        PositionRefused for leads that are gone from the log unread.
        """
        topic_id = (await asyncio.to_thread(self._reader.topic_ids, [topic])).get(topic)
        if topic_id is None:
            raise DependencyDown(f"there is no topic {topic}")
        stored = await self._store.position(topic_id, partition)
        asks_at = 0 if stored is None else stored.asks_at
        now = await asyncio.to_thread(self._reader.now, topic, partition, asks_at, deadline_s=READ_DEADLINE_S)
        if now.topic_id != topic_id:
            raise DependencyDown(f"the topic {topic} is being made again")
        start = self._start(topic, partition, stored, now)
        if start != stored:
            stood_at = start.next_offset if stored is None else stored.next_offset
            if not await self._store.begin(OffsetStep(topic, partition, stood_at, start)):
                raise DependencyDown(f"the database moved {topic} partition {partition} on meanwhile")
        self._topic_ids[topic] = topic_id
        self._stored[topic, partition] = start.next_offset
        return start

    def _start(self, topic: str, partition: int, stored: LogPosition | None, now: LogNow) -> LogPosition:
        at, begun = {"topic": topic, "partition": partition}, LogPosition(now.start, now.topic_id)
        if stored is None:
            if now.end > now.start:
                # The database was emptied or is new, or the topic was made again: only the log can tell what is in it.
                log.warning("the database has no position here, so that all of the log is read", end=now.end, **at)
            return begun
        finding = compare(stored, now)
        if finding.believed:
            return proven(stored, now)
        said = refusal(self._settings.function(COMPONENT), topic, partition, stored, now, finding)
        if finding is Finding.TRIMMED and topic == LEADS:
            raise PositionRefused(said)
        if finding is Finding.TRIMMED:
            # Rows live as long as their records: these would be gone by now.
            log.warning("records expired before they were stored", next=stored.next_offset, start=now.start, **at)
        else:
            log.error("the log was set back, so that all of it is read again", error=said, **at)
        return begun

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        """Store a position that the log contradicts in the place of a later one. Raises DependencyDown."""
        await self._store.put_back(OffsetStep(topic, partition, position.next_offset, position))

    def revoked(self) -> None:
        """Forget where the partitions stand: somebody else may move them on."""
        self._stored.clear()

    async def decode(self, record: Record) -> Event | None:
        """Return a record's event. Raises RecordRefused, DependencyDown."""
        return await decode(self._codec, record)

    async def work(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Store a batch in one transaction. Raises Stale when the database does not stand where it began."""
        last = {(record.topic, record.partition): record for record, _ in records}
        progress = [
            OffsetStep(topic, partition, self._stored[topic, partition], record.position(self._topic_ids[topic]))
            for (topic, partition), record in last.items()
        ]
        await self._store.write(rows_of(records), progress)
        self._reachable.answered()
        if not still_ours():
            raise AssignmentLost
        self._stored.update({place: record.next_offset for place, record in last.items()})
        now = utc_now()
        taken_at = [event.taken_at for _, event in records if isinstance(event, Lead)]
        metrics.END_TO_END.of("persisted").observe_all([(now - at).total_seconds() for at in taken_at])

    async def park(self, record: Record, reason: str, error: str) -> None:
        """Put a record that can never be stored aside. Raises DependencyDown."""
        await park(self._publisher, self._codec, self._settings.function(COMPONENT), record, reason, error)

    async def close(self) -> None:
        """Release the connections, within a few seconds."""
        await self._chores.close()
        await self._resets.close()
        await self._publisher.close()
        await self._pool.close(timeout=5.0)
