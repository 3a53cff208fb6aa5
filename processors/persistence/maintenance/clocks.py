"""The time by which something is deleted: a clock that is far ahead would delete what is young."""

from __future__ import annotations

from datetime import datetime, timedelta

from nigredo.clock import Clock
from nigredo.observability.logs import get_logger
from nigredo.postgres.pool import Pool, transaction
from processors.persistence.store import DEADLINE_S

log = get_logger()

CLOCKS_DIFFER = timedelta(minutes=5)


async def earlier_now(pool: Pool, clock: Clock) -> datetime:
    """Return the earlier of this machine's time and the database's. Raises DependencyDown.

    Kafka tells a client no time of its own: the newest record may rightly be old. The database is a second witness.
    """
    async with transaction(pool, deadline_s=DEADLINE_S) as connection:
        row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    ours = clock()
    theirs: datetime = row[0] if row else ours
    if abs(ours - theirs) > CLOCKS_DIFFER:
        log.error("clocks differ: what is past its time is told by the earlier one",
                  ours=ours.isoformat(), database=theirs.isoformat())  # fmt: skip
    return min(ours, theirs)
