"""What a rewind says before it does anything: real records are counted, and what retention deleted is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.clock import from_ms
from nigredo.errors import ConfigurationError, DependencyDown
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.recovery.survey import Survey
from nigredo.operations.rewind import DatabaseOffsets, PartitionRewind, Rewind, RewindTarget
from nigredo.testing import Stack
from schemas.topics import AUDIT, LEADS, STORED

STANDS_AT = 9
DELETED = 4
BEGAN_MS = 1_769_850_000_000


@dataclass(frozen=True)
class Kept:
    """Offsets of a group that reads one partition."""

    topic: str
    stands_at: int

    def standing(self) -> Mapping[tuple[str, int], int]:
        return {(self.topic, 0): self.stands_at}

    def set_back(self, offsets: Mapping[tuple[str, int], int]) -> None:
        raise AssertionError("a plan sets nothing")


@pytest.fixture
def topic(stack: Stack) -> Iterator[str]:
    """A topic of ten records, a second apart, the first four of them deleted."""
    name, admin = f"test-{uuid4()}", AdminClient(stack.client_config())
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)
    producer = Producer(stack.client_config())
    for number in range(10):
        producer.produce(name, value=b"x", partition=0, timestamp=BEGAN_MS + 1000 * number)
    assert producer.flush(30) == 0
    for deleted in admin.delete_records([TopicPartition(name, 0, DELETED)]).values():
        deleted.result(30)
    yield name
    admin.delete_topics([name])[name].result(30)


def planned(stack: Stack, topic: str, to: RewindTarget, stands_at: int = STANDS_AT) -> PartitionRewind:
    (step,) = Rewind(stack.settings(role="admin"), f"group-{topic}", Kept(topic, stands_at), "test").plan(to)
    return step


def at_record(number: int) -> datetime:
    return from_ms(BEGAN_MS) + timedelta(seconds=number)


def test_the_earliest_is_what_is_left_and_the_hole_before_it_is_told(stack: Stack, topic: str) -> None:
    step = planned(stack, topic, RewindTarget(earliest=True))

    assert (step.goes_to, step.records, step.gone) == (DELETED, STANDS_AT - DELETED, DELETED)


def test_a_time_from_which_records_are_missing_tells_the_hole(stack: Stack, topic: str) -> None:
    step = planned(stack, topic, RewindTarget(at=at_record(2)))

    assert (step.goes_to, step.records) == (DELETED, STANDS_AT - DELETED)
    assert step.gone > 0


def test_a_time_of_which_everything_is_left_has_no_hole(stack: Stack, topic: str) -> None:
    for number in (DELETED, 6):
        step = planned(stack, topic, RewindTarget(at=at_record(number)))
        assert (step.goes_to, step.records, step.gone) == (number, STANDS_AT - number, 0)


def test_a_time_in_the_future_moves_nothing(stack: Stack, topic: str) -> None:
    step = planned(stack, topic, RewindTarget(at=at_record(10_000)))

    assert (step.goes_to, step.records, step.gone) == (STANDS_AT, 0, 0)


def test_an_offset_that_is_gone_is_told_and_one_ahead_is_refused(stack: Stack, topic: str) -> None:
    step = planned(stack, topic, RewindTarget(offsets={(topic, 0): 1}))

    assert (step.goes_to, step.records, step.gone) == (DELETED, STANDS_AT - DELETED, DELETED - 1)
    with pytest.raises(ConfigurationError, match="only moves back"):
        planned(stack, topic, RewindTarget(offsets={(topic, 0): STANDS_AT + 1}))


def test_a_group_whose_place_is_gone_may_go_on_to_the_first_record_left_and_no_further(
    stack: Stack, topic: str
) -> None:
    step = planned(stack, topic, RewindTarget(offsets={(topic, 0): DELETED}), stands_at=1)

    assert (step.goes_to, step.records, step.gone) == (DELETED, 0, DELETED - 1)
    with pytest.raises(ConfigurationError, match="only moves back"):
        planned(stack, topic, RewindTarget(offsets={(topic, 0): DELETED + 1}), stands_at=1)


def test_a_group_that_stands_past_the_end_of_a_topic_made_anew_goes_back_to_what_there_is(
    stack: Stack, topic: str
) -> None:
    step = planned(stack, topic, RewindTarget(offsets={(topic, 0): DELETED}), stands_at=500)

    assert (step.goes_to, step.records, step.gone) == (DELETED, 10 - DELETED, 0)


def test_a_topic_that_was_deleted_for_good_keeps_no_other_from_being_set_back(stack: Stack) -> None:
    gone = f"gone-{uuid4()}"
    row = (
        "INSERT INTO nigredo.stream_offsets (topic, topic_id, partition, next_offset) VALUES (%s, %s, 0, 7) RETURNING 1"
    )
    stack.rows(row, gone, str(uuid4()))
    try:
        offsets = DatabaseOffsets(stack.settings(role="admin"), [gone, LEADS])
        assert {topic for topic, _ in offsets.standing()} == {LEADS}
        with pytest.raises(DependencyDown, match="no topic"):
            offsets.set_back({(gone, 0): 0})
    finally:
        stack.rows("DELETE FROM nigredo.stream_offsets WHERE topic = %s RETURNING 1", gone)


@pytest.mark.parametrize(
    ("topic", "partition"), [("", 0), ("no topic's name!", 0), (AUDIT, 0), (LEADS, 99), (LEADS, -1)]
)
def test_a_row_that_no_persister_wrote_is_left_alone(stack: Stack, topic: str, partition: int) -> None:
    settings = stack.settings(role="admin")
    topic_id = TopicReader(settings, "test").topic_ids([topic])[topic] if topic in (AUDIT, LEADS) else str(uuid4())
    row = (
        "INSERT INTO nigredo.stream_offsets (topic, topic_id, partition, next_offset) VALUES (%s, %s, %s, 7) "
        "RETURNING 1"
    )
    stack.rows(row, topic, topic_id, partition)
    try:
        steps = Rewind(settings, "persister", DatabaseOffsets(settings), "test").plan(RewindTarget(earliest=True))

        assert {step.topic for step in steps} == set(STORED)
        assert (topic, partition) not in {(step.topic, step.partition) for step in steps}
        Survey(settings, [], lambda _: None).persister_restarts()
    finally:
        stack.rows(
            "DELETE FROM nigredo.stream_offsets WHERE topic_id = %s AND partition = %s RETURNING 1", topic_id, partition
        )
