"""What the persister does beside storing goes on whatever it meets, until it is closed."""

from __future__ import annotations

import asyncio
import time

from nigredo.errors import DependencyDown
from processors.persistence.maintenance.jobs import Jobs


class Chore:
    name = "test"
    first_after_s = 0.0

    def __init__(self, *outcomes: float | Exception) -> None:
        self.outcomes = list(outcomes)
        self.runs = 0
        self.undone = False

    async def run(self) -> float:
        self.runs += 1
        if not self.outcomes:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.undone = True
                raise
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def until_run(chore: Chore, times: int) -> None:
    deadline = time.monotonic() + 20
    while chore.runs < times:
        assert time.monotonic() < deadline, chore.runs
        await asyncio.sleep(0.01)


def test_no_trouble_ends_a_chore_nor_holds_another_up() -> None:
    async def scenario() -> tuple[Chore, Chore]:
        troubled = Chore(DependencyDown("away"), KeyError("a bug"), 0.0, DependencyDown("away again"))
        other = Chore(0.0, 0.0)
        chores = Jobs(troubled, other)
        await until_run(other, 3)
        await until_run(troubled, 5)
        await chores.close()
        return troubled, other

    troubled, other = asyncio.run(scenario())

    # In the middle of something when they were closed: it was told so.
    assert (troubled.undone, other.undone) == (True, True)


def test_a_chore_waits_as_long_as_it_says() -> None:
    async def scenario() -> Chore:
        chore = Chore(3600.0)
        chores = Jobs(chore)
        await until_run(chore, 1)
        await asyncio.sleep(0.1)
        await chores.close()
        return chore

    assert asyncio.run(scenario()).runs == 1
