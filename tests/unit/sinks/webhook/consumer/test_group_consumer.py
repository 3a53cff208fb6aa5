"""Group consumer: one member of a group, against librdkafka's mock broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from nigredo.errors import DependencyDown
from nigredo.kafka.positions import log_trail
from nigredo.kafka.positions.log_proof import Comparison
from nigredo.kafka.topic_reader import mark_of
from nigredo.log_position import LogNow, LogPosition, Mark, compare, from_metadata, to_metadata
from nigredo.settings import Settings
from schemas.topics import LEADS
from sinks.webhook.consumer import group_consumer as group_module
from sinks.webhook.consumer import log_comparison as proving
from sinks.webhook.consumer.group_consumer import GroupConsumer
from sinks.webhook.consumer.partitions import Room
from sinks.webhook.model import PartitionId, Ticket

NAME = "sender"
DEADLINE_S = 30.0
PARTITIONS = 4
"""Partitions per topic of the mock broker."""
EACH = 10
TOPIC_ID = "Q2-id"


def log_now(topic: str, partition: int, asks_at: int) -> LogNow:
    """Return the log of the mock broker, which has no topic ids."""
    return LogNow(TOPIC_ID, 0, EACH)


THE_LOG: dict[str, Any] = {"look": log_now, "compare": lambda _: Comparison({}, {})}
ROOM, NO_ROOM = Room(leads=1000, replays=0, paused=False), Room(leads=0, replays=0, paused=False)


@pytest.fixture
def servers() -> Iterator[str]:
    """Yield the address of a mock broker with ten leads per partition and a group committed at the first of each."""
    producer = Producer({"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0})
    brokers = producer.list_topics(timeout=DEADLINE_S).brokers.values()
    found = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    for number in range(PARTITIONS * EACH):
        producer.produce(LEADS, value=b"x", key=b"k", partition=number % PARTITIONS)
    assert producer.flush(DEADLINE_S) == 0
    beginner = Consumer({"bootstrap.servers": found, "group.id": NAME, "log_level": 0})
    beginner.commit(offsets=[TopicPartition(LEADS, number, 0) for number in range(PARTITIONS)], asynchronous=False)
    beginner.close()
    yield found
    producer.purge()


def test_paused_partitions_are_read_again_after_another_member_joined_and_left(servers: str) -> None:
    """In the client a pause outlasts the assignment, so a partition that is not resumed would never be read again."""
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    assignments: list[int] = []
    read: set[tuple[int, int]] = set()

    def changed(places: Sequence[PartitionId]) -> None:
        assignments.append(len(places))
        read.clear()  # The member starts again at the committed offsets.

    async def polled(group: GroupConsumer, room: Room) -> None:
        for message in await group.poll(room):
            if group.take(message) is not None:
                read.add((message.partition() or 0, message.offset() or 0))

    async def until_assigned(group: GroupConsumer, partitions: int, other: GroupConsumer | None = None) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not assignments or assignments[-1] != partitions:
            assert time.monotonic() < deadline, assignments
            await polled(group, NO_ROOM)
            if other is not None:
                await other.poll(NO_ROOM)

    async def scenario() -> set[tuple[int, int]]:
        group = GroupConsumer(settings, NAME, [LEADS], changed=changed, busy=lambda: False, **THE_LOG)
        group.join()
        await until_assigned(group, PARTITIONS)
        for _ in range(3):
            await polled(group, NO_ROOM)
        other = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG)
        other.join()
        await until_assigned(group, PARTITIONS // 2, other)
        await asyncio.gather(other.leave(), until_assigned(group, PARTITIONS))
        deadline = time.monotonic() + DEADLINE_S / 2
        while len(read) < PARTITIONS * EACH and time.monotonic() < deadline:
            await polled(group, ROOM)
        found = set(read)
        await group.leave()
        return found

    assert asyncio.run(scenario()) == {(number, offset) for number in range(PARTITIONS) for offset in range(EACH)}


def test_no_other_member_gets_a_partition_while_attempts_are_in_flight_and_none_starts_meanwhile(
    servers: str,
) -> None:
    """Otherwise every rebalance would send the leads in flight twice."""
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    tickets: dict[int, Ticket] = {}
    seen: list[tuple[int, bool]] = []

    async def scenario() -> None:
        def busy() -> bool:
            """Return True for the first calls, as if the attempts in flight then ended."""
            seen.append((other.assigned, any(map(group.holds, tickets.values()))))
            return len(seen) < 5

        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=busy, **THE_LOG)
        other = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG)
        group.join()
        deadline = time.monotonic() + DEADLINE_S
        while len(tickets) < PARTITIONS and time.monotonic() < deadline:
            for message in await group.poll(ROOM):
                taken = group.take(message)
                if taken is not None:
                    tickets[message.partition() or 0] = taken[1]
        assert all(map(group.holds, tickets.values()))
        other.join()
        while not other.assigned and time.monotonic() < deadline:
            await asyncio.gather(group.poll(NO_ROOM), other.poll(NO_ROOM))
        assert other.assigned
        await asyncio.gather(group.leave(), other.leave())

    asyncio.run(scenario())

    assert len(tickets) == PARTITIONS
    assert seen[:5] == [(0, False)] * 5


def test_a_partition_without_a_leader_does_not_delay_the_others(
    servers: str,
) -> None:
    asked: list[int] = []

    def leaderless(topic: str, partition: int, asks_at: int) -> LogNow:
        if partition == 1 and len(asked) < 3:
            asked.append(partition)
            raise DependencyDown("LEADER_NOT_AVAILABLE")
        return log_now(topic, partition, asks_at)

    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})

    async def scenario() -> None:
        group = GroupConsumer(
            settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG | {"look": leaderless}
        )
        group.join()
        deadline, taken = time.monotonic() + DEADLINE_S, 0
        while taken < PARTITIONS * EACH:
            assert time.monotonic() < deadline
            taken += sum(group.take(message) is not None for message in await group.poll(ROOM))
        assert len(asked) == 3
        assert group.unchecked == 0
        await group.leave()

    asyncio.run(scenario())


def test_the_membership_is_proven_for_a_session_from_the_last_accepted_commit(
    servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with nothing to commit. A refused commit proves nothing, and the time a commit takes does not count."""
    now, heard, commits = [100.0], [True], list[dict[int, int]]()

    class Hears(Consumer):
        def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
            commits.append({at.partition: at.offset for at in offsets})
            now[0] += 0.5  # The response takes half a second.
            if not heard[0]:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
            return super().commit(offsets=offsets, asynchronous=asynchronous)

    monkeypatch.setattr(group_module, "Consumer", Hears)
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})

    async def scenario() -> None:
        group = GroupConsumer(
            settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG, clock=lambda: now[0]
        )
        assert group.ours_until <= now[0]
        group.join()
        deadline = time.monotonic() + DEADLINE_S
        while not group.assigned:
            assert time.monotonic() < deadline
            await group.poll(NO_ROOM)
        assert group.ours_until == 106.0
        await group.commit()
        assert (len(commits), group.ours_until) == (1, 106.0)
        now[0] = 102.0
        await group.commit()
        assert (commits[1:], group.ours_until) == ([{0: 0}], 108.0)
        now[0], heard[0] = 120.0, False
        await group.commit()
        assert (len(commits), group.ours_until) == (3, 108.0)
        heard[0] = True
        await group.commit()
        assert (len(commits), group.ours_until) == (4, 126.5)
        await group.leave()

    asyncio.run(scenario())


