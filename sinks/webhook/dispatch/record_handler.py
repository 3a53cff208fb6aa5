"""Record handler of one membership: processes leads, retries and replays until their offsets are done.

An offset is done only after the record's outcome is in the log. Work of an earlier assignment stops without an outcome,
because the partition's new owner processes the record again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID
from weakref import WeakValueDictionary

from nigredo.avro.codec import PREFIX, Codec, Undecodable
from nigredo.backoff import Backoff
from nigredo.clock import utc_now
from nigredo.endpoints.endpoint import Endpoint
from nigredo.errors import DependencyDown
from nigredo.kafka.dead_letters import park
from nigredo.kafka.parking import Parking
from nigredo.kafka.publisher import Publisher
from nigredo.kafka.record import Record
from nigredo.observability.logs import get_logger
from schemas.events import Event, Lead, WebhookReplay, WebhookRetry
from schemas.topics import WEBHOOK_REPLAYS, retry_topics
from sinks.webhook.consumer.group_consumer import GroupConsumer
from sinks.webhook.consumer.lead_lookup import LeadLookup
from sinks.webhook.consumer.partitions import Partition
from sinks.webhook.delivery.attempt_log import AttemptLog
from sinks.webhook.delivery.lead_delivery import LeadDelivery
from sinks.webhook.dispatch.delay_queue import Delayed, DelayQueue
from sinks.webhook.dispatch.history import DeliveryHistory
from sinks.webhook.model import InFlightLead, PartitionId, Ticket

log = get_logger()

DECODING = "decoding"


@dataclass(frozen=True, slots=True)
class Reference:
    """A retry or replay record in flight, with its decoded event."""

    record: Record
    event: WebhookRetry | WebhookReplay


class RecordHandler:
    """Processes the records of one membership. Use on one event loop."""

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        group: GroupConsumer,
        delivery: LeadDelivery,
        attempts: AttemptLog,
        leads: LeadLookup,
        *,
        codec: Codec,
        publisher: Publisher,
        parking: Parking,
    ) -> None:
        """name: function name of the process, for dead letters. publisher: publishes the dead letters."""
        self.retries: DelayQueue[Reference] = DelayQueue()
        self.replays: DelayQueue[Reference] = DelayQueue()
        self.replay_retries: DelayQueue[Reference] = DelayQueue()
        """Replays that failed before. Apart from the other retries, because they are admitted behind live leads and
        would occupy the retry slots meanwhile."""
        self._queues = (self.retries, self.replays, self.replay_retries)
        self._name = name
        self._endpoint = endpoint
        self._retry_topics = retry_topics(endpoint.name)
        self._group = group
        self._delivery = delivery
        self._attempts = attempts
        self._leads = leads
        self._codec = codec
        self._publisher = publisher
        self._parking = parking
        self._asking: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        """Locks by value prefix (schema id), for records that arrived before their schema was cached."""
        self._history = DeliveryHistory(attempts, group)

    def stop(self) -> None:
        """Start no further attempt."""
        self._delivery.stop()

    def forget(self) -> None:
        """Drop everything that waited under an assignment that ended."""
        for queue in self._queues:
            queue.clear()
        self._history.forget()
        self._parking.forget()
        self._delivery.clear()

    @property
    def retries_waiting(self) -> int:
        """Number of retries that are not due yet or wait for a slot, of live leads and of replays."""
        return len(self.retries) + len(self.replay_retries)

    @property
    def resting(self) -> int:
        """Number of tasks that wait in memory for their next attempt or retry."""
        return self._delivery.resting

    # --- leads, references --------------------------------------------------------------------------------------------

    async def lead(self, record: Record, ticket: Ticket) -> None:
        """Deliver a lead, or withdraw the lead that a tombstone erases, and finish the record."""
        await self._until_done(ticket, lambda: self._lead(record, ticket))

    async def schedule(self, record: Record, ticket: Ticket) -> None:
        """Queue a retry until it is due, or a replay in order of request; a tombstone cancels the queued record."""
        await self._until_done(ticket, lambda: self._schedule(record, ticket), finish=False)

    async def reference(self, delayed: Delayed[Reference]) -> None:
        """Deliver the lead of a queued reference that is due, and finish the reference."""
        await self._until_done(delayed.ticket, lambda: self._reference(delayed))

    async def _until_done(self, ticket: Ticket, work: Callable[[], Awaitable[bool]], *, finish: bool = True) -> None:
        """Repeat `work` until it returns or the assignment ends. finish: finish the record when `work` returns True."""
        backoff = Backoff(longest_s=5.0)
        while self._delivery.ours(ticket):
            try:
                if await work() and finish:
                    self._group.finish(ticket)
                return
            except DependencyDown as error:
                log.warning(
                    "record waiting for a dependency, retrying",
                    error=str(error),
                    topic=ticket.place[0],
                    offset=ticket.offset,
                )
            except Exception as error:
                log.error(
                    "record failed, retrying", error=type(error).__name__, topic=ticket.place[0], offset=ticket.offset
                )
            await self._delivery.rest(backoff.next_wait_s(), ticket)

    async def _lead(self, record: Record, ticket: Ticket) -> bool:
        event = await self._decoded(record)
        partition = self._group.partition(record.partition)
        if partition is None:
            return False
        if not isinstance(event, Lead):
            if record.key is not None and record.value is None:
                self._withdraw(record.key, record.partition)
            return True
        case = InFlightLead(record.partition, record.offset, utc_now())
        return await self._deliver(event, record, ticket, partition, case)

    async def _schedule(self, record: Record, ticket: Ticket) -> bool:
        if record.key is None or record.value is None:
            # A settlement, or the erasure of a person whose attempt was queued.
            if record.key is not None:
                self._cancel(ticket.place, record.key)
            self._group.finish(ticket)
            return True
        event = await self._decoded(record)
        if not isinstance(event, WebhookRetry | WebhookReplay) or event.endpoint != self._endpoint.name:
            self._group.finish(ticket)
            return True
        if await self._history.settled(ticket.place, record.key, after=record.offset):
            self._group.finish(ticket)
            return True
        delayed = Delayed(ticket, record.key, Reference(record, event))
        if isinstance(event, WebhookRetry):
            number, began = event.lead_partition, event.first_attempt_at
            partition = None if event.replay else self._group.partition(number)
            # A delivery meanwhile settles the retry; a replay is sent all the same, as the operator requested.
            if partition is not None and await self._history.was_delivered(
                event.lead_id, partition, number, since=began
            ):
                await self._attempts.tombstone(ticket.place, record.key)
                self._group.finish(ticket)
                return True
            queue, due = self.replay_retries if event.replay else self.retries, event.not_before
        else:
            # In the order of the requests; `min` keeps a clock that is ahead of this one from delaying a replay.
            queue, due = self.replays, min(event.requested_at, utc_now())
        self._cancel(ticket.place, record.key)  # The new record replaces an older one of its key.
        queue.put(delayed, due)
        return True

    async def _reference(self, delayed: Delayed[Reference]) -> bool:
        event, ticket = delayed.item.event, delayed.ticket
        if isinstance(event, WebhookRetry):
            began, number, replay = event.first_attempt_at, event.attempts, event.replay
        else:
            began, number, replay = utc_now(), 0, True
        case = InFlightLead(event.lead_partition, event.lead_offset, began, number, replay)

        record = await self._leads.read(case.lead_partition, case.lead_offset, str(event.lead_id).encode())
        lead = None if record is None else await self._decoded(record)
        partition = self._group.partition(case.lead_partition)
        if record is None or not isinstance(lead, Lead):
            await self.settle(delayed)  # Erased.
            return True
        origin = _ReferenceOrigin(self, delayed, lead.id, case.lead_partition)
        if replay or partition is None:
            return await self._delivery.run(lead, record, ticket, case, origin)
        async with self._exclusive(partition, lead.id):
            if await self._history.was_delivered(lead.id, partition, case.lead_partition, since=began):
                await self.settle(delayed)  # Delivered meanwhile, by another record of the lead.
                return True
            return await self._delivery.run(lead, record, ticket, case, origin)

    def _withdraw(self, key: bytes, partition: int) -> None:
        """Stop the delivery of an erased lead: withdraw its attempts in flight and cancel its queued references."""
        try:
            lead_id = UUID(key.decode())
        except ValueError:
            return  # Not a lead id.
        self._delivery.withdraw(lead_id)
        for topic in self._retry_topics:
            self._cancel((topic, partition), key)
        self._cancel((WEBHOOK_REPLAYS, partition), self._endpoint.key(lead_id))

    def _cancel(self, place: PartitionId, key: bytes) -> None:
        for queue in self._queues:
            if (delayed := queue.cancel(place, key)) is not None:
                self._group.finish(delayed.ticket)

    # --- one record per lead ------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _exclusive(self, partition: Partition, lead_id: UUID) -> AsyncIterator[None]:
        """Process one record of a lead at a time, so that the next record of the lead finds the lead delivered."""
        while (earlier := partition.sending.get(lead_id)) is not None:
            await earlier.wait()
        partition.sending[lead_id] = asyncio.Event()
        try:
            yield
        finally:
            partition.sending.pop(lead_id).set()

    async def _deliver(
        self, lead: Lead, record: Record, ticket: Ticket, partition: Partition, case: InFlightLead
    ) -> bool:
        """Deliver a lead unless it was delivered before; True when its record is done."""
        async with self._exclusive(partition, lead.id):
            if await self._history.was_delivered(lead.id, partition, record.partition):
                return True
            return await self._delivery.run(lead, record, ticket, case, _LeadOrigin(self, lead.id, record.partition))

    async def settle(self, delayed: Delayed[Reference]) -> None:
        """Write the tombstone of a reference, unless a newer record of its key is queued. Raises DependencyDown."""
        place, key = delayed.ticket.place, delayed.key
        if not any(queue.holds(place, key) for queue in self._queues):
            await self._attempts.tombstone(place, key)

    async def settle_others(self, lead_id: UUID, number: int) -> None:
        """Cache a lead as delivered or dead and settle its queued retries, because a restart would attempt them again.

        number: partition of the lead. Raises DependencyDown.
        """
        partition, key = self._group.partition(number), str(lead_id).encode()
        if partition is not None:
            self._history.remember(partition, lead_id)
        for topic in self._retry_topics:
            for queue in (self.retries, self.replay_retries):
                if (delayed := queue.cancel((topic, number), key)) is not None:
                    await self._attempts.tombstone(delayed.ticket.place, key)
                    self._group.finish(delayed.ticket)

    async def _decoded(self, record: Record) -> Event | None:
        """Return the decoded event; None for a tombstone, and for an undecodable record, which is parked.

        Raises DependencyDown while the registry is unavailable, or when the topic is stopped.
        """
        if record.value is None:
            return None
        try:
            codec, prefix = self._codec, record.value[: PREFIX.size]
            asking = self._asking.get(prefix)
            if asking is None and codec.is_cached(record.value):
                event = codec.decode(record.topic, record.value)
            else:
                # The registry is asked in a thread, because deadlines of other requests run meanwhile. The lock keeps
                # records of one schema in order: a record that arrives with the answer does not overtake earlier ones.
                asking = self._asking.setdefault(prefix, asking or asyncio.Lock())
                async with asking:
                    known = codec.is_cached(record.value)
                    decode = partial(codec.decode, record.topic, record.value)
                    event = decode() if known else await asyncio.to_thread(decode)
            self._parking.handled(DECODING, {record.topic: 1})
            return event
        except Undecodable as error:
            if not await self._parking.allows(DECODING, record, "undecodable"):
                raise DependencyDown(f"{record.topic} is stopped: too many records were parked") from error
            await park(self._publisher, self._codec, self._name, record, "undecodable", str(error))
            log.error("record parked", reason="undecodable", topic=record.topic, partition=record.partition,
                      offset=record.offset)  # fmt: skip
            return None


@dataclass(frozen=True, slots=True)
class _LeadOrigin:
    """Origin of a lead that is delivered from its own record: there is no reference to settle."""

    handler: RecordHandler
    lead_id: UUID
    partition: int

    async def ended(self) -> None:
        await self.handler.settle_others(self.lead_id, self.partition)

    async def withdrawn(self) -> None:
        """Do nothing, because the lead's own tombstone is in the log."""

    async def rescheduled(self, to: PartitionId) -> None:
        """Do nothing, because the committed offset marks the lead's record as done."""


@dataclass(frozen=True, slots=True)
class _ReferenceOrigin:
    """Origin of a lead that is delivered by a retry or replay record: a tombstone settles the record."""

    handler: RecordHandler
    delayed: Delayed[Reference]
    lead_id: UUID
    partition: int

    async def ended(self) -> None:
        await self.handler.settle(self.delayed)
        await self.handler.settle_others(self.lead_id, self.partition)

    async def withdrawn(self) -> None:
        await self.handler.settle(self.delayed)

    async def rescheduled(self, to: PartitionId) -> None:
        if to != self.delayed.ticket.place:  # Otherwise the new record replaces this one by its key.
            await self.handler.settle(self.delayed)
