"""Starts the parts in order, keeps them running, ends them in order, and answers what they are doing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, NigredoError
from nigredo.stack.home import Home
from nigredo.stack.part import Part

POLL_STARTING_S = 0.1
POLL_READY_S = 2.0
STABLE_AFTER_S = 30.0
"""A part that stayed ready this long starts again at once when it dies."""
GIVE_UP_AFTER = 5
"""A part that died this often without ever being ready ends the start of the stack."""
LOG_MAX_BYTES = 64 * 1024 * 1024
LOG_CHECK_S = 30.0
LEFTOVER_GRACE_S = 15.0


class StartFailed(NigredoError):
    """The stack did not become ready; the text names the part and its log."""


class Supervised:
    """One part under supervision: its process, its state, and the task that starts it again when it dies."""

    def __init__(self, part: Part, home: Home, threads: ThreadPoolExecutor) -> None:
        self.part = part
        self.restarts = 0
        self.failed_starts = 0
        self.waiting_for: str | None = "start"
        self.process: asyncio.subprocess.Process | None = None
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

    def describe(self) -> dict[str, Any]:
        """Return its entry in `nigredo status --json`."""
        waiting_for = self.waiting_for if self._keeper else "stopped by `nigredo stop`"
        return {
            "pid": self.pid,
            "ready": self.ready,
            "restarts": self.restarts,
            "waiting_for": None if self.ready else waiting_for or "start",
            "url": self.part.url,
        }

    async def start(self) -> None:
        """Begin to keep it running; nothing to do when that is so."""
        async with self._turn:
            if self._keeper is None:
                self.waiting_for, self.failed_starts = "start", 0
                self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it, by force when its grace has passed, and do not start it again."""
        async with self._turn:
            keeper, self._keeper = self._keeper, None
            if keeper is not None:
                keeper.cancel()
                with suppress(asyncio.CancelledError):
                    await keeper
            await self._end_process()

    async def until_ready(self, deadline: float) -> None:
        """Wait until it is ready. Raises StartFailed past the deadline or when it keeps dying."""
        while not self.ready:
            log = self._home.log_file(self.part.name)
            if self.failed_starts >= GIVE_UP_AFTER:
                raise StartFailed(f"{self.part.name} died {self.failed_starts} times at its start; see {log}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{self.part.name} is not ready in time, it waits for: {self.waiting_for}; see {log}")
            await asyncio.sleep(POLL_STARTING_S / 2)

    async def _keep(self) -> None:
        """Run the process again and again."""
        backoff = Backoff(first_s=0.2, longest_s=10.0)
        while True:
            ready_for_s = 0.0
            try:
                await self._in_thread(self.part.prepare or (lambda: None))
                ready_for_s = await self._watch(await self._spawn())
            except (NigredoError, OSError, subprocess.TimeoutExpired) as error:
                self.waiting_for = str(error)
            self._end_group()
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
                    env=dict(self.part.environment),
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
        (self._home.dir / "run" / f"{self.part.name}.pid").write_text(_identity(self.process.pid), encoding="utf-8")
        return self.process

    async def _watch(self, process: asyncio.subprocess.Process) -> float:
        """Look after the process until it ends; return for how long it was ready, in seconds."""
        ended = asyncio.create_task(process.wait())
        ready_since: float | None = None
        try:
            while not ended.done():
                self.waiting_for = await self._in_thread(self.part.waiting_for)
                if self.waiting_for is None and ready_since is None and not ended.done():
                    ready_since, self.failed_starts = time.monotonic(), 0
                await asyncio.wait({ended}, timeout=POLL_READY_S if self.ready else POLL_STARTING_S)
        finally:
            ended.cancel()
        self.waiting_for = f"a new start: it ended with {process.returncode}"
        return 0.0 if ready_since is None else time.monotonic() - ready_since

    async def _end_process(self) -> None:
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.send_signal(self.part.stop_signal)
            try:
                await asyncio.wait_for(self.process.wait(), self.part.grace_s)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
        self._end_group()
        self.waiting_for = "start"
        (self._home.dir / "run" / f"{self.part.name}.pid").unlink(missing_ok=True)

    def _end_group(self) -> None:
        """End whatever the process left behind in its group, such as a server's workers: they hold its port."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the start: a part, or work to be done once, such as creating the topics. `needs` names others."""

    name: str
    what: Part | Callable[[], object]
    needs: Sequence[str] = ()


