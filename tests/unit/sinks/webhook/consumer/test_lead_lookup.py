"""Lead look-up: closing during a batch."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from confluent_kafka import TopicPartition

from nigredo.settings import Settings
from schemas.topics import LEADS
from sinks.webhook.consumer.lead_lookup import DEADLINE_S, LeadLookup


class StuckConsumer:
    """A consumer whose position never reaches the end offset."""

    def __init__(self) -> None:
        self.reads = 0
        self.closed = False

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 100

    def consume(self, *_: Any) -> list[Any]:
        self.reads += 1
        time.sleep(0.02)  # As long as a real read takes, in the reader's own thread.
        return []

    def position(self, _: Any) -> list[TopicPartition]:
        return [TopicPartition(LEADS, 0, 0)]

    def assign(self, _: Any) -> None: ...

    def unassign(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_close_does_not_wait_for_a_batch_in_flight() -> None:
    """Hundreds of look-ups may be pending, each with its own deadline; a stopping process cannot wait for them."""

    async def scenario() -> None:
        consumer, reader = StuckConsumer(), LeadLookup(Settings.from_environment({}), "sender")
        reader._consumer = cast(Any, consumer)
        reading = asyncio.create_task(reader.read(0, 5, b"k"))
        async with asyncio.timeout(DEADLINE_S / 2):
            while not consumer.reads:  # noqa: ASYNC110 - a thread has no event
                await asyncio.sleep(0.01)
            await reader.close()
        reading.cancel()
        assert consumer.closed

    asyncio.run(scenario())
