"""Positions that a consumer came past since the log was last found unchanged, to be compared with it. Pure.

A broker that comes back with a shorter log may have grown past the next offset before anything is fetched. The record
that arrives then fits, and the commit after it replaces the only position that tells of the loss; so those before it
are kept until a comparison with the log has confirmed them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nigredo.log_position import LogPosition

Place: TypeAlias = tuple[str, int]
"""A topic and a partition."""

BURST_S = 0.25
"""Of what is read within it the last position is kept: no broker restarts in so short a time."""
POSITIONS_MAX = 512
"""Of a partition; past it every second one goes, so that what is left still reaches as far back."""
STALLED_LOOKS = 5


@dataclass(frozen=True, slots=True)
class _Kept:
    position: LogPosition
    burst_began_s: float


class Trail:
    """Positions by partition, in the order in which they came. They stay true whichever process reads on."""

    def __init__(self) -> None:
        self._kept: dict[Place, list[_Kept]] = {}

    def begin(self, place: Place, position: LogPosition, read_s: float) -> None:
        """Keep one position, which the log bears out, in the place of all before it."""
        self._kept[place] = [_Kept(position, read_s)]

    def add(self, place: Place, position: LogPosition, read_s: float) -> None:
        """Keep a position. read_s: the time, by a clock that never goes back, at which its record was read."""
        kept = self._kept.setdefault(place, [])
        last = kept[-1] if kept else None
        if last is None or not _of_one_burst(last, position, read_s):
            kept.append(_Kept(position, read_s))
            if len(kept) > POSITIONS_MAX:
                del kept[1:-1:2]
        else:
            kept[-1] = _Kept(position, last.burst_began_s)

    def of(self, place: Place) -> Sequence[LogPosition]:
        """Return what is kept of a partition."""
        return tuple(kept.position for kept in self._kept.get(place, ()))

    def confirmed(self, place: Place, positions: Sequence[LogPosition]) -> None:
        """Let go of positions that the log bears out, but for the last of them: the log may lose it from now on."""
        gone = set(positions[:-1])
        self._kept[place] = [kept for kept in self._kept.get(place, ()) if kept.position not in gone]


def _of_one_burst(last: _Kept, position: LogPosition, read_s: float) -> bool:
    marks = (last.position.last, position.last)
    epochs = {None if mark is None else mark.leader_epoch for mark in marks}
    return (
        read_s - last.burst_began_s < BURST_S
        and last.position.next_offset <= position.next_offset
        and last.position.topic_id == position.topic_id
        and len(epochs) == 1
    )


class Arrivals:
    """How often in a row each partition was found to have records without one that arrived meanwhile.

    By looks and not by a clock: a process that was frozen saw nothing meanwhile.
    """

    def __init__(self) -> None:
        self._looks: dict[Place, int] = {}

    def arrived(self, places: Collection[Place]) -> None:
        """Note partitions from which a record arrived."""
        for place in places:
            self._looks.pop(place, None)

    def looked(self, waiting: Collection[Place]) -> Mapping[Place, int]:
        """Take a look at which partitions have records to read; return in how many looks, of those that stall."""
        self._looks = {place: self._looks.get(place, 0) + 1 for place in waiting}
        return {place: looks for place, looks in self._looks.items() if looks >= STALLED_LOOKS}
