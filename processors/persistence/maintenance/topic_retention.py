"""Topic retention: deletes expired records of compacted topics, which Kafka itself would store for longer.

A topic with the policy `compact,delete` must store nothing past its `retention.ms`. But Kafka deletes a segment only
once its newest record is that old, and its cleaner merges small segments in every round, up to `segment.bytes`, so that
an old record stays as long as a young one is merged with it. So this job moves the start of each partition.
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
    """Maintenance job that moves the start of each partition to its first record that has not expired."""

    name = "expiry"

    def __init__(
        self, settings: Settings, component: str, now: Now, topics: Mapping[str, TopicSpec] = EXPIRING
    ) -> None:
        """now: returns the time that record ages are measured from; raises DependencyDown."""
        self._reader = TopicReader(settings, component)
        self._config = client_config(settings, settings.function(component))
        self._topics = topics
        self._now = now
        # Delayed and jittered, so that persisters started together do not delete together.
        self.first_after_s = random.uniform(30.0, 90.0)  # noqa: S311 - jitter, not a secret

    async def run(self) -> float:
        """Delete every expired record. Raises DependencyDown; records deleted before stay deleted."""
        await asyncio.to_thread(self._delete, await self._now())
        return random.uniform(0.9, 1.1) * EVERY_S  # noqa: S311 - jitter, not a secret

    def _delete(self, now: datetime) -> None:
        starts = []
        for name, spec in self._topics.items():
            oldest = now - timedelta(milliseconds=int(spec.config["retention.ms"]))
            for partition in self._reader.partitions(name):
                # Every record before the first one that has not expired is older.
                new_start = self._reader.offset_at(name, partition, oldest)
                if self._reader.watermarks(name, partition)[0] < new_start:
                    starts.append(TopicPartition(name, partition, new_start))
        if not starts:
            return
        admin = AdminClient(self._config)
        try:
            answers = admin.delete_records(starts, request_timeout=CALL_TIMEOUT_S)
            for at, deleted in answers.items():
                fields = {"topic": at.topic, "partition": at.partition, "start": at.offset}
                try:
                    deleted.result(CALL_TIMEOUT_S + 2)
                    log.info("expired records deleted", **fields)
                except KafkaException as error:
                    if error.args[0].code() not in REFUSED:
                        raise
                    # A refusal needs an operator, so there is no retry before the next hourly run.
                    log.error("expired records not deleted, Kafka refuses", error=error.args[0].name(), **fields)
        except KafkaException as error:
            raise DependencyDown(describe_error(error.args[0])) from error
        except TimeoutError as error:
            raise DependencyDown("Kafka does not answer") from error
