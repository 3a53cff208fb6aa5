"""Producing to Kafka with an acknowledgement that can be awaited, and the client settings every part shares."""

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
"""While something waits for its acknowledgement: what a poll that finds nothing costs is some microseconds."""
POLL_IDLE_EVERY_S = 0.1
SWEEP_EVERY_S = 0.1
BY_KEY = -1
"""librdkafka's number for a partition that the key decides."""
SILENT_FOR_S = 10.0
SILENT_LOOK_EVERY_S = 3.0
SILENT_LOOKS = 4
"""Answers of Kafka in a row, without an acknowledgement meanwhile, after which a producer is replaced."""
HOLD_INPUT_DELIVERY_TIMEOUT_S = 3600.0
"""Delivery timeout of a process that holds its input back until Kafka takes the output."""


class Overloaded(DependencyDown):
    """As many records as allowed already wait for their acknowledgement: slow down."""


class AckedPosition(NamedTuple):
    """Where the broker put a record; the offset is unknown when it only says that it had the record before."""

    topic: str
    partition: int
    offset: int | None


def client_config(settings: Settings, client_id: str) -> dict[str, Any]:
    """Return what every librdkafka client of the product sets. Raises ConfigurationError for a file it cannot use."""
    return librdkafka_security(settings) | {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": client_id,
        # A broker that comes back is found within a second; librdkafka's default waits up to ten.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "socket.keepalive.enable": True,
        # Nothing in its own format: what matters comes as an error and is logged as JSON by whoever got it.
        "log_level": 0,
        "error_cb": refusal_notice,
    }


def producer_config(settings: Settings, client_id: str, *, delivery_timeout_s: float) -> dict[str, Any]:
    """Return the settings of an idempotent producer that is acknowledged by all in-sync replicas.

    `murmur2_random` puts a key where Java's and aiokafka's producers put it; librdkafka's default does not.
    """
    return client_config(settings, client_id) | {
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "linger.ms": 1,
        # One request is worked on by the broker, which takes a connection's in turn, and one is on the way to it. With
        # more, librdkafka's thread goes round without a pause while a partition waits for an acknowledgement.
        "max.in.flight.requests.per.connection": 2,
        "delivery.timeout.ms": int(delivery_timeout_s * 1000),
        # One try may not outlast the whole budget, else a lost connection is noticed only when it is spent.
        "request.timeout.ms": max(1000, min(10_000, int(delivery_timeout_s * 1000))),
        "compression.type": "none",
    }


class Silence:
    """Notices a producer of which nothing is acknowledged although Kafka answers it. Pure.

    librdkafka ignores a partition's leader whose epoch is lower than one it has seen, as after a disk of Kafka was set
    back: it sends nothing any more, without an error, until it is replaced.
    """

    def __init__(self) -> None:
        self._look_due_s: float | None = None
        self._answers = 0

    def waits(self, now_s: float) -> None:
        """Note that a record waits for its acknowledgement."""
        if self._look_due_s is None:
            self._look_due_s = now_s + SILENT_FOR_S

    def ends(self) -> None:
        """Note that the broker acknowledged or refused a record."""
        self._look_due_s, self._answers = None, 0

    def look_due(self, now_s: float) -> bool:
        """Say whether it is time to see if Kafka answers."""
        return self._look_due_s is not None and now_s >= self._look_due_s

    def looked(self, now_s: float, *, answered: bool) -> bool:
        """Note whether Kafka answered; say whether the producer is to be replaced."""
        if self._look_due_s is None:
            return False
        self._look_due_s = now_s + SILENT_LOOK_EVERY_S
        self._answers = self._answers + 1 if answered else 0
        return self._answers >= SILENT_LOOKS


def answers(producer: Producer) -> bool:
    """Say whether Kafka answers a producer. Blocks, for a thread."""
    try:
        producer.list_topics(timeout=SILENT_LOOK_EVERY_S)
    except KafkaException:
        return False
    return True


