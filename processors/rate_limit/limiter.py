"""Rate limiter: judges submissions, publishing first verdicts, then windows; each step is durable before the next.

Recovery needs no more than the windows: a record read again at or below its network's input offset was judged already
and is skipped, a record above it is judged again from the same window and gets the same verdict.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nigredo.avro.codec import Codec
from nigredo.avro.encoded_window import encode_window
from nigredo.clock import utc_now
from nigredo.components import RATE_LIMITER
from nigredo.errors import RecordRefused
from nigredo.kafka.batch_publisher import BatchPublisher, Outgoing
from nigredo.kafka.cloudevents import cloud_event
from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.kafka.dead_letters import park
from nigredo.kafka.publisher import HOLD_INPUT_DELIVERY_TIMEOUT_S, producer_config
from nigredo.kafka.record import Record
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import (
    REPAIR,
    Finding,
    LogNow,
    LogPosition,
    PositionRefused,
    compare,
    kept,
    proven,
    refusal,
)
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.plural import counted
from nigredo.process import ready_codec
from nigredo.rate_limit.window import (
    ACCEPTED,
    RATE_LIMITED,
    REPEATED,
    SPAM,
    Verdict,
    count_refusals,
    judge,
    pass_release,
    reset,
)
from nigredo.settings import Settings
from processors.engine.handler import AssignmentLost, Decoded, decode
from processors.rate_limit.release import find_quarantined
from processors.rate_limit.window_store import FAR_FUTURE_MS, WindowStore
from schemas.events import (
    Event,
    Lead,
    LimitReset,
    RateLimitState,
    RefusalCount,
    Rejection,
    RejectionRelease,
    Submission,
)
from schemas.topics import DEAD_LETTERS, LEADS, RATE_LIMITS, REJECTIONS, SUBMISSIONS

log = get_logger()

REGISTRY_DEADLINE_S = 10.0
"""Seconds to wait for the registry before the process reports it as missing and tries again."""
IN_FLIGHT_MAX = 100
"""Batches in flight: the current one, and those abandoned with their assignment."""
Judged = Submission | LimitReset | RefusalCount | RejectionRelease
LOAD_DEADLINE_S = 30.0
EVICT_MIN = 100
"""Windows that a batch may evict, however small the batch is."""
ACK_PATIENCE_S = 10.0
"""Seconds without an acknowledgement after which the process reports that it waits for Kafka."""


class Limiter:
    """Batch handler that judges submissions; caches the windows of the networks in its assigned partitions."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._function = settings.function(RATE_LIMITER)
        self._health = health
        self._reader = TopicReader(settings, RATE_LIMITER)
        self._windows: dict[int, WindowStore] = {}
        self._assignments = 0
        self._clock_set_back_to_ms: dict[int, int] = {}
        self._codec: Codec
        self._publisher: BatchPublisher

    async def open(self) -> None:
        """Connect to the registry and create the producer. Raises DependencyDown."""
        settings = self._settings
        self._codec = await ready_codec(
            settings, [LEADS, REJECTIONS, RATE_LIMITS, DEAD_LETTERS], deadline_s=REGISTRY_DEADLINE_S
        )
        config = producer_config(settings, self._function, delivery_timeout_s=HOLD_INPUT_DELIVERY_TIMEOUT_S)
        self._publisher = BatchPublisher(config, in_flight_max=IN_FLIGHT_MAX)

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        """Load a partition's windows and return its position; a network's window with the highest input offset counts.

        The windows' topic is not followed afterwards, because from now on only this worker's windows are valid.
        Raises PositionRefused when the log contradicts the offset or the windows, DependencyDown.
        """
        self._windows.pop(partition, None)
        windows = WindowStore(self._codec)
        position = await asyncio.to_thread(self._confirmed_position, partition, committed)
        await asyncio.to_thread(self._load, windows, partition, position)
        if (read := windows.furthest) is not None:
            # With the windows of another log, every record of this one would count as judged.
            await asyncio.to_thread(
                self._compare_with_log, partition, LogPosition(read.offset + 1, None, read), exact_time=False
            )
        self._windows[partition] = windows
        return position

    def _confirmed_position(self, partition: int, committed: LogPosition | None) -> LogPosition:
        """Return the group's position with its proof.

        Raises PositionRefused for a missing or contradicted offset and for added partitions, DependencyDown.
        """
        if refused := grown(self._reader, self._function, partition):
            raise PositionRefused(refused)
        if committed is None:
            raise PositionRefused(
                f"{self._function} has no offset for {SUBMISSIONS} partition {partition}, which it judged before; "
                f"repair it with: {REPAIR}"
            )
        return proven(committed, self._compare_with_log(partition, committed))

    def _compare_with_log(self, partition: int, position: LogPosition, *, exact_time: bool = True) -> LogNow:
        """Return the partition's log if it confirms the position. Raises PositionRefused, DependencyDown."""
        now = self._reader.now(SUBMISSIONS, partition, position.asks_at, deadline_s=LOAD_DEADLINE_S)
        finding = compare(position, now, exact_time=exact_time)
        if not finding.believed and not (finding is Finding.TRIMMED and not exact_time):
            owner = self._function if exact_time else f"{RATE_LIMITS} partition {partition}"
            # A position read from a window carries its own proof and must not replace the group's offset.
            keep = kept(position, now) if exact_time else None
            raise PositionRefused(refusal(owner, SUBMISSIONS, partition, position, now, finding), keep)
        return now

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        """Do nothing, because the limiter's authority is the group's offset."""

    def _load(self, windows: WindowStore, partition: int, position: LogPosition) -> None:
        assignment = self._assignments

        def report(records: int) -> None:
            if assignment != self._assignments:
                raise AssignmentLost  # The start that waited for this thread was cancelled.
            self._health.waiting(f"the windows of partition {partition}: {counted(records, 'record')} read")

        following = self._reader.now(SUBMISSIONS, partition, position.next_offset, deadline_s=LOAD_DEADLINE_S).found
        times_ms = [] if following is None else [following.timestamp_ms]
        times_ms.append(self._clock_set_back_to_ms.get(partition, FAR_FUTURE_MS))
        records = self._reader.read_to_end(RATE_LIMITS, [partition], deadline_s=LOAD_DEADLINE_S)
        windows.load(records, position.next_offset, report, not_after_ms=min(times_ms))

    def revoked(self) -> None:
        """Drop the windows of every partition, because another worker may change them from now on."""
        self._assignments += 1
        self._windows.clear()
        self._clock_set_back_to_ms.clear()
        metrics.LIMITER_NETWORKS.of().set(0)

    async def decode(self, record: Record) -> Event:
        """Return a record's submission or command.

        Raises RecordRefused for undecodable bytes and for events that this release does not support, DependencyDown.
        """
        event = await decode(self._codec, record)
        if not isinstance(event, Judged):
            raise RecordRefused("unsupported", f"{type(event).__name__} is not handled by this release")
        return event

    async def work(self, records: Sequence[Decoded], still_assigned: Callable[[], bool]) -> None:
        """Judge a batch and return once leads, rejections and windows are in Kafka.

        Raises DependencyDown, RecordRefused for a release that takes too long to look up, AssignmentLost.
        """
        changed: dict[tuple[int, str], RateLimitState] = {}
        outputs: list[tuple[str, Lead | Rejection]] = []
        quarantined = await find_quarantined(
            self._reader, self._codec, [event for _, event in records if isinstance(event, RejectionRelease)]
        )
        if not still_assigned():
            # The windows may be dropped by now, with the partition.
            raise AssignmentLost
        released = []
        judged: list[tuple[Event, Lead | Rejection | None]] = []
        for record, event in records:
            if not isinstance(event, Judged):
                continue
            key = (record.partition, event.client_network)
            state = changed.get(key) or self._window(record, event.client_network)
            if state is not None and record.offset <= state.input_offset:
                continue
            after, output = _decide(state, event, record)
            if isinstance(event, RejectionRelease) and (found := quarantined.pop(event.lead_id, None)) is not None:
                output = found.lead()
                released.append(found)
            judged.append((event, output))
            if after is not None:
                changed[key] = after
            if output is not None:
                outputs.append((LEADS if isinstance(output, Lead) else REJECTIONS, output))
        await self._deliver((self._outgoing_output(topic, event) for topic, event in outputs), still_assigned)
        if released:
            # After the leads are acknowledged, because a tombstone without its lead would lose the person.
            tombstones = [Outgoing(REJECTIONS, each.key, None, partition=each.partition) for each in released]
            await self._deliver(tombstones, still_assigned)
        await self._deliver((self._outgoing_state(at, state) for (at, _), state in changed.items()), still_assigned)
        for (partition, _), state in changed.items():
            self._windows[partition].put(state)
        # Each partition by the time of its own records, because brokers' clocks differ.
        for partition, now in {record.partition: record.timestamp for record, _ in records}.items():
            self._windows[partition].evict_expired(now, max(EVICT_MIN, 2 * len(records)))
        self._count(judged)

    def _window(self, record: Record, network: str) -> RateLimitState | None:
        """Return a network's window; None for a network without one.

        Raises AssignmentLost when a clock, since set back, may have evicted the window: then the partition's windows
        are loaded again, so that the same log gets the same verdicts whatever was in memory.
        """
        windows = self._windows[record.partition]
        found = windows.get(network)
        if found is None and (at_ms := round(record.timestamp.timestamp() * 1000)) < windows.evicted_until_ms:
            before_ms = self._clock_set_back_to_ms.get(record.partition, FAR_FUTURE_MS)
            self._clock_set_back_to_ms[record.partition] = min(before_ms, at_ms)
            log.warning("broker clock set back, reloading windows", partition=record.partition)
            raise AssignmentLost(f"evicted windows of partition {record.partition} are needed again")
        return found

    def _count(self, judged: Sequence[tuple[Event, Lead | Rejection | None]]) -> None:
        now, verdicts, durations = utc_now(), Counter[str](), list[float]()
        for event, output in judged:
            if isinstance(event, LimitReset):
                metrics.LIMIT_RESETS.of().inc()
            if not isinstance(event, Submission):
                continue
            outcome = REPEATED if output is None else ACCEPTED if isinstance(output, Lead) else output.reason
            verdicts[outcome] += 1
            durations.append((now - event.taken_at).total_seconds())
            if outcome == RATE_LIMITED and event.edge_verdict is None:
                # Ingest counted the submissions that its edge limiter refused.
                metrics.RATE_LIMIT_HITS.of().inc()
        for outcome, count in verdicts.items():
            metrics.VERDICTS.of(outcome).inc(count)
        metrics.END_TO_END.of("judged").observe_all(durations)
        metrics.LIMITER_NETWORKS.of().set(sum(map(len, self._windows.values())))

    def _outgoing_output(self, topic: str, event: Lead | Rejection) -> Outgoing:
        kind = "lead.created" if isinstance(event, Lead) else "lead.rejected"
        headers = cloud_event(kind, event.id, self._function, event.submitted_at)
        return Outgoing(topic, str(event.id).encode(), self._codec.encode(topic, event), headers)

    def _outgoing_state(self, partition: int, state: RateLimitState) -> Outgoing:
        # To the partition of the same number, because the input partition's next owner loads its windows from there.
        key, value = state.client_network.encode(), encode_window(self._codec, state)
        return Outgoing(RATE_LIMITS, key, value, partition=partition)

    async def _deliver(self, records: Iterable[Outgoing], still_assigned: Callable[[], bool]) -> None:
        """Return once Kafka has acknowledged every record. Consumes `records` lazily, encoding each as it is sent.

        Raises DependencyDown, AssignmentLost.
        """
        sent = self._publisher.publish_all(records)
        while not sent.done():
            await asyncio.wait({sent}, timeout=ACK_PATIENCE_S)
            if not still_assigned():
                # Retrieve a late exception, because asyncio would log it as never retrieved.
                sent.add_done_callback(lambda late: late.cancelled() or late.exception())
                raise AssignmentLost
            if not sent.done():
                self._health.waiting("Kafka's acknowledgement")
                log.warning("records not acknowledged yet")
        sent.result()
        if not still_assigned():
            raise AssignmentLost

    async def park(self, record: Record, reason: str, error: str) -> None:
        """Dead-letter a record that can never be judged. Raises DependencyDown."""
        await park(self._publisher, self._codec, self._function, record, reason, error)

    async def close(self) -> None:
        """Flush records in flight and close the producer, within a few seconds."""
        await self._publisher.close()


