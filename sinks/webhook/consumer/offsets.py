"""Offset tracker: the committable position of each partition while its records finish in any order. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from nigredo.log_position import LogPosition, Mark
from sinks.webhook.model import PartitionId, Ticket


class Watermark:
    """Committable position of one partition: `next_offset` never passes a record that was begun and not finished.

    Offsets may have gaps, as compaction leaves them: only records that were begun count. The record before
    `next_offset` is kept as a mark, so that a commit carries the proof of its position.
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
        """Number of records from the committable offset up to the newest record begun, finished or not."""
        return len(self._begun)

    def begin(self, record: Mark) -> bool:
        """Register a record as in flight; False when it is below the committable offset or was begun before."""
        if record.offset < self.next_offset or (self._begun and record.offset <= self._begun[-1].offset):
            return False
        self._begun.append(record)
        return True

    def finish(self, offset: int) -> None:
        """Mark a record as done and advance `next_offset` over the consecutive records that are done."""
        self._finished.add(offset)
        while self._begun and self._begun[0].offset in self._finished:
            self._last = self._begun.popleft()
            self._finished.discard(self._last.offset)
            self.next_offset = self._last.offset + 1


class OffsetTracker:
    """Records in flight of all assigned partitions. Each assignment has an epoch; older tickets are ignored."""

    def __init__(self) -> None:
        self._epoch = 0
        self._marks: dict[PartitionId, Watermark] = {}

    def assigned(self, positions: Mapping[PartitionId, LogPosition]) -> None:
        """Start a new assignment at these positions."""
        self._epoch += 1
        self._marks = {}
        for place, position in positions.items():
            self.add(place, position)

    def add(self, place: PartitionId, position: LogPosition) -> None:
        """Add a partition to the current assignment."""
        self._marks[place] = Watermark(position)

    def drop(self, place: PartitionId) -> LogPosition | None:
        """Remove a partition from the assignment; return its committable position, None if not assigned."""
        mark = self._marks.pop(place, None)
        return None if mark is None else mark.position

    def revoked(self) -> None:
        """End the assignment; the next owner processes unfinished records again."""
        self._epoch += 1
        self._marks = {}

    def begin(self, place: PartitionId, record: Mark) -> Ticket | None:
        """Register a record as in flight; None when it is repeated or its partition is not assigned."""
        mark = self._marks.get(place)
        return Ticket(self._epoch, place, record.offset) if mark is not None and mark.begin(record) else None

    def holds(self, ticket: Ticket) -> bool:
        """Return whether the ticket's assignment is current and its partition still assigned."""
        return ticket.epoch == self._epoch and ticket.place in self._marks

    def finish(self, ticket: Ticket) -> bool:
        """Mark a record as done; False, without an effect, when its assignment ended."""
        if not self.holds(ticket):
            return False
        self._marks[ticket.place].finish(ticket.offset)
        return True

    def topic_id(self, place: PartitionId) -> str | None:
        """Return the topic id of the position at which a partition was assigned."""
        return self._marks[place].topic_id

    def open(self, place: PartitionId) -> int:
        """Return the number of records above the committable offset of a partition."""
        return self._marks[place].open

    def positions(self) -> dict[PartitionId, LogPosition]:
        """Return the committable position of each partition, with its proof."""
        return {place: mark.position for place, mark in self._marks.items()}
