"""Delivery history of the assigned partitions: leads already delivered and references already settled.

Each is loaded once per assignment, on first use, so that a rebalance repeats nothing. A failed load is tried again on
the next use.
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
"""Delivered leads cached per partition beside the loaded ones, so that a lead written twice is sent once: the limiter
writes at most its last batch again. Loaded leads are evicted first; those that matter have been consumed by then."""
EVER = datetime.min.replace(tzinfo=UTC)
"""Start of time: every delivery counts."""


class DeliveryHistory:
    """Deliveries and settlements before this assignment; for one event loop. Failed loads raise DependencyDown."""

    def __init__(self, attempts: AttemptLog, group: GroupConsumer) -> None:
        self._attempts = attempts
        self._group = group
        self._settled: asyncio.Task[Settled] | None = None

    def forget(self) -> None:
        """Drop the settlements of an assignment that ended; `Partition` caches the deliveries and is dropped itself."""
        self._settled = None

    async def was_delivered(self, lead_id: UUID, partition: Partition, number: int, *, since: datetime = EVER) -> bool:
        """Return whether a lead of partition `number` was delivered after `since`, among the deliveries that count.

        Deliveries before `Partition.counts_since` do not count. Raises DependencyDown.
        """
        if partition.delivered is None or _failed(partition.delivered):
            partition.delivered = _start(self._attempts.delivered_since(number, partition.counts_since))
        load = partition.delivered
        async with partition.asking:  # A later lead must not overtake leads that waited for the load.
            at = (await asyncio.shield(load)).get(lead_id)
        return at is not None and at > since

    @staticmethod
    def remember(partition: Partition, lead_id: UUID) -> None:
        """Cache a lead as delivered or dead, so that a second record of the lead is not sent."""
        if partition.delivered is not None and partition.delivered.done() and not _failed(partition.delivered):
            delivered = partition.delivered.result()
            partition.delivered_max = partition.delivered_max or len(delivered) + DELIVERED_MAX
            delivered[lead_id] = utc_now()
            if len(delivered) > partition.delivered_max:
                del delivered[next(iter(delivered))]

    async def settled(self, place: PartitionId, key: bytes, *, after: int) -> bool:
        """Return whether the log holds a tombstone of this reference after the offset `after`. Raises DependencyDown.

        An older pending reference holds the committed offset back, so settled references above it are read again,
        perhaps long before their tombstones are.
        """
        if self._settled is None or _failed(self._settled):
            at = {place: offset for place, offset in self._group.positions().items() if place[0] != LEADS}
            self._settled = _start(self._attempts.settled_after(at))
        return (await asyncio.shield(self._settled)).get((place, key), -1) > after


def _start(load: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.create_task(load)
    # Retrieves the exception, because asyncio would log it when the assignment, and the waiting tasks, are gone.
    task.add_done_callback(_failed)
    return task


def _failed(load: asyncio.Task[Any]) -> bool:
    return load.done() and (load.cancelled() or load.exception() is not None)
