"""Restart offsets of groups after a loss of records, in logs whose timestamps cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.clock import from_ms, utc_now
from nigredo.log_position import LogNow, LogPosition, Mark
from nigredo.operations.recovery import reading as recovery_reading
from nigredo.operations.recovery import survey as recovery_survey
from nigredo.operations.recovery.lost_leads import DeliveredLead, accepted_lead
from nigredo.operations.recovery.reading import CHUNK_MIN, as_ms, place
from nigredo.operations.recovery.survey import SenderRestart, Survey
from nigredo.settings import Settings
from schemas.events import DeliveryAttempt, LimitReset
from schemas.topics import DELIVERIES, LEADS, REJECTIONS, SUBMISSIONS
from tests.support.submission_logs import NOON, submission
from tests.unit.processors.rate_limit.test_release import CODEC

SETTINGS = Settings.from_environment({})
TIMES = st.integers(1, 2**41)
"""Any timestamp that a clock may have given, in ms."""
YOUNG = as_ms(utc_now())
COMMAND = LimitReset("192.0.2.1", "test", NOON)


@dataclass
class Logged:
    """Fake Kafka message with the parts that a recovery reads."""

    at: int
    timestamp_ms: int
    stored_key: bytes
    event: Any = None

    def key(self) -> bytes:
        return self.stored_key

    def value(self) -> bytes | None:
        return None if self.event is None else b"v"

    def topic(self) -> str:
        return ""

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at

    def leader_epoch(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (2, self.timestamp_ms)

    def mark(self) -> Mark:
        return Mark.of(self.at, self.timestamp_ms, self.stored_key)


@dataclass
class Log:
    """Fake `TopicReader` over topics of one partition, with the positions of one group."""

    topics: Mapping[str, list[Logged]]
    position: LogPosition | None = None
    parts_read: list[tuple[int, int]] = field(default_factory=list)

    def partitions(self, _: str) -> list[int]:
        return [0]

    def positions(self, *_: Any) -> dict[int, LogPosition | None]:
        return {0: self.position}

    def watermarks(self, topic: str, _: int) -> tuple[int, int]:
        records = self.topics.get(topic, [])
        return (records[0].at, records[-1].at + 1) if records else (0, 0)

    def between(self, topic: str, _: int, start: int, end: int) -> Iterator[Logged]:
        self.parts_read.append((start, end))
        return (record for record in self.topics.get(topic, []) if start <= record.at < end)

    def read_to_end(self, topic: str, _: Sequence[int], *, offsets: Mapping[int, int], **__: Any) -> Iterator[Logged]:
        return (record for record in self.topics.get(topic, []) if record.at >= offsets.get(0, 0))

    def now(self, topic: str, _: int, asks_at: int, **__: Any) -> LogNow:
        start, end = self.watermarks(topic, 0)
        found = next((record.mark() for record in self.topics.get(topic, []) if record.at >= asks_at), None)
        return LogNow("id", start, end, found)


def surveyed(log: Log) -> Survey:
    survey = Survey(SETTINGS, ["first"], lambda _: None)
    inside, reading = cast(Any, survey), cast(Any, survey.reading)
    inside._reader, inside._delivered_by_table, inside._entry = (
        log,
        lambda _: recovery_reading.Deliveries(),
        lambda _: None,
    )
    survey.reading = reading = recovery_reading.Reading(SETTINGS, cast(Any, log))
    cast(Any, reading)._codec, cast(Any, reading).event = CODEC, lambda message: message.event
    return survey


def verdict_on(message: Logged) -> Any:
    """Return the limiter's verdict on a submission as a lead record; tests need only the position that it names."""
    lead = accepted_lead(message.event, cast(Any, message))
    return Logged(0, 5, str(lead.id).encode(), lead)


OLD = st.lists(st.tuples(TIMES, st.sampled_from(["command", "verdict", "deleted since"])), min_size=1, max_size=20)
GROWN = st.lists(st.tuples(TIMES, st.sampled_from(["command", "new", "sent again"])), max_size=20)


