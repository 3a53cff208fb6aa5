"""`nigredo up`, `down`, `status`, `env`, `stop`, `start`, `restart`: operation of the embedded stack."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click

from nigredo.cli.dead_letters import dead_letters_of_persister, status_lines
from nigredo.cli.output import Context, complain, download_progress, with_context
from nigredo.errors import ConfigurationError, NigredoError
from nigredo.settings import Settings
from nigredo.stack import artifacts, embedded
from nigredo.stack import supervisor_socket as control
from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import PORTS, Home, postgres_bin
from nigredo.stack.sample import show_sample
from nigredo.stack.supervisor import end_leftovers

PRIVATE = 0o077
"""Umask of the supervisor, inherited by the parts, so that their files are closed to other users."""
CONTROL_DEADLINE_S = 30.0
STOP_DEADLINE_S = 150.0
ACTION_DEADLINE_S = 600.0
"""Longer than the supervisor waits for a part."""
DETACHED_DEADLINE_S = 900.0
"""Longer than a start takes until it fails by itself."""
NOT_ALL_READY = 3


@click.command()
@click.option("--detach", is_flag=True, help="Return once everything is ready, and leave it running")
@click.option("--port-base", type=int, default=None, help=f"First of {len(PORTS)} ports that follow each other [8080]")
@click.option("--sample", is_flag=True, help="Once ready, submit a sample lead and follow it")
@click.option(
    "--external", default="", help="Parts that you run yourself at this stack's ports: kafka,registry,postgres"
)
@with_context
def up(context: Context, detach: bool, port_base: int | None, sample: bool, external: str) -> int:
    """Start the whole stack and keep it running until Ctrl-C.

    Forms are accepted as soon as Kafka and ingest are ready. Any other part that does not come up is retried for as
    long as the stack runs, and `nigredo status` says why.

    \b
    Exit codes:
      0    everything became ready (with --detach), or was stopped after forms were accepted
      1    no form can be accepted; the reason is on stderr, and nothing is left running
      2    wrong arguments
      3    with --detach: forms are accepted, but the parts named on stderr are not ready and are retried
      130  stopped before forms were accepted
    """
    _check_platform()
    home = context.stack(port_base)
    given = [part.strip() for part in external.split(",") if part.strip()]
    if unknown := set(given) - set(embedded.EXTERNAL):
        raise ConfigurationError(f"--external knows {', '.join(embedded.EXTERNAL)}, not {', '.join(sorted(unknown))}")
    # Report wrong settings before any part starts.
    settings = Settings.from_environment(home.part_environment(os.environ, "up"))
    with _disk():
        home.claim()
    # Owned from here on, so that only one process downloads, and `nigredo down` finds it.
    with control.owned(home) as owner:
        with _disk(), download_progress(context.tell) as progress:
            fetched = artifacts.fetch(artifacts.cache_dir(os.environ), progress)
        if not detach:
            os.umask(PRIVATE)
            with _disk():
                # An external part asks for a password only if the home already holds one.
                with_password = {
                    part: part not in given or home.has_secret(password)
                    for part, password in (("kafka", "kafka-admin"), ("registry", "registry"))
                }
                home.create(
                    kafka_auth=settings.embedded_kafka_auth if with_password["kafka"] else "none",
                    registry_auth="basic" if with_password["registry"] else "none",
                )
            return _run(context, home, fetched, given, sample=sample)
        process, log_file = _detached(home, external, owner)
    return _await_start(context, home, process, log_file, sample=sample)


@contextmanager
def _disk() -> Iterator[None]:
    """Turn an OSError, such as of a full disk, into a NigredoError of one line."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise NigredoError(f"{where}{error.strerror or error}; fix that and run the command again") from error


