"""`nigredo up`: start of the embedded stack, in the foreground or detached. Apart from the commands on a running stack,
which are typed far more often and need none of its libraries."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click

from nigredo.cli.output import Context, complain, download_progress, with_context
from nigredo.cli.stack import CONTROL_DEADLINE_S, STOP_DEADLINE_S, not_ready
from nigredo.errors import ConfigurationError, NigredoError
from nigredo.settings import Settings
from nigredo.stack import artifacts, embedded
from nigredo.stack import supervisor_socket as control
from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import PORTS, Home
from nigredo.stack.sample import show_sample

PRIVATE = 0o077
"""Umask of the supervisor, inherited by the parts, so that their files are closed to other users."""
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


def _addresses(home: Home) -> list[str]:
    return [
        f"The form:           {home.url('ingest')}/",
        f"Its endpoint:       {home.url('ingest')}/api/leads",
        f"What was delivered: {home.url('fibonacci')}/",
        f"Data and logs:      {home.dir}",
    ]
