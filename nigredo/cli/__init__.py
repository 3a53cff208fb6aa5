"""Command line `nigredo`: one module per command group, hence their number; `main` turns errors into exit codes.

Commands parse options and print results; the work is done below, in `nigredo.operations` and `nigredo.control`. No
other package of the product may import this one, and commands import large libraries only when they run.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from click.utils import make_default_short_help

from nigredo.cli.output import Context, complain
from nigredo.cli.target import DEFAULT_HOME
from nigredo.errors import NigredoError

COMMANDS: Mapping[str, tuple[str, str]] = {
    "config": ("control", "Settings that can change while the product runs."),
    "dead": ("dead", "Dead leads: out of attempts, or refused for good by the receiver."),
    "dead-letters": (
        "dead_letters",
        "Dead letters: records that a process could not handle, parked for 90 days with the reason.",
    ),
    "down": ("stack", "Stop the stack in this home; accepted leads are kept."),
    "env": ("stack", 'Print shell variables for the stack\'s clients: eval "$(nigredo env)".'),
    "ip": ("control", "Blocked client addresses: every request is answered 403."),
    "keys": ("keys", "API keys for reading leads over HTTP; only their hashes are stored."),
    "maintenance": ("control", "Maintenance mode: forms are answered with a readable 503."),
    "migrate": ("database", "Apply the migrations that the database does not have yet; safe to repeat."),
    "quarantine": ("quarantine", "Refused submissions: over the limit, spam, duplicates."),
    "ratelimit": ("ratelimit", "Client networks at the limit: an IPv4 address, or the /64 of an IPv6 address."),
    "recover": (
        "recover",
        "Repair stored positions, windows and leads after the log was lost, truncated, restored or recreated.",
    ),
    "replay": ("replay", "Send leads again, behind live traffic and without touching its offsets."),
    "restart": ("stack", "Stop one part, start it, and wait until it is ready."),
    "rewind": (
        "rewind",
        "Set a consumer GROUP back: it handles all records from there on again, so a sender repeats deliveries.",
    ),
    "run": ("run", "Run one process, with its settings from the environment alone."),
    "schemas": ("schemas", "Schema ids pinned in the log, and the registry beside them."),
    "start": ("stack", "Start a stopped part and wait until it is ready."),
    "status": ("stack", "Show the parts of the stack; exit code 0 only when all are ready and no record is parked."),
    "stop": ("stack", "Stop one part and leave it stopped."),
    "topics": ("topics", "The topics and their schemas."),
    "up": ("up", "Start the whole stack and keep it running until Ctrl-C."),
    "webhook": ("webhook_status", "Deliveries to the receivers."),
}
"""By name: the module of `nigredo.cli` that has the command under its name with underscores, and its line of help. Of a
group in several modules, the one that imports the others."""


class _Commands(click.Group):
    """Imports the module of a command only when the command is used, so that `--help` waits for no client library."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"nigredo.cli.{COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        rows = [(name, make_default_short_help(line, limit)) for name, (_, line) in COMMANDS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
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


def main() -> int:
    """Run the command line and return its exit code: 0 for success, 1 for a failed command, 2 for wrong arguments."""
    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal's encoding lacks are escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
