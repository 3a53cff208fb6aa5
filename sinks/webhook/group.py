"""One member of an endpoint's consumer group: what is assigned, read, paused, and the only place that commits.

The consumer belongs to one thread, where its callbacks run too; what the event loop shares with it is behind a lock.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from nigredo import metrics
from nigredo.clock import from_ms, since_boot_s, utc_now
from nigredo.errors import NigredoError, StartRefused
from nigredo.kafka import client_config
from nigredo.record import Record, record_of
from nigredo.settings import Settings
from nigredo.telemetry import get_logger
from schemas.topics import LEADS, WEBHOOK_REPLAYS
from sinks.webhook.counting import tell_open
from sinks.webhook.watermark import Place, Progress, Ticket

log = get_logger()
T = TypeVar("T")

POLL_S = 0.1
BATCH_MAX = 500
CALL_TIMEOUT_S = 10.0
WINDOW_MAX = 5000
"""Records of a partition that may be done above one that is not; past it the partition waits."""
INHERITED_MAX = 2 * WINDOW_MAX
"""Of the records above the committed offset an earlier process may have done so many: the window, and what was done
since its last commit."""
CLOCKS_DIFFER = timedelta(minutes=1)
HEARD_FROM_SHARE = 1 / 4
"""Of the session's time; with nothing to commit for so long, the broker is asked all the same."""
HAND_OVER_WITHIN_S = 7.0
"""How long a revocation waits for attempts under way. The broker waits for minutes."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many more records of each kind are wanted; of those that refer to waiting attempts, as many as there are."""

    leads: int
    replays: int
    paused: bool


@dataclass(slots=True)
class Partition:
    """One assigned partition of the leads. `counts_since`: deliveries made after it are not made again."""

    counts_since: datetime
    own_from: int
    """Nothing at or after this offset was done before this assignment: the log ended here, or enough was read."""
    taken: int = 0
    begun: dict[int, datetime] = field(default_factory=dict)
    """Since when each record is in hand, oldest first."""
    sending: dict[UUID, asyncio.Event] = field(default_factory=dict)
    delivered: asyncio.Task[dict[UUID, datetime]] | None = field(default=None)
    delivered_max: int = 0

    def take(self, offset: int) -> None:
        """Note that a record is in hand."""
        self.begun[offset] = utc_now()
        self.taken += 1
        if self.taken == INHERITED_MAX:
            self.own_from = min(self.own_from, offset)

    def metadata(self, watermark: int) -> str:
        """Return since when deliveries matter to whoever goes on from the watermark, in milliseconds.

        What is done above the oldest open record was begun after it, and so delivered after it, unless an earlier
        process did it: as long as that may be, nothing is said that was not said before.
        """
        since = self.counts_since
        if watermark >= self.own_from:
            since = max(since, next(iter(self.begun.values()), utc_now()) - CLOCKS_DIFFER)
        return str(int(since.timestamp() * 1000))


