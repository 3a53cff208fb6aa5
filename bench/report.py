"""Reports of the bench: findings as JSON, Markdown tables and SVG charts."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.measure import Result

PACKAGES = ("falcon", "granian", "confluent-kafka", "faust-streaming", "aiokafka", "fastavro", "psycopg", "httpx")
README = Path(__file__).parents[1] / "README.md"
PERFORMANCE = Path(__file__).parents[1] / "docs" / "PERFORMANCE.md"
NOT_MEASURED = "Not measured yet.\n"
"""Text of a document in place of missing figures."""
POINTS = ("p50_ms", "p99_ms")
HEADLINES = (
    ("ingest", "synchronous"),
    ("limiter", "Quix Streams"),
    ("persister", "COPY, one process"),
    ("webhook", "httpx in the request"),
)
"""Scenario and reference of the ratios that the README shows, favourable and unfavourable ones."""
HEADLINE_RATE = "200/s"
HEADLINE_KINDS = ("ack", "row", "receiver")
Document = Mapping[str, Any]
"""One scenario's findings as JSON."""


def machine() -> dict[str, object]:
    """Return hardware, system and package versions that the figures were measured with."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def as_document(result: Result) -> Document:
    """Return one scenario's findings as JSON."""
    ratios = result.ratios() if result.rates(result.subject) else []
    return {
        "scenario": result.scenario,
        "title": result.title,
        "unit": result.unit,
        "settings": dict(result.settings),
        "figures": {name: [dict(one) for one in rounds] for name, rounds in result.figures.items()},
        "ratios": [asdict(ratio) for ratio in ratios],
        "unfair": result.unfair,
        **result.extra,
    }


def write(folder: Path, document: Document) -> None:
    """Write one scenario's findings into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z]+", "-", str(document["scenario"]))
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> list[Document]:
    """Return the findings stored in a folder, by file name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def table(documents: Sequence[Document]) -> str:
    """Return ratios and latencies as Markdown."""
    ratios = [
        (document["title"], _per_second(document, ratio["subject"]), ratio)
        for document in documents
        for ratio in document["ratios"]
    ]
    latencies = [
        (rate, kind, points)
        for document in documents
        for rate, kinds in document.get("latency, ms", {}).items()
        for kind, points in kinds.items()
    ]
    lines: list[str] = []
    if ratios:
        lines += ["| what | per second | against | ratio | lowest to highest |", "|---|--:|---|--:|--:|"]
    for title, ours, ratio in ratios:
        between = f"{_short(ratio['lowest'])} to {_short(ratio['highest'])}{', noisy' if ratio['noisy'] else ''}"
        lines.append(f"| {title} | {ours:,.0f} | {ratio['reference']} | **{_short(ratio['median'])}** | {between} |")
    waits = [
        (name, [statistics.median(one[point] for one in rounds) for point in POINTS])
        for document in documents
        if document["scenario"] == "ingest"
        for name, rounds in document["figures"].items()
        if all(point in rounds[0] for point in POINTS)
    ]
    if waits:
        lines += ["", "| from POST to answer in ms, 64 connections | p50 | p99 |", "|---|--:|--:|"]
    lines += [f"| {name} | {p50:,.1f} | {p99:,.1f} |" for name, (p50, p99) in waits]
    if latencies:
        names = list(latencies[0][2])
        lines += ["", f"| POSTs | from POST to, in ms | {' | '.join(names)} |", f"|---|---|{'--:|' * len(names)}"]
    for rate, kind, points in latencies:
        lines.append(f"| {rate} | {kind} | {' | '.join(f'{value:,.0f}' for value in points.values())} |")
    return "\n".join(lines)


def _per_second(document: Document, name: str) -> float:
    rates: list[float] = [figures["rate"] for figures in document["figures"][name]]
    return statistics.median(rates)


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 5 else f"{ratio:.2f}"


def quoted(documents: Sequence[Document]) -> str:
    """Return all ratios and latencies of the findings as Markdown, with the machine they were measured on."""
    return f"{_measured(documents)}\n\n{table(documents)}\n"


