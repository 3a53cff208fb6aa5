"""Shared context of every command: the target stack or cluster, and the output of results, progress and errors."""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import click

from nigredo.cli.target import NO_STACK, Target, find_target
from nigredo.errors import ConfigurationError
from nigredo.settings import Settings
from nigredo.stack.home import Home


def visible(text: str) -> str:
    """Return a line with all control and invisible characters escaped.

    A key's name, a block's reason or a receiver's answer is untrusted text and must not control the terminal.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    short = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(char)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def complain(message: str) -> None:
    """Print one line on stderr, with `--json` too: an error, or a warning beside the result."""
    print(f"nigredo: {visible(' '.join(message.split()))}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Context:
    """Options that every command accepts, and the output of its result."""

    home: Path
    as_json: bool
    named: bool = False
    """Whether `--home` was given."""

    @cached_property
    def target(self) -> Target:
        """The stack or cluster the command speaks to; named on stderr when another could have been meant.

        Raises ConfigurationError when the choice is ambiguous.
        """
        target = find_target(self.home, os.environ, named=self.named)
        if target.chosen_from is not None:
            complain(f"speaking to {target}, not to {target.chosen_from}")
        return target

    @property
    def actor(self) -> str:
        """Login name of the operator, for the audit."""
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            return f"uid {os.getuid()}"  # The user of a container may have no name.

    def stack(self, port_base: int | None = None) -> Home:
        """Return the stack's home. Raises ConfigurationError for `--home -`, which names no stack."""
        if str(self.home) == NO_STACK:
            raise ConfigurationError("this command is about a stack: --home names its folder")
        return Home.open(self.home, port_base)

    def settings(self, part: str, *, role: str) -> Settings:
        """Return the settings of a process of the target. role: the database role."""
        return Settings.from_environment(self.environment(part, role=role))

    def environment(self, part: str, *, role: str) -> Mapping[str, str]:
        """Return the environment of a process of the target, as the running stack was started with."""
        return self.target.part_environment(part, role=role)

    def warn_of_own_settings(self) -> None:
        """Warn on stderr when the result is based on the command's own settings, because processes may have others."""
        if (why := self.target.why_own) is not None:
            complain(f"settings are those of this command's environment, processes may have others: {why}")

    def result(self, document: Any, lines: str | Iterable[str], *, changed: bool = False) -> None:
        """Print a command's result once, as a JSON document or as lines.

        lines: one line or several; a line break inside a line is shown as `\\n`. changed: whether the command changed
        something; the document then names the target, if another could have been meant.
        """
        if self.as_json:
            if changed and self.target.chosen_from is not None and isinstance(document, dict):
                document = document | {"speaks_to": self.target.describe()}
            print(json.dumps(document))
            return
        for line in [lines] if isinstance(lines, str) else lines:
            print(visible(line))

    def script(self, document: Any, text: str) -> None:
        """Print a text for a shell to evaluate, unescaped, or the JSON document."""
        print(json.dumps(document) if self.as_json else text)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Return when the operator agrees, or agreed with `--yes`; raises Abort otherwise.

        Raises ConfigurationError when stdin is no terminal.
        """
        if yes:
            return
        if not sys.stdin.isatty():
            raise ConfigurationError(f"{question} There is no terminal to ask on: --yes agrees beforehand")
        click.confirm(visible(question), abort=True, err=True)

    def tell(self, *lines: str) -> None:
        """Print progress lines, on stderr when stdout is for a JSON document."""
        stream = sys.stderr if self.as_json else sys.stdout
        try:
            for line in lines:
                print(visible(line), file=stream, flush=True)
        except BrokenPipeError:
            # A stack must neither end nor fail to start because the reader of its progress left.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def with_context(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the shared Context to a command, which also accepts `--home` and `--json` after its name."""

    @click.option("--home", "own_home", type=click.Path(path_type=Path), default=None, help="The stack's folder")
    @click.option("--json", "own_json", is_flag=True, help="Print one JSON document instead of text")
    @wraps(command)
    def wrapped(own_home: Path | None, own_json: bool, **options: Any) -> Any:
        shared: Context = click.get_current_context().obj
        home, named = (own_home, True) if own_home is not None else (shared.home, shared.named)
        return command(replace(shared, home=home, named=named, as_json=own_json or shared.as_json), **options)

    return wrapped


@contextmanager
def download_progress(tell: Callable[[str], None]) -> Iterator[Callable[[int, int], None]]:
    """Show a download: a bar on a terminal, otherwise a line for each tenth; nothing when nothing is downloaded."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("Downloading Kafka and the registry, once"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)
        last_tenth = [-1]

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)
            tenth = done * 10 // total
            if not console.is_terminal and tenth > last_tenth[0]:
                last_tenth[0] = tenth
                tell(f"downloading Kafka and the registry, once: {done >> 20} of {total >> 20} MiB")

        yield show