def test_partitions_assigned_again_during_a_poll_are_read_from_their_committed_offsets(
    servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that the previous assignment had prefetched would make all records before them count as repeated."""
    come_back: list[Callable[[Consumer], None]] = []

    class Interrupted(Consumer):
        def consume(self, *arguments: Any) -> list[Message]:
            found: list[Message] = super().consume(*arguments)
            if come_back:
                come_back.pop()(self)
            return found

    monkeypatch.setattr(group_module, "Consumer", Interrupted)
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    two = Room(leads=2, replays=0, paused=False)

    async def scenario() -> list[tuple[int, int]]:
        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG)
        group.join()
        deadline, taken, before = time.monotonic() + DEADLINE_S, list[tuple[int, int]](), 0

        def again(consumer: Consumer) -> None:
            assignment = consumer.assignment()
            group._lost(consumer, assignment)
            group._assigned(consumer, assignment)
            taken.clear()

        while len(taken) < PARTITIONS * EACH and time.monotonic() < deadline:
            for message in await group.poll(two):
                if group.take(message) is not None:
                    taken.append((message.partition() or 0, message.offset() or 0))
                    before += 1
                    if before == EACH // 2:
                        come_back.append(again)
        await group.leave()
        assert before > PARTITIONS * EACH
        return sorted(taken)

    assert asyncio.run(scenario()) == [(number, offset) for number in range(PARTITIONS) for offset in range(EACH)]


def committed(servers: str) -> dict[int, TopicPartition]:
    """Return the group's committed offsets by partition."""
    reader = Consumer({"bootstrap.servers": servers, "group.id": NAME, "log_level": 0})
    try:
        asked = [TopicPartition(LEADS, number) for number in range(PARTITIONS)]
        return {at.partition: at for at in reader.committed(asked, timeout=DEADLINE_S)}
    finally:
        reader.close()


def commit(servers: str, position: LogPosition) -> None:
    """Commit a position of partition 2, as an earlier member would."""
    earlier = Consumer({"bootstrap.servers": servers, "group.id": NAME, "log_level": 0})
    earlier.commit(
        offsets=[TopicPartition(LEADS, 2, position.next_offset, to_metadata(position, since="5"))], asynchronous=False
    )
    earlier.close()


async def read_all(group: GroupConsumer, most: int) -> list[tuple[int, int]]:
    """Consume and finish `most` records, and poll a little longer, because no more are expected."""
    deadline, taken = time.monotonic() + DEADLINE_S, list[tuple[int, int]]()
    more = 10
    while more:
        assert time.monotonic() < deadline, taken
        for message in await group.poll(ROOM):
            if (found := group.take(message)) is not None:
                taken.append((message.partition() or 0, message.offset() or 0))
                group.finish(found[1])
        more -= len(taken) >= most and group.assigned + len(group.stopped) == PARTITIONS
    return sorted(taken)


LAST = Mark.of(4, 1_000, b"k", 7)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (LogNow(TOPIC_ID, 0, 3), "the log ends at 3"),
        (LogNow(TOPIC_ID, 0, EACH, Mark.of(4, 1_000, b"another", 7)), "another record"),
        (LogNow("another-id", 0, EACH, LAST), "made again"),
    ],
)
def test_a_partition_whose_position_the_log_contradicts_stays_stopped_while_others_are_read(
    servers: str, now: LogNow, said: str
) -> None:
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    commit(servers, LogPosition(5, TOPIC_ID, LAST))
    before = committed(servers)[2]

    def look(topic: str, partition: int, asks_at: int) -> LogNow:
        assert partition != 2 or asks_at == 4
        return seen[-1] if partition == 2 else log_now(topic, partition, asks_at)

    seen, log = [now], THE_LOG | {"look": look}
    others = [(number, offset) for number in (0, 1, 3) for offset in range(EACH)]

    async def member(expected: list[tuple[int, int]]) -> None:
        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **log)
        group.join()
        assert await read_all(group, len(expected)) == expected
        assert list(group.stopped) == [(LEADS, 2)]
        assert len(seen) > 1 or said in group.stopped[LEADS, 2]
        assert "nigredo recover" in group.stopped[LEADS, 2]
        await group.leave()

    asyncio.run(member(others))
    # The log has grown past the position by then and holds another record there.
    seen.append(replace(now, end=EACH, found=now.found or Mark.of(4, 9_000, b"k", 8)))
    asyncio.run(member([]))

    after = committed(servers)[2]
    assert (after.offset, after.metadata) == (before.offset, before.metadata)


