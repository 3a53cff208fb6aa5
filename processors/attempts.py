"""Doing the work of a batch for as long as it takes: retry what may succeed later, find and park what never can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from faust.types import TP

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.health import Health
from nigredo.record import Record
from nigredo.telemetry import get_logger
from processors.assignment import name_of, place
from processors.handler import Decoded, Handler, Stale

log = get_logger()

PARK_AFTER = 3
"""A record that failed this often alone, for no reason that could pass, is parked."""
FAILED_IN_A_ROW_MAX = 20
"""Records parked one after another for no known reason; then a release is broken, and parking would hide it."""


class Attempts:
    """Brings batches through a handler. `works` is called whenever one went through."""

    def __init__(self, handler: Handler, health: Health, works: Callable[[], None]) -> None:
        self._handler = handler
        self._health = health
        self._works = works
        self._failed_in_a_row = 0

    async def do(self, records: Sequence[Record], still_ours: Callable[[], bool]) -> None:
        """Return once every record is handled or parked. Raises Stale when they are somebody else's by now."""
        await self._until_done(await self._decode(records, still_ours), still_ours)

    async def _decode(self, records: Sequence[Record], still_ours: Callable[[], bool]) -> list[Decoded]:
        """Decode what can be decoded and park the rest, waiting for the registry if it must be asked."""
        decoded: list[Decoded] = []
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
                    if self._may_be_parked(error, failures):
                        await self._park(record, error, still_ours)
                        break
                backoff = backoff or Backoff(longest_s=5.0)
                await asyncio.sleep(backoff.next_wait_s())
                if not still_ours():
                    raise Stale
        return decoded

    async def _until_done(self, records: Sequence[Decoded], still_ours: Callable[[], bool]) -> None:
        """Handle records for as long as it takes; those that never can be are found by halving and parked."""
        backoff, failures = Backoff(longest_s=10.0), 0
        while records:
            if not still_ours():
                raise Stale
            try:
                await self._handler.work(records, still_ours)
                self._failed_in_a_row = 0
                self._works()
                return
            except Stale:
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
                if self._may_be_parked(error, failures):
                    await self._park(records[0][0], error, still_ours)
                    return
                log.warning("a record failed", error=name_of(error), **_at(records[0][0]))
            await asyncio.sleep(backoff.next_wait_s())

    def _may_be_parked(self, error: Exception, failures: int) -> bool:
        """Say whether a record is to blame for its failure; many in a row for no known reason blame the program."""
        if isinstance(error, RecordRefused):
            return True
        if failures < PARK_AFTER:
            return False
        if self._failed_in_a_row >= FAILED_IN_A_ROW_MAX:
            self._health.waiting(f"{FAILED_IN_A_ROW_MAX} records in a row failed with {name_of(error)}: a person")
            return False
        self._failed_in_a_row += 1
        return True

    async def _park(self, record: Record, error: Exception, still_ours: Callable[[], bool]) -> None:
        refused = error if isinstance(error, RecordRefused) else RecordRefused("failed", type(error).__name__)
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
        raise Stale


def _at(record: Record) -> dict[str, object]:
    return place(TP(record.topic, record.partition), record.offset)
