"""Metric with a closed set of labels, on top of prometheus_client; `nigredo/observability/metrics.py` declares all."""

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
"""Label value that counts every undeclared value."""
REGISTRY = CollectorRegistry()
"""Registry of the metrics that this process exposes; not the default one, in which any library may register."""


class Histogram(prometheus.Histogram):
    """Histogram of prometheus_client that also accepts many observations at once."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Observe every amount, like `observe` in a loop, with one write per bucket and one for the sum."""
        for bucket, many in Counter(bisect_left(self._upper_bounds, amount) for amount in amounts).items():
            self._buckets[bucket].inc(many)
        self._sum.inc(sum(amounts))


Kind = TypeVar("Kind", prometheus.Counter, prometheus.Gauge, Histogram)
Child = tuple[str, ...]
"""Label values of one time series, in the order of the metric's labels."""
Values = Sequence[str] | Callable[[Settings], Sequence[str]]
First = Callable[[str, Settings], Iterable[Child]]


class Metric(Generic[Kind]):
    """A counter, gauge or histogram of the product. Thread-safe."""

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
        """counts, unit, answers: description, unit and operator's question, as in `docs/METRICS.md`.

        processes: components that expose the metric from their start.
        labels: the known values of each label; `other` is always added.
        first: children that a process creates at its start; None for every combination of known values.
        across_workers: multiprocess mode that merges a gauge of several ingest workers.
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
        """Return the child with these label values, in the order of `labels`; an unknown value counts as `other`."""
        child = self._children.get(values)
        if child is None:
            pairs = zip(values, self._known, strict=True)
            exposed = tuple(value if value in known else OTHER for value, known in pairs)
            child = self._children.get(exposed)
            if child is None:
                metric = self._registered()
                # Cached under the exposed values and not the given ones, so that the cache is as bounded as the labels.
                child = self._children[exposed] = metric.labels(*exposed) if exposed else metric
        return child

    def start(self, process: str, settings: Settings) -> None:
        """Add the label values that depend on the settings, and create the known children at 0."""
        for known, values in zip(self._known, self.labels.values(), strict=True):
            if callable(values):
                known.update(values(settings))
        self._registered()
        every = product(*(sorted(known) for known in self._known))
        for child in every if self._first is None else self._first(process, settings):
            self.of(*child)

    def know(self, label: str, value: str, *, most: int) -> None:
        """Add a value to a label, with its children at 0, unless the label already has `most` values."""
        position = list(self.labels).index(label)
        known = self._known[position]
        if value in known or len(known) >= most:
            return
        known.add(value)
        if self._metric is not None and self._first is None:
            for child in product(*(sorted(k) if at != position else [value] for at, k in enumerate(self._known))):
                self.of(*child)

    def keep(self, children: Collection[Child]) -> None:
        """Delete all other children, such as those of partitions that the process has lost."""
        for child in set(self._children) - set(children):
            del self._children[child]
            self._registered().remove(*child)

    def _registered(self) -> Kind:
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