def test_a_position_without_a_proof_past_the_end_stays_refused_after_the_log_has_grown(
    servers: str,
) -> None:
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    commit(servers, LogPosition(5, TOPIC_ID))
    end = [3]

    def look(topic: str, partition: int, asks_at: int) -> LogNow:
        return LogNow(TOPIC_ID, 0, end[0]) if partition == 2 else log_now(topic, partition, asks_at)

    async def member() -> None:
        group = GroupConsumer(
            settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG | {"look": look}
        )
        group.join()
        await read_all(group, 0)
        assert list(group.stopped) == [(LEADS, 2)]
        await group.leave()

    asyncio.run(member())
    end[0] = EACH
    asyncio.run(member())

    at = committed(servers)[2]
    assert at.offset == 5
    assert from_metadata(5, at.metadata)[1]["since"] == "5"


def test_a_commit_carries_the_proof_of_its_position(servers: str) -> None:
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})

    async def scenario() -> None:
        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG)
        group.join()
        await read_all(group, PARTITIONS * EACH)
        await group.leave()

    asyncio.run(scenario())

    for at in committed(servers).values():
        position, fields = from_metadata(at.offset, at.metadata)
        assert (position.next_offset, position.topic_id) == (EACH, TOPIC_ID)
        assert position.last is not None
        assert (position.last.offset, position.last.key_crc32) == (EACH - 1, Mark.of(0, 0, b"k").key_crc32)
        assert fields["since"].isdecimal()