class Supervisor:
    """All parts of one stack. Steps begin as soon as what they need is ready, and end in the reverse order."""

    def __init__(self, home: Home, steps: Sequence[Step]) -> None:
        self._home = home
        self._steps = steps
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="supervisor")
        self.parts: Mapping[str, Supervised] = {
            step.name: Supervised(step.what, home, self._threads) for step in steps if isinstance(step.what, Part)
        }
        self._logs = asyncio.create_task(self._bound_logs())
        self.started = False

    async def start(self, deadline_s: float) -> None:
        """Bring everything up.

        Raises StartFailed when a part does not become ready, and whatever the work between the parts raises.
        """
        deadline = time.monotonic() + deadline_s
        done = {step.name: asyncio.Event() for step in self._steps}

        async def take(step: Step) -> None:
            for needed in step.needs:
                await done[needed].wait()
            if isinstance(step.what, Part):
                await self.parts[step.name].start()
                await self.parts[step.name].until_ready(deadline)
            else:
                await asyncio.get_running_loop().run_in_executor(self._threads, step.what)
            done[step.name].set()

        try:
            async with asyncio.TaskGroup() as group:
                for step in self._steps:
                    group.create_task(take(step))
        except ExceptionGroup as errors:
            # The first one cancelled the others.
            raise errors.exceptions[0] from None
        self.started = True

    async def stop(self) -> None:
        """End every part once all that need it have ended."""
        self._logs.cancel()
        ended = {step.name: asyncio.Event() for step in self._steps}

        async def end(step: Step) -> None:
            for other in self._steps:
                if step.name in other.needs:
                    await ended[other.name].wait()
            if step.name in self.parts:
                await self.parts[step.name].stop()
            ended[step.name].set()

        await asyncio.gather(*(end(step) for step in self._steps))
        self._threads.shutdown(wait=False, cancel_futures=True)

    def status(self) -> dict[str, Any]:
        """Return what `nigredo status --json` prints."""
        parts = {name: supervised.describe() for name, supervised in self.parts.items()}
        return {"ready": self.started and all(part["ready"] for part in parts.values()), "parts": parts}

    async def _bound_logs(self) -> None:
        """Keep each log at a bounded size: the older half of what is kept is in `{part}.log.1`."""
        while True:
            for name in self.parts:
                log = self._home.log_file(name)
                if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
                    # Copied and cut, since the process keeps its file open; it appends, so it goes on at the start.
                    await asyncio.to_thread(shutil.copyfile, log, log.with_suffix(".log.1"))
                    os.truncate(log, 0)
            await asyncio.sleep(LOG_CHECK_S)


def end_leftovers(home: Home) -> list[str]:
    """End parts that outlived a supervisor which was killed; return their names.

    A process is known by its id and its start time, so that nobody else's is ever ended.
    """
    ended = []
    for file in sorted((home.dir / "run").glob("*.pid")):
        pid, _, _ = (identity := file.read_text(encoding="utf-8")).partition(" ")
        with suppress(psutil.NoSuchProcess, ValueError):
            if _identity(int(pid)) == identity:
                process = psutil.Process(int(pid))
                for number in (signal.SIGINT if file.stem == "postgres" else signal.SIGTERM, signal.SIGKILL):
                    process.send_signal(number)
                    with suppress(psutil.TimeoutExpired):
                        process.wait(LEFTOVER_GRACE_S)
                        break
                ended.append(file.stem)
        file.unlink(missing_ok=True)
    return ended + _end_orphans(home)


def _end_orphans(home: Home) -> list[str]:
    """End workers whose parent was killed; each carries its stack's state folder in its environment."""
    ended = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            mine = process.environ().get("NIGREDO_STATE_DIR") == str(home.dir / "state")
            if mine and process.ppid() == 1 and process.pid != os.getpid():
                process.kill()
                process.wait(LEFTOVER_GRACE_S)
                ended.append(f"a worker ({process.pid})")
    return ended


def check_ports(parts: Sequence[Part]) -> None:
    """Raise DependencyDown when another program listens where a part will."""
    for part in parts:
        for port in part.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise DependencyDown(
                        f"port {port}, for {part.name}, is in use by another program; end it or choose --port-base"
                    ) from error


def _identity(pid: int) -> str:
    """Return what tells this process from every other: its id and when it started."""
    return f"{pid} {psutil.Process(pid).create_time()}"
