"""Exponential back-off with full jitter, as a small value that says how long to wait and never sleeps itself."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Doubles its ceiling at each failure, from `first_s` to `longest_s`; each wait is drawn below the ceiling.

    Full jitter, after the AWS Architecture Blog's "Exponential Backoff And Jitter": callers that failed together do
    not come back together. At least a tenth of the ceiling is waited, so that bad luck never means a busy loop.
    """

    first_s: float = 0.1
    longest_s: float = 10.0
    failures: int = 0

    def next_wait_s(self) -> float:
        """Count one more failure and return how long to wait before the next try, in seconds."""
        ceiling = min(self.longest_s, self.first_s * 2 ** min(self.failures, 30))
        self.failures += 1
        return random.uniform(ceiling / 10, ceiling)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        """Begin anew after a success."""
        self.failures = 0
