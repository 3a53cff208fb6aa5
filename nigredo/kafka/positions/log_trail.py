"""Trail of positions that a consumer passed since the last successful comparison with the log. Pure.

A broker that restarts with a truncated log may grow past the consumer's next offset before the next fetch. The record
that arrives then fits, and the commit after it would replace the only position that proves the loss. Earlier positions
are therefore stored until a comparison with the log has confirmed them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nigredo.log_position import LogPosition

Place: TypeAlias = tuple[str, int]
"""Topic-partition: (topic, partition)."""

BURST_S = 0.25
"""Of the records read within this time only the last position is stored, because no broker restarts that fast."""
POSITIONS_MAX = 512
"""Positions per partition; past it every second one is dropped, so that the trail still reaches as far back."""
STALLED_LOOKS = 5
"""A partition stalls after this many looks in a row that found records to read while none arrived."""


@dataclass(frozen=True, slots=True)
class _Entry:
    position: LogPosition
    burst_began_s: float


class Trail:
    """Passed positions by partition, oldest first. They stay valid whichever process consumes the partition next."""

    def __init__(self) -> None:
        self._entries: dict[Place, list[_Entry]] = {}

    def begin(self, topic_partition: Place, position: LogPosition, read_s: float) -> None:
        """Restart a partition's trail with one position that the log has confirmed."""
        self._entries[topic_partition] = [_Entry(position, read_s)]

    def add(self, topic_partition: Place, position: LogPosition, read_s: float) -> None:
        """Append a position. read_s: the time at which its record was read, by a monotonic clock."""
        entries = self._entries.setdefault(topic_partition, [])
        last = entries[-1] if entries else None
        if last is None or not _of_one_burst(last, position, read_s):
            entries.append(_Entry(position, read_s))
            if len(entries) > POSITIONS_MAX:
                del entries[1:-1:2]
        else:
            entries[-1] = _Entry(position, last.burst_began_s)

    def of(self, topic_partition: Place) -> Sequence[LogPosition]:
        """Return a partition's stored positions, oldest first."""
        return tuple(entry.position for entry in self._entries.get(topic_partition, ()))

    def confirmed(self, topic_partition: Place, positions: Sequence[LogPosition]) -> None:
        """Drop positions that the log has confirmed, except the last, which the log may still lose from now on."""
        dropped = set(positions[:-1])
        self._entries[topic_partition] = [
            entry for entry in self._entries.get(topic_partition, ()) if entry.position not in dropped
        ]


def _of_one_burst(last: _Entry, position: LogPosition, read_s: float) -> bool:
    marks = (last.position.last, position.last)
    epochs = {None if mark is None else mark.leader_epoch for mark in marks}
    return (
        read_s - last.burst_began_s < BURST_S
        and last.position.next_offset <= position.next_offset
        and last.position.topic_id == position.topic_id
        and len(epochs) == 1
    )


class Arrivals:
    """Stall detector: counts looks in a row that found records in a partition while none arrived.

    Counts looks instead of time, because a frozen process receives nothing in the meantime.
    """

    def __init__(self) -> None:
        self._looks: dict[Place, int] = {}

    def arrived(self, topic_partitions: Collection[Place]) -> None:
        """Reset the count of partitions from which a record arrived."""
        for topic_partition in topic_partitions:
            self._looks.pop(topic_partition, None)

    def looked(self, waiting: Collection[Place]) -> Mapping[Place, int]:
        """Count a look. waiting: partitions with records to read. Return the stalled partitions with their looks."""
        self._looks = {topic_partition: self._looks.get(topic_partition, 0) + 1 for topic_partition in waiting}
        return {topic_partition: looks for topic_partition, looks in self._looks.items() if looks >= STALLED_LOOKS}
