"""Ids that nobody can guess, for the path of every request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import UUID

AT_ONCE = 256


def random_ids() -> Iterator[UUID]:
    """Yield random UUIDs (version 4). Their bytes are the system's, fetched for many at a time."""
    while True:
        fetched = os.urandom(16 * AT_ONCE)
        for start in range(0, len(fetched), 16):
            yield UUID(bytes=fetched[start : start + 16], version=4)
