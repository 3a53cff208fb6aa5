"""Ids that nobody can guess, for the path of every request; they tell when they were given."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from uuid import UUID

from nigredo.avro.encoders import MILLISECOND

AT_ONCE = 256
_RANDOM_BYTES = 10
_RANDOM = 0x0FFF_3FFF_FFFF_FFFF_FFFF
_VERSION_AND_VARIANT = 0x7000_8000_0000_0000_0000


def uuid7s() -> Iterator[UUID]:
    """Yield UUIDs of version 7 (RFC 9562): the milliseconds of the wall clock, then 74 random bits.

    Every process can tell from one whether its lead may be on its way, and a table's index grows at one end. The random
    bytes are the system's, fetched for many at a time.
    """
    while True:
        fetched = os.urandom(_RANDOM_BYTES * AT_ONCE)
        for start in range(0, len(fetched), _RANDOM_BYTES):
            random = int.from_bytes(fetched[start : start + _RANDOM_BYTES], "big")
            yield UUID(int=(time.time_ns() // 1_000_000 << 80) | (random & _RANDOM) | _VERSION_AND_VARIANT)


def issued_within(lead_id: UUID, past: timedelta, now: datetime, *, skew: timedelta) -> bool:
    """Say whether an id says that it was given no longer ago than this; never of one that tells no time.

    skew: by how much the clock of the node that gave it may be ahead.
    """
    if lead_id.version != 7:
        return False
    ago_ms = round(now.timestamp() * 1000) - (lead_id.int >> 80)
    return -skew / MILLISECOND <= ago_ms <= past / MILLISECOND