class Group:
    """A membership, from `join` to `leave`."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        topics: Sequence[str],
        *,
        changed: Callable[[Sequence[Place]], None],
        busy: Callable[[], bool],
        clock: Callable[[], float] = since_boot_s,
    ) -> None:
        """changed: called in the consumer's thread with what is assigned from now on, perhaps nothing.

        busy: asked there too, whether attempts are under way. clock: must go on while the process is frozen.
        """
        self._settings = settings
        self._name = name
        self._topics = topics
        self._changed = changed
        self._busy = busy
        self._ending = False
        self._lock = threading.Lock()
        self._progress = Progress()
        self._leads: dict[int, Partition] = {}
        self._committed: dict[Place, TopicPartition] = {}
        self._paused: set[Place] = set()
        self._full: set[Place] = set()
        self._assignments = 0
        self._fatal: NigredoError | None = None
        # Not the pool that everybody shares: names are resolved there, and a slow one would cost the membership.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="consumer")
        self._clock = clock
        self._session_s = settings.kafka_session_timeout_s
        self._heard_at = clock() - self._session_s
        session_ms = int(self._session_s * 1000)
        self._consumer = Consumer(
            client_config(settings, name)
            | {
                "group.id": name,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                # Never guess: an offset that is gone is for a person to decide about.
                "auto.offset.reset": "error",
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": session_ms // 4,
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": 16_384,
            }
        )

    def join(self) -> None:
        """Ask for partitions; they come while it is polled."""
        self._consumer.subscribe(
            list(self._topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    async def poll(self, room: Room) -> list[Message]:
        """Return what has come, after waiting at most `POLL_S`. Must be called again and again to stay a member.

        Raises StartRefused when the group lost its place.
        """
        messages = await self._in_thread(lambda: self._poll(room))
        if self._fatal is not None:
            raise self._fatal
        return messages

    async def commit(self) -> None:
        """Commit how far each partition is done."""
        await self._in_thread(lambda: self._commit(self._consumer))

    async def tell(self, endpoint: str) -> None:
        """Tell the metrics what is left to do."""
        with self._lock:
            following = {place[1]: at for place, at in self._progress.positions().items() if place[0] == LEADS}
        oldest = self.oldest_begun
        await self._in_thread(lambda: tell_open(self._consumer, following, endpoint, oldest))

    async def leave(self) -> None:
        """Commit and leave the group."""
        await self.commit()
        await self._in_thread(self._consumer.close)
        self._thread.shutdown(wait=False)

    def take(self, message: Message) -> tuple[Record, Ticket] | None:
        """Begin a record; None when it is not to be handled. Raises StartRefused for a place that is gone."""
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._AUTO_OFFSET_RESET:
                raise self._hole(message.topic() or "", message.partition() or 0)
            log.warning("consumer error", error=error.name())
            return None
        record = record_of(message)
        with self._lock:
            ticket = self._progress.begin((record.topic, record.partition), record.offset)
            if ticket is None:
                return None
            if record.topic == LEADS:
                self._leads[record.partition].take(record.offset)
        return record, ticket

    def holds(self, ticket: Ticket) -> bool:
        """Say whether the assignment under which a record was begun still holds, and is not about to end."""
        with self._lock:
            return not self._ending and self._progress.holds(ticket)

    def finish(self, ticket: Ticket) -> None:
        """Count a record as done, unless its assignment is over."""
        with self._lock:
            if not self._progress.finish(ticket):
                return
            if ticket.place[0] == LEADS:
                self._leads[ticket.place[1]].begun.pop(ticket.offset, None)
        metrics.RECORDS_HANDLED.of(ticket.place[0]).inc()

    def positions(self) -> dict[Place, int]:
        """Return how far each assigned partition may be committed."""
        with self._lock:
            return self._progress.positions()

    def partition(self, number: int) -> Partition | None:
        """Return an assigned partition of the leads."""
        with self._lock:
            return self._leads.get(number)

    @property
    def ours_until(self) -> float:
        """Until when, by the clock, nobody else can have been given what is assigned here.

        A member of which the broker hears nothing for the session's time loses its partitions, and learns of it only
        once it can be told. So a process that was frozen must not go by what it knows: it asks before it sends.
        """
        return self._heard_at + self._session_s

    @property
    def oldest_begun(self) -> datetime | None:
        """Since when the oldest lead is in hand."""
        with self._lock:
            return min((next(iter(p.begun.values())) for p in self._leads.values() if p.begun), default=None)

    @property
    def assigned(self) -> int:
        """How many partitions of the leads this member has."""
        with self._lock:
            return len(self._leads)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # --- in the consumer's thread, callbacks inside `poll` ------------------------------------------------------------

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """Seed each partition from its committed offset. An error is kept for `poll`: here it would be lost."""
        try:
            committed = consumer.committed(assigned, timeout=CALL_TIMEOUT_S)
            ends = {at.partition: _end(consumer, at) for at in assigned if at.topic == LEADS}
        except KafkaException as error:
            self._fatal = StartRefused(f"the offsets of {self._name} cannot be read: {error.args[0].name()}")
            return
        if missing := [f"{at.topic}[{at.partition}]" for at in committed if at.offset == OFFSET_INVALID]:
            self._fatal = StartRefused(f"group {self._name} has no offset for {', '.join(missing)}")
            return
        with self._lock:
            self._progress.assigned({(at.topic, at.partition): at.offset for at in committed})
            self._leads = {
                at.partition: Partition(_counts_since(at.metadata), ends[at.partition])
                for at in committed
                if at.topic == LEADS
            }
            self._paused, self._full, self._committed = set(), set(), {}
            self._assignments += 1
        consumer.assign([TopicPartition(at.topic, at.partition, at.offset) for at in committed])
        # What was paused stays so over an assignment, unless it is said otherwise: nobody would ever resume it.
        consumer.resume([TopicPartition(at.topic, at.partition) for at in committed])
        # At once, so that a crash before the first delivery leaves a place that says since when deliveries count.
        self._commit(consumer, every=True)
        self._changed([(at.topic, at.partition) for at in committed])

    def _revoked(self, consumer: Consumer, _: list[TopicPartition]) -> None:
        """Begin no further attempt, and let those under way get on record: then the next owner repeats none."""
        with self._lock:
            self._ending = True
        until = time.monotonic() + HAND_OVER_WITHIN_S
        while self._busy() and time.monotonic() < until:
            time.sleep(0.02)
        self._commit(consumer)
        self._lost(consumer, _)

    def _lost(self, _: Consumer, __: list[TopicPartition]) -> None:
        with self._lock:
            self._progress.revoked()
            self._ending = False
            self._leads = {}
        self._changed([])

    def _commit(self, consumer: Consumer, *, every: bool = False) -> None:
        """Commit how far each partition is done. A commit that fails costs a repetition, never a lead.

        The broker takes commits of its members alone, and counts their session from then: so each is a sign that what
        is assigned is still ours. With nothing new to commit, an old one is repeated.
        """
        asked_at = self._clock()
        with self._lock:
            positions = self._progress.positions()
            offsets = [
                TopicPartition(*place, offset, self._leads[place[1]].metadata(offset) if place[0] == LEADS else "")
                for place, offset in positions.items()
                if every or place not in self._committed or self._committed[place].offset != offset
            ]
            if not offsets and asked_at - self._heard_at >= HEARD_FROM_SHARE * self._session_s:
                offsets = [at for place, at in self._committed.items() if place in positions][:1]
        if not offsets:
            return
        try:
            answers = consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.warning("offsets were not committed", error=error.args[0].name())
            return
        taken = {(at.topic, at.partition) for at in answers if at.error is None}
        if taken:
            self._heard_at = asked_at
        with self._lock:
            sent = {(at.topic, at.partition): at for at in offsets}
            self._committed.update({place: at for place, at in sent.items() if place in taken})

    def _poll(self, room: Room) -> list[Message]:
        self._pause_or_resume(room)
        first = self._consumer.poll(POLL_S)
        if first is None:
            return []
        more = min(BATCH_MAX, room.leads or BATCH_MAX, room.replays or BATCH_MAX) - 1
        assignments = self._assignments
        messages = [first, *self._consumer.consume(more, 0)] if more else [first]
        if self._assignments == assignments:
            return messages
        # The partitions came back in the middle of it. What the assignment before read is further on than this one
        # begins: taken for its own, it would have all before it passed over as old news.
        with self._lock:
            at = [TopicPartition(*place, offset) for place, offset in self._progress.positions().items()]
        if at:
            self._consumer.assign(at)
        return []

    def _pause_or_resume(self, room: Room) -> None:
        """Pause what cannot be worked on; a partition whose window was full goes on when half of it is done."""
        no_room = {LEADS: room.leads <= 0, WEBHOOK_REPLAYS: room.replays <= 0}
        with self._lock:
            places = self._progress.positions()
            self._full = {
                place
                for place in places
                if self._progress.open(place) >= (WINDOW_MAX // 2 if place in self._full else WINDOW_MAX)
            }
            wanted = {place for place in places if room.paused or no_room.get(place[0], False)} | self._full
        for changed, change in (
            (wanted - self._paused, self._consumer.pause),
            ((self._paused & set(places)) - wanted, self._consumer.resume),
        ):
            if changed:
                change([TopicPartition(*place) for place in changed])
        self._paused = wanted

    def _hole(self, topic: str, partition: int) -> StartRefused:
        """Say what of the log is missing, and what helps: going on would pass it over in silence."""
        with self._lock:
            stood = self._progress.positions().get((topic, partition))
        try:
            marks = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=CALL_TIMEOUT_S)
        except KafkaException:
            marks = None
        if stood is None or marks is None:
            return StartRefused(f"the place of {self._name} in {topic} partition {partition} is gone from the log")
        missing = f"offsets {stood} to {marks[0] - 1} are gone" if stood < marks[0] else f"its end is {marks[1]}"
        # A rewind is one of the leads: for what refers to them it would send leads again, and mend nothing.
        how = (
            f"nigredo rewind {self._name} --accept-gaps --to-offset {partition}:{marks[0]}"
            if topic == LEADS
            else f"set it to {marks[0]} with Kafka's own tools"
        )
        return StartRefused(
            f"group {self._name} stands at {topic} partition {partition} offset {stood}, but {missing}; to go on"
            f" without them: {how}"
        )


def _counts_since(metadata: str | None) -> datetime:
    """Return since when deliveries of a partition count as made.

    An offset that somebody else committed, as Kafka's own tools do, has no such time: whoever set it wants everything
    from there on sent, also what was delivered before.
    """
    return from_ms(int(metadata)) if metadata and metadata.isdecimal() else utc_now()


def _end(consumer: Consumer, at: TopicPartition) -> int:
    """Return where a partition ends; an offset that is never reached when nobody says, as while it has no leader."""
    try:
        marks = consumer.get_watermark_offsets(TopicPartition(at.topic, at.partition), timeout=CALL_TIMEOUT_S)
    except KafkaException:
        marks = None
    return sys.maxsize if marks is None else int(marks[1])
