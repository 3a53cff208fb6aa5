"""One deadline for many waits: what `asyncio.timeout` does, with one timer for all of them instead of one for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

Result = TypeVar("Result")

LOOK_EVERY_S = 0.25


class SharedTimeout:
    """Lets each wait take so long, and a look's interval more at most. Belongs to the event loop it is used in."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        # In the order of their beginning, so that the first is due first.
        self._due: dict[asyncio.Task[Any], float] = {}
        self._looking = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait_for(self, wait: Awaitable[Result]) -> Result:
        """Return what the present task waits for. Raises TimeoutError when it takes too long."""
        # Python 3.11 asks the system each time whether this still is the process that the loop runs in.
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
            # Somebody else's, as long as it is not over; and his too, if he came at the same time.
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
