"""What a processor does with its records, as `InOrder` asks it to: `rate_limit/` and `persistence/` each have one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from nigredo.avro.codec import Codec, Undecodable
from nigredo.errors import RecordRefused
from nigredo.kafka.record import Record
from nigredo.log_position import LogPosition
from schemas.events import Event


class AssignmentLost(Exception):
    """The assignment this batch belongs to is over; somebody else may own its partitions by now."""


Decoded = tuple[Record, Event | None]
"""A record and its event; None for a tombstone."""


class BatchHandler(Protocol):
    """The work of one processor."""

    async def open(self) -> None:
        """Make what needs the event loop. Called once, before everything else; may raise DependencyDown."""

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        """Get ready for a partition that was just assigned and return where it goes on, as the log bears it out.

        Called again after DependencyDown, and afresh in every assignment and after Stale. Raises PositionRefused when
        the stored position is not the log's: then nothing of the partition is consumed or committed.
        """

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        """Store a position that the log contradicts in the place of a later one: it is what tells of the loss.

        Only where the group's offset is not the authority; may raise DependencyDown.
        """

    async def decode(self, record: Record) -> Event | None:
        """Return a record's event. Raises RecordRefused for what never can be read, DependencyDown."""

    async def work(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Do the work and return when its results are durable. The same records may come again: be idempotent.

        Raises DependencyDown for what may succeed later, RecordRefused when (one of) the records never can, Stale
        when `still_ours()` became false on the way or somebody else was found to do the same work.
        """

    def revoked(self) -> None:
        """Let go of what is kept of the partitions, all of them: what is ours next is begun afresh."""

    async def park(self, record: Record, reason: str, error: str) -> None:
        """Put a record that can never be handled aside, durably, with the reason. May raise DependencyDown."""

    async def close(self) -> None:
        """Release what was opened."""


async def decode(codec: Codec, record: Record) -> Event | None:
    """Return a record's event with errors named for what they mean to `InOrder`."""
    if record.value is None:
        return None
    try:
        if codec.is_cached(record.value):
            return codec.decode(record.topic, record.value)
        return await asyncio.to_thread(codec.decode, record.topic, record.value)
    except Undecodable as error:
        raise RecordRefused("undecodable", str(error)) from error
