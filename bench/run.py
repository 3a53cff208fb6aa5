"""Run of the bench, as passed to each scenario: the lab, the effort, and the callbacks for findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from bench.lab import Lab
from bench.measure import ROUNDS, Contender, Figures, Result, alternate


@dataclass(frozen=True, slots=True)
class Effort:
    """Number of rounds and scale of a run. `share` scales every count of records and every duration."""

    rounds: int = ROUNDS
    share: float = 1.0

    @property
    def hurried(self) -> bool:
        """Whether the run only checks that everything works; its figures are not quoted."""
        return self.share < 1

    def records(self, count: int) -> int:
        """Return a scaled number of records, at least 2,000, so that a pace can be computed."""
        return max(2_000, int(count * self.share))

    def seconds(self, seconds: float) -> float:
        """Return a scaled duration, at least a second."""
        return max(1.0, seconds * self.share)


SMOKE = Effort(rounds=1, share=0.1)


@dataclass(frozen=True, slots=True)
class Run:
    """One `make bench`."""

    lab: Lab
    effort: Effort
    measured: Callable[[str, str, int, Figures], None]
    """Called with every measurement: scenario, contender, round (0 is the warm-up), figures."""
    save: Callable[[Result], None]
    tell: Callable[[str], None]
    _salts: Iterator[int] = field(default_factory=count)

    def salt(self) -> int:
        """Return a number unique within this run, to derive client networks and group names from."""
        return next(self._salts)

    def alternate(self, result: Result, contenders: Sequence[Contender]) -> None:
        """Measure contenders in turn, with this run's number of rounds; a hurried run has no warm-up."""
        alternate(
            result,
            contenders,
            rounds=self.effort.rounds,
            warm_up=not self.effort.hurried,
            measured=self.measured,
            save=self.save,
        )
