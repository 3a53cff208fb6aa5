"""Consume loop of one group membership, from joining to leaving: polls while there is room, dispatches the records."""

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
"""Most leads in flight, not counting those that wait for their next attempt; no more are consumed."""
RETRIES_MAX = 500
"""Most due retries in flight. More start once half of them are done."""
REPLAYS_MAX = 200
"""Most replays in flight. More start once half of them are done, so that their leads are looked up in batches."""
REPLAYS_AHEAD_MAX = 2000
"""Most replays consumed ahead, queued or in flight; then the topic is paused until half of them are done."""
FULL_PATIENCE_S = 1.0
"""Longest wait for room before the partitions are paused, because pausing discards the client's prefetched records."""
COMMIT_EVERY_S = 0.5
STOP_GRACE_S = 7.0

LEAD, RETRY, REPLAY_RETRY, REPLAY = "lead", "retry", "replay retry", "replay"


class ConsumeLoop:
    """Runs one membership. Call `run` once."""

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
        """make_handler: builds the record handler for this membership's consumer.

        partitions: number of partitions of `nigredo.leads`, over all members. trail: positions that earlier memberships
        have read.
        """
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
            busy=lambda: admission.in_flight > 0,
            trail=trail,
        )
        self._handler = make_handler(self._group)
        self._running: dict[str, set[asyncio.Task[None]]] = {
            kind: set() for kind in (LEAD, RETRY, REPLAY_RETRY, REPLAY)
        }
        self._references: asyncio.Queue[tuple[Record, Ticket]] = asyncio.Queue()
        self._room_made = asyncio.Event()
        self._replays_full = False
        self._assigned = 0

    def describe(self) -> Mapping[str, Any]:
        """Return this membership's fields of the health document. Called from any thread."""
        oldest = self._group.oldest_begun
        return {
            "partitions": self._group.assigned,
            "partitions_stopped": sorted(self._group.stopped.values()),
            "in_hand": sum(map(len, self._running.values())),
            "retries_waiting": self._handler.retries_waiting,
            "oldest_in_hand_s": 0.0 if oldest is None else round((utc_now() - oldest).total_seconds(), 1),
        }

    async def run(self, until: Callable[[], bool]) -> None:
        """Deliver until `until` returns True or the group must be joined again; then finish attempts and leave.

        until: called several times a second.
        """
        self._group.join()
        scheduling = asyncio.create_task(self._schedule())
        last_commit = time.monotonic()
        try:
            while not (until() or self._must_rejoin()):
                await self._wait_for_room()
                for message in await self._group.poll(self._room()):
                    self._take(message)
                self._start_due()
                if time.monotonic() - last_commit >= COMMIT_EVERY_S:
                    last_commit = time.monotonic()
                    await self._group.commit()
                    await self._report()
                self._admission.trust(self._group.ours_until)
        finally:
            await self._end(scheduling)

    async def _report(self) -> None:
        self._report_health()
        endpoint = self._endpoint.name
        metrics.WEBHOOK_BREAKER_OPEN.of(endpoint).set(not self._admission.breaker.closed)
        metrics.WEBHOOK_RETRIES_WAITING.of(endpoint).set(self._handler.retries_waiting + self._handler.resting)
        await self._group.report_metrics(endpoint)

    def _must_rejoin(self) -> bool:
        """Return whether a new client must join: offsets or an assignment are missing, or no pending record arrives."""
        if (reason := self._group.unusable) is not None:
            self._health.waiting(reason)
            log.warning("membership unusable, joining again", reason=reason)
            return True
        for (topic, partition), seconds in sorted(self._group.stalled.items())[:1]:
            self._health.waiting(f"records of {topic} partition {partition}: none received for {seconds:.0f} s")
            log.error(
                "partition stalled, joining again", topic=topic, partition=partition, seconds=round(seconds),
                partitions=len(self._group.stalled),
            )  # fmt: skip
            return True
        return False

    # --- room ---------------------------------------------------------------------------------------------------------

    @property
    def _leads_in_flight(self) -> int:
        return len(self._running[LEAD]) - self._handler.resting

    async def _wait_for_room(self) -> None:
        """Wait until half of the leads in flight are done, if LEADS_MAX is reached; at most FULL_PATIENCE_S.

        After that the loop polls only to stay a member of the group.
        """
        if self._leads_in_flight < LEADS_MAX or self._admission.paused:
            return
        self._room_made.clear()
        try:
            await asyncio.wait_for(self._room_made.wait(), FULL_PATIENCE_S)
        except TimeoutError:
            return

    def _room(self) -> Room:
        replays = len(self._running[REPLAY]) + len(self._handler.replays) + self._references.qsize()
        # With hysteresis: pausing discards prefetched records, so a pause per record would slow leads down too.
        self._replays_full = replays >= (REPLAYS_AHEAD_MAX // 2 if self._replays_full else REPLAYS_AHEAD_MAX)
        return Room(
            leads=max(0, LEADS_MAX - self._leads_in_flight),
            replays=0 if self._replays_full else REPLAYS_AHEAD_MAX - replays,
            paused=self._admission.paused,
        )

    # --- records ------------------------------------------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        begun = self._group.take(message)
        if begun is None:
            return
        if begun[0].topic == LEADS:
            self._start(LEAD, self._handler.lead(*begun))
        else:
            self._references.put_nowait(begun)

    async def _schedule(self) -> None:
        """Queue references one at a time, so that a tombstone does not overtake the reference that it cancels."""
        while True:
            await self._handler.schedule(*await self._references.get())
            await asyncio.sleep(0)  # Hundreds arrive at once, and a live lead must not wait for all of them.

    def _start_due(self) -> None:
        now = utc_now()
        for kind, queue, most in (
            (RETRY, self._handler.retries, RETRIES_MAX),
            (REPLAY_RETRY, self._handler.replay_retries, REPLAYS_MAX),
            (REPLAY, self._handler.replays, REPLAYS_MAX),
        ):
            if (running := len(self._running[kind])) <= most // 2:
                for delayed in queue.due(now, most - running):
                    self._start(kind, self._handler.reference(delayed))

    def _start(self, kind: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running[kind].add(task)
        task.add_done_callback(lambda done: self._done(kind, done))

    def _done(self, kind: str, task: asyncio.Task[None]) -> None:
        self._running[kind].discard(task)
        if self._leads_in_flight <= LEADS_MAX // 2:
            self._room_made.set()

    # --- assignments --------------------------------------------------------------------------------------------------

    def _changed_in_thread(self, assigned: Sequence[PartitionId]) -> None:
        # The loop runs this before it sees a record of the new assignment, because callbacks keep their order.
        self._loop.call_soon_threadsafe(self._changed, assigned)

    def _changed(self, assigned: Sequence[PartitionId]) -> None:
        """Drop the previous assignment's queued records and set this member's share of the endpoint's rate limit."""
        self._handler.forget()
        lead_partitions = sum(topic == LEADS for topic, _ in assigned)
        self._assigned = len(assigned)
        if lead_partitions:
            self._admission.limit(self._endpoint.rate_per_s * lead_partitions / max(lead_partitions, self._partitions))
        self._report_health()

    def _report_health(self) -> None:
        """Report ready once every assigned partition is read, because a stopped one holds its leads back for good."""
        if stopped := sorted(self._group.stopped.values()):
            further = f" (and {counted(len(stopped) - 1, 'more partition')})" if len(stopped) > 1 else ""
            self._health.waiting(stopped[0] + further)
        elif unchecked := self._group.unchecked:
            self._health.waiting(f"the positions of {counted(unchecked, 'partition')}, to be compared with the log")
        elif self._assigned:
            self._health.ready()
        else:
            self._health.waiting("an assignment of partitions")

    async def _end(self, scheduling: asyncio.Task[None]) -> None:
        """Wait up to STOP_GRACE_S for attempts in flight, cancel the rest, commit and leave the group."""
        self._handler.stop()
        scheduling.cancel()
        running = set().union(*self._running.values())
        if running:
            _, late = await asyncio.wait(running, timeout=STOP_GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(scheduling, return_exceptions=True)
        await self._group.leave()
