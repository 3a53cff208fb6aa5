"""Every attempt on record: written to Kafka before its lead counts as done, and read to know what was delivered."""

from __future__ import annotations

import asyncio
from datetime import datetime
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

from nigredo import metrics
from nigredo.backoff import Backoff
from nigredo.clock import utc_now
from nigredo.errors import DependencyDown
from nigredo.kafka import Publisher
from nigredo.log_reader import LogReader
from nigredo.record import Record
from nigredo.settings import Settings
from nigredo.telemetry import get_logger
from schemas.codec import Codec, Undecodable
from schemas.events import DeliveryAttempt, Lead, WebhookDead
from schemas.registry import RegistryUnavailable
from schemas.topics import DELIVERIES, WEBHOOK_DEAD
from sinks.webhook.beginning import ENDPOINT
from sinks.webhook.delivery import Attempt
from sinks.webhook.endpoint import COMPONENT
from sinks.webhook.retry import DELIVERED, REFUSED

log = get_logger()

LOAD_DEADLINE_S = 60.0


class AttemptLog:
    """The attempts of one endpoint, in `nigredo.deliveries`, partitioned like the leads."""

    def __init__(self, settings: Settings, codec: Codec, publisher: Publisher) -> None:
        self._settings = settings
        self._reader = LogReader(settings, COMPONENT)
        self._codec = codec
        self._publisher = publisher
        # Without its query, where some receivers want their token.
        self._told_url = urlunsplit(urlsplit(settings.webhook_url)._replace(query="", fragment=""))

    async def put_on_record(self, lead: Lead, record: Record, number: int, attempt: Attempt, *, dead: bool) -> None:
        """Log an attempt and return once Kafka has it: what is not on record may be sent again. Never gives up."""
        told = DeliveryAttempt(
            id=uuid4(),
            lead_id=lead.id,
            endpoint=ENDPOINT,
            webhook_url=self._told_url,
            attempt=number,
            sent_at=attempt.sent_at,
            duration_ms=attempt.duration_ms,
            outcome="dead" if dead else DELIVERED if attempt.outcome == DELIVERED else "retry",
            status_code=attempt.status_code,
            error_message=attempt.error_message,
            lead_partition=record.partition,
            lead_offset=record.offset,
        )
        log.info(
            "delivery.attempted",
            lead_id=str(lead.id),
            endpoint=ENDPOINT,
            webhook_url=told.webhook_url,
            attempt=number,
            success=told.outcome == DELIVERED,
            status_code=told.status_code,
            error_message=told.error_message,
            duration_ms=told.duration_ms,
            partition=record.partition,
            offset=record.offset,
        )
        count_attempt(ENDPOINT, lead, attempt)
        await self._publish(DELIVERIES, told, partition=record.partition)

    async def bury(self, lead: Lead, record: Record, number: int, attempt: Attempt) -> None:
        """Put a lead that gets no further attempt among the dead ones. Never gives up."""
        dead = WebhookDead(
            lead_id=lead.id,
            endpoint=ENDPOINT,
            attempts=number,
            reason="refused" if attempt.outcome == REFUSED else "gave_up",
            status_code=attempt.status_code,
            error_message=attempt.error_message,
            died_at=utc_now(),
            lead_partition=record.partition,
            lead_offset=record.offset,
        )
        metrics.WEBHOOK_DEAD_LEADS.of(ENDPOINT, dead.reason).inc()
        await self._publish(WEBHOOK_DEAD, dead)

    def delivered_since(self, partition: int, since: datetime) -> dict[UUID, None]:
        """Return the leads of a partition delivered since then, oldest first. Blocks; raises DependencyDown."""
        delivered: dict[UUID, None] = {}
        for message in self._reader.read_to_end(DELIVERIES, [partition], deadline_s=LOAD_DEADLINE_S, since=since):
            try:
                attempt = self._codec.decode(DELIVERIES, message.value() or b"")
            except Undecodable:
                continue  # Not ours to judge: at worst a lead is delivered twice.
            except RegistryUnavailable as error:
                raise DependencyDown(str(error)) from error
            if isinstance(attempt, DeliveryAttempt) and attempt.endpoint == ENDPOINT and attempt.outcome == DELIVERED:
                delivered[attempt.lead_id] = None
        return delivered

    async def _publish(self, topic: str, event: DeliveryAttempt | WebhookDead, *, partition: int | None = None) -> None:
        """Publish for as long as it takes: the event stays the same, so a reader sees it once or twice, not never."""
        key, value, backoff = str(event.lead_id).encode(), self._codec.encode(topic, event), Backoff(longest_s=5.0)
        while True:
            try:
                await self._publisher.publish(topic, key=key, value=value, partition=partition)
                return
            except DependencyDown as error:
                log.warning("an attempt is not on record yet", error=str(error))
            await asyncio.sleep(backoff.next_wait_s())
