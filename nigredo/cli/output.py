"""What every command shares: where the stack is, and how results and progress are shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from nigredo.errors import ConfigurationError
from nigredo.settings import Settings
from nigredo.stack.home import Home


@dataclass(frozen=True, slots=True)
class Context:
    """The options that every command takes."""

    home: Path
    as_json: bool

    def stack(self, port_base: int | None = None) -> Home:
        """Return the stack the command is about."""
        return Home.open(self.home, port_base)

    def settings(self, part: str, *, role: str) -> Settings:
        """Return the settings of a command: those of the stack in this home, or, without one, the environment's."""
        return Settings.from_environment(self.environment(part, role=role))

    def environment(self, part: str, *, role: str) -> Mapping[str, str]:
        """Return the environment of a command: that of the stack in this home, or, without one, its own."""
        home = self.stack()
        return home.part_environment(os.environ, part, role=role) if home.exists else os.environ

    def result(self, document: Any, text: str) -> None:
        """Print a command's result once, as a document or as text."""
        print(json.dumps(document) if self.as_json else text)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Return when the person agrees, or did so with the command; aborts otherwise.

        Raises ConfigurationError without a terminal: nobody is there to agree.
        """
        if yes:
            return
        if not sys.stdin.isatty():
            raise ConfigurationError(f"{question} Nobody is there to ask: --yes agrees beforehand")
        click.confirm(question, abort=True, err=True)

    def tell(self, line: str) -> None:
        """Print a step of something long; on stderr when stdout is for a document."""
        stream = sys.stderr if self.as_json else sys.stdout
        try:
            print(line, file=stream, flush=True)
        except BrokenPipeError:
            # A stack does not end, nor fail to start, because the reader of its progress went away.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def with_context(command: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the shared options to a command, which may also be given after its name."""

    @click.option("--home", "own_home", type=click.Path(path_type=Path), default=None, help="The stack's folder")
    @click.option("--json", "own_json", is_flag=True, help="Print one JSON document instead of text")
    @wraps(command)
    def wrapped(own_home: Path | None, own_json: bool, **options: Any) -> Any:
        shared: Context = click.get_current_context().obj
        merged = replace(shared, home=own_home or shared.home, as_json=own_json or shared.as_json)
        return command(merged, **options)

    return wrapped


@contextmanager
def download_progress(tell: Callable[[str], None]) -> Iterator[Callable[[int, int], None]]:
    """Show a download: a bar on a terminal, a line a tenth otherwise; nothing when nothing is downloaded."""
    console = Console(stderr=True)
    columns = (TextColumn("Downloading Kafka and the registry, once"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)
        told = [-1]

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)
            tenth = done * 10 // total
            if not console.is_terminal and tenth > told[0]:
                told[0] = tenth
                tell(f"downloading Kafka and the registry, once: {done >> 20} of {total >> 20} MiB")

        yield show
