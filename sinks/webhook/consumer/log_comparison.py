"""Comparison of a member's partitions with the log, every few seconds and beside the reading of records.

It finds a log that lost records which were read, and partitions that have records of which none arrives: a client may
stop fetching for good. After a disk of Kafka was set back its leader epochs are lower than those that librdkafka has
seen, so that it takes every word about the leader for outdated; only a new client reads on then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from nigredo.kafka.positions.log_proof import Comparison
from nigredo.kafka.positions.log_trail import Arrivals, Trail
from nigredo.log_position import LogPosition
from sinks.webhook.model import PartitionId

EVERY_S = 3.0

Compare: TypeAlias = Callable[[Mapping[PartitionId, Sequence[LogPosition]]], Comparison]
"""Raises DependencyDown."""
_Kept: TypeAlias = dict[PartitionId, Sequence[LogPosition]]


class LogComparison:
    """The comparisons of one membership. `read` may be called from any thread, the rest from one."""

    def __init__(self, compare: Compare, trail: Trail) -> None:
        """trail: what was read, also by memberships before this one."""
        self._compare = compare
        self._trail = trail
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-proof")
        self._under_way: tuple[_Kept, Future[Comparison]] | None = None
        self._due_s = 0.0
        self._arrivals = Arrivals()
        self.stalled: Mapping[PartitionId, float] = {}
        """For how many seconds partitions have had records of which none arrived."""

    def read(self, place: PartitionId, position: LogPosition) -> None:
        """Note the position after a record that was read, whatever becomes of it."""
        with self._lock:
            self._trail.add(place, position, time.monotonic())

    def assigned(self) -> None:
        """Begin a new assignment: nothing has arrived in it yet."""
        self._arrivals, self.stalled = Arrivals(), {}

    def arrived(self, places: Collection[PartitionId]) -> None:
        """Note that records of these partitions came."""
        self._arrivals.arrived(places)

    @property
    def due(self) -> bool:
        """Whether `disproved` has anything to do: a comparison has ended, or is to begin."""
        return time.monotonic() >= self._due_s if self._under_way is None else self._under_way[1].done()

    def disproved(
        self, positions: Mapping[PartitionId, LogPosition], idle: AbstractSet[PartitionId]
    ) -> Mapping[PartitionId, LogPosition]:
        """Return what a comparison that has ended contradicts, and begin one that is due. Never waits.

        positions: where the partitions that are read may be committed. idle: those that are neither paused nor worked
        on. Raises DependencyDown.
        """
        now_s = time.monotonic()
        if self._under_way is None:
            if positions and now_s >= self._due_s:
                with self._lock:
                    kept: _Kept = {place: (at, *self._trail.of(place)) for place, at in positions.items()}
                self._under_way = (kept, self._thread.submit(self._compare, kept))
            return {}
        kept, comparison = self._under_way
        if not comparison.done():
            return {}
        self._under_way, self._due_s = None, now_s + EVERY_S
        found = comparison.result()
        with self._lock:
            for place in kept.keys() - found.disproved.keys():
                self._trail.confirmed(place, kept[place][1:])
        waiting = {place for place in idle if found.ends.get(place, 0) > positions[place].next_offset}
        self.stalled = {place: looks * EVERY_S for place, looks in self._arrivals.looked(waiting).items()}
        return found.disproved

    def end(self) -> None:
        """Begin no further comparison."""
        self._thread.shutdown(wait=False, cancel_futures=True)
