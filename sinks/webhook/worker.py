"""Webhook worker of one endpoint: opens the clients, obeys the control topic, runs one group membership at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from nigredo.avro.codec import Codec
from nigredo.backoff import Backoff
from nigredo.clock import since_boot_s
from nigredo.components import WEBHOOK_SENDER
from nigredo.control.state import Control, ControlView
from nigredo.endpoints.endpoint import Endpoint
from nigredo.errors import DependencyDown
from nigredo.kafka.dead_letters import parked_before
from nigredo.kafka.materialized_view import MaterializedView
from nigredo.kafka.parking import Bounds, Parking
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.kafka.positions.log_trail import Trail
from nigredo.kafka.publisher import HOLD_INPUT_DELIVERY_TIMEOUT_S, Publisher, producer_config
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.process import ready_codec
from nigredo.settings import Settings
from schemas.topics import CONTROL, DEAD_LETTERS, DELIVERIES, LEADS, WEBHOOK_DEAD, retry_topics
from sinks.webhook.consumer.group_consumer import GroupConsumer
from sinks.webhook.consumer.lead_lookup import LeadLookup
from sinks.webhook.consumer.start_offsets import ensure_start_offsets
from sinks.webhook.delivery.admission import AdmissionControl
from sinks.webhook.delivery.attempt_log import AttemptLog
from sinks.webhook.delivery.breaker import Breaker
from sinks.webhook.delivery.lead_delivery import LeadDelivery
from sinks.webhook.delivery.token_bucket import TokenBucket
from sinks.webhook.dispatch.record_handler import RecordHandler
from sinks.webhook.loop import ConsumeLoop
from sinks.webhook.transport.client import WebhookClient
from sinks.webhook.transport.secret_file import SecretFile

log = get_logger()

START_DEADLINE_S = 60.0
PUBLISH_MAX = 5000
LEAVING_POLL_S = 0.2
LEFT = "left the group: offsets are being set"


class Worker:
    """Delivers the leads of one endpoint. Call `run` once."""

    def __init__(self, settings: Settings, endpoint: Endpoint, health: Health) -> None:
        """Raises ConfigurationError when the endpoint's secret file holds no usable secret."""
        self._settings = settings
        self._endpoint = endpoint
        self._health = health
        self._name = endpoint.function(settings)
        self._secrets = SecretFile(endpoint.secret_file)
        codec = Codec(PinnedSchemas(settings))
        self._control = ControlView(settings, codec)
        self._admission = AdmissionControl(
            endpoint.in_flight_max, TokenBucket(endpoint.rate_per_s, since_boot_s()), Breaker()
        )
        self._session: ConsumeLoop | None = None
        metrics.know_endpoint(endpoint.name)
        health.add_details(self._describe)

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver leads until `stop` is set.

        Raises StartRefused when the group lost a committed offset, DependencyDown when the worker cannot start.
        """
        settings, endpoint = self._settings, self._endpoint
        codec = await ready_codec(settings, [DELIVERIES, WEBHOOK_DEAD, DEAD_LETTERS])
        view = MaterializedView(settings, WEBHOOK_SENDER, CONTROL, self._control)
        view.open()
        config = producer_config(settings, self._name, delivery_timeout_s=HOLD_INPUT_DELIVERY_TIMEOUT_S)
        publisher = Publisher(config, in_flight_max=PUBLISH_MAX)
        client = WebhookClient(
            endpoint.url, connections_max=endpoint.in_flight_max, allowed=settings.webhook_allowed_networks
        )
        leads, attempts = LeadLookup(settings, self._name), AttemptLog(settings, endpoint, codec, publisher)
        parked = partial(parked_before, TopicReader(settings, WEBHOOK_SENDER), self._name)
        parking = Parking(Bounds.of(settings), self._health, parked)

        def make_handler(group: GroupConsumer) -> RecordHandler:
            delivery = LeadDelivery(
                endpoint,
                client,
                attempts,
                self._admission,
                settings=lambda: self._control.current.settings,
                keys=self._secrets.keys,
                still_assigned=group.holds,
            )
            return RecordHandler(
                self._name, endpoint, group, delivery, attempts, leads,
                codec=codec, publisher=publisher, parking=parking,
            )  # fmt: skip

        try:
            await self._wait_for_control(view, stop)
            trail = Trail()
            while not stop.is_set():
                if self._must_leave(self._control.current):
                    await self._wait_while_leaving(stop)
                    trail = Trail()  # Fresh, because an operator set the offsets to continue from.
                elif await self._offsets_ensured(stop):
                    await asyncio.to_thread(codec.prepare, retry_topics(endpoint.name))
                    partitions = await asyncio.to_thread(TopicReader(settings, WEBHOOK_SENDER).partitions, LEADS)
                    self._session = ConsumeLoop(
                        self._control.current.settings,
                        self._name,
                        endpoint,
                        self._admission,
                        make_handler,
                        self._health,
                        partitions=len(partitions),
                        trail=trail,
                    )
                    await self._session.run(lambda: self._must_end(stop))
        finally:
            await asyncio.to_thread(view.close)
            await publisher.close()
            await client.close()
            await leads.close()
            attempts.close()

    def _must_end(self, stop: asyncio.Event) -> bool:
        """Apply the pause switches and return whether to leave the group."""
        current = self._control.current
        self._admission.pause(not (self._endpoint.enabled and current.settings.webhook_enabled))
        return stop.is_set() or self._must_leave(current)

    def _must_leave(self, current: Control) -> bool:
        return self._name in current.leaving

    async def _wait_while_leaving(self, stop: asyncio.Event) -> None:
        """Wait until the request to leave is withdrawn or expires: an operator sets the group's offsets meanwhile."""
        log.info("group left, waiting for an offset reset")
        self._health.waiting(LEFT)
        while self._must_leave(self._control.current) and not stop.is_set():
            await _wait(stop, LEAVING_POLL_S)

    async def _wait_for_control(self, view: MaterializedView, stop: asyncio.Event) -> None:
        """Wait until the control topic is loaded, because nothing may be sent while the endpoint may be paused.

        Raises DependencyDown after START_DEADLINE_S.
        """
        deadline = time.monotonic() + START_DEADLINE_S
        while not view.loaded and not stop.is_set():
            self._health.waiting(f"{CONTROL}, for the current switches")
            if time.monotonic() > deadline:
                raise DependencyDown(f"{CONTROL} cannot be read")
            await _wait(stop, 0.05)

    async def _offsets_ensured(self, stop: asyncio.Event) -> bool:
        """Ensure the endpoint's start offsets, retrying while Kafka is unavailable; False once `stop` is set.

        Raises StartRefused when a committed offset was lost, DependencyDown after START_DEADLINE_S.
        """
        backoff, deadline = Backoff(longest_s=2.0), time.monotonic() + START_DEADLINE_S
        while not stop.is_set():
            try:
                await ensure_start_offsets(self._settings, self._endpoint)
                return True
            except DependencyDown as error:
                self._health.waiting(str(error))
                if time.monotonic() > deadline:
                    raise
            await _wait(stop, backoff.next_wait_s())
        return False

    def _describe(self) -> Mapping[str, Any]:
        """Return the endpoint's fields of the health document. Called from another thread."""
        document: dict[str, Any] = {
            "endpoint": self._endpoint.name,
            # Most leads that are sent twice after kill -9: docs/WEBHOOKS.md.
            "repeats_after_kill_max": self._endpoint.in_flight_max,
            "breaker": "closed" if self._admission.breaker.closed else "open",
            "paused": self._admission.paused,
            "may_send": self._admission.may_send,
            "in_flight": self._admission.in_flight,
        }
        return document | (dict(self._session.describe()) if self._session is not None else {})


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
