"""The command line: one module a group of commands, and one place where errors become a line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import click

from nigredo.cli.output import Context, complain
from nigredo.cli.target import DEFAULT_HOME
from nigredo.errors import NigredoError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=None,
    help="The stack's folder [NIGREDO_HOME, .nigredo]; - for the cluster that the environment names",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text")
@click.version_option(package_name="nigredo", message="%(prog)s %(version)s")
@click.pass_context
def nigredo(context: click.Context, home: Path | None, as_json: bool) -> None:
    """Nigredo captures leads and loses none.

    `nigredo up --sample` starts everything on this machine and shows a lead on its way.
    """
    # Imported here: it takes as long as all else that `--help` needs.
    from nigredo.observability.logs import configure_logging

    # stdout is for results; a process that is run says later whose lines they are.
    configure_logging("nigredo")
    folder = home or Path(os.environ.get("NIGREDO_HOME") or DEFAULT_HOME)
    context.obj = Context(folder, as_json, named=home is not None)


def load_commands() -> None:
    """Add every command group; each is in its own module."""
    # Imported here: the modules import what this one shares with them.
    from nigredo.cli import (
        control,
        database,
        dead,
        dead_letters,
        keys,
        quarantine,
        ratelimit,
        recover,
        replay,
        rewind,
        schemas,
        stack,
        topics,
        webhook,
    )
    from nigredo.cli import run as processes
    from nigredo.cli import webhook_status as deliveries

    running = (stack, processes, topics, schemas, database, control, keys)
    for module in (*running, ratelimit, quarantine, webhook, deliveries, replay, rewind, recover, dead, dead_letters):
        for command in module.COMMANDS:
            nigredo.add_command(command)


def main() -> int:
    """Run the command line and return its exit code: 0 only when the thing asked for is so, 2 for wrong arguments."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows fewer characters than people write gets the others escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    load_commands()
    try:
        code = nigredo.main(standalone_mode=False, prog_name="nigredo")
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return _refuse("stopped before it was done", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        # Not an error to be told in one line: who asks nothing gets the help.
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        return _refuse(error.format_message(), error.exit_code)
    except NigredoError as error:
        return _refuse(str(error), 1)
    return int(code or 0)


def _refuse(message: str, code: int) -> int:
    complain(message)
    return code
