"""Limits of parking (dead-lettering): past them a topic stops instead of emptying into the dead-letter topic.

A single bad record among good ones is parked, and the stream goes on. Many bad records mean that the reader of the
topic is broken (a release, a schema, an index of the database). Then no further record is parked: the record is retried
until the cause is fixed, and processing resumes by itself. The run survives a restart, because it is rebuilt from the
dead letters.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from nigredo.kafka.record import Record
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.plural import counted
from nigredo.settings import Settings

log = get_logger()

WINDOW = 100
"""Number of last records of a topic over which the parked share is computed; missing ones count as processed."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one topic: parked records in a row, and the parked share (0 to 1) of the last `WINDOW` records."""

    in_a_row_max: int
    share_max: float

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """Return the limits of the settings."""
        return cls(settings.dead_letters_in_a_row_max, settings.dead_letters_share_max)


@dataclass(frozen=True, slots=True)
class Before:
    """Parking history of a topic, read from the dead letters: the records before a group's committed positions."""

    in_a_row: int = 0
    of_last: int = 0
    """Number of parked records among the last `WINDOW`."""
    again: frozenset[tuple[int, int]] = frozenset()
    """(partition, offset) of parked records that are consumed again, because their batch was not committed."""


def before(parked: Mapping[int, Collection[int]], committed: Mapping[int, int | None]) -> Before:
    """Return the parking history of a topic before a group's positions. Pure.

    parked: offsets of the dead letters, by partition. committed: the group's next offset, by partition.
    """
    in_a_row, of_last, share = 0, 0, max(1, WINDOW // max(1, len(committed)))
    again: set[tuple[int, int]] = set()
    for partition, position in committed.items():
        offsets, position = parked.get(partition, ()), position or 0
        tail = 0
        while position - 1 - tail in offsets:
            tail += 1
        in_a_row += tail
        of_last += sum(position - share <= offset for offset in offsets)
        again.update((partition, offset) for offset in offsets if offset >= position)
    return Before(in_a_row + len(again), min(of_last, WINDOW), frozenset(again))


@dataclass(slots=True)
class Run:
    """Outcome (parked or processed) of the last records of one topic at one stage. Pure."""

    in_a_row: int = 0
    handled_any: bool = False
    _last: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def began(self, before: Before) -> None:
        """Prepend the parking history from before the start."""
        if not self.handled_any:
            self.in_a_row += before.in_a_row
        earlier = [False] * (WINDOW - before.of_last) + [True] * before.of_last
        self._last = deque([*earlier, *self._last], maxlen=WINDOW)

    def handled(self, records: int) -> None:
        """Count records that were processed."""
        if records:
            self.in_a_row, self.handled_any = 0, True
            self._last.extend([False] * min(records, WINDOW))

    def parked(self) -> None:
        """Count one parked record."""
        self.in_a_row += 1
        self._last.append(True)

    def spent(self, bounds: Bounds) -> str | None:
        """Return the exceeded limit as a text for operators; None while another record may be parked."""
        if self.in_a_row >= bounds.in_a_row_max:
            return f"{counted(self.in_a_row, 'record in a row was', 'records in a row were')} parked"
        share = sum(self._last) / WINDOW
        return f"{share:.0%} of the last {WINDOW} records were parked" if share > bounds.share_max else None


class Parking:
    """Decides whether a record may be parked, and reports a stopped topic in log, metric and health.

    One instance per process, used on the event loop only. parked_before: returns a topic's parking history; blocking,
    may raise DependencyDown.
    """

    def __init__(self, bounds: Bounds, health: Health, parked_before: Callable[[str], Before]) -> None:
        self._bounds = bounds
        self._health = health
        self._parked_before = parked_before
        self._runs: dict[tuple[str, str], Run] = {}
        self._before: dict[str, Before] = {}
        self._stopped: set[str] = set()
        self._history_lock = asyncio.Lock()

    def forget(self) -> None:
        """Reset for a new assignment, because another member may have parked records of these partitions meanwhile."""
        self._runs.clear()
        self._before.clear()
        self.go_on()

    def go_on(self) -> None:
        """Report no topic as stopped any more."""
        for topic in list(self._stopped):
            self._release(topic)

    def handled(self, stage: str, records: Mapping[str, int]) -> None:
        """Count records, by topic, that passed a stage such as `decoding`."""
        for topic, number in records.items():
            if topic in self._stopped:
                # The cause is fixed, so the records parked because of it do not count towards the next stop.
                self._runs[stage, topic] = Run()
                self._release(topic)
            self._run(stage, topic).handled(number)

    async def allows(self, stage: str, record: Record, reason: str) -> bool:
        """Return whether the record may be parked, and count it; if not, report its topic as stopped.

        stage: such as `decoding`. reason: why the record cannot be used, for operators. Raises DependencyDown until the
        dead letters have been read once.
        """
        topic = record.topic
        async with self._history_lock:
            if topic not in self._before:
                before = await asyncio.to_thread(self._parked_before, topic)
                for (_, of), run in self._runs.items():
                    if of == topic:
                        run.began(before)
                self._before[topic] = before
        if (record.partition, record.offset) in self._before[topic].again:
            return True
        run = self._run(stage, topic)
        if (spent := run.spent(self._bounds)) is None:
            run.parked()
            return True
        self._stop(topic, f"{topic} is stopped: {spent}, and the next one too cannot be used ({reason}); see "
                          "`nigredo dead-letters list`, and fix the cause: the topic resumes by itself")  # fmt: skip
        return False

    def _run(self, stage: str, topic: str) -> Run:
        if (run := self._runs.get((stage, topic))) is None:
            run = self._runs[stage, topic] = Run()
            run.began(self._before.get(topic, Before()))
        return run

    def _stop(self, topic: str, why: str) -> None:
        if topic not in self._stopped:
            self._stopped.add(topic)
            log.error("topic stopped: too many records parked", topic=topic, reason=why)
            metrics.DEAD_LETTERS_STOPPED.of(topic).set(1)
        self._health.hold(f"parking of {topic}", why)

    def _release(self, topic: str) -> None:
        if topic in self._stopped:
            self._stopped.discard(topic)
            log.info("topic resumed: records can be used again", topic=topic)
            metrics.DEAD_LETTERS_STOPPED.of(topic).set(0)
            self._health.release(f"parking of {topic}")
