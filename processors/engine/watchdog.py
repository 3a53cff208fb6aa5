"""Ends a worker that stopped making progress, so that whoever keeps the process running starts it again.

A worker can stall for ever without dying: an agent that hangs, a client that waits for an answer that never comes. So
progress is judged from outside the event loop, by a thread, and by what the cluster says: the group's committed offsets
against the ends of the log. A process that says why it waits (`Health.waiting`, again and again) is not stuck, nor is
one whose dependencies do not answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from faust.types import TP

from nigredo.errors import DependencyDown
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings

log = get_logger()

LOOKS = 12
"""How often is looked within the patience."""
LONGEST_GAP = 2.0
"""How much of the time between two looks counts, in times of what it should be: in more, nothing here ran at all."""
EXIT_CODE = 70
"""`EX_SOFTWARE` of sysexits.h."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen at one moment, `at` in seconds of a clock that never goes back."""

    at: float
    could_work: bool
    """Whether there was work to do and all that it needs answered."""
    progress: Hashable = None
    """Changes when something is handled or committed, or when the process says why it waits."""


class Worker(Protocol):
    """What a worker tells of itself, from any thread."""

    @property
    def positions(self) -> Mapping[TP, int] | None:
        """Its next offsets, as `Assignment.positions` tells them."""

    def lacking_s(self) -> float:
        """For how long partitions were in no member's hands, in seconds."""


def stuck_for_s(looks: Sequence[Observation], now: float, *, gap_max_s: float) -> float:
    """Return for how long, up to `now`, a worker got nothing done although it could have.

    looks: oldest first. Of a time between two of them no more than `gap_max_s` counts: in a longer one this process,
    or the whole machine, did not run, which is no fault of the worker's.
    """
    stuck, until = 0.0, now
    for look in reversed(looks):
        if not look.could_work or look.progress != looks[-1].progress:
            break
        stuck += min(until - look.at, gap_max_s)
        until = look.at
    return stuck


class Restarts:
    """How often a component was ended by its watchdog, on disk: a count in memory would end with the process."""

    def __init__(self, settings: Settings, component: str) -> None:
        self._file = restarts_file(settings, component)

    def count(self) -> int:
        """Return the count. A file that cannot be read counts nothing."""
        try:
            return int(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    def add(self) -> None:
        """Count one more. Raises OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(str(self.count() + 1), encoding="utf-8")
        unfinished.replace(self._file)


def restarts_file(settings: Settings, component: str) -> Path:
    """Return where a component's restarts are counted."""
    return settings.state_dir / f"{settings.function(component)}.watchdog-restarts"


class Watchdog:
    """Watches one worker while the body of its `with` statement runs.

    A partition that no member of the group has for that long is a reason to end too: whoever starts joins anew.
    check: raises DependencyDown when something else the work needs does not answer; called in the thread.
    """

    def __init__(
        self,
        settings: Settings,
        component: str,
        health: Health,
        topics: Sequence[str],
        worker: Worker,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._patience_s = settings.watchdog_s
        self._every_s = settings.watchdog_s / LOOKS
        self._group = settings.function(component)
        self._reader = TopicReader(settings, component)
        self._restarts = Restarts(settings, component)
        self._health = health
        self._topics = topics
        self._worker = worker
        self._check = check
        self._looks: deque[Observation] = deque(maxlen=2 * LOOKS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if ended := self._restarts.count():
            log.warning("the watchdog ended earlier workers", watchdog_restarts=ended)
            metrics.WATCHDOG_RESTARTS.of().inc(ended)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._looks.append(self._look())
                stuck_s = stuck_for_s(self._looks, time.monotonic(), gap_max_s=LONGEST_GAP * self._every_s)
                stuck_s = max(stuck_s, self._worker.lacking_s())
                if stuck_s >= self._patience_s and not self._stopping.is_set():
                    self._end(stuck_s)
            except Exception as error:
                # The thread that finds what is stuck must not be the one that ends unseen.
                log.error("the watchdog met an error", error=type(error).__name__)

    def _look(self) -> Observation:
        positions, reasons = self._worker.positions, self._health.reasons_given
        at = time.monotonic()
        try:
            if positions is None:
                # Between two assignments for ever is stuck too, if all of the group gets nothing done meanwhile.
                partitions = {topic: self._reader.partitions(topic) for topic in self._topics}
            else:
                partitions = {}
                for tp in sorted(positions):
                    partitions.setdefault(tp.topic, []).append(tp.partition)
            standing = self._reader.standing(self._group, partitions)
            behind = any(max(one.committed or 0, one.start) < one.end for one in standing)
            progress = (tuple(one.committed for one in standing), tuple(sorted((positions or {}).items())), reasons)
            if behind and self._looks and self._looks[-1].progress == progress:
                self._check()
            return Observation(at, behind, progress)
        except DependencyDown:
            return Observation(at, could_work=False)

    def _end(self, stuck_s: float) -> None:
        log.error("the worker makes no progress and is ended", stuck_for_s=round(stuck_s, 1), group=self._group)
        try:
            self._restarts.add()
        except OSError as error:
            log.error("the restart could not be counted", error=type(error).__name__)
        # Where it hangs: lines of code, no values.
        with contextlib.suppress(Exception):  # Without a stderr, or with a broken one, the worker ends all the same.
            faulthandler.dump_traceback(sys.stderr)
        # Not an exception, not a signal: whatever hangs must not be asked. Nothing is lost, as with kill -9.
        os._exit(EXIT_CODE)
