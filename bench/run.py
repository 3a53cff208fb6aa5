"""What a scenario is handed: the lab, how thorough to be, and where its findings go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from bench.lab import Lab
from bench.measure import ROUNDS, Figures, Result


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often things are measured. `share` scales every count of records and every duration."""

    rounds: int = ROUNDS
    share: float = 1.0

    def records(self, count: int) -> int:
        """Return a number of records, at least enough to tell a pace."""
        return max(2_000, int(count * self.share))

    def seconds(self, seconds: float) -> float:
        """Return a duration, at least a second."""
        return max(1.0, seconds * self.share)


THOROUGH = Effort()
SMOKE = Effort(rounds=1, share=0.2)


@dataclass(frozen=True, slots=True)
class Run:
    """One `make bench`."""

    lab: Lab
    effort: Effort
    measured: Callable[[str, str, int, Figures], None]
    """Told of every measurement: scenario, contender, round (0 is the warm-up), figures."""
    save: Callable[[Result], None]
    tell: Callable[[str], None]
    _salts: count[int]

    def salt(self) -> int:
        """Return a number that no other call of this run got: for client networks and groups of one's own."""
        return next(self._salts)


def start(
    lab: Lab,
    effort: Effort,
    measured: Callable[[str, str, int, Figures], None],
    save: Callable[[Result], None],
    tell: Callable[[str], None],
) -> Run:
    """Return a run that has measured nothing yet."""
    return Run(lab, effort, measured, save, tell, count())
