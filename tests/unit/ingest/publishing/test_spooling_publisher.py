"""Spooling publisher: whether Kafka or the spool gets a submission, and when it is sent again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.publishing import spooling_publisher as module
from ingest.publishing.spool import Entry, Spool, SpoolFull
from ingest.publishing.spooling_publisher import SpoolingPublisher
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka.publisher import AckedPosition, Overloaded

DEADLINE_S = 20


class PlayedKafka:
    """A producer that acknowledges at once, or after an outage; keeps the order, as an idempotent producer does."""

    def __init__(self) -> None:
        self.away = False
        self.overloaded = False
        self.refuses: set[bytes] = set()
        self.log: list[bytes] = []
        self.waiting: list[tuple[bytes, asyncio.Future[AckedPosition]]] = []

    def publish(self, _: str, *, key: bytes, value: bytes, headers: Any) -> asyncio.Future[AckedPosition]:
        if self.overloaded:
            raise Overloaded("too many")
        future: asyncio.Future[AckedPosition] = asyncio.get_running_loop().create_future()
        self.waiting.append((value, future))
        if not self.away:
            asyncio.get_running_loop().call_soon(self.deliver)
        return future

    def deliver(self) -> None:
        waiting, self.waiting = self.waiting, []
        for value, future in waiting:
            if value in self.refuses:
                future.set_exception(RecordRefused("too_large", "MSG_SIZE_TOO_LARGE"))
            else:
                self.log.append(value)
                future.set_result(AckedPosition("t", 0, len(self.log) - 1))

    def come_back(self) -> None:
        self.away = False
        self.deliver()

    def fail_all(self, error: Exception) -> None:
        waiting, self.waiting = self.waiting, []
        for _, future in waiting:
            future.set_exception(error)


def entry(number: int) -> Entry:
    return Entry(b"192.0.2.1", b"%d" % number, [("ce_id", b"%d" % number)])


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not look():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


def play(
    tmp_path: Path, story: Callable[[PlayedKafka, SpoolingPublisher, Spool], Awaitable[None]], max_bytes: int = 10**6
) -> None:
    """Run a story with a publisher whose drain is running."""

    async def run() -> None:
        kafka, spool = PlayedKafka(), Spool(tmp_path, max_bytes)
        await spool.open()
        outlet = SpoolingPublisher(kafka, spool)  # type: ignore[arg-type] # the part of a publisher it uses
        draining = asyncio.create_task(outlet.run())
        try:
            await asyncio.wait_for(story(kafka, outlet, spool), DEADLINE_S)
        finally:
            draining.cancel()
            await outlet.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.02)


def test_with_a_kafka_that_is_well_nothing_touches_the_disk(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kept = await asyncio.gather(*(outlet.send(entry(n)) for n in range(5)))
        assert [position.offset for position in kept if position] == [0, 1, 2, 3, 4]
        assert spool._last == 0

    play(tmp_path, story)


def test_an_outage_keeps_the_order_and_sends_each_once(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        await outlet.send(entry(0))
        kafka.away = True
        # The first three wait for Kafka and are spooled together; later records do not wait at all.
        assert await asyncio.gather(*(outlet.send(entry(n)) for n in (1, 2, 3))) == [None] * 3
        for number in range(4, 10):
            assert await asyncio.wait_for(outlet.send(entry(number)), 5) is None
        assert spool.records == 9
        assert len(kafka.waiting) == 3, "only what was sent before it was known that Kafka is away"

        kafka.come_back()
        await eventually(lambda: spool.empty)

        assert kafka.log == [b"%d" % number for number in range(10)]
        kept = await outlet.send(entry(10))
        assert kept is not None
        assert kept.offset == 10

    play(tmp_path, story)


def test_new_ones_go_behind_what_waits_until_all_of_it_is_sent(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kafka.away = True
        await outlet.send(entry(0))
        kafka.come_back()
        sent = 1
        while not spool.empty:
            await outlet.send(entry(sent))
            sent += 1
        await eventually(lambda: len(kafka.log) == sent)
        assert kafka.log == [b"%d" % number for number in range(sent)]

    play(tmp_path, story)


def test_what_a_producer_gave_up_is_sent_again(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kafka.away = True
        waiting = [outlet.send(entry(n)) for n in (0, 1)]
        kafka.fail_all(DependencyDown("Kafka: _MSG_TIMED_OUT"))
        assert await asyncio.gather(*waiting) == [None, None]
        await eventually(lambda: len(kafka.waiting) == 2)
        kafka.fail_all(DependencyDown("Kafka: _MSG_TIMED_OUT"))
        await eventually(lambda: len(kafka.waiting) == 2)
        kafka.come_back()
        await eventually(lambda: spool.empty)
        assert kafka.log == [b"0", b"1"]

    play(tmp_path, story)


def test_a_producer_that_is_full_means_the_spool(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kafka.overloaded = True
        assert await outlet.send(entry(0)) is None
        kafka.overloaded = False
        await eventually(lambda: spool.empty)
        assert kafka.log == [b"0"]

    play(tmp_path, story)


def test_a_full_spool_refuses_at_once(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kafka.away = True
        assert await outlet.send(entry(0)) is None
        with pytest.raises(SpoolFull):
            await asyncio.wait_for(outlet.send(entry(1)), 0.1)
        kafka.come_back()
        await eventually(lambda: spool.empty)
        assert kafka.log == [b"0"]

    play(tmp_path, story, max_bytes=entry(0).size_bytes)


def test_what_kafka_refuses_for_good_is_told_or_set_aside(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kafka.refuses = {b"0", b"2"}
        with pytest.raises(RecordRefused):
            await outlet.send(entry(0))
        kafka.overloaded = True
        await asyncio.gather(*(outlet.send(entry(n)) for n in (1, 2, 3)))
        kafka.overloaded = False
        await eventually(lambda: spool.empty)
        assert kafka.log == [b"1", b"3"]
        assert spool.bytes == entry(2).size_bytes

    play(tmp_path, story)


def test_what_kafka_refused_for_good_is_let_go_of_while_the_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.publishing.spooling_publisher.DELETE_EXPIRED_EVERY_S", 0.02)
    monkeypatch.setattr("ingest.publishing.spool.REFUSED_KEPT_S", 2.0)

    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kafka.refuses, kafka.overloaded = {b"0"}, True
        await outlet.send(entry(0))
        kafka.overloaded = False
        await eventually(lambda: spool.empty)
        assert spool.refused == 1
        await eventually(lambda: (spool.refused, spool.bytes) == (0, 0))

    play(tmp_path, story)


def test_a_disk_that_cannot_let_go_of_that_is_nothing_to_forms_that_kafka_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.publishing.spooling_publisher.DELETE_EXPIRED_EVERY_S", 0.02)
    asked = []

    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        async def fails() -> None:
            asked.append(1)
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(spool, "delete_expired_refusals", fails)
        await eventually(lambda: len(asked) > 1)
        kept = await asyncio.gather(*(outlet.send(entry(n)) for n in range(3)))
        assert [position.offset for position in kept if position] == [0, 1, 2]

    play(tmp_path, story)


def test_what_is_larger_than_the_topic_takes_is_refused_before_it_is_spooled(tmp_path: Path) -> None:
    async def story(kafka: PlayedKafka, outlet: SpoolingPublisher, spool: Spool) -> None:
        kafka.away = True
        with pytest.raises(RecordRefused):
            await outlet.send(Entry(b"k", b"x" * 1_000_001, []))
        assert spool.empty

    play(tmp_path, story, max_bytes=10**8)


def test_what_is_on_its_way_at_the_end_is_in_the_spool(tmp_path: Path) -> None:
    async def run() -> None:
        kafka, spool = PlayedKafka(), Spool(tmp_path, 10**6)
        await spool.open()
        outlet = SpoolingPublisher(kafka, spool)  # type: ignore[arg-type]
        kafka.away = True
        answer = outlet.send(entry(0))
        await outlet.close()
        assert answer.done()
        again = Spool(tmp_path, 10**6)
        await again.open()
        assert again.records == 1
        await again.close()

    asyncio.run(run())


def test_what_waited_in_the_spool_is_made_fit_for_the_kafka_that_came_and_waits_until_it_can_be(tmp_path: Path) -> None:
    asked: list[str] = []

    async def refit() -> Callable[[bytes], bytes]:
        asked.append("refit")
        if len(asked) < 3:
            raise DependencyDown("no pins yet")
        return lambda value: b"fit " + value

    async def run() -> None:
        first = Spool(tmp_path, 10**6)
        await first.open()
        await first.put(entry(1))
        await first.close()
        kafka, spool = PlayedKafka(), Spool(tmp_path, 10**6)
        await spool.open()
        outlet = SpoolingPublisher(kafka, spool, refit=refit)  # type: ignore[arg-type]
        draining = asyncio.create_task(outlet.run())
        try:
            await eventually(lambda: spool.empty)
        finally:
            draining.cancel()
            await outlet.close()
        assert kafka.log == [b"fit 1"]

    asyncio.run(run())
