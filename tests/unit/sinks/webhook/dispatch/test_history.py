"""Delivery history: loads that fail, loads whose waiting tasks are gone, and the order of leads that waited."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from nigredo.clock import utc_now
from nigredo.errors import DependencyDown
from schemas.topics import LEADS, retry_topic
from sinks.webhook.consumer.partitions import Partition
from sinks.webhook.dispatch.history import DeliveryHistory
from tests.support.fake_faust import until

PLACE = (retry_topic("fibonacci", "1m"), 0)
NOW = utc_now()


class FakeLog:
    """An attempt log that also gives the membership's positions. Loads fail while `down`."""

    def __init__(self) -> None:
        self.down = False
        self.loads = self.ended = 0
        self.delivered: dict[UUID, Any] = {}

    async def delivered_since(self, *_: Any) -> dict[UUID, Any]:
        await self._load()
        return dict(self.delivered)

    async def settled_after(self, at: dict[Any, int]) -> dict[Any, int]:
        assert set(at) == {PLACE}
        await self._load()
        return {(PLACE, b"k"): 5}

    async def _load(self) -> None:
        self.loads += 1
        await asyncio.sleep(0.01)
        self.ended += 1
        if self.down:
            raise DependencyDown("Kafka is away")

    def positions(self) -> dict[Any, int]:
        return {PLACE: 1, (LEADS, 0): 9}


def history_of(log: FakeLog) -> DeliveryHistory:
    return DeliveryHistory(cast(Any, log), cast(Any, log))


def test_a_failed_load_is_repeated_and_a_successful_one_is_cached() -> None:
    async def scenario() -> None:
        log, partition, lead_id = FakeLog(), Partition(NOW, 0), uuid4()
        history, log.down, log.delivered[lead_id] = history_of(log), True, NOW
        for _ in range(2):
            with pytest.raises(DependencyDown):
                await history.was_delivered(lead_id, partition, 0)
        log.down = False
        assert await history.was_delivered(lead_id, partition, 0)
        assert not await history.was_delivered(lead_id, partition, 0, since=NOW)
        assert await history.was_delivered(lead_id, partition, 0, since=NOW - timedelta(seconds=1))
        assert not await history.was_delivered(uuid4(), partition, 0)
        assert log.loads == 3

    asyncio.run(scenario())


def test_a_lead_that_arrives_when_the_deliveries_are_loaded_does_not_overtake_leads_that_waited() -> None:
    async def scenario() -> None:
        log, partition, passed = FakeLog(), Partition(NOW, 0), list[int]()
        history = history_of(log)

        async def lead(number: int) -> None:
            await history.was_delivered(uuid4(), partition, 0)
            passed.append(number)

        leads = [asyncio.create_task(lead(number)) for number in range(5)]
        while len(leads) < 40:  # One per iteration of the event loop, also in the iteration in which the load ends.
            await asyncio.sleep(0 if log.ended else 0.001)
            leads.append(asyncio.create_task(lead(len(leads))))
        await asyncio.gather(*leads)

        assert log.ended == 1
        assert passed == sorted(passed)

    asyncio.run(scenario())


def test_a_reference_is_settled_by_a_later_tombstone_which_is_loaded_once_per_assignment() -> None:
    async def scenario() -> None:
        log = FakeLog()
        history = history_of(log)
        assert await history.settled(PLACE, b"k", after=4)
        assert not await history.settled(PLACE, b"k", after=5)
        assert not await history.settled(PLACE, b"another", after=4)
        assert log.loads == 1
        history.forget()
        assert await history.settled(PLACE, b"k", after=4)
        assert log.loads == 2

    asyncio.run(scenario())


def test_a_load_that_fails_after_its_waiting_tasks_are_cancelled_is_not_reported() -> None:
    reported: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        log, partition = FakeLog(), Partition(NOW, 0)
        history, log.down = history_of(log), True
        waiting = [
            asyncio.create_task(history.settled(PLACE, b"k", after=1)),
            asyncio.create_task(history.was_delivered(uuid4(), partition, 0)),
        ]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        history.forget()
        partition.delivered = None
        await until(lambda: log.ended == 2)
        await asyncio.sleep(0)
        del waiting, task
        gc.collect()

    asyncio.run(scenario())

    assert reported == []
