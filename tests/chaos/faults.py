"""Faults done to the processes: planned from a seed, carried out one after another."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from nigredo.errors import NigredoError
from tests.chaos.load import Gate
from tests.chaos.processes import Process, Processes

KILL, FREEZE, OUTAGE = "kill", "freeze", "outage"
ACTIONS = (KILL, FREEZE, OUTAGE)
DEPENDENCIES = ("postgres", "kafka", "fibonacci")
"""What an outage stops and starts again."""
FROZEN_S = 9.0
"""Longer than the group waits for a member, and looks for such, so that it wakes up as a zombie."""
OUTAGE_S = 5.0
BACK_WITHIN_S = 90.0
"""How long a process that was killed may take to be ready again."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `at`: after how many forms it is due. `while_starting`: whether it may hit one that just started."""

    at: int
    action: str
    target: str
    which: float
    while_starting: bool
    delay_s: float


def plan_faults(
    seed: int, count: int, forms: int, targets: Sequence[str], actions: Sequence[str] = (KILL,)
) -> list[Fault]:
    """Return the faults of a seed, spread at random over the load."""
    chosen = random.Random(f"{seed} faults")
    # Each as often as the others, in no order.
    harms = [(action, targets if action != OUTAGE else DEPENDENCIES) for action in actions]
    pairs = [(action, target) for action, possible in harms for target in possible]
    drawn = chosen.sample(pairs * (count // len(pairs) + 1), count)
    faults = []
    places = sorted(chosen.randrange(forms // 50, forms * 95 // 100) for _ in range(count))
    for at, (action, target) in zip(places, drawn, strict=True):
        faults.append(
            Fault(at, action, target, chosen.random(), chosen.random() < 0.2, delay_s=chosen.uniform(0.0, 0.7))
        )
    return faults


@dataclass(slots=True)
class Damage:
    """Faults that were done."""

    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number by action and target."""
    seconds_to_ready: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """From kill -9 to ready again, by part."""
    problems: list[str] = field(default_factory=list)

    def of(self, *targets: str) -> int:
        """Return how often one of these was harmed."""
        return sum(count for (_, target), count in self.done.items() if target in targets)


class Saboteur:
    """Carries faults out."""

    def __init__(self, processes: Processes, gate: Gate, faults: Sequence[Fault], tell: Callable[[str], None]) -> None:
        self._processes = processes
        self._gate = gate
        self._faults = faults
        self._tell = tell
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._killed: set[int] = set()
        self.damage = Damage()

    async def run(self) -> None:
        """Carry out all faults, and see every process that was killed come back."""
        try:
            for fault in self._faults:
                await self._gate.reached(fault.at)
                await self._do(fault)
                await self._gate.fault_done()
            await asyncio.gather(*self._watching.values())
        finally:
            for task in self._watching.values():
                task.cancel()

    async def _do(self, fault: Fault) -> None:
        if fault.action == OUTAGE:
            self._watch_no_more(*self._watching)
            self._tell(f"{fault.target} is away for {OUTAGE_S:g} s")
            await self._processes.change("stop", fault.target)
            await asyncio.sleep(OUTAGE_S)
            await self._processes.change("start", fault.target)
        else:
            process = await self._choose(fault)
            if process is None:
                self.damage.problems.append(f"{fault.target} was not back within {BACK_WITHIN_S:g} s")
                return
            if not (self._kill(process) if fault.action == KILL else await self._freeze(process)):
                return
        self.damage.done[fault.action, fault.target] += 1

    async def _choose(self, fault: Fault) -> Process | None:
        """Return a process of the target: the more of them there are, the sooner there is one that can be harmed."""
        found: list[Process] = []

        def there(processes: list[Process]) -> bool:
            # The supervisor may not have noticed the last kill yet.
            alive = (one for one in processes if one.part == fault.target and one.pid not in self._killed)
            found[:] = [one for one in alive if one.ready or fault.while_starting]
            return bool(found)

        if await self._processes.seconds_until(there, within_s=BACK_WITHIN_S) is None:
            return None
        await asyncio.sleep(fault.delay_s)
        return found[int(fault.which * len(found))]

    def _kill(self, process: Process) -> bool:
        before = process.pid
        self._killed.add(before)
        try:
            os.kill(before, signal.SIGKILL)
        except ProcessLookupError:
            self.damage.problems.append(f"{process.part} ended by itself")
            return False
        self._tell(f"killed {process.part} ({before})")
        self._watch_no_more(process.part)
        self._watching[process.part] = asyncio.create_task(self._see_back(process.part, before))
        return True

    def _watch_no_more(self, *parts: str) -> None:
        """End watches that another fault meddles with; that everything comes back is seen at the end all the same."""
        for part in parts:
            if (watch := self._watching.pop(part, None)) is not None:
                watch.cancel()

    async def _see_back(self, part: str, killed: int) -> None:
        """Note how long it takes until every process of the part does its work again."""
        wanted = self._processes.wanted(part)
        took = await self._processes.seconds_until(
            lambda now: sum(one.part == part and one.ready and one.pid != killed for one in now) == wanted,
            within_s=BACK_WITHIN_S,
        )
        if took is None:
            self.damage.problems.append(f"{part} was not ready within {BACK_WITHIN_S:g} s after it was killed")
        else:
            self.damage.seconds_to_ready[part].append(took)

    async def _freeze(self, process: Process) -> bool:
        self._tell(f"froze {process.part} ({process.pid}) for {FROZEN_S:g} s")
        try:
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(FROZEN_S)
        except ProcessLookupError:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
        return True


async def change_limit(gate: Gate, forms: int, set_limit: Callable[[int], None]) -> None:
    """Lower the limit for the second third of the load: the limit in force travels with each submission."""
    for thirds, limit in ((1, 7), (2, 10)):
        await gate.reached(forms * thirds // 3)
        # An outage may be in its way; then the limit stays, which is right too.
        with suppress(NigredoError):
            await asyncio.to_thread(set_limit, limit)
