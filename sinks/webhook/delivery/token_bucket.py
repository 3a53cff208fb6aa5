"""How many attempts a second one endpoint gets: a token bucket. Pure: it is told the time and never waits."""

from __future__ import annotations


class TokenBucket:
    """Fills with `rate` tokens a second up to what a second brings, one at least; starts full."""

    def __init__(self, rate: float, now: float) -> None:
        """rate: tokens a second; 0 for no limit."""
        self._rate = rate
        self._tokens = max(1.0, rate)
        self._at = now

    def change(self, rate: float, now: float) -> None:
        """Go on with another rate; what is in the bucket stays as far as it fits."""
        self._fill(now)
        self._rate = rate
        self._tokens = min(self._tokens, max(1.0, rate))

    def wait_s(self, now: float, *, kept: float = 0.0) -> float:
        """Return how long until a token is there; 0 when one is. kept: seconds' worth that are to be left."""
        if self._rate == 0:
            return 0.0
        self._fill(now)
        wanted = min(1.0 + kept * self._rate, max(1.0, self._rate))
        return max(0.0, (wanted - self._tokens) / self._rate)

    def take(self, now: float) -> None:
        """Take a token, which `wait_s` said is there."""
        self._fill(now)
        if self._rate:  # Without a limit nothing is owed when there is one again.
            self._tokens -= 1.0

    def _fill(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        self._tokens = min(max(1.0, self._rate), self._tokens + passed * self._rate)
