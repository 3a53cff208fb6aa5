"""Watch on a group's topics: missing topics and unassigned partitions, in one look cheap enough for a probe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from nigredo.errors import DependencyDown
from nigredo.kafka.consumer_groups import assigned, ensure_answer
from nigredo.kafka.positions.log_trail import Place
from nigredo.kafka.publisher import client_config, describe_error
from nigredo.settings import Settings

T = TypeVar("T")

CALL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PartitionObservation:
    """State of a group's topics at one moment."""

    missing: Sequence[str]
    unassigned: Sequence[Place]
    """Partitions assigned to no member of the group; empty while the group has no members or is rebalancing."""


class LogWatch:
    """Observes the topics of one group by one cached client. Blocks: call in a thread."""

    def __init__(self, settings: Settings, component: str, topics: Sequence[str]) -> None:
        self._settings = settings
        self._name = settings.function(component)
        self.topics = topics

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient(client_config(self._settings, self._name))

    def look(self) -> PartitionObservation:
        """Return the current state of the topics. Raises DependencyDown when Kafka does not answer."""
        try:
            partitions = self._partitions()
            return PartitionObservation(
                [topic for topic in self.topics if topic not in partitions],
                self._unassigned([(topic, number) for topic, numbers in partitions.items() for number in numbers]),
            )
        except KafkaException as error:
            self._replace_admin()
            raise DependencyDown(describe_error(error.args[0])) from error
        except DependencyDown:
            self._replace_admin()
            raise
        except TimeoutError as error:
            self._replace_admin()
            raise DependencyDown("Kafka does not answer") from error

    def _replace_admin(self) -> None:
        # Dropped after a failure, because the old client may never find the group's coordinator again.
        self.__dict__.pop("_admin", None)

    def _partitions(self) -> dict[str, list[int]]:
        asked = self._admin.describe_topics(TopicCollection(list(self.topics)), request_timeout=CALL_TIMEOUT_S)
        found = {}
        for topic, answer in asked.items():
            try:
                described = _answer(answer)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                continue
            found[topic] = sorted(partition.id for partition in described.partitions)
        return found

    def _unassigned(self, topic_partitions: Iterable[Place]) -> list[Place]:
        ensure_answer(self._admin)
        asked = self._admin.describe_consumer_groups([self._name], request_timeout=CALL_TIMEOUT_S)
        held = assigned(_answer(asked[self._name]))
        return (
            []
            if held is None
            else [topic_partition for topic_partition in topic_partitions if topic_partition not in held]
        )


def _answer(future: Future[T]) -> T:
    return future.result(CALL_TIMEOUT_S + 2)
