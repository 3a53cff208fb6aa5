"""How far partitions may be committed while their records finish in any order. Pure, and small enough to prove."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from nigredo.log_position import LogPosition, Mark
from sinks.webhook.model import PartitionId, Ticket


class Watermark:
    """Begins at the assigned position; `next_offset` never passes a record that was begun and is not finished.

    Offsets may have gaps, as compaction leaves them: only what was begun counts. The record before `next_offset` is
    kept as its mark, so that a commit carries what proves it.
    """

    def __init__(self, position: LogPosition) -> None:
        self.next_offset = position.next_offset
        self.topic_id = position.topic_id
        self._last = position.last
        self._begun: deque[Mark] = deque()
        self._finished: set[int] = set()

    @property
    def position(self) -> LogPosition:
        """The committable position and its proof."""
        return LogPosition(self.next_offset, self.topic_id, self._last)

    @property
    def open(self) -> int:
        """How many records stand between the committable offset and the newest one begun."""
        return len(self._begun)

    def begin(self, record: Mark) -> bool:
        """Note that a record is being handled; False when it is old news: below the mark, or begun already."""
        if record.offset < self.next_offset or (self._begun and record.offset <= self._begun[-1].offset):
            return False
        self._begun.append(record)
        return True

    def finish(self, offset: int) -> None:
        """Note that a record is done and move the mark over everything that is done without a hole."""
        self._finished.add(offset)
        while self._begun and self._begun[0].offset in self._finished:
            self._last = self._begun.popleft()
            self._finished.discard(self._last.offset)
            self.next_offset = self._last.offset + 1


class OffsetTracker:
    """What is in hand of all assigned partitions. Each assignment has its epoch, and discards what older ones began."""

    def __init__(self) -> None:
        self._epoch = 0
        self._marks: dict[PartitionId, Watermark] = {}

    def assigned(self, positions: Mapping[PartitionId, LogPosition]) -> None:
        """Begin a new assignment at these positions."""
        self._epoch += 1
        self._marks = {}
        for place, position in positions.items():
            self.add(place, position)

    def add(self, place: PartitionId, position: LogPosition) -> None:
        """Begin one more partition of the present assignment."""
        self._marks[place] = Watermark(position)

    def drop(self, place: PartitionId) -> LogPosition | None:
        """End one partition of the present assignment where it may be committed; None when it is none of it."""
        mark = self._marks.pop(place, None)
        return None if mark is None else mark.position

    def revoked(self) -> None:
        """End the assignment: the next owner begins again what is not finished."""
        self._epoch += 1
        self._marks = {}

    def begin(self, place: PartitionId, record: Mark) -> Ticket | None:
        """Note that a record is being handled; None when it is old news or its partition is not assigned."""
        mark = self._marks.get(place)
        return Ticket(self._epoch, place, record.offset) if mark is not None and mark.begin(record) else None

    def holds(self, ticket: Ticket) -> bool:
        """Say whether the assignment under which a record was begun still holds, and its partition with it."""
        return ticket.epoch == self._epoch and ticket.place in self._marks

    def finish(self, ticket: Ticket) -> bool:
        """Note that a record is done; False, and nothing happens, when its assignment is over."""
        if not self.holds(ticket):
            return False
        self._marks[ticket.place].finish(ticket.offset)
        return True

    def topic_id(self, place: PartitionId) -> str | None:
        """Return the topic's id in the position at which a partition was begun."""
        return self._marks[place].topic_id

    def open(self, place: PartitionId) -> int:
        """How many records of a partition are above what may be committed."""
        return self._marks[place].open

    def positions(self) -> dict[PartitionId, LogPosition]:
        """Return how far each partition may be committed, with what proves it."""
        return {place: mark.position for place, mark in self._marks.items()}
