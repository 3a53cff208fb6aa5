"""Batch handler: the protocol between `StreamProcessor` and the work of `rate_limit/` and `persistence/`."""

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
    """The batch's assignment is over, and another worker may own its partitions: drop the batch, commit nothing."""


Decoded = tuple[Record, Event | None]
"""A record and its event; None for a tombstone."""


class BatchHandler(Protocol):
    """The work of one processor: prepares assigned partitions and processes batches of their records."""

    async def open(self) -> None:
        """Create clients that need the event loop. Called before every other method, until it succeeds once.

        Raises DependencyDown.
        """

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        """Prepare a newly assigned partition and return the position to continue from, confirmed by the log.

        Called in every assignment, and again after DependencyDown and AssignmentLost. Raises PositionRefused when the
        log contradicts the stored position: then nothing of the partition is consumed or committed.
        """

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        """Store a position that the log contradicts over a later one, because it is the evidence of the loss.

        Does nothing in a processor whose authority is the group's offset. Raises DependencyDown.
        """

    async def decode(self, record: Record) -> Event | None:
        """Return a record's event; None for a tombstone.

        Raises RecordRefused for a record that can never be decoded, DependencyDown when the registry is unavailable.
        """

    async def work(self, records: Sequence[Decoded], still_assigned: Callable[[], bool]) -> None:
        """Process records and return once the results are durable. Must be idempotent: the same records may come again.

        Raises DependencyDown when a retry may succeed, RecordRefused when at least one record can never succeed,
        AssignmentLost when `still_assigned()` became false or another worker did the same work.
        """

    def revoked(self) -> None:
        """Drop the state of every partition; `begin` is called for each partition of the next assignment."""

    async def park(self, record: Record, reason: str, error: str) -> None:
        """Dead-letter a record that can never be processed, durably and with the reason. Raises DependencyDown."""

    async def close(self) -> None:
        """Close the clients that `open` created."""


async def decode(codec: Codec, record: Record) -> Event | None:
    """Return a record's event; None for a tombstone. Raises RecordRefused for undecodable bytes, DependencyDown."""
    if record.value is None:
        return None
    try:
        if codec.is_cached(record.value):
            return codec.decode(record.topic, record.value)
        return await asyncio.to_thread(codec.decode, record.topic, record.value)
    except Undecodable as error:
        raise RecordRefused("undecodable", str(error)) from error
