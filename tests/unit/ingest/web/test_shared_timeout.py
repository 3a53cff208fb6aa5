"""Shared timeout: a wait ends in time, is cut at its deadline, or is cancelled by other code."""

from __future__ import annotations

import asyncio
import time

import pytest

from ingest.web.shared_timeout import LOOK_EVERY_S, SharedTimeout


def test_what_comes_in_time_is_returned_however_many_wait() -> None:
    async def scenario() -> list[float]:
        deadline = SharedTimeout(5)
        return await asyncio.gather(*(deadline.wait_for(asyncio.sleep(0.01 * n, n)) for n in range(20)))

    assert asyncio.run(scenario()) == list(range(20))


def test_what_takes_too_long_is_cut_and_others_are_not() -> None:
    async def scenario() -> tuple[str, float]:
        deadline, never = SharedTimeout(0.2), asyncio.Event()

        async def stalled() -> None:
            with pytest.raises(TimeoutError):
                await deadline.wait_for(never.wait())
            # The task goes on undisturbed: its next wait is not cancelled.
            await asyncio.sleep(0)

        async def later() -> str:
            await asyncio.sleep(0.15)
            return await deadline.wait_for(asyncio.sleep(0.15, "whole"))

        began = time.monotonic()
        _, _, whole = await asyncio.gather(stalled(), stalled(), later())
        return whole, time.monotonic() - began

    whole, took_s = asyncio.run(scenario())

    assert whole == "whole"
    assert took_s < 0.2 + LOOK_EVERY_S + 2


def test_a_task_that_somebody_else_cancels_ends_as_cancelled() -> None:
    async def scenario() -> None:
        deadline = SharedTimeout(30)
        task = asyncio.create_task(deadline.wait_for(asyncio.Event().wait()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_task_can_wait_again_and_again() -> None:
    async def scenario() -> int:
        deadline, cut = SharedTimeout(0.05), 0
        for _ in range(2):
            try:
                await deadline.wait_for(asyncio.Event().wait())
            except TimeoutError:
                cut += 1
        return cut

    assert asyncio.run(scenario()) == 2
