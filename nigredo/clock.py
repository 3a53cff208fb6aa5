"""Clocks of the product: aware UTC in milliseconds, and a timer that keeps running while the process is frozen."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the current UTC time, truncated to the millisecond because Kafka and Avro store no finer time."""
    return from_ms(time.time_ns() // 1_000_000)


def since_boot_s() -> float:
    """Return seconds since boot, for measuring spans in which the process or the machine may be suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def truncate_to_ms(at: datetime) -> datetime:
    """Return `at` truncated to whole milliseconds."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


# Under load many records share a millisecond, and the cache in `nigredo.avro.encoders.time` finds an identical object
# faster than an equal one.
@lru_cache(maxsize=1024)
def from_ms(timestamp_ms: int) -> datetime:
    """Return a Kafka timestamp (milliseconds since the epoch) as aware UTC."""
    return datetime.fromtimestamp(timestamp_ms // 1000, UTC).replace(microsecond=timestamp_ms % 1000 * 1000)
