"""Consumer groups from outside: members, unassigned partitions, committed offsets, and offsets set while none reads."""

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
    """Return the number of a group's members. Raises DependencyDown, also during a rebalance."""
    found = _described(settings, group)
    if found.state in (ConsumerGroupState.EMPTY, ConsumerGroupState.DEAD):
        return 0
    if found.state != ConsumerGroupState.STABLE:
        raise DependencyDown(f"group {group} is rebalancing")
    return len(found.members)


def unread(settings: Settings, group: str, topic: str, partitions: Iterable[int]) -> list[int]:
    """Return the partitions of a topic that are not assigned to any member of a group. Raises DependencyDown.

    Empty while the group has no members or is rebalancing.
    """
    read = assigned(_described(settings, group))
    return [] if read is None else [number for number in sorted(partitions) if (topic, number) not in read]


def assigned(group: ConsumerGroupDescription) -> set[tuple[str, int]] | None:
    """Return the (topic, partition) pairs assigned to members; None without members or during a rebalance."""
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
    """Raise DependencyDown unless a broker answers; to be called before a request that looks up a group's coordinator.

    librdkafka aborts the process when the connection is lost during such a request (confluentinc/librdkafka#4605), so
    no such request is started while Kafka is unavailable.
    """
    try:
        admin.list_topics(timeout=ANSWER_TIMEOUT_S)
    except KafkaException as error:
        raise DependencyDown(describe_error(error.args[0])) from error


def committed_offsets(admin: AdminClient, group: str, asked: Sequence[TopicPartition]) -> list[TopicPartition]:
    """Return a group's committed offsets in the order of `asked`, with the metadata that `from_metadata` parses.

    Replaces a consumer's `committed`, which fails for most metadata: librdkafka copies the text without its end, and
    the bytes that follow in memory are no UTF-8 (confluentinc/librdkafka#4649). Raises DependencyDown.
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
            continue  # The same defect, though rare here; the next copy ends in other bytes.
        except KafkaException as error:
            raise DependencyDown(describe_error(error.args[0])) from error
        except TimeoutError as error:
            raise DependencyDown("Kafka does not answer") from error
        for at in found:
            if at.error is not None:
                # An error must not look like "no offset": some callers start such a partition from its beginning.
                raise DependencyDown(describe_error(at.error))
        by_topic_partition = {(at.topic, at.partition): at for at in found}
        return [by_topic_partition[at.topic, at.partition] for at in asked]
    raise DependencyDown(f"the commit metadata of group {group} cannot be read")


def commit_offsets(
    settings: Settings,
    group: str,
    topic: str,
    offsets: Mapping[int, int],
    metadata: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Set a group's committed offset of each partition, with the metadata that its members read.

    offsets: next offset by partition. metadata: a position's proof by partition (`nigredo/log_position.py`).
    Kafka allows this only while the group has no members: with members, DependencyDown is raised as for any failure.
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
