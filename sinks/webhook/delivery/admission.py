"""Which attempt may be made now: places, rate, breaker, pause and membership, in one place and in one order.

Live leads and due retries go in the order in which they came; replays only when none of them waits, and as long as
some come, only into a part of the places and with a part of the rate left over. A probe of the breaker is rather the
newest lead that was not tried yet: leads that nobody can take often come together, and must not be all that is ever
probed.
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
"""So long after the last live lead or due retry the next one is expected."""
BEHIND_SHARE = 1 / 16
"""Of the places, what replays get while live leads come, one at least: more would keep the receiver, and this process,
busy with them just when a lead comes."""
RATE_KEPT = 1 / 2
"""Of a second's worth of the rate, what replays leave for leads that come together."""


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: Callable[[], bool]
    fresh: bool
    entered: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class AdmissionControl:
    """Belongs to one event loop."""

    def __init__(
        self, places: int, bucket: TokenBucket, breaker: Breaker, clock: Callable[[], float] = since_boot_s
    ) -> None:
        """places: attempts that may be under way at once, on record or not yet."""
        self.breaker = breaker
        self._places = places
        self._bucket = bucket
        self._clock = clock
        self._under_way = 0
        self._paused = True
        self._ours_until = clock()
        self._live: deque[_Waiter] = deque()
        self._behind: deque[_Waiter] = deque()
        self._behind_under_way = 0
        self._live_until = clock()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def paused(self) -> bool:
        """Whether nothing is let through."""
        return self._paused

    @property
    def under_way(self) -> int:
        """How many were let through and have not left."""
        return self._under_way

    def pause(self, paused: bool) -> None:
        """Let nothing through, or go on."""
        if paused != self._paused:
            self._paused = paused
            self._let_through()

    def trust(self, until: float) -> None:
        """Let nothing through from this time of the clock on: whether it is still ours to send is known until then."""
        if until != self._ours_until:
            self._ours_until = until
            self._let_through()

    @property
    def may_send(self) -> bool:
        """Whether it is known that what is in hand is ours to send."""
        return self._clock() < self._ours_until

    def limit(self, rate: float) -> None:
        """Let so many a second through; 0 for as many as come."""
        self._bucket.change(rate, self._clock())
        self._let_through()

    async def acquire(self, wanted: Callable[[], bool], *, fresh: bool, behind: bool) -> bool:
        """Wait for a place; False when it is not wanted any more. After True `release` must follow.

        wanted: asked when its turn has come, and by `clear`. fresh: whether it is a lead's first attempt.
        """
        if not wanted():
            return False  # Whoever comes after `clear` would wait for a turn that a pause may never bring.
        waiter = _Waiter(wanted, fresh)
        (self._behind if behind else self._live).append(waiter)
        if not behind:
            self._live_until = self._clock() + LIVE_FOR_S
        self._let_through()
        try:
            return await waiter.entered
        except asyncio.CancelledError:
            if waiter.entered.done() and not waiter.entered.cancelled() and waiter.entered.result():
                self.release(behind=behind)
            raise

    def told(self, lead_id: UUID, attempt: AttemptResult) -> None:
        """Learn what came of an attempt."""
        if attempt.outcome == Outcome.DELIVERED:
            self.breaker.succeeded()
        else:
            blocked = attempt.outcome == Outcome.BLOCKED
            self.breaker.failed(self._clock(), lead_id, asked_s=attempt.retry_after_s, at_once=blocked)

    def release(self, *, behind: bool) -> None:
        """Free a place. behind: as it was told to `acquire`."""
        self._under_way -= 1
        self._behind_under_way -= behind
        self._let_through()

    def clear(self) -> None:
        """Send away whoever is not wanted any more."""
        for queue in (self._live, self._behind):
            for waiter in list(queue):
                if not waiter.wanted():
                    queue.remove(waiter)
                    if not waiter.entered.done():
                        waiter.entered.set_result(False)

    def _let_through(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while not self._paused and (self._live or self._behind):
            now, behind = self._clock(), not self._live
            if not self.may_send:
                return  # Whoever hears from the group says so, and `clear` sends away what is not ours any more.
            if self._under_way >= self.breaker.allows(now, self._places):
                self._look_again_in(self.breaker.probe_in_s(now))
                return
            if behind and self._behind_under_way >= self._behind_most(now):
                return
            if (wait_s := self._bucket.wait_s(now, kept=RATE_KEPT if behind else 0.0)) > 0:
                self._look_again_in(wait_s)
                return
            waiter = self._next()
            if waiter.entered.done():
                continue  # Cancelled while it waited.
            if not waiter.wanted():
                waiter.entered.set_result(False)
                continue
            self._bucket.take(now)
            self._under_way += 1
            self._behind_under_way += behind
            waiter.entered.set_result(True)

    def _behind_most(self, now: float) -> int:
        return self._places if now >= self._live_until else max(1, int(self._places * BEHIND_SHARE))

    def _next(self) -> _Waiter:
        queue = self._live or self._behind
        if not self.breaker.closed:
            fresh = next((waiter for waiter in reversed(queue) if waiter.fresh), None)
            if fresh is not None:
                queue.remove(fresh)
                return fresh
        return queue.popleft()

    def _look_again_in(self, seconds: float) -> None:
        """With nothing to wait for, whoever leaves looks."""
        if seconds > 0:
            # A little late rather than early: a clock that has not quite moved would have it look in vain.
            self._timer = asyncio.get_running_loop().call_later(seconds + 0.001, self._let_through)