@given(old=OLD, cut_share=st.floats(0, 1), grown=GROWN)
def test_no_submission_and_no_command_is_skipped_whatever_the_clocks_said(
    old: list[tuple[int, str]], cut_share: float, grown: list[tuple[int, str]]
) -> None:
    submissions, verdicts = list[Logged](), list[Logged]()
    for offset, (at_ms, kind) in enumerate(old):
        event = COMMAND if kind == "command" else submission(lead_id=uuid4())
        submissions.append(Logged(offset, at_ms, b"192.0.2.1", event))
        if kind == "verdict":
            verdicts.append(replace(verdict_on(submissions[-1]), at=len(verdicts)))
    position = LogPosition(len(old), "id", submissions[-1].mark())
    cut = int(cut_share * len(old))
    lost, log = submissions[cut:], submissions[:cut]
    known = [record.event for record in lost if record.event is not COMMAND]
    for at_ms, kind in grown:
        event = COMMAND if kind == "command" else known.pop(0) if kind == "sent again" and known else submission()
        log.append(Logged(len(log), at_ms, b"192.0.2.1", event))
    reader = Log({SUBMISSIONS: log, REJECTIONS: verdicts}, position)

    restarts = surveyed(reader).limiter_restarts()

    if not restarts:
        # Position and log agree: no record was lost, or an identical record has the same offset and millisecond.
        assert cut == len(old) or log[len(old) - 1].mark() == position.last
        return
    with_verdict = {record.event.id for record in verdicts}
    unhandled = [r.at for r in log[cut:] if r.event is COMMAND or r.event.id not in with_verdict]
    assert restarts[0].goes_to <= min(unhandled, default=len(log))
    last_proof = max((r.at for r in log[:cut] if r.event is not COMMAND and r.event.id in with_verdict), default=-1)
    assert restarts[0].goes_to > last_proof, "nothing that has a verdict is judged again"


def test_a_clock_that_was_set_back_by_hours_hides_no_new_submission() -> None:
    """A search by time would start after all the new submissions."""
    handled = [Logged(offset, 1_800_000_000_000 + offset, b"k", submission()) for offset in range(10)]
    grown = [Logged(offset, 1_790_000_000_000 + offset, b"k", submission()) for offset in range(6, 30)]
    reader = Log(
        {SUBMISSIONS: [*handled[:6], *grown], LEADS: [replace(verdict_on(one), at=one.at) for one in handled]},
        LogPosition(10, "id", handled[9].mark()),
    )

    assert [one.goes_to for one in surveyed(reader).limiter_restarts()] == [6]


def test_of_a_long_log_only_the_end_is_read_to_find_the_last_record_that_was_judged() -> None:
    handled = [Logged(offset, 1000 + offset, b"k", submission()) for offset in range(3 * CHUNK_MIN)]
    reader = Log(
        {SUBMISSIONS: handled[:-5], LEADS: [replace(verdict_on(one), at=one.at) for one in handled]},
        LogPosition(len(handled), "id", handled[-1].mark()),
    )

    (restart,) = surveyed(reader).limiter_restarts()

    assert restart.goes_to == len(handled) - 5
    assert reader.parts_read == [(len(handled) - 5 - CHUNK_MIN, len(handled) - 5)]


def lead(offset: int, at_ms: int, lead_id: UUID | None = None) -> Logged:
    known = lead_id or uuid4()
    return Logged(
        offset, at_ms, str(known).encode(), replace(verdict_on(Logged(0, 1, b"k", submission())).event, id=known)
    )


def attempt_at(one: Logged, at: int, *, outcome: str = "delivered", partition: int = 0) -> Logged:
    event = DeliveryAttempt(
        uuid4(), one.event.id, "first", "https://x", 1, NOON, 5, outcome, 200, None, partition, one.at
    )
    return Logged(at, 1000 + at, one.stored_key, event)


@pytest.fixture(autouse=True)
def _no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_survey, "stored_verdicts", lambda _: iter(()))


def sender_restart(reader: Log, **with_: Any) -> SenderRestart:
    survey = surveyed(reader)
    for name, value in with_.items():
        setattr(cast(Any, survey), name, value)
    (leads, _) = survey.sender_repair("first")
    return leads[0]


@given(
    old=st.lists(st.tuples(TIMES, st.booleans()), min_size=1, max_size=20),
    cut_share=st.floats(0, 1),
    grown=st.lists(TIMES, max_size=20),
    lost_offset=st.booleans(),
)
def test_no_undelivered_lead_is_skipped_whatever_the_clocks_said(
    old: list[tuple[int, bool]], cut_share: float, grown: list[int], lost_offset: bool
) -> None:
    """Leads before the stored offset without a delivery are dead, and are not sent again."""
    leads = [lead(offset, at_ms) for offset, (at_ms, _) in enumerate(old)]
    attempts = [attempt_at(one, at, outcome="delivered" if old[at][1] else "dead") for at, one in enumerate(leads)]
    cut = min(int(cut_share * len(old)), len(old) - 1)
    log = leads[:cut] + [lead(cut + number, at_ms) for number, at_ms in enumerate(grown)]
    position = None if lost_offset else LogPosition(len(old), "id", leads[-1].mark())
    reader = Log({LEADS: log, DELIVERIES: attempts}, position)

    found = sender_restart(reader)

    assert found.restart.goes_to == cut


