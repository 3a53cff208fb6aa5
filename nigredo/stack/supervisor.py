"""Supervisor of the stack: starts the parts in order, keeps them running, stops them in order, reports their status."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nigredo.backoff import Backoff
from nigredo.errors import ConfigurationError, NigredoError, StartRefused
from nigredo.stack.home import Home
from nigredo.stack.part import Part
from nigredo.stack.supervised import POLL_STARTING_S, STATE_DIR, Supervised, describe, identity, seen

LOG_MAX_BYTES = 64 * 1024 * 1024
LOG_CHECK_S = 30.0
LEFTOVER_GRACE_S = 15.0


class StartFailed(NigredoError):
    """The start failed, so that no form can be accepted; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the start: a part to run, or work to be done once, such as creating the topics.

    needs: steps that must be done before this one starts. awaits: steps that the part waits for after its start.
    """

    name: str
    action: Part | Callable[[], object]
    needs: Sequence[str] = ()
    awaits: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Watch:
    """A check of the whole stack, repeated every `every_s` seconds once the step `after` is done.

    look: the check; blocks for some seconds at most and returns a trouble as one line, None for none. An exception
    counts as no trouble, because the answer is unknown and an unavailable part reports itself. part: a part whose
    restart triggers the check at once.
    """

    name: str
    look: Callable[[], str | None]
    after: str
    every_s: float
    part: str


@dataclass(slots=True)
class _Progress:
    """Progress of one step."""

    done: asyncio.Event
    reason: str | None = None
    refused: bool = False


class Supervisor:
    """Supervisor of all parts of one stack. Steps start when their needs are done, parts stop in the reverse order.

    A failing step is retried with back-off for as long as the stack runs. Forms are accepted once `goal` and the steps
    it needs are done.
    """

    def __init__(self, home: Home, steps: Sequence[Step], goal: str, watches: Sequence[Watch] = ()) -> None:
        self._home = home
        self._steps = steps
        self._watches = watches
        self._watch_troubles: dict[str, str | None] = {}
        self._goal = goal
        self._needed = needed_by(steps, goal)
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="supervisor")
        self._progress = {step.name: _Progress(asyncio.Event()) for step in steps}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log_trouble: str | None = None
        self.accepted = False
        """Whether forms were accepted at some time."""
        self.settled = False
        """Whether the start is over: forms are accepted, and the rest is ready, in trouble or past its deadline."""
        self.parts: Mapping[str, Supervised] = {
            step.name: Supervised(step.action, home, self._threads) for step in steps if isinstance(step.action, Part)
        }

    def begin(self) -> None:
        """Start a task for every step and watch; returns at once."""
        for step in self._steps:
            self._tasks[step.name] = asyncio.create_task(self._run_step(step), name=step.name)
        for watch in self._watches:
            self._tasks[watch.name] = asyncio.create_task(self._watch(watch), name=watch.name)
        self._tasks["log bounds"] = asyncio.create_task(self._bound_logs(), name="log bounds")

    async def until_accepting(self, deadline_s: float) -> None:
        """Wait until forms are accepted. Raises StartFailed past the deadline, or when a needed step is refused."""
        deadline = time.monotonic() + deadline_s
        while not self.accepting:
            for name in self._needed:
                part, progress = self.parts.get(name), self._progress[name]
                if progress.refused or (part is not None and part.refused):
                    log = f"; see {self._home.log_file(name)}" if part is not None else ""
                    raise StartFailed(f"{name}: {self._reason(name)}{log}")
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"no form can be accepted after {deadline_s:g} s, waiting for: {'; '.join(self.causes())}. "
                    "Run the command again: downloads, caches and data are kept. "
                    f"The logs are in {self._home.dir / 'logs'}"
                )
            await asyncio.sleep(POLL_STARTING_S / 2)
        self.accepted = True

    async def until_settled(self, deadline_s: float) -> None:
        """Wait until everything is ready, everything that is not ready is in trouble, or the deadline has passed."""
        await seen(lambda: self.ready or self._in_trouble(), time.monotonic() + deadline_s)
        self.settled = True

    async def stop(self) -> None:
        """Stop every part once all steps that need it have stopped."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        ended = {step.name: asyncio.Event() for step in self._steps}

        async def end(step: Step) -> None:
            for other in self._steps:
                if step.name in other.needs:
                    await ended[other.name].wait()
            if step.name in self.parts:
                await self.parts[step.name].stop()
            ended[step.name].set()

        await asyncio.gather(*(end(step) for step in self._steps))
        # Work in flight ends by its own deadlines; until then the home stays owned.
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    @property
    def accepting(self) -> bool:
        """Whether forms are accepted now."""
        done = all(self._progress[name].done.is_set() for name in self._needed)
        return done and (self._goal not in self.parts or self.parts[self._goal].ready)

    @property
    def ready(self) -> bool:
        """Whether every step is done, every part ready, and no watch reports a trouble."""
        done = all(progress.done.is_set() for progress in self._progress.values())
        return done and all(part.ready for part in self.parts.values()) and not self._troubles()

    def missing(self) -> list[str]:
        """Return a line for each part and step that is not ready, and one for each trouble."""
        reasons = {step.name: self._reason(step.name) for step in self._steps}
        return [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None] + self._troubles()

    def causes(self) -> list[str]:
        """Return a line for each part and step that is not ready although its needs are: the causes of a wait."""
        begun = [step.name for step in self._steps if all(self._progress[need].done.is_set() for need in step.needs)]
        return [f"{name}: {reason}" for name in begun if (reason := self._reason(name)) is not None]

    def status(self) -> dict[str, Any]:
        """Return the document of `nigredo status --json`."""
        parts = {name: part.describe() | {"waiting_for": self._reason(name)} for name, part in self.parts.items()}
        steps = {
            name: {"done": progress.done.is_set(), "waiting_for": self._reason(name)}
            for name, progress in self._progress.items()
            if name not in self.parts
        }
        return {
            "ready": self.ready,
            "accepting": self.accepting,
            "settled": self.settled,
            "parts": parts,
            "steps": steps,
            "troubles": self._troubles(),
        }

    def _in_trouble(self) -> bool:
        """Whether everything that is not ready is in trouble, or waits for a step in trouble."""
        troubled = {name for name, progress in self._progress.items() if progress.refused}
        troubled |= {name for name, part in self.parts.items() if part.in_trouble}
        for step in self._steps:  # Ordered: a step comes after the steps it needs.
            if troubled.intersection((*step.needs, *step.awaits)) and self._reason(step.name) is not None:
                troubled.add(step.name)
        waiting = {step.name for step in self._steps if self._reason(step.name) is not None}
        return bool(troubled) and waiting <= troubled

    def _reason(self, name: str) -> str | None:
        """Return the missing condition of a part or a step; None when it is ready."""
        part, progress = self.parts.get(name), self._progress[name]
        if part is not None and part.begun:
            return part.reason
        if progress.done.is_set():
            return None
        needs = next(step.needs for step in self._steps if step.name == name)
        missing = [need for need in needs if not self._progress[need].done.is_set()]
        return ", ".join(missing) if missing else progress.reason or "start"

    def _troubles(self) -> list[str]:
        """Return a line for each failed task of the supervisor, trouble of a watch, and log that is not bounded."""
        ended = [
            name for name, task in self._tasks.items() if task.done() and not task.cancelled() and task.exception()
        ]
        lines = [f"supervision of {name} ended by {type(self._tasks[name].exception()).__name__}" for name in ended]
        lines += [trouble for trouble in self._watch_troubles.values() if trouble is not None]
        return lines + ([f"logs are not bounded: {self._log_trouble}"] if self._log_trouble else [])

    async def _run_step(self, step: Step) -> None:
        for needed in step.needs:
            await self._progress[needed].done.wait()
        progress = self._progress[step.name]
        if isinstance(step.action, Part):
            part = self.parts[step.name]
            if not part.stopped:
                await part.start()
            await seen(lambda: part.ready)
        else:
            await self._run_work(step.action, progress)
        progress.done.set()

    async def _run_work(self, work: Callable[[], object], progress: _Progress) -> None:
        """Run the work of a step, and retry with back-off until it succeeds."""
        backoff = Backoff(first_s=0.2, longest_s=5.0)
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, work)
            except Exception as error:
                # Any exception: a library may raise any kind while a part comes up.
                progress.reason = describe(error)
                progress.refused = isinstance(error, (ConfigurationError, StartRefused))
                await asyncio.sleep(backoff.next_wait_s())
            else:
                progress.reason, progress.refused = None, False
                return

    async def _watch(self, watch: Watch) -> None:
        await self._progress[watch.after].done.wait()
        part, checked_pid = self.parts.get(watch.part), None

        def restarted() -> bool:
            return part is not None and part.ready and part.pid != checked_pid

        while True:
            # A restarted process may have other data, so it is checked at once.
            await seen(restarted, time.monotonic() + watch.every_s)
            checked_pid, trouble = part.pid if part is not None and part.ready else None, None
            with suppress(Exception):
                trouble = await asyncio.get_running_loop().run_in_executor(self._threads, watch.look)
            self._watch_troubles[watch.name] = trouble

    async def _bound_logs(self) -> None:
        """Rotate each log that exceeds `LOG_MAX_BYTES` into `{part}.log.1`, forever."""
        while True:
            trouble = None
            for name in self.parts:
                try:
                    await asyncio.to_thread(_bound, self._home.log_file(name))
                except OSError as error:
                    trouble = f"{name}: {describe(error)}"
            self._log_trouble = trouble
            await asyncio.sleep(LOG_CHECK_S)


