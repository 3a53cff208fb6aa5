"""Positions compared with the records of a real log, by a client that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.errors import DependencyDown
from nigredo.kafka.positions.log_proof import NEAR_MAX, LogProof
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import LogPosition, Mark
from nigredo.testing import Stack, eventually

RECORDS = 3 * NEAR_MAX
CALL_S = 30.0


@pytest.fixture
def topic(stack: Stack) -> Iterator[str]:
    """A topic of two partitions, with many records in the first."""
    name, admin = f"test.proof-{uuid4().hex[:8]}", AdminClient(stack.client_config())
    admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1)])[name].result(CALL_S)
    eventually(lambda: name in admin.list_topics(timeout=10).topics, within_s=60, what="the new topic's name")
    producer = Producer(stack.client_config())
    for number in range(RECORDS):
        producer.produce(name, key=f"k{number}".encode(), value=b"v", partition=0)
    assert producer.flush(60) == 0
    yield name
    admin.delete_topics([name])[name].result(CALL_S)


@pytest.fixture(scope="module")
def reader(stack: Stack) -> TopicReader:
    return TopicReader(stack.settings(role="admin"), "test")


@pytest.fixture
def proof(stack: Stack) -> LogProof:
    return LogProof(stack.settings(role="admin"), "test")


def kept(reader: TopicReader, topic: str, *offsets: int) -> list[LogPosition]:
    """Positions that the log bears out."""
    found = [reader.now(topic, 0, offset, deadline_s=CALL_S) for offset in offsets]
    return [LogPosition(offset + 1, now.topic_id, now.found) for offset, now in zip(offsets, found, strict=True)]


def other(position: LogPosition) -> LogPosition:
    """The same position after another record."""
    assert position.last is not None
    return LogPosition(position.next_offset, position.topic_id, Mark.of(position.last.offset, 1, b"another"))


def test_positions_near_and_far_are_borne_out_by_one_client_again_and_again(
    topic: str, reader: TopicReader, proof: LogProof
) -> None:
    positions = {(topic, 0): kept(reader, topic, 0, 1, 20, RECORDS - 1), (topic, 1): [LogPosition(0)]}

    for _ in range(3):
        assert proof.disproved(positions) == {}
    assert len(proof._client._idle) == 1


@pytest.mark.parametrize("wrong", [0, 1, 2, 3])
def test_the_first_position_whose_record_is_another_one_is_found_wherever_it_stands(
    topic: str, reader: TopicReader, proof: LogProof, wrong: int
) -> None:
    positions = kept(reader, topic, 0, 1, 20, RECORDS - 1)
    positions[wrong:] = map(other, positions[wrong:])

    assert proof.disproved({(topic, 0): positions}) == {(topic, 0): positions[wrong]}


def test_a_position_past_the_end_and_one_of_another_topic_are_found(
    topic: str, reader: TopicReader, proof: LogProof
) -> None:
    (last,) = kept(reader, topic, RECORDS - 1)
    at_end = LogPosition(RECORDS + 1, last.topic_id, Mark.of(RECORDS, 1, b"k"))
    beyond = LogPosition(RECORDS + 9, last.topic_id, Mark.of(RECORDS + 8, 1, b"k"))
    empty = LogPosition(3, last.topic_id, Mark.of(2, 1, b"k"))

    assert proof.disproved({(topic, 0): [last, at_end], (topic, 1): [empty]}) == {(topic, 0): at_end, (topic, 1): empty}
    assert proof.disproved({(topic, 0): [last, beyond]}) == {(topic, 0): beyond}
    made_again = LogPosition(0, "another-id")
    assert proof.disproved({(topic, 0): [last], (topic, 1): [made_again]}) == {(topic, 1): made_again}


def test_records_that_retention_deleted_after_they_were_read_disprove_nothing(
    stack: Stack, reader: TopicReader, proof: LogProof, topic: str
) -> None:
    positions = kept(reader, topic, 5, RECORDS - 1)
    admin, at = AdminClient(stack.client_config()), TopicPartition(topic, 0, RECORDS)
    admin.delete_records([at])[at].result(CALL_S)

    assert proof.disproved({(topic, 0): positions}) == {}


def test_a_topic_that_is_gone_is_named(proof: LogProof) -> None:
    with pytest.raises(DependencyDown, match=r"there is no topic test\.gone"):
        proof.disproved({("test.gone", 0): [LogPosition(0)]})
