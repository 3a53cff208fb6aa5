"""What the persister does beside storing: each in a task that no trouble ends, and that storing never waits for."""

from __future__ import annotations

import asyncio
from typing import Protocol

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown
from nigredo.observability.logs import get_logger

log = get_logger()


class Job(Protocol):
    """Something that is done again and again."""

    name: str
    first_after_s: float

    async def run(self) -> float:
        """Do it once; return after how many seconds again. Raises DependencyDown for what may succeed later."""


class Jobs:
    """Runs chores until closed. Made on the event loop they run in."""

    def __init__(self, *chores: Job) -> None:
        self._tasks = [asyncio.create_task(self._repeat(chore), name=chore.name) for chore in chores]

    async def close(self) -> None:
        """End them where they wait; a transaction that is open is undone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @staticmethod
    async def _repeat(chore: Job) -> None:
        backoff = Backoff(longest_s=2.0)
        wait_s = chore.first_after_s
        while True:
            await asyncio.sleep(wait_s)
            try:
                wait_s = await chore.run()
                backoff.reset()
            except Exception as error:
                if backoff.failures == 0:
                    # Once an outage. Another error's text may quote a row, so only its name is told.
                    reason = str(error) if isinstance(error, DependencyDown) else type(error).__name__
                    log.warning("a chore waits", chore=chore.name, error=reason)
                wait_s = backoff.next_wait_s()
