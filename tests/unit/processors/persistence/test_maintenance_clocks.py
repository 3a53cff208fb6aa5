"""Retention's time is the earlier of two clocks, so that a clock far ahead deletes no young record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from processors.persistence.maintenance import clocks

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(days=400), timedelta(days=-400)])
def test_the_earlier_of_two_clocks_holds(ahead: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(_: str) -> Any:
        async def row() -> tuple[datetime]:
            return (NOON,)

        return SimpleNamespace(fetchone=row)

    @asynccontextmanager
    async def connected(*_: Any, **__: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(execute=answer)

    monkeypatch.setattr(clocks, "transaction", connected)

    assert asyncio.run(clocks.earlier_now(cast(Any, None), lambda: NOON + ahead)) == min(NOON, NOON + ahead)
