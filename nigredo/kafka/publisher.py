"""Producer whose acknowledgements can be awaited record by record, and the client settings shared by every process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka.security import librdkafka_security, refusal_notice
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings

log = get_logger()

Headers = Sequence[tuple[str, bytes]]
NOBODY_ANSWERS = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._RESOLVE,
)
POLL_EVERY_S = 0.001
"""Poll interval while records are in flight; an empty poll costs some microseconds."""
POLL_IDLE_EVERY_S = 0.1
SWEEP_EVERY_S = 0.1
BY_KEY = -1
"""librdkafka's partition number for "chosen by the partitioner", from the key."""
SILENT_FOR_S = 10.0
SILENT_LOOK_EVERY_S = 3.0
SILENT_LOOKS = 4
"""A producer is replaced after this many answers of Kafka in a row without an acknowledgement in between."""
HOLD_INPUT_DELIVERY_TIMEOUT_S = 3600.0
"""Delivery timeout of a process that pauses its input until Kafka acknowledges the output."""


class Overloaded(DependencyDown):
    """The allowed number of records is in flight already: slow down."""


class AckedPosition(NamedTuple):
    """Position of an acknowledged record; the offset is None when the broker recognised the record as a duplicate."""

    topic: str
    partition: int
    offset: int | None


def client_config(settings: Settings, client_id: str) -> dict[str, Any]:
    """Return the settings that every librdkafka client shares. Raises ConfigurationError for an unusable TLS file."""
    return librdkafka_security(settings) | {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": client_id,
        # A broker that is available again is found within a second; librdkafka's default waits up to ten.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        # librdkafka's own log lines are off: errors that matter are raised, and the caller logs them as JSON.
        "log_level": 0,
        "error_cb": refusal_notice,
    }


def producer_config(settings: Settings, client_id: str, *, delivery_timeout_s: float) -> dict[str, Any]:
    """Return the settings of an idempotent producer with `acks=all`.

    delivery_timeout_s: a record not acknowledged by then fails.
    `murmur2_random` maps a key to the same partition as Java's and aiokafka's producers; librdkafka's default does not.
    """
    return client_config(settings, client_id) | {
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "linger.ms": 1,
        # One request at the broker, which processes a connection's requests in order, and one on the wire. With more,
        # librdkafka's thread spins while a partition waits for an acknowledgement.
        "max.in.flight.requests.per.connection": 2,
        "delivery.timeout.ms": int(delivery_timeout_s * 1000),
        # Shorter than the delivery timeout, so that a lost connection is noticed while there is time for another try.
        "request.timeout.ms": max(1000, min(10_000, int(delivery_timeout_s * 1000))),
        "compression.type": "none",
    }


class Silence:
    """Detects a producer that gets no acknowledgement although Kafka answers its metadata requests. Pure.

    librdkafka ignores a partition leader with a lower epoch than one seen before, as after a broker's disk was set back
    to a snapshot: the producer then sends nothing, without an error, until it is replaced. Times are seconds of a
    monotonic clock.
    """

    def __init__(self) -> None:
        self._look_due_s: float | None = None
        self._answers = 0

    def waits(self, now_s: float) -> None:
        """Record that a record is in flight."""
        if self._look_due_s is None:
            self._look_due_s = now_s + SILENT_FOR_S

    def ends(self) -> None:
        """Record that the broker acknowledged or refused a record."""
        self._look_due_s, self._answers = None, 0

    def look_due(self, now_s: float) -> bool:
        """Return whether it is time to check if Kafka answers."""
        return self._look_due_s is not None and now_s >= self._look_due_s

    def looked(self, now_s: float, *, answered: bool) -> bool:
        """Record whether Kafka answered the check; return whether the producer must be replaced."""
        if self._look_due_s is None:
            return False
        self._look_due_s = now_s + SILENT_LOOK_EVERY_S
        self._answers = self._answers + 1 if answered else 0
        return self._answers >= SILENT_LOOKS


