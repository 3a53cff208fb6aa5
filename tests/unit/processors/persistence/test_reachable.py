"""Database readiness: an idle persister reports an outage of its database, but not a single failed query."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nigredo.errors import DependencyDown
from nigredo.observability.health import Health
from nigredo.settings import Settings
from processors.persistence.maintenance import reset_outbox
from processors.persistence.maintenance.reset_outbox import ResetOutbox
from processors.persistence.reachable import UNREADY_AFTER_S, Reachable

AWAY = "ECONNREFUSED: the database refuses connections"


class Timer:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def idle() -> tuple[Health, Timer, Reachable]:
    health, timer = Health("test"), Timer()
    health.ready()
    return health, timer, Reachable(health, timer)


def test_failures_within_a_few_seconds_leave_the_process_ready() -> None:
    health, timer, reachable = idle()

    for _ in range(10):
        reachable.failed(AWAY)
        timer.now += UNREADY_AFTER_S / 10.1

    assert health.waiting_for is None


def test_only_failures_for_some_seconds_make_the_process_unready_until_an_answer() -> None:
    health, timer, reachable = idle()

    reachable.failed(AWAY)
    timer.now += UNREADY_AFTER_S
    reachable.failed(AWAY)
    assert health.waiting_for == AWAY
    # A batch that arrives meanwhile fails for the same reason.
    health.waiting(AWAY)
    assert health.waiting_for == AWAY

    health.ready()
    reachable.answered()
    assert health.waiting_for is None
    reachable.failed(AWAY)
    assert health.waiting_for is None


def test_failures_with_an_answer_between_them_are_counted_from_the_answer() -> None:
    health, timer, reachable = idle()

    for _ in range(5):
        reachable.failed(AWAY)
        timer.now += UNREADY_AFTER_S - 0.1
        reachable.answered()

    assert health.waiting_for is None


class Rows:
    """A database with one row in the outbox."""

    async def execute(self, *_: Any) -> Rows:
        return self

    async def fetchall(self) -> list[tuple[Any, ...]]:
        return [(1, "192.0.2.1", "ana", None)]


@pytest.mark.parametrize("away", ["the database", "Kafka"])
def test_the_outbox_blames_the_database_only_for_its_own_outage(monkeypatch: pytest.MonkeyPatch, away: str) -> None:
    health, timer, reachable = idle()

    @asynccontextmanager
    async def transaction(*_: Any, **__: Any) -> AsyncIterator[Rows]:
        if away == "the database":
            raise DependencyDown(AWAY)
        yield Rows()

    async def publish(*_: Any) -> None:
        raise DependencyDown("Kafka does not answer")

    async def scenario() -> None:
        outbox = ResetOutbox(Settings.from_environment({}), None, None, reachable)  # type: ignore[arg-type] # neither is used
        monkeypatch.setattr(outbox, "_publish", publish)
        for _ in range(2):
            with pytest.raises(DependencyDown):
                await outbox.run()
            timer.now += UNREADY_AFTER_S
        await outbox.close()

    monkeypatch.setattr(reset_outbox, "transaction", transaction)
    asyncio.run(scenario())

    assert health.waiting_for == (AWAY if away == "the database" else None)
