"""The processes that may be harmed: those of a stack, and further ones of the same part beside them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from nigredo.backoff import Backoff
from nigredo.stack import supervisor_socket as control
from nigredo.stack.part import http_waiting_for
from nigredo.testing import Stack

ASK_DEADLINE_S = 15.0
CHANGE_DEADLINE_S = 150.0
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Process:
    """One process at this moment."""

    part: str
    pid: int
    ready: bool


class Extra:
    """One more process of a part in the same group, with a state folder of its own; started again when it dies."""

    def __init__(self, stack: Stack, part: str) -> None:
        self.part = part
        self.port = _free_port()
        self._log = stack.home.log_file(f"second-{part}")
        environment = stack.home.part_environment(os.environ, f"second-{part}")
        self._environment = environment | {
            "NIGREDO_STATE_DIR": str(stack.home.dir / f"second-{part}"),
            "INGEST_PORT" if part == "ingest" else "HEALTH_PORT": str(self.port),
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def ready(self) -> bool:
        """Say whether it does its work. Blocks for a moment."""
        return self.pid is not None and http_waiting_for(self.port, "/health/ready") is None

    async def keep(self) -> None:
        """Run it again and again, until cancelled."""
        backoff = Backoff(longest_s=2.0)
        command = [sys.executable, "-m", "nigredo.cli", "run", self.part]
        while True:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *command, env=self._environment, stdout=log, stderr=log, start_new_session=True
                )
            try:
                await self._process.wait()
            finally:
                # Its workers too: they hold its port.
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                await self._process.wait()
            await asyncio.sleep(backoff.next_wait_s())


class Processes:
    """All processes of a stack, as its supervisor knows them, and the further ones."""

    def __init__(self, stack: Stack, extras: list[Extra]) -> None:
        self._stack = stack
        self._extras = extras

    def wanted(self, part: str) -> int:
        """Return how many processes a part has when all of them run."""
        return 1 + sum(extra.part == part for extra in self._extras)

    async def all(self) -> list[Process]:
        """Return every running process."""
        return await asyncio.to_thread(self._look)

    async def change(self, do: str, part: str) -> None:
        """Let the supervisor `stop` or `start` a part, and wait until that is so."""
        await self._ask({"do": do, "part": part}, CHANGE_DEADLINE_S)

    async def all_ready(self) -> bool:
        """Say whether everything that there is does its work."""
        status = await self._ask({"do": "status"}, ASK_DEADLINE_S)
        return bool(status["ready"]) and all([await asyncio.to_thread(extra.ready) for extra in self._extras])

    async def seconds_until(self, seen: Callable[[list[Process]], bool], *, within_s: float) -> float | None:
        """Wait for something to be seen of the processes and return how long that took; None when it never was."""
        began = time.monotonic()
        while time.monotonic() - began < within_s:
            if seen(await self.all()):
                return time.monotonic() - began
            await asyncio.sleep(LOOK_EVERY_S)
        return None

    @asynccontextmanager
    async def further(self) -> AsyncIterator[None]:
        """Keep the further processes running."""
        keeping = [asyncio.create_task(extra.keep()) for extra in self._extras]
        try:
            yield
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    def _look(self) -> list[Process]:
        parts: dict[str, Any] = control.ask(self._stack.home, {"do": "status"}, deadline_s=ASK_DEADLINE_S)["parts"]
        found = [Process(name, part["pid"], part["ready"]) for name, part in parts.items() if part["pid"]]
        further = ((extra.part, extra.pid, extra.ready()) for extra in self._extras)
        return found + [Process(part, pid, ready) for part, pid, ready in further if pid is not None]

    async def _ask(self, request: control.Answer, deadline_s: float) -> control.Answer:
        return await asyncio.to_thread(control.ask, self._stack.home, request, deadline_s=deadline_s)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
