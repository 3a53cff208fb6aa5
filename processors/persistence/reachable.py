"""Readiness of an idle persister: whether its database answers, seen by the question that is asked anyway."""

from __future__ import annotations

import time
from collections.abc import Callable

from nigredo.observability.health import Health

UNREADY_AFTER_S = 3.0
"""One question that fails says nothing: connections are ended, and a fail-over takes a moment."""
DATABASE = "the database"


class Reachable:
    """Keeps the process unready while nothing but failures came from the database for some seconds."""

    def __init__(self, health: Health, timer: Callable[[], float] = time.monotonic) -> None:
        self._health = health
        self._timer = timer
        self._failing_since: float | None = None

    def answered(self) -> None:
        """Note that a question was answered, or a batch stored."""
        self._failing_since = None
        self._health.release(DATABASE)

    def failed(self, reason: str) -> None:
        """Note that a question got no answer."""
        now = self._timer()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since >= UNREADY_AFTER_S:
            self._health.hold(DATABASE, reason)
