"""Row retention: deletes expired rows, as their topics delete records; leads and accepted submissions stay."""

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


def _retention_of(topic: str) -> timedelta:
    return timedelta(milliseconds=int(TOPICS[topic].config["retention.ms"]))


RETENTION: Mapping[str, timedelta] = {
    # The operations runbook asks for a day. No window is longer, so that deleted rows affect no verdict.
    "rate_limits": timedelta(hours=24),
    "form_submissions": _retention_of(REJECTIONS),
    "webhook_logs": _retention_of(DELIVERIES),
}
"""Age by table past which a row is deleted."""


class RowRetention:
    """Maintenance job that deletes at most `BATCH_MAX` rows in a transaction, so that locks are held only briefly."""

    name = "clean-up"

    def __init__(self, pool: Pool, clock: Clock = utc_now) -> None:
        self._pool = pool
        self._clock = clock
        self._sql = load_queries()
        # Delayed and jittered, so that persisters started together do not delete together.
        self.first_after_s = random.uniform(30.0, 90.0)  # noqa: S311 - jitter, not a secret

    async def run(self) -> float:
        """Delete every expired row. Raises DependencyDown; transactions committed before stay deleted."""
        now = await earlier_now(self._pool, self._clock)
        deleted = {table: await self._delete(table, {"before": now - age}) for table, age in RETENTION.items()}
        if any(deleted.values()):
            log.info("expired rows deleted", **deleted)
        return random.uniform(0.9, 1.1) * EVERY_S  # noqa: S311 - jitter, not a secret

    async def _delete(self, table: str, values: Mapping[str, object]) -> int:
        deleted = 0
        while True:
            async with transaction(self._pool, deadline_s=DEADLINE_S) as connection:
                await connection.execute(self._sql["bookkeeping"])
                cursor = await connection.execute(self._sql[f"clean_{table}"], {**values, "count": BATCH_MAX})
            deleted += cursor.rowcount
            if cursor.rowcount < BATCH_MAX:
                return deleted
