"""Doing the work of a batch for as long as it takes: retry what may succeed later, find and park what never can."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from faust.types import TP

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka.parking import Parking
from nigredo.kafka.record import Record
from nigredo.observability.health import Health
from nigredo.observability.logs import get_logger
from processors.engine.assignment import name_of, place
from processors.engine.handler import AssignmentLost, BatchHandler, Decoded

log = get_logger()

PARK_AFTER = 3
"""A record that failed this often alone, for no reason that could pass, is parked."""
DECODING, WORKING = "decoding", "working"
"""Stages of the work, each with a run of its own: records that can be read may all be refused by the database."""


class BatchExecutor:
    """Brings batches through a handler. `works` is called whenever one went through."""

    def __init__(self, handler: BatchHandler, health: Health, parking: Parking, works: Callable[[], None]) -> None:
        self._handler = handler
        self._health = health
        self._parking = parking
        self._works = works

    async def execute(self, records: Sequence[Record], still_ours: Callable[[], bool]) -> None:
        """Return once every record is handled or parked. Raises Stale when they are somebody else's by now."""
        try:
            await self._until_done(await self._decode(records, still_ours), still_ours)
        finally:
            self._parking.go_on()

    async def _decode(self, records: Sequence[Record], still_ours: Callable[[], bool]) -> list[Decoded]:
        """Decode what can be decoded and park the rest, waiting for the registry if it must be asked."""
        decoded: list[Decoded] = []
        counted = 0
        for record in records:
            backoff, failures = None, 0
            while True:
                try:
                    decoded.append((record, await self._handler.decode(record)))
                    break
                except DependencyDown as error:
                    self._health.waiting(str(error))
                except Exception as error:
                    failures += 1
                    self._passed(DECODING, [each for each, _ in decoded[counted:]])
                    counted = len(decoded)
                    if await self._may_be_parked(DECODING, record, error, failures):
                        await self._park(record, error, still_ours)
                        break
                backoff = backoff or Backoff(longest_s=5.0)
                await asyncio.sleep(backoff.next_wait_s())
                if not still_ours():
                    raise AssignmentLost
        self._passed(DECODING, [each for each, _ in decoded[counted:]])
        return decoded

    def _passed(self, stage: str, records: Sequence[Record]) -> None:
        self._parking.handled(stage, Counter(record.topic for record in records))

    async def _until_done(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Handle records for as long as it takes; those that never can be are found by halving and parked."""
        backoff, failures = Backoff(longest_s=10.0), 0
        while records:
            if not still_ours():
                raise AssignmentLost
            try:
                await self._handler.work(records, still_ours)
                self._passed(WORKING, [record for record, _ in records])
                self._works()
                return
            except AssignmentLost:
                raise
            except DependencyDown as error:
                self._health.waiting(str(error))
                log.warning("a batch waits", error=str(error), records=len(records))
            except Exception as error:
                if len(records) > 1:
                    middle = len(records) // 2
                    for half in (records[:middle], records[middle:]):
                        # Each may take long, and nothing is committed meanwhile: no watchdog is to take it for a hang.
                        self._health.waiting("a batch that is handled part by part")
                        await self._until_done(half, still_ours)
                    return
                failures += 1
                if await self._may_be_parked(WORKING, records[0][0], error, failures):
                    await self._park(records[0][0], error, still_ours)
                    return
                log.warning("a record failed", error=name_of(error), **_at(records[0][0]))
            await asyncio.sleep(backoff.next_wait_s())

    async def _may_be_parked(self, stage: str, record: Record, error: Exception, failures: int) -> bool:
        """Say whether a record is to blame for its failure, and not its reader, which breaks on many in a row."""
        if not isinstance(error, RecordRefused) and failures < PARK_AFTER:
            return False
        try:
            if await self._parking.allows(stage, record, _refusal(error).reason):
                return True
        except DependencyDown as down:
            self._health.waiting(str(down))
            return False
        # Again and again: a watchdog is not to take it for a hang.
        self._health.waiting("the cause to be mended")
        return False

    async def _park(self, record: Record, error: Exception, still_ours: Callable[[], bool]) -> None:
        refused = _refusal(error)
        backoff = Backoff(longest_s=10.0)
        while still_ours():
            try:
                await self._handler.park(record, refused.reason, refused.error)
                log.error("a record was parked", reason=refused.reason, error=refused.error, **_at(record))
                if still_ours():
                    return
            except DependencyDown as down:
                self._health.waiting(str(down))
            await asyncio.sleep(backoff.next_wait_s())
        raise AssignmentLost


def _refusal(error: Exception) -> RecordRefused:
    return error if isinstance(error, RecordRefused) else RecordRefused("failed", name_of(error))


def _at(record: Record) -> dict[str, object]:
    return place(TP(record.topic, record.partition), record.offset)
