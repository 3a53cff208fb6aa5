"""Attempt log of one endpoint in Kafka: written before a lead is done, read to find earlier deliveries and failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

from confluent_kafka import Message

from nigredo.avro.codec import Codec, Undecodable
from nigredo.backoff import Backoff
from nigredo.clock import utc_now
from nigredo.components import WEBHOOK_SENDER
from nigredo.endpoints.endpoint import Endpoint
from nigredo.endpoints.receiver_url import shown_url
from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import Publisher
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability import metrics
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.events import DeliveryAttempt, Event, Lead, WebhookDead, WebhookRetry
from schemas.topics import DELIVERIES, WEBHOOK_DEAD, retry_topic
from sinks.webhook.delivery.retry_policy import delay_for
from sinks.webhook.instrumentation import count_attempt
from sinks.webhook.model import AttemptResult, InFlightLead, Outcome, PartitionId

log = get_logger()
T = TypeVar("T")

LOAD_DEADLINE_S = 60.0
LOADS_MAX = 4
"""Partitions whose deliveries are loaded concurrently."""
NEWEST_MAX = 10_000
"""Newest attempts read per partition, of all endpoints, to find leads that failed before a restart."""
REREAD_MAX = 10_000
"""References read per partition above the committed offset to find their tombstones: enough for the window and for the
records that were done since the last commit."""

Settled = dict[tuple[PartitionId, bytes], int]
"""Offset of a reference's tombstone, by the reference's topic-partition and key."""


class AttemptLog:
    """Writes attempts, retries, dead leads and tombstones of one endpoint; writes are repeated until acknowledged."""

    def __init__(self, settings: Settings, endpoint: Endpoint, codec: Codec, publisher: Publisher) -> None:
        self._endpoint = endpoint
        self._reader = TopicReader(settings, WEBHOOK_SENDER)
        self._codec = codec
        self._publisher = publisher
        # A pool of its own, because slow loads would block the registry look-ups in the shared pool.
        self._threads = ThreadPoolExecutor(LOADS_MAX, thread_name_prefix="past")
        self._shown_url = shown_url(endpoint.url)

    async def append(self, lead: Lead, case: InFlightLead, attempt: AttemptResult, *, dead: bool) -> None:
        """Write an attempt to `nigredo.deliveries`; returns once acknowledged, since a lost attempt may be repeated."""
        event = DeliveryAttempt(
            id=uuid4(),
            lead_id=lead.id,
            endpoint=self._endpoint.name,
            webhook_url=self._shown_url,
            attempt=case.number,
            sent_at=attempt.sent_at,
            duration_ms=attempt.duration_ms,
            outcome="dead" if dead else "delivered" if attempt.outcome == Outcome.DELIVERED else "retry",
            status_code=attempt.status_code,
            error_message=attempt.error_message,
            lead_partition=case.lead_partition,
            lead_offset=case.lead_offset,
            replay=case.replay,
            answer_excerpt=attempt.answer_excerpt,
        )
        count_attempt(event.endpoint, lead, attempt, replay=case.replay)
        await self._publish(DELIVERIES, _key(lead.id), event, partition=case.lead_partition)
        # After the record, so that writing it does not depend on the log line.
        log.info(
            "delivery.attempted",
            lead_id=str(lead.id),
            endpoint=event.endpoint,
            webhook_url=event.webhook_url,
            attempt=event.attempt,
            success=event.outcome == Outcome.DELIVERED,
            status_code=event.status_code,
            error_message=event.error_message,
            duration_ms=event.duration_ms,
            replay=event.replay,
            partition=case.lead_partition,
            offset=case.lead_offset,
        )

    async def mark_dead(self, lead: Lead, case: InFlightLead, attempt: AttemptResult) -> None:
        """Write a lead that gets no further attempt to `nigredo.webhook-dead` and count it."""
        dead = WebhookDead(
            lead_id=lead.id,
            endpoint=self._endpoint.name,
            attempts=case.number,
            reason="refused" if attempt.outcome == Outcome.REFUSED else "gave_up",
            status_code=attempt.status_code,
            error_message=attempt.error_message,
            died_at=utc_now(),
            lead_partition=case.lead_partition,
            lead_offset=case.lead_offset,
        )
        metrics.WEBHOOK_DEAD_LEADS.of(dead.endpoint, dead.reason).inc()
        await self._publish(WEBHOOK_DEAD, self._endpoint.key(lead.id), dead, partition=case.lead_partition)

    async def clear_dead(self, lead: Lead, case: InFlightLead) -> None:
        """Write the tombstone of a dead lead that a replay delivered; harmless when the lead was not dead."""
        await self._publish(WEBHOOK_DEAD, self._endpoint.key(lead.id), None, partition=case.lead_partition)

    async def schedule_retry(self, lead: Lead, case: InFlightLead, wait_s: float) -> PartitionId:
        """Write a retry that is due in `wait_s` seconds; return the topic-partition of the retry record."""
        topic = retry_topic(self._endpoint.name, delay_for(wait_s))
        later = WebhookRetry(
            lead_id=lead.id,
            endpoint=self._endpoint.name,
            attempts=case.number,
            # Stored in milliseconds: one more, so that rounding down never makes the retry early.
            not_before=utc_now() + timedelta(seconds=wait_s, milliseconds=1),
            first_attempt_at=case.first_attempt_at,
            lead_partition=case.lead_partition,
            lead_offset=case.lead_offset,
            replay=case.replay,
        )
        await self._publish(topic, _key(lead.id), later, partition=case.lead_partition)
        return topic, case.lead_partition

    async def tombstone(self, place: PartitionId, key: bytes) -> None:
        """Write the tombstone of a reference to the partition that the reference was read from, never by key hash."""
        await self._publish(place[0], key, None, partition=place[1])

    async def delivered_since(self, partition: int, since: datetime) -> dict[UUID, datetime]:
        """Return the leads of a partition delivered since then, with the start of the delivering attempt; oldest first.

        Raises DependencyDown.
        """
        return await self._in_thread(self._delivered_since, partition, since)

    async def failing(self) -> set[UUID] | None:
        """Return the leads that failed since the receiver last accepted one, by the newest attempts of all partitions.

        None when these hold no attempt of this endpoint although older attempts exist. Raises DependencyDown.
        """
        return await self._in_thread(self._failing)

    async def settled_after(self, positions: Mapping[PartitionId, int]) -> Settled:
        """Return the tombstones of the references that follow these positions. Raises DependencyDown."""
        return await self._in_thread(self._settled_after, positions)

    def close(self) -> None:
        """Start no further load; a running load is not awaited."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _delivered_since(self, partition: int, since: datetime) -> dict[UUID, datetime]:
        delivered: dict[UUID, datetime] = {}
        for message in self._reader.read_to_end(DELIVERIES, [partition], deadline_s=LOAD_DEADLINE_S, since=since):
            attempt = self._own(message)
            if attempt is not None and attempt.outcome == Outcome.DELIVERED:
                delivered[attempt.lead_id] = attempt.sent_at
        return delivered

    def _failing(self) -> set[UUID] | None:
        accepted_at, failed, all_read = datetime.min.replace(tzinfo=UTC), dict[UUID, datetime](), True
        for partition in self._reader.partitions(DELIVERIES):
            start, end = self._reader.watermarks(DELIVERIES, partition)
            all_read = all_read and end - start <= NEWEST_MAX
            for message in self._reader.between(DELIVERIES, partition, max(start, end - NEWEST_MAX), end):
                attempt = self._own(message)
                if attempt is None:
                    continue
                if attempt.outcome == Outcome.DELIVERED:
                    accepted_at = max(accepted_at, attempt.sent_at)
                else:
                    failed[attempt.lead_id] = attempt.sent_at
        failing = {lead_id for lead_id, at in failed.items() if at > accepted_at}
        return failing if failed or accepted_at.year > 1 or all_read else None

    def _own(self, message: Message) -> DeliveryAttempt | None:
        try:
            attempt = self._codec.decode(DELIVERIES, message.value() or b"")
        except Undecodable:
            return None  # Ignored: at worst a lead is delivered twice.
        if isinstance(attempt, DeliveryAttempt) and attempt.endpoint == self._endpoint.name:
            return attempt
        return None

    def _settled_after(self, positions: Mapping[PartitionId, int]) -> Settled:
        settled: Settled = {}
        seen_keys: dict[PartitionId, set[bytes]] = {place: set() for place in positions}
        for topic in sorted({place[0] for place in positions}):
            offsets = {place[1]: offset for place, offset in positions.items() if place[0] == topic}
            for message in self._reader.read_to_end(topic, list(offsets), deadline_s=LOAD_DEADLINE_S, offsets=offsets):
                key, seen = message.key() or b"", seen_keys[topic, message.partition() or 0]
                if message.value() is None:
                    if key in seen:
                        settled[(topic, message.partition() or 0), key] = message.offset() or 0
                elif len(seen) < REREAD_MAX:
                    seen.add(key)
        return settled

    async def _publish(self, topic: str, key: bytes, event: Event | None, *, partition: int | None = None) -> None:
        """Publish until acknowledged. Retries keep the event unchanged: readers may see it twice but never miss it."""
        value, backoff = None if event is None else self._codec.encode(topic, event), Backoff(longest_s=5.0)
        while True:
            try:
                await self._publisher.publish(topic, key=key, value=value, partition=partition)
                return
            except DependencyDown as error:
                log.warning("record not acknowledged, retrying", topic=topic, error=str(error))
            await asyncio.sleep(backoff.next_wait_s())


def _key(lead_id: UUID) -> bytes:
    return str(lead_id).encode()
