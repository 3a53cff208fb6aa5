"""Latest encoded window of each network: the highest input offset wins, and the oldest change is evicted first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from nigredo.avro.encoded_window import encode_window, rank_of
from nigredo.rate_limit.latest_windows import OF_NO_RECORD, LatestWindows
from schemas.events import RateLimitState
from tests.unit.nigredo.avro.test_encoded_window import a_codec

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
CODEC = a_codec()


def value(key: str, offset: int) -> bytes:
    return encode_window(CODEC, RateLimitState(key, 10, 3600, (), 0, NOON + timedelta(seconds=offset), offset))


def taken(records: list[tuple[str, int | None]]) -> LatestWindows:
    known = LatestWindows(CODEC)
    for key, offset in records:
        known.take(key.encode(), None if offset is None else value(key, offset))
    return known


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 9))))
def test_the_furthest_of_each_network_is_known_and_the_last_to_change_comes_first(
    records: list[tuple[str, int | None]],
) -> None:
    expected: dict[str, int] = {}
    for key, offset in records:
        if offset is None:
            expected.pop(key, None)
        elif offset >= expected.get(key, -1):
            expected.pop(key, None)
            expected[key] = offset

    known = taken(records)

    assert list(known) == [value(key, offset) for key, offset in reversed(expected.items())]
    assert {key: known.get(key.encode()) for key in "abc"} == {
        key: value(key, expected[key]) if key in expected else None for key in "abc"
    }
    furthest = known.furthest()
    assert (-1 if furthest is None else furthest.offset) == max(expected.values(), default=-1)


@given(st.integers(0, 9), st.none() | st.integers(0, 9))
def test_the_oldest_are_evicted_while_they_are_over_and_no_more_than_allowed_at_once(
    over: int, at_once: int | None
) -> None:
    known = taken([(key, offset) for offset, key in enumerate("abcde")])

    let_go = known.evict(lambda found: rank_of(CODEC, found).input_offset < over, at_once)

    gone = min(over, 5, 5 if at_once is None else at_once)
    assert let_go == gone
    assert list(known) == [value(key, offset) for offset, key in enumerate("abcde")][gone:][::-1]


def test_windows_that_a_recovery_rewrote_count_and_name_no_record_of_the_log() -> None:
    known = taken([("a", OF_NO_RECORD), ("b", OF_NO_RECORD)])

    assert known.furthest() is None
    assert known.get(b"a") == value("a", OF_NO_RECORD)
