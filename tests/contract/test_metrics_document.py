"""`docs/METRICS.md` and the catalogue say the same, both ways; and every metric is counted somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nigredo.observability.instrument import Metric
from nigredo.observability.metrics import CATALOGUE

DOCUMENT = Path(__file__).parents[2] / "docs" / "METRICS.md"


def row(metric: Metric[Any]) -> str:
    """Return what the document says of a metric."""
    name = metric.name + (f"{{{','.join(metric.labels)}}}" if metric.labels else "")
    told_by = ", ".join(metric.processes)
    return f"| `{name}` | {metric.type} | {metric.counts} | {metric.unit} | {metric.answers} | {told_by} |"


def test_the_document_lists_every_metric_as_the_catalogue_has_it_and_no_other() -> None:
    told = re.findall(r"^\| `nigredo_.*$", DOCUMENT.read_text(), re.MULTILINE)

    assert told == [row(metric) for metric in CATALOGUE]


def test_names_say_what_prometheus_expects_of_them() -> None:
    for metric in CATALOGUE:
        assert (metric.type == "counter") == metric.name.endswith("_total"), metric.name
        assert (metric.unit == "seconds") == metric.name.endswith("_seconds"), metric.name
        assert (metric.unit == "bytes") == metric.name.endswith("_bytes"), metric.name
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
