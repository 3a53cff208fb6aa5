"""`make chaos`: kill, freeze and stop what runs, while forms come in, and judge what became of them."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Collection

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nigredo.errors import NigredoError
from nigredo.stack.processes import PROCESSES
from tests.chaos import report
from tests.chaos.campaign import SECOND, Campaign, ChaosError, run
from tests.chaos.faults import ACTIONS, KILL

PARTS = ("kafka", "registry", "postgres", *PROCESSES)


def _listed(known: Collection[str], value: str) -> tuple[str, ...]:
    """Return what a list separated by commas names."""
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names or set(names) - set(known):
        raise click.BadParameter(f"must be some of {', '.join(known)}, separated by commas")
    return names


class Progressing:
    """Shows bars on a terminal, else a line now and then; always on stderr."""

    def __init__(self, submissions: int, faults: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._plain = not console.is_terminal
        self._forms = self.bars.add_task("forms", total=submissions)
        self._faults = self.bars.add_task("faults", total=faults)
        self._total = submissions
        self._told = -1
        self._began = time.monotonic()

    def tell(self, line: str) -> None:
        """Tell of a step."""
        self.bars.console.print(
            f"{time.monotonic() - self._began:6.1f} s  {line}", highlight=False, markup=False, soft_wrap=True
        )

    def count(self, sent: int, faults: int) -> None:
        """Tell how far it is."""
        self.bars.update(self._forms, completed=sent)
        self.bars.update(self._faults, completed=faults)
        tenth = sent * 10 // self._total
        if self._plain and tenth > self._told:
            self._told = tenth
            self.tell(f"{sent} of {self._total} forms, {faults} faults")


@click.command()
@click.option("--kills", type=click.IntRange(0, 10_000), default=100, show_default=True, help="Faults in all")
@click.option("--submissions", type=click.IntRange(100, 1_000_000), default=20_000, show_default=True)
@click.option("--networks", type=click.IntRange(10, 50_000), default=500, show_default=True, help="Client networks")
@click.option(
    "--targets",
    default="rate-limiter,persister",
    show_default=True,
    callback=lambda _, __, value: _listed(PARTS, value),
    help="What is killed and frozen, separated by commas",
)
@click.option(
    "--actions",
    default=KILL,
    show_default=True,
    callback=lambda _, __, value: _listed(ACTIONS, value),
    help=f"What is done, of {', '.join(ACTIONS)}",
)
@click.option(
    "--second",
    default=",".join(SECOND),
    show_default=True,
    callback=lambda _, __, value: _listed(PROCESSES, value) if value else (),
    help="What runs twice; may be empty",
)
@click.option("--rate", type=click.FloatRange(1, 5000), default=100.0, show_default=True, help="Forms a second")
@click.option(
    "--again", type=click.IntRange(1, 10_000), help="Deliveries that a crash may repeat  [default: in flight]"
)
@click.option("--seed", type=int, help="Plans the same forms and faults again  [default: a new one]")
@click.option("--deadline", type=click.FloatRange(10), default=3600.0, show_default=True, help="Seconds")
@click.option("--keep", is_flag=True, help="Keep the result and put it into docs/FAULTS.md")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table")
def main(
    kills: int,
    submissions: int,
    networks: int,
    targets: tuple[str, ...],
    actions: tuple[str, ...],
    second: tuple[str, ...],
    rate: float,
    again: int | None,
    seed: int | None,
    deadline: float,
    keep: bool,
    as_json: bool,
) -> None:
    """Harm a running stack at random while forms come in, and judge whether every promise was kept."""
    campaign = Campaign(
        seed=secrets.randbelow(1_000_000) if seed is None else seed,
        faults=kills,
        submissions=submissions,
        networks=networks,
        targets=targets,
        actions=actions,
        second=second,
        rate=rate,
        again_per_crash=again,
        deadline_s=deadline,
    )
    show = Progressing(submissions, kills)
    show.tell(report.command(campaign))
    try:
        with show.bars:
            outcome = run(campaign, show)
    except KeyboardInterrupt:
        _end("stopped, and everything with it", 130)
    except (ChaosError, NigredoError, RuntimeError) as error:
        _end(str(error), 1)
    document = report.as_document(outcome)
    if keep:
        report.keep(outcome)
    click.echo(json.dumps(document) if as_json else report.table([document]))
    for line in outcome.findings.broken:
        click.echo(f"chaos: {line}", err=True)
    sys.exit(1 if outcome.findings.broken else 0)


def _end(line: str, code: int) -> None:
    click.echo(f"chaos: {line}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
