"""Watchdog: terminates a worker that makes no progress, so that the supervisor or orchestrator restarts it.

A worker can stall for ever without dying: an agent hangs, or a client waits for an answer that never comes. So a thread
outside the event loop judges progress by the cluster's data: the group's committed offsets against the ends of the log.
A worker that keeps reporting why it waits (`Health.waiting`) is not stuck, nor is a worker whose dependencies do not
answer.
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

OBSERVATIONS = 12
"""Observations made within `WATCHDOG_SECONDS`."""
GAP_FACTOR = 2.0
"""Of the time between two observations, at most this multiple of the interval counts as stuck, because in a longer gap
the process itself did not run."""
EXIT_CODE = 70
"""`EX_SOFTWARE` of sysexits.h."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation of a worker, `at` seconds of the monotonic clock."""

    at: float
    could_work: bool
    """Whether the worker had records to process and its dependencies answered."""
    progress: Hashable = None
    """Changes when a record is processed, an offset is committed, or the process reports why it waits."""


class Worker(Protocol):
    """A worker as the watchdog reads it, from any thread."""

    @property
    def positions(self) -> Mapping[TP, int] | None:
        """Next offset by assigned partition, as `Assignment.positions` has it; None between two assignments."""

    def unassigned_s(self) -> float:
        """Return for how many seconds partitions had no member of the group."""


def stuck_for_s(observations: Sequence[Observation], now: float, *, gap_max_s: float) -> float:
    """Return for how many seconds, up to `now`, a worker made no progress although it could work.

    observations: oldest first. Of the time between two of them at most `gap_max_s` counts, because in a longer gap this
    process, or the whole machine, did not run, which is not the worker's fault.
    """
    stuck, until = 0.0, now
    for observation in reversed(observations):
        if not observation.could_work or observation.progress != observations[-1].progress:
            break
        stuck += min(until - observation.at, gap_max_s)
        until = observation.at
    return stuck


class Restarts:
    """Count of a component's terminations by its watchdog, in a file, so that it outlives the process."""

    def __init__(self, settings: Settings, component: str) -> None:
        self._file = restarts_file(settings, component)

    def count(self) -> int:
        """Return the count; zero for a missing or unreadable file."""
        try:
            return int(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    def add(self) -> None:
        """Add one termination. Raises OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(f".{os.getpid()}")
        temporary.write_text(str(self.count() + 1), encoding="utf-8")
        temporary.replace(self._file)


def restarts_file(settings: Settings, component: str) -> Path:
    """Return the path of the file with a component's count."""
    return settings.state_dir / f"{settings.function(component)}.watchdog-restarts"


class Watchdog:
    """Watches one worker while the body of its `with` statement runs, and ends the process when the worker is stuck.

    A partition without a member of the group for as long is a reason to end too, because the new process joins again.
    check: raises DependencyDown when a further dependency of the work does not answer; called in the watchdog's thread.
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
        self._every_s = settings.watchdog_s / OBSERVATIONS
        self._group = settings.function(component)
        self._reader = TopicReader(settings, component)
        self._restarts = Restarts(settings, component)
        self._health = health
        self._topics = topics
        self._worker = worker
        self._check = check
        self._observations: deque[Observation] = deque(maxlen=2 * OBSERVATIONS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if terminated := self._restarts.count():
            log.warning("earlier workers terminated by the watchdog", watchdog_restarts=terminated)
            metrics.WATCHDOG_RESTARTS.of().inc(terminated)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._observations.append(self._observe())
                stuck_s = stuck_for_s(self._observations, time.monotonic(), gap_max_s=GAP_FACTOR * self._every_s)
                stuck_s = max(stuck_s, self._worker.unassigned_s())
                if stuck_s >= self._patience_s and not self._stopping.is_set():
                    self._end(stuck_s)
            except Exception as error:
                # An error must not end this thread, because nothing would notice a stuck worker any more.
                log.error("watchdog check failed", error=type(error).__name__)

    def _observe(self) -> Observation:
        positions, reasons = self._worker.positions, self._health.reasons_given
        at = time.monotonic()
        try:
            if positions is None:
                # A worker that stays between two assignments is stuck too, if the whole group makes no progress.
                partitions = {topic: self._reader.partitions(topic) for topic in self._topics}
            else:
                partitions = {}
                for tp in sorted(positions):
                    partitions.setdefault(tp.topic, []).append(tp.partition)
            standing = self._reader.standing(self._group, partitions)
            behind = any(max(each.committed or 0, each.start) < each.end for each in standing)
            progress = (tuple(each.committed for each in standing), tuple(sorted((positions or {}).items())), reasons)
            if behind and self._observations and self._observations[-1].progress == progress:
                self._check()
            return Observation(at, behind, progress)
        except DependencyDown:
            return Observation(at, could_work=False)

    def _end(self, stuck_s: float) -> None:
        log.error("the worker makes no progress and is ended", stuck_for_s=round(stuck_s, 1), group=self._group)
        try:
            self._restarts.add()
        except OSError as error:
            log.error("watchdog restart not counted", error=type(error).__name__)
        # The traceback shows the line that hangs; it holds lines of code and no values.
        with contextlib.suppress(Exception):  # Without a stderr, or with a broken one, the worker ends all the same.
            faulthandler.dump_traceback(sys.stderr)
        # Neither an exception nor a signal, because a hanging thread would not react. As with kill -9, nothing is lost.
        os._exit(EXIT_CODE)
