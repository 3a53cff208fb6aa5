"""Topic administration: create topics, correct their settings as `schemas/topics.py` describes, add partitions."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import client_config, describe_error
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.topics import SCHEMA_PINS, TOPICS, TopicSpec

EVERYWHERE: Mapping[str, TopicSpec] = {**TOPICS, **SCHEMA_PINS}
"""The topics of every installation."""
CALL_TIMEOUT_S = 10.0
NONE_WANTED: Mapping[str, int] = MappingProxyType({})
NOT_READY = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError._UNKNOWN_PARTITION,
)
"""Error codes of a broker that has not learned yet which partitions it leads; they pass."""


def ensure_topics(settings: Settings, specs: Mapping[str, TopicSpec] = EVERYWHERE) -> list[str]:
    """Create missing topics and correct differing settings; return one line per change.

    specs: by name; an endpoint's topics are passed separately, because `EVERYWHERE` does not contain them.
    Idempotent, also when several processes call at once. Never adds partitions, because that would move keys to other
    partitions while consumers run. Raises DependencyDown when Kafka does not answer.
    """
    admin = AdminClient(client_config(settings, settings.function("topics")))
    try:
        present = set(admin.list_topics(timeout=CALL_TIMEOUT_S).topics)
        missing = [spec for spec in specs.values() if spec.name not in present]
        created = _create(admin, settings, missing)
        _until_served(admin, specs, [spec.name for spec in missing])
        return created + _correct(admin, {name: spec for name, spec in specs.items() if name in present})
    except KafkaException as error:
        raise DependencyDown(describe_error(error.args[0])) from error
    except TimeoutError as error:
        raise DependencyDown("Kafka does not answer") from error


def _create(admin: AdminClient, settings: Settings, missing: Sequence[TopicSpec]) -> list[str]:
    changes = []
    wanted = [
        NewTopic(
            spec.name,
            num_partitions=spec.partitions or settings.topic_partitions,
            replication_factor=settings.topic_replication,
            # `acks=all` waits for the in-sync replicas only: of three replicas at least two must be in sync.
            config=dict(spec.config) | {"min.insync.replicas": str(max(1, settings.topic_replication - 1))},
        )
        for spec in missing
    ]
    partitions = {new.topic: new.num_partitions for new in wanted}
    if wanted:
        for name, created in admin.create_topics(wanted, request_timeout=CALL_TIMEOUT_S).items():
            try:
                created.result(CALL_TIMEOUT_S + 2)
                changes.append(f"created topic {name} with {counted(partitions[name], 'partition')}")
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
    return changes


def add_partitions(settings: Settings, wanted: Mapping[str, int]) -> None:
    """Grow topics to the wanted partition counts; return once the broker serves the new partitions.

    Adding partitions moves keys: use only for topics that are not partitioned by key hash, or on purpose.
    wanted: partition count by topic. Raises DependencyDown.
    """
    admin = AdminClient(client_config(settings, settings.function("topics")))
    try:
        asked = [NewPartitions(topic, many) for topic, many in wanted.items()]
        for done in admin.create_partitions(asked, request_timeout=CALL_TIMEOUT_S).values():
            done.result(CALL_TIMEOUT_S + 2)
        _until_served(admin, wanted, list(wanted), wanted)
    except KafkaException as error:
        raise DependencyDown(describe_error(error.args[0])) from error
    except TimeoutError as error:
        raise DependencyDown("Kafka does not answer") from error


def _until_served(
    admin: AdminClient, names: Collection[str], fresh: Collection[str], many: Mapping[str, int] = NONE_WANTED
) -> None:
    """Wait until the broker lists every topic and serves the new ones, which it does a moment after their creation.

    names: topics to be listed. fresh: topics whose every partition must have a leader. many: least partition count by
    topic. Raises DependencyDown after `CALL_TIMEOUT_S`.
    """
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while missing := _not_served(admin, names, fresh, many):
        if time.monotonic() > deadline:
            raise DependencyDown(f"Kafka does not serve these topics yet: {', '.join(missing)}")
        time.sleep(0.05)


def _not_served(
    admin: AdminClient, names: Collection[str], fresh: Collection[str], many: Mapping[str, int]
) -> list[str]:
    """Return topics that are not listed or too small, and fresh ones with a partition whose leader does not answer."""
    known = admin.list_topics(timeout=CALL_TIMEOUT_S).topics
    missing = [name for name in names if name not in known or known[name].error or not known[name].partitions]
    missing += [name for name, wanted in many.items() if name in known and len(known[name].partitions) < wanted]
    if missing or not fresh:
        return missing
    end = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(name, number): end for name in fresh for number in known[name].partitions}
    unserved = set()
    for partition, answer in admin.list_offsets(asked, request_timeout=CALL_TIMEOUT_S).items():
        try:
            answer.result(CALL_TIMEOUT_S + 2)
        except KafkaException as error:
            if error.args[0].code() not in NOT_READY:
                raise
            unserved.add(partition.topic)
    return sorted(unserved)


def _correct(admin: AdminClient, specs: Mapping[str, TopicSpec]) -> list[str]:
    changes, differing = [], []
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in specs]
    described_all = admin.describe_configs(resources, request_timeout=CALL_TIMEOUT_S) if resources else {}
    for resource, described in described_all.items():
        now = {name: entry.value for name, entry in described.result(CALL_TIMEOUT_S + 2).items()}
        corrected = _differences(now, specs[resource.name].config)
        if corrected:
            entries = [
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                for name, value in corrected.items()
            ]
            differing.append(ConfigResource(ResourceType.TOPIC, resource.name, incremental_configs=entries))
            changes += [f"set {name} of topic {resource.name}" for name in corrected]
    for altered in (admin.incremental_alter_configs(differing) if differing else {}).values():
        altered.result(CALL_TIMEOUT_S + 2)
    return changes


def _differences(now: Mapping[str, str | None], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the wanted settings that differ; the order within a list, such as a clean-up policy, does not matter."""
    return {name: value for name, value in wanted.items() if _items(now.get(name)) != _items(value)}


def _items(value: str | None) -> list[str]:
    return sorted((value or "").split(","))
