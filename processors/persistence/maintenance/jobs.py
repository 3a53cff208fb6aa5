"""Maintenance jobs of the persister: each repeats in its own task, survives every error and never delays storing."""

from __future__ import annotations

import asyncio
from typing import Protocol

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown
from nigredo.observability.logs import get_logger

log = get_logger()


class Job(Protocol):
    """A repeated job. `first_after_s`: seconds before its first run."""

    name: str
    first_after_s: float

    async def run(self) -> float:
        """Run once; return the seconds until the next run. Raises DependencyDown when a retry may succeed."""


class Jobs:
    """Runs jobs until closed. Must be created on the event loop that runs them."""

    def __init__(self, *jobs: Job) -> None:
        self._tasks = [asyncio.create_task(self._repeat(job), name=job.name) for job in jobs]

    async def close(self) -> None:
        """Cancel the jobs; an open transaction is rolled back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @staticmethod
    async def _repeat(job: Job) -> None:
        backoff = Backoff(longest_s=2.0)
        wait_s = job.first_after_s
        while True:
            await asyncio.sleep(wait_s)
            try:
                wait_s = await job.run()
                backoff.reset()
            except Exception as error:
                if backoff.failures == 0:
                    # Logged once an outage. Of other errors only the type, because their text may quote a row.
                    reason = str(error) if isinstance(error, DependencyDown) else type(error).__name__
                    log.warning("maintenance job failed, retrying", chore=job.name, error=reason)
                wait_s = backoff.next_wait_s()
