"""Supervision of one part: its process, its state, and the task that restarts the process when it ends."""

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
"""A part that was ready for this long restarts without back-off."""
TROUBLE_AFTER = 5
"""Failed starts in a row after which a part is in trouble: restarts go on, but commands stop waiting for the part."""
STATE_DIR = "NIGREDO_STATE_DIR"
"""Environment variable that marks every process with the stack it belongs to."""
LAST_WORDS_BYTES = 4096
LAST_WORDS_MAX = 500


class Supervised:
    """A supervised part: its process, its state, and the task that restarts the process when it ends."""

    def __init__(self, part: Part, home: Home, threads: ThreadPoolExecutor) -> None:
        self.part = part
        self.restarts = 0
        self.failed_starts = 0
        self.waiting_for: str | None = "start"
        self.refused = False
        """Whether the last start was refused because of wrong settings; a retry alone does not help."""
        self.stopped = False
        """Whether an operator stopped the part."""
        self._stopped_by: str | None = None
        self._stopped_at: datetime | None = None
        self.process: asyncio.subprocess.Process | None = None
        self._last_end: str | None = None
        self._home = home
        self._threads = threads
        self._supervision: asyncio.Task[None] | None = None
        self._start_or_stop = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id; None when the process does not run."""
        return self.process.pid if self.process and self.process.returncode is None else None

    @property
    def ready(self) -> bool:
        """Whether the process runs and passed its last readiness check."""
        return self.pid is not None and self.waiting_for is None

    @property
    def in_trouble(self) -> bool:
        """Whether an operator should look: the part is not ready, and was refused, was stopped or ends repeatedly."""
        return not self.ready and (self.refused or self.stopped or self.failed_starts >= TROUBLE_AFTER)

    @property
    def reason(self) -> str | None:
        """Missing condition in a few words; None when ready."""
        if self.ready:
            return None
        if self.stopped:
            by = self._stopped_by or "`nigredo stop`"
            return f"stopped by {by} at {self._stopped_at:%Y-%m-%d %H:%M:%S} UTC: `nigredo start {self.part.name}`"
        if self._supervision is not None and self._supervision.done():
            return f"its supervision ended; `nigredo restart {self.part.name}` starts it again"
        waiting_for = self.waiting_for or "start"
        return f"{waiting_for}; before, {self._last_end}" if self._last_end else waiting_for

    @property
    def state(self) -> str:
        """Return `ready`, `stopped` (by an operator) or `waiting`."""
        return "ready" if self.ready else "stopped" if self.stopped else "waiting"

    @property
    def begun(self) -> bool:
        """Whether the part was started, or stopped by an operator."""
        return self._supervision is not None or self.stopped

    def describe(self) -> dict[str, Any]:
        """Return the part's entry in `nigredo status --json`."""
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
        """Start the part and keep it running; does nothing when it is supervised already."""
        async with self._start_or_stop:
            self.stopped = False
            if self._supervision is None or self._supervision.done():
                self.waiting_for, self.failed_starts, self.refused, self._last_end = "start", 0, False, None
                self._supervision = asyncio.create_task(self._supervise(), name=f"supervision of {self.part.name}")

    async def stop(self, by: str | None = None) -> None:
        """Stop the part and leave it stopped; SIGKILL follows after `grace_s`.

        by: the operator's name, when known.
        """
        async with self._start_or_stop:
            self.stopped, self._stopped_by, self._stopped_at = True, by, utc_now()
            supervision, self._supervision = self._supervision, None
            if supervision is not None:
                supervision.cancel()
                # The process must end even when the task failed.
                await asyncio.gather(supervision, return_exceptions=True)
            await self._end_process()

    async def until_ready(self, deadline_s: float) -> None:
        """Wait until the part is ready.

        Raises NigredoError past the deadline or when the part is in trouble. Unless an operator stopped the part, its
        supervision goes on restarting it.
        """
        deadline = time.monotonic() + deadline_s
        while not self.ready:
            name, log = self.part.name, self._home.log_file(self.part.name)
            if self.stopped:
                raise NigredoError(f"{name} was {self.reason}")
            if self.in_trouble:
                raise NigredoError(f"{name} does not come up and is retried: {self.reason}; see {log}")
            if time.monotonic() > deadline:
                raise NigredoError(
                    f"{name} is not ready after {deadline_s:g} s and is still starting: {self.reason}; "
                    f"`nigredo status` shows it, and see {log}"
                )
            await asyncio.sleep(POLL_STARTING_S / 2)

    async def _supervise(self) -> None:
        """Run the process and restart it with back-off; every error is caught, so only cancellation ends this task."""
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
                    # Its own process group, so that Ctrl-C reaches only the supervisor, which stops the parts in order.
                    start_new_session=True,
                )
            )
            try:
                self.process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                # The process exists now or in a moment: record it, because the canceller must end it.
                self.process = await spawning
                raise
        # A process that has already ended needs no pid file.
        with suppress(psutil.NoSuchProcess):
            self._pid_file.write_text(identity(self.process.pid), encoding="utf-8")
        return self.process

    async def _watch(self, process: asyncio.subprocess.Process) -> float:
        """Check the readiness of the process until it ends; return the seconds it was ready."""
        ended = asyncio.create_task(process.wait())
        ready_since: float | None = None
        try:
            while not ended.done():
                try:
                    reason = await self._in_thread(self.part.waiting_for)
                except Exception as error:
                    # The check failed, not the part: ending the part would make things worse.
                    reason = f"the readiness check failed: {describe(error)}"
                self.waiting_for = reason
                if reason is None and not ended.done():
                    ready_since = ready_since or time.monotonic()
                    self.failed_starts, self.refused, self._last_end = 0, False, None
                await asyncio.wait({ended}, timeout=POLL_READY_S if self.ready else POLL_STARTING_S)
        finally:
            ended.cancel()
        code, words = process.returncode or 0, last_words(self._home.log_file(self.part.name))
        self.refused = code == self.part.refusal
        self.waiting_for = "a restart"
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
            # This only makes later starts faster, so a full disk must not fail the stop.
            with suppress(OSError):
                await self._in_thread(self.part.ended)

    def _end_group(self) -> None:
        """Kill the rest of the process group, such as a server's workers, because they hold its port."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def _pid_file(self) -> Path:
        return self._home.dir / "run" / f"{self.part.name}.pid"

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


async def seen(look: Callable[[], bool], deadline: float = math.inf) -> bool:
    """Wait until `look` returns True; return whether it did by the deadline, a value of `time.monotonic`."""
    while not (found := look()) and time.monotonic() < deadline:  # noqa: ASYNC110 - most conditions have no event
        await asyncio.sleep(POLL_STARTING_S / 2)
    return found


def describe(error: Exception) -> str:
    """Describe an error without secrets: of a foreign exception only its type, because its text may hold a password."""
    if isinstance(error, NigredoError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return type(error).__name__


def last_words(log: Path) -> str | None:
    """Return the reason a process of the product logged as its last line before it ended; None without one."""
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
    """Return the process id and start time, which together identify a process although ids are reused."""
    return f"{pid} {psutil.Process(pid).create_time()}"
