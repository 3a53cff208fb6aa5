"""Consumes leads and delivers them, many at a time; the only place of the sink that decides what is committed.

A lead is done when its last attempt is on record in Kafka. Per partition only the offset below which all are done is
committed. What an older assignment began is not counted any more: the partition's new owner begins it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from nigredo import metrics
from nigredo.backoff import Backoff
from nigredo.clock import from_ms, utc_now
from nigredo.dead_letters import park
from nigredo.errors import DependencyDown, StartRefused
from nigredo.health import Health
from nigredo.kafka import FOR_EVER_S, Publisher, client_config, producer_config
from nigredo.record import Record, record_of
from nigredo.settings import Settings
from nigredo.startup import ready_codec
from nigredo.telemetry import get_logger
from schemas.codec import Codec, Undecodable
from schemas.events import Event, Lead
from schemas.registry import RegistryUnavailable
from schemas.topics import DEAD_LETTERS, DELIVERIES, LEADS, WEBHOOK_DEAD
from sinks.webhook.attempts import AttemptLog
from sinks.webhook.beginning import ensure_begun
from sinks.webhook.delivery import Deliverer
from sinks.webhook.endpoint import COMPONENT
from sinks.webhook.retry import after
from sinks.webhook.signing import active, read_secrets
from sinks.webhook.watermark import Watermark

log = get_logger()

POLL_S = 0.1
COMMIT_EVERY_S = 0.5
IN_HAND_MAX = 500
"""Leads that are being delivered or wait for their next attempt; more are not taken from the log."""
FULL_PATIENCE_S = 1.0
"""How long to wait for room before the partitions are paused: pausing throws away what was fetched ahead."""
WINDOW_MAX = 5000
"""Leads of a partition that may be done above one that is not; past it the partition waits."""
CLOCKS_DIFFER = timedelta(minutes=1)
DELIVERED_MAX = 50_000
STOP_GRACE_S = 7.0
RETRY_LONGEST_S = 60.0
PUBLISH_MAX = 5000
START_DEADLINE_S = 60.0


@dataclass(slots=True)
class Partition:
    """One assigned partition. `counts_since`: deliveries made after it are not made again; kept in the commits."""

    watermark: Watermark
    counts_since: datetime
    begun: dict[int, datetime] = field(default_factory=dict)
    """Since when each record is in hand, oldest first."""
    sending: dict[UUID, asyncio.Event] = field(default_factory=dict)
    delivered: asyncio.Task[dict[UUID, None]] | None = field(default=None)

    def metadata(self) -> str:
        """Return since when deliveries matter to whoever goes on from the watermark, in milliseconds.

        What is done above the oldest open record was begun after it, and so delivered after it.
        """
        oldest = next(iter(self.begun.values()), utc_now())
        return str(int(max(self.counts_since, oldest - CLOCKS_DIFFER).timestamp() * 1000))


class Worker:
    """The sink of one endpoint. `run` it once."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._name = settings.function(COMPONENT)
        self._secrets = active(read_secrets(settings.webhook_secret_file), utc_now())
        # The consumer's callbacks run in the polling thread, completions on the event loop.
        self._lock = threading.Lock()
        self._partitions: dict[int, Partition] = {}
        self._paused: set[int] = set()
        self._held: set[int] = set()
        self._slots = asyncio.Semaphore(settings.webhook_in_flight_max)
        self._committed: dict[int, int] = {}
        self._fatal: StartRefused | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._last_success = 0.0
        self._stopping = asyncio.Event()
        self._consumer: Consumer
        self._codec: Codec
        self._publisher: Publisher
        self._attempts: AttemptLog
        self._deliverer: Deliverer

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop`.

        Raises StartRefused when the group lost its place, DependencyDown when it cannot start.
        """
        if not await self._begun(stop):
            return
        settings = self._settings
        self._codec = await ready_codec(settings, [DELIVERIES, WEBHOOK_DEAD, DEAD_LETTERS])
        config = producer_config(settings.kafka_bootstrap_servers, self._name, delivery_timeout_s=FOR_EVER_S)
        self._publisher = Publisher(config, in_flight_max=PUBLISH_MAX)
        self._attempts = AttemptLog(settings, self._codec, self._publisher)
        self._deliverer = Deliverer(
            settings.webhook_url,
            self._secrets,
            timeout_s=settings.webhook_timeout_s,
            connections_max=settings.webhook_in_flight_max,
        )
        self._consumer = Consumer(self._consumer_config())
        self._consumer.subscribe([LEADS], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        try:
            await self._consume(stop)
        finally:
            await self._end()

    async def _begun(self, stop: asyncio.Event) -> bool:
        """Make sure that the endpoint's offsets exist, waiting for Kafka; False when told to stop meanwhile."""
        backoff, deadline = Backoff(longest_s=2.0), time.monotonic() + START_DEADLINE_S
        while not stop.is_set():
            try:
                await ensure_begun(self._settings)
                return True
            except DependencyDown as error:
                self._health.waiting(str(error))
                if time.monotonic() > deadline:
                    raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), backoff.next_wait_s())
        return False

    def _consumer_config(self) -> dict[str, object]:
        session_ms = int(self._settings.kafka_session_timeout_s * 1000)
        return client_config(self._settings.kafka_bootstrap_servers, self._name) | {
            "group.id": self._name,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Never guess: an offset that is gone is for a person to decide about.
            "auto.offset.reset": "error",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": session_ms // 4,
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 16_384,
        }

    # --- the consumer: callbacks run inside `poll`, in its thread --------------------------------------------------

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """Seed each partition from its committed offset. An error is kept for `_consume`: here it would be lost."""
        try:
            committed = consumer.committed(assigned, timeout=10.0)
        except KafkaException as error:
            self._fatal = StartRefused(f"the offsets of {self._name} cannot be read: {error.args[0].name()}")
            return
        missing = [at.partition for at in committed if at.offset == OFFSET_INVALID]
        if missing:
            self._fatal = StartRefused(f"group {self._name} has no offset for partitions {missing} of {LEADS}")
            return
        with self._lock:
            self._partitions = {
                at.partition: Partition(Watermark(at.offset), _counts_since(at.metadata)) for at in committed
            }
            self._paused, self._held, self._committed = set(), set(), {}
        consumer.assign([TopicPartition(at.topic, at.partition, at.offset) for at in committed])
        # At once, so that a crash before the first delivery leaves a place that says since when deliveries count.
        self._commit(consumer, every=True)
        self._health.ready()

    def _revoked(self, consumer: Consumer, _: list[TopicPartition]) -> None:
        self._commit(consumer)
        self._lost(consumer, _)

    def _lost(self, _: Consumer, __: list[TopicPartition]) -> None:
        with self._lock:
            self._partitions = {}
        self._health.waiting("an assignment of partitions")

    def _commit(self, consumer: Consumer, *, every: bool = False) -> None:
        """Commit how far each partition is done. A commit that fails costs a repetition, never a lead."""
        with self._lock:
            offsets = [
                TopicPartition(LEADS, number, partition.watermark.next_offset, partition.metadata())
                for number, partition in self._partitions.items()
                if every or self._committed.get(number) != partition.watermark.next_offset
            ]
        if not offsets:
            return
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("offsets were not committed", error=error.args[0].name())
            return
        with self._lock:
            self._committed.update({at.partition: at.offset for at in offsets})

    def _poll(self, room: int) -> list[Message]:
        """Poll once; with no room for more leads, only to stay a member of the group."""
        self._pause_or_resume(full=not room)
        first = self._consumer.poll(POLL_S)
        messages = [] if first is None else [first]
        if messages and room > 1:
            messages += self._consumer.consume(room - 1, 0)
        return messages

    def _pause_or_resume(self, *, full: bool) -> None:
        """Pause what cannot be worked on; a partition whose window was full goes on when half of it is done."""
        everything = full or not self._settings.webhook_enabled
        with self._lock:
            known = set(self._partitions)
            wanted = {
                number
                for number, partition in self._partitions.items()
                if everything or partition.watermark.open >= (WINDOW_MAX // 2 if number in self._held else WINDOW_MAX)
            }
        self._held = set() if everything else wanted
        for numbers, change in (
            (wanted - self._paused, self._consumer.pause),
            ((self._paused & known) - wanted, self._consumer.resume),
        ):
            if numbers:
                change([TopicPartition(LEADS, number) for number in numbers])
        self._paused = wanted

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def _consume(self, stop: asyncio.Event) -> None:
        last_commit = time.monotonic()
        while not stop.is_set():
            if len(self._running) >= IN_HAND_MAX:
                await asyncio.wait(self._running, timeout=FULL_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            for message in await asyncio.to_thread(self._poll, max(0, IN_HAND_MAX - len(self._running))):
                self._take(message)
            if self._fatal is not None:
                raise self._fatal
            if time.monotonic() - last_commit >= COMMIT_EVERY_S:
                last_commit = time.monotonic()
                await asyncio.to_thread(self._commit, self._consumer)
                with self._lock:
                    following = {number: at.watermark.next_offset for number, at in self._partitions.items()}
                    begun = [since for at in self._partitions.values() for since in list(at.begun.values())[:1]]
                tell_open(self._consumer, following, ENDPOINT, min(begun, default=None))

    def _take(self, message: Message) -> None:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise StartRefused(f"the place of {self._name} in {LEADS} is gone from the log: {error.str()}")
            log.warning("consumer error", error=error.name())
            return
        record = record_of(message)
        with self._lock:
            partition = self._partitions.get(record.partition)
            begun = partition is not None and partition.watermark.begin(record.offset)
            if partition is not None and begun:
                partition.begun[record.offset] = utc_now()
        if partition is not None and begun:
            task = asyncio.create_task(self._handle(record, partition))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _ours(self, record: Record, partition: Partition) -> bool:
        """Say whether the assignment under which a record was begun still holds."""
        with self._lock:
            return self._partitions.get(record.partition) is partition and not self._stopping.is_set()

    async def _wait(self, seconds: float, record: Record, partition: Partition) -> None:
        """Wait before the next try, but no longer than the assignment holds: the place is wanted for other leads."""
        until = time.monotonic() + seconds
        while self._ours(record, partition) and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(left, 0.5))

    async def _handle(self, record: Record, partition: Partition) -> None:
        """See one record through, then count it as done, unless its assignment is over."""
        backoff = Backoff(longest_s=5.0)
        while self._ours(record, partition):
            try:
                if await self._deliver(record, partition):
                    break
                return
            except DependencyDown as error:
                log.warning("a lead waits", error=str(error), offset=record.offset)
            except Exception as error:
                log.error("a lead failed", error=type(error).__name__, offset=record.offset)
            await self._wait(backoff.next_wait_s(), record, partition)
        else:
            return
        with self._lock:
            if self._partitions.get(record.partition) is partition:
                partition.watermark.finish(record.offset)
                metrics.RECORDS_HANDLED.of(LEADS).inc()
                partition.begun.pop(record.offset, None)

    async def _deliver(self, record: Record, partition: Partition) -> bool:
        """Deliver a lead, however often it takes; False when the assignment ended first. Raises DependencyDown."""
        try:
            event = await self._decode(record)
        except Undecodable as error:
            await park(self._publisher, self._codec, self._name, record, "undecodable", str(error))
            log.error("a record was parked", reason="undecodable", offset=record.offset, partition=record.partition)
            return True
        if not isinstance(event, Lead):
            return True  # A tombstone: the person was erased and must not be sent.
        while (first := partition.sending.get(event.id)) is not None:
            await first.wait()  # The limiter wrote the lead twice, as it may after a crash.
        partition.sending[event.id] = asyncio.Event()
        try:
            delivered = await self._delivered(record, partition)
            if event.id in delivered:
                return True
            done = await self._attempt_until_done(event, record, partition)
            if done:
                delivered[event.id] = None
                if len(delivered) > DELIVERED_MAX:
                    del delivered[next(iter(delivered))]
            return done
        finally:
            partition.sending.pop(event.id).set()

    async def _decode(self, record: Record) -> Event | None:
        if record.value is None:
            return None
        try:
            if self._codec.knows(record.value):
                return self._codec.decode(LEADS, record.value)
            # The registry is asked in a thread: others' deadlines run meanwhile.
            return await asyncio.to_thread(self._codec.decode, LEADS, record.value)
        except RegistryUnavailable as error:
            raise DependencyDown(str(error)) from error

    async def _attempt_until_done(self, lead: Lead, record: Record, partition: Partition) -> bool:
        backoff, number, began = Backoff(first_s=0.5, longest_s=RETRY_LONGEST_S), 0, time.monotonic()
        while self._ours(record, partition):
            number += 1
            # Only attempts take a place, so that leads which wait for their next one hold nobody up.
            async with self._slots:
                attempt = await self._deliverer.attempt(lead, number)
            following = after(
                attempt.outcome,
                backoff,
                number=number,
                failing_for_s=time.monotonic() - began,
                others_succeed=self._last_success > began,
                retry_after_s=attempt.retry_after_s,
            )
            await self._attempts.put_on_record(lead, record, number, attempt, dead=following.dead)
            if following.done:
                self._last_success = time.monotonic()
                return True
            if following.dead:
                await self._attempts.bury(lead, record, number, attempt)
                return True
            await self._wait(following.retry_in_s, record, partition)
        return False

    # --- what was delivered before ------------------------------------------------------------------------------------

    async def _delivered(self, record: Record, partition: Partition) -> dict[UUID, None]:
        """Return the leads of a partition that need no delivery, those from before its assignment loaded once."""
        if partition.delivered is None or (partition.delivered.done() and partition.delivered.exception()):
            loading = asyncio.to_thread(self._attempts.delivered_since, record.partition, partition.counts_since)
            partition.delivered = asyncio.create_task(loading)
        return await asyncio.shield(partition.delivered)

    async def _end(self) -> None:
        """Let what is on its way arrive, commit it, leave the group."""
        self._stopping.set()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=STOP_GRACE_S)
            for task in late:
                task.cancel()
        await asyncio.to_thread(self._commit, self._consumer)
        await asyncio.to_thread(self._consumer.close)
        await self._publisher.close()
        await self._deliverer.close()


def _counts_since(metadata: str | None) -> datetime:
    """Return since when deliveries of a partition count as made.

    An offset that somebody else committed, as Kafka's own tools do, has no such time: whoever set it wants everything
    from there on sent, also what was delivered before.
    """
    return from_ms(int(metadata)) if metadata and metadata.isdecimal() else utc_now()
