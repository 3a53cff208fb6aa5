"""Comparison of a member's partitions with the log, every few seconds, in a thread beside the consumer's.

Finds logs that lost records which were read, and partitions with records that do not arrive, because a client may stop
fetching for good: when a disk of Kafka was set back, leader epochs are lower than those that librdkafka has seen, so it
treats all metadata about the leader as outdated, and only a new client reads on.
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
"""Compares positions of partitions with the log. Raises DependencyDown."""
_Positions: TypeAlias = dict[PartitionId, Sequence[LogPosition]]


class LogComparison:
    """Comparisons of one membership. `read` may be called from any thread, the rest from a single thread."""

    def __init__(self, compare: Compare, trail: Trail) -> None:
        """trail: positions that were read, also by earlier memberships."""
        self._compare = compare
        self._trail = trail
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-proof")
        self._running: tuple[_Positions, Future[Comparison]] | None = None
        self._due_s = 0.0
        self._arrivals = Arrivals()
        self.stalled: Mapping[PartitionId, float] = {}
        """Seconds for which partitions had records of which none arrived."""

    def read(self, place: PartitionId, position: LogPosition) -> None:
        """Add the position after a record that was read, whatever its outcome."""
        with self._lock:
            self._trail.add(place, position, time.monotonic())

    def assigned(self) -> None:
        """Start a new assignment, in which no record has arrived yet."""
        self._arrivals, self.stalled = Arrivals(), {}

    def arrived(self, places: Collection[PartitionId]) -> None:
        """Register that records of these partitions arrived."""
        self._arrivals.arrived(places)

    @property
    def due(self) -> bool:
        """Whether to call `disproved`: a comparison has ended, or the next one is due."""
        return time.monotonic() >= self._due_s if self._running is None else self._running[1].done()

    def disproved(
        self, positions: Mapping[PartitionId, LogPosition], idle: AbstractSet[PartitionId]
    ) -> Mapping[PartitionId, LogPosition]:
        """Return the positions that a finished comparison contradicts, or start a comparison that is due. Never waits.

        positions: committable positions of the partitions that are read. idle: partitions that are not paused and have
        no record in flight. Raises DependencyDown.
        """
        now_s = time.monotonic()
        if self._running is None:
            if positions and now_s >= self._due_s:
                with self._lock:
                    compared: _Positions = {place: (at, *self._trail.of(place)) for place, at in positions.items()}
                self._running = (compared, self._thread.submit(self._compare, compared))
            return {}
        compared, comparison = self._running
        if not comparison.done():
            return {}
        self._running, self._due_s = None, now_s + EVERY_S
        found = comparison.result()
        with self._lock:
            for place in compared.keys() - found.disproved.keys():
                self._trail.confirmed(place, compared[place][1:])
        waiting = {place for place in idle if found.ends.get(place, 0) > positions[place].next_offset}
        self.stalled = {place: looks * EVERY_S for place, looks in self._arrivals.looked(waiting).items()}
        return found.disproved

    def end(self) -> None:
        """Start no further comparison."""
        self._thread.shutdown(wait=False, cancel_futures=True)
