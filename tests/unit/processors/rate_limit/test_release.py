"""Releases in the limiter: once, outside the limit, and safe to decide again after a crash at any point."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from nigredo.avro.codec import Codec
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka.batch_publisher import Outgoing
from nigredo.kafka.record import Record
from nigredo.kafka.topic_reader import EndNotReached
from nigredo.observability.health import Health
from nigredo.rate_limit.window import judge
from nigredo.settings import Settings
from processors.engine.handler import AssignmentLost
from processors.rate_limit.limiter import Limiter
from processors.rate_limit.window_store import WindowStore
from schemas.events import (
    Contact,
    Lead,
    LimitReset,
    Rejection,
    RejectionRelease,
    Submission,
)
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS, SUBMISSIONS, TOPICS, load_schema

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
NETWORK, PARTITION = "192.0.2.1", 2
SCHEMAS = [LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES]


class FilesAsRegistry:
    def id_of(self, subject: str, _: object) -> int:
        return next(n for n, topic in enumerate(SCHEMAS) if TOPICS[topic].subject == subject)

    def schema_of(self, schema_id: int) -> Any:
        return load_schema(TOPICS[SCHEMAS[schema_id]].schema)


def make_codec() -> Codec:
    codec = Codec(FilesAsRegistry())
    codec.prepare(SCHEMAS)
    return codec


CODEC = make_codec()


class Kafka:
    """The topics as the limiter sees them: published records are there when it reads again."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int | None, bytes, bytes | None]] = []
        self.fails: Callable[[str, bytes | None], bool] = lambda *_: False
        self.reads = 0
        self.endless = False

    def publish_all(self, records: Sequence[Outgoing]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for record in records:
            if self.fails(record.topic, record.value):
                future.set_exception(DependencyDown("Kafka is away"))
                return future
            partition = PARTITION if record.partition < 0 else record.partition
            self.log.append((record.topic, partition, record.key or b"", record.value))
        future.set_result(None)
        return future

    def partitions(self, _: str) -> list[int]:
        return [0, 1, 2, 3]

    def read_to_end(
        self, topic: str, partitions: Sequence[int], *, deadline_s: float, offsets: Mapping[int, int], within_s: float
    ) -> Iterator[Any]:
        self.reads += 1
        if self.endless:
            raise EndNotReached("too much to read")
        for offset, (of, partition, key, value) in enumerate(self.log):
            if of == topic and partition in partitions and offset >= offsets[partition]:
                yield SimpleNamespace(
                    partition=lambda p=partition: p, key=lambda k=key: k, value=lambda v=value: v, offset=lambda: 0
                )

    def events(self, topic: str) -> list[Any]:
        return [None if value is None else CODEC.decode(topic, value) for of, _, _, value in self.log if of == topic]


def limiter_on(kafka: Kafka) -> Limiter:
    limiter = Limiter(Settings.from_environment({}), Health("test"))
    inside = cast(Any, limiter)
    inside._codec, inside._publisher, inside._reader = CODEC, kafka, kafka
    inside._windows[PARTITION] = WindowStore(CODEC)
    return limiter


def windows(limiter: Limiter) -> WindowStore:
    found: WindowStore = cast(Any, limiter)._windows[PARTITION]
    return found


def rejection(lead_id: UUID | None = None) -> Rejection:
    contact = Contact("Ana", "ana@example.com", "Oi", {"phone": "1"})
    return Rejection(
        lead_id or uuid4(), NETWORK, NETWORK, "curl", "contact", "ad", contact, NOON, NOON, "rate_limited", NOON, 2, 7
    )


def quarantined(kafka: Kafka, refused: Rejection) -> RejectionRelease:
    """Publish a rejection to its topic; return the command that releases it."""
    key, value = str(refused.id).encode(), CODEC.encode(REJECTIONS, refused)
    kafka.log.append((REJECTIONS, PARTITION, key, value))
    return RejectionRelease(refused.id, NETWORK, "test", NOON, PARTITION, len(kafka.log) - 1)


def work(limiter: Limiter, *events: Any, begin: int = 100, still_assigned: bool = True) -> None:
    records = [
        (Record(SUBMISSIONS, PARTITION, begin + n, NOON + timedelta(seconds=n), NETWORK.encode(), b"", ()), event)
        for n, event in enumerate(events)
    ]
    asyncio.run(limiter.work(records, lambda: still_assigned))


def submission(**changes: Any) -> Submission:
    whole = Submission(
        uuid4(), NETWORK, NETWORK, None, None, None, Contact("Ana", "a@example.com", "Oi", {}), NOON, 1, 3600,
        exempt=False, edge_verdict=None,
    )  # fmt: skip
    return replace(whole, **changes)


def test_a_release_publishes_the_lead_and_a_tombstone_in_the_rejections_partition() -> None:
    kafka = Kafka()
    refused = rejection()
    command = quarantined(kafka, refused)

    work(limiter_on(kafka), command)

    (lead,) = kafka.events(LEADS)
    assert lead == Lead(
        refused.id, NETWORK, NETWORK, "curl", "contact", "ad", refused.contact, NOON, NOON, True, 2, 7
    )  # fmt: skip
    assert kafka.log[-1] == (REJECTIONS, PARTITION, str(refused.id).encode(), None)


@pytest.mark.parametrize("batches", [1, 2])
def test_a_release_that_comes_again_does_nothing_in_one_batch_or_in_two(batches: int) -> None:
    kafka = Kafka()
    limiter, command = limiter_on(kafka), quarantined(kafka, rejection())

    if batches == 1:
        work(limiter, command, command)
    else:
        work(limiter, command)
        # The network has no window, so that only the tombstone shows the release.
        assert not windows(limiter)
        work(limiter, command, begin=101)

    assert len(kafka.events(LEADS)) == 1


def test_releases_of_one_batch_share_one_read() -> None:
    kafka = Kafka()
    commands = [quarantined(kafka, rejection()) for _ in range(3)]

    work(limiter_on(kafka), *commands)

    assert (kafka.reads, len(kafka.events(LEADS))) == (1, 3)


def test_a_batch_without_releases_reads_nothing() -> None:
    kafka = Kafka()

    work(limiter_on(kafka), submission())

    assert kafka.reads == 0


def test_a_release_counts_nothing_and_its_offset_is_kept() -> None:
    kafka = Kafka()
    limiter, command = limiter_on(kafka), quarantined(kafka, rejection())
    first = submission()

    work(limiter, first, command, submission())

    assert [lead.id for lead in kafka.events(LEADS)] == [first.id, command.lead_id]
    state = windows(limiter).get(NETWORK)
    assert state is not None
    assert len(windows(limiter)) == 1
    assert ([kept.id for kept in state.accepted], state.refused, state.input_offset) == ([first.id], 1, 102)
    # All records come again, after a crash before the commit.
    work(limiter, first, command, submission())
    assert len(kafka.events(LEADS)) == 2


@pytest.mark.parametrize("lost", ["lead", "tombstone", "state"])
def test_a_release_has_the_same_result_after_a_crash_at_any_point(lost: str) -> None:
    kafka = Kafka()
    limiter, command = limiter_on(kafka), quarantined(kafka, rejection())
    windows(limiter).put(judge(None, submission(), at=NOON, offset=50).state)
    topic = {"lead": LEADS, "tombstone": REJECTIONS, "state": RATE_LIMITS}[lost]
    kafka.fails = lambda to, _: to == topic
    with pytest.raises(DependencyDown):
        work(limiter, command)
    # A tombstone without its lead would lose the person.
    assert not (None in kafka.events(REJECTIONS) and not kafka.events(LEADS))

    kafka.fails = lambda *_: False
    work(limiter, command)

    assert {lead.id for lead in kafka.events(LEADS)} == {command.lead_id}
    assert kafka.events(REJECTIONS)[-1] is None
    kept = windows(limiter).get(NETWORK)
    assert kept is not None
    assert kept.input_offset == 100


def test_a_rejection_decided_again_before_its_release_is_released_all_the_same() -> None:
    kafka = Kafka()
    limiter, refused = limiter_on(kafka), rejection()
    command = quarantined(kafka, refused)

    # The worker died between the rejection and its window: the same record comes again, now followed by its release.
    work(limiter, submission(id=refused.id, edge_verdict="rate_limited"), command)

    assert [lead.id for lead in kafka.events(LEADS)] == [refused.id]
    assert kafka.events(REJECTIONS)[-1] is None


@pytest.mark.parametrize(
    "change",
    [
        {"rejection_partition": None},
        {"rejection_offset": None},
        {"rejection_partition": 9},
        {"rejection_offset": 99},
        {"lead_id": uuid4()},
        {"client_network": "192.0.2.99"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_release_without_a_matching_rejection_is_ignored(change: dict[str, Any]) -> None:
    kafka = Kafka()
    command = replace(quarantined(kafka, rejection()), **change)

    work(limiter_on(kafka), command)

    assert kafka.events(LEADS) == []
    assert None not in kafka.events(REJECTIONS)


def test_a_release_that_cannot_be_looked_up_in_time_is_parked_instead_of_delaying_the_limiter() -> None:
    kafka = Kafka()
    command, kafka.endless = quarantined(kafka, rejection()), True

    with pytest.raises(RecordRefused):
        work(limiter_on(kafka), command)


def test_a_worker_that_lost_the_partition_while_it_looked_writes_nothing() -> None:
    kafka = Kafka()
    command = quarantined(kafka, rejection())
    before = list(kafka.log)

    with pytest.raises(AssignmentLost):
        work(limiter_on(kafka), command, still_assigned=False)

    assert kafka.log == before


def test_a_reset_in_a_batch_frees_what_comes_after_it() -> None:
    kafka = Kafka()
    first, second, third = submission(), submission(), submission()

    work(limiter_on(kafka), first, second, LimitReset(NETWORK, "test", NOON), third)

    assert [lead.id for lead in kafka.events(LEADS)] == [first.id, third.id]


def test_the_windows_of_partitions_that_were_given_away_leave_memory() -> None:
    limiter = limiter_on(Kafka())
    work(limiter, submission())
    kept = weakref.ref(windows(limiter))
    assert kept() is not None

    limiter.revoked()
    gc.collect()

    assert kept() is None
    with pytest.raises(AssignmentLost):
        work(limiter, submission(), still_assigned=False)
