"""Circuit breaker of one endpoint: opens when lead after lead fails, and closes when a probe is accepted. Pure.

State is not stored over restarts, because the first attempts of a new process find the receiver's state again. Before
one of them dead-letters a lead, the attempt log is read (`informed`, `recall`).
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from nigredo.backoff import Backoff

OPEN_AFTER = 10
"""Number of different leads that must fail in a row to open the breaker. Different, because a single lead that the
receiver cannot process proves nothing about the receiver, however many attempts fail."""
PAUSE_FIRST_S = 1.0
PAUSE_LONGEST_S = 60.0
ASKED_LONGEST_S = 3600.0
"""Longest time that a `Retry-After` holds the whole endpoint back; the lead itself waits for all of it."""


class Breaker:
    """Closed, open, or half-open with a single attempt in flight, the probe.

    An accepted probe closes the breaker. The number of concurrent attempts then grows by one with each accepted lead,
    so that the backlog does not overload a receiver that has just recovered.
    """

    def __init__(self, *, open_after: int = OPEN_AFTER, longest_s: float = PAUSE_LONGEST_S) -> None:
        self._open_after = open_after
        self._pauses = Backoff(PAUSE_FIRST_S, longest_s)
        self.informed = False
        """Whether earlier failures are known: a lead was accepted since the start, or failures were recalled."""
        self._failed: set[UUID] = set()
        self._probe_at: float | None = None
        self._ramp: int | None = None

    @property
    def closed(self) -> bool:
        """Whether attempts are not held back by the breaker; they may still be ramping up."""
        return self._probe_at is None

    def others_fail(self, lead_id: UUID) -> bool:
        """Return whether a lead other than this one failed since the receiver last accepted a lead."""
        return bool(self._failed - {lead_id})

    def recall(self, failed: Iterable[UUID]) -> None:
        """Count leads that failed before this process started. Only a further failure can open the breaker."""
        self.informed = True
        for lead_id in failed:
            if len(self._failed) >= self._open_after - 1:
                return
            self._failed.add(lead_id)

    def probe_in_s(self, now: float) -> float:
        """Return the seconds until the next probe; 0 when the probe may start now or the breaker is closed."""
        return 0.0 if self._probe_at is None else max(0.0, self._probe_at - now)

    def allows(self, now: float, most: int) -> int:
        """Return how many attempts may be in flight at once, at most `most`."""
        if self._probe_at is not None:
            return 1 if now >= self._probe_at else 0
        if self._ramp is not None and self._ramp >= most:
            self._ramp = None
        return most if self._ramp is None else self._ramp

    def succeeded(self) -> None:
        """Record that the receiver accepted a lead: earlier failures are cleared."""
        self.informed = True
        self._failed.clear()
        if self._probe_at is not None:
            self._probe_at, self._ramp = None, 1
            self._pauses.reset()
        elif self._ramp is not None:
            self._ramp += 1

    def failed(self, now: float, lead_id: UUID, *, asked_s: float = 0.0, at_once: bool = False) -> None:
        """Record that the receiver did not accept a lead.

        asked_s: wait requested by the receiver. at_once: open at this failure, because the lead cannot be the cause.
        """
        if self._probe_at is not None and now < self._probe_at:
            return  # Started before the breaker opened.
        if self._probe_at is None and len(self._failed) < self._open_after:
            self._failed.add(lead_id)
            if len(self._failed) < self._open_after and not at_once:
                return
        self._probe_at = now + max(self._pauses.next_wait_s(), min(asked_s, ASKED_LONGEST_S))
