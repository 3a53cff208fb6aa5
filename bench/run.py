"""What a scenario is handed: the lab, how thorough to be, and where its findings go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from bench.lab import Lab
from bench.measure import ROUNDS, Contender, Figures, Result, alternate


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often things are measured. `share` scales every count of records and every duration."""

    rounds: int = ROUNDS
    share: float = 1.0

    @property
    def hurried(self) -> bool:
        """Whether this is to see that everything works, and not to be quoted."""
        return self.share < 1

    def records(self, count: int) -> int:
        """Return a number of records, at least enough to tell a pace."""
        return max(2_000, int(count * self.share))

    def seconds(self, seconds: float) -> float:
        """Return a duration, at least a second."""
        return max(1.0, seconds * self.share)


SMOKE = Effort(rounds=1, share=0.1)


@dataclass(frozen=True, slots=True)
class Run:
    """One `make bench`."""

    lab: Lab
    effort: Effort
    measured: Callable[[str, str, int, Figures], None]
    """Told of every measurement: scenario, contender, round (0 is the warm-up), figures."""
    save: Callable[[Result], None]
    tell: Callable[[str], None]
    _salts: Iterator[int] = field(default_factory=count)

    def salt(self) -> int:
        """Return a number that no other call of this run got: for client networks and groups of one's own."""
        return next(self._salts)

    def alternate(self, result: Result, contenders: Sequence[Contender]) -> None:
        """Measure contenders in turn, as thoroughly as this run is; a hurried one warms nothing up."""
        alternate(
            result,
            contenders,
            rounds=self.effort.rounds,
            warm_up=not self.effort.hurried,
            measured=self.measured,
            save=self.save,
        )
