"""`nigredo down`, `status`, `env`, `stop`, `start`, `restart`: operation of a stack that was started."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import httpx

from nigredo.cli.output import Context, with_context
from nigredo.errors import NigredoError
from nigredo.plural import counted
from nigredo.stack import supervisor_socket as control
from nigredo.stack.home import Home, postgres_bin
from nigredo.stack.supervisor import end_leftovers

CONTROL_DEADLINE_S = 30.0
STOP_DEADLINE_S = 150.0
ACTION_DEADLINE_S = 600.0
"""Longer than the supervisor waits for a part."""
LISTENER_TIMEOUT_S = 2.0


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


def dead_letters_of_persister(home: Home) -> list[dict[str, Any]] | None:
    """Return the counts of parked records by topic and reason; None when the persister does not report them."""
    try:
        answer: Any = httpx.get(
            f"http://127.0.0.1:{home.health_port('persister')}/health", timeout=LISTENER_TIMEOUT_S, trust_env=False
        ).json()
    except (httpx.HTTPError, ValueError):
        return None
    counts = answer.get("dead_letters") if isinstance(answer, dict) else None
    return None if counts is None else [each for each in counts if each["count"]]


def status_lines(counts: Sequence[dict[str, Any]]) -> list[str]:
    """Return the dead-letter lines of `nigredo status`."""
    return [
        counted(each["count"], f"record of {each['topic']} is", f"records of {each['topic']} are")
        + f" parked ({each['reason']}): see `nigredo dead-letters list`"
        for each in counts
    ]
