"""Starts the parts in order, keeps them running, ends them in order, and answers what they are doing."""

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
    """No form can be accepted; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the start: a part, or work to be done once, such as creating the topics.

    It begins when the steps in `needs` are done; those in `awaits` it may have to wait for by itself.
    """

    name: str
    what: Part | Callable[[], object]
    needs: Sequence[str] = ()
    awaits: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Watch:
    """A question about the whole stack that is asked again and again once a step is done.

    look: blocks for some seconds at most; returns a trouble as one line, None for none. What it raises is no trouble:
    then the answer is not known, and a part that is away says so itself. part: whose new process is asked at once.
    """

    name: str
    look: Callable[[], str | None]
    after: str
    every_s: float
    part: str


@dataclass(slots=True)
class _Progress:
    """How far one step is."""

    done: asyncio.Event
    reason: str | None = None
    refused: bool = False


class Supervisor:
    """All parts of one stack. Steps begin as soon as what they need is ready, and end in the reverse order.

    No answer of a part ends a step: whatever may pass is tried again with back-off. Forms are accepted once `goal`
    and what it needs are ready; the rest is tried for as long as the stack runs.
    """

    def __init__(self, home: Home, steps: Sequence[Step], goal: str, watches: Sequence[Watch] = ()) -> None:
        self._home = home
        self._steps = steps
        self._watches = watches
        self._found: dict[str, str | None] = {}
        self._goal = goal
        self._needed = needed_by(steps, goal)
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="supervisor")
        self._progress = {step.name: _Progress(asyncio.Event()) for step in steps}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log_trouble: str | None = None
        self.accepted = False
        """Whether forms were accepted once."""
        self.settled = False
        """Whether the start is over: forms are accepted, and the rest is ready or had its time."""
        self.parts: Mapping[str, Supervised] = {
            step.name: Supervised(step.what, home, self._threads) for step in steps if isinstance(step.what, Part)
        }

    def begin(self) -> None:
        """Begin with every step. Returns at once."""
        for step in self._steps:
            self._tasks[step.name] = asyncio.create_task(self._take(step), name=step.name)
        for watch in self._watches:
            self._tasks[watch.name] = asyncio.create_task(self._watch(watch), name=watch.name)
        self._tasks["log bounds"] = asyncio.create_task(self._bound_logs(), name="log bounds")

    async def until_accepting(self, deadline_s: float) -> None:
        """Wait until forms are accepted. Raises StartFailed past the deadline, or for what no waiting cures."""
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
                    "Type it once more: downloads, caches and data are kept. "
                    f"The logs are in {self._home.dir / 'logs'}"
                )
            await asyncio.sleep(POLL_STARTING_S / 2)
        self.accepted = True

    async def until_settled(self, deadline_s: float) -> None:
        """Wait until everything is ready, or a person must look at all that is not, or the deadline passed."""
        await seen(lambda: self.ready or self._in_trouble(), time.monotonic() + deadline_s)
        self.settled = True

    async def stop(self) -> None:
        """End every part once all that need it have ended."""
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
        # A step that is under way ends by its own deadlines; until then this home belongs to us.
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    @property
    def accepting(self) -> bool:
        """Whether forms are accepted."""
        done = all(self._progress[name].done.is_set() for name in self._needed)
        return done and (self._goal not in self.parts or self.parts[self._goal].ready)

    @property
    def ready(self) -> bool:
        """Whether everything is."""
        done = all(progress.done.is_set() for progress in self._progress.values())
        return done and all(part.ready for part in self.parts.values()) and not self._troubles()

    def missing(self) -> list[str]:
        """Return a line for each part and step that is not ready."""
        reasons = {step.name: self._reason(step.name) for step in self._steps}
        return [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None] + self._troubles()

    def causes(self) -> list[str]:
        """Return a line for each part and step that is not ready although what it needs is."""
        begun = [step.name for step in self._steps if all(self._progress[need].done.is_set() for need in step.needs)]
        return [f"{name}: {reason}" for name in begun if (reason := self._reason(name)) is not None]

    def status(self) -> dict[str, Any]:
        """Return what `nigredo status --json` prints."""
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
        """Whether waiting for what is not ready helps no more."""
        troubled = {name for name, progress in self._progress.items() if progress.refused}
        troubled |= {name for name, part in self.parts.items() if part.in_trouble}
        for step in self._steps:  # Each comes after what it needs.
            if troubled.intersection((*step.needs, *step.awaits)) and self._reason(step.name) is not None:
                troubled.add(step.name)
        waiting = {step.name for step in self._steps if self._reason(step.name) is not None}
        return bool(troubled) and waiting <= troubled

    def _reason(self, name: str) -> str | None:
        """Return what a part or a step waits for; None when it is ready."""
        part, progress = self.parts.get(name), self._progress[name]
        if part is not None and part.begun:
            return part.reason
        if progress.done.is_set():
            return None
        needs = next(step.needs for step in self._steps if step.name == name)
        missing = [need for need in needs if not self._progress[need].done.is_set()]
        return ", ".join(missing) if missing else progress.reason or "start"

    def _troubles(self) -> list[str]:
        """Return a line for each task of the supervisor's own that does not do its work, and what watches found."""
        ended = [
            name for name, task in self._tasks.items() if task.done() and not task.cancelled() and task.exception()
        ]
        lines = [f"supervision of {name} ended by {type(self._tasks[name].exception()).__name__}" for name in ended]
        lines += [found for found in self._found.values() if found is not None]
        return lines + ([f"logs are not bounded: {self._log_trouble}"] if self._log_trouble else [])

    async def _take(self, step: Step) -> None:
        for needed in step.needs:
            await self._progress[needed].done.wait()
        progress = self._progress[step.name]
        if isinstance(step.what, Part):
            part = self.parts[step.name]
            if not part.stopped:
                await part.start()
            await seen(lambda: part.ready)
        else:
            await self._work(step.what, progress)
        progress.done.set()

    async def _work(self, work: Callable[[], object], progress: _Progress) -> None:
        """Do the work of a step, as often as it takes."""
        backoff = Backoff(first_s=0.2, longest_s=5.0)
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, work)
            except Exception as error:
                # Of many kinds: what a library says while a part comes up is no promise of it.
                progress.reason = describe(error)
                progress.refused = isinstance(error, (ConfigurationError, StartRefused))
                await asyncio.sleep(backoff.next_wait_s())
            else:
                progress.reason, progress.refused = None, False
                return

    async def _watch(self, watch: Watch) -> None:
        await self._progress[watch.after].done.wait()
        part, asked = self.parts.get(watch.part), None

        def began_again() -> bool:
            return part is not None and part.ready and part.pid != asked

        while True:
            # Another process may have begun on other data: it is not left to the next turn.
            await seen(began_again, time.monotonic() + watch.every_s)
            asked, found = part.pid if part is not None and part.ready else None, None
            with suppress(Exception):
                found = await asyncio.get_running_loop().run_in_executor(self._threads, watch.look)
            self._found[watch.name] = found

    async def _bound_logs(self) -> None:
        """Keep each log at a bounded size: the older half of what is kept is in `{part}.log.1`."""
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
    """Begin a log that has become too long again. Raises OSError where there is no room to keep what it held."""
    if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
        try:
            # Copied and cut, since the process keeps its file open; it appends, so it goes on at the start.
            shutil.copyfile(log, log.with_suffix(".log.1"))
        finally:
            # On a full disk too: a log that keeps growing is what fills it.
            os.truncate(log, 0)


def needed_by(steps: Sequence[Step], goal: str) -> list[str]:
    """Return the goal and everything it needs, in the order of the steps."""
    needs, found, open_ = {step.name: step.needs for step in steps}, set[str](), [goal]
    while open_:
        name = open_.pop()
        if name not in found:
            found.add(name)
            open_ += needs[name]
    return [step.name for step in steps if step.name in found]


def end_leftovers(home: Home) -> list[str]:
    """End parts that outlived a supervisor which was killed; return their names.

    A process is known by its id, its start time and the stack that it was started for, so that no other is ever ended:
    a copied home has the ids of the running stack that it was copied from.
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
    """End workers whose parent was killed; each carries its stack's state folder in its environment."""
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
    # Broker, database and registry of an earlier release carry no mark; their folders are on their command lines.
    paths = (Path(word.removeprefix("@")) for word in process.cmdline())
    return any(_is_folder_of(home, folder) for path in paths if path.is_absolute() for folder in path.parents[:2])


def _is_folder_of(home: Home, folder: Path) -> bool:
    try:
        return folder.samefile(home.dir)
    except OSError:
        return False