def compared(look: Callable[[str, int, int], LogNow], kept: Mapping[PartitionId, Sequence[LogPosition]]) -> Comparison:
    """Compare positions as `LogProof` does, with a simulated log."""
    wrong, ends = dict[PartitionId, LogPosition](), dict[PartitionId, int]()
    for place, positions in kept.items():
        for position in positions:
            now = look(*place, position.asks_at)
            ends[place] = now.end
            if not compare(position, now).believed:
                wrong.setdefault(place, position)
    return Comparison(wrong, ends)


def test_a_topic_recreated_while_it_is_read_stops_its_partitions_and_keeps_their_positions(
    servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    monkeypatch.setattr(proving, "EVERY_S", 0.0)
    topic_id = [TOPIC_ID]

    def look(*_: object) -> LogNow:
        return LogNow(topic_id[0], 0, EACH)

    log = {"look": look, "compare": partial(compared, look)}

    async def scenario() -> None:
        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **log)
        group.join()
        await read_all(group, PARTITIONS * EACH)
        await group.commit()
        topic_id[0] = "another-id"
        await polled_until(group, lambda: len(group.stopped) == PARTITIONS)
        await group.leave()

    asyncio.run(scenario())

    assert {from_metadata(at.offset, at.metadata)[0].topic_id for at in committed(servers).values()} == {TOPIC_ID}


async def polled_until(group: GroupConsumer, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await group.poll(ROOM)


@pytest.mark.parametrize(("lost", "done", "stored_at"), [(9, 9, 9), (9, EACH, EACH), (6, 4, 4)])
def test_a_record_that_was_read_and_replaced_stops_its_partition_for_the_next_member_too(
    servers: str, monkeypatch: pytest.MonkeyPatch, lost: int, done: int, stored_at: int
) -> None:
    """The log was set back and has grown again: its new records were never delivered, and no error reports that."""
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    monkeypatch.setattr(proving, "EVERY_S", 0.0)
    monkeypatch.setattr(log_trail, "BURST_S", 0.0)
    marks: dict[PartitionId, dict[int, Mark]] = {}
    set_back: list[bool] = []

    def look(topic: str, partition: int, asks_at: int) -> LogNow:
        found = marks.get((topic, partition), {}).get(asks_at)
        if set_back and partition == 2 and asks_at >= lost:
            found = Mark.of(asks_at, 9_000, b"another")
        return LogNow(TOPIC_ID, 0, EACH, found)

    log = THE_LOG | {"look": look, "compare": partial(compared, look)}

    async def member() -> None:
        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **log)
        group.join()
        deadline, left = time.monotonic() + DEADLINE_S, 0 if set_back else PARTITIONS * EACH
        while left or group.unchecked or group.assigned + len(group.stopped) != PARTITIONS:
            assert time.monotonic() < deadline
            for message in await group.poll(ROOM):
                if (taken := group.take(message)) is not None:
                    left -= 1
                    record, ticket = taken
                    marks.setdefault((LEADS, record.partition), {})[record.offset] = mark_of(message)
                    if record.partition != 2 or record.offset < done:
                        group.finish(ticket)
        await group.commit()
        set_back.append(True)
        await polled_until(group, lambda: list(group.stopped) == [(LEADS, 2)])
        assert "another record" in group.stopped[LEADS, 2]
        await group.commit()
        await group.leave()

    asyncio.run(member())
    asyncio.run(member())

    at = committed(servers)[2]
    position, fields = from_metadata(at.offset, at.metadata)
    assert position.next_offset == stored_at
    assert position.last is not None
    assert position.last.offset >= lost
    assert fields["since"].isdecimal()