def headlines(documents: Sequence[Document]) -> str:
    """Return the rows of the README: a ratio for each stage, and the latencies at one rate."""
    lines = ["| what | per second | against | ratio |", "|---|--:|---|--:|"]
    for scenario, reference in HEADLINES:
        for document in (document for document in documents if document["scenario"] == scenario):
            (ratio,) = (ratio for ratio in document["ratios"] if ratio["reference"] == reference)
            ours = f"{_per_second(document, ratio['subject']):,.0f}"
            lines.append(f"| {document['title']} | {ours} | {reference} | **{_short(ratio['median'])}** |")
    lines += ["", f"| {HEADLINE_RATE}, from POST to, in ms | p50 | p99 |", "|---|--:|--:|"]
    for document in documents:
        for kind, points in document.get("latency, ms", {}).get(HEADLINE_RATE, {}).items():
            if kind in HEADLINE_KINDS:
                lines.append(f"| {kind} | {points['p50']:,.0f} | {points['p99']:,.0f} |")
    return "\n".join([_measured(documents), "", *lines, ""])


def _measured(documents: Sequence[Document]) -> str:
    about: Mapping[str, Any] = documents[0]["machine"]
    where = f"Measured by `make bench` on {about['cores']} cores ({about['cpu']}, {about['memory_gib']:.0f} GiB)"
    return f"{where}, {str(documents[0]['measured_at'])[:10]}, everything on the one machine."


def costs(documents: Sequence[Document]) -> str:
    """Return the cost of a thousand leads and the start-up time of each part, as Markdown."""
    cost = {what: value for document in documents for what, value in document.get("cost of 1,000 leads", {}).items()}
    starts = {what: seconds for document in documents for what, seconds in document.get("start-up, s", {}).items()}
    lines = ["| 1,000 leads cost | |", "|---|--:|", *(f"| {what} | {value:,.4g} |" for what, value in cost.items())]
    lines += ["", "| start | s, median | lowest to highest |", "|---|--:|--:|"]
    for what, seconds in starts.items():
        between = f"{min(seconds):.1f} to {max(seconds):.1f}"
        lines.append(f"| {what} | {statistics.median(seconds):.1f} | {between} |")
    return "\n".join(lines) + "\n"


def put(document: Path, mark: str, text: str) -> None:
    """Replace the text between a document's marks with the findings."""
    whole = document.read_text(encoding="utf-8")
    document.write_text(between(mark).sub(lambda found: found[1] + text + found[3], whole), encoding="utf-8")


def between(mark: str) -> re.Pattern[str]:
    """Return a pattern with three groups: the opening mark, the text between the marks, and the closing mark."""
    return re.compile(rf"(<!-- {mark} -->\n)(.*?)(<!-- /{mark} -->)", re.DOTALL)


def draw(folder: Path, found: Iterable[Result]) -> None:
    """Draw the findings that have a chart, as SVG files in `folder`."""
    # Imported here, so that commands that draw nothing do not need it.
    import matplotlib as mpl

    mpl.use("svg")
    # A fixed salt gives the same file for the same figures, so that a diff shows a change.
    mpl.rcParams.update({"svg.hashsalt": "nigredo", "axes.spines.top": False, "axes.spines.right": False})
    for result in found:
        if "by connections" in result.extra:
            _draw_connections(folder, result.extra["by connections"])
        if "backlog over time" in result.extra:
            _draw_backlog(folder, result)
        if "latency, ms" in result.extra:
            _draw_latencies(folder, result.extra["latency, ms"])


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw_connections(folder: Path, by_contender: Any) -> None:
    figure, axes = _figure("POST acknowledged, by connections", "connections", "POST/s")
    for name, points in by_contender.items():
        axes.plot([p["connections"] for p in points], [p["rate"] for p in points], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(frameon=False)
    _save(figure, folder / "connections.svg")


def _draw_backlog(folder: Path, result: Result) -> None:
    figure, axes = _figure(f"{result.title}: what is left, last round", "seconds", "records")
    series: Any = result.extra["backlog over time"]
    axes.plot([at for at, _ in series], [left for _, left in series])
    axes.set_ylim(bottom=0)
    _save(figure, folder / f"backlog-{re.sub(r'[^a-z]+', '-', result.scenario)}.svg")


def _draw_latencies(folder: Path, by_rate: Mapping[str, Mapping[str, Mapping[str, float]]] | Any) -> None:
    figure, axes = _figure("From POST, by percentile", "percentile", "milliseconds")
    styles = ("-", "--", ":")
    for style, (rate, kinds) in zip(styles, by_rate.items(), strict=False):
        for colour, kind in enumerate(("ack", "row", "receiver")):
            points = kinds[kind]
            axes.plot(list(points), list(points.values()), style, color=f"C{colour}", label=f"{kind}, {rate}")
    axes.set_yscale("log")
    axes.legend(frameon=False, ncols=3)
    _save(figure, folder / "latency.svg")
