"""Delivery state of an endpoint, read from Kafka: live offsets, pending retries and replays, dead leads; blocking."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cached_property

from nigredo.avro.codec import Codec, Undecodable
from nigredo.endpoints.keys import from_key, sender_group
from nigredo.errors import ConfigurationError
from nigredo.kafka.topic_reader import TopicReader
from nigredo.process import ready_codec
from nigredo.settings import Settings
from schemas.events import Event, WebhookDead
from schemas.topics import AUDIT, LEADS, WEBHOOK_DEAD, WEBHOOK_REPLAYS

RETRIES_PREFIX = "nigredo.webhook-retries."
REGISTRY_WITHIN_S = 10.0


class WebhookTopics:
    """Reads the webhook topics from start to end at each call. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, reader: TopicReader) -> None:
        self._settings = settings
        self._reader = reader

    @cached_property
    def codec(self) -> Codec:
        """Codec that reads all these topics, and writes replay references and audit entries."""
        return asyncio.run(ready_codec(self._settings, [WEBHOOK_REPLAYS, AUDIT], deadline_s=REGISTRY_WITHIN_S))

    def live_offsets(self, endpoint: str) -> Mapping[int, int]:
        """Return the sender group's committed offset in each partition of the leads.

        Raises ConfigurationError for an endpoint that never began, or whose group has lost its offsets.
        """
        group = sender_group(self._settings, endpoint)
        committed = self._reader.committed(group, LEADS, self._reader.partitions(LEADS))
        if all(offset is None for offset in committed.values()):
            # Kafka deletes a group's offsets together with the topic.
            raise ConfigurationError(
                f"group {group} has no offsets: endpoint {endpoint} never began, or its offsets were lost; see "
                "`nigredo recover --dry-run`"
            )
        return {partition: offset or 0 for partition, offset in committed.items()}

    def waiting(self, endpoint: str) -> set[bytes]:
        """Return the ids (16 bytes each) of leads with a pending attempt: a scheduled retry or a requested replay."""
        retries, found = self.retry_topics(endpoint), self.replays(endpoint)
        # Read twice, so that a lead that moves from one topic to another meanwhile is found by one of the readings.
        for topic in [*retries, *retries]:
            found |= {known[0].bytes for key, _ in self.standing(topic) if (known := from_key(key)) is not None}
        return found | self.replays(endpoint)

    def retry_topics(self, endpoint: str) -> list[str]:
        """Return the retry topics of an endpoint, including those that an older release created."""
        prefix = f"{RETRIES_PREFIX}{endpoint}."
        # The prefix is unambiguous, because an endpoint's name has no dot; a delay follows it.
        return [name for name in self._reader.topics() if name.startswith(prefix)]

    def replays(self, endpoint: str) -> set[bytes]:
        """Return the ids (16 bytes each) of leads with a replay that is not settled yet."""
        keys = (from_key(key) for key, _ in self.standing(WEBHOOK_REPLAYS))
        return {known[0].bytes for known in keys if known is not None and known[1] == endpoint}

    def dead(self) -> list[WebhookDead]:
        """Return the dead leads of every endpoint, oldest first."""
        found = [self.decode(WEBHOOK_DEAD, value) for _, value in self.standing(WEBHOOK_DEAD)]
        return sorted((dead for dead in found if isinstance(dead, WebhookDead)), key=lambda dead: dead.died_at)

    def standing(self, topic: str) -> list[tuple[bytes, bytes]]:
        """Return the current (key, value) pairs of a compacted topic. All of them are in memory at once."""
        current: dict[tuple[bytes, int], bytes] = {}
        for partition in self._reader.partitions(topic):
            low, end = self._reader.watermarks(topic, partition)
            for message in self._reader.between(topic, partition, low, end):
                if (key := message.key()) is None:
                    continue
                if (value := message.value()) is None:
                    current.pop((key, partition), None)
                else:
                    current[key, partition] = value
        return [(key, value) for (key, _), value in current.items()]

    def decode(self, topic: str, value: bytes | None) -> Event | None:
        """Return the event; None for a tombstone or an undecodable value."""
        try:
            return None if value is None else self.codec.decode(topic, value)
        except Undecodable:
            return None  # Harmless: at worst a lead is delivered twice.