def _run(context: Context, home: Home, fetched: Artifacts, external: Sequence[str], *, sample: bool) -> int:
    """Run the stack in the foreground."""

    def when_accepting() -> None:
        context.tell(*_addresses(home))
        context.tell("Ctrl-C stops everything; accepted leads are kept.")

    def when_ready() -> None:
        if sample:
            try:
                show_sample(home, lambda text: context.tell(*text.split("\n")))
            except NigredoError as error:
                complain(str(error))
        when_accepting()

    accepted = asyncio.run(
        embedded.run(
            home,
            fetched,
            os.environ,
            external=external,
            tell=context.tell,
            when_accepting=when_accepting,
            when_ready=when_ready,
        )
    )
    if not accepted:
        raise click.Abort
    return 0


def _check_platform() -> None:
    glibc = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    version = tuple(int(number) for number in (glibc or "glibc 0").split()[-1].split("."))
    if version < (2, 34):
        raise ConfigurationError("the embedded stack needs Linux with glibc 2.34 or later")


def _detached(home: Home, external: str, owner: IO[str]) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a supervisor in a session of its own and pass ownership of the home to it; return it and its log file."""
    log_file = home.dir / "logs" / "supervisor.log"
    command = [sys.executable, "-m", "nigredo.cli", "--home", str(home.dir), "up", "--port-base", str(home.port_base)]
    command += ["--external", external] if external else []
    with _disk(), log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(owner.fileno(),),
            env=os.environ | {control.OWNER: str(owner.fileno())},
        )
    return process, log_file


def _await_start(
    context: Context, home: Home, process: subprocess.Popen[bytes], log_file: Path, *, sample: bool
) -> int:
    """Wait until the start of a detached stack is over, print the result, and return the exit code."""
    try:
        document = _until_settled(context, home, process, log_file)
    except BaseException:
        # Also on Ctrl-C, because the command promises a stack that is ready, or none.
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_DEADLINE_S)
        raise
    if document["ready"] and sample:
        show_sample(home, lambda text: context.tell(*text.split("\n")))
    context.result(document, _addresses(home))
    if document["ready"]:
        return 0
    for line in not_ready(document):
        complain(line)
    return NOT_ALL_READY


def _until_settled(context: Context, home: Home, process: subprocess.Popen[bytes], log_file: Path) -> dict[str, Any]:
    """Wait for the end of a start and return the status document. Raises NigredoError when no form can be accepted."""
    lines_shown = 0
    deadline = time.monotonic() + DETACHED_DEADLINE_S
    while True:
        ended = process.poll() is not None
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines[lines_shown:]:
            if " ready after " in line or line.startswith(("still waiting", "Kafka's data")):
                context.tell(line)
        lines_shown = len(lines)
        if ended:
            raise NigredoError(
                lines[-1].removeprefix("nigredo: ") if lines else f"the supervisor ended; see {log_file}"
            )
        # Ask again when the supervisor is slow to answer.
        with suppress(NigredoError):
            document = control.ask(home, {"do": "status"}, deadline_s=CONTROL_DEADLINE_S)
            if document["settled"]:
                return document
        if time.monotonic() > deadline:
            raise NigredoError(f"the start is not over after {DETACHED_DEADLINE_S:g} s; see {log_file}")
        time.sleep(0.1)


def not_ready(document: dict[str, Any]) -> list[str]:
    """Return a line for each part and step that is not ready, and for each trouble."""
    waiting = document["parts"] | document["steps"]
    lines = [
        f"{name} is {each['waiting_for']}"
        if each.get("state") == "stopped"
        else f"{name} is not ready, it waits: {each['waiting_for']}"
        for name, each in waiting.items()
        if each["waiting_for"]
    ]
    return [*lines, *document["troubles"]]


def table(document: dict[str, Any]) -> list[str]:
    """Return a table of the parts, and of the steps that are not done."""
    wide = max(map(len, document["parts"])) + 2
    lines = [f"{'PART':<{wide}}{'STATE':<10}{'PID':>8}  {'RESTARTS':>8}  NOTE"]
    for name, part in document["parts"].items():
        # A supervisor of an earlier release reports no state.
        state = part.get("state") or ("ready" if part["ready"] else "waiting")
        notes = {"ready": part["url"], "stopped": part["waiting_for"]}
        note = notes.get(state, f"waits: {part['waiting_for']}")
        lines.append(f"{name:<{wide}}{state:<10}{part['pid'] or '-':>8}  {part['restarts']:>8}  {note or ''}".rstrip())
    for name, step in document["steps"].items():
        if not step["done"]:
            lines.append(f"{name:<{wide}}{'waiting':<10}{'-':>8}  {'-':>8}  waits: {step['waiting_for']}")
    return lines


def _addresses(home: Home) -> list[str]:
    return [
        f"The form:           {home.url('ingest')}/",
        f"Its endpoint:       {home.url('ingest')}/api/leads",
        f"What was delivered: {home.url('fibonacci')}/",
        f"Data and logs:      {home.dir}",
    ]


@click.command()
@with_context
def down(context: Context) -> None:
    """Stop the stack in this home; accepted leads are kept.

    A stack that does not run is no error, a home without a stack is.
    """
    home = context.stack()
    ended: list[str] = []
    if not home.exists and not (home.dir / "run").is_dir():
        raise NigredoError(f"there is no stack in {home.dir}, so none was stopped; --home names another")
    ran = False
    if (home.dir / "run").is_dir():
        with suppress(control.NotRunning):
            control.ask(home, {"do": "down"}, deadline_s=STOP_DEADLINE_S)
            ran = True
        deadline = time.monotonic() + STOP_DEADLINE_S
        while True:
            try:
                with control.owned(home):
                    ended = end_leftovers(home)
                    break
            except control.AlreadyRunning:
                if time.monotonic() > deadline:
                    raise
                # A start that still downloads owns the home but does not listen yet.
                ran = True
                with suppress(control.NotRunning):
                    control.ask(home, {"do": "down"}, deadline_s=STOP_DEADLINE_S)
                    continue
                if (owner := control.owner_of(home)) is not None:
                    with suppress(ProcessLookupError):
                        os.kill(owner, signal.SIGTERM)
                time.sleep(0.5)
    text = "stopped" if ran else f"no stack ran in {home.dir}" + (f"; ended {', '.join(ended)}" if ended else "")
    context.result({"ready": False, "parts": {}, "ended": ended}, text)


@click.command()
@with_context
def status(context: Context) -> int:
    """Show the parts of the stack; exit code 0 only when all are ready and no record is parked.

    A part stopped by `nigredo stop` is not ready, and stays stopped until `nigredo start`.
    """
    home = context.stack()
    document = control.ask(home, {"do": "status"}, deadline_s=CONTROL_DEADLINE_S)
    parked = dead_letters_of_persister(home)
    document["dead_letters"] = parked
    context.result(document, table(document) + document["troubles"] + status_lines(parked or ()))
    return 0 if document["ready"] and not parked else 1


@click.command()
@with_context
def env(context: Context) -> None:
    """Print shell variables for the stack's clients: eval "$(nigredo env)"."""
    home = context.stack()
    if not home.exists:
        raise NigredoError(f"there is no stack in {home.dir}; `nigredo up` makes one")
    variables = home.user_environment()
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    programs = os.pathsep.join((str(Path(sys.executable).parent), str(postgres_bin())))
    exports.append(f'export PATH={shlex.quote(programs)}:"$PATH"')
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    context.script(variables | {"PATH": path}, "\n".join(exports))


def _action(name: str, help_text: str) -> click.Command:
    @click.command(name, help=help_text)
    @click.argument("part")
    @with_context
    def command(context: Context, part: str) -> None:
        request = {"do": name, "part": part, "by": context.actor}
        document = control.ask(context.stack(), request, deadline_s=ACTION_DEADLINE_S)
        context.result(document, f"{part} stopped" if name == "stop" else f"{part} ready")

    return command


stop = _action("stop", "Stop one part and leave it stopped.")
start = _action("start", "Start a stopped part and wait until it is ready.")
restart = _action("restart", "Stop one part, start it, and wait until it is ready.")
