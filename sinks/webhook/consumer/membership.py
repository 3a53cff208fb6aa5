"""Group membership: the client's configuration, its commits, and the time until which they prove the membership.

Only the consumer's thread may use `Commits`, except for `ours_until`, which any thread may read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from nigredo.kafka.publisher import client_config
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from sinks.webhook.model import PartitionId

log = get_logger()

METADATA_MAX_AGE_MS = 10_000
"""Time within which added partitions are noticed; with librdkafka's default, five minutes pass without a reader."""
HEARD_FROM_SHARE = 1 / 4
"""Share of the session timeout after which an old position is committed again if there is nothing new to commit."""


def consumer_config(settings: Settings, group: str) -> dict[str, Any]:
    """Return the configuration of a member's client, which never commits automatically."""
    session_ms = int(settings.kafka_session_timeout_s * 1000)
    return client_config(settings, group) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # Never guess: an operator decides how to continue when an offset is gone.
        "auto.offset.reset": "error",
        "topic.metadata.refresh.interval.ms": METADATA_MAX_AGE_MS,
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": session_ms // 4,
        "fetch.wait.max.ms": 50,
        "queued.max.messages.kbytes": 16_384,
    }


class Commits:
    """Commits of one membership, over all of its assignments."""

    def __init__(self, session_s: float, clock: Callable[[], float]) -> None:
        """session_s: the group's session timeout. clock: seconds; must advance while the process is frozen."""
        self._session_s = session_s
        self._clock = clock
        self._heard_at = clock() - session_s
        self._committed: dict[PartitionId, TopicPartition] = {}

    @property
    def ours_until(self) -> float:
        """Time, by the clock, until which no other member can own the assigned partitions.

        A member that the broker does not hear from for the session timeout loses its partitions, and learns so only
        when the broker answers again. So a process that was frozen must confirm its membership before it sends.
        """
        return self._heard_at + self._session_s

    def assigned(self) -> None:
        """Start a new assignment, in which nothing is committed yet."""
        self._committed = {}

    def due(
        self, next_offsets: Mapping[PartitionId, int], offset: Callable[[PartitionId], TopicPartition]
    ) -> list[TopicPartition]:
        """Return the offsets to commit, with their metadata.

        Without a new position, an old one is repeated after HEARD_FROM_SHARE of the session timeout. next_offsets: of
        the partitions that are read. offset: returns the offset and metadata to commit for a partition.
        """
        moved = [place for place, at in next_offsets.items() if self._moved(place, at)]
        if moved:
            return [offset(place) for place in moved]
        if self._clock() - self._heard_at < HEARD_FROM_SHARE * self._session_s:
            return []
        return [at for place, at in self._committed.items() if place in next_offsets][:1]

    def _moved(self, place: PartitionId, next_offset: int) -> bool:
        committed = self._committed.get(place)
        return committed is None or committed.offset != next_offset

    def send(self, consumer: Consumer, offsets: list[TopicPartition]) -> set[PartitionId]:
        """Commit and return the partitions that the broker accepted. A failed commit costs a repetition, never a lead.

        The broker accepts commits of members only, and restarts their session with each: so an accepted commit proves
        that the assigned partitions still belong to this member.
        """
        asked_at = self._clock()
        try:
            answers = consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("offsets not committed", error=error.args[0].name())
            return set()
        accepted = {(at.topic, at.partition) for at in answers if at.error is None}
        if accepted:
            self._heard_at = asked_at
        self._committed |= {place: at for at in offsets if (place := (at.topic, at.partition)) in accepted}
        return accepted
