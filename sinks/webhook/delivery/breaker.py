"""The breaker of one endpoint: when a receiver fails lead after lead, it is asked less, until it takes one again. Pure.

Its state is not kept over restarts: the first attempts of a new process find out by themselves. Before one of them
gives a lead up, the attempts on record are asked (`informed`, `recall`).
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from nigredo.backoff import Backoff

OPEN_AFTER = 10
"""So many different leads that fail in a row open it. Different ones: a single lead that nobody can take proves
nothing about the receiver, however often it is tried."""
PAUSE_FIRST_S = 1.0
PAUSE_LONGEST_S = 60.0
ASKED_LONGEST_S = 3600.0
"""A `Retry-After` may hold the whole endpoint back so long, not longer; the lead itself waits as told."""


class Breaker:
    """Closed, open, or half open: then a single attempt, the probe, may be under way.

    A probe that is taken closes it; the number of attempts at once then grows by one with each that is taken, so that
    what waited does not fall upon a receiver that has just come back.
    """

    def __init__(self, *, open_after: int = OPEN_AFTER, longest_s: float = PAUSE_LONGEST_S) -> None:
        self._open_after = open_after
        self._pauses = Backoff(PAUSE_FIRST_S, longest_s)
        self.informed = False
        """Whether it is known which leads failed before: one was taken since the start, or they were recalled."""
        self._failed: set[UUID] = set()
        self._probe_at: float | None = None
        self._ramp: int | None = None

    @property
    def closed(self) -> bool:
        """Whether attempts are made as usual."""
        return self._probe_at is None

    def others_fail(self, lead_id: UUID) -> bool:
        """Say whether another lead than this one has failed since the receiver last took one."""
        return bool(self._failed - {lead_id})

    def recall(self, failed: Iterable[UUID]) -> None:
        """Count leads as failed that failed before this process began. It opens at the next failure at the earliest."""
        self.informed = True
        for lead_id in failed:
            if len(self._failed) >= self._open_after - 1:
                return
            self._failed.add(lead_id)

    def probe_in_s(self, now: float) -> float:
        """Return how long until the next probe; 0 when it may go now, or when none is needed."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - now)

    def allows(self, now: float, most: int) -> int:
        """Return how many attempts may be under way at once, at most `most`."""
        if self._probe_at is not None:
            return 1 if now >= self._probe_at else 0
        if self._ramp is not None and self._ramp >= most:
            self._ramp = None
        return most if self._ramp is None else self._ramp

    def succeeded(self) -> None:
        """The receiver took a lead: whatever was, it works."""
        self.informed = True
        self._failed.clear()
        if self._probe_at is not None:
            self._probe_at, self._ramp = None, 1
            self._pauses.reset()
        elif self._ramp is not None:
            self._ramp += 1

    def failed(self, now: float, lead_id: UUID, *, asked_s: float = 0.0, at_once: bool = False) -> None:
        """The receiver did not take a lead.

        asked_s: what it asked to wait. at_once: it cannot be the lead's fault, so there is nothing to wait for.
        """
        if self._probe_at is not None and now < self._probe_at:
            return  # Begun before it opened: no news.
        if self._probe_at is None and len(self._failed) < self._open_after:
            self._failed.add(lead_id)
            if len(self._failed) < self._open_after and not at_once:
                return
        self._probe_at = now + max(self._pauses.next_wait_s(), min(asked_s, ASKED_LONGEST_S))
