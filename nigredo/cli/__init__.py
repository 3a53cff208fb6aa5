"""Command line `nigredo`: one module per command group, hence their number; `main` turns errors into exit codes.

Commands parse options and print results; the work is done below, in `nigredo.operations` and `nigredo.control`. No
other package of the product may import this one, and commands import large libraries only when they run.
"""

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

    `nigredo up --sample` starts everything on this machine and follows a sample lead.
    """
    # Imported here, because it takes as long as everything else that `--help` needs.
    from nigredo.observability.logs import configure_logging

    # stdout is for results. `nigredo run` configures the logs again, with the name of its process.
    configure_logging("nigredo")
    folder = home or Path(os.environ.get("NIGREDO_HOME") or DEFAULT_HOME)
    context.obj = Context(folder, as_json, named=home is not None)


def load_commands() -> None:
    """Add the commands of every module."""
    # Imported here, so that `import nigredo.cli` loads no command.
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
    """Run the command line and return its exit code: 0 for success, 1 for a failed command, 2 for wrong arguments."""
    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal's encoding lacks are escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    load_commands()
    try:
        code = nigredo.main(standalone_mode=False, prog_name="nigredo")
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return _fail("stopped before it was done", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        # A command group without a command prints its help, not an error line.
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except NigredoError as error:
        return _fail(str(error), 1)
    return int(code or 0)


def _fail(message: str, code: int) -> int:
    complain(message)
    return code
