"""Looks after the log while a processor runs: whether it is still the one that was read, and all of it is consumed."""

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
from processors.engine.assignment import Assignment, name_of
from processors.engine.instrumentation import tell_lag

log = get_logger()

EVERY_S = 3.0
AT_ONCE_S = 0.5
"""After a record that was there before."""
GROUP = "the group's partitions"


class Probe:
    """A task beside the stream. `distrust` is called when a position that was durable is not the log's any more."""

    def __init__(
        self,
        app: Any,
        assignment: Assignment,
        watch: LogWatch,
        proof: LogProof,
        health: Health,
        distrust: Callable[[], Awaitable[None]],
    ) -> None:
        self._app = app
        self._assignment = assignment
        self._watch = watch
        self._proof = proof
        self._health = health
        self._distrust = distrust
        self._task: asyncio.Task[None] | None = None
        self._lacking_looks = 0

    def start(self) -> None:
        """Begin to look, unless that is so."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()

    def lacking_s(self) -> float:
        """Return for how long partitions were in no member's hands. May be asked from another thread."""
        # By looks and not by a clock: a process that was frozen saw nothing meanwhile.
        return max(0, self._lacking_looks - 1) * EVERY_S

    async def _run(self) -> None:
        """Say that the process is not ready while the broker does not answer; Faust alone would wait in silence."""
        away = False
        while True:
            try:
                await self.look()
                await self._assignment.seek_again()
                tell_lag(self._app.consumer, self._following())
                if away:
                    away = False
                    self._assignment.tell_ready()
            except DependencyDown as error:
                away = True
                self._health.waiting(str(error))
            except Exception as error:
                log.warning("the broker could not be watched", error=name_of(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._assignment.doubted.wait(), EVERY_S)
                self._assignment.doubted.clear()
                await asyncio.sleep(AT_ONCE_S)

    def _following(self) -> Mapping[TP, int]:
        return {tp: offset for tp, offset in (self._assignment.positions or {}).items() if offset >= 0}

    async def look(self) -> None:
        """Look once. Raises DependencyDown."""
        following, trail = self._following(), self._assignment.trail
        kept: dict[Place, Sequence[LogPosition]] = {tp: trail.of(tp) for tp in following}
        look = await asyncio.to_thread(self._watch.look)
        self._tell_lacking(look)
        if look.missing:
            raise DependencyDown(f"there is no topic {look.missing[0]}")
        wrong = await asyncio.to_thread(self._proof.disproved, kept)
        for (topic, partition), position in wrong.items():
            log.error(
                "the log is not the one that was read before", topic=topic, partition=partition,
                next=following[TP(topic, partition)], disproved=position.next_offset,
            )  # fmt: skip
        if wrong:
            return await self._distrust()
        for tp, positions in kept.items():
            trail.confirmed(tp, positions)
        return None

    def _tell_lacking(self, look: PartitionObservation) -> None:
        """Tell of partitions that no member has; for a moment, around an assignment, that is nothing."""
        lacking: list[Place] = list(look.unassigned)
        self._lacking_looks = self._lacking_looks + 1 if lacking else 0
        if not lacking:
            self._health.release(GROUP)
        elif self._lacking_looks > 1:
            names = ", ".join(f"{topic}[{partition}]" for topic, partition in lacking[:4])
            more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
            self._health.hold(GROUP, f"no member of the group has {names}{more}")
        many = Counter(topic for topic, _ in lacking)
        for topic in self._watch.topics:
            metrics.PARTITIONS_UNASSIGNED.of(topic).set(many[topic])
