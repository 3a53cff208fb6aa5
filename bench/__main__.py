"""`make bench`: measures every stage beside its references, in one run."""

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
from bench.run import SMOKE, Effort, Run
from bench.slowed import TARGETS, slow_down

SCENARIOS = ("steps", "ingest", "flush", "limiter", "persister", "webhook", "end_to_end")
HERE = Path(__file__).parent


@click.command()
@click.option("--only", type=click.Choice(SCENARIOS), multiple=True, help="Measure this scenario alone; repeatable")
@click.option(
    "--rounds", type=click.IntRange(1, 50), default=ROUNDS, show_default=True, help="Rounds after the warm-up"
)
@click.option("--smoke", is_flag=True, help="One short round of most of it, to see that it works: no figures to quote")
@click.option("--slow", type=click.Choice(sorted(TARGETS)), help="Make this part twice as slow, to see that it shows")
@click.option("--results", type=click.Path(path_type=Path), help="Where the figures go [default: bench/results]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table")
def main(
    only: tuple[str, ...], rounds: int, smoke: bool, slow: str | None, results: Path | None, as_json: bool
) -> None:
    """Measure the product beside its references."""
    if slow:
        slow_down(slow)
    effort = SMOKE if smoke else Effort(rounds=rounds)
    # Figures of slowed or hurried runs go to other folders than the quoted ones.
    usual = HERE / ("results-smoke" if smoke else f"results-slow-{slow}" if slow else "results")
    session = Session(results or usual, quoted=not (smoke or slow))
    session.tell("starting Kafka, the registry and PostgreSQL")
    try:
        with (
            session.console.status("Ctrl-C keeps what was measured"),
            open_lab(slow=slow, start_twice=not smoke) as lab,
        ):
            run = Run(lab, effort, session.measured, session.save, session.tell)
            for name in only or SCENARIOS:
                session.scenario(name, run)
    except KeyboardInterrupt:
        session.failed("stopped; what was measured is kept", code=130)
    except LabError as error:
        session.failed(str(error))
    documents = [report.as_document(result) for result in session.found]
    if documents and not smoke:
        report.draw(session.folder, session.found)
    if session.folder == HERE / "results" and not only and not session.code:
        kept = report.load(session.folder)
        report.put(report.README, "fast", report.headlines(kept))
        report.put(report.PERFORMANCE, "bench", report.quoted(kept))
        report.put(report.PERFORMANCE, "cost", report.costs(kept))
    print(json.dumps(documents) if as_json else report.table(documents))
    for line in (line for result in session.found for line in result.unfair):
        # In a hurried run no process is warm, so an unfair reference is no failure.
        session.failed(line, code=0 if smoke else 1)
    sys.exit(session.code)


class Session:
    """A run's console and results folder: prints progress and saves each scenario's findings as they come."""

    def __init__(self, folder: Path, *, quoted: bool) -> None:
        self.folder = folder
        self.console = Console(stderr=True)
        self.found: list[Result] = []
        self.code = 0
        self._began = time.monotonic()
        self._about: Mapping[str, object] = {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "quotable": quoted,
            "machine": report.machine(),
        }

    def scenario(self, name: str, run: Run) -> None:
        """Run one scenario; one that cannot be measured is reported and does not stop the others."""
        try:
            run.lab.skip()
            importlib.import_module(f"bench.scenarios.{name}").run(run)
        except LabError as error:
            self.failed(f"{name}: {error}")

    def tell(self, line: str) -> None:
        """Print a line of progress."""
        self.console.print(
            f"{time.monotonic() - self._began:6.0f} s  {line}", highlight=False, markup=False, soft_wrap=True
        )

    def failed(self, line: str, *, code: int = 1) -> None:
        """Print an error and set the exit code, unless it is set already."""
        self.code = self.code or code
        print(f"bench: {line}", file=sys.stderr)

    def measured(self, scenario: str, contender: str, number: int, figures: Figures) -> None:
        """Print the figures of a contender in a round; round 0 is the warm-up."""
        shown = "  ".join(f"{name} {value:,.6g}" for name, value in figures.items())
        self.tell(f"{scenario}, {'warm-up' if number == 0 else f'round {number}'}: {contender}: {shown}")

    def save(self, result: Result) -> None:
        """Write a scenario's findings, replacing those of an earlier run."""
        if result not in self.found:
            self.found.append(result)
        report.write(self.folder, {**self._about, **report.as_document(result)})


if __name__ == "__main__":
    main()
