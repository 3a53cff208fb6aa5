"""Loading a partition's windows while the partition is revoked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from nigredo.log_position import LogNow, LogPosition
from nigredo.observability.health import Health
from nigredo.settings import Settings
from processors.engine.handler import AssignmentLost
from processors.rate_limit.limiter import Limiter
from processors.rate_limit.window_store import REPORT_EVERY, WindowStore
from tests.unit.processors.rate_limit.test_window_store import CODEC, WindowRecord, window, window_records

REVOKED_AFTER = 100


class Endless:
    """A partition that never ends and is revoked while it is read."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self.read = 0

    def read_to_end(self, *_: Any, **__: Any) -> Iterator[WindowRecord]:
        (record,) = window_records(window("a", 1))
        while True:
            self.read += 1
            if self.read == REVOKED_AFTER:
                self._limiter.revoked()
            yield record

    def now(self, *_: Any, **__: Any) -> LogNow:
        return LogNow("id", 0, 0)


def test_loading_ends_soon_after_the_partition_was_revoked() -> None:
    limiter = Limiter(Settings.from_environment({}), Health("test"))
    log = Endless(limiter)
    inside = cast(Any, limiter)
    inside._reader = log

    with pytest.raises(AssignmentLost):
        inside._load(WindowStore(CODEC), 0, LogPosition(0))

    assert log.read <= REVOKED_AFTER + REPORT_EVERY
