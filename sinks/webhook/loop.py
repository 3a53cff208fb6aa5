"""One membership of the group, from joining to leaving: takes records while there is room, and sends them their way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from confluent_kafka import Message

from nigredo.clock import utc_now
from nigredo.endpoints.endpoint import Endpoint
from nigredo.kafka.positions.log_trail import Trail
from nigredo.kafka.record import Record
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.topics import LEADS, WEBHOOK_REPLAYS, retry_topics
from sinks.webhook.consumer.group_consumer import GroupConsumer
from sinks.webhook.consumer.partitions import Room
from sinks.webhook.delivery.admission import AdmissionControl
from sinks.webhook.dispatch.record_handler import RecordHandler
from sinks.webhook.model import PartitionId, Ticket

log = get_logger()

LEADS_MAX = 500
"""Leads in hand that do not wait for their next attempt; more are not taken from the log."""
RETRIES_MAX = 500
REPLAYS_MAX = 200
"""References in hand whose time has come. More follow when half of them are done: their leads are read together."""
REPLAYS_AHEAD_MAX = 2000
"""Replays that are read ahead; with so many the topic is paused, until half of them are done."""
FULL_PATIENCE_S = 1.0
"""How long to wait for room before the partitions are paused: pausing throws away what was fetched ahead."""
COMMIT_EVERY_S = 0.5
STOP_GRACE_S = 7.0

LEAD, RETRY, PUT_OFF, REPLAY = "lead", "retry", "put off", "replay"


class ConsumeLoop:
    """`run` it once."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        endpoint: Endpoint,
        admission: AdmissionControl,
        make_handler: Callable[[GroupConsumer], RecordHandler],
        health: Health,
        *,
        partitions: int,
        trail: Trail,
    ) -> None:
        """partitions: of the leads, over all members. trail: what sessions before this one have read."""
        self._endpoint = endpoint
        self._admission = admission
        self._health = health
        self._partitions = partitions
        self._loop = asyncio.get_running_loop()
        topics = [LEADS, *retry_topics(endpoint.name), WEBHOOK_REPLAYS]
        self._group = GroupConsumer(
            settings,
            name,
            topics,
            changed=self._changed_in_thread,
            busy=lambda: admission.under_way > 0,
            trail=trail,
        )
        self._handler = make_handler(self._group)
        self._running: dict[str, set[asyncio.Task[None]]] = {kind: set() for kind in (LEAD, RETRY, PUT_OFF, REPLAY)}
        self._notes: asyncio.Queue[tuple[Record, Ticket]] = asyncio.Queue()
        self._room_made = asyncio.Event()
        self._replays_full = False
        self._assigned = 0

    def describe(self) -> Mapping[str, Any]:
        """Return what the health document says of it; for any thread."""
        oldest = self._group.oldest_begun
        return {
            "partitions": self._group.assigned,
            "partitions_stopped": sorted(self._group.stopped.values()),
            "in_hand": sum(map(len, self._running.values())),
            "retries_waiting": self._handler.retries_waiting,
            "oldest_in_hand_s": 0.0 if oldest is None else round((utc_now() - oldest).total_seconds(), 1),
        }

    async def run(self, until: Callable[[], bool]) -> None:
        """Deliver until told to end, or nothing can arrive, then finish what is under way and leave the group.

        until: asked several times a second.
        """
        self._group.join()
        noting = asyncio.create_task(self._note())
        last_commit = time.monotonic()
        try:
            while not (until() or self._useless()):
                await self._for_room()
                for message in await self._group.poll(self._room()):
                    self._take(message)
                self._start_due()
                if time.monotonic() - last_commit >= COMMIT_EVERY_S:
                    last_commit = time.monotonic()
                    await self._group.commit()
                    await self._tell()
                self._admission.trust(self._group.ours_until)
        finally:
            await self._end(noting)

    async def _tell(self) -> None:
        self._report_health()
        endpoint = self._endpoint.name
        metrics.WEBHOOK_BREAKER_OPEN.of(endpoint).set(not self._admission.breaker.closed)
        metrics.WEBHOOK_RETRIES_WAITING.of(endpoint).set(self._handler.retries_waiting + self._handler.resting)
        await self._group.tell(endpoint)

    def _useless(self) -> bool:
        """Say whether the offsets are not known, or records are there of which none arrives to this client."""
        if (reason := self._group.unread) is not None:
            self._health.waiting(reason)
            log.warning("the group's offsets cannot be read", reason=reason)
            return True
        for (topic, partition), seconds in sorted(self._group.stalled.items())[:1]:
            self._health.waiting(f"a record of {topic} partition {partition}: none arrives since {seconds:.0f} s")
            log.error(
                "no record arrives though there are some", topic=topic, partition=partition, seconds=round(seconds),
                partitions=len(self._group.stalled),
            )  # fmt: skip
            return True
        return False

    # --- room ---------------------------------------------------------------------------------------------------------

    @property
    def _leads_in_hand(self) -> int:
        return len(self._running[LEAD]) - self._handler.resting

    async def _for_room(self) -> None:
        """With the hand full, wait until half of it is done, for a while: then it is polled only to stay a member."""
        if self._leads_in_hand < LEADS_MAX or self._admission.paused:
            return
        self._room_made.clear()
        try:
            await asyncio.wait_for(self._room_made.wait(), FULL_PATIENCE_S)
        except TimeoutError:
            return

    def _room(self) -> Room:
        replays = len(self._running[REPLAY]) + len(self._handler.replays) + self._notes.qsize()
        # Not record by record: pausing throws away what was fetched ahead, and one at a time leads would come so too.
        self._replays_full = replays >= (REPLAYS_AHEAD_MAX // 2 if self._replays_full else REPLAYS_AHEAD_MAX)
        return Room(
            leads=max(0, LEADS_MAX - self._leads_in_hand),
            replays=0 if self._replays_full else REPLAYS_AHEAD_MAX - replays,
            paused=self._admission.paused,
        )

    # --- records ------------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        taken = self._group.take(message)
        if taken is None:
            return
        if taken[0].topic == LEADS:
            self._start(LEAD, self._handler.lead(*taken))
        else:
            self._notes.put_nowait(taken)

    async def _note(self) -> None:
        """One after the other, since a tombstone must not pass by what it takes out."""
        while True:
            await self._handler.note(*await self._notes.get())
            await asyncio.sleep(0)  # Hundreds come at a time, and a lead must not wait for all of them.

    def _start_due(self) -> None:
        now = utc_now()
        for kind, waiting, most in (
            (RETRY, self._handler.retries, RETRIES_MAX),
            (PUT_OFF, self._handler.put_off, REPLAYS_MAX),
            (REPLAY, self._handler.replays, REPLAYS_MAX),
        ):
            if (running := len(self._running[kind])) <= most // 2:
                for waits in waiting.due(now, most - running):
                    self._start(kind, self._handler.reference(waits))

    def _start(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running[kind].add(task)
        task.add_done_callback(lambda done: self._done(kind, done))

    def _done(self, kind: str, task: asyncio.Task[None]) -> None:
        self._running[kind].discard(task)
        if self._leads_in_hand <= LEADS_MAX // 2:
            self._room_made.set()

    # --- assignments --------------------------------------------------------------------------------------------------

    def _changed_in_thread(self, assigned: Sequence[PartitionId]) -> None:
        # Before the loop hears of the first record of the new assignment: both go through the same door.
        self._loop.call_soon_threadsafe(self._changed, assigned)

    def _changed(self, assigned: Sequence[PartitionId]) -> None:
        """Forget what the assignment before had waiting, and take this member's share of the endpoint's rate."""
        self._handler.forget()
        mine = sum(topic == LEADS for topic, _ in assigned)
        self._assigned = len(assigned)
        if mine:
            self._admission.limit(self._endpoint.rate_per_s * mine / max(mine, self._partitions))
        self._report_health()

    def _report_health(self) -> None:
        """Report ready once every assigned partition is read: one that stands still holds leads back for good."""
        if stopped := sorted(self._group.stopped.values()):
            further = f" (and {counted(len(stopped) - 1, 'more partition')})" if len(stopped) > 1 else ""
            self._health.waiting(stopped[0] + further)
        elif unchecked := self._group.unchecked:
            self._health.waiting(f"the positions of {counted(unchecked, 'partition')}, to be compared with the log")
        elif self._assigned:
            self._health.ready()
        else:
            self._health.waiting("an assignment of partitions")

    async def _end(self, noting: asyncio.Task[None]) -> None:
        """Let what is on its way arrive, commit it, leave the group."""
        self._handler.stop()
        noting.cancel()
        running = set().union(*self._running.values())
        if running:
            _, late = await asyncio.wait(running, timeout=STOP_GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(noting, return_exceptions=True)
        await self._group.leave()
