"""Maintenance jobs: they survive every error and repeat until they are closed."""

from __future__ import annotations

import asyncio
import time

from nigredo.errors import DependencyDown
from processors.persistence.maintenance.jobs import Jobs


class FakeJob:
    name = "test"
    first_after_s = 0.0

    def __init__(self, *outcomes: float | Exception) -> None:
        self.outcomes = list(outcomes)
        self.runs = 0
        self.cancelled = False

    async def run(self) -> float:
        self.runs += 1
        if not self.outcomes:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def until_run(job: FakeJob, times: int) -> None:
    deadline = time.monotonic() + 20
    while job.runs < times:
        assert time.monotonic() < deadline, job.runs
        await asyncio.sleep(0.01)


def test_an_error_neither_ends_a_job_nor_delays_another() -> None:
    async def scenario() -> tuple[FakeJob, FakeJob]:
        troubled = FakeJob(DependencyDown("away"), KeyError("a bug"), 0.0, DependencyDown("away again"))
        other = FakeJob(0.0, 0.0)
        jobs = Jobs(troubled, other)
        await until_run(other, 3)
        await until_run(troubled, 5)
        await jobs.close()
        return troubled, other

    troubled, other = asyncio.run(scenario())

    # Both jobs were running when they were closed, and both were cancelled.
    assert (troubled.cancelled, other.cancelled) == (True, True)


def test_a_job_waits_for_as_long_as_it_returned() -> None:
    async def scenario() -> FakeJob:
        job = FakeJob(3600.0)
        jobs = Jobs(job)
        await until_run(job, 1)
        await asyncio.sleep(0.1)
        await jobs.close()
        return job

    assert asyncio.run(scenario()).runs == 1
