"""Admission control for delivery attempts: pause, group membership, free slots, breaker and rate limit, in this order.

Live leads and due retries are admitted first in, first out. Replays are admitted only while neither waits; as long as
live leads arrive, replays get a share of the slots and leave a share of the rate. The breaker prefers the newest lead
without an attempt as its probe, because leads that the receiver cannot process often arrive together and would fail
every probe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from nigredo.clock import since_boot_s
from sinks.webhook.delivery.breaker import Breaker
from sinks.webhook.delivery.token_bucket import TokenBucket
from sinks.webhook.model import AttemptResult, Outcome

LIVE_FOR_S = 10.0
"""Time after a live lead or due retry during which another is expected, so that replays are held back."""
BEHIND_SHARE = 1 / 16
"""Share of the slots for replays while live leads arrive, at least one slot: with more, the receiver and this process
would be busy with replays when a live lead arrives."""
RATE_KEPT = 1 / 2
"""Share of one second's tokens that replays leave for a burst of live leads."""


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: Callable[[], bool]
    fresh: bool
    entered: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class AdmissionControl:
    """Admits attempts one by one. Use on one event loop."""

    def __init__(
        self, slots: int, bucket: TokenBucket, breaker: Breaker, clock: Callable[[], float] = since_boot_s
    ) -> None:
        """slots: most attempts in flight at once; an attempt is in flight until its outcome is in the log."""
        self.breaker = breaker
        self._slots = slots
        self._bucket = bucket
        self._clock = clock
        self._in_flight = 0
        self._paused = True
        self._ours_until = clock()
        self._live: deque[_Waiter] = deque()
        self._behind: deque[_Waiter] = deque()
        self._behind_in_flight = 0
        self._live_until = clock()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def paused(self) -> bool:
        """Whether no attempt is admitted."""
        return self._paused

    @property
    def in_flight(self) -> int:
        """Attempts that were admitted and not released yet."""
        return self._in_flight

    def pause(self, paused: bool) -> None:
        """Stop or resume admission."""
        if paused != self._paused:
            self._paused = paused
            self._admit()

    def trust(self, until: float) -> None:
        """Set the time, by the clock, until which the group membership is proven; nothing is admitted after it."""
        if until != self._ours_until:
            self._ours_until = until
            self._admit()

    @property
    def may_send(self) -> bool:
        """Whether the membership is proven now, so that no other member can own the leads in flight."""
        return self._clock() < self._ours_until

    def limit(self, rate: float) -> None:
        """Set the rate limit to `rate` attempts per second; 0 for no limit."""
        self._bucket.change(rate, self._clock())
        self._admit()

    async def acquire(self, wanted: Callable[[], bool], *, fresh: bool, behind: bool) -> bool:
        """Wait for a slot; False when the attempt is not wanted any more. After True, call `release`.

        wanted: called when the attempt's turn comes, and by `clear`. fresh: whether this is the lead's first attempt.
        behind: whether the attempt waits behind live leads, as replays do.
        """
        if not wanted():
            return False  # After `clear`, a paused queue would never drop this attempt.
        waiter = _Waiter(wanted, fresh)
        (self._behind if behind else self._live).append(waiter)
        if not behind:
            self._live_until = self._clock() + LIVE_FOR_S
        self._admit()
        try:
            return await waiter.entered
        except asyncio.CancelledError:
            if waiter.entered.done() and not waiter.entered.cancelled() and waiter.entered.result():
                self.release(behind=behind)
            raise

    def record_result(self, lead_id: UUID, attempt: AttemptResult) -> None:
        """Update the breaker with the result of an attempt."""
        if attempt.outcome == Outcome.DELIVERED:
            self.breaker.succeeded()
        else:
            blocked = attempt.outcome == Outcome.BLOCKED
            self.breaker.failed(self._clock(), lead_id, asked_s=attempt.retry_after_s, at_once=blocked)

    def release(self, *, behind: bool) -> None:
        """Free the slot of an attempt. behind: as passed to `acquire`."""
        self._in_flight -= 1
        self._behind_in_flight -= behind
        self._admit()

    def clear(self) -> None:
        """Release every waiting attempt that is not wanted any more; its `acquire` returns False."""
        for queue in (self._live, self._behind):
            for waiter in list(queue):
                if not waiter.wanted():
                    queue.remove(waiter)
                    if not waiter.entered.done():
                        waiter.entered.set_result(False)

    def _admit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while not self._paused and (self._live or self._behind):
            now, behind = self._clock(), not self._live
            if not self.may_send:
                return  # `trust` calls this again, and `clear` releases attempts whose assignment ended.
            if self._in_flight >= self.breaker.allows(now, self._slots):
                self._admit_in(self.breaker.probe_in_s(now))
                return
            if behind and self._behind_in_flight >= self._behind_most(now):
                return
            if (wait_s := self._bucket.wait_s(now, kept=RATE_KEPT if behind else 0.0)) > 0:
                self._admit_in(wait_s)
                return
            waiter = self._next()
            if waiter.entered.done():
                continue  # Its task was cancelled while waiting.
            if not waiter.wanted():
                waiter.entered.set_result(False)
                continue
            self._bucket.take(now)
            self._in_flight += 1
            self._behind_in_flight += behind
            waiter.entered.set_result(True)

    def _behind_most(self, now: float) -> int:
        return self._slots if now >= self._live_until else max(1, int(self._slots * BEHIND_SHARE))

    def _next(self) -> _Waiter:
        queue = self._live or self._behind
        if not self.breaker.closed:
            fresh = next((waiter for waiter in reversed(queue) if waiter.fresh), None)
            if fresh is not None:
                queue.remove(fresh)
                return fresh
        return queue.popleft()

    def _admit_in(self, seconds: float) -> None:
        """Admit again after a wait. Without a wait no timer is needed, because `release` admits the next attempt."""
        if seconds > 0:
            # One millisecond late, because an early timer would find the time not reached and admit nothing.
            self._timer = asyncio.get_running_loop().call_later(seconds + 0.001, self._admit)
