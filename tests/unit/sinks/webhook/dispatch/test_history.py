"""What is known of the time before an assignment, when reading it fails, and when nobody waits for it any more."""

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
    """The attempts on record, and the membership's positions. Fails while `down`."""

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


def past_of(log: FakeLog) -> DeliveryHistory:
    return DeliveryHistory(cast(Any, log), cast(Any, log))


def test_what_could_not_be_read_is_read_again_and_then_kept() -> None:
    async def scenario() -> None:
        log, partition, lead_id = FakeLog(), Partition(NOW, 0), uuid4()
        past, log.down, log.delivered[lead_id] = past_of(log), True, NOW
        for _ in range(2):
            with pytest.raises(DependencyDown):
                await past.was_delivered(lead_id, partition, 0)
        log.down = False
        assert await past.was_delivered(lead_id, partition, 0)
        assert not await past.was_delivered(lead_id, partition, 0, since=NOW)
        assert await past.was_delivered(lead_id, partition, 0, since=NOW - timedelta(seconds=1))
        assert not await past.was_delivered(uuid4(), partition, 0)
        assert log.loads == 3

    asyncio.run(scenario())


def test_leads_that_come_when_the_deliveries_are_loaded_do_not_overtake_those_that_waited_for_them() -> None:
    async def scenario() -> None:
        log, partition, passed = FakeLog(), Partition(NOW, 0), list[int]()
        past = past_of(log)

        async def lead(number: int) -> None:
            await past.was_delivered(uuid4(), partition, 0)
            passed.append(number)

        leads = [asyncio.create_task(lead(number)) for number in range(5)]
        while len(leads) < 40:  # One at each turn of the loop, also at the one at which the load ends.
            await asyncio.sleep(0 if log.ended else 0.001)
            leads.append(asyncio.create_task(lead(len(leads))))
        await asyncio.gather(*leads)

        assert log.ended == 1
        assert passed == sorted(passed)

    asyncio.run(scenario())


def test_a_reference_is_settled_by_an_end_that_stands_after_it_as_the_present_assignment_knows() -> None:
    async def scenario() -> None:
        log = FakeLog()
        past = past_of(log)
        assert await past.settled(PLACE, b"k", after=4)
        assert not await past.settled(PLACE, b"k", after=5)
        assert not await past.settled(PLACE, b"another", after=4)
        assert log.loads == 1
        past.forget()
        assert await past.settled(PLACE, b"k", after=4)
        assert log.loads == 2

    asyncio.run(scenario())


def test_a_load_that_fails_when_nobody_waits_for_it_any_more_is_no_news() -> None:
    told: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        log, partition = FakeLog(), Partition(NOW, 0)
        past, log.down = past_of(log), True
        waiting = [
            asyncio.create_task(past.settled(PLACE, b"k", after=1)),
            asyncio.create_task(past.was_delivered(uuid4(), partition, 0)),
        ]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        past.forget()
        partition.delivered = None
        await until(lambda: log.ended == 2)
        await asyncio.sleep(0)
        del waiting, task
        gc.collect()

    asyncio.run(scenario())

    assert told == []
