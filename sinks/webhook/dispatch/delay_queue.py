"""Attempts that wait for their time, at most one a key and partition. Pure: it is told the time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from sinks.webhook.model import PartitionId, Ticket

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Delayed(Generic[T]):
    """One of them: the record's ticket, and what is to be done."""

    ticket: Ticket
    key: bytes
    what: T


class DelayQueue(Generic[T]):
    """Not bounded by itself: what is in it is open in its partition's window."""

    def __init__(self) -> None:
        self._heap: list[tuple[datetime, int, Delayed[T]]] = []
        self._by_key: dict[tuple[PartitionId, bytes], Delayed[T]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def put(self, waits: Delayed[T], due: datetime) -> Delayed[T] | None:
        """Add one; return the older one of the same key that it takes the place of."""
        older = self.cancel(waits.ticket.place, waits.key)
        self._by_key[waits.ticket.place, waits.key] = waits
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, waits))
        return older

    def cancel(self, place: PartitionId, key: bytes) -> Delayed[T] | None:
        """Take one out before its time, if it is there."""
        return self._by_key.pop((place, key), None)

    def holds(self, place: PartitionId, key: bytes) -> bool:
        """Say whether one of this key waits."""
        return (place, key) in self._by_key

    def due(self, now: datetime, most: int) -> list[Delayed[T]]:
        """Take out those whose time has come, the most overdue first."""
        found: list[Delayed[T]] = []
        while self._heap and self._heap[0][0] <= now and len(found) < most:
            waits = heapq.heappop(self._heap)[2]
            at = (waits.ticket.place, waits.key)
            if self._by_key.get(at) is waits:
                del self._by_key[at]
                found.append(waits)
        return found

    def clear(self) -> None:
        """Forget all of them: their assignment is over."""
        self._heap.clear()
        self._by_key.clear()
