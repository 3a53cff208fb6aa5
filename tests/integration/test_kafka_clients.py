"""The publisher and the plain reader, against the real broker and against none."""

from __future__ import annotations

import asyncio
import socket
import time
from datetime import timedelta
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.clock import utc_now
from nigredo.errors import DependencyDown, NigredoError, RecordRefused
from nigredo.kafka.publisher import AckedPosition, Overloaded, Publisher, producer_config
from nigredo.kafka.topic_reader import TopicReader
from nigredo.settings import Settings
from nigredo.testing import Stack, eventually


@pytest.fixture
def topic(stack: Stack) -> str:
    name = f"test-{uuid4()}"
    admin = AdminClient(stack.client_config())
    for created in admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1)]).values():
        created.result(10)
    return name


def publisher_of(settings: Settings, *, timeout_s: float = 5, in_flight_max: int = 100) -> Publisher:
    return Publisher(producer_config(settings, "test", delivery_timeout_s=timeout_s), in_flight_max=in_flight_max)


def nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def without_a_broker() -> Settings:
    return Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": nobody()})


def test_an_acknowledgement_says_where_the_record_stands(stack: Stack, topic: str) -> None:
    async def scenario() -> list[AckedPosition]:
        publisher = publisher_of(stack.settings(role="admin"))
        sent = [publisher.publish(topic, key=b"k", value=b"%d" % n, partition=1) for n in range(3)]
        positions = await asyncio.wait_for(asyncio.gather(*sent), 10)
        assert await publisher.close() == 0
        return positions

    assert asyncio.run(scenario()) == [AckedPosition(topic, 1, offset) for offset in range(3)]


def test_without_a_broker_the_answer_is_an_error_within_the_deadline() -> None:
    async def scenario() -> float:
        publisher = publisher_of(without_a_broker(), timeout_s=1)
        began = time.monotonic()
        with pytest.raises(DependencyDown):
            await asyncio.wait_for(publisher.publish("t", key=b"k", value=b"v"), 10)
        took = time.monotonic() - began
        await publisher.close()
        return took

    assert asyncio.run(scenario()) < 4


def test_an_answer_comes_in_time_even_when_librdkafka_goes_on_trying() -> None:
    async def scenario() -> float:
        config = producer_config(without_a_broker(), "test", delivery_timeout_s=60)
        publisher = Publisher(config, in_flight_max=10, answer_within_s=0.5)
        began = time.monotonic()
        with pytest.raises(DependencyDown, match="in time"):
            await asyncio.wait_for(publisher.publish("t", key=b"k", value=b"v"), 10)
        took = time.monotonic() - began
        await publisher.close(deadline_s=0.1)
        return took

    assert asyncio.run(scenario()) < 3


def test_more_than_allowed_in_flight_is_refused_at_once() -> None:
    async def scenario() -> None:
        publisher = publisher_of(without_a_broker(), timeout_s=1, in_flight_max=2)
        waiting = [publisher.publish("t", key=b"k", value=b"v") for _ in range(2)]
        with pytest.raises(Overloaded):
            publisher.publish("t", key=b"k", value=b"v")
        await asyncio.gather(*waiting, return_exceptions=True)
        await publisher.close()

    asyncio.run(scenario())


def test_closing_answers_everybody_who_still_waits() -> None:
    async def scenario() -> int:
        publisher = publisher_of(without_a_broker(), timeout_s=60)
        waiting = publisher.publish("t", key=b"k", value=b"v")
        left = await publisher.close(deadline_s=0.2)
        with pytest.raises(DependencyDown):
            await waiting
        return left

    assert asyncio.run(scenario()) == 1


