"""Topic creation at a broker that is starting: each of its errors is waited for or raised as DependencyDown."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from nigredo.errors import DependencyDown
from nigredo.kafka import topic_admin as topics
from nigredo.settings import Settings
from schemas.topics import TOPICS

COMING_UP = [
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.INVALID_REPLICATION_FACTOR,
    KafkaError.NOT_CONTROLLER,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    None,
]
"""None: the client's own future does not answer in time."""
REQUESTS = ["list_topics", "create_topics", "list_offsets", "describe_configs", "incremental_alter_configs"]


class PlayedAdmin:
    """A broker with topics, at which one kind of request fails for the first `times` calls."""

    def __init__(self, failing: str, error: int | None, times: int) -> None:
        self.failing, self.error, self.times = failing, error, times
        self.topics: dict[str, Any] = {}
        self.failed = 0

    def list_topics(self, timeout: float) -> Any:
        self._maybe_fail("list_topics")
        return SimpleNamespace(topics=self.topics)

    def create_topics(self, wanted: list[Any], **_: Any) -> Any:
        def create(topic: Any) -> None:
            self.topics[topic.topic] = SimpleNamespace(error=None, partitions=dict.fromkeys(range(4)))

        return {topic.topic: self._answer("create_topics", lambda topic=topic: create(topic)) for topic in wanted}

    def list_offsets(self, asked: dict[TopicPartition, Any], **_: Any) -> Any:
        return {partition: self._answer("list_offsets", lambda: None) for partition in asked}

    def describe_configs(self, resources: list[Any], **_: Any) -> Any:
        return {resource: self._answer("describe_configs", dict) for resource in resources}

    def incremental_alter_configs(self, resources: list[Any]) -> Any:
        return {resource: self._answer("incremental_alter_configs", lambda: None) for resource in resources}

    def _maybe_fail(self, request: str) -> None:
        if request == self.failing and self.failed < self.times:
            self.failed += 1
            if self.error is None:
                raise TimeoutError
            raise KafkaException(KafkaError(self.error))

    def _answer(self, request: str, work: Callable[[], object]) -> Future[object]:
        future: Future[object] = Future()
        try:
            self._maybe_fail(request)
            future.set_result(work())
        except (KafkaException, TimeoutError) as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize("error", COMING_UP)
@pytest.mark.parametrize("request_", REQUESTS)
def test_no_answer_of_a_broker_that_comes_up_is_final(
    monkeypatch: pytest.MonkeyPatch, request_: str, error: int | None
) -> None:
    admin = PlayedAdmin(request_, error, times=3)
    if request_ in ("describe_configs", "incremental_alter_configs"):
        topic = next(iter(TOPICS))
        admin.topics[topic] = SimpleNamespace(error=None, partitions=dict.fromkeys(range(4)))
    monkeypatch.setattr(topics, "AdminClient", lambda _: admin)
    settings = Settings.from_environment({})

    for _ in range(10):
        try:
            topics.ensure_topics(settings)
        except DependencyDown:
            continue
        break
    else:
        pytest.fail("the topics were not created within ten calls")

    assert admin.failed == 3
    assert set(admin.topics) == set(topics.EVERYWHERE)


def test_a_fresh_topic_counts_as_there_once_its_leaders_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = PlayedAdmin("list_offsets", KafkaError.NOT_LEADER_FOR_PARTITION, times=100)
    monkeypatch.setattr(topics, "AdminClient", lambda _: admin)

    assert len(topics.ensure_topics(Settings.from_environment({}))) == len(topics.EVERYWHERE)

    assert admin.failed == 100
