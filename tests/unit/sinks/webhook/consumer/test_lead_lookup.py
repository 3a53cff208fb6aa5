"""Reading leads where references point."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

from confluent_kafka import TopicPartition

from nigredo.settings import Settings
from schemas.topics import LEADS
from sinks.webhook.consumer.lead_lookup import DEADLINE_S, LeadLookup


class StuckConsumer:
    """Its log has an end that it never reaches."""

    def __init__(self) -> None:
        self.reads = 0
        self.closed = False

    def get_watermark_offsets(self, *_: Any, **__: Any) -> tuple[int, int]:
        return 0, 100

    def consume(self, *_: Any) -> list[Any]:
        self.reads += 1
        time.sleep(0.02)  # As a read takes, in the reader's own thread.
        return []

    def position(self, _: Any) -> list[TopicPartition]:
        return [TopicPartition(LEADS, 0, 0)]

    def assign(self, _: Any) -> None: ...

    def unassign(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_a_reader_that_is_closed_does_not_finish_what_it_reads() -> None:
    """Hundreds of references may be read at once, each within its own deadline; a process that ends cannot wait."""

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
