"""Database readiness of an idle persister, taken from the reset outbox's polling, so that no extra query is needed."""

from __future__ import annotations

import time
from collections.abc import Callable

from nigredo.observability.health import Health

UNREADY_AFTER_S = 3.0
"""Seconds of failures before the process is unready; shorter ones come from terminated sessions and fail-overs."""
DATABASE = "the database"


class Reachable:
    """Holds the process unready once every database query has failed for `UNREADY_AFTER_S`, until one is answered."""

    def __init__(self, health: Health, timer: Callable[[], float] = time.monotonic) -> None:
        self._health = health
        self._timer = timer
        self._failing_since: float | None = None

    def answered(self) -> None:
        """Record that a query was answered or a batch stored; the process may be ready again."""
        self._failing_since = None
        self._health.release(DATABASE)

    def failed(self, reason: str) -> None:
        """Record that a query failed; past `UNREADY_AFTER_S` the process is unready with this reason."""
        now = self._timer()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= UNREADY_AFTER_S:
            self._health.hold(DATABASE, reason)
