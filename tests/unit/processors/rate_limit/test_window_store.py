"""Window store: the window with the highest input offset counts, and expired windows are evicted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import pytest

from nigredo.errors import DependencyDown
from nigredo.log_position import Mark
from processors.rate_limit.window_store import CLOCK_SLACK_MS, FAR_FUTURE_MS, WindowStore
from schemas.events import Acceptance, RateLimitState
from schemas.topics import RATE_LIMITS
from tests.unit.nigredo.avro.test_encoded_window import a_codec

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SLACK = timedelta(milliseconds=CLOCK_SLACK_MS)
CODEC = a_codec()


class WindowRecord:
    """A record of `nigredo.rate-limits`, as the client library returns it."""

    def __init__(self, key: str, value: bytes | None) -> None:
        self._key, self._value = key.encode(), value

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0


def window(network: str, offset: int, at: datetime = NOON) -> RateLimitState:
    return RateLimitState(network, 10, 3600, (Acceptance(uuid4(), at),), 0, at, offset)


def window_records(*states: RateLimitState) -> list[WindowRecord]:
    return [WindowRecord(state.client_network, CODEC.encode(RATE_LIMITS, state)) for state in states]


def loaded(*records: WindowRecord, committed: int = 0, not_after_ms: int = FAR_FUTURE_MS) -> WindowStore:
    windows = WindowStore(CODEC)
    windows.load(cast(Any, records), committed, lambda _: None, not_after_ms=not_after_ms)
    return windows


def test_the_window_with_the_highest_input_offset_counts_even_when_written_first() -> None:
    newer, late_write = window("a", 9), window("a", 7, NOON + HOUR)

    windows = loaded(*window_records(window("a", 3), newer, late_write))

    assert windows.get("a") == newer
    assert windows.furthest == Mark.of(9, round(NOON.timestamp() * 1000), b"a")


def test_a_window_that_a_repeated_record_needs_is_loaded_though_another_of_its_batch_is_a_day_younger() -> None:
    """A crash between the windows of a batch: `y`, past the committed offset, is in the topic already, `x` is not."""
    full, y = window("x", 99), window("y", 999, NOON + timedelta(hours=25))

    windows = loaded(*window_records(full, y), committed=100)

    assert windows.get("x") == full


@pytest.mark.parametrize("value", [b"\x00\x00\x00\x00\x07", b"rubbish"])
def test_an_undecodable_window_holds_its_partition_and_its_offset_is_reported(value: bytes) -> None:
    with pytest.raises(DependencyDown, match="partition 0, offset 0"):
        loaded(*window_records(window("a", 3)), WindowRecord("a", value))


def test_a_window_corrupt_in_its_middle_holds_the_record_that_needs_it_until_the_window_expires() -> None:
    whole, over = window("a", 1), window("b", 2)
    broken = bytearray(CODEC.encode(RATE_LIMITS, whole))
    broken[20] |= 0x80  # Within the id of an acceptance: invalid text in the middle, with both ends intact.
    windows = loaded(WindowRecord("a", bytes(broken)), *window_records(over))

    for _ in range(2):
        with pytest.raises(DependencyDown, match="cannot be read"):
            windows.get("a")
    windows.evict_expired(NOON + HOUR + SLACK, 100)
    assert len(windows) == 2
    windows.evict_expired(NOON + 24 * HOUR + SLACK, 100)
    assert len(windows) == 0


def test_expired_windows_are_not_loaded_unless_their_record_comes_again() -> None:
    old, again = window("old", 3, NOON - 30 * HOUR), window("again", 8, NOON - 30 * HOUR)

    windows = loaded(*window_records(old, again, window("a", 7)), committed=8)

    assert windows.get("old") is None
    assert windows.get("again") == again


def test_only_a_network_with_an_expired_window_leaves_memory() -> None:
    windows = loaded(*window_records(window("first", 1, NOON), window("second", 2, NOON + HOUR)))
    windows.put(window("third", 3, NOON + 2 * HOUR))

    windows.evict_expired(NOON + 2 * HOUR + SLACK, 100)

    assert len(windows) == 1
    assert windows.get("third") is not None


def test_a_changed_window_is_evicted_last() -> None:
    windows = loaded(*window_records(window("a", 1), window("b", 2, NOON + timedelta(minutes=1))))
    windows.put(replace(window("a", 3, NOON + HOUR)))

    windows.evict_expired(NOON + HOUR + timedelta(minutes=1) + SLACK, 100)

    assert windows.get("a") is not None
    assert windows.get("b") is None


def test_no_more_windows_are_evicted_at_once_than_allowed() -> None:
    windows = loaded(*window_records(*(window(str(number), number) for number in range(10))))
    for number in range(10, 20):
        windows.put(window(str(number), number))

    windows.evict_expired(NOON + HOUR + SLACK, 4)
    assert len(windows) == 16

    windows.evict_expired(NOON + HOUR + SLACK, 8)
    assert len(windows) == 8


def test_a_changed_window_replaces_its_loaded_version() -> None:
    windows = loaded(*window_records(window("a", 1)))
    newer = window("a", 2)

    windows.put(newer)

    assert windows.get("a") == newer
    assert len(windows) == 1
