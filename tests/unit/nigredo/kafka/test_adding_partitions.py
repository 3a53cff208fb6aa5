"""Adding partitions to topics, at a broker that serves them a moment later."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from nigredo.kafka import topic_admin as topics
from nigredo.settings import Settings
from schemas.topics import RATE_LIMITS


def answered(error: KafkaException | None = None) -> Future[None]:
    future = Future[None]()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future


class Slow:
    """An `AdminClient` whose broker first shows too few partitions, and then has no leader of the new one."""

    def __init__(self, _: object) -> None:
        self.looks: list[str] = []

    def create_partitions(self, wanted: list[Any], **_: object) -> Mapping[str, Future[None]]:
        return {each.topic: answered() for each in wanted}

    def list_topics(self, **_: object) -> Any:
        self.looks.append("metadata")
        many = 4 if len(self.looks) == 1 else 5
        topic = SimpleNamespace(error=None, partitions=dict.fromkeys(range(many)))
        return SimpleNamespace(topics={RATE_LIMITS: topic})

    def list_offsets(
        self, asked: Mapping[TopicPartition, object], **_: object
    ) -> Mapping[TopicPartition, Future[None]]:
        self.looks.append("leaders")
        leaderless = KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))
        slow = self.looks.count("leaders") == 1
        return {at: answered(leaderless if slow and at.partition == 4 else None) for at in asked}


def test_added_partitions_are_served_when_the_call_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that starts right after the call must not meet a partition without a leader."""
    admin = Slow(None)
    monkeypatch.setattr(topics, "AdminClient", lambda _: admin)

    topics.add_partitions(Settings.from_environment({}), {RATE_LIMITS: 5})

    assert admin.looks == ["metadata", "metadata", "leaders", "metadata", "leaders"]
