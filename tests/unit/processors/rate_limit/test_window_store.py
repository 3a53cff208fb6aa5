"""The limiter's memory: the window that read furthest wins, and what decides nothing any more goes."""

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


class Told:
    """A record of `nigredo.rate-limits`, as the client library hands it over."""

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


def told(*states: RateLimitState) -> list[Told]:
    return [Told(state.client_network, CODEC.encode(RATE_LIMITS, state)) for state in states]


def loaded(*records: Told, committed: int = 0, not_after_ms: int = FAR_FUTURE_MS) -> WindowStore:
    windows = WindowStore(CODEC)
    windows.load(cast(Any, records), committed, lambda _: None, not_after_ms=not_after_ms)
    return windows


def test_the_window_that_read_furthest_is_true_whoever_wrote_last() -> None:
    newer, late_write = window("a", 9), window("a", 7, NOON + HOUR)

    windows = loaded(*told(window("a", 3), newer, late_write))

    assert windows.get("a") == newer
    assert windows.furthest == Mark.of(9, round(NOON.timestamp() * 1000), b"a")


def test_a_window_that_decides_what_comes_again_is_loaded_though_another_one_of_that_batch_is_a_day_younger() -> None:
    """A crash between the windows of a batch: `y`, past what is committed, is on the topic already, and `x` is not."""
    full, y = window("x", 99), window("y", 999, NOON + timedelta(hours=25))

    windows = loaded(*told(full, y), committed=100)

    assert windows.get("x") == full


@pytest.mark.parametrize("value", [b"\x00\x00\x00\x00\x07", b"rubbish"])
def test_a_window_that_cannot_be_read_holds_its_partition_and_its_place_is_told(value: bytes) -> None:
    with pytest.raises(DependencyDown, match="partition 0, offset 0"):
        loaded(*told(window("a", 3)), Told("a", value))


def test_a_window_broken_in_its_middle_holds_the_record_that_asks_for_it_until_it_is_over() -> None:
    whole, over = window("a", 1), window("b", 2)
    broken = bytearray(CODEC.encode(RATE_LIMITS, whole))
    broken[20] |= 0x80  # Within the id of an acceptance: no text any more, and its ends are as they were.
    windows = loaded(Told("a", bytes(broken)), *told(over))

    for _ in range(2):
        with pytest.raises(DependencyDown, match="cannot be read"):
            windows.get("a")
    windows.evict_expired(NOON + HOUR + SLACK, 100)
    assert len(windows) == 2
    windows.evict_expired(NOON + 24 * HOUR + SLACK, 100)
    assert len(windows) == 0


def test_windows_over_for_good_are_not_loaded_unless_their_record_comes_again() -> None:
    old, again = window("old", 3, NOON - 30 * HOUR), window("again", 8, NOON - 30 * HOUR)

    windows = loaded(*told(old, again, window("a", 7)), committed=8)

    assert windows.get("old") is None
    assert windows.get("again") == again


def test_a_network_whose_window_is_over_leaves_memory_and_no_other_does() -> None:
    windows = loaded(*told(window("first", 1, NOON), window("second", 2, NOON + HOUR)))
    windows.put(window("third", 3, NOON + 2 * HOUR))

    windows.evict_expired(NOON + 2 * HOUR + SLACK, 100)

    assert len(windows) == 1
    assert windows.get("third") is not None


def test_a_window_that_changed_is_the_last_to_go() -> None:
    windows = loaded(*told(window("a", 1), window("b", 2, NOON + timedelta(minutes=1))))
    windows.put(replace(window("a", 3, NOON + HOUR)))

    windows.evict_expired(NOON + HOUR + timedelta(minutes=1) + SLACK, 100)

    assert windows.get("a") is not None
    assert windows.get("b") is None


def test_no_more_are_let_go_at_once_than_told() -> None:
    windows = loaded(*told(*(window(str(number), number) for number in range(10))))
    for number in range(10, 20):
        windows.put(window(str(number), number))

    windows.evict_expired(NOON + HOUR + SLACK, 4)
    assert len(windows) == 16

    windows.evict_expired(NOON + HOUR + SLACK, 8)
    assert len(windows) == 8


def test_a_window_that_changed_is_not_kept_a_second_time_as_it_was_loaded() -> None:
    windows = loaded(*told(window("a", 1)))
    newer = window("a", 2)

    windows.put(newer)

    assert windows.get("a") == newer
    assert len(windows) == 1
