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
"""Records of a partition that may be done above one that is not; past it the partition waits."""
INHERITED_MAX = 2 * WINDOW_MAX
"""Of the records above the committed offset an earlier process may have done so many: the window, and what was done
since its last commit."""
CLOCKS_DIFFER = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Room:
    """How many more records of each kind are wanted; of those that refer to waiting attempts, as many as there are."""

    leads: int
    replays: int
    paused: bool


@dataclass(slots=True)
class Partition:
    """One assigned partition of the leads. `counts_since`: deliveries made after it are not made again."""

    counts_since: datetime
    own_from: int
    """Nothing at or after this offset was done before this assignment: the log ended here, or enough was read."""
    taken: int = 0
    begun: dict[int, datetime] = field(default_factory=dict)
    """Since when each record is in hand, oldest first."""
    sending: dict[UUID, asyncio.Event] = field(default_factory=dict)
    delivered: asyncio.Task[dict[UUID, datetime]] | None = field(default=None)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """The turns of leads that ask for what was delivered."""
    delivered_max: int = 0

    def take(self, offset: int) -> None:
        """Note that a record is in hand."""
        self.begun[offset] = utc_now()
        self.taken += 1
        if self.taken == INHERITED_MAX:
            self.own_from = min(self.own_from, offset)

    def metadata(self, position: LogPosition) -> str:
        """Return the proof of a position, and since when deliveries matter to the owner that goes on from there.

        What is done above the oldest open record was begun after it, and so delivered after it, unless an earlier
        process did it: as long as that may be, nothing is said that was not said before.
        """
        since = self.counts_since
        if position.next_offset >= self.own_from:
            since = max(since, next(iter(self.begun.values()), utc_now()) - CLOCKS_DIFFER)
        return to_metadata(position, since=str(int(since.timestamp() * 1000)))


def counts_since(fields: Mapping[str, str]) -> datetime:
    """Return since when deliveries of a partition count as made, from the sink's own fields of a commit's metadata.

    An offset that an operator set, as Kafka's own tools do, has no such time: everything from there on is to be sent,
    also what was delivered before.
    """
    since = fields.get("since", "")
    return from_ms(int(since)) if since.isdecimal() else utc_now()
