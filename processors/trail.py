"""The positions that a process made durable since the log was last found unchanged, and their comparison with it.

A broker that comes back with a shorter log may have grown past the next offset before anything is fetched. The record
that arrives then fits, and the commit after it replaces the only position that tells of the loss; so those before it
are kept until a look at the log has confirmed them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from faust.types import TP

from nigredo.log_position import LogPosition, compare
from nigredo.log_reader import LogReader, mark_of

POSITIONS_MAX = 512
"""Of a partition; past it every second one goes, so that what is left still reaches as far back."""
READ_DEADLINE_S = 10.0


class Trail:
    """Positions by partition, oldest first. They stay true whoever consumes the partition next."""

    def __init__(self) -> None:
        self._positions: dict[TP, list[LogPosition]] = {}

    def begin(self, tp: TP, position: LogPosition) -> None:
        """Keep one position, which the log bears out, in the place of all before it."""
        self._positions[tp] = [position]

    def add(self, tp: TP, position: LogPosition) -> None:
        """Keep a position that is durable from now on."""
        positions = self._positions.setdefault(tp, [])
        positions.append(position)
        if len(positions) > POSITIONS_MAX:
            del positions[1:-1:2]

    def of(self, tp: TP) -> Sequence[LogPosition]:
        """Return what is kept of a partition."""
        return tuple(self._positions.get(tp, ()))

    def confirmed(self, tp: TP, positions: Sequence[LogPosition]) -> None:
        """Let go of positions that the log bears out, but for the last of them."""
        kept = self._positions.get(tp, [])
        # Others may have come, or the partition may have begun again, while the log was read.
        if positions and positions[-1] in kept:
            del kept[: kept.index(positions[-1])]


def disproved(reader: LogReader, tp: TP, positions: Sequence[LogPosition]) -> LogPosition | None:
    """Return the first of a partition's positions that the log contradicts. Blocks. Raises DependencyDown."""
    if not positions:
        return None
    now = reader.now(tp.topic, tp.partition, positions[0].asks_at, deadline_s=READ_DEADLINE_S)
    marks = [now.found] if now.found is not None else []
    if len(positions) > 1 and now.topic_id == positions[0].topic_id:
        end = min(now.end, positions[-1].asks_at + 1)
        marks = [mark_of(message) for message in reader.between(tp.topic, tp.partition, positions[0].asks_at, end)]
    offsets = [mark.offset for mark in marks]
    for position in positions:
        at = bisect_left(offsets, position.asks_at)
        found = marks[at] if at < len(marks) else None
        # What is durable is not lost by retention.
        there = replace(now, found=found, start=min(now.start, position.next_offset))
        if not compare(position, there).believed:
            return position
    return None
