"""`nigredo up`, `down`, `status`, `env`, `stop`, `start`, `restart`: the embedded stack."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from nigredo.cli.output import Context, download_progress, with_context
from nigredo.errors import ConfigurationError, NigredoError
from nigredo.settings import Settings
from nigredo.stack import control
from nigredo.stack.home import PORTS, Home, postgres_bin

CONTROL_DEADLINE_S = 5.0
ACTION_DEADLINE_S = 150.0


@click.command()
@click.option("--detach", is_flag=True, help="Return once everything is ready, and leave it running")
@click.option("--port-base", type=int, default=None, help=f"First of {len(PORTS)} ports that follow each other [8080]")
@click.option("--sample", is_flag=True, help="Once ready, submit a sample lead and show its way")
@click.option(
    "--external", default="", help="Parts that you run yourself at this stack's ports: kafka,registry,postgres"
)
@with_context
def up(context: Context, detach: bool, port_base: int | None, sample: bool, external: str) -> None:
    """Start the whole stack and keep it running until Ctrl-C."""
    from nigredo.stack import artifacts, embedded
    from nigredo.stack.sample import show_sample

    _check_platform()
    home = context.stack(port_base)
    given = [part.strip() for part in external.split(",") if part.strip()]
    if unknown := set(given) - set(embedded.EXTERNAL):
        raise ConfigurationError(f"--external knows {', '.join(embedded.EXTERNAL)}, not {', '.join(sorted(unknown))}")
    # Wrong settings are told before anything starts.
    Settings.from_environment(home.part_environment(os.environ, "up"))
    (home.dir / "run").mkdir(parents=True, exist_ok=True)
    if detach:
        with control.owned(home):
            pass  # Nobody else runs here; told before the download.
    with download_progress(context.tell) as progress:
        fetched = artifacts.fetch(artifacts.cache_dir(os.environ), progress)
    if detach:
        _start_detached(context, home, external)
        if sample:
            show_sample(home, context.tell)
        context.result(control.ask(home, {"do": "status"}, deadline_s=CONTROL_DEADLINE_S), _addresses(home))
        return

    def when_ready() -> None:
        if sample:
            show_sample(home, context.tell)
        context.tell(_addresses(home))
        context.tell("Ctrl-C stops everything; what was taken is kept.")

    with control.owned(home):
        home.create()
        running = embedded.run(home, fetched, os.environ, external=given, tell=context.tell, when_ready=when_ready)
        asyncio.run(running)


def _check_platform() -> None:
    glibc = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    version = tuple(int(number) for number in (glibc or "glibc 0").split()[-1].split("."))
    if version < (2, 34):
        raise ConfigurationError("the embedded stack needs Linux with glibc 2.34 or later")


def _start_detached(context: Context, home: Home, external: str) -> None:
    """Start a supervisor of its own session and wait until it says that everything is ready."""
    log_file = home.dir / "logs" / "supervisor.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nigredo.cli", "--home", str(home.dir), "up", "--port-base", str(home.port_base)]
    command += ["--external", external] if external else []
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    told = 0
    deadline = time.monotonic() + ACTION_DEADLINE_S
    while True:
        lines = log_file.read_text(encoding="utf-8").splitlines()
        ended = process.poll() is not None
        for line in lines[told:]:
            if "ready after" in line:
                context.tell(line)
        told = len(lines)
        if ended:
            raise NigredoError(
                lines[-1].removeprefix("nigredo: ") if lines else f"the supervisor ended; see {log_file}"
            )
        if _status(home).get("ready"):
            return
        if time.monotonic() > deadline:
            process.terminate()
            raise NigredoError(f"the stack is not ready after {ACTION_DEADLINE_S:g} s; see {log_file}")
        time.sleep(0.1)


def _status(home: Home) -> dict[str, Any]:
    try:
        return control.ask(home, {"do": "status"}, deadline_s=CONTROL_DEADLINE_S)
    except control.NotRunning:
        return {"ready": False, "parts": {}}


def _addresses(home: Home) -> str:
    return (
        f"The form:           {home.url('ingest')}/\n"
        f"Its endpoint:       {home.url('ingest')}/api/leads\n"
        f"What was delivered: {home.url('fibonacci')}/"
    )


@click.command()
@with_context
def down(context: Context) -> None:
    """Stop the stack in this home; what was taken is kept."""
    from nigredo.stack.supervisor import end_leftovers

    home = context.stack()
    ended: list[str] = []
    if (home.dir / "run").is_dir():
        with suppress(control.NotRunning):
            control.ask(home, {"do": "down"}, deadline_s=ACTION_DEADLINE_S)
        deadline = time.monotonic() + ACTION_DEADLINE_S
        while True:
            try:
                with control.owned(home):
                    ended = end_leftovers(home)
                    break
            except control.AlreadyRunning:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    context.result({"ready": False, "parts": {}, "ended": ended}, "stopped")


@click.command()
@with_context
def status(context: Context) -> int:
    """Show the parts of the stack; exit code 0 only when all are ready."""
    document = control.ask(context.stack(), {"do": "status"}, deadline_s=CONTROL_DEADLINE_S)
    wide = max(map(len, document["parts"])) + 2
    lines = [f"{'PART':<{wide}}{'STATE':<10}{'PID':>8}  {'RESTARTS':>8}  NOTE"]
    for name, part in document["parts"].items():
        note = part["url"] if part["ready"] else f"waits: {part['waiting_for']}"
        state = "ready" if part["ready"] else "waiting"
        lines.append(f"{name:<{wide}}{state:<10}{part['pid'] or '-':>8}  {part['restarts']:>8}  {note or ''}".rstrip())
    context.result(document, "\n".join(lines))
    return 0 if document["ready"] else 1


@click.command()
@with_context
def env(context: Context) -> None:
    """Print a shell's variables: eval "$(nigredo env)"."""
    home = context.stack()
    if not home.exists:
        raise NigredoError(f"there is no stack in {home.dir}; `nigredo up` makes one")
    variables = home.user_environment()
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    programs = os.pathsep.join((str(Path(sys.executable).parent), str(postgres_bin())))
    exports.append(f'export PATH={shlex.quote(programs)}:"$PATH"')
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    context.result(variables | {"PATH": path}, "\n".join(exports))


def _action(name: str, help_text: str) -> click.Command:
    @click.command(name, help=help_text)
    @click.argument("part")
    @with_context
    def command(context: Context, part: str) -> None:
        document = control.ask(context.stack(), {"do": name, "part": part}, deadline_s=ACTION_DEADLINE_S)
        context.result(document, f"{part} stopped" if name == "stop" else f"{part} ready")

    return command


COMMANDS = (
    up,
    down,
    status,
    env,
    _action("stop", "Stop one part and leave it stopped."),
    _action("start", "Start a stopped part and wait until it is ready."),
    _action("restart", "Stop one part, start it, and wait until it is ready."),
)
