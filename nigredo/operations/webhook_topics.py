"""What the topics say about deliveries to an endpoint: what waits, what is dead, how far live delivery is; blocking."""

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
    """Reads them as they stand. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, reader: TopicReader) -> None:
        self._settings = settings
        self._reader = reader

    @cached_property
    def codec(self) -> Codec:
        """What reads all of them, and writes references and the audit."""
        return asyncio.run(ready_codec(self._settings, [WEBHOOK_REPLAYS, AUDIT], deadline_s=REGISTRY_WITHIN_S))

    def live_offsets(self, endpoint: str) -> Mapping[int, int]:
        """Return how far live delivery has settled each partition of the leads.

        Raises ConfigurationError for an endpoint that was never begun.
        """
        group = sender_group(self._settings, endpoint)
        committed = self._reader.committed(group, LEADS, self._reader.partitions(LEADS))
        if all(offset is None for offset in committed.values()):
            # They go with the topic, when it is deleted.
            raise ConfigurationError(
                f"group {group} has no offsets: endpoint {endpoint} was never begun, or lost them; look with"
                f" nigredo recover --dry-run"
            )
        return {partition: offset or 0 for partition, offset in committed.items()}

    def waiting(self, endpoint: str) -> set[bytes]:
        """Return the leads (16 bytes each) with an attempt to come: in a retry topic or asked for by a replay."""
        retries, found = self.retry_topics(endpoint), self.replays(endpoint)
        # Twice: a lead that is moved from one topic to another while they are read is met by one of the two readings.
        for topic in [*retries, *retries]:
            found |= {known[0].bytes for key, _ in self.standing(topic) if (known := from_key(key)) is not None}
        return found | self.replays(endpoint)

    def retry_topics(self, endpoint: str) -> list[str]:
        """Return the topics in which later attempts wait, also such as an older release made."""
        prefix = f"{RETRIES_PREFIX}{endpoint}."
        # What follows is a delay: an endpoint's name has no dot in it.
        return [name for name in self._reader.topics() if name.startswith(prefix)]

    def replays(self, endpoint: str) -> set[bytes]:
        """Return the leads (16 bytes each) that somebody asked to be sent again and that are not settled."""
        keys = (from_key(key) for key, _ in self.standing(WEBHOOK_REPLAYS))
        return {known[0].bytes for known in keys if known is not None and known[1] == endpoint}

    def dead(self) -> list[WebhookDead]:
        """Return the dead leads of every endpoint, the newest last."""
        found = [self.decode(WEBHOOK_DEAD, value) for _, value in self.standing(WEBHOOK_DEAD)]
        return sorted((dead for dead in found if isinstance(dead, WebhookDead)), key=lambda dead: dead.died_at)

    def standing(self, topic: str) -> list[tuple[bytes, bytes]]:
        """Return key and value of what stands in a compacted topic. All of it is in memory at once."""
        standing: dict[tuple[bytes, int], bytes] = {}
        for partition in self._reader.partitions(topic):
            low, end = self._reader.watermarks(topic, partition)
            for message in self._reader.between(topic, partition, low, end):
                if (key := message.key()) is None:
                    continue
                if (value := message.value()) is None:
                    standing.pop((key, partition), None)
                else:
                    standing[key, partition] = value
        return [(key, value) for (key, _), value in standing.items()]

    def decode(self, topic: str, value: bytes | None) -> Event | None:
        """Return an event; None for a tombstone, and for what nobody can read."""
        try:
            return None if value is None else self.codec.decode(topic, value)
        except Undecodable:
            return None  # At worst a lead is sent once more.
