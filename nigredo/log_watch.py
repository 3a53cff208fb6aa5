"""What the cluster says of topics and of the group that consumes them, in one look that is cheap enough for a probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from nigredo.errors import DependencyDown
from nigredo.kafka import client_config, told
from nigredo.settings import Settings

T = TypeVar("T")

CALL_TIMEOUT_S = 5.0
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a partition, and what changes whenever records before it may have."""

    topic_id: str
    end: int
    leader_epoch: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """Topics as they are at one moment."""

    tails: Mapping[Place, Tail]
    missing: Sequence[str]
    unassigned: Sequence[Place]
    """Partitions that no member of the group has; empty while the group is between two assignments."""


class LogWatch:
    """Looks at the topics of one group; blocking, for a thread. Its one client is kept from look to look."""

    def __init__(self, settings: Settings, component: str, topics: Sequence[str]) -> None:
        self._settings = settings
        self._name = settings.function(component)
        self.topics = topics

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient(client_config(self._settings, self._name))

    def look(self) -> Look:
        """Raises DependencyDown when Kafka does not answer, or a partition has no leader yet."""
        try:
            partitions = self._partitions()
            return Look(
                self._tails(partitions),
                [topic for topic in self.topics if topic not in partitions],
                self._unassigned([(topic, number) for topic, (_, numbers) in partitions.items() for number in numbers]),
            )
        except KafkaException as error:
            self._replace_admin()
            raise DependencyDown(told(error.args[0])) from error
        except TimeoutError as error:
            self._replace_admin()
            raise DependencyDown("Kafka does not answer") from error

    def _replace_admin(self) -> None:
        # As `LogReader` does: one that failed may never find the coordinator again.
        self.__dict__.pop("_admin", None)

    def _partitions(self) -> dict[str, tuple[str, list[int]]]:
        asked = self._admin.describe_topics(TopicCollection(list(self.topics)), request_timeout=CALL_TIMEOUT_S)
        found = {}
        for topic, answer in asked.items():
            try:
                described = _answer(answer)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                continue
            found[topic] = (str(described.topic_id), sorted(partition.id for partition in described.partitions))
        return found

    def _tails(self, partitions: Mapping[str, tuple[str, list[int]]]) -> dict[Place, Tail]:
        wanted = {
            TopicPartition(topic, number): OffsetSpec.latest()  # type: ignore[no-untyped-call] # the library's oversight
            for topic, (_, numbers) in partitions.items()
            for number in numbers
        }
        if not wanted:
            return {}
        asked = self._admin.list_offsets(wanted, request_timeout=CALL_TIMEOUT_S)
        tails = {}
        for at, answer in asked.items():
            latest = _answer(answer)
            tails[at.topic, at.partition] = Tail(partitions[at.topic][0], latest.offset, latest.leader_epoch)
        return tails

    def _unassigned(self, places: Iterable[Place]) -> list[Place]:
        asked = self._admin.describe_consumer_groups([self._name], request_timeout=CALL_TIMEOUT_S)
        group = _answer(asked[self._name])
        if group.state != ConsumerGroupState.STABLE:
            return []
        held = {
            (at.topic, at.partition)
            for member in group.members
            if member.assignment is not None
            for at in member.assignment.topic_partitions
        }
        return [place for place in places if place not in held]


def _answer(future: Future[T]) -> T:
    return future.result(CALL_TIMEOUT_S + 2)
