"""What was done before the present assignment, by whoever had it: which leads were delivered, which references settled.

Each is loaded once an assignment, when it is first asked for, and again after a load that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from nigredo.clock import utc_now
from schemas.topics import LEADS
from sinks.webhook.consumer.group_consumer import GroupConsumer
from sinks.webhook.consumer.partitions import INHERITED_MAX, Partition
from sinks.webhook.delivery.attempt_log import AttemptLog, Settled
from sinks.webhook.model import PartitionId

T = TypeVar("T")

DELIVERED_MAX = INHERITED_MAX
"""Delivered leads of a partition that are remembered beside those loaded, so that one written twice is sent once: the
limiter writes again at most its last batch. By then all of those loaded that matter have come by."""
EVER = datetime.min.replace(tzinfo=UTC)


class DeliveryHistory:
    """Belongs to the event loop. What cannot be read raises DependencyDown."""

    def __init__(self, attempts: AttemptLog, group: GroupConsumer) -> None:
        self._attempts = attempts
        self._group = group
        self._settled: asyncio.Task[Settled] | None = None

    def forget(self) -> None:
        """Let go of what holds for an assignment that is over; what holds for a partition goes with the partition."""
        self._settled = None

    async def was_delivered(self, lead_id: UUID, partition: Partition, number: int, *, since: datetime = EVER) -> bool:
        """Say whether a lead of partition `number` was delivered after a time, as far as deliveries count at all."""
        if partition.delivered is None or _failed(partition.delivered):
            partition.delivered = _begun(self._attempts.delivered_since(number, partition.counts_since))
        load = partition.delivered
        async with partition.asking:  # A lead that comes when it is loaded does not overtake those that waited for it.
            at = (await asyncio.shield(load)).get(lead_id)
        return at is not None and at > since

    @staticmethod
    def remember(partition: Partition, lead_id: UUID) -> None:
        """Note that a lead needs no delivery any more."""
        if partition.delivered is not None and partition.delivered.done() and not _failed(partition.delivered):
            delivered = partition.delivered.result()
            partition.delivered_max = partition.delivered_max or len(delivered) + DELIVERED_MAX
            delivered[lead_id] = utc_now()
            if len(delivered) > partition.delivered_max:
                del delivered[next(iter(delivered))]

    async def settled(self, place: PartitionId, key: bytes, *, after: int) -> bool:
        """Say whether a reference is followed by its end after its offset.

        It stands above an older one that waits, so it is read again, perhaps long before its end is.
        """
        if self._settled is None or _failed(self._settled):
            at = {place: offset for place, offset in self._group.positions().items() if place[0] != LEADS}
            self._settled = _begun(self._attempts.settled_after(at))
        return (await asyncio.shield(self._settled)).get((place, key), -1) > after


def _begun(load: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.create_task(load)
    # Whoever waited may be gone when it fails, with the assignment; asyncio would tell that nobody looked.
    task.add_done_callback(_failed)
    return task


def _failed(load: asyncio.Task[Any]) -> bool:
    return load.done() and (load.cancelled() or load.exception() is not None)
