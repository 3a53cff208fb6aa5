"""Batches to the real broker, one that is away, and one that refuses: no failure may pass for an acknowledgement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka import batch_publisher as bulk
from nigredo.kafka.batch_publisher import BatchPublisher, Outgoing
from nigredo.kafka.publisher import Overloaded, producer_config
from nigredo.kafka.topic_reader import TopicReader
from nigredo.settings import Settings
from nigredo.testing import Stack
from tests.integration.test_kafka_clients import nobody, without_a_broker

SMALL = 100_000


@pytest.fixture
def topic(stack: Stack) -> str:
    """Return a topic that takes no large records, which only the broker knows."""
    name = f"test-{uuid4()}"
    admin = AdminClient(stack.client_config())
    new = NewTopic(name, num_partitions=2, replication_factor=1, config={"max.message.bytes": str(SMALL)})
    admin.create_topics([new])[name].result(10)
    return name


def publisher_of(settings: Settings, *, timeout_s: float = 60, in_flight_max: int = 10) -> BatchPublisher:
    return BatchPublisher(producer_config(settings, "test", delivery_timeout_s=timeout_s), in_flight_max=in_flight_max)


def records(topic: str, *values: bytes, partition: int = 0) -> list[Outgoing]:
    return [Outgoing(topic, b"k", value, partition=partition) for value in values]


async def published(publisher: BatchPublisher, batch: list[Outgoing], *, within_s: float = 30) -> None:
    await asyncio.wait_for(publisher.publish_all(batch), within_s)


def read(stack: Stack, topic: str) -> list[bytes | None]:
    return [
        m.value() for m in TopicReader(stack.settings(role="admin"), "test").read_to_end(topic, [0, 1], deadline_s=20)
    ]


def test_what_is_acknowledged_is_in_the_log_in_order_however_many_there_are(stack: Stack, topic: str) -> None:
    values = [b"%d" % n for n in range(3_000)]

    async def scenario() -> None:
        publisher = publisher_of(stack.settings(role="admin"))
        for start in range(0, len(values), 1_000):
            await published(publisher, records(topic, *values[start : start + 1_000]))
        assert await publisher.close() == 0

    asyncio.run(scenario())

    assert read(stack, topic) == values


def test_a_single_record_does_not_linger(stack: Stack, topic: str) -> None:
    async def scenario() -> float:
        publisher = publisher_of(stack.settings(role="admin"))
        await published(publisher, records(topic, b"warm"))
        took = []
        for _ in range(20):
            began = time.monotonic()
            await publisher.publish(topic, key=b"k", value=b"v")
            took.append(time.monotonic() - began)
        await publisher.close()
        return min(took)

    assert asyncio.run(scenario()) < bulk.LINGER_MS / 1000


@pytest.mark.parametrize("place", [0, 50, 99])
def test_one_record_that_only_the_broker_finds_too_large_fails_the_batch_for_good(
    stack: Stack, topic: str, place: int
) -> None:
    async def scenario() -> None:
        publisher = publisher_of(stack.settings(role="admin"))
        batch = records(topic, *[b"v"] * 100)
        batch[place] = Outgoing(topic, b"k", b"x" * (SMALL + 1), partition=1)
        with pytest.raises(RecordRefused):
            await published(publisher, batch)
        # And nothing of it is left to fail another, or to let one pass.
        await published(publisher, records(topic, b"after"))
        await publisher.close()

    asyncio.run(scenario())

    assert read(stack, topic).count(b"after") == 1


def test_a_record_too_large_for_the_client_is_refused_at_once_and_a_partition_that_is_not_there(
    stack: Stack, topic: str
) -> None:
    async def scenario() -> None:
        publisher = publisher_of(stack.settings(role="admin"), timeout_s=3)
        with pytest.raises(RecordRefused):
            await published(publisher, records(topic, b"v", b"x" * 2_000_000))
        with pytest.raises(DependencyDown):
            await published(publisher, [*records(topic, b"v"), *records(topic, b"v", partition=7)])
        with pytest.raises(DependencyDown):
            await published(publisher, [*records(topic, b"v"), *records(f"{topic}-not-there", b"v")])
        await published(publisher, records(topic, b"after"))
        await publisher.close()

    asyncio.run(scenario())

    assert read(stack, topic)[-1] == b"after"


def test_a_batch_whose_making_fails_half_way_is_no_batch(stack: Stack, topic: str) -> None:
    def broken() -> Iterator[Outgoing]:
        yield from records(topic, b"first")
        raise ValueError("the second cannot be encoded")

    async def scenario() -> None:
        publisher = publisher_of(stack.settings(role="admin"))
        with pytest.raises(ValueError, match="cannot be encoded"):
            publisher.publish_all(broken())
        await published(publisher, records(topic, b"after"))
        await publisher.close()

    asyncio.run(scenario())

    assert read(stack, topic)[-1] == b"after"


def test_without_a_broker_a_batch_fails_within_the_deadline_and_closing_answers_what_waits() -> None:
    async def scenario() -> None:
        publisher = publisher_of(without_a_broker(), timeout_s=1)
        began = time.monotonic()
        with pytest.raises(DependencyDown):
            await published(publisher, records("t", b"v", b"w"))
        assert time.monotonic() - began < 10
        await publisher.close()

        publisher = publisher_of(without_a_broker(), timeout_s=60, in_flight_max=1)
        waiting = publisher.publish_all(records("t", b"v"))
        with pytest.raises(Overloaded):
            publisher.publish_all(records("t", b"v"))
        assert await publisher.close(deadline_s=0.2) == 1
        with pytest.raises(DependencyDown):
            await waiting

    asyncio.run(scenario())


def test_an_empty_batch_is_acknowledged_at_once() -> None:
    async def scenario() -> None:
        publisher = publisher_of(without_a_broker())
        await published(publisher, [], within_s=1)
        await publisher.close()

    asyncio.run(scenario())


def test_after_a_fatal_error_a_new_producer_goes_on(stack: Stack, topic: str) -> None:
    """A real one: a producer that guarantees that there is no gap has no way on after a record that is refused."""

    async def scenario() -> None:
        config = stack.producer_config(delivery_timeout_s=60)
        publisher = BatchPublisher(config | {"enable.gapless.guarantee": True}, in_flight_max=10)
        await published(publisher, records(topic, b"before"))
        with pytest.raises((DependencyDown, RecordRefused)):
            await published(publisher, records(topic, b"v", b"x" * (SMALL + 1), b"w"))
        for value in (b"after", b"and after"):
            await eventually_published(publisher, records(topic, value))
        await publisher.close()

    async def eventually_published(publisher: BatchPublisher, batch: list[Outgoing]) -> None:
        """As a processor does it: until the old producer is replaced, it may refuse."""
        async with asyncio.timeout(30):
            while True:
                try:
                    return await published(publisher, batch)
                except DependencyDown:
                    await asyncio.sleep(0.05)

    asyncio.run(scenario())

    assert read(stack, topic)[0] == b"before"
    assert read(stack, topic)[-2:] == [b"after", b"and after"]


def test_a_fatal_error_fails_the_batch_even_when_nobody_is_called_back_for_its_records(
    stack: Stack, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Producer] = []

    class Once(Producer):
        def __init__(self, config: dict[str, Any]) -> None:
            # The first one reaches nobody: what it was given is on its way for ever.
            super().__init__(config if made else config | {"bootstrap.servers": nobody()})
            made.append(self)

        def flush(self, *timeout: float) -> int:
            if len(made) == 1:
                raise KafkaException(KafkaError(KafkaError._FATAL, "out of order", True))
            # The old one says nothing more of what it had.
            return super().flush(*timeout) if self is not made[0] else 0

    monkeypatch.setattr(bulk, "Producer", Once)

    async def scenario() -> None:
        publisher = publisher_of(stack.settings(role="admin"))
        with pytest.raises(DependencyDown, match="fatal"):
            await published(publisher, records(topic, b"lost"))
        await published(publisher, records(topic, b"after"))
        await publisher.close()

    asyncio.run(scenario())

    assert len(made) == 2
    assert read(stack, topic) == [b"after"]
