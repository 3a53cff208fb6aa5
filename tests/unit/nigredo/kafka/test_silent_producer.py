"""Producer without acknowledgements although Kafka answers: it is replaced, and its records in flight fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from nigredo.errors import DependencyDown
from nigredo.kafka import batch_publisher as bulk
from nigredo.kafka import publisher as kafka
from nigredo.kafka.batch_publisher import BatchPublisher, Outgoing
from nigredo.kafka.publisher import SILENT_FOR_S, SILENT_LOOK_EVERY_S, SILENT_LOOKS, Publisher, Silence

DEADLINE_S = 30.0


def looks(silence: Silence, start_s: float, *answered: bool) -> list[bool]:
    return [silence.looked(start_s + n * SILENT_LOOK_EVERY_S, answered=one) for n, one in enumerate(answered)]


def test_a_producer_is_replaced_only_after_enough_answers_in_a_row_without_an_acknowledgement() -> None:
    silence = Silence()
    assert not silence.look_due(1e9)
    silence.waits(0.0)
    silence.waits(5.0)
    assert not silence.look_due(SILENT_FOR_S - 0.1)
    assert silence.look_due(SILENT_FOR_S)
    few = [True] * (SILENT_LOOKS - 1)
    assert looks(silence, SILENT_FOR_S, *few, False, *few, True) == [False] * (2 * SILENT_LOOKS - 1) + [True]


def test_an_acknowledgement_ends_the_silence() -> None:
    silence = Silence()
    silence.waits(0.0)
    looks(silence, SILENT_FOR_S, *[True] * (SILENT_LOOKS - 1))
    silence.ends()
    assert not silence.look_due(1e9)
    assert not silence.looked(1e9, answered=True)


class Silent:
    """A producer that accepts records and acknowledges none; `reachable` decides whether metadata requests succeed."""

    made = 0
    reachable = True

    def __init__(self, _: object) -> None:
        type(self).made += 1
        self._left = 0

    def produce(self, *_: object, **__: object) -> None:
        self._left += 1

    def poll(self, _: float) -> int:
        return 0

    def flush(self, timeout: float) -> int:
        time.sleep(min(timeout, 0.001))
        return self._left

    def purge(self) -> None:
        self._left = 0

    def list_topics(self, *, timeout: float) -> None:
        if not self.reachable:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))


@pytest.fixture(params=["one by one", "in bulk"])
def publish(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    for name in ("SILENT_FOR_S", "SILENT_LOOK_EVERY_S"):
        monkeypatch.setattr(kafka, name, 0.001)
    monkeypatch.setattr(Silent, "made", 0)
    for module in (kafka, bulk):
        monkeypatch.setattr(module, "Producer", Silent)

    async def published(within_s: float) -> None:
        if request.param == "in bulk":
            many = BatchPublisher({}, in_flight_max=1)
            waits: asyncio.Future[Any] = many.publish_all([Outgoing("topic", b"k", b"v")])
        else:
            one = Publisher({}, in_flight_max=1)
            waits = one.publish("topic", key=b"k", value=b"v")
        try:
            await asyncio.wait_for(asyncio.shield(waits), within_s)
        finally:
            await (many if request.param == "in bulk" else one).close(deadline_s=0.1)

    return lambda within_s=DEADLINE_S: asyncio.run(published(within_s))


def test_records_in_flight_fail_when_their_producer_is_replaced(publish: Callable[..., None]) -> None:
    with pytest.raises(DependencyDown, match="acknowledged nothing"):
        publish()
    assert Silent.made == 2


def test_a_producer_is_not_replaced_while_kafka_is_unavailable(
    publish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Silent, "reachable", False)
    with pytest.raises(TimeoutError):
        publish(0.5)
    assert Silent.made == 1
