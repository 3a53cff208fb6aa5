"""`nigredo run`: one process of the product in the foreground, for a supervisor or an orchestrator."""

from __future__ import annotations

import importlib
import os

import click

from nigredo.cli.output import Context, with_context
from nigredo.components import PROCESSES, WEBHOOK_SENDER


@click.command()
@click.argument("name", type=click.Choice(sorted(PROCESSES)))
@click.option("--endpoint", default=None, help="Endpoint of a webhook-sender  [default: WEBHOOK_ENDPOINT, fibonacci]")
@with_context
def run(context: Context, name: str, endpoint: str | None) -> int:
    """Run one process, with its settings from the environment alone."""
    if endpoint is not None:
        if name != WEBHOOK_SENDER:
            raise click.UsageError("--endpoint is for webhook-sender alone")
        os.environ["WEBHOOK_ENDPOINT"] = endpoint
    code: int = importlib.import_module(PROCESSES[name]).main()
    return code
