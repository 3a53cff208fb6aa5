"""Side-by-side measurement: the contenders of a scenario take turns, and every ratio is taken within one round.

Machines differ, and their speed changes within minutes, so that a ratio of two measurements seconds apart says more
than either of them. Figures of different runs are never compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Figures = Mapping[str, float]
"""Figures of one measurement. Ratios are taken of `rate` (per second); the other figures are reported as they are."""

ROUNDS = 5
NOISY = 0.25
"""A ratio whose middle half is wider than this share of its median is marked as noisy."""


@dataclass(frozen=True, slots=True)
class Contender:
    """The product or a reference in a scenario. `measure` is called with the round's number; 0 is the warm-up."""

    name: str
    measure: Callable[[int], Figures]
    floor: float | None = None
    """Least share of `floor_of`'s rate that a fair reference reaches; a reference below it was written badly."""
    floor_of: str = ""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A subject's rate as a multiple of a reference's, over the rounds."""

    subject: str
    reference: str
    median: float
    lowest: float
    highest: float
    noisy: bool


@dataclass(slots=True)
class Result:
    """Findings of a scenario; they grow round by round, so that an interrupted run keeps its measurements."""

    scenario: str
    title: str
    unit: str
    settings: Mapping[str, float | str]
    subject: str = ""
    figures: dict[str, list[Figures]] = field(default_factory=dict)
    extra: dict[str, object] = field(default_factory=dict)
    """Tables and series other than ratios: latency distributions, backlog over time, costs."""
    unfair: list[str] = field(default_factory=list)

    def rates(self, name: str) -> list[float]:
        """Return a contender's rates, one a round."""
        return [figures["rate"] for figures in self.figures.get(name, [])]

    def ratios(self) -> list[Ratio]:
        """Return the ratio of the subject to every reference that has rates."""
        return [compare(self, self.subject, name) for name in self.figures if name != self.subject and self.rates(name)]


def alternate(
    result: Result,
    contenders: Sequence[Contender],
    *,
    rounds: int,
    warm_up: bool = True,
    measured: Callable[[str, str, int, Figures], None],
    save: Callable[[Result], None],
) -> None:
    """Measure all contenders in turn, `rounds` times after a warm-up; the first one is the subject.

    The result is saved after every round, so that an interrupted run keeps it.
    """
    result.subject = contenders[0].name
    for number in range(0 if warm_up else 1, rounds + 1):
        for contender in contenders:
            figures = contender.measure(number)
            if number:
                result.figures.setdefault(contender.name, []).append(figures)
            measured(result.scenario, contender.name, number, figures)
        if number:
            save(result)
    result.unfair.extend(_unfair(result, contenders))
    save(result)


def compare(result: Result, subject: str, reference: str) -> Ratio:
    """Return the ratio of two contenders' rates, round by round."""
    pairs = zip(result.rates(subject), result.rates(reference), strict=False)
    found = sorted(ours / theirs for ours, theirs in pairs)
    median = statistics.median(found)
    return Ratio(subject, reference, median, found[0], found[-1], spread(found) > NOISY)


def spread(values: Sequence[float]) -> float:
    """Return the width of the middle half of some values as a share of their median; 0 for fewer than three."""
    if len(values) < 3:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def _unfair(result: Result, contenders: Sequence[Contender]) -> list[str]:
    """Return a sentence for each reference that stayed below its floor."""
    found = []
    for contender in contenders:
        if contender.floor is None or not result.rates(contender.name):
            continue
        share = compare(result, contender.name, contender.floor_of).median
        if share < contender.floor:
            found.append(
                f"{contender.name} reached {share:.3f} of {contender.floor_of}; a fair one reaches {contender.floor:g}"
            )
    return found


def pace(samples: Sequence[tuple[float, int]], total: int, *, after: float = 0.2) -> float:
    """Return records per second from (seconds, records so far) samples, without the first `after` of them.

    The first samples are left out, because they include process start, group join and first fetches. Raises ValueError
    for too few samples.
    """
    begin = next(sample for sample in samples if sample[1] >= after * total)
    end = next(sample for sample in samples if sample[1] >= total)
    if end[0] <= begin[0]:
        raise ValueError("too few samples to tell a pace: measure more records")
    return (end[1] - begin[1]) / (end[0] - begin[0])
