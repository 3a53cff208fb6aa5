"""`make bench`: everything that claims to be fast, measured beside what it is compared with, in one run."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from bench import report
from bench.lab import LabError, open_lab
from bench.measure import ROUNDS, Figures, Result
from bench.run import SMOKE, Effort, Run, start
from bench.slowed import TARGETS, slow_down

SCENARIOS = ("hot_paths", "ingest", "limiter", "persister", "webhook", "end_to_end")
RESULTS = Path(__file__).parent / "results"


@click.command()
@click.option("--only", type=click.Choice(SCENARIOS), multiple=True, help="Measure this scenario alone; repeatable")
@click.option("--rounds", type=click.IntRange(1, 50), default=ROUNDS, show_default=True, help="Rounds after the warm-up")
@click.option("--smoke", is_flag=True, help="One short round of everything, to see that it works: no figures to quote")
@click.option("--slow", type=click.Choice(sorted(TARGETS)), help="Make this part twice as slow, to see that it shows")
@click.option("--results", type=click.Path(path_type=Path), help="Where the figures go [default: bench/results]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table")
def main(
    only: tuple[str, ...], rounds: int, smoke: bool, slow: str | None, results: Path | None, as_json: bool
) -> None:
    """Measure the product beside what it is compared with; figures, table and plots go to `bench/results`."""
    if slow:
        slow_down(slow)
    effort = SMOKE if smoke else Effort(rounds=rounds)
    session = Session(results or _results_folder(smoke=smoke, slow=slow), Console(stderr=True), smoke=smoke, slow=slow)
    code = 0
    try:
        with session.console.status("") as status, open_lab(session.tell, slow=slow) as lab:
            status.update("measuring; Ctrl-C keeps what was measured")
            run = start(lab, effort, session.measured, session.save, session.tell)
            for name in only or SCENARIOS:
                session.scenario(name, run)
    except KeyboardInterrupt:
        session.tell("stopped; what was measured is kept")
        code = 130
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        code = 1
    if session.found and not smoke:
        report.draw(session.folder, session.found)
    print(json.dumps(report.document(session.found)) if as_json else report.table(session.found))
    unfair = [line for result in session.found for line in result.unfair]
    for line in unfair:
        print(f"bench: {line}", file=sys.stderr)
    sys.exit(code or (1 if unfair and not smoke else 0))


def _results_folder(*, smoke: bool, slow: str | None) -> Path:
    """Return where figures go: what was slowed down or hurried through never mixes with what is quoted."""
    return RESULTS.with_name("results-smoke" if smoke else f"results-slow-{slow}") if smoke or slow else RESULTS


class Session:
    """Shows progress, and writes down every scenario as soon as it is measured."""

    def __init__(self, folder: Path, console: Console, *, smoke: bool, slow: str | None) -> None:
        self.folder = folder
        self.console = console
        self.found: list[Result] = []
        self._began = time.monotonic()
        self._machine: Mapping[str, object] = report.machine() | {"smoke": smoke, "slowed": slow}

    def tell(self, line: str) -> None:
        """Print a line of progress."""
        self.console.print(f"{time.monotonic() - self._began:6.0f} s  {line}", highlight=False, markup=False)

    def measured(self, scenario: str, contender: str, number: int, figures: Figures) -> None:
        """Print a measurement."""
        shown = "  ".join(f"{name} {value:,.6g}" for name, value in figures.items())
        self.tell(f"{scenario}, {'warm-up' if number == 0 else f'round {number}'}: {contender}: {shown}")

    def save(self, result: Result) -> None:
        """Write a scenario's findings, those of an earlier run replaced."""
        if result not in self.found:
            self.found.append(result)
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": self._machine,
            **report.as_document(result),
        }
        file = self.folder / f"{result.scenario.replace(':', '').replace(',', '').replace(' ', '-')}.json"
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def scenario(self, name: str, run: Run) -> None:
        """Run one scenario; what it measured before it was interrupted is written down by `alternate`'s caller."""
        importlib.import_module(f"bench.scenarios.{name}").run(run)


if __name__ == "__main__":
    main()
