"""Leads and windows that `nigredo recover` finds and rewrites, with lists as topics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from nigredo.avro.encoded_window import decode_window, encode_window
from nigredo.clock import utc_now
from nigredo.control.state import LEAVE
from nigredo.errors import DependencyDown
from nigredo.kafka.batch_publisher import Outgoing
from nigredo.kafka.publisher import BY_KEY
from nigredo.operations import group_drain
from nigredo.operations.group_drain import drained
from nigredo.operations.recovery import procedure as recovery_module
from nigredo.operations.recovery import survey as recovery_survey
from nigredo.operations.recovery.procedure import Recovery, partition_of
from nigredo.operations.recovery.reading import Reading
from nigredo.operations.recovery.survey import Survey
from nigredo.rate_limit.latest_windows import OF_NO_RECORD
from nigredo.settings import Settings
from schemas.events import Acceptance, ControlEntry, DeliveryAttempt, RateLimitState, Submission
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS
from tests.support.submission_logs import submission
from tests.unit.processors.rate_limit.test_release import CODEC

SETTINGS = Settings.from_environment({})
HOUR = timedelta(hours=1)


@dataclass
class FakeMessage:
    stored_key: bytes
    stored_value: bytes
    event: object = None
    number: int = 0

    def key(self) -> bytes:
        return self.stored_key

    def value(self) -> bytes:
        return self.stored_value

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return (2, 1_800_000_000_000)


def window(network: str, *accepted: Acceptance, offset: int = 3) -> RateLimitState:
    return RateLimitState(network, 10, 3600, accepted, 0, utc_now(), offset)


class Topics:
    """Fake `TopicReader`: windows by partition, and submissions in partition 0."""

    def __init__(self, windows: Mapping[int, Sequence[RateLimitState]], submissions: Sequence[Submission] = ()) -> None:
        self._windows = windows
        self._submissions = submissions

    def partitions(self, _: str) -> list[int]:
        return sorted(self._windows)

    def read_to_end(
        self, topic: str, partitions: Sequence[int], *, offsets: Mapping[int, int], **_: Any
    ) -> Iterator[Any]:
        if topic == RATE_LIMITS:
            for number in partitions:
                for state in self._windows[number] if number not in offsets else ():
                    yield FakeMessage(state.client_network.encode(), encode_window(CODEC, state), number=number)

    def watermarks(self, _: str, partition: int) -> tuple[int, int]:
        return 0, len(self._submissions) if partition == 0 else 0

    def between(self, *_: Any) -> Iterator[Any]:
        yield from (FakeMessage(b"k", b"v", event) for event in self._submissions)


def surveyed(topics: Topics) -> Survey:
    survey = Survey(SETTINGS, ["first"], lambda _: None)
    survey.reading = Reading(SETTINGS, cast(Any, topics))
    inside, reading = cast(Any, survey), cast(Any, survey.reading)
    inside._reader, reading._codec, reading.event = topics, CODEC, lambda message: message.event
    return survey


def alone(at: datetime, *, in_log: bool = True) -> tuple[list[UUID], list[UUID], UUID]:
    """Survey a lead accepted at a time, by its window alone; return the ids restored, the ids gone, and its id."""
    lead_id, gone = uuid4(), list[UUID]()
    topics = Topics({0: [window("a", Acceptance(lead_id, at))]}, [submission(lead_id=lead_id)] if in_log else [])
    return [lead.id for lead in surveyed(topics).accepted_only(set(), gone)], gone, lead_id


def test_an_accepted_lead_is_restored_from_its_submission() -> None:
    back, gone, lead_id = alone(utc_now() - HOUR)

    assert (back, gone) == ([lead_id], [])


def test_an_accepted_lead_that_may_have_been_erased_without_a_trace_is_not_restored_but_listed() -> None:
    """A lead's tombstone may expire after a day; its submission and its network's window stay for a week."""
    back, gone, lead_id = alone(utc_now() - 25 * HOUR)

    assert (back, gone) == ([], [lead_id])


def test_an_accepted_lead_without_a_submission_is_listed_by_its_id() -> None:
    back, gone, lead_id = alone(utc_now() - HOUR, in_log=False)

    assert (back, gone) == ([], [lead_id])


def moved(windows: Mapping[int, Sequence[RateLimitState]]) -> dict[tuple[int, str], RateLimitState]:
    """Return the windows that are copied, by partition and network."""
    recovery = Recovery(SETTINGS, [], "test", lambda _: None)
    topics = Topics(windows)
    inside = cast(Any, recovery)
    inside._reader, inside._survey = topics, surveyed(topics)
    return {
        (cast(int, record.partition), (record.key or b"").decode()): decode_window(CODEC, record.value or b"")
        for record in inside._moved()
    }


def network_that_goes(before: tuple[int, int], after: tuple[int, int]) -> str:
    """Return a network by its partitions. before, after: (partition, number of partitions)."""
    for number in range(100_000):
        key = f"192.0.2.{number}".encode()
        if (partition_of(key, before[1]), partition_of(key, after[1])) == (before[0], after[0]):
            return key.decode()
    raise AssertionError("there is no such network")


def test_windows_follow_their_networks_to_added_partitions_and_among_the_old_ones() -> None:
    to_new = network_that_goes((0, 4), (4, 6))
    to_old = network_that_goes((0, 4), (2, 6))
    stays = network_that_goes((0, 4), (0, 6))
    accepted = Acceptance(uuid4(), utc_now())

    copies = moved({0: [window(each, accepted) for each in (to_new, to_old, stays)], **{n: [] for n in range(1, 6)}})

    assert set(copies) == {(4, to_new), (2, to_old)}
    assert {state.input_offset for state in copies.values()} == {OF_NO_RECORD}
    assert {state.accepted for state in copies.values()} == {(accepted,)}


def test_a_network_that_was_judged_in_its_new_partition_keeps_the_window_that_it_has_there() -> None:
    """Compaction keeps the last record of a key, so a copy would replace the window with a less complete one."""
    network = network_that_goes((0, 4), (4, 8))

    assert moved({0: [window(network)], **{n: [] for n in range(1, 8)}, 4: [window(network)]}) == {}


def test_a_group_that_another_command_drains_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry serves both commands, so the first to end would let the members rejoin during the other."""
    until, changed = utc_now() + HOUR, list[str]()
    entry = ControlEntry(LEAVE, "group", {}, "another", utc_now(), until)
    fake = SimpleNamespace(held=lambda _: [entry], put=lambda *_, **__: changed.append("put"), remove=changed.append)
    monkeypatch.setattr(group_drain, "ControlAdmin", lambda *_: fake)

    with (
        pytest.raises(DependencyDown, match="another command keeps group without members"),
        drained(SETTINGS, "group", "test", lambda _: None, note="recover"),
    ):
        changed.append("body")

    assert changed == []


