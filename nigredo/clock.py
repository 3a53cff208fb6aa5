"""Time as the rest of the program uses it: aware UTC in milliseconds, and a timer that no pause stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return now, truncated to the millisecond that Kafka and Avro keep, so that a round trip changes nothing."""
    return from_ms(time.time_ns() // 1_000_000)


def since_boot_s() -> float:
    """Return a time to measure by that goes on while the process is frozen, and while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def truncate_to_ms(at: datetime) -> datetime:
    """Return `at` without the part of it that a millisecond timestamp cannot hold."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


# Under load many records share a millisecond, and the cache of `nigredo.avro.encoders.time` finds the same object
# faster than an equal one.
@lru_cache(maxsize=1024)
def from_ms(timestamp_ms: int) -> datetime:
    """Return the time of a Kafka timestamp (milliseconds since the epoch)."""
    return datetime.fromtimestamp(timestamp_ms // 1000, UTC).replace(microsecond=timestamp_ms % 1000 * 1000)
