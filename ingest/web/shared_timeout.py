"""Shared timeout: `asyncio.timeout` for many waits, with one timer for all of them instead of one for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

Result = TypeVar("Result")

LOOK_EVERY_S = 0.25


class SharedTimeout:
    """Limits each wait to `within_s` seconds, plus LOOK_EVERY_S at most. Belongs to the event loop of its first use."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        # In the order of their start, so that the first is due first.
        self._due: dict[asyncio.Task[Any], float] = {}
        self._looking = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait_for(self, wait: Awaitable[Result]) -> Result:
        """Return the result of `wait` in the current task. Raises TimeoutError when it takes too long."""
        # Cached, because Python 3.11 makes a system call in each `get_running_loop`.
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline is for tasks")
        self._due[task] = loop.time() + self._within_s
        if not self._looking:
            self._looking = True
            loop.call_later(LOOK_EVERY_S, self._look, loop)
        try:
            return await wait
        except asyncio.CancelledError:
            # Cancelled by other code: before the deadline, or at the same time as the deadline.
            if task in self._due or task.uncancel():
                raise
            raise TimeoutError from None
        finally:
            self._due.pop(task, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._due:
            task = next(iter(self._due))
            if self._due[task] > now:
                break
            del self._due[task]
            task.cancel()
        self._looking = bool(self._due)
        if self._looking:
            loop.call_later(LOOK_EVERY_S, self._look, loop)
