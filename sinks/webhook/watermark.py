"""How far partitions may be committed while their records finish in any order. Pure, and small enough to prove."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

Place = tuple[str, int]
"""A topic and a partition."""


class Watermark:
    """Begins at the assigned position; `next_offset` never passes a record that was begun and is not finished.

    Offsets may have gaps, as compaction leaves them: only what was begun counts.
    """

    def __init__(self, position: int) -> None:
        self.next_offset = position
        self._begun: deque[int] = deque()
        self._finished: set[int] = set()

    @property
    def open(self) -> int:
        """How many records stand between the committable offset and the newest one begun."""
        return len(self._begun)

    def begin(self, offset: int) -> bool:
        """Note that a record is being handled; False when it is old news: below the mark, or begun already."""
        if offset < self.next_offset or (self._begun and offset <= self._begun[-1]):
            return False
        self._begun.append(offset)
        return True

    def finish(self, offset: int) -> None:
        """Note that a record is done and move the mark over everything that is done without a hole."""
        self._finished.add(offset)
        while self._begun and self._begun[0] in self._finished:
            done = self._begun.popleft()
            self._finished.discard(done)
            self.next_offset = done + 1


@dataclass(frozen=True, slots=True)
class Ticket:
    """One record in hand, and the assignment under which it was begun."""

    epoch: int
    place: Place
    offset: int


class Progress:
    """What is in hand of all assigned partitions. Each assignment has its epoch, and discards what older ones began."""

    def __init__(self) -> None:
        self._epoch = 0
        self._marks: dict[Place, Watermark] = {}

    def assigned(self, positions: Mapping[Place, int]) -> None:
        """Begin a new assignment at these positions."""
        self._epoch += 1
        self._marks = {place: Watermark(position) for place, position in positions.items()}

    def revoked(self) -> None:
        """End the assignment: the next owner begins again what is not finished."""
        self._epoch += 1
        self._marks = {}

    def begin(self, place: Place, offset: int) -> Ticket | None:
        """Note that a record is being handled; None when it is old news or nobody assigned it."""
        mark = self._marks.get(place)
        return Ticket(self._epoch, place, offset) if mark is not None and mark.begin(offset) else None

    def holds(self, ticket: Ticket) -> bool:
        """Say whether the assignment under which a record was begun still holds."""
        return ticket.epoch == self._epoch

    def finish(self, ticket: Ticket) -> bool:
        """Note that a record is done; False, and nothing happens, when its assignment is over."""
        if not self.holds(ticket):
            return False
        self._marks[ticket.place].finish(ticket.offset)
        return True

    def open(self, place: Place) -> int:
        """How many records of a partition are above what may be committed."""
        return self._marks[place].open

    def positions(self) -> dict[Place, int]:
        """Return how far each partition may be committed."""
        return {place: mark.next_offset for place, mark in self._marks.items()}
