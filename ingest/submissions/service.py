"""The ack path: a validated form becomes an event, and the answer waits until Kafka, or the spool, has it."""

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
TELL_REFUSALS_EVERY_S = 5.0
MEASURE_EVERY_S = 1.0


@immutable
class Accepted:
    """A form that Kafka has, or the spool."""

    lead_id: UUID
    allowance: Quota
    outcome: str
    """What the limiter will most likely say of it; one that is never accepted looks to its sender as if it were."""


class RateLimited(NigredoError):
    """The client's network has had its submissions of this window."""

    def __init__(self, allowance: Quota, retry_after_s: int) -> None:
        super().__init__("rate limit exceeded")
        self.allowance = allowance
        self.retry_after_s = retry_after_s


class NotAcknowledged(DependencyDown):
    """Kafka did not say in time that it has a form; it may have it all the same, under this id."""

    def __init__(self, text: str, lead_id: UUID) -> None:
        super().__init__(text)
        self.lead_id = lead_id


class SubmissionService:
    """Publishes submissions. One a process; opened and closed with the server."""

    def __init__(self, settings: Settings, health: Health, clock: Clock = utc_now) -> None:
        self._settings = settings
        self._health = health
        self._clock = clock
        self._function = settings.function("create-lead")
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
        """Where submissions wait while Kafka is away; None when there is no such thing."""

    @property
    def control(self) -> Control:
        """What operators let hold at present; the start values until the control topic was read."""
        return self._control.current if self._control is not None else Control(self._settings)

    @property
    def control_applied(self) -> Mapping[int, int]:
        """The last offset of each partition of the control topic that `control` goes by."""
        return self._control.applied if self._control is not None else {}

    @property
    def control_known(self) -> bool:
        """Whether `control` is what stands, and not only the start values."""
        return bool(self._views) and self._views[0].loaded

    async def open(self) -> None:
        """Begin to connect; the server answers meanwhile, and is not ready until it is done.

        Raises StartRefused when there is to be a spool and it cannot be used.
        """
        settings = self._settings
        if settings.ingest_spool:
            # The bound is for all workers of a process together.
            most = settings.ingest_spool_max_bytes // settings.ingest_workers
            spool = Spool(settings.state_dir / SPOOL_FOLDER, most, largest_bytes=settings.body_max_bytes)
            await spool.open()
            self.spool = spool
        # With a spool the producer does not give up: what nobody waits for any more is in the spool too. Without one
        # it gives up before the request does (`Settings` refuses anything else): who is told of a failure is told true.
        tries_s = HOLD_INPUT_DELIVERY_TIMEOUT_S if self.spool is not None else settings.ingest_ack_timeout_s
        config = producer_config(settings, self._function, delivery_timeout_s=tries_s)
        answer_within_s = None if self.spool is not None else settings.ingest_answer_within_s - SWEEP_EVERY_S
        self._publisher = Publisher(
            config, in_flight_max=settings.ingest_in_flight_max, answer_within_s=answer_within_s
        )
        self._spooling = SpoolingPublisher(self._publisher, self.spool, self._drained, self._refit)
        work = (self._open(), self._tell_refusals(), self._measure(), self._spooling.run())
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
                # In a task of its own nobody would ever hear of it.
                self._health.waiting(type(error).__name__)
                log.error("not ready", error=type(error).__name__)
            await asyncio.sleep(backoff.next_wait_s())
        self._control = ControlView(self._settings, codec)
        self._edge = EdgeLimiter(
            codec, window_s=self._settings.rate_limit_window_s, networks_max=self._settings.edge_networks_max
        )
        self._views = [
            MaterializedView(self._settings, "create-lead", CONTROL, self._control),
            MaterializedView(self._settings, "create-lead", RATE_LIMITS, self._edge),
        ]
        for view in self._views:
            view.open()
        for view, topic in zip(self._views, (CONTROL, RATE_LIMITS), strict=True):
            while not await asyncio.to_thread(view.wait_loaded, LOAD_EVERY_S):
                self._health.waiting(f"{topic} to be read")
        self._codec = codec
        self._loaded.set()
        log.info("forms are taken", networks=self._edge.networks)
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
        """Put a form on the log and return its lead id once Kafka acknowledged it, or the spool has it.

        key: the client's `Idempotency-Key`. by_hand: whether a person sent it, whose same form within seconds is a
        double click; a program that sends the same twice means it, or uses a key. request_id: goes with the record.
        Raises FormRefused for a key that cannot be used. Raises RateLimited when the client's network has had its
        share; then nothing waits for Kafka. Raises NotAcknowledged when Kafka did not answer within the deadline: the
        form may have been taken all the same, and sent again under its key it is taken once. Raises RecordRefused when
        it is too large for the broker.
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
                self._keep(submission, request_id)
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
            # So much of it came from there that only the number is kept. A 202 would say that the log has it.
            raise RateLimited(replace(allowance, remaining=0), max(1, allowance.reset_s))
        if verdict.outcome == REPEATED and edge.has(submission):
            # The limiter would only read past it, as often as somebody likes to send it.
            return Accepted(submission.id, allowance, verdict.outcome)
        counts = verdict.outcome == ACCEPTED and not submission.exempt
        if counts:
            edge.accepted(submission, submission.taken_at)
        try:
            try:
                kept = self._publish(submission, request_id)
            except DependencyDown as error:
                raise NotAcknowledged(str(error), submission.id) from error
            if by_hand and verdict.outcome != SPAM:
                # With a key too: a person whose answer was lost may send the form once more without one. What looked
                # like a program's is no first one: the same from a person would be put aside as its repeat.
                repeats.sent(network, form, submission.id, kept)
            position = await self._acknowledged(submission.id, kept)
        except BaseException:
            if counts:
                edge.release(submission)
            raise
        if counts:
            edge.confirm(network.encode(), submission.id, None if position is None else position.offset)
        return Accepted(submission.id, allowance, verdict.outcome)

    async def _until_loaded(self) -> None:
        """Wait a moment for the start to be over: another worker may have said that this node is ready."""
        try:
            async with asyncio.timeout(LOADED_WITHIN_S):
                await self._loaded.wait()
        except TimeoutError:
            raise DependencyDown("not ready yet") from None

    async def _acknowledged(self, lead_id: UUID, kept: asyncio.Future[Acknowledgement]) -> Acknowledgement:
        try:
            position = await kept
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
        """Take the schema ids of the cluster that came back, for what is spooled and for what comes after it."""
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
        """Keep a refusal for whoever may release it; a 429 does not wait for Kafka, and past a bound only counts."""
        if edge.record_refusal(submission, submission.taken_at):
            self._keep(replace(submission, edge_verdict=RATE_LIMITED), request_id)

    def _keep(self, refused: Submission, request_id: str) -> None:
        try:
            kept = self._publish(refused, request_id)
        except NigredoError as error:
            log.warning("a refused submission is not kept", error=str(error))
            return
        kept.add_done_callback(_refusal_kept)

    async def _tell_refusals(self) -> None:
        """Publish now and then how many refusals there were whose contents are not kept."""
        while True:
            await asyncio.sleep(TELL_REFUSALS_EVERY_S)
            if self._edge is None:
                continue
            now = self._clock()
            for count in self._edge.drain_refusal_counts(now):
                try:
                    await self._publish_count(count, now)
                except Exception as error:
                    # This task is the only one that tells of them: it does not end while the process lives.
                    log.warning("refusals are not counted", refused=count.count, error=type(error).__name__)

    async def _measure(self) -> None:
        """Tell now and then what a request would only slow down to tell."""
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
        """Say from now on that this process is not ready, for it ends soon; forms are taken until it does."""
        self._leaving = True

    async def check(self) -> str | None:
        """Return what keeps this process from taking forms; None when nothing does."""
        if self._leaving:
            return LEAVING
        if self._publisher is None or self._codec is None:
            return self._health.waiting_for or "start"
        if self.spool is not None:
            # Whether Kafka is there makes no difference to who posts.
            return None if self.spool.has_room else "room in the spool"
        if time.monotonic() - self._last_ack > RECENT_ACK_S:
            # One probe at a time, however many ask: each takes a thread while Kafka is away.
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
        """Wait until what was published is acknowledged, or spooled, within a few seconds."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for view in self._views:
            await asyncio.to_thread(view.close)
        if self._spooling is not None:
            await self._spooling.close()
        if self._publisher is not None:
            # With a spool, what is not acknowledged by now is in there.
            wait_s = 0.0 if self.spool is not None else self._settings.ingest_answer_within_s
            left = await self._publisher.close(deadline_s=wait_s)
            if left and self.spool is None:
                log.error("submissions were not acknowledged at the end", records=left)


def _refusal_kept(future: asyncio.Future[Acknowledgement]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        log.warning("a refused submission is not kept", error=str(error))