def test_after_a_fatal_error_a_new_producer_takes_over_and_everybody_is_answered(stack: Stack) -> None:
    """A real one: a producer that guarantees that there is no gap has no way on after a record that is refused."""

    small = f"test-{uuid4()}"
    admin = AdminClient(stack.client_config())
    new = NewTopic(small, num_partitions=1, replication_factor=1, config={"max.message.bytes": "100000"})
    admin.create_topics([new])[small].result(10)

    async def scenario() -> None:
        config = stack.producer_config(delivery_timeout_s=60)
        publisher = Publisher(config | {"enable.gapless.guarantee": True}, in_flight_max=100)
        values = (b"v", b"x" * 100_001, *(b"w" for _ in range(50)))
        waiting = [publisher.publish(small, key=b"k", value=value) for value in values]
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        assert any(isinstance(answer, NigredoError) for answer in answers)
        async with asyncio.timeout(30):
            while True:
                try:
                    await publisher.publish(small, key=b"k", value=b"after")
                    break
                except DependencyDown:
                    await asyncio.sleep(0.05)
        assert await publisher.close() == 0

    asyncio.run(scenario())


def test_a_record_too_large_for_the_broker_is_refused_for_good(stack: Stack, topic: str) -> None:
    async def scenario() -> None:
        publisher = publisher_of(stack.settings(role="admin"))
        with pytest.raises(RecordRefused):
            await publisher.publish(topic, key=b"k", value=b"x" * 2_000_000)
        await publisher.close()

    asyncio.run(scenario())


def test_a_key_goes_where_javas_producers_put_it(stack: Stack, topic: str) -> None:
    """Murmur2 of `21`, as Kafka's own test of its default partitioner has it: -973932308, so partition 0 of 2."""

    async def scenario() -> AckedPosition:
        publisher = publisher_of(stack.settings(role="admin"))
        position = await publisher.publish(topic, key=b"21", value=b"v")
        await publisher.close()
        return position

    assert asyncio.run(scenario()).partition == (-973932308 & 0x7FFFFFFF) % 2


def test_reading_to_the_end_ends_there_also_when_the_last_records_are_gone(stack: Stack, topic: str) -> None:
    """A transaction's marker is an offset that no reader ever sees."""
    producer = Producer(stack.producer_config(delivery_timeout_s=10) | {"transactional.id": str(uuid4())})
    producer.init_transactions(10)
    producer.begin_transaction()
    for n in range(3):
        producer.produce(topic, value=b"%d" % n, partition=0)
    producer.commit_transaction(10)
    reader = TopicReader(stack.settings(role="admin"), "test")
    eventually(lambda: reader.watermarks(topic, 0) == (0, 4), within_s=60, what="the transaction's marker")

    read = list(reader.read_to_end(topic, [0, 1], deadline_s=20))

    assert [message.value() for message in read] == [b"0", b"1", b"2"]
    assert reader.next_offset(topic, 0, 1, deadline_s=10) == 1
    assert reader.next_offset(topic, 0, 3, deadline_s=10) == 4


def test_reading_since_a_time_leaves_out_what_is_older(stack: Stack, topic: str) -> None:
    producer = Producer(stack.producer_config(delivery_timeout_s=10))
    now = utc_now()
    for age, value in ((timedelta(hours=2), b"old"), (timedelta(minutes=1), b"new")):
        producer.produce(topic, value=value, partition=0, timestamp=int((now - age).timestamp() * 1000))
    assert producer.flush(10) == 0
    reader = TopicReader(stack.settings(role="admin"), "test")

    assert [m.value() for m in reader.read_to_end(topic, [0, 1], deadline_s=20, since=now - timedelta(hours=1))] == [
        b"new"
    ]
    assert list(reader.read_to_end(topic, [0, 1], deadline_s=20, since=now + timedelta(hours=1))) == []


def test_a_reader_without_a_broker_says_so(stack: Stack) -> None:
    settings = stack.settings(role="admin")
    object.__setattr__(settings, "kafka_bootstrap_servers", nobody())

    with pytest.raises(DependencyDown):
        TopicReader(settings, "test").watermarks("t", 0)