class Publisher:
    """An idempotent producer whose every record answers with a future on the event loop.

    Belongs to the event loop it was made in: `publish` is called there, and a timer there fetches the
    acknowledgements that have come (docs/adr/0020). Always `await close()`.
    """

    def __init__(self, config: dict[str, Any], *, in_flight_max: int, answer_within_s: float | None = None) -> None:
        """answer_within_s: a future fails after this long whatever librdkafka does; longer than its own timeout."""
        self._config = config
        self._in_flight_max = in_flight_max
        self._loop = asyncio.get_running_loop()
        self._fatal: KafkaError | None = None
        self._producer = Producer(self._config)
        self._answer_within_s = answer_within_s
        # In the order of publishing, with the time by which each is answered.
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
        """Hand a record to Kafka; the future resolves to its position once all in-sync replicas have it.

        The future fails with DependencyDown when the delivery timeout passed first (the record may still have been
        written: an error is no proof of absence) and with RecordRefused when the broker can never take it. Raises
        Overloaded at once when `in_flight_max` records already wait. Cancelling the future does not unsend.
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
        """How many records wait for their acknowledgement."""
        return len(self._pending)

    def probe(self, topic: str, timeout_s: float) -> None:
        """Ask the broker about a topic; blocks, for a thread. Raises DependencyDown when it does not answer."""
        try:
            found = self._producer.list_topics(topic, timeout=timeout_s).topics.get(topic)
        except KafkaException as error:
            raise as_product_error(error.args[0]) from error
        if found is None or found.error is not None:
            raise DependencyDown(f"there is no topic {topic} yet")

    async def close(self, *, deadline_s: float = 5.0) -> int:
        """Wait until everything is acknowledged, at most `deadline_s`; return how many records were not."""
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
        """Fail what should have been answered by now. One timer for all is cheaper than one for each."""
        now = self._loop.time()
        # What is over stays counted until librdkafka lets go of it: the bound is on what it holds.
        for future, due in self._pending.items():
            if due > now:
                break
            if not future.done():
                future.set_exception(DependencyDown("Kafka did not acknowledge in time"))
        self._sweep = self._loop.call_later(SWEEP_EVERY_S, self._fail_overdue) if self._pending else None

    def _delivered(self, future: asyncio.Future[AckedPosition], error: KafkaError | None, message: Message) -> None:
        """Answer one record; called by librdkafka out of `_poll`."""
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
            # This timer is what every waiting future depends on: it does not end while the publisher lives.
            log.error("polling the producer met an error", error=type(error).__name__)
            self._poll_again(soon=False)
        else:
            self._poll_again(soon=bool(self._pending))

    def _fetch(self) -> None:
        try:
            self._producer.poll(0)
        except KafkaException as error:
            # So the Python client tells of a fatal error, once, and never by `error_cb`.
            if not error.args[0].fatal():
                raise
            self._fatal = error.args[0]

    def _poll_again(self, *, soon: bool) -> None:
        self._poll_soon = soon
        self._next_poll = self._loop.call_later(POLL_EVERY_S if soon else POLL_IDLE_EVERY_S, self._poll)

    def _end_silence(self) -> None:
        """Replace a producer of which nothing is acknowledged although Kafka answers it, some looks in a row."""
        if self._looking is not None and self._looking.done():
            answered, self._looking = self._looking.result(), None
            if self._silence.looked(self._loop.time(), answered=answered):
                log.error("producer replaced: nothing was acknowledged though Kafka answers")
                self._replace("Kafka acknowledged nothing")
        elif self._looking is None and self._silence.look_due(self._loop.time()):
            self._looking = self._loop.run_in_executor(None, answers, self._producer)

    def _replace(self, reason: str) -> None:
        """Go on with a new producer: an idempotent one refuses all work for good after a fatal error."""
        old, self._producer, self._fatal = self._producer, Producer(self._config), None
        self._silence.ends()
        # Of what is at hand by then: the loop does not stand still for a second.
        give_up(old)
        for future in list(self._pending):
            self._resolve(future, DependencyDown(reason))


def fail_left(futures: Iterable[asyncio.Future[Any]]) -> int:
    """Fail what a producer that is closed leaves without an answer; return how many these are."""
    left = [future for future in futures if not future.done()]
    for future in left:
        future.set_exception(DependencyDown("the producer was closed before Kafka acknowledged"))
        future.exception()  # Marks it as retrieved: nobody may be waiting any more.
    return len(left)


def give_up(producer: Producer) -> None:
    """Have a producer that met a fatal error say what it can of its records."""
    producer.purge()
    with suppress(KafkaException):
        producer.flush(1.0)


def describe_error(error: KafkaError) -> str:
    """Return an error in the words of the product; Kafka's own name of it where it is more than that nobody answers."""
    return "Kafka does not answer" if error.code() in NOBODY_ANSWERS else f"Kafka: {error.name()}"


def as_product_error(error: KafkaError) -> Exception:
    """Classify a client error by what its caller must do."""
    if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE, KafkaError.INVALID_RECORD):
        return RecordRefused("too_large" if error.code() != KafkaError.INVALID_RECORD else "invalid", error.name())
    return DependencyDown(describe_error(error))