def test_an_accepted_lead_is_found_in_the_partition_that_its_network_left() -> None:
    """The copy of its network's window is in the new partition."""
    lead_id, gone = uuid4(), list[UUID]()
    accepted = window("a", Acceptance(lead_id, utc_now() - HOUR))
    topics = Topics({0: [accepted], 1: [accepted]}, [submission(lead_id=lead_id)])

    back = [lead.id for lead in surveyed(topics).accepted_only(set(), gone)]

    assert (back, gone) == ([lead_id], [])


def test_before_a_lead_is_restored_its_delivery_is_published_for_the_endpoint_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sender reads past deliveries when it joins, so it leaves its group meanwhile."""
    lead_id, done = uuid4(), list[str]()
    recovery = Recovery(SETTINGS, ["took-it", "never-did"], "test", lambda _: None)
    inside = cast(Any, recovery)
    topics = Topics({0: [window("a", Acceptance(lead_id, utc_now()))]}, [submission(lead_id=lead_id)])
    inside._reader, inside._survey = topics, surveyed(topics)
    inside._survey.delivered_among = lambda name, lost: set(lost) if name == "took-it" else set()
    inside._survey.deliveries_of = lambda name, ids: [
        DeliveryAttempt(uuid4(), lead_id, name, "https://x", 1, utc_now(), 5, "delivered", 200, None, 3, 9)
    ]

    async def publish(records: Iterator[Outgoing]) -> int:
        done.extend(f"{record.topic}[{record.partition}]" for record in records)
        return 1

    @contextmanager
    def away(_: object, group: str, *__: object, **___: object) -> Iterator[None]:
        done.append(f"{group} leaves")
        yield
        done.append(f"{group} is back")

    inside._publish = publish
    monkeypatch.setattr(recovery_module, "drained", away)
    monkeypatch.setattr(recovery_module, "stored_leads", lambda _: iter(()))

    inside._bring_back({lead_id}, done.append)

    group = "nigredo-webhook-sender-dev-took-it"
    assert done == [
        f"{group} leaves",
        f"{DELIVERIES}[0]",
        f"{LEADS}[{BY_KEY}]",
        f"{group} is back",
        f"brought 1 lead back to {LEADS}",
    ]


def test_a_delivery_that_is_not_in_postgresql_is_read_from_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    in_table, in_log = (
        DeliveryAttempt(uuid4(), uuid4(), "first", "https://x", 1, utc_now(), 5, "delivered", 200, None, 0, 9)
        for _ in range(2)
    )
    survey = surveyed(Topics({0: []}))
    asked = list[set[UUID]]()
    monkeypatch.setattr(recovery_survey, "delivered_attempts", lambda *_: iter([in_table]))

    def attempts(_: str, ids: set[UUID]) -> Iterator[DeliveryAttempt]:
        asked.append(set(ids))
        return iter([in_log, in_log])

    cast(Any, survey.reading).attempts = attempts

    found = list(survey.deliveries_of("first", [in_table.lead_id, in_log.lead_id]))

    assert found == [in_table, in_log]
    assert asked == [{in_log.lead_id}]


def test_an_unreadable_window_is_named_by_partition_and_offset() -> None:
    reading = surveyed(Topics({0: []})).reading

    with pytest.raises(DependencyDown, match=r"a window in nigredo\.rate-limits cannot be read, partition 2, offset 7"):
        cast(Any, reading)._apply_window(FakeMessage(b"a", b"no window of ours", number=2))
