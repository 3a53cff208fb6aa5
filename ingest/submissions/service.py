"""Submission service, the ack path: publishes a validated form and waits until it is durable in Kafka or the spool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address
from math import ceil
from uuid import UUID

from ingest.forms.validation import Form
from ingest.publishing.spool import Entry, Spool
from ingest.publishing.spooled_ids import SpooledIds
from ingest.publishing.spooling_publisher import Acknowledgement, SpoolingPublisher
from ingest.submissions.deduplication import Deduplication, read_secret
from ingest.submissions.edge_limiter import EdgeLimiter
from ingest.submissions.lead_ids import uuid7s
from ingest.submissions.quota import Quota
from nigredo.avro.codec import Codec
from nigredo.avro.encoded_submission import encode_submission
from nigredo.backoff import Backoff
from nigredo.clock import Clock, utc_now
from nigredo.components import CREATE_LEAD
from nigredo.control.state import Control, ControlView
from nigredo.errors import DependencyDown, NigredoError
from nigredo.kafka.cloudevents import REQUEST_ID, cloud_event
from nigredo.kafka.materialized_view import MaterializedView
from nigredo.kafka.publisher import (
    HOLD_INPUT_DELIVERY_TIMEOUT_S,
    SWEEP_EVERY_S,
    AckedPosition,
    Publisher,
    producer_config,
)
from nigredo.networks import Address, as_text, client_network, within
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.process import ready_codec
from nigredo.rate_limit.window import ACCEPTED, DUPLICATE, RATE_LIMITED, REPEATED, SPAM
from nigredo.settings import Settings
from schemas.events import RefusalCount, Submission
from schemas.immutable import immutable
from schemas.topics import CONTROL, RATE_LIMITS, SUBMISSIONS

log = get_logger()

RECENT_ACK_S = 5.0
PROBE_TIMEOUT_S = 1.0
SPOOL_FOLDER = "spool"
LEAVING = "the end of this process"
LOAD_EVERY_S = 1.0
LOADED_WITHIN_S = 1.0
REPORT_REFUSALS_EVERY_S = 5.0
MEASURE_EVERY_S = 1.0


@immutable
class Accepted:
    """An accepted form: durable in Kafka or in the spool."""

    lead_id: UUID
    allowance: Quota
    outcome: str
    """The verdict that the limiter will most likely reach; a client gets the same answer for spam and duplicates."""


class RateLimited(NigredoError):
    """The client network has used up its submissions of this window; retry after `retry_after_s` seconds."""

    def __init__(self, allowance: Quota, retry_after_s: int) -> None:
        super().__init__("rate limit exceeded")
        self.allowance = allowance
        self.retry_after_s = retry_after_s


class NotAcknowledged(DependencyDown):
    """Kafka did not acknowledge a form in time; the form may still be in the log, under this lead id."""

    def __init__(self, text: str, lead_id: UUID) -> None:
        super().__init__(text)
        self.lead_id = lead_id


class SubmissionService:
    """Limits, deduplicates and publishes submissions. One a worker process; opened and closed with the server."""

    def __init__(self, settings: Settings, health: Health, clock: Clock = utc_now) -> None:
        self._settings = settings
        self._health = health
        self._clock = clock
        self._function = settings.function(CREATE_LEAD)
        self._codec: Codec | None = None
        self._edge: EdgeLimiter | None = None
        self._control: ControlView | None = None
        self._repeats = Deduplication(read_secret(settings.idempotency_secret_file))
        self._ids = uuid7s()
        self._views: list[MaterializedView] = []
        self._spooled_ids = SpooledIds(settings)
        self._publisher: Publisher | None = None
        self._spooling: SpoolingPublisher | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._last_ack = 0.0
        self._probing: asyncio.Task[str | None] | None = None
        self._leaving = False
        self._loaded = asyncio.Event()
        self.spool: Spool | None = None
        """Holds submissions on disk while Kafka is unavailable; None without `INGEST_SPOOL`, and until `open`."""

    @property
    def control(self) -> Control:
        """The current live settings, blocks and API keys; the start values until the control topic is loaded."""
        return self._control.current if self._control is not None else Control(self._settings)

    @property
    def control_applied(self) -> Mapping[int, int]:
        """The last offset applied to `control`, by partition of the control topic."""
        return self._control.applied if self._control is not None else {}

    @property
    def control_known(self) -> bool:
        """Whether the control topic is loaded, so that `control` is current."""
        return bool(self._views) and self._views[0].loaded

    async def open(self) -> None:
        """Start connecting in the background; the server answers meanwhile, and is not ready until all is loaded.

        Raises StartRefused when `INGEST_SPOOL` is on and the spool cannot be used.
        """
        settings = self._settings
        if settings.ingest_spool:
            # The bound applies to all workers of the server together.
            max_bytes = settings.ingest_spool_max_bytes // settings.ingest_workers
            spool = Spool(settings.state_dir / SPOOL_FOLDER, max_bytes, largest_bytes=settings.body_max_bytes)
            await spool.open()
            self.spool = spool
        # With a spool the producer does not give up, because every unacknowledged record is in the spool too. Without a
        # spool the producer gives up before the request does (`Settings` refuses other values), so that a client which
        # gets an error can rely on it.
        delivery_timeout_s = HOLD_INPUT_DELIVERY_TIMEOUT_S if self.spool is not None else settings.ingest_ack_timeout_s
        config = producer_config(settings, self._function, delivery_timeout_s=delivery_timeout_s)
        answer_within_s = None if self.spool is not None else settings.ingest_answer_within_s - SWEEP_EVERY_S
        self._publisher = Publisher(
            config, in_flight_max=settings.ingest_in_flight_max, answer_within_s=answer_within_s
        )
        self._spooling = SpoolingPublisher(self._publisher, self.spool, self._drained, self._refit)
        work = (self._open(), self._report_refusal_counts(), self._measure(), self._spooling.run())
        self._tasks = [asyncio.create_task(coroutine) for coroutine in work]

    async def _open(self) -> None:
        backoff = Backoff(longest_s=2.0)
        while True:
            try:
                codec = await ready_codec(self._settings, [SUBMISSIONS])
                break
            except DependencyDown as error:
                self._health.waiting(str(error))
                log.warning("not ready", error=str(error))
            except Exception as error:
                # An exception that left this background task would never be seen.
                self._health.waiting(type(error).__name__)
                log.error("not ready", error=type(error).__name__)
            await asyncio.sleep(backoff.next_wait_s())
        self._control = ControlView(self._settings, codec)
        self._edge = EdgeLimiter(
            codec, window_s=self._settings.rate_limit_window_s, networks_max=self._settings.edge_networks_max
        )
        self._views = [
            MaterializedView(self._settings, CREATE_LEAD, CONTROL, self._control),
            MaterializedView(self._settings, CREATE_LEAD, RATE_LIMITS, self._edge),
        ]
        for view in self._views:
            view.open()
        for view, topic in zip(self._views, (CONTROL, RATE_LIMITS), strict=True):
            while not await asyncio.to_thread(view.wait_loaded, LOAD_EVERY_S):
                self._health.waiting(f"{topic} to be read")
        self._codec = codec
        self._loaded.set()
        log.info("accepting forms", networks=self._edge.networks)
        await self.check()

    async def submit(
        self,
        form: Form,
        address: Address,
        user_agent: str | None,
        *,
        key: str | None = None,
        by_hand: bool = False,
        request_id: str = "",
    ) -> Accepted:
        """Publish a form and return its lead id once Kafka acknowledged the record or the spool stored it.

        key: the client's `Idempotency-Key`. by_hand: whether a person sent the form, so that the same form within
        seconds is a double click; a program that sends the same form twice means two, or uses a key. request_id: sent
        as a header of the record.
        Raises InvalidForm for an unusable key. Raises RateLimited, without waiting for Kafka, when the client network
        has used up its limit. Raises NotAcknowledged when Kafka did not answer within the deadline: the form may be in
        the log all the same, and a retry under the same key is stored once. Raises RecordRefused when the record is too
        large for the broker. Raises DependencyDown while this worker is not ready.
        """
        if self._edge is None or self._codec is None:
            await self._until_loaded()
        edge, repeats = self._edge, self._repeats
        if edge is None:
            raise DependencyDown("not ready yet")
        settings, network = self.control.settings, client_network(address)
        sign = form.spam_sign(settings.form_min_s)
        submission = Submission(
            id=next(self._ids) if key is None else repeats.lead_id(network, key, form),
            client_network=network,
            ip_address=network if isinstance(address, IPv4Address) else as_text(address),
            user_agent=user_agent,
            form_id=form.form_id,
            source=form.source,
            contact=form.contact,
            taken_at=self._clock(),
            limit=settings.rate_limit_per_hour,
            window_s=settings.rate_limit_window_s,
            exempt=within(address, settings.rate_limit_exempt),
            edge_verdict=None if sign is None else SPAM,
            spam_sign=sign,
        )
        if by_hand and key is None and (first := repeats.first(network, form)) is not None:
            submission = replace(submission, edge_verdict=DUPLICATE, spam_sign=None)
            allowance = Quota.of(edge.judge(submission, submission.taken_at), submission, submission.taken_at)
            if first.keeps_repeat():
                self._publish_refused(submission, request_id)
            await self._acknowledged(first.lead_id, asyncio.shield(first.acknowledged))
            return Accepted(first.lead_id, allowance, DUPLICATE)
        verdict = edge.judge(submission, submission.taken_at)
        allowance = Quota.of(verdict, submission, submission.taken_at)
        if verdict.outcome == RATE_LIMITED:
            self._refuse(edge, submission, request_id)
            retry_at = verdict.retry_at or submission.taken_at
            retry_after_s = max(1, ceil((retry_at - submission.taken_at).total_seconds()))
            raise RateLimited(allowance, retry_after_s)
        if (
            verdict.outcome == SPAM
            and not submission.exempt
            and not edge.record_refusal(submission, submission.taken_at)
        ):
            # Past the bound spam is only counted, and a 202 would claim that the form is in the log.
            raise RateLimited(replace(allowance, remaining=0), max(1, allowance.reset_s))
        if verdict.outcome == REPEATED and edge.has(submission):
            # Not published again: the limiter would only skip the repeat.
            return Accepted(submission.id, allowance, verdict.outcome)
        counts = verdict.outcome == ACCEPTED and not submission.exempt
        if counts:
            edge.accepted(submission, submission.taken_at)
        try:
            try:
                acknowledged = self._publish(submission, request_id)
            except DependencyDown as error:
                raise NotAcknowledged(str(error), submission.id) from error
            if by_hand and verdict.outcome != SPAM:
                # Keyed forms too, because a person whose answer was lost may resend the form without a key. Never spam,
                # because the same form from a person would then be refused as its duplicate.
                repeats.sent(network, form, submission.id, acknowledged)
            position = await self._acknowledged(submission.id, acknowledged)
        except BaseException:
            if counts:
                edge.release(submission)
            raise
        if counts:
            edge.confirm(network.encode(), submission.id, None if position is None else position.offset)
        return Accepted(submission.id, allowance, verdict.outcome)

    async def _until_loaded(self) -> None:
        """Wait a moment for the start to finish, because another worker may have reported this node as ready."""
        try:
            async with asyncio.timeout(LOADED_WITHIN_S):
                await self._loaded.wait()
        except TimeoutError:
            raise DependencyDown("not ready yet") from None

    async def _acknowledged(self, lead_id: UUID, acknowledged: asyncio.Future[Acknowledgement]) -> Acknowledgement:
        try:
            position = await acknowledged
        except DependencyDown as error:
            raise NotAcknowledged(str(error), lead_id) from error
        if position is not None:
            self._last_ack = time.monotonic()
        return position

    def _publish(self, submission: Submission, request_id: str) -> asyncio.Future[Acknowledgement]:
        if self._codec is None:
            raise DependencyDown("not ready yet")
        value = encode_submission(self._codec, submission)
        headers = cloud_event("lead.submitted", submission.id, self._function, submission.taken_at)
        headers.append((REQUEST_ID, request_id.encode()))
        return self._send(Entry(submission.client_network.encode(), value, headers))

    def _publish_count(self, count: RefusalCount, at: datetime) -> asyncio.Future[Acknowledgement]:
        if self._codec is None:
            raise DependencyDown("not ready yet")
        value = self._codec.encode(SUBMISSIONS, count)
        headers = cloud_event("lead.refused", next(self._ids), self._function, at)
        return self._send(Entry(count.client_network.encode(), value, headers))

    def _send(self, entry: Entry) -> asyncio.Future[Acknowledgement]:
        if self._spooling is None:
            raise DependencyDown("not ready yet")
        return self._spooling.send(entry)

    async def _refit(self) -> Callable[[bytes], bytes]:
        """Read the schema ids of the cluster that came back, and put them into use for new submissions.

        Returns the function that puts a spooled value under these ids. Raises DependencyDown.
        """
        schema_id = await self._spooled_ids.refresh()
        if self._codec is not None and schema_id is not None:
            self._codec.renumber(SUBMISSIONS, schema_id)
        return self._spooled_ids.value

    def _drained(self, entry: Entry, position: AckedPosition) -> None:
        self._last_ack = time.monotonic()
        if self._edge is not None:
            event_id = UUID(dict(entry.headers)["ce_id"].decode())
            self._edge.confirm(entry.key, event_id, position.offset)

    def _refuse(self, edge: EdgeLimiter, submission: Submission, request_id: str) -> None:
        """Publish a refusal, so that an operator can release it, or past a bound count it. Does not wait for Kafka."""
        if edge.record_refusal(submission, submission.taken_at):
            self._publish_refused(replace(submission, edge_verdict=RATE_LIMITED), request_id)

    def _publish_refused(self, refused: Submission, request_id: str) -> None:
        """Publish a refused submission without waiting; a failure is only logged."""
        try:
            acknowledged = self._publish(refused, request_id)
        except NigredoError as error:
            log.warning("refused submission not stored", error=str(error))
            return
        acknowledged.add_done_callback(_log_failure)

    async def _report_refusal_counts(self) -> None:
        """Publish the counts of refusals whose contents are not stored, every few seconds."""
        while True:
            await asyncio.sleep(REPORT_REFUSALS_EVERY_S)
            if self._edge is None:
                continue
            now = self._clock()
            for count in self._edge.drain_refusal_counts(now):
                try:
                    await self._publish_count(count, now)
                except Exception as error:
                    # No other task publishes the counts, so this one goes on while the process lives.
                    log.warning("refusal count not published", refused=count.count, error=type(error).__name__)

    async def _measure(self) -> None:
        """Update the gauges once a second, because doing so in each request would slow the request down."""
        while True:
            metrics.INGEST_IN_FLIGHT.of().set(0 if self._publisher is None else self._publisher.in_flight)
            metrics.EDGE_NETWORKS.of().set(0 if self._edge is None else self._edge.networks)
            if self.spool is not None:
                metrics.SPOOL_RECORDS.of().set(self.spool.records)
                metrics.SPOOL_BYTES.of().set(self.spool.bytes)
                metrics.SPOOL_REFUSED.of().set(self.spool.refused)
                metrics.SPOOL_OLDEST_AGE.of().set(self.spool.oldest_age_s)
            await asyncio.sleep(MEASURE_EVERY_S)

    def leave(self) -> None:
        """Report this worker as not ready from now on, because it ends soon; forms are accepted until then."""
        self._leaving = True

    async def check(self) -> str | None:
        """Return the dependency that keeps this worker from accepting forms; None when it is ready."""
        if self._leaving:
            return LEAVING
        if self._publisher is None or self._codec is None:
            return self._health.waiting_for or "start"
        if self.spool is not None:
            # With a spool forms are accepted whether or not Kafka is available.
            return None if self.spool.has_room else "room in the spool"
        if time.monotonic() - self._last_ack > RECENT_ACK_S:
            # One probe at a time for all health requests, because each holds a thread while Kafka is unavailable.
            if self._probing is None or self._probing.done():
                self._probing = asyncio.create_task(self._probe(self._publisher))
            return await asyncio.shield(self._probing)
        self._health.ready()
        return None

    async def _probe(self, publisher: Publisher) -> str | None:
        try:
            await asyncio.to_thread(publisher.probe, SUBMISSIONS, PROBE_TIMEOUT_S)
        except DependencyDown as error:
            self._health.waiting(str(error))
            return str(error)
        self._health.ready()
        return None

    async def close(self) -> None:
        """Wait a few seconds until all records in flight are acknowledged or spooled, and close every client."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for view in self._views:
            await asyncio.to_thread(view.close)
        if self._spooling is not None:
            await self._spooling.close()
        if self._publisher is not None:
            # With a spool, every unacknowledged record is stored there by now.
            wait_s = 0.0 if self.spool is not None else self._settings.ingest_answer_within_s
            left = await self._publisher.close(deadline_s=wait_s)
            if left and self.spool is None:
                log.error("submissions not acknowledged before shutdown", records=left)


def _log_failure(future: asyncio.Future[Acknowledgement]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("refused submission not stored", error=str(error))
