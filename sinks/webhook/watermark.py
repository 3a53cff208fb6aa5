"""How far a partition may be committed while its records finish in any order. Pure, and small enough to prove."""

from __future__ import annotations

from collections import deque


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
