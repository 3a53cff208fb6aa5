"""Token bucket: rate limit for the attempts of one endpoint; callers pass `now`, and nothing waits here. Pure."""

from __future__ import annotations


class TokenBucket:
    """Refills at `rate` tokens per second, holds one second's worth but at least one token, and starts full."""

    def __init__(self, rate: float, now: float) -> None:
        """rate: tokens per second; 0 for no limit. now: seconds of the caller's clock."""
        self._rate = rate
        self._tokens = max(1.0, rate)
        self._at = now

    def change(self, rate: float, now: float) -> None:
        """Change the rate; tokens in the bucket stay, up to the new capacity."""
        self._fill(now)
        self._rate = rate
        self._tokens = min(self._tokens, max(1.0, rate))

    def wait_s(self, now: float, *, kept: float = 0.0) -> float:
        """Return the seconds until a token is available; 0 at once.

        kept: seconds' worth of tokens that must be left in the bucket after the token is taken.
        """
        if self._rate == 0:
            return 0.0
        self._fill(now)
        wanted = min(1.0 + kept * self._rate, max(1.0, self._rate))
        return max(0.0, (wanted - self._tokens) / self._rate)

    def take(self, now: float) -> None:
        """Take a token. Call only after `wait_s` returned 0."""
        self._fill(now)
        if self._rate:  # Attempts without a limit must not be charged to a later limit.
            self._tokens -= 1.0

    def _fill(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        self._tokens = min(max(1.0, self._rate), self._tokens + passed * self._rate)
