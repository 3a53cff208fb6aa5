"""Assigned partitions of the leads: records in flight, and since when deliveries count as made."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from nigredo.clock import from_ms, utc_now
from nigredo.log_position import LogPosition, to_metadata

WINDOW_MAX = 5000
"""Records above the committable offset, in flight or done, at which a partition is paused."""
INHERITED_MAX = 2 * WINDOW_MAX
"""Most records above the committed offset that an earlier process may have done: the window, and the records done since
its last commit."""
CLOCKS_DIFFER = timedelta(minutes=1)
"""Tolerated clock difference between processes."""


@dataclass(frozen=True, slots=True)
class Room:
    """Number of further leads and replays to consume; retry records are always consumed. paused: consume nothing."""

    leads: int
    replays: int
    paused: bool


@dataclass(slots=True)
class Partition:
    """Assigned partition of `nigredo.leads`. Leads delivered after `counts_since` are not delivered again."""

    counts_since: datetime
    own_from: int
    """First offset that no earlier process did: the log's end at the assignment, or INHERITED_MAX records on."""
    taken: int = 0
    begun: dict[int, datetime] = field(default_factory=dict)
    """Time at which each record in flight was consumed, by offset, oldest first."""
    sending: dict[UUID, asyncio.Event] = field(default_factory=dict)
    """Leads being processed, with an event that is set when the processing ends."""
    delivered: asyncio.Task[dict[UUID, datetime]] | None = field(default=None)
    """Load of the delivered leads, with the time of each delivery; None before the first request."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Lock that keeps leads in order while the delivered leads are loaded."""
    delivered_max: int = 0
    """Capacity of the cache of delivered leads; 0 before the first lead is added."""

    def take(self, offset: int) -> None:
        """Register a record as in flight."""
        self.begun[offset] = utc_now()
        self.taken += 1
        if self.taken == INHERITED_MAX:
            self.own_from = min(self.own_from, offset)

    def metadata(self, position: LogPosition) -> str:
        """Return the commit metadata of a position: its proof, and since when deliveries count for the next owner.

        Records done above the oldest record in flight were consumed, and so delivered, after it, unless an earlier
        process did them. As long as that is possible, `counts_since` stays as it was.
        """
        since = self.counts_since
        if position.next_offset >= self.own_from:
            since = max(since, next(iter(self.begun.values()), utc_now()) - CLOCKS_DIFFER)
        return to_metadata(position, since=str(int(since.timestamp() * 1000)))


def counts_since(fields: Mapping[str, str]) -> datetime:
    """Return since when deliveries of a partition count, from the sink's fields of the commit metadata.

    An offset set by an operator with Kafka's own tools has no such time: then all leads from there on are sent, even if
    they were delivered before.
    """
    since = fields.get("since", "")
    return from_ms(int(since)) if since.isdecimal() else utc_now()