def test_deliveries_that_only_postgresql_has_are_to_be_published_again() -> None:
    leads = [lead(offset, YOUNG) for offset in range(4)]
    in_table = recovery_reading.Deliveries()
    for one in (leads[0], leads[2]):
        in_table.delivered[one.event.id.bytes] = recovery_survey.NOT_IN_THE_LOG
        in_table.places.add(place(one.event.id.bytes, 0, one.at))
    reader = Log({LEADS: leads}, None)

    found = sender_restart(reader, _delivered_by_table=lambda _: in_table)

    assert found.restart.goes_to == 1
    assert found.off_record == [leads[2].event.id.bytes]
    assert found.delivered_since_ms is None


def test_deliveries_count_from_the_oldest_one_of_a_lead_that_is_read_again() -> None:
    leads = [lead(offset, YOUNG) for offset in range(4)]
    reader = Log({LEADS: leads, DELIVERIES: [attempt_at(leads[n], at) for at, n in enumerate((0, 3, 2))]}, None)

    found = sender_restart(reader)

    assert found.restart.goes_to == 1
    assert found.delivered_since_ms == 1001
    assert found.off_record == []


def test_an_endpoint_that_lost_its_offsets_gets_no_lead_from_before_it_began() -> None:
    began = as_ms(utc_now())
    leads = [lead(offset, began + 1000 * (offset - 3)) for offset in range(6)]
    reader = Log({LEADS: leads}, None)

    found = sender_restart(reader, _entry=lambda _: object(), _first_offsets=lambda _: (from_ms(began), {0: 3}))

    assert found.restart.goes_to == 3


def test_an_erased_lead_does_not_lower_the_restart_offset() -> None:
    leads = [lead(offset, YOUNG) for offset in range(2)]
    erased = Logged(2, YOUNG, leads[1].stored_key, None)
    reader = Log({LEADS: [*leads, erased], DELIVERIES: [attempt_at(leads[0], 0)]}, None)

    assert sender_restart(reader).restart.goes_to == 3


def test_a_lead_older_than_any_trace_of_deliveries_is_not_sent_again() -> None:
    old, young = as_ms(utc_now() - timedelta(days=400)), as_ms(utc_now())
    leads = [lead(0, old), lead(1, young), lead(2, young)]
    reader = Log({LEADS: leads, DELIVERIES: [attempt_at(leads[1], 0)]}, None)

    assert sender_restart(reader).restart.goes_to == 2


def test_deliveries_in_the_table_are_found_by_their_lead_and_its_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    known, replayed, erased = uuid4(), uuid4(), uuid4()
    rows = [
        DeliveredLead(known, replay=False, lead_partition=1, lead_offset=7),
        DeliveredLead(replayed, replay=True, lead_partition=1, lead_offset=8),
        DeliveredLead(erased, replay=False, lead_partition=0, lead_offset=None),
    ]
    monkeypatch.setattr(recovery_survey, "delivered_leads", lambda *_: iter(rows))

    found = Survey(SETTINGS, ["first"], lambda _: None)._delivered_by_table("first")

    assert set(found.delivered) == {known.bytes, replayed.bytes, erased.bytes}
    assert found.places == {place(known.bytes, 1, 7)}


def test_submissions_whose_verdicts_only_postgresql_has_are_not_judged_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = [Logged(offset, 1000 + offset, b"k", submission()) for offset in range(10)]
    rows = [(one.event.id, 0, one.at, from_ms(one.timestamp_ms)) for one in judged]
    monkeypatch.setattr(recovery_survey, "stored_verdicts", lambda _: iter(rows))
    reader = Log({SUBMISSIONS: judged[:6]}, LogPosition(10, "id", judged[9].mark()))

    assert [one.goes_to for one in surveyed(reader).limiter_restarts()] == [6]


def test_a_topic_is_read_once_and_later_only_its_new_records() -> None:
    records = [Logged(offset, 5, str(uuid4()).encode(), "lead") for offset in range(3)]
    taken = list[int]()
    log = Log({LEADS: records[:2]})
    topic = recovery_reading.Followed(cast(Any, log), LEADS, lambda message: taken.append(message.offset() or 0))

    topic.catch_up()
    topic.catch_up()
    log.topics = {LEADS: records}
    topic.catch_up()

    assert taken == [0, 1, 2]
