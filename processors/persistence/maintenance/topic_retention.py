"""Ends what compacted topics keep, record by record: Kafka deletes segments, and compaction makes one of old and new.

A topic with the policy `compact,delete` is to keep nothing past its `retention.ms`. But Kafka deletes a segment once
its newest record is that old, and its cleaner merges small segments on every round, up to `segment.bytes`: a record
from long ago stays as long as something young is merged with it. So the start of each partition is moved.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import client_config, describe_error
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.topics import TOPICS, TopicSpec

log = get_logger()

EVERY_S = 3600.0
CALL_TIMEOUT_S = 10.0
Now = Callable[[], Awaitable[datetime]]
REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.POLICY_VIOLATION)
EXPIRING: Mapping[str, TopicSpec] = {
    name: spec for name, spec in TOPICS.items() if "compact,delete" in spec.config["cleanup.policy"]
}


class TopicRetention:
    """The chore that moves it, to the first record that is young enough."""

    name = "expiry"

    def __init__(
        self, settings: Settings, component: str, now: Now, topics: Mapping[str, TopicSpec] = EXPIRING
    ) -> None:
        """now: returns the time by which records are old; may raise DependencyDown."""
        self._reader = TopicReader(settings, component)
        self._config = client_config(settings, settings.function(component))
        self._topics = topics
        self._now = now
        # Not at once, and persisters that were started together not together.
        self.first_after_s = random.uniform(30.0, 90.0)  # noqa: S311 - jitter, not a secret

    async def run(self) -> float:
        """Delete all that is past its time. Raises DependencyDown; what was deleted until then is."""
        await asyncio.to_thread(self._delete, await self._now())
        return random.uniform(0.9, 1.1) * EVERY_S  # noqa: S311 - jitter, not a secret

    def _delete(self, now: datetime) -> None:
        starts = []
        for name, spec in self._topics.items():
            oldest = now - timedelta(milliseconds=int(spec.config["retention.ms"]))
            for partition in self._reader.partitions(name):
                # The first one that is as young: all before it are older.
                young = self._reader.offset_at(name, partition, oldest)
                if self._reader.watermarks(name, partition)[0] < young:
                    starts.append(TopicPartition(name, partition, young))
        if not starts:
            return
        admin = AdminClient(self._config)
        try:
            answers = admin.delete_records(starts, request_timeout=CALL_TIMEOUT_S)
            for at, deleted in answers.items():
                place = {"topic": at.topic, "partition": at.partition, "start": at.offset}
                try:
                    deleted.result(CALL_TIMEOUT_S + 2)
                    log.info("records past their time were deleted", **place)
                except KafkaException as error:
                    if error.args[0].code() not in REFUSED:
                        raise
                    # To ask again would not change it; somebody is to, within the hour.
                    log.error("records past their time may not be deleted", error=error.args[0].name(), **place)
        except KafkaException as error:
            raise DependencyDown(describe_error(error.args[0])) from error
        except TimeoutError as error:
            raise DependencyDown("Kafka does not answer") from error
