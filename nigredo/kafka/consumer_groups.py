"""Offsets of consumer groups, set from outside while a group has no members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from confluent_kafka import ConsumerGroupState, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription

from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import client_config, describe_error
from nigredo.settings import Settings

CALL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 5.0
METADATA_TRIES = 20


def members(settings: Settings, group: str) -> int:
    """Return how many members a group has. Raises DependencyDown, also while it is between two assignments."""
    found = _described(settings, group)
    if found.state in (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD):
        return 0
    if found.state != ConsumerGroupState.STABLE:
        raise DependencyDown(f"group {group} is being assigned")
    return len(found.members)


def unread(settings: Settings, group: str, topic: str, partitions: Iterable[int]) -> list[int]:
    """Return the partitions of a topic that no member of a group reads. Raises DependencyDown.

    None while the group has no members, or is between two assignments.
    """
    read = assigned(_described(settings, group))
    return [] if read is None else [number for number in sorted(partitions) if (topic, number) not in read]


def assigned(group: ConsumerGroupDescription) -> set[tuple[str, int]] | None:
    """Return topic and partition of all that members have; None without members, or between two assignments."""
    if group.state != ConsumerGroupState.STABLE:
        return None
    return {
        (at.topic, at.partition)
        for member in group.members
        if member.assignment is not None
        for at in member.assignment.topic_partitions
    }


def _described(settings: Settings, group: str) -> ConsumerGroupDescription:
    admin = AdminClient(client_config(settings, settings.function("groups")))
    ensure_answer(admin)
    try:
        asked = admin.describe_consumer_groups([group], request_timeout=CALL_TIMEOUT_S)
        found: ConsumerGroupDescription = asked[group].result(CALL_TIMEOUT_S + 2)
    except KafkaException as error:
        raise DependencyDown(f"group {group} cannot be described: {describe_error(error.args[0])}") from error
    except TimeoutError as error:
        raise DependencyDown(f"group {group} cannot be described: Kafka does not answer") from error
    return found


def ensure_answer(admin: AdminClient) -> None:
    """Raise DependencyDown unless a broker answers, before a call that has to find a group's coordinator.

    librdkafka ends the process when the connection is lost under such a call (confluentinc/librdkafka#4605), so none is
    begun while Kafka is away.
    """
    try:
        admin.list_topics(timeout=ANSWER_TIMEOUT_S)
    except KafkaException as error:
        raise DependencyDown(describe_error(error.args[0])) from error


def committed_offsets(admin: AdminClient, group: str, asked: Sequence[TopicPartition]) -> list[TopicPartition]:
    """Return what a group committed, in the order asked, with the metadata that `from_metadata` takes.

    Not a consumer's `committed`: that fails for most metadata, since librdkafka copies it without an end, and what
    follows it in memory is no text (confluentinc/librdkafka#4649). Raises DependencyDown.
    """
    if not asked:
        return []
    ensure_answer(admin)
    request = [ConsumerGroupTopicPartitions(group, [TopicPartition(at.topic, at.partition) for at in asked])]
    for _ in range(METADATA_TRIES):
        try:
            answer = admin.list_consumer_group_offsets(request, request_timeout=CALL_TIMEOUT_S)
            found: list[TopicPartition] = answer[group].result(CALL_TIMEOUT_S + 2).topic_partitions
        except UnicodeDecodeError:
            continue  # Here too, though seldom: the next copy has another end.
        except KafkaException as error:
            raise DependencyDown(describe_error(error.args[0])) from error
        except TimeoutError as error:
            raise DependencyDown("Kafka does not answer") from error
        for at in found:
            if at.error is not None:
                # Not to be taken for a partition without an offset: some begin such a one anew.
                raise DependencyDown(describe_error(at.error))
        by_place = {(at.topic, at.partition): at for at in found}
        return [by_place[at.topic, at.partition] for at in asked]
    raise DependencyDown(f"the metadata of {group} cannot be read")


def commit_offsets(
    settings: Settings,
    group: str,
    topic: str,
    offsets: Mapping[int, int],
    metadata: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Set the next offset of each partition for a group, with the metadata its members read.

    The metadata is a position's proof (`nigredo/log_position.py`).

    Kafka allows it only while the group has no members. Raises DependencyDown, also when it has some.
    """
    admin = AdminClient(client_config(settings, settings.function("groups")))
    wanted = [
        TopicPartition(topic, partition, offset, metadata.get(partition, "")) for partition, offset in offsets.items()
    ]
    try:
        request = [ConsumerGroupTopicPartitions(group, wanted)]
        answers = admin.alter_consumer_group_offsets(request, request_timeout=CALL_TIMEOUT_S)
        for answer in answers[group].result(CALL_TIMEOUT_S + 2).topic_partitions:
            if answer.error is not None:
                raise DependencyDown(f"offsets of {group} cannot be set: {describe_error(answer.error)}")
    except KafkaException as error:
        raise DependencyDown(f"offsets of {group} cannot be set: {describe_error(error.args[0])}") from error
    except TimeoutError as error:
        raise DependencyDown(f"offsets of {group} cannot be set: Kafka does not answer") from error
