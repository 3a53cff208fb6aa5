"""What is past its time leaves `nigredo.rate-limits`: the real settings, and the real broker's cleaner.

Nothing here waits for days: records carry the time at which they are said to be written, and the broker goes by that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, eventually
from processors.persistence.maintenance.topic_retention import EXPIRING, TopicRetention
from schemas.topics import DEAD_LETTERS, RATE_LIMITS, REJECTIONS, TOPICS, WEBHOOK_DEAD

CLEANED_WITHIN_S = 120.0
"""The broker's cleaner looks every 15 s."""
BUSY, QUIET = 0, 1


@pytest.fixture
def topic(stack: Stack) -> Iterator[str]:
    """A topic with the settings of the real one, which other tests use."""
    name = f"test-{uuid4()}"
    admin = AdminClient(stack.client_config())
    new = NewTopic(name, num_partitions=2, replication_factor=1, config=dict(TOPICS[RATE_LIMITS].config))
    admin.create_topics([new])[name].result(10)
    yield name
    admin.delete_topics([name])[name].result(10)


def write(stack: Stack, topic: str, partition: int, *records: tuple[str, str, timedelta]) -> None:
    """Write records of a key, a value and an age."""
    producer = Producer(stack.producer_config(delivery_timeout_s=30))
    for key, value, age in records:
        written_ms = int((time.time() - age.total_seconds()) * 1000)
        producer.produce(topic, key=key, value=value, partition=partition, timestamp=written_ms)
        # Each in a batch of its own, as it would be: a batch goes into one segment, whatever the times in it.
        assert producer.flush(30) == 0


def left(stack: Stack, topic: str, partition: int) -> list[bytes | None]:
    """Return the values that can still be read."""
    reader = TopicReader(stack.settings(role="admin"), "test")
    return [message.value() for message in reader.read_to_end(topic, [partition], deadline_s=30)]


def test_what_is_past_its_time_leaves_also_where_compaction_merged_it_with_what_is_not(
    stack: Stack, topic: str
) -> None:
    write(
        stack,
        topic,
        BUSY,
        ("over", "written ten days ago", timedelta(days=10)),
        ("waiting", "outdated", timedelta(days=4)),
        ("waiting", "may still be needed", timedelta(days=3)),
        ("fresh", "a day is not over", timedelta(hours=20)),
        ("fresh", "newest", timedelta(hours=1)),
    )
    write(stack, topic, QUIET, ("over", "and nothing after it", timedelta(days=10)))
    young = [b"may still be needed", b"a day is not over", b"newest"]
    eventually(
        lambda: left(stack, topic, BUSY)[-3:] == young and b"outdated" not in left(stack, topic, BUSY),
        within_s=CLEANED_WITHIN_S,
        what="a compacted topic",
        every_s=0.5,
    )

    async def now() -> datetime:
        return datetime.now(UTC)

    expiry = TopicRetention(
        stack.settings(role="admin"), "test", now, {topic: replace(TOPICS[RATE_LIMITS], name=topic)}
    )
    for _ in range(2):  # Safe to repeat, and where nothing is left to do.
        assert asyncio.run(expiry.run()) > 0
        assert left(stack, topic, BUSY) == young
        assert left(stack, topic, QUIET) == []


@pytest.mark.embedded
def test_what_left_the_topic_leaves_its_files(stack: Stack, topic: str) -> None:
    write(stack, topic, BUSY, ("10.11.12.13", "a", timedelta(days=4)), ("10.11.12.13", "b", timedelta(days=3)))
    write(stack, topic, BUSY, ("192.0.2.1", "the segments before it are closed", timedelta()))
    write(stack, topic, QUIET, ("198.51.100.7", "c", timedelta(days=10)))

    def files(partition: int) -> bytes:
        folder = stack.home.dir / "kafka" / "data" / f"{topic}-{partition}"
        # What ends in `.deleted` is closed already and goes after a minute.
        return b"".join(file.read_bytes() for file in folder.glob("*.log"))

    eventually(
        lambda: files(BUSY).count(b"10.11.12.13") == 1 and b"198.51.100.7" not in files(QUIET),
        within_s=CLEANED_WITHIN_S,
        what="files without what left",
        every_s=0.5,
    )


def test_every_topic_that_is_compacted_and_forgets_is_looked_after() -> None:
    assert set(EXPIRING) == {RATE_LIMITS, REJECTIONS, WEBHOOK_DEAD, DEAD_LETTERS}