def test_pending_records_that_do_not_arrive_are_a_stall_unless_the_partition_is_paused_or_in_use(
    servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that treats the leader's metadata as outdated stops fetching without an error."""
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})
    monkeypatch.setattr(proving, "EVERY_S", 0.001)
    looks, ends = [0], {(LEADS, 2): EACH + 1}

    def end(_: object) -> Comparison:
        looks[0] += 1
        return Comparison({}, ends)

    async def scenario() -> None:
        group = GroupConsumer(
            settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG | {"compare": end}
        )
        group.join()
        tickets, deadline = list[Ticket](), time.monotonic() + DEADLINE_S
        while len(tickets) < PARTITIONS * EACH:
            assert time.monotonic() < deadline
            tickets += [taken[1] for message in await group.poll(ROOM) if (taken := group.take(message)) is not None]
        at_work = looks[0]
        await polled_until(group, lambda: looks[0] > at_work + 2 * log_trail.STALLED_LOOKS)
        assert group.stalled == {}
        for ticket in tickets:
            group.finish(ticket)
        await group.poll(NO_ROOM)
        group._comparison.assigned()
        paused = looks[0]
        while looks[0] < paused + 2 * log_trail.STALLED_LOOKS:
            assert time.monotonic() < deadline
            await group.poll(NO_ROOM)
        assert group.stalled == {}
        await polled_until(group, lambda: list(group.stalled) == [(LEADS, 2)])
        ends[LEADS, 2] = EACH
        await polled_until(group, lambda: group.stalled == {})
        await group.leave()

    asyncio.run(scenario())


def test_a_member_whose_committed_offsets_cannot_be_read_reads_nothing_and_reports_so(
    servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stays up, so the positions read before are not lost as they would be in a restart."""
    settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": servers, "KAFKA_SESSION_TIMEOUT_SECONDS": "6"})

    def away(*_: object) -> list[TopicPartition]:
        raise DependencyDown("Kafka does not answer")

    async def scenario() -> None:
        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG)
        monkeypatch.setattr(group, "_offsets", away)
        group.join()
        await polled_until(group, lambda: group.unusable == "Kafka does not answer")
        for _ in range(3):
            assert await group.poll(ROOM) == []
        await group.leave()

    asyncio.run(scenario())


def test_a_member_without_an_assignment_is_given_up_once_kafka_answers(
    servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "ASSIGNED_WITHIN_S", 0.3)
    monkeypatch.setattr(group_module, "ANSWER_WITHIN_S", 0.3)

    async def scenario(where: str, polls: int) -> str | None:
        settings = Settings.from_environment({"KAFKA_BOOTSTRAP_SERVERS": where})
        # It never asks for partitions, and so gets none.
        group = GroupConsumer(settings, NAME, [LEADS], changed=lambda _: None, busy=lambda: False, **THE_LOG)
        for _ in range(polls):
            await group.poll(ROOM)
            if group.unusable is not None:
                break
        found = group.unusable
        await group.leave()
        return found

    assert (asyncio.run(scenario(servers, 1000)) or "").startswith("an assignment of partitions:")
    assert asyncio.run(scenario("127.0.0.1:1", 12)) is None
