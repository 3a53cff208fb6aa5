"""Batch executor: retries a batch while a dependency is unavailable, finds and parks records that can never succeed."""

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
from processors.engine.assignment import error_name, position_fields
from processors.engine.handler import AssignmentLost, BatchHandler, Decoded

log = get_logger()

PARK_AFTER = 3
"""Failures of a single record with an unexpected error before it is parked; RecordRefused parks it at once."""
DECODING, WORKING = "decoding", "working"
"""Stages of the work, each with its own count of failures, because the database may refuse every readable record."""


class BatchExecutor:
    """Passes batches through a handler. on_success: called after each batch, or half of one, that succeeded."""

    def __init__(self, handler: BatchHandler, health: Health, parking: Parking, on_success: Callable[[], None]) -> None:
        self._handler = handler
        self._health = health
        self._parking = parking
        self._on_success = on_success

    async def execute(self, records: Sequence[Record], still_assigned: Callable[[], bool]) -> None:
        """Return once every record is processed or parked. Raises AssignmentLost once `still_assigned()` is false."""
        try:
            await self._until_done(await self._decode(records, still_assigned), still_assigned)
        finally:
            self._parking.go_on()

    async def _decode(self, records: Sequence[Record], still_assigned: Callable[[], bool]) -> list[Decoded]:
        """Decode the records and park those that can never be decoded; waits while the registry is unavailable."""
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
                    self._count_passed(DECODING, [each for each, _ in decoded[counted:]])
                    counted = len(decoded)
                    if await self._may_be_parked(DECODING, record, error, failures):
                        await self._park(record, error, still_assigned)
                        break
                backoff = backoff or Backoff(longest_s=5.0)
                await asyncio.sleep(backoff.next_wait_s())
                if not still_assigned():
                    raise AssignmentLost
        self._count_passed(DECODING, [each for each, _ in decoded[counted:]])
        return decoded

    def _count_passed(self, stage: str, records: Sequence[Record]) -> None:
        self._parking.handled(stage, Counter(record.topic for record in records))

    async def _until_done(self, records: Sequence[Decoded], still_assigned: Callable[[], bool]) -> None:
        """Process records, retrying as needed; those that can never succeed are found by halving and parked."""
        backoff, failures = Backoff(longest_s=10.0), 0
        while records:
            if not still_assigned():
                raise AssignmentLost
            try:
                await self._handler.work(records, still_assigned)
                self._count_passed(WORKING, [record for record, _ in records])
                self._on_success()
                return
            except AssignmentLost:
                raise
            except DependencyDown as error:
                self._health.waiting(str(error))
                log.warning("batch waiting for a dependency", error=str(error), records=len(records))
            except Exception as error:
                if len(records) > 1:
                    middle = len(records) // 2
                    for half in (records[:middle], records[middle:]):
                        # Each half may take long without a commit; a new reason keeps the watchdog from seeing a hang.
                        self._health.waiting("a failed batch, which is processed in halves")
                        await self._until_done(half, still_assigned)
                    return
                failures += 1
                if await self._may_be_parked(WORKING, records[0][0], error, failures):
                    await self._park(records[0][0], error, still_assigned)
                    return
                log.warning("record failed, retrying", error=error_name(error), **_at(records[0][0]))
            await asyncio.sleep(backoff.next_wait_s())

    async def _may_be_parked(self, stage: str, record: Record, error: Exception, failures: int) -> bool:
        """Say whether a failure lies in the record; many failures in a row are the processor's and park nothing."""
        if not isinstance(error, RecordRefused) and failures < PARK_AFTER:
            return False
        try:
            if await self._parking.allows(stage, record, _refusal(error).reason):
                return True
        except DependencyDown as outage:
            self._health.waiting(str(outage))
            return False
        # Reported at every retry, so that the watchdog does not see a hang.
        self._health.waiting("the cause of the failures to be fixed")
        return False

    async def _park(self, record: Record, error: Exception, still_assigned: Callable[[], bool]) -> None:
        refused = _refusal(error)
        backoff = Backoff(longest_s=10.0)
        while still_assigned():
            try:
                await self._handler.park(record, refused.reason, refused.error)
                log.error("record parked", reason=refused.reason, error=refused.error, **_at(record))
                if still_assigned():
                    return
            except DependencyDown as outage:
                self._health.waiting(str(outage))
            await asyncio.sleep(backoff.next_wait_s())
        raise AssignmentLost


def _refusal(error: Exception) -> RecordRefused:
    return error if isinstance(error, RecordRefused) else RecordRefused("failed", error_name(error))


def _at(record: Record) -> dict[str, object]:
    return position_fields(TP(record.topic, record.partition), record.offset)
