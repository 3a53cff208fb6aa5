"""Group consumer: one member of an endpoint's consumer group, and the only code that commits the sink's offsets.

The client belongs to one thread, in which its callbacks run too; a lock guards the state shared with the event loop.
A partition is read only from a position that the log confirms (`sinks/webhook/consumer/positions.py`). Until then the
partition stays assigned and paused, and nothing is committed for it; if the log contradicts the position, for good.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from nigredo.backoff import Backoff
from nigredo.clock import since_boot_s
from nigredo.components import WEBHOOK_SENDER
from nigredo.errors import DependencyDown
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_trail import Trail
from nigredo.kafka.record import Record, record_of
from nigredo.kafka.topic_reader import TopicReader, mark_of
from nigredo.log_position import LogPosition, to_metadata
from nigredo.observability import metrics
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.topics import LEADS, WEBHOOK_REPLAYS
from sinks.webhook.consumer.log_comparison import Compare, LogComparison
from sinks.webhook.consumer.membership import Commits, consumer_config
from sinks.webhook.consumer.offsets import OffsetTracker
from sinks.webhook.consumer.partitions import WINDOW_MAX, Partition, Room, counts_since
from sinks.webhook.consumer.positions import Look, Refused, check
from sinks.webhook.instrumentation import report_lag
from sinks.webhook.model import PartitionId, Ticket

log = get_logger()
T = TypeVar("T")

POLL_S = 0.1
BATCH_MAX = 500
CALL_TIMEOUT_S = 10.0
HAND_OVER_WITHIN_S = 7.0
"""Longest time that a revocation waits for attempts in flight; the broker would wait for minutes."""
LOOK_DEADLINE_S = 10.0
ASSIGNED_WITHIN_S = 60.0
"""Longer than a group of live members takes to rebalance."""
ANSWER_WITHIN_S = 2.0


class GroupConsumer:
    """One membership of the group, from `join` to `leave`."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        topics: Sequence[str],
        *,
        changed: Callable[[Sequence[PartitionId]], None],
        busy: Callable[[], bool],
        clock: Callable[[], float] = since_boot_s,
        trail: Trail | None = None,
        look: Look | None = None,
        compare: Compare | None = None,
    ) -> None:
        """changed: called in the consumer's thread with the new assignment, which may be empty.

        busy: called in that thread too; returns whether attempts are in flight. clock: must advance while the process
        is frozen. trail: positions that earlier memberships have read. look: returns the current log of a partition;
        compare: compares positions with the log. Both ask the cluster unless given.
        """
        reader = TopicReader(settings, WEBHOOK_SENDER)
        self._look = look or (lambda topic, number, at: reader.now(topic, number, at, deadline_s=LOOK_DEADLINE_S))
        self._proof = LogProof(settings, WEBHOOK_SENDER)
        self._comparison = LogComparison(compare or self._proof.compare, Trail() if trail is None else trail)
        # Not the client's own `committed`, which fails for most metadata (`nigredo/kafka/consumer_groups.py`).
        self._offsets = reader.offsets
        self._settings = settings
        self._name = name
        self._topics = topics
        self._changed = changed
        self._busy = busy
        self._ending = False
        self._lock = threading.Lock()
        self._progress = OffsetTracker()
        self._leads: dict[int, Partition] = {}
        self._paused: set[PartitionId] = set()
        self._full: set[PartitionId] = set()
        self._assignments = 0
        self._unchecked: dict[PartitionId, TopicPartition] = {}
        """Assigned partitions, with their committed offsets, that were not compared with the log yet."""
        self._stopped: dict[PartitionId, str] = {}
        self._doubtful: set[PartitionId] = set()
        """Partitions paused until they are compared with the log again, because their offset was not in the log."""
        self._check_again_at = 0.0
        self._checks_failed = Backoff(longest_s=5.0)
        self._unusable: str | None = None
        self._unassigned_since_s: float | None = time.monotonic()
        # A pool of its own: the shared pool resolves names, and a slow look-up would cost the membership.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="consumer")
        self._commits = Commits(settings.kafka_session_timeout_s, clock)
        self._consumer = Consumer(consumer_config(settings, name))

    def join(self) -> None:
        """Subscribe to the topics; partitions are assigned during `poll`."""
        self._consumer.subscribe(
            list(self._topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    async def poll(self, room: Room) -> list[Message]:
        """Return the records that arrived within POLL_S. Must be called repeatedly to stay a member of the group."""
        messages = await self._in_thread(lambda: self._poll(room))
        # Dropped, because without the committed offsets the client starts at offsets of its own choice.
        return messages if self._unusable is None else []

    async def commit(self) -> None:
        """Commit the position of each partition up to which all records are done."""
        await self._in_thread(lambda: self._commit(self._consumer))

    async def report_metrics(self, endpoint: str) -> None:
        """Set the metrics for consumer lag and for the oldest undelivered lead."""
        with self._lock:
            positions = self._progress.positions()
        following = {place[1]: at.next_offset for place, at in positions.items() if place[0] == LEADS}
        oldest = self.oldest_begun
        await self._in_thread(lambda: report_lag(self._consumer, following, endpoint, oldest))

    async def leave(self) -> None:
        """Commit, then leave the group and close the client."""
        await self.commit()
        self._proof.close()
        self._comparison.end()
        await self._in_thread(self._consumer.close)
        self._thread.shutdown(wait=False)

    def take(self, message: Message) -> tuple[Record, Ticket] | None:
        """Register a consumed record as in flight and return it with its ticket.

        None for a client error, a repeated record, or a record of a partition that is not assigned any more.
        """
        error = message.error()
        if error is not None:
            log.warning("consumer error", error=error.name())
            return None
        record = record_of(message)
        place, mark = (record.topic, record.partition), mark_of(message)
        with self._lock:
            ticket = self._progress.begin(place, mark)
            if ticket is None:
                return None
            if record.topic == LEADS:
                self._leads[record.partition].take(record.offset)
            topic_id = self._progress.topic_id(place)
        self._comparison.read(place, LogPosition(mark.offset + 1, topic_id, mark))
        return record, ticket

    def holds(self, ticket: Ticket) -> bool:
        """Return whether the record's assignment is current and not being revoked."""
        with self._lock:
            return not self._ending and self._progress.holds(ticket)

    def finish(self, ticket: Ticket) -> None:
        """Mark a record as done; ignored when its assignment ended."""
        with self._lock:
            if not self._progress.finish(ticket):
                return
            if ticket.place[0] == LEADS:
                self._leads[ticket.place[1]].begun.pop(ticket.offset, None)
        metrics.RECORDS_HANDLED.of(ticket.place[0]).inc()

    def positions(self) -> dict[PartitionId, int]:
        """Return the next offset to commit of each assigned partition."""
        with self._lock:
            return {place: at.next_offset for place, at in self._progress.positions().items()}

    def partition(self, number: int) -> Partition | None:
        """Return the state of a partition of `nigredo.leads`; None when it is not assigned or not being read."""
        with self._lock:
            return self._leads.get(number)

    @property
    def ours_until(self) -> float:
        """Time, by `clock`, until which no other member can own the partitions assigned here."""
        return self._commits.ours_until

    @property
    def oldest_begun(self) -> datetime | None:
        """Time at which the oldest lead in flight was consumed; None without one."""
        with self._lock:
            return min((next(iter(p.begun.values())) for p in self._leads.values() if p.begun), default=None)

    @property
    def assigned(self) -> int:
        """Number of partitions of `nigredo.leads` that this member reads."""
        with self._lock:
            return len(self._leads)

    @property
    def stopped(self) -> Mapping[PartitionId, str]:
        """Assigned partitions that are not read because the log contradicts their positions, with the reason."""
        with self._lock:
            return dict(self._stopped)

    @property
    def unusable(self) -> str | None:
        """Reason why a new client must join: offsets that cannot be read, or no assignment. None otherwise."""
        return self._unusable

    @property
    def stalled(self) -> Mapping[PartitionId, float]:
        """Seconds for which partitions had records but none arrived; a new client must then join."""
        return self._comparison.stalled

    @property
    def unchecked(self) -> int:
        """Number of assigned partitions that are not compared with the log yet."""
        with self._lock:
            return len(self._unchecked)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # --- in the consumer's thread, callbacks inside `poll` ------------------------------------------------------------

    def _assigned(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """Start an assignment with every partition paused at its committed offset; none if offsets are unreadable."""
        try:
            committed = self._offsets(self._name, assigned)
        except DependencyDown as error:
            self._unusable = str(error)
            return
        with self._lock:
            self._progress.assigned({})
            self._unchecked = {(at.topic, at.partition): at for at in committed}
            self._leads, self._stopped = {}, {}
            self._paused, self._full = set(), set()
            self._assignments += 1
        self._unassigned_since_s = None
        self._commits.assigned()
        self._doubtful, self._check_again_at = set(), 0.0
        self._comparison.assigned()
        self._assign(consumer)
        consumer.pause(assigned)
        self._run_comparisons(consumer)
        self._changed([(at.topic, at.partition) for at in committed])

    # --- positions, compared with the log -----------------------------------------------------------------------------

    def _run_comparisons(self, consumer: Consumer) -> None:
        """Run the comparisons that are due: of unchecked partitions, of doubtful ones, and every few seconds of all."""
        try:
            self._stop_disproved(consumer)
            if time.monotonic() >= self._check_again_at:
                self._check(consumer)
                self._recheck(consumer)
                self._checks_failed.reset()
        except DependencyDown as error:
            log.warning("positions not compared with the log yet", reason=str(error))
            self._check_again_at = time.monotonic() + self._checks_failed.next_wait_s()

    def _stop_disproved(self, consumer: Consumer) -> None:
        """Stop partitions whose log lost a record that was read. Raises DependencyDown."""
        if not self._comparison.due:
            return
        with self._lock:
            positions = self._progress.positions()
            idle = {place for place in positions if not self._progress.open(place)} - self._paused - self._doubtful
        for place, wrong in self._comparison.disproved(positions, idle).items():
            self._stop_at(consumer, place, wrong)

    def _stop_at(self, consumer: Consumer, place: PartitionId, wrong: LogPosition) -> None:
        """Stop a partition at the contradicted position, because a later position would hide the loss.

        Raises DependencyDown.
        """
        with self._lock:
            at = self._progress.positions().get(place)
            if at is None:
                return
            # Records that were read but are not done stay above the position.
            next_offset = min(at.next_offset, wrong.next_offset)
            offset = self._offset(place, replace(at, next_offset=next_offset, last=wrong.last or at.last))
        if isinstance(found := check(self._name, offset, self._look), Refused):
            self._stop(consumer, place, replace(found, keep=offset))

    def _check(self, consumer: Consumer) -> None:
        """Read the unchecked partitions whose positions the log confirms, stop the others. Raises DependencyDown."""
        failure: DependencyDown | None = None
        for place, committed in list(self._unchecked.items()):
            try:
                found = check(self._name, committed, self._look)
                if isinstance(found, Refused):
                    self._stop(consumer, place, found)
                    continue
            except DependencyDown as error:
                # A partition without a leader must not delay the others.
                failure = error
                continue
            with self._lock:
                del self._unchecked[place]
                self._progress.add(place, found.position)
                if place[0] == LEADS:
                    self._leads[place[1]] = Partition(counts_since(found.fields), found.end)
            # Paused partitions stay paused over an assignment, unless they are resumed.
            consumer.resume([TopicPartition(*place)])
        # At once, so that a crash before the first delivery leaves positions with their proof, and since when
        # deliveries count.
        self._commit(consumer)
        if failure is not None:
            raise failure

    def _recheck(self, consumer: Consumer) -> None:
        """Compare the committable positions of doubtful partitions with the log. Raises DependencyDown."""
        for place in sorted(self._doubtful):
            with self._lock:
                at = self._progress.positions().get(place)
                offset = None if at is None else self._offset(place, at)
            if offset is not None and isinstance(found := check(self._name, offset, self._look), Refused):
                self._stop(consumer, place, found)
        if self._doubtful:
            # Assigned again, because librdkafka stops reading a partition after this error.
            self._doubtful = set()
            self._assign(consumer)

    def _assign(self, consumer: Consumer) -> None:
        """Seek to the committable positions; records in flight are ignored when they arrive again."""
        with self._lock:
            at = {place: position.next_offset for place, position in self._progress.positions().items()}
            at |= {place: max(0, committed.offset) for place, committed in self._unchecked.items()}
        consumer.assign([TopicPartition(*place, offset) for place, offset in at.items()])

    def _stop(self, consumer: Consumer, place: PartitionId, refused: Refused) -> None:
        """Stop reading and committing a partition; its stored position proves the reason, also after a restart.

        Raises DependencyDown while the position cannot be stored that keeps the partition refused once the log grows.
        """
        if refused.keep is not None and not self._commits.send(consumer, [refused.keep]):
            raise DependencyDown(f"the refused position of {place[0]} {place[1]} is not committed")
        consumer.pause([TopicPartition(*place)])
        with self._lock:
            self._progress.drop(place)
            if place[0] == LEADS:
                self._leads.pop(place[1], None)
            self._unchecked.pop(place, None)
            self._stopped[place] = refused.reason
        log.error("partition stopped", topic=place[0], partition=place[1], reason=refused.reason)

    def _offset(self, place: PartitionId, position: LogPosition) -> TopicPartition:
        """Return the offset and metadata to commit for a position. Call with the lock held."""
        leads = self._leads.get(place[1]) if place[0] == LEADS else None
        metadata = to_metadata(position) if leads is None else leads.metadata(position)
        return TopicPartition(*place, position.next_offset, metadata)

    def _revoked(self, consumer: Consumer, _: list[TopicPartition]) -> None:
        """Start no further attempt and wait for those in flight, so that the next owner repeats none; then commit."""
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
            self._leads, self._unchecked, self._stopped = {}, {}, {}
        self._unassigned_since_s = time.monotonic()
        self._changed([])

    def _commit(self, consumer: Consumer) -> None:
        """Commit the positions that are due."""
        with self._lock:
            positions = self._progress.positions()
            next_offsets = {place: at.next_offset for place, at in positions.items()}
            offsets = self._commits.due(next_offsets, lambda place: self._offset(place, positions[place]))
        if offsets:
            self._commits.send(consumer, offsets)

    def _poll(self, room: Room) -> list[Message]:
        self._run_comparisons(self._consumer)
        self._check_assigned()
        self._pause_or_resume(room)
        first = self._consumer.poll(POLL_S)
        if first is None:
            return []
        more = min(BATCH_MAX, room.leads or BATCH_MAX, room.replays or BATCH_MAX) - 1
        assignments = self._assignments
        messages = [first, *self._consumer.consume(more, 0)] if more else [first]
        self._comparison.arrived({(m.topic() or "", m.partition() or 0) for m in messages if m.error() is None})
        for message in messages:
            if (error := message.error()) is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
                # The offset is not in the log; librdkafka does not read on until the partition is assigned again.
                self._doubtful.add((message.topic() or "", message.partition() or 0))
        if self._assignments == assignments:
            return messages
        # The partitions were assigned again during this poll. Records of the previous assignment lie after this one's
        # start: if they were accepted, all records before them would be ignored as repeated.
        self._assign(self._consumer)
        return []

    def _check_assigned(self) -> None:
        """Report the membership unusable when it has no assignment for long although Kafka answers.

        Observed after a disk of Kafka was set back, with the group coordinator's own partitions on it.
        """
        since_s, now_s = self._unassigned_since_s, time.monotonic()
        if since_s is None or now_s - since_s < ASSIGNED_WITHIN_S:
            return
        try:
            self._consumer.list_topics(LEADS, timeout=ANSWER_WITHIN_S)
        except KafkaException:
            self._unassigned_since_s = now_s  # Kafka itself is unavailable, so no other client would do better.
        else:
            self._unusable = f"an assignment of partitions: none received for {now_s - since_s:.0f} s"

    def _pause_or_resume(self, room: Room) -> None:
        """Pause partitions without room and resume the others; a full window resumes once half of it is done."""
        no_room = {LEADS: room.leads <= 0, WEBHOOK_REPLAYS: room.replays <= 0}
        with self._lock:
            places = self._progress.positions()
            self._full = {
                place
                for place in places
                if self._progress.open(place) >= (WINDOW_MAX // 2 if place in self._full else WINDOW_MAX)
            }
            wanted = {place for place in places if room.paused or no_room.get(place[0], False)} | self._full
            wanted |= self._doubtful & places.keys()
        for changed, change in (
            (wanted - self._paused, self._consumer.pause),
            ((self._paused & set(places)) - wanted, self._consumer.resume),
        ):
            if changed:
                change([TopicPartition(*place) for place in changed])
        self._paused = wanted
