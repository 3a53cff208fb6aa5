"""Deletes rows that are past their time, as their topics do; leads and accepted submissions stay."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import timedelta

from nigredo.clock import Clock, utc_now
from nigredo.observability.logs import get_logger
from nigredo.postgres.pool import Pool, transaction
from processors.persistence.maintenance.clocks import earlier_now
from processors.persistence.store import DEADLINE_S, load_queries
from schemas.topics import DELIVERIES, REJECTIONS, TOPICS

log = get_logger()

EVERY_S = 3600.0
BATCH_MAX = 1000


def _as_long_as(topic: str) -> timedelta:
    return timedelta(milliseconds=int(TOPICS[topic].config["retention.ms"]))


KEPT: Mapping[str, timedelta] = {
    # A day, says the operations runbook: longer than any window, so that it decides nothing.
    "rate_limits": timedelta(hours=24),
    "form_submissions": _as_long_as(REJECTIONS),
    "webhook_logs": _as_long_as(DELIVERIES),
}


class RowRetention:
    """The chore that deletes, some rows a transaction, so that nobody waits long for a lock."""

    name = "clean-up"

    def __init__(self, pool: Pool, clock: Clock = utc_now) -> None:
        self._pool = pool
        self._clock = clock
        self._sql = load_queries()
        # Not at once, and persisters that were started together not together.
        self.first_after_s = random.uniform(30.0, 90.0)  # noqa: S311 - jitter, not a secret

    async def run(self) -> float:
        """Delete all that is past its time. Raises DependencyDown; what was deleted until then is."""
        now = await earlier_now(self._pool, self._clock)
        deleted = {table: await self._empty(table, {"before": now - kept}) for table, kept in KEPT.items()}
        if any(deleted.values()):
            log.info("rows past their time were deleted", **deleted)
        return random.uniform(0.9, 1.1) * EVERY_S  # noqa: S311 - jitter, not a secret

    async def _empty(self, table: str, values: Mapping[str, object]) -> int:
        deleted = 0
        while True:
            async with transaction(self._pool, deadline_s=DEADLINE_S) as connection:
                await connection.execute(self._sql["bookkeeping"])
                cursor = await connection.execute(self._sql[f"clean_{table}"], {**values, "count": BATCH_MAX})
            deleted += cursor.rowcount
            if cursor.rowcount < BATCH_MAX:
                return deleted
