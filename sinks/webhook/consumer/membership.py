"""Membership in a group: the client's configuration, its commits, and until when they prove the membership.

Commits are used by the consumer's own thread alone; only `ours_until` is asked by others.
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
"""By when partitions that were added are noticed; librdkafka's own five minutes leave them without a reader so long."""
HEARD_FROM_SHARE = 1 / 4
"""Of the session's time; with nothing to commit for so long, the broker is asked all the same."""


def consumer_config(settings: Settings, group: str) -> dict[str, Any]:
    """Return the configuration of a member's client, which commits nothing by itself."""
    session_ms = int(settings.kafka_session_timeout_s * 1000)
    return client_config(settings, group) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # Never guess: an offset that is gone is for a person to decide about.
        "auto.offset.reset": "error",
        "topic.metadata.refresh.interval.ms": METADATA_MAX_AGE_MS,
        "session.timeout.ms": session_ms,
        "heartbeat.interval.ms": session_ms // 4,
        "fetch.wait.max.ms": 50,
        "queued.max.messages.kbytes": 16_384,
    }


class Commits:
    """The commits of a membership, over all of its assignments."""

    def __init__(self, session_s: float, clock: Callable[[], float]) -> None:
        """clock: must go on while the process is frozen."""
        self._session_s = session_s
        self._clock = clock
        self._heard_at = clock() - session_s
        self._committed: dict[PartitionId, TopicPartition] = {}

    @property
    def ours_until(self) -> float:
        """Until when, by the clock, no other member can have been given what is assigned.

        A member of which the broker hears nothing for the session's time loses its partitions, and learns of it only
        once it can be told. So a process that was frozen must not go by what it knows: it asks before it sends.
        """
        return self._heard_at + self._session_s

    def assigned(self) -> None:
        """Begin a new assignment: nothing is known to be committed in it."""
        self._committed = {}

    def due(
        self, next_offsets: Mapping[PartitionId, int], offset: Callable[[PartitionId], TopicPartition]
    ) -> list[TopicPartition]:
        """Return what is to be committed of the partitions that are read.

        With nothing new to commit, an old position is repeated after a while. offset: returns how one is committed.
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
        """Commit, and return which of the partitions the broker took. One that fails costs a repetition, never a lead.

        The broker takes commits of its members alone, and counts their session from then: so each is a sign that what
        is assigned is still the member's own.
        """
        asked_at = self._clock()
        try:
            answers = consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("offsets were not committed", error=error.args[0].name())
            return set()
        taken = {(at.topic, at.partition) for at in answers if at.error is None}
        if taken:
            self._heard_at = asked_at
        self._committed |= {place: at for at in offsets if (place := (at.topic, at.partition)) in taken}
        return taken
