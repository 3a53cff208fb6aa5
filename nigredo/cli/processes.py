"""`nigredo run`: one process of the product in the foreground, as a supervisor or an orchestrator starts it."""

from __future__ import annotations

import importlib

import click

from nigredo.cli.output import Context, with_context
from nigredo.stack.processes import PROCESSES


@click.command()
@click.argument("name", type=click.Choice(sorted(PROCESSES)))
@with_context
def run(context: Context, name: str) -> int:
    """Run one process; its settings come from the environment alone."""
    code: int = importlib.import_module(PROCESSES[name]).main()
    return code


COMMANDS = (run,)
