"""Exponential back-off with full jitter: returns the next wait and never sleeps itself. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Back-off whose ceiling doubles at each failure, from `first_s` to `longest_s`; each wait is drawn below it.

    Full jitter, after the AWS Architecture Blog's "Exponential Backoff And Jitter", so that callers that failed
    together do not retry together. A wait is at least a tenth of the ceiling, so that bad luck causes no busy loop.
    """

    first_s: float = 0.1
    longest_s: float = 10.0
    failures: int = 0

    def next_wait_s(self) -> float:
        """Count one more failure and return the wait before the next try, in seconds."""
        ceiling = min(self.longest_s, self.first_s * 2 ** min(self.failures, 30))
        self.failures += 1
        return random.uniform(ceiling / 10, ceiling)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Restart at `first_s`; call after a success."""
        self.failures = 0