def answers(producer: Producer) -> bool:
    """Return whether Kafka answers a producer's metadata request. Blocks: call in a thread."""
    try:
        producer.list_topics(timeout=SILENT_LOOK_EVERY_S)
    except KafkaException:
        return False
    return True


class Publisher:
    """An idempotent producer that gives every record a future on the event loop.

    Bound to the event loop in which it is created: `publish` must be called there, and a timer on that loop polls for
    acknowledgements (docs/adr/0020). Always `await close()`.
    """

    def __init__(self, config: dict[str, Any], *, in_flight_max: int, answer_within_s: float | None = None) -> None:
        """config: of `producer_config`. in_flight_max: records that may be in flight at a time.

        answer_within_s: a future fails after this time even if librdkafka has not reported; must be longer than the
        delivery timeout.
        """
        self._config = config
        self._in_flight_max = in_flight_max
        self._loop = asyncio.get_running_loop()
        self._fatal: KafkaError | None = None
        self._producer = Producer(self._config)
        self._answer_within_s = answer_within_s
        # Futures of the records in flight, in publishing order, each with its deadline.
        self._pending: dict[asyncio.Future[AckedPosition], float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self._poll_soon = False
        self._silence = Silence()
        self._looking: asyncio.Future[bool] | None = None
        self._next_poll = self._loop.call_later(POLL_IDLE_EVERY_S, self._poll)

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> asyncio.Future[AckedPosition]:
        """Produce a record; the future resolves to its position once all in-sync replicas have stored it.

        The future fails with DependencyDown when the delivery timeout passes first (the record may have been written
        all the same) and with RecordRefused when the broker can never accept the record. Raises Overloaded at once when
        `in_flight_max` records are in flight. Cancelling the future does not unsend the record.
        """
        if self._closed or len(self._pending) >= self._in_flight_max:
            raise Overloaded("too many records wait for Kafka's acknowledgement")
        future: asyncio.Future[AckedPosition] = self._loop.create_future()
        try:
            self._producer.produce(
                topic,
                value,
                key,
                BY_KEY if partition is None else partition,
                partial(self._delivered, future),
                headers=list(headers),
            )
        except BufferError as error:
            raise Overloaded("the producer's queue is full") from error
        except KafkaException as error:
            raise as_product_error(error.args[0]) from error
        self._await(future)
        return future

    def _await(self, future: asyncio.Future[AckedPosition]) -> None:
        self._silence.waits(self._loop.time())
        self._pending[future] = self._loop.time() + (self._answer_within_s or 0.0)
        if not self._poll_soon:
            self._next_poll.cancel()
            self._poll_again(soon=True)
        if self._sweep is None and self._answer_within_s is not None:
            self._sweep = self._loop.call_later(SWEEP_EVERY_S, self._fail_overdue)

    @property
    def in_flight(self) -> int:
        """Number of records in flight."""
        return len(self._pending)

    def probe(self, topic: str, timeout_s: float) -> None:
        """Check that the broker answers and the topic exists. Blocks: call in a thread. Raises DependencyDown."""
        try:
            found = self._producer.list_topics(topic, timeout=timeout_s).topics.get(topic)
        except KafkaException as error:
            raise as_product_error(error.args[0]) from error
        if found is None or found.error is not None:
            raise DependencyDown(f"there is no topic {topic} yet")

    async def close(self, *, deadline_s: float = 5.0) -> int:
        """Wait at most `deadline_s` for the records in flight; fail those not acknowledged, and return their number."""
        try:
            if self._pending:
                await asyncio.wait(set(self._pending), timeout=deadline_s)
        finally:
            self._closed = True
        self._next_poll.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
        left = fail_left(self._pending)
        self._pending.clear()
        return left

    def _fail_overdue(self) -> None:
        """Fail the futures whose deadline has passed. One timer for all records is cheaper than one per record."""
        now = self._loop.time()
        # A failed record stays counted until librdkafka releases it, because `in_flight_max` bounds librdkafka's queue.
        for future, due in self._pending.items():
            if due > now:
                break
            if not future.done():
                future.set_exception(DependencyDown("Kafka did not acknowledge in time"))
        self._sweep = self._loop.call_later(SWEEP_EVERY_S, self._fail_overdue) if self._pending else None

    def _delivered(self, future: asyncio.Future[AckedPosition], error: KafkaError | None, message: Message) -> None:
        """Resolve one record's future; librdkafka calls this from within `_poll`."""
        if error is not None:
            outcome = as_product_error(error)
            if isinstance(outcome, RecordRefused):
                self._silence.ends()
            self._resolve(future, outcome)
        else:
            self._silence.ends()
            self._resolve(future, AckedPosition(message.topic() or "", message.partition() or 0, message.offset()))

    def _resolve(self, future: asyncio.Future[AckedPosition], outcome: AckedPosition | Exception) -> None:
        self._pending.pop(future, None)
        if future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _poll(self) -> None:
        try:
            self._fetch()
            if self._fatal is not None:
                log.error("producer replaced after a fatal error", error=self._fatal.name())
                self._replace("Kafka: a fatal error of the producer")
            self._end_silence()
        except Exception as error:
            # Every future in flight depends on this timer, so an error must not end it.
            log.error("producer poll failed", error=type(error).__name__)
            self._poll_again(soon=False)
        else:
            self._poll_again(soon=bool(self._pending))

    def _fetch(self) -> None:
        try:
            self._producer.poll(0)
        except KafkaException as error:
            # The Python client reports a fatal error by raising it here, once, and never through `error_cb`.
            if not error.args[0].fatal():
                raise
            self._fatal = error.args[0]

    def _poll_again(self, *, soon: bool) -> None:
        self._poll_soon = soon
        self._next_poll = self._loop.call_later(POLL_EVERY_S if soon else POLL_IDLE_EVERY_S, self._poll)

    def _end_silence(self) -> None:
        """Replace the producer after `SILENT_LOOKS` checks in a row that Kafka answered without an acknowledgement."""
        if self._looking is not None and self._looking.done():
            answered, self._looking = self._looking.result(), None
            if self._silence.looked(self._loop.time(), answered=answered):
                log.error("producer replaced: Kafka answers, but no record was acknowledged")
                self._replace("Kafka acknowledged nothing")
        elif self._looking is None and self._silence.look_due(self._loop.time()):
            self._looking = self._loop.run_in_executor(None, answers, self._producer)

    def _replace(self, reason: str) -> None:
        """Switch to a new producer, because an idempotent producer refuses all records after a fatal error.

        Every record in flight fails with DependencyDown, unless the old producer reports its outcome at once.
        """
        old, self._producer, self._fatal = self._producer, Producer(self._config), None
        self._silence.ends()
        # The purged records' reports are ready, so this flush returns well before its limit of one second.
        give_up(old)
        for future in list(self._pending):
            self._resolve(future, DependencyDown(reason))


def fail_left(futures: Iterable[asyncio.Future[Any]]) -> int:
    """Fail the futures that a closed producer left unresolved; return their number."""
    left = [future for future in futures if not future.done()]
    for future in left:
        future.set_exception(DependencyDown("the producer was closed before Kafka acknowledged"))
        future.exception()  # Marks the exception as retrieved, because the caller may have stopped waiting.
    return len(left)


def give_up(producer: Producer) -> None:
    """Purge a replaced producer and collect its outstanding delivery reports, for at most a second."""
    producer.purge()
    with suppress(KafkaException):
        producer.flush(1.0)


def describe_error(error: KafkaError) -> str:
    """Return an error's text for operators: "Kafka does not answer" for a connection error, else librdkafka's name."""
    return "Kafka does not answer" if error.code() in NOBODY_ANSWERS else f"Kafka: {error.name()}"


def as_product_error(error: KafkaError) -> Exception:
    """Return the error to raise for a client error: RecordRefused (never retry) or DependencyDown (retry later)."""
    if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_RECORD):
        return RecordRefused("too_large" if error.code() != KafkaError.INVALID_RECORD else "invalid", error.name())
    return DependencyDown(describe_error(error))
