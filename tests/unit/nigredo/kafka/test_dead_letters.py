"""Dead letters: waiting ones are counted, and a retried record is restored byte for byte or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from nigredo.avro.codec import Undecodable
from nigredo.clock import from_ms, utc_now
from nigredo.kafka.dead_letters import LEFT_OUT, Origin, WaitingDeadLetters
from nigredo.kafka.materialized_view import Row
from nigredo.kafka.record import Record
from nigredo.operations.dead_letters import DeadLetters, NotRetried, Parked, chosen
from nigredo.settings import Settings
from schemas.events import DeadLetter, RecordHeader
from schemas.topics import LEADS, SUBMISSIONS

AT = from_ms(1_700_000_000_000)


def letter(offset: int, reason: str = "undecodable", **changes: Any) -> DeadLetter:
    given: dict[str, Any] = {
        "function": "nigredo-rate-limiter-dev", "reason": reason, "error": "no event", "origin_topic": SUBMISSIONS,
        "origin_partition": 1, "origin_offset": offset, "origin_timestamp": AT, "key": b"k", "value": b"v",
        "headers": (RecordHeader("ce_type", b"lead.submitted"), RecordHeader("empty", None)), "parked_at": utc_now(),
    }  # fmt: skip
    return DeadLetter(**given | changes)


def parked(one: DeadLetter) -> Parked:
    return Parked(Origin(one.function, one.origin_topic, one.origin_partition, one.origin_offset).key, 0, one)


class FakeCodec:
    """A codec whose values are the letters themselves."""

    def decode(self, _: str, value: Any) -> DeadLetter:
        if not isinstance(value, DeadLetter):
            raise Undecodable("no event")
        return value


def row(one: DeadLetter, *, gone: bool = False) -> Row:
    return Row(parked(one).key, None if gone else cast(Any, one), 0, 0, 0)


def test_waiting_letters_are_counted_by_topic_and_reason() -> None:
    waiting = WaitingDeadLetters(cast(Any, FakeCodec()))
    first, second, third = letter(1), letter(2), letter(3, "failed")

    waiting.begin()
    waiting.apply([row(first), row(second), row(first), row(third)])
    assert waiting.document() == {"dead_letters": None}
    waiting.loaded()
    assert waiting.counts == {(SUBMISSIONS, "undecodable"): 2, (SUBMISSIONS, "failed"): 1}
    waiting.apply([row(second, gone=True), row(third, gone=True)])

    assert waiting.document() == {"dead_letters": [{"topic": SUBMISSIONS, "reason": "undecodable", "count": 1}]}


def test_a_letter_that_no_reader_knows_is_counted_all_the_same() -> None:
    waiting = WaitingDeadLetters(cast(Any, FakeCodec()))

    waiting.begin()
    waiting.apply([Row(b"a key of another writer", b"?", 0, 0, 0)])
    waiting.loaded()

    assert waiting.counts == {("other", "other"): 1}


class FakeReader:
    """A reader that finds one record, at offset 5 of each partition."""

    def __init__(self, key: bytes = b"k", low: int = 0) -> None:
        self._key, self._low = key, low

    def watermarks(self, _: str, __: int) -> tuple[int, int]:
        return (self._low, 10)

    def between(self, topic: str, partition: int, start: int, end: int) -> list[Any]:
        message = SimpleNamespace(
            topic=lambda: topic, partition=lambda: partition, offset=lambda: 5,
            timestamp=lambda: (1, 1_700_000_000_000), key=lambda: self._key,
            value=lambda: b"large", headers=lambda: [("h", b"x")],
        )  # fmt: skip
        return [message] if start <= 5 < end else []


def letters(reader: Any = None) -> DeadLetters:
    found = DeadLetters(Settings.from_environment({}), "test", lambda _, __: None)
    found._reader = reader or FakeReader()
    return found


def test_a_record_comes_back_byte_for_byte() -> None:
    record = letters().original(parked(letter(7)))

    headers = (("ce_type", b"lead.submitted"), ("empty", None))
    assert record == Record(SUBMISSIONS, 1, 7, AT, b"k", b"v", headers)


def test_a_record_that_was_too_large_is_read_at_its_own_position() -> None:
    left_out = letter(5, value=None, headers=(), error=f"x (a value of 5 bytes {LEFT_OUT})")

    record = letters().original(parked(left_out))

    assert (record.value, record.headers) == (b"large", (("h", b"x"),))


@pytest.mark.parametrize("reader", [FakeReader(key=b"of another record"), FakeReader(low=6)])
def test_another_record_at_the_same_position_is_not_retried(reader: FakeReader) -> None:
    left_out = letter(5, value=None, headers=(), error=f"x (a value of 5 bytes {LEFT_OUT})")

    with pytest.raises(NotRetried):
        letters(reader).original(parked(left_out))


def test_a_tombstone_that_was_parked_comes_back_as_one() -> None:
    assert letters().original(parked(letter(5, value=None, headers=()))).value is None


def test_letters_are_chosen_by_topic_reason_and_time() -> None:
    every = [parked(letter(1)), parked(letter(2, "failed")), parked(letter(3, parked_at=AT, origin_topic=LEADS))]

    assert chosen(every, topic=SUBMISSIONS, reason=None, since=None) == every[:2]
    assert chosen(every, topic=None, reason="failed", since=None) == [every[1]]
    assert chosen(every, topic=None, reason=None, since=from_ms(1_700_000_000_001)) == every[:2]
