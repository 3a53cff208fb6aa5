"""What was measured, for machines (JSON), for readers (Markdown), and for the eye (SVG)."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from bench.measure import Ratio, Result

PACKAGES = ("falcon", "granian", "confluent-kafka", "faust-streaming", "aiokafka", "fastavro", "psycopg", "httpx")
README = Path(__file__).parents[1] / "README.md"
BETWEEN = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
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


def as_document(result: Result) -> dict[str, Any]:
    """Return one scenario's findings as JSON."""
    return {
        "scenario": result.scenario,
        "title": result.title,
        "unit": result.unit,
        "settings": dict(result.settings),
        "figures": {name: [dict(one) for one in rounds] for name, rounds in result.figures.items()},
        "ratios": [_ratio(ratio) for ratio in _ratios(result)],
        "unfair": result.unfair,
        **result.extra,
    }


def document(found: Iterable[Result]) -> list[dict[str, Any]]:
    """Return all findings as JSON."""
    return [as_document(result) for result in found]


def _ratio(ratio: Ratio) -> dict[str, object]:
    return {
        "subject": ratio.subject,
        "reference": ratio.reference,
        "median": round(ratio.median, 3),
        "lowest": round(ratio.lowest, 3),
        "highest": round(ratio.highest, 3),
        "noisy": ratio.noisy,
    }


def _ratios(result: Result) -> Sequence[Ratio]:
    return result.ratios() if result.subject and result.rates(result.subject) else []


def table(found: Iterable[Result]) -> str:
    """Return the ratios as a Markdown table."""
    lines = ["| what | per second | against | ratio | lowest to highest |", "|---|---|---|---|---|"]
    for result in found:
        for ratio in _ratios(result):
            ours = sorted(result.rates(ratio.subject))[len(result.rates(ratio.subject)) // 2]
            noisy = ", noisy" if ratio.noisy else ""
            spread = f"{_short(ratio.lowest)} to {_short(ratio.highest)}{noisy}"
            lines.append(
                f"| {result.title} | {ours:,.0f} | {ratio.reference} | **{_short(ratio.median)}** | {spread} |"
            )
    return "\n".join(lines)


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 5 else f"{ratio:.2f}"


def draw(folder: Path, found: Iterable[Result]) -> None:
    """Draw what can be drawn of the findings."""
    # Only here: the commands that draw nothing need not have it.
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures give the same file, so that a diff shows a change.
    mpl.rcParams |= {"svg.hashsalt": "nigredo", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
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
    _save(figure, folder / f"backlog-{result.scenario.split(',')[0].replace(' ', '-')}.svg")


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


def load(folder: Path) -> list[Mapping[str, Any]]:
    """Return the findings kept in a folder."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
