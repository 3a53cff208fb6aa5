from __future__ import annotations

import asyncio
import pickle
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

from nigredo.clock import utc_now
from nigredo.kafka.parking import Before, Bounds, Parking
from nigredo.kafka.record import Record
from nigredo.observability.health import Health
from schemas.events import WebhookRetry
from schemas.topics import LEADS, retry_topic
from sinks.webhook.dispatch.delay_queue import Delayed
from sinks.webhook.dispatch.record_handler import RecordHandler, Reference
from sinks.webhook.loop import RETRIES_MAX, ConsumeLoop
from sinks.webhook.model import Ticket

TOPIC = retry_topic("fibonacci", "1m")
NOW = utc_now()


class FakeGroup:
    """A membership that never ends, in which no reference is settled and no partition of the leads is assigned."""

    def __init__(self) -> None:
        self.finished: list[int] = []

    def holds(self, _: Ticket) -> bool:
        return True

    def finish(self, ticket: Ticket) -> None:
        self.finished.append(ticket.offset)

    def partition(self, _: int) -> None:
        return None

    def positions(self) -> dict[Any, int]:
        return {}


class FakeAttempts:
    """An attempt log in which no reference is settled."""

    async def settled_after(self, _: Any) -> dict[Any, int]:
        return {}


async def schedule(handler: RecordHandler, offset: int, lead_id: UUID, *, replay: bool) -> None:
    """Schedule a retry that was due an hour ago, in the order of the offsets."""
    now = utc_now()
    retry = WebhookRetry(
        lead_id=lead_id,
        endpoint="fibonacci",
        attempts=1,
        not_before=now - timedelta(hours=1) + timedelta(milliseconds=offset),
        first_attempt_at=now,
        lead_partition=0,
        lead_offset=offset,
        replay=replay,
    )
    record = Record(TOPIC, 0, offset, now, str(lead_id).encode(), pickle.dumps(retry), ())
    await handler.schedule(record, Ticket(1, (TOPIC, 0), offset))


def handler_of(group: FakeGroup) -> RecordHandler:
    made: Any = RecordHandler
    return cast(
        RecordHandler,
        made(
            "sink",
            SimpleNamespace(name="fibonacci"),
            group,
            SimpleNamespace(ours=group.holds),
            FakeAttempts(),
            leads=None,
            codec=SimpleNamespace(is_cached=lambda _: True, decode=lambda _, value: pickle.loads(value)),
            publisher=None,
            parking=Parking(Bounds(in_a_row_max=3, share_max=1.0), Health("sink"), lambda _: Before()),
        ),
    )


def test_retries_of_replays_do_not_hold_up_a_live_leads_retry() -> None:
    async def scenario() -> None:
        handler, started = handler_of(FakeGroup()), asyncio.Queue[UUID]()

        async def reference(delayed: Delayed[Reference]) -> None:
            started.put_nowait(delayed.item.event.lead_id)
            # Behind live leads a replay may wait for a long time.
            await asyncio.Event().wait()

        cast(Any, handler).reference = reference
        session, live = object.__new__(ConsumeLoop), uuid4()
        cast(Any, session)._handler = handler
        session._running = {kind: set() for kind in ("lead", "retry", "replay retry", "replay")}
        for offset in range(RETRIES_MAX):
            await schedule(handler, offset, uuid4(), replay=True)
        session._start_due()
        await schedule(handler, RETRIES_MAX, live, replay=False)
        session._start_due()
        await asyncio.sleep(0)

        assert live in {started.get_nowait() for _ in range(started.qsize())}

    asyncio.run(scenario())


def test_only_the_newest_reference_of_a_lead_is_queued_whether_it_is_a_replays_or_not() -> None:
    async def scenario() -> None:
        group, lead_id = FakeGroup(), uuid4()
        handler = handler_of(group)
        await schedule(handler, 1, lead_id, replay=False)
        await schedule(handler, 2, lead_id, replay=True)
        assert (group.finished, handler.retries_waiting) == ([1], 1)
        await schedule(handler, 3, lead_id, replay=False)
        assert (group.finished, handler.retries_waiting) == ([1, 2], 1)

    asyncio.run(scenario())


def test_a_lead_that_arrives_when_its_schema_is_cached_does_not_overtake_leads_that_waited_for_it() -> None:
    async def scenario() -> None:
        known, ask, decoded = threading.Event(), threading.Event(), list[int]()

        def decode(_: str, value: bytes) -> int:
            if not known.is_set():
                assert ask.wait(10)
                known.set()
            return value[-1]

        handler = handler_of(FakeGroup())
        cast(Any, handler)._codec = SimpleNamespace(is_cached=lambda _: known.is_set(), decode=decode)

        async def lead(number: int) -> None:
            value = bytes([0, 0, 0, 0, 7, number])
            decoded.append(cast(int, await handler._decoded(Record(LEADS, 0, number, NOW, b"", value, ()))))

        leads = [asyncio.create_task(lead(number)) for number in range(5)]
        await asyncio.sleep(0)
        ask.set()
        while (
            len(leads) < 40
        ):  # One per iteration of the event loop, also in the iteration in which the schema arrives.
            leads.append(asyncio.create_task(lead(len(leads))))
            await asyncio.sleep(0)
            if len(leads) == 6:
                await asyncio.to_thread(known.wait, 10)
        await asyncio.gather(*leads)

        assert decoded == sorted(decoded)
        assert not handler._asking

    asyncio.run(scenario())
