"""The persister's work: a batch of records into the tables, with the offsets they came from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from nigredo import metrics
from nigredo.clock import utc_now
from nigredo.db import Pool, make_pool
from nigredo.dead_letters import park
from nigredo.errors import DependencyDown
from nigredo.kafka import FOR_EVER_S, Publisher, client_config, producer_config, told
from nigredo.log_reader import LogReader
from nigredo.record import Record
from nigredo.settings import Settings
from nigredo.startup import ready_codec
from processors.handler import Decoded, Stale, decode
from processors.persistence.chores import Chores
from processors.persistence.cleanup import CleanUp
from processors.persistence.expiry import Expiry
from processors.persistence.resets import ResetRelay
from processors.persistence.rows import rows_of
from processors.persistence.store import Progress, Store
from schemas.codec import Codec
from schemas.events import Event, Lead
from schemas.topics import AUDIT, DEAD_LETTERS, DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS, SUBMISSIONS

COMPONENT = "persister"
TOPICS = (LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES)
POOL_MAX = 4
"""One for the writing, one for a partition that is begun meanwhile, one for each of the chores."""
REGISTRY_DEADLINE_S = 10.0
"""After it the process says what it waits for, and tries again."""
IN_FLIGHT_MAX = 1000
CALL_TIMEOUT_S = 5.0


class Persister:
    """Stores what the topics hold. The database says where each partition goes on, not the consumer group."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reader = LogReader(settings, COMPONENT)
        self._stored: dict[tuple[str, int], int] = {}
        self._topic_ids: dict[str, str] = {}
        self._codec: Codec
        self._publisher: Publisher
        self._pool: Pool
        self._store: Store
        self._resets: ResetRelay
        self._chores: Chores

    async def open(self) -> None:
        """Connect. Raises DependencyDown."""
        settings = self._settings
        self._codec = await ready_codec(settings, [DEAD_LETTERS, SUBMISSIONS, AUDIT], deadline_s=REGISTRY_DEADLINE_S)
        config = producer_config(settings, settings.function(COMPONENT), delivery_timeout_s=FOR_EVER_S)
        self._publisher = Publisher(config, in_flight_max=IN_FLIGHT_MAX)
        self._pool = make_pool(settings, COMPONENT, size_max=POOL_MAX)
        await self._pool.open()
        self._store = Store(self._pool)
        self._resets = ResetRelay(settings, self._pool, self._codec)
        self._chores = Chores(self._resets, CleanUp(self._pool), Expiry(settings, COMPONENT))

    async def begin(self, topic: str, partition: int, committed: int | None) -> int:
        """Return where the database says that the partition goes on; the start of the log if it never saw it."""
        topic_id = await self._topic_id(topic)
        stored = await self._store.next_offset(topic_id, partition)
        if stored is None:
            start, _ = await asyncio.to_thread(self._reader.watermarks, topic, partition)
        else:
            start = stored
        self._stored[topic, partition] = start
        return start

    async def _topic_id(self, topic: str) -> str:
        """Return Kafka's own id of the topic: one made anew under the same name begins at zero again."""
        self._topic_ids[topic] = await asyncio.to_thread(self._ask_topic_id, topic)
        return self._topic_ids[topic]

    def _ask_topic_id(self, topic: str) -> str:
        config = client_config(self._settings, self._settings.function(COMPONENT))
        admin = AdminClient(config)
        try:
            answer = admin.describe_topics(TopicCollection([topic]), request_timeout=CALL_TIMEOUT_S)
            return str(answer[topic].result(CALL_TIMEOUT_S + 2).topic_id)
        except KafkaException as error:
            raise DependencyDown(told(error.args[0])) from error
        except TimeoutError as error:
            raise DependencyDown("Kafka does not answer") from error

    def revoked(self) -> None:
        """Forget where the partitions stand: somebody else may move them on."""
        self._stored.clear()

    async def decode(self, record: Record) -> Event | None:
        """Return a record's event. Raises RecordRefused, DependencyDown."""
        return await decode(self._codec, record)

    async def work(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Store a batch in one transaction. Raises Stale when the database does not stand where it began."""
        ends: dict[tuple[str, int], int] = {}
        for record, _ in records:
            ends[record.topic, record.partition] = record.next_offset
        progress = [
            Progress(self._topic_ids[topic], partition, topic, self._stored[topic, partition], end)
            for (topic, partition), end in ends.items()
        ]
        await self._store.write(rows_of(records), progress)
        if not still_ours():
            raise Stale
        self._stored.update(ends)
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
