"""Delay queue of later attempts, ordered by due time, at most one per partition and key; callers pass `now`. Pure."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from sinks.webhook.model import PartitionId, Ticket

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Delayed(Generic[T]):
    """A delayed attempt: the ticket and key of its record, and the item to process once it is due."""

    ticket: Ticket
    key: bytes
    item: T


class DelayQueue(Generic[T]):
    """Delayed attempts by due time. Unbounded itself, because every entry counts in the window of its partition."""

    def __init__(self) -> None:
        self._heap: list[tuple[datetime, int, Delayed[T]]] = []
        self._by_key: dict[tuple[PartitionId, bytes], Delayed[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def put(self, delayed: Delayed[T], due: datetime) -> Delayed[T] | None:
        """Add an attempt; return the older attempt with the same partition and key that it replaces, if any."""
        older = self.cancel(delayed.ticket.place, delayed.key)
        self._by_key[delayed.ticket.place, delayed.key] = delayed
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, delayed))
        return older

    def cancel(self, place: PartitionId, key: bytes) -> Delayed[T] | None:
        """Remove and return the attempt of a key before it is due; None without one."""
        return self._by_key.pop((place, key), None)

    def holds(self, place: PartitionId, key: bytes) -> bool:
        """Return whether an attempt with this key delayed."""
        return (place, key) in self._by_key

    def due(self, now: datetime, most: int) -> list[Delayed[T]]:
        """Remove and return at most `most` attempts that are due, the most overdue first."""
        found: list[Delayed[T]] = []
        while self._heap and self._heap[0][0] <= now and len(found) < most:
            delayed = heapq.heappop(self._heap)[2]
            at = (delayed.ticket.place, delayed.key)
            if self._by_key.get(at) is delayed:
                del self._by_key[at]
                found.append(delayed)
        return found

    def clear(self) -> None:
        """Remove all attempts, because their assignment ended."""
        self._heap.clear()
        self._by_key.clear()
