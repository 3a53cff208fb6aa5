"""A bound of parking: past it records wait where they are, since the cause is not in them, until an operator acts.

A single bad record among good ones is parked and the stream goes on. Many of them, for whatever reason, mean that the
reader of the topic is broken (a release, a schema, an index of the database), and parking would empty the topic into
the dead letters. Then nothing further is parked: the record is tried again and again, and once it succeeds, because
its cause was mended, all goes on by itself. A restart forgets nothing of it: the run is found again in the dead
letters.
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
"""Records of a topic over which the share of parked ones is taken; it counts nothing before it is full."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be parked of a topic: so many records in a row, and such a share of the last `WINDOW`."""

    in_a_row_max: int
    share_max: float

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """Return the bounds that the settings ask for."""
        return cls(settings.dead_letters_in_a_row_max, settings.dead_letters_share_max)


@dataclass(frozen=True, slots=True)
class Before:
    """What the dead letters tell of the records before the position at which a member began."""

    in_a_row: int = 0
    of_last: int = 0
    """Of the last `WINDOW` records, so many were parked."""
    again: frozenset[tuple[int, int]] = frozenset()
    """Partitions and offsets of records that were parked and come once more, since their batch was not finished."""


def before(parked: Mapping[int, Collection[int]], committed: Mapping[int, int | None]) -> Before:
    """Return what was parked of a topic before a group's positions.

    parked: the offsets of the dead letters by partition.
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
    """The last records of one topic, as far as it matters which were parked. Pure."""

    in_a_row: int = 0
    handled_any: bool = False
    _last: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def began(self, before: Before) -> None:
        """Take over what was parked before."""
        if not self.handled_any:
            self.in_a_row += before.in_a_row
        earlier = [False] * (WINDOW - before.of_last) + [True] * before.of_last
        self._last = deque([*earlier, *self._last], maxlen=WINDOW)

    def handled(self, records: int) -> None:
        """Count records that were no trouble."""
        if records:
            self.in_a_row, self.handled_any = 0, True
            self._last.extend([False] * min(records, WINDOW))

    def parked(self) -> None:
        """Count one that was parked."""
        self.in_a_row += 1
        self._last.append(True)

    def spent(self, bounds: Bounds) -> str | None:
        """Return why no further record may be parked; None while one may."""
        if self.in_a_row >= bounds.in_a_row_max:
            return f"{counted(self.in_a_row, 'record in a row was', 'records in a row were')} parked"
        share = sum(self._last) / WINDOW
        return f"{share:.0%} of the last {WINDOW} records were parked" if share > bounds.share_max else None


class Parking:
    """Decides in one process whether a record may be parked, and says so when none may.

    parked_before: returns what the dead letters tell of a topic's last records; blocking, may raise DependencyDown.
    Belongs to the event loop.
    """

    def __init__(self, bounds: Bounds, health: Health, parked_before: Callable[[str], Before]) -> None:
        self._bounds = bounds
        self._health = health
        self._parked_before = parked_before
        self._runs: dict[tuple[str, str], Run] = {}
        self._before: dict[str, Before] = {}
        self._stopped: set[str] = set()
        self._asking = asyncio.Lock()

    def forget(self) -> None:
        """Begin afresh with another assignment: another member may have parked what came before."""
        self._runs.clear()
        self._before.clear()
        self.go_on()

    def go_on(self) -> None:
        """Say no more that a topic is stopped."""
        for topic in list(self._stopped):
            self._release(topic)

    def handled(self, stage: str, records: Mapping[str, int]) -> None:
        """Count records, by their topics, that passed a stage of the work such as decoding."""
        for topic, number in records.items():
            if topic in self._stopped:
                # Its cause is mended: what was parked because of it says nothing of the next one.
                self._runs[stage, topic] = Run()
                self._release(topic)
            self._run(stage, topic).handled(number)

    async def allows(self, stage: str, record: Record, reason: str) -> bool:
        """Say whether one more record may be parked, and count it; if not, the process says what it waits for.

        Raises DependencyDown as long as the dead letters cannot be read for the first time.
        """
        topic = record.topic
        async with self._asking:
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
                          "`nigredo dead-letters list`, and mend the cause: it goes on by itself")  # fmt: skip
        return False

    def _run(self, stage: str, topic: str) -> Run:
        if (run := self._runs.get((stage, topic))) is None:
            run = self._runs[stage, topic] = Run()
            run.began(self._before.get(topic, Before()))
        return run

    def _stop(self, topic: str, why: str) -> None:
        if topic not in self._stopped:
            self._stopped.add(topic)
            log.error("too many records were parked", topic=topic, reason=why)
            metrics.DEAD_LETTERS_STOPPED.of(topic).set(1)
        self._health.hold(f"parking of {topic}", why)

    def _release(self, topic: str) -> None:
        if topic in self._stopped:
            self._stopped.discard(topic)
            log.info("records can be used again", topic=topic)
            metrics.DEAD_LETTERS_STOPPED.of(topic).set(0)
            self._health.release(f"parking of {topic}")
