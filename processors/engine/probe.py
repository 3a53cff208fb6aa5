"""Log probe of a running processor: finds a log that was replaced or cut, and partitions that no member consumes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from faust.types import TP

from nigredo.errors import DependencyDown
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_trail import Place
from nigredo.kafka.positions.log_watch import LogWatch, PartitionObservation
from nigredo.log_position import LogPosition
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from processors.engine.assignment import Assignment, error_name
from processors.engine.instrumentation import report_lag

log = get_logger()

EVERY_S = 3.0
RECHECK_DELAY_S = 0.5
"""Seconds before an early check, after a record arrived a second time."""
GROUP = "the group's partitions"


class Probe:
    """A task that checks the log every `EVERY_S`, beside the stream.

    on_contradiction: awaited when the log contradicts a position that was already processed.
    """

    def __init__(
        self,
        app: Any,
        assignment: Assignment,
        watch: LogWatch,
        proof: LogProof,
        health: Health,
        on_contradiction: Callable[[], Awaitable[None]],
    ) -> None:
        self._app = app
        self._assignment = assignment
        self._watch = watch
        self._proof = proof
        self._health = health
        self._on_contradiction = on_contradiction
        self._task: asyncio.Task[None] | None = None
        self._unassigned_checks = 0

    def start(self) -> None:
        """Start the task unless it runs."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Cancel the task."""
        if self._task is not None:
            self._task.cancel()

    def unassigned_s(self) -> float:
        """Return for how many seconds partitions had no member of the group. Safe to call from another thread."""
        # Counted in checks and not by a clock, because a frozen process sees nothing meanwhile.
        return max(0, self._unassigned_checks - 1) * EVERY_S

    async def _run(self) -> None:
        """Check in a loop; report the process unready while the broker is down, because Faust waits in silence."""
        unavailable = False
        while True:
            try:
                await self.look()
                await self._assignment.seek_again()
                report_lag(self._app.consumer, self._following())
                if unavailable:
                    unavailable = False
                    self._assignment.report_ready()
            except DependencyDown as error:
                unavailable = True
                self._health.waiting(str(error))
            except Exception as error:
                log.warning("log check failed", error=error_name(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._assignment.check_requested.wait(), EVERY_S)
                self._assignment.check_requested.clear()
                await asyncio.sleep(RECHECK_DELAY_S)

    def _following(self) -> Mapping[TP, int]:
        return {tp: offset for tp, offset in (self._assignment.positions or {}).items() if offset >= 0}

    async def look(self) -> None:
        """Check once. Raises DependencyDown."""
        following, trail = self._following(), self._assignment.trail
        processed: dict[Place, Sequence[LogPosition]] = {tp: trail.of(tp) for tp in following}
        observation = await asyncio.to_thread(self._watch.look)
        self._report_unassigned(observation)
        if observation.missing:
            raise DependencyDown(f"there is no topic {observation.missing[0]}")
        contradicted = await asyncio.to_thread(self._proof.disproved, processed)
        for (topic, partition), position in contradicted.items():
            log.error(
                "log contradicts a processed position", topic=topic, partition=partition,
                next=following[TP(topic, partition)], disproved=position.next_offset,
            )  # fmt: skip
        if contradicted:
            return await self._on_contradiction()
        for tp, positions in processed.items():
            trail.confirmed(tp, positions)
        return None

    def _report_unassigned(self, observation: PartitionObservation) -> None:
        """Report partitions that no member of the group has; in a single check, as in a rebalance, that is normal."""
        unassigned: list[Place] = list(observation.unassigned)
        self._unassigned_checks = self._unassigned_checks + 1 if unassigned else 0
        if not unassigned:
            self._health.release(GROUP)
        elif self._unassigned_checks > 1:
            names = ", ".join(f"{topic}[{partition}]" for topic, partition in unassigned[:4])
            more = f" and {len(unassigned) - 4} more" if len(unassigned) > 4 else ""
            self._health.hold(GROUP, f"no member of the group has {names}{more}")
        by_topic = Counter(topic for topic, _ in unassigned)
        for topic in self._watch.topics:
            metrics.PARTITIONS_UNASSIGNED.of(topic).set(by_topic[topic])
