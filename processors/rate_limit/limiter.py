"""The limiter's work: verdicts out, then windows out, then memory; each step durable before the next.

A record read again at or below its network's input offset is known to be done. One above it is decided again from the
same window and gets the same verdict. That is all there is to recovery.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nigredo.avro.codec import Codec
from nigredo.avro.encoded_window import encode_window
from nigredo.clock import utc_now
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
from processors.rate_limit.window_store import FAR_OFF_MS, WindowStore
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

COMPONENT = "rate-limiter"
REGISTRY_DEADLINE_S = 10.0
"""After it the process says what it waits for, and tries again."""
IN_FLIGHT_MAX = 100
"""Batches: one at a time, and those that were given up with their assignment."""
Judged = Submission | LimitReset | RefusalCount | RejectionRelease
LOAD_DEADLINE_S = 30.0
FORGET_MIN = 100
ACK_PATIENCE_S = 10.0


class Limiter:
    """Judges submissions. Holds the windows of the networks in the partitions it was assigned."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._function = settings.function(COMPONENT)
        self._health = health
        self._reader = TopicReader(settings, COMPONENT)
        self._windows: dict[int, WindowStore] = {}
        self._assignments = 0
        self._clock_went_back_to_ms: dict[int, int] = {}
        self._codec: Codec
        self._publisher: BatchPublisher

    async def open(self) -> None:
        """Connect. Raises DependencyDown."""
        settings = self._settings
        self._codec = await ready_codec(
            settings, [LEADS, REJECTIONS, RATE_LIMITS, DEAD_LETTERS], deadline_s=REGISTRY_DEADLINE_S
        )
        config = producer_config(settings, self._function, delivery_timeout_s=HOLD_INPUT_DELIVERY_TIMEOUT_S)
        self._publisher = BatchPublisher(config, in_flight_max=IN_FLIGHT_MAX)

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        """Load the windows of a partition; of several states of a network the one that read furthest is true.

        They are not followed on: from here on nobody else writes them, and whoever does all the same is out of date.
        """
        self._windows.pop(partition, None)
        windows = WindowStore(self._codec)
        position = await asyncio.to_thread(self._checked, partition, committed)
        await asyncio.to_thread(self._load, windows, partition, position)
        if (read := windows.furthest) is not None:
            # By windows of another log everything in this one would count as judged.
            await asyncio.to_thread(self._check, partition, LogPosition(read.offset + 1, None, read), exact_time=False)
        self._windows[partition] = windows
        return position

    def _checked(self, partition: int, committed: LogPosition | None) -> LogPosition:
        """Return the group's position with its proof. Raises PositionRefused, DependencyDown."""
        if refused := grown(self._reader, self._function, partition):
            raise PositionRefused(refused)
        if committed is None:
            raise PositionRefused(
                f"{self._function} has no offset for {SUBMISSIONS} partition {partition}, which it judged before; "
                f"repair it with: {REPAIR}"
            )
        return proven(committed, self._check(partition, committed))

    def _check(self, partition: int, position: LogPosition, *, exact_time: bool = True) -> LogNow:
        """Return the log that bears a position out. Raises PositionRefused, DependencyDown."""
        now = self._reader.now(SUBMISSIONS, partition, position.asks_at, deadline_s=LOAD_DEADLINE_S)
        finding = compare(position, now, exact_time=exact_time)
        if not finding.believed and not (finding is Finding.TRIMMED and not exact_time):
            who = self._function if exact_time else f"{RATE_LIMITS} partition {partition}"
            # A window has its own proof, and the group's offset is not its place.
            keep = kept(position, now) if exact_time else None
            raise PositionRefused(refusal(who, SUBMISSIONS, partition, position, now, finding), keep)
        return now

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        """Nothing to store: the group's offset is the authority."""

    def _load(self, windows: WindowStore, partition: int, position: LogPosition) -> None:
        assignment = self._assignments

        def told(records: int) -> None:
            if assignment != self._assignments:
                raise AssignmentLost  # Nobody waits for this thread any more.
            self._health.waiting(f"the windows of partition {partition}: {counted(records, 'record')} read")

        following = self._reader.now(SUBMISSIONS, partition, position.next_offset, deadline_s=LOAD_DEADLINE_S).found
        times_ms = [] if following is None else [following.timestamp_ms]
        times_ms.append(self._clock_went_back_to_ms.get(partition, FAR_OFF_MS))
        records = self._reader.read_to_end(RATE_LIMITS, [partition], deadline_s=LOAD_DEADLINE_S)
        windows.load(records, position.next_offset, told, not_after_ms=min(times_ms))

    def revoked(self) -> None:
        """Let go of the windows, which may be somebody else's to change from here on."""
        self._assignments += 1
        self._windows.clear()
        self._clock_went_back_to_ms.clear()
        metrics.LIMITER_NETWORKS.of().set(0)

    async def decode(self, record: Record) -> Event:
        """Return the submission event. Raises RecordRefused, DependencyDown."""
        event = await decode(self._codec, record)
        if not isinstance(event, Judged):
            raise RecordRefused("unsupported", f"{type(event).__name__} is not handled by this release")
        return event

    async def work(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Judge a batch and return once leads, rejections and windows are in Kafka."""
        changed: dict[tuple[int, str], RateLimitState] = {}
        outputs: list[tuple[str, Lead | Rejection]] = []
        quarantined = await find_quarantined(
            self._reader, self._codec, [event for _, event in records if isinstance(event, RejectionRelease)]
        )
        if not still_ours():
            # The windows may be gone by now, with the partition.
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
            if isinstance(event, RejectionRelease) and (kept := quarantined.pop(event.lead_id, None)) is not None:
                output = kept.lead()
                released.append(kept)
            judged.append((event, output))
            if after is not None:
                changed[key] = after
            if output is not None:
                outputs.append((LEADS if isinstance(output, Lead) else REJECTIONS, output))
        await self._deliver((self._outgoing_output(topic, event) for topic, event in outputs), still_ours)
        if released:
            # Only now: a tombstone without its lead would lose the person.
            gone = [Outgoing(REJECTIONS, kept.key, None, partition=kept.partition) for kept in released]
            await self._deliver(gone, still_ours)
        await self._deliver((self._outgoing_state(at, state) for (at, _), state in changed.items()), still_ours)
        for (partition, _), state in changed.items():
            self._windows[partition].keep(state)
        # Brokers' clocks differ, so one partition's says nothing about another.
        for partition, now in {record.partition: record.timestamp for record, _ in records}.items():
            self._windows[partition].forget(now, max(FORGET_MIN, 2 * len(records)))
        self._count(judged)

    def _window(self, record: Record, network: str) -> RateLimitState | None:
        """Return a network's window.

        Raises Stale when it may have been forgotten by a clock that has been set back since: then the windows are
        loaded again, so that the same log gets the same verdicts, whatever was in memory.
        """
        windows = self._windows[record.partition]
        found = windows.get(network)
        if found is None and (at_ms := round(record.timestamp.timestamp() * 1000)) < windows.forgotten_until_ms:
            before_ms = self._clock_went_back_to_ms.get(record.partition, FAR_OFF_MS)
            self._clock_went_back_to_ms[record.partition] = min(before_ms, at_ms)
            log.warning("the broker's clock was set back, so that windows are loaded again", partition=record.partition)
            raise AssignmentLost(f"windows of partition {record.partition} that count again were forgotten")
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
                # The edge counted those that it refused itself.
                metrics.RATE_LIMIT_HITS.of().inc()
        for outcome, many in verdicts.items():
            metrics.VERDICTS.of(outcome).inc(many)
        metrics.END_TO_END.of("judged").observe_all(durations)
        metrics.LIMITER_NETWORKS.of().set(sum(map(len, self._windows.values())))

    def _outgoing_output(self, topic: str, event: Lead | Rejection) -> Outgoing:
        kind = "lead.created" if isinstance(event, Lead) else "lead.rejected"
        headers = cloud_event(kind, event.id, self._function, event.submitted_at)
        return Outgoing(topic, str(event.id).encode(), self._codec.encode(topic, event), headers)

    def _outgoing_state(self, partition: int, state: RateLimitState) -> Outgoing:
        # By the number of the input's partition: the next owner of that partition looks for it there.
        key, value = state.client_network.encode(), encode_window(self._codec, state)
        return Outgoing(RATE_LIMITS, key, value, partition=partition)

    async def _deliver(self, records: Iterable[Outgoing], still_ours: Callable[[], bool]) -> None:
        """Return once Kafka has all of them, which are made as they are sent. Raises DependencyDown, Stale."""
        sent = self._publisher.publish_all(records)
        while not sent.done():
            await asyncio.wait({sent}, timeout=ACK_PATIENCE_S)
            if not still_ours():
                sent.add_done_callback(lambda late: late.cancelled() or late.exception())  # Nobody waits for it.
                raise AssignmentLost
            if not sent.done():
                self._health.waiting("Kafka's acknowledgement")
                log.warning("Kafka has not acknowledged yet")
        sent.result()
        if not still_ours():
            raise AssignmentLost

    async def park(self, record: Record, reason: str, error: str) -> None:
        """Put a record that can never be judged aside. Raises DependencyDown."""
        await park(self._publisher, self._codec, self._function, record, reason, error)

    async def close(self) -> None:
        """Send what is still on its way, within a few seconds."""
        await self._publisher.close()


def _decide(
    state: RateLimitState | None, event: Judged, record: Record
) -> tuple[RateLimitState | None, Lead | Rejection | None]:
    """Return the network's window after a record, and what is to be published about it."""
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
    """Commit where each partition begins, before the group has members. Raises DependencyDown.

    A partition that was never judged is begun at its start. One that was, and lost its offset, has none afterwards
    either: any guess would judge records twice or never, so its owner stops it.
    """
    reader, group = TopicReader(settings, COMPONENT), settings.function(COMPONENT)
    partitions, windows = reader.partitions(SUBMISSIONS), reader.partitions(RATE_LIMITS)
    committed = reader.committed(group, SUBMISSIONS, partitions)
    if any(offset is not None for offset in committed.values()):
        return
    starts = {
        partition: reader.watermarks(SUBMISSIONS, partition)[0]
        for partition in partitions
        # The end of the windows' partition never goes back, not even when all that was in it is gone.
        if partition in windows and reader.watermarks(RATE_LIMITS, partition)[1] == 0
    }
    if starts:
        commit_offsets(settings, group, SUBMISSIONS, starts)


def grown(reader: TopicReader, group: str, partition: int) -> str | None:
    """Say why a partition cannot be judged since partitions were added to the topic; None when it can.

    The networks' keys have moved, and their windows have not. Raises DependencyDown.
    """
    partitions, windows = reader.partitions(SUBMISSIONS), reader.partitions(RATE_LIMITS)
    committed = reader.committed(group, SUBMISSIONS, partitions)
    known = [number for number in partitions if committed[number] is not None]
    if len(known) == len(partitions) and len(windows) >= len(partitions):
        return None
    added = [number for number in partitions if number not in windows or committed[number] is None]
    lost = [number for number in added if number in windows and reader.watermarks(RATE_LIMITS, number)[1] > 0]
    # Doubled, keys stay or go to a new partition; else they move among the old ones too.
    if lost or not known or (partition not in added and len(partitions) % (len(partitions) - len(added)) == 0):
        return None
    return (
        f"{SUBMISSIONS} has {counted(len(partitions), 'partition')} and was judged with {len(partitions) - len(added)} "
        f"({RATE_LIMITS} has {len(windows)}): networks moved to others than their windows, so partition {partition} "
        f"waits; repair it with: {REPAIR}"
    )