def _bound(log: Path) -> None:
    """Rotate a log that has become too long. Raises OSError when the copy does not fit the disk."""
    if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
        try:
            # Copied and truncated, because the process keeps the file open; it appends, so it continues at the start.
            shutil.copyfile(log, log.with_suffix(".log.1"))
        finally:
            # Also on a full disk, because a growing log fills it.
            os.truncate(log, 0)


def needed_by(steps: Sequence[Step], goal: str) -> list[str]:
    """Return the goal and everything it needs, in the order of the steps."""
    needs, found, pending = {step.name: step.needs for step in steps}, set[str](), [goal]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += needs[name]
    return [step.name for step in steps if step.name in found]


def end_leftovers(home: Home) -> list[str]:
    """End parts that outlived a killed supervisor; return their names.

    A process is recognised by its id, its start time and its stack, so that no other process is ended: a copied home
    holds the process ids of the running stack that it was copied from.
    """
    ended = []
    for file in sorted((home.dir / "run").glob("*.pid")):
        pid, _, _ = (written := file.read_text(encoding="utf-8")).partition(" ")
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, ValueError):
            process = psutil.Process(int(pid))
            if identity(int(pid)) == written and _belongs(process, home):
                for number in (signal.SIGINT if file.stem == "postgres" else signal.SIGTERM, signal.SIGKILL):
                    process.send_signal(number)
                    with suppress(psutil.TimeoutExpired):
                        process.wait(LEFTOVER_GRACE_S)
                        break
                ended.append(file.stem)
        file.unlink(missing_ok=True)
    return ended + _end_orphans(home)


def _end_orphans(home: Home) -> list[str]:
    """End workers whose parent was killed; the state folder in their environment names their stack."""
    ended = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            state = process.environ().get(STATE_DIR)
            if process.ppid() == 1 and process.pid != os.getpid() and state and _is_folder_of(home, Path(state).parent):
                process.kill()
                process.wait(LEFTOVER_GRACE_S)
                ended.append(f"a worker ({process.pid})")
    return ended


def _belongs(process: psutil.Process, home: Home) -> bool:
    """Say whether a process was started for this home."""
    if state := process.environ().get(STATE_DIR):
        return _is_folder_of(home, Path(state).parent)
    # Parts started by an earlier release carry no mark, but have their folders on their command lines.
    paths = (Path(word.removeprefix("@")) for word in process.cmdline())
    return any(_is_folder_of(home, folder) for path in paths if path.is_absolute() for folder in path.parents[:2])


def _is_folder_of(home: Home, folder: Path) -> bool:
    try:
        return folder.samefile(home.dir)
    except OSError:
        return False
