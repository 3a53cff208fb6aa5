"""One record's way through the sink, whether it is a lead, an attempt that waited, or a replay that was asked for.

Every way ends with the record's offset counted as done, after what became of it is on record. What an older assignment
began just stops: the partition's new owner begins it again.
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
    """A retry or a replay in hand."""

    record: Record
    event: WebhookRetry | WebhookReplay


class RecordHandler:
    """The records in hand of one membership. Belongs to the event loop."""

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
        """name: of the process, in dead letters. publisher: of dead letters."""
        self.retries: DelayQueue[Reference] = DelayQueue()
        self.replays: DelayQueue[Reference] = DelayQueue()
        self.put_off: DelayQueue[Reference] = DelayQueue()
        """Replays that failed before. Apart from the other retries: they wait behind live leads, and would fill the
        hands in which those are to be."""
        self._queues = (self.retries, self.replays, self.put_off)
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
        """By the prefix of their values, the turns of records whose schema was not known when they came."""
        self._history = DeliveryHistory(attempts, group)

    def stop(self) -> None:
        """Begin no further attempt."""
        self._delivery.stop()

    def forget(self) -> None:
        """Let go of what waited under an assignment that is over."""
        for queue in self._queues:
            queue.clear()
        self._history.forget()
        self._parking.forget()
        self._delivery.clear()

    @property
    def retries_waiting(self) -> int:
        """How many later attempts wait for their time."""
        return len(self.retries) + len(self.put_off)

    @property
    def resting(self) -> int:
        """How many leads wait in place."""
        return self._delivery.resting

    # --- the three kinds ----------------------------------------------------------------------------------------------

    async def lead(self, record: Record, ticket: Ticket) -> None:
        """See a lead through."""
        await self._until_done(ticket, lambda: self._lead(record, ticket))

    async def note(self, record: Record, ticket: Ticket) -> None:
        """Let a retry wait for its time, and a replay for its turn; a tombstone takes out what waits."""
        await self._until_done(ticket, lambda: self._note(record, ticket), finish=False)

    async def reference(self, waits: Delayed[Reference]) -> None:
        """See through what has waited."""
        await self._until_done(waits.ticket, lambda: self._reference(waits))

    async def _until_done(self, ticket: Ticket, work: Callable[[], Awaitable[bool]], *, finish: bool = True) -> None:
        """Do it again until it succeeds or the assignment ends, and count it as done."""
        backoff = Backoff(longest_s=5.0)
        while self._delivery.ours(ticket):
            try:
                if await work() and finish:
                    self._group.finish(ticket)
                return
            except DependencyDown as error:
                log.warning("a lead waits", error=str(error), topic=ticket.place[0], offset=ticket.offset)
            except Exception as error:
                log.error("a lead failed", error=type(error).__name__, topic=ticket.place[0], offset=ticket.offset)
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
        return await self._once(event, record, ticket, partition, case)

    async def _note(self, record: Record, ticket: Ticket) -> bool:
        if record.key is None or record.value is None:
            # Its own settlement that comes by, or somebody was erased while an attempt waited.
            if record.key is not None:
                self._take_out(ticket.place, record.key)
            self._group.finish(ticket)
            return True
        event = await self._decoded(record)
        if not isinstance(event, WebhookRetry | WebhookReplay) or event.endpoint != self._endpoint.name:
            self._group.finish(ticket)
            return True
        if await self._history.settled(ticket.place, record.key, after=record.offset):
            self._group.finish(ticket)
            return True
        waits = Delayed(ticket, record.key, Reference(record, event))
        if isinstance(event, WebhookRetry):
            number, began = event.lead_partition, event.first_attempt_at
            partition = None if event.replay else self._group.partition(number)
            # Delivered meanwhile; but who asked for a replay wants it sent all the same.
            if partition is not None and await self._history.was_delivered(
                event.lead_id, partition, number, since=began
            ):
                await self._attempts.tombstone(ticket.place, record.key)
                self._group.finish(ticket)
                return True
            queue, due = self.put_off if event.replay else self.retries, event.not_before
        else:
            # In the order in which they were asked for, but by no clock that is ahead of this one.
            queue, due = self.replays, min(event.requested_at, utc_now())
        self._take_out(ticket.place, record.key)  # An older one of its key.
        queue.put(waits, due)
        return True

    async def _reference(self, waits: Delayed[Reference]) -> bool:
        event, ticket = waits.what.event, waits.ticket
        if isinstance(event, WebhookRetry):
            began, number, replay = event.first_attempt_at, event.attempts, event.replay
        else:
            began, number, replay = utc_now(), 0, True
        case = InFlightLead(event.lead_partition, event.lead_offset, began, number, replay)

        origin = _ReferenceOrigin(self, waits, case.lead_partition)
        record = await self._leads.read(case.lead_partition, case.lead_offset, str(event.lead_id).encode())
        lead = None if record is None else await self._decoded(record)
        partition = self._group.partition(case.lead_partition)
        if record is None or not isinstance(lead, Lead):
            await origin.withdrawn()
            return True
        if replay or partition is None:
            return await self._delivery.run(lead, record, ticket, case, origin)
        async with self._turn(partition, lead.id):
            if await self._history.was_delivered(lead.id, partition, case.lead_partition, since=began):
                await origin.withdrawn()  # Delivered meanwhile, by another record of the lead.
                return True
            return await self._delivery.run(lead, record, ticket, case, origin)

    def _withdraw(self, key: bytes, partition: int) -> None:
        """Send a lead no more: the person was erased while it was in hand, or waited."""
        try:
            lead_id = UUID(key.decode())
        except ValueError:
            return  # Not one of ours.
        self._delivery.withdraw(lead_id)
        for topic in self._retry_topics:
            self._take_out((topic, partition), key)
        self._take_out((WEBHOOK_REPLAYS, partition), self._endpoint.key(lead_id))

    def _take_out(self, place: PartitionId, key: bytes) -> None:
        for queue in self._queues:
            if (waits := queue.cancel(place, key)) is not None:
                self._group.finish(waits.ticket)

    # --- a lead at a time ---------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _turn(self, partition: Partition, lead_id: UUID) -> AsyncIterator[None]:
        """Let one record of a lead at a time be seen through: the next one may find it delivered."""
        while (first := partition.sending.get(lead_id)) is not None:
            await first.wait()
        partition.sending[lead_id] = asyncio.Event()
        try:
            yield
        finally:
            partition.sending.pop(lead_id).set()

    async def _once(self, lead: Lead, record: Record, ticket: Ticket, partition: Partition, case: InFlightLead) -> bool:
        """See a lead through, unless it was delivered already."""
        async with self._turn(partition, lead.id):
            if await self._history.was_delivered(lead.id, partition, record.partition):
                return True
            return await self._delivery.run(lead, record, ticket, case, _LeadOrigin(self, lead.id, record.partition))

    async def settle(self, delayed: Delayed[Reference]) -> None:
        """Write the tombstone of a reference, unless a newer record of its key waits. Raises DependencyDown."""
        place, key = delayed.ticket.place, delayed.key
        if not any(queue.holds(place, key) for queue in self._queues):
            await self._attempts.tombstone(place, key)

    async def settle_others(self, lead_id: UUID, number: int) -> None:
        """Remember a lead that needs no further attempt, and settle those that wait: a restart knows of them alone."""
        partition, key = self._group.partition(number), str(lead_id).encode()
        if partition is not None:
            self._history.remember(partition, lead_id)
        for topic in self._retry_topics:
            for queue in (self.retries, self.put_off):
                if (waits := queue.cancel((topic, number), key)) is not None:
                    await self._attempts.tombstone(waits.ticket.place, key)
                    self._group.finish(waits.ticket)

    async def _decoded(self, record: Record) -> Event | None:
        """Return what a record says; None for a tombstone, and for what nobody can read, which is parked."""
        if record.value is None:
            return None
        try:
            codec, prefix = self._codec, record.value[: PREFIX.size]
            asking = self._asking.get(prefix)
            if asking is None and codec.is_cached(record.value):
                event = codec.decode(record.topic, record.value)
            else:
                # The registry is asked in a thread: others' deadlines run meanwhile. Records of one schema go on in
                # their order; one that comes when the answer is there does not overtake those that waited for it.
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
            log.error("a record was parked", reason="undecodable", topic=record.topic, partition=record.partition,
                      offset=record.offset)  # fmt: skip
            return None


@dataclass(frozen=True, slots=True)
class _LeadOrigin:
    """A lead delivered from its own record, which has no reference to settle."""

    handler: RecordHandler
    lead_id: UUID
    partition: int

    async def ended(self) -> None:
        await self.handler.settle_others(self.lead_id, self.partition)

    async def withdrawn(self) -> None:
        """Nothing: the tombstone that withdrew the lead is in the log."""

    async def rescheduled(self, to: PartitionId) -> None:
        """Nothing: the offset alone says that the lead's record is done."""


@dataclass(frozen=True, slots=True)
class _ReferenceOrigin:
    """A lead delivered by a retry or replay record, which a tombstone settles."""

    handler: RecordHandler
    delayed: Delayed[Reference]
    lead_partition: int

    async def ended(self) -> None:
        await self.handler.settle(self.delayed)
        await self.handler.settle_others(self.delayed.what.event.lead_id, self.lead_partition)

    async def withdrawn(self) -> None:
        await self.handler.settle(self.delayed)

    async def rescheduled(self, to: PartitionId) -> None:
        if to != self.delayed.ticket.place:  # Else the new record replaces it by its key.
            await self.handler.settle(self.delayed)