def _decide(
    state: RateLimitState | None, event: Judged, record: Record
) -> tuple[RateLimitState | None, Lead | Rejection | None]:
    """Return the network's window after a record, and the lead or rejection to publish, if any."""
    at, offset = record.timestamp, record.offset
    match event:
        case LimitReset():
            return reset(state, event, at=at, offset=offset), None
        case RefusalCount():
            return count_refusals(state, event, at=at, offset=offset), None
        case RejectionRelease():
            return pass_release(state, event, at=at, offset=offset), None
        case Submission():
            verdict = judge(state, event, at=at, offset=offset)
            return verdict.state, _output(verdict, event, record)


def _output(verdict: Verdict, submission: Submission, record: Record) -> Lead | Rejection | None:
    common: dict[str, Any] = {
        "id": submission.id,
        "client_network": submission.client_network,
        "ip_address": submission.ip_address,
        "user_agent": submission.user_agent,
        "form_id": submission.form_id,
        "source": submission.source,
        "contact": submission.contact,
        "taken_at": submission.taken_at,
        "submitted_at": record.timestamp,
        "submission_partition": record.partition,
        "submission_offset": record.offset,
    }
    if verdict.outcome == REPEATED:
        return None
    if verdict.outcome == ACCEPTED:
        return Lead(**common, released=False)
    sign = submission.spam_sign if verdict.outcome == SPAM else None
    return Rejection(**common, reason=verdict.outcome, retry_at=verdict.retry_at, spam_sign=sign)


