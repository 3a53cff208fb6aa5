"""What every command shares: the stack it speaks to, and how results, progress and errors are shown."""

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
    """Return a line with everything escaped that a terminal would act on or not show.

    A key's name, a block's reason or a receiver's answer is text of others: shown, and never obeyed.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    short = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(char)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def complain(message: str) -> None:
    """Print one line on stderr, with `--json` too: an error, or what a person must know beside the result."""
    print(f"nigredo: {visible(' '.join(message.split()))}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Context:
    """The options that every command takes."""

    home: Path
    as_json: bool
    named: bool = False
    """Whether `--home` was given."""

    @cached_property
    def target(self) -> Target:
        """What the command speaks to; said on stderr when something else could have been meant.

        Raises ConfigurationError when it is not clear which.
        """
        target = find_target(self.home, os.environ, named=self.named)
        if target.chosen_from is not None:
            complain(f"speaking to {target}, not to {target.chosen_from}")
        return target

    @property
    def actor(self) -> str:
        """The person who types the command, for the audit."""
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            return f"uid {os.getuid()}"  # A container's user need not have a name.

    def stack(self, port_base: int | None = None) -> Home:
        """Return the stack the command is about."""
        if str(self.home) == NO_STACK:
            raise ConfigurationError("this command is about a stack: --home names its folder")
        return Home.open(self.home, port_base)

    def settings(self, part: str, *, role: str) -> Settings:
        """Return the settings of a process where the command speaks to."""
        return Settings.from_environment(self.environment(part, role=role))

    def environment(self, part: str, *, role: str) -> Mapping[str, str]:
        """Return the environment of a process where the command speaks to, as the running stack was given it."""
        return self.target.part_environment(part, role=role)

    def tell_whose_settings(self) -> None:
        """Say on stderr when the settings that a result rests on are the command's own: processes may have others."""
        if (why := self.target.why_own) is not None:
            complain(f"settings are those of this command's environment, processes may have others: {why}")

    def result(self, document: Any, lines: str | Iterable[str], *, changed: bool = False) -> None:
        """Print a command's result once, as a document or as lines.

        lines: one line, or several; line breaks inside of one are shown as `\\n`. changed: whether the command changed
        something; its document then says where, if another stack or cluster could have been meant.
        """
        if self.as_json:
            if changed and self.target.chosen_from is not None and isinstance(document, dict):
                document = document | {"speaks_to": self.target.describe()}
            print(json.dumps(document))
            return
        for line in [lines] if isinstance(lines, str) else lines:
            print(visible(line))

    def script(self, document: Any, text: str) -> None:
        """Print what a shell evaluates, as it is, or its document."""
        print(json.dumps(document) if self.as_json else text)

    def confirm(self, question: str, *, yes: bool) -> None:
        """Return when the person agrees, or did so with the command; aborts otherwise.

        Raises ConfigurationError without a terminal: nobody is there to agree.
        """
        if yes:
            return
        if not sys.stdin.isatty():
            raise ConfigurationError(f"{question} Nobody is there to ask: --yes agrees beforehand")
        click.confirm(visible(question), abort=True, err=True)

    def tell(self, *lines: str) -> None:
        """Print steps of something long; on stderr when stdout is for a document."""
        stream = sys.stderr if self.as_json else sys.stdout
        try:
            for line in lines:
                print(visible(line), file=stream, flush=True)
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
        home, named = (own_home, True) if own_home is not None else (shared.home, shared.named)
        return command(replace(shared, home=home, named=named, as_json=own_json or shared.as_json), **options)

    return wrapped


@contextmanager
def download_progress(tell: Callable[[str], None]) -> Iterator[Callable[[int, int], None]]:
    """Show a download: a bar on a terminal, a line a tenth otherwise; nothing when nothing is downloaded."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

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
