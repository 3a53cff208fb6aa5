"""One metric with a closed set of labels, over the library's; `nigredo/observability/metrics.py` lists them all."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from threading import Lock
from typing import Any, Generic, TypeVar

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry

from nigredo.settings import Settings

OTHER = "other"
REGISTRY = CollectorRegistry()
"""What this process exposes; not the library's own, where anything may register itself."""


class Histogram(prometheus.Histogram):
    """The library's histogram, which also takes many observations at once."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Do what `observe` does for each amount, with one write a bucket and one for their sum."""
        for bucket, many in Counter(bisect_left(self._upper_bounds, amount) for amount in amounts).items():
            self._buckets[bucket].inc(many)
        self._sum.inc(sum(amounts))


Kind = TypeVar("Kind", prometheus.Counter, prometheus.Gauge, Histogram)
Child = tuple[str, ...]
Values = Sequence[str] | Callable[[Settings], Sequence[str]]
First = Callable[[str, Settings], Iterable[Child]]


class Metric(Generic[Kind]):
    """A counter, gauge or histogram of the product. Safe in every thread."""

    def __init__(
        self,
        kind: type[Kind],
        name: str,
        counts: str,
        *,
        unit: str,
        answers: str,
        processes: Sequence[str],
        labels: Mapping[str, Values] | None = None,
        first: First | None = None,
        buckets: Sequence[float] | None = None,
        across_workers: str = "livesum",
    ) -> None:
        """counts, unit, answers: for people; `docs/METRICS.md` repeats them.

        processes: who exposes it from the start. labels: each with its known values, to which `other` is always added.
        first: the children that a process creates at its start, where they are not every combination.
        across_workers: how a gauge of several workers of one server becomes one number.
        """
        self.kind: type[Kind] = kind
        self.name = name
        self.counts = counts
        self.unit = unit
        self.answers = answers
        self.processes = tuple(processes)
        self.labels: Mapping[str, Values] = dict(labels or {})
        self.buckets: Sequence[float] | None = buckets
        self._first: First | None = first
        self._across_workers: str = across_workers
        self._known = [set[str]() if callable(values) else set(values) for values in self.labels.values()]
        self._children: dict[Child, Kind] = {}
        self._metric: Kind | None = None
        self._making = Lock()

    @property
    def type(self) -> str:
        """`counter`, `gauge` or `histogram`."""
        return self.kind.__name__.lower()

    def of(self, *values: str) -> Kind:
        """Return the metric with these label values, in the order of `labels`; an unknown one counts as `other`."""
        child = self._children.get(values)
        if child is None:
            pairs = zip(values, self._known, strict=True)
            told = tuple(value if value in known else OTHER for value, known in pairs)
            child = self._children.get(told)
            if child is None:
                metric = self._made()
                # Kept by what is told and not by what was asked for: the table is as bounded as the labels are.
                child = self._children[told] = metric.labels(*told) if told else metric
        return child

    def start(self, process: str, settings: Settings) -> None:
        """Learn the label values that the settings tell, and create the known children at 0."""
        for known, values in zip(self._known, self.labels.values(), strict=True):
            if callable(values):
                known.update(values(settings))
        self._made()
        every = product(*(sorted(known) for known in self._known))
        for child in every if self._first is None else self._first(process, settings):
            self.of(*child)

    def know(self, label: str, value: str, *, most: int) -> None:
        """Let a label have one more value, with its children at 0, unless it has `most` already."""
        position = list(self.labels).index(label)
        known = self._known[position]
        if value in known or len(known) >= most:
            return
        known.add(value)
        if self._metric is not None and self._first is None:
            for child in product(*(sorted(k) if at != position else [value] for at, k in enumerate(self._known))):
                self.of(*child)

    def keep(self, children: Collection[Child]) -> None:
        """Leave out all other children: those of what this process has nothing to do with any more."""
        for child in set(self._children) - set(children):
            del self._children[child]
            self._made().remove(*child)

    def _made(self) -> Kind:
        with self._making:
            if self._metric is None:
                options: dict[str, Any] = {}
                if self.buckets is not None:
                    options["buckets"] = self.buckets
                if self.kind is prometheus.Gauge:
                    options["multiprocess_mode"] = self._across_workers
                text = f"{self.counts} ({self.unit})"
                self._metric = self.kind(self.name, text, tuple(self.labels), registry=REGISTRY, **options)
            return self._metric
