"""One part under supervision: its process, its state, and the task that starts it again when it ends."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from nigredo.backoff import Backoff
from nigredo.clock import utc_now
from nigredo.errors import ConfigurationError, NigredoError, StartRefused
from nigredo.stack.home import Home
from nigredo.stack.part import Part, check_ports

POLL_STARTING_S = 0.1
POLL_READY_S = 2.0
STABLE_AFTER_S = 30.0
"""A part that stayed ready this long starts again at once when it dies."""
TROUBLE_AFTER = 5
"""A part that ended this often without ever being ready is in trouble: it is tried on, and commands stop to wait."""
STATE_DIR = "NIGREDO_STATE_DIR"
"""In the environment of every part: the mark of the stack that it belongs to."""
LAST_WORDS_BYTES = 4096
LAST_WORDS_MAX = 500


class Supervised:
    """One part under supervision: its process, its state, and the task that starts it again when it ends."""

    def __init__(self, part: Part, home: Home, threads: ThreadPoolExecutor) -> None:
        self.part = part
        self.restarts = 0
        self.failed_starts = 0
        self.waiting_for: str | None = "start"
        self.refused = False
        """Whether its last start ended with a refusal, which waiting alone does not cure."""
        self.stopped = False
        """Whether an operator stopped it."""
        self._stopped_by: str | None = None
        self._stopped_at: datetime | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._last_end: str | None = None
        self._home = home
        self._threads = threads
        self._keeper: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self.process.pid if self.process and self.process.returncode is None else None

    @property
    def ready(self) -> bool:
        """Whether it runs and said at the last look that it is ready."""
        return self.pid is not None and self.waiting_for is None

    @property
    def in_trouble(self) -> bool:
        """Whether it is not ready, and a person should look: it refuses, ends again and again, or was stopped."""
        return not self.ready and (self.refused or self.stopped or self.failed_starts >= TROUBLE_AFTER)

    @property
    def reason(self) -> str | None:
        """What it waits for, in a few words; None when it is ready."""
        if self.ready:
            return None
        if self.stopped:
            by = self._stopped_by or "`nigredo stop`"
            return f"stopped by {by} at {self._stopped_at:%Y-%m-%d %H:%M:%S} UTC: `nigredo start {self.part.name}`"
        if self._keeper is not None and self._keeper.done():
            return f"its supervision ended; `nigredo restart {self.part.name}` begins it again"
        waiting_for = self.waiting_for or "start"
        return f"{waiting_for}; before, {self._last_end}" if self._last_end else waiting_for

    @property
    def state(self) -> str:
        """Return `ready`, `stopped` (by an operator) or `waiting`."""
        return "ready" if self.ready else "stopped" if self.stopped else "waiting"

    @property
    def begun(self) -> bool:
        """Whether it was started, or stopped by an operator."""
        return self._keeper is not None or self.stopped

    def describe(self) -> dict[str, Any]:
        """Return its entry in `nigredo status --json`."""
        return {
            "pid": self.pid,
            "ready": self.ready,
            "state": self.state,
            "stopped": {"by": self._stopped_by, "at": self._stopped_at.isoformat()}
            if self.stopped and self._stopped_at
            else None,
            "restarts": self.restarts,
            "waiting_for": self.reason,
            "url": self.part.url,
        }

    async def start(self) -> None:
        """Begin to keep it running; nothing to do when that is so."""
        async with self._turn:
            self.stopped = False
            if self._keeper is None or self._keeper.done():
                self.waiting_for, self.failed_starts, self.refused, self._last_end = "start", 0, False, None
                self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.part.name}")

    async def stop(self, by: str | None = None) -> None:
        """End it, by force when its grace has passed, and do not start it again.

        by: name of the operator, where that is known.
        """
        async with self._turn:
            self.stopped, self._stopped_by, self._stopped_at = True, by, utc_now()
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                keeper.cancel()
                # Whatever it ended with: the process is to end all the same.
                await asyncio.gather(keeper, return_exceptions=True)
            await self._end_process()

    async def until_ready(self, deadline_s: float) -> None:
        """Wait until it is ready.

        Raises NigredoError past the deadline, or when it is in trouble; in both cases it is still being started.
        """
        deadline = time.monotonic() + deadline_s
        while not self.ready:
            name, log = self.part.name, self._home.log_file(self.part.name)
            if self.stopped:
                raise NigredoError(f"{name} was {self.reason}")
            if self.in_trouble:
                raise NigredoError(f"{name} does not come up, and is tried again: {self.reason}; see {log}")
            if time.monotonic() > deadline:
                raise NigredoError(
                    f"{name} is not ready after {deadline_s:g} s, and is still on its way: {self.reason}; "
                    f"`nigredo status` shows it, and see {log}"
                )
            await asyncio.sleep(POLL_STARTING_S / 2)

    async def _keep(self) -> None:
        """Run the process again and again, whatever happens: this task ends by being cancelled and no other way."""
        backoff = Backoff(first_s=0.2, longest_s=10.0)
        while True:
            ready_for_s = 0.0
            try:
                if self.part.prepare is not None:
                    await self._in_thread(self.part.prepare)
                check_ports([self.part])
                ready_for_s = await self._watch(await self._spawn())
            except Exception as error:
                self.refused = isinstance(error, (ConfigurationError, StartRefused))
                self.waiting_for, self._last_end = describe(error), None
            self._end_group()
            self.process = None
            if ready_for_s == 0:
                self.failed_starts += 1
            if ready_for_s >= STABLE_AFTER_S:
                backoff.reset()
            self.restarts += 1
            await asyncio.sleep(backoff.next_wait_s())

    async def _spawn(self) -> asyncio.subprocess.Process:
        self.waiting_for = "start"
        with self._home.log_file(self.part.name).open("ab") as log:
            spawning = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *self.part.prefix,
                    *self.part.command,
                    env=dict(self.part.environment) | {STATE_DIR: str(self._home.dir / "state")},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Its own group: a Ctrl-C on the terminal is for the supervisor, which ends the parts in order.
                    start_new_session=True,
                )
            )
            try:
                self.process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                # It exists by now or will in a moment; whoever cancelled us ends it, so it must be known.
                self.process = await spawning
                raise
        # A process that has already ended leaves nothing to be found again.
        with suppress(psutil.NoSuchProcess):
            self._pid_file.write_text(identity(self.process.pid), encoding="utf-8")
        return self.process

    async def _watch(self, process: asyncio.subprocess.Process) -> float:
        """Look after the process until it ends; return for how long it was ready, in seconds."""
        ended = asyncio.create_task(process.wait())
        ready_since: float | None = None
        try:
            while not ended.done():
                try:
                    reason = await self._in_thread(self.part.waiting_for)
                except Exception as error:
                    # The look failed, not the part: ending it would make things worse.
                    reason = f"a look at it failed: {describe(error)}"
                self.waiting_for = reason
                if reason is None and not ended.done():
                    ready_since = ready_since or time.monotonic()
                    self.failed_starts, self.refused, self._last_end = 0, False, None
                await asyncio.wait({ended}, timeout=POLL_READY_S if self.ready else POLL_STARTING_S)
        finally:
            ended.cancel()
        code, words = process.returncode or 0, last_words(self._home.log_file(self.part.name))
        self.refused = code == self.part.refusal
        self.waiting_for = "a new start"
        self._last_end = f"it ended with {code}" + (f": {words}" if words and code > 0 else "")
        return 0.0 if ready_since is None else time.monotonic() - ready_since

    async def _end_process(self) -> None:
        if self.process is None:
            return
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(self.part.stop_signal)
            try:
                await asyncio.wait_for(self.process.wait(), self.part.grace_s)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        by_force = self.process.returncode == -signal.SIGKILL
        self._end_group()
        self.process = None
        self.waiting_for = "start"
        self._pid_file.unlink(missing_ok=True)
        if self.part.ended is not None and not by_force:
            # A saving for later starts: a disk that is full ends nothing.
            with suppress(OSError):
                await self._in_thread(self.part.ended)

    def _end_group(self) -> None:
        """End whatever the process left behind in its group, such as a server's workers: they hold its port."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def _pid_file(self) -> Path:
        return self._home.dir / "run" / f"{self.part.name}.pid"

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


async def seen(look: Callable[[], bool], deadline: float = math.inf) -> bool:
    """Wait until `look` finds it so; return whether it did by the deadline."""
    while not (found := look()) and time.monotonic() < deadline:  # noqa: ASYNC110 - most of it no event tells of
        await asyncio.sleep(POLL_STARTING_S / 2)
    return found


def describe(error: Exception) -> str:
    """Say what went wrong without a secret: another library's text may repeat a connection's password."""
    if isinstance(error, NigredoError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return type(error).__name__


def last_words(log: Path) -> str | None:
    """Return the reason that one of our own processes gave for its end as its last line; None without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_WORDS_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    last = lines[-1] if lines else ""
    if last.startswith("nigredo: "):
        return last.removeprefix("nigredo: ")[:LAST_WORDS_MAX]
    with suppress(ValueError):
        document = json.loads(last)
        if isinstance(document, dict) and document.get("message") == "stopped":
            return str(document.get("error", ""))[:LAST_WORDS_MAX] or None
    return None


def identity(pid: int) -> str:
    """Return what tells this process from every other: its id and when it started."""
    return f"{pid} {psutil.Process(pid).create_time()}"
