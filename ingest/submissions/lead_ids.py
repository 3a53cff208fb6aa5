"""Lead ids: UUIDs of version 7, which cannot be guessed and contain the time of their issue."""

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

    Every process can see from an id whether its lead may still be in flight, and a table's index grows at one end. The
    random bytes come from the operating system, fetched for many ids at a time.
    """
    while True:
        fetched = os.urandom(_RANDOM_BYTES * AT_ONCE)
        for start in range(0, len(fetched), _RANDOM_BYTES):
            random = int.from_bytes(fetched[start : start + _RANDOM_BYTES], "big")
            yield UUID(int=(time.time_ns() // 1_000_000 << 80) | (random & _RANDOM) | _VERSION_AND_VARIANT)


def issued_within(lead_id: UUID, past: timedelta, now: datetime, *, skew: timedelta) -> bool:
    """Say whether an id was issued within `past` before `now`; False for an id that contains no time.

    skew: how far the clock of the issuing node may be ahead.
    """
    if lead_id.version != 7:
        return False
    ago_ms = round(now.timestamp() * 1000) - (lead_id.int >> 80)
    return -skew / MILLISECOND <= ago_ms <= past / MILLISECOND