def check_offsets(settings: Settings) -> None:
    """Commit the start offset of each partition that was never judged, before the group has members.

    A partition with windows but without an offset has lost its offset and gets none here, because any guess would judge
    records twice or never; its owner stops it. Does nothing when the group has an offset. Raises DependencyDown.
    """
    reader, group = TopicReader(settings, RATE_LIMITER), settings.function(RATE_LIMITER)
    partitions, windows = reader.partitions(SUBMISSIONS), reader.partitions(RATE_LIMITS)
    committed = reader.committed(group, SUBMISSIONS, partitions)
    if any(offset is not None for offset in committed.values()):
        return
    starts = {
        partition: reader.watermarks(SUBMISSIONS, partition)[0]
        for partition in partitions
        # The end of the windows' partition never decreases, not even when all of its records are deleted.
        if partition in windows and reader.watermarks(RATE_LIMITS, partition)[1] == 0
    }
    if starts:
        commit_offsets(settings, group, SUBMISSIONS, starts)


def grown(reader: TopicReader, group: str, partition: int) -> str | None:
    """Return why a partition cannot be judged after partitions were added to the topic; None when it can be judged.

    Added partitions move networks to other partitions than those of their windows. Raises DependencyDown.
    """
    partitions, windows = reader.partitions(SUBMISSIONS), reader.partitions(RATE_LIMITS)
    committed = reader.committed(group, SUBMISSIONS, partitions)
    known = [number for number in partitions if committed[number] is not None]
    if len(known) == len(partitions) and len(windows) >= len(partitions):
        return None
    added = [number for number in partitions if number not in windows or committed[number] is None]
    lost = [number for number in added if number in windows and reader.watermarks(RATE_LIMITS, number)[1] > 0]
    # In a multiple of the partitions a key stays or moves to a new one; otherwise keys move among the old ones too.
    if lost or not known or (partition not in added and len(partitions) % (len(partitions) - len(added)) == 0):
        return None
    return (
        f"{SUBMISSIONS} has {counted(len(partitions), 'partition')} and was judged with {len(partitions) - len(added)} "
        f"({RATE_LIMITS} has {len(windows)}): networks moved to others than their windows, so partition {partition} "
        f"waits; repair it with: {REPAIR}"
    )
