"""The ack path: a validated form becomes an event, and the answer waits until Kafka has it."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID, uuid4

from ingest.form import Form
from nigredo.backoff import Backoff
from nigredo.clock import Clock, utc_now
from nigredo.errors import DependencyDown
from nigredo.headers import cloud_event
from nigredo.health import Health
from nigredo.kafka import Publisher, producer_config
from nigredo.networks import Address, client_network, within
from nigredo.settings import Settings
from nigredo.startup import ready_codec
from nigredo.telemetry import get_logger
from schemas.codec import Codec
from schemas.events import Submission
from schemas.topics import SUBMISSIONS

log = get_logger()

GRACE_S = 1.0
"""A request waits this much longer than the producer tries: whoever is told of a failure is told the truth."""
RECENT_ACK_S = 5.0
PROBE_TIMEOUT_S = 1.0
USER_AGENT_MAX = 512


class Intake:
    """Publishes submissions. One a process; opened and closed with the server."""

    def __init__(self, settings: Settings, health: Health, clock: Clock = utc_now) -> None:
        self._settings = settings
        self._health = health
        self._clock = clock
        self._function = settings.function("create-lead")
        self._codec: Codec | None = None
        self._publisher: Publisher | None = None
        self._opening: asyncio.Task[None] | None = None
        self._last_ack = 0.0

    def open(self) -> None:
        """Begin to connect; the server answers meanwhile, and is not ready until it is done."""
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        config = producer_config(
            self._settings.kafka_bootstrap_servers,
            self._function,
            delivery_timeout_s=self._settings.ingest_ack_timeout_s,
        )
        self._publisher = Publisher(
            config,
            in_flight_max=self._settings.ingest_in_flight_max,
            answer_within_s=self._settings.ingest_ack_timeout_s + GRACE_S,
        )
        backoff = Backoff(longest_s=2.0)
        while True:
            try:
                self._codec = await ready_codec(self._settings, [SUBMISSIONS])
                break
            except DependencyDown as error:
                self._health.waiting(str(error))
                log.warning("not ready", error=str(error))
            except Exception as error:
                # In a task of its own nobody would ever hear of it.
                self._health.waiting(type(error).__name__)
                log.error("not ready", error=type(error).__name__)
            await asyncio.sleep(backoff.next_wait_s())
        await self.check()

    async def take(self, form: Form, address: Address, user_agent: str | None) -> UUID:
        """Put a form on the log and return its lead id once Kafka acknowledged it.

        Raises DependencyDown when Kafka did not within the deadline: the form may have been taken all the same, so
        nothing but a repeat of the whole form is safe. Raises RecordRefused when it is too large for the broker.
        """
        if self._publisher is None or self._codec is None:
            raise DependencyDown("not ready yet")
        network = client_network(address)
        submission = Submission(
            id=uuid4(),
            client_network=network,
            ip_address=str(address),
            user_agent=user_agent,
            form_id=form.form_id,
            source=form.source,
            contact=form.contact,
            taken_at=self._clock(),
            limit=self._settings.rate_limit_per_hour,
            window_s=self._settings.rate_limit_window_s,
            exempt=within(address, self._settings.rate_limit_exempt),
            edge_verdict=None,
        )
        acknowledged = self._publisher.publish(
            SUBMISSIONS,
            key=network.encode(),
            value=self._codec.encode(SUBMISSIONS, submission),
            headers=cloud_event("lead.submitted", submission.id, self._function, submission.taken_at),
        )
        await acknowledged
        self._last_ack = time.monotonic()
        return submission.id

    async def check(self) -> str | None:
        """Return what keeps this process from taking forms; None when nothing does."""
        if self._publisher is None or self._codec is None:
            return self._health.waiting_for or "start"
        if time.monotonic() - self._last_ack > RECENT_ACK_S:
            try:
                await asyncio.to_thread(self._publisher.probe, SUBMISSIONS, PROBE_TIMEOUT_S)
            except DependencyDown as error:
                self._health.waiting(str(error))
                return str(error)
        self._health.ready()
        return None

    async def close(self) -> None:
        """Wait until what was published is acknowledged, within a few seconds."""
        if self._opening is not None:
            self._opening.cancel()
        if self._publisher is not None:
            left = await self._publisher.close(deadline_s=self._settings.ingest_ack_timeout_s + GRACE_S)
            if left:
                log.error("submissions were not acknowledged at the end", records=left)
