"""`make chaos`: harm what runs while forms come in, or do disasters to its stores, and judge what is left."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Collection
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nigredo.components import PROCESSES
from nigredo.errors import NigredoError
from tests.chaos import report
from tests.chaos.campaign import SECOND, Campaign, ChaosError, run
from tests.chaos.disaster_campaign import Outcome, every_pair, plan
from tests.chaos.disaster_campaign import campaign as disasters_one_by_one
from tests.chaos.faults import ACTIONS, KILL

DISASTER = "disaster"

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
@click.option(
    "--kills",
    type=click.IntRange(0, 10_000),
    help="Faults in all  [default: 100, of disasters each in every timing]",
)
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
    callback=lambda _, __, value: _listed((*ACTIONS, DISASTER), value),
    help=f"What is done, of {', '.join(ACTIONS)}; or `{DISASTER}`, alone",
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
    kills: int | None,
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
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    if DISASTER in actions:
        if len(actions) > 1:
            raise click.BadParameter(f"{DISASTER} is done alone", param_hint="--actions")
        _disasters(seed, kills, deadline, keep=keep, as_json=as_json)
    kills = 100 if kills is None else kills
    campaign = Campaign(
        seed=seed,
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


def _disasters(seed: int, many: int | None, deadline_s: float, *, keep: bool, as_json: bool) -> NoReturn:
    """Do disasters to a stack, one after another; the exit code is 0 when every promise was kept."""
    pairs = plan(seed, len(every_pair()) if many is None else many)
    command, began = report.disaster_command(seed, len(pairs)), time.monotonic()

    def tell(line: str) -> None:
        click.echo(f"{time.monotonic() - began:6.1f} s  {line}", err=True)

    tell(command)
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(disasters_one_by_one(pairs, deadline_s, tell))
    except KeyboardInterrupt:
        _end("stopped, and everything with it", 130)
    except (NigredoError, RuntimeError, AssertionError) as error:
        _end(str(error), 1)
    document = report.of_disasters(command, outcomes, time.monotonic() - began)
    if keep:
        report.keep_disasters(document)
    click.echo(json.dumps(document) if as_json else report.disaster_table(document))
    if len(outcomes) < len(pairs):
        _end(f"{len(pairs) - len(outcomes)} of {len(pairs)} disasters were left out: the deadline was reached", 1)
    sys.exit(1 if any(outcome.findings.broken for outcome in outcomes) else 0)


def _end(line: str, code: int) -> NoReturn:
    click.echo(f"chaos: {line}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
