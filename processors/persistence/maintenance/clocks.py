"""Time for retention: the earlier of two clocks, because a clock far ahead would delete young records and rows."""

from __future__ import annotations

from datetime import datetime, timedelta

from nigredo.clock import Clock
from nigredo.observability.logs import get_logger
from nigredo.postgres.pool import Pool, transaction
from processors.persistence.store import DEADLINE_S

log = get_logger()

CLOCKS_DIFFER = timedelta(minutes=5)
"""Difference between the two clocks past which an error is logged."""


async def earlier_now(pool: Pool, clock: Clock) -> datetime:
    """Return the earlier of this machine's time and the database's. Raises DependencyDown.

    The second clock is the database's, because Kafka gives clients no time: its newest record may rightly be old.
    """
    async with transaction(pool, deadline_s=DEADLINE_S) as connection:
        row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    ours = clock()
    theirs: datetime = row[0] if row else ours
    if abs(ours - theirs) > CLOCKS_DIFFER:
        log.error("clocks differ, retention uses the earlier time",
                  ours=ours.isoformat(), database=theirs.isoformat())  # fmt: skip
    return min(ours, theirs)
