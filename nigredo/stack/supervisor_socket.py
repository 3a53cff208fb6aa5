"""The supervisor's ear: one JSON line in, one JSON line out, over a Unix socket in the home."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nigredo.errors import NigredoError
from nigredo.stack.home import Home

Answer = dict[str, Any]
OWNER = "NIGREDO_OWNER_FD"
"""Names the open file by which a process that starts the supervisor hands the home over to it."""
OWNING_S = 0.5
"""Longer than a command takes to see whether a home is owned: it holds the lock for a moment."""


class NotRunning(NigredoError):
    """No supervisor answers in this home."""


class AlreadyRunning(NigredoError):
    """Another supervisor owns this home."""


@contextmanager
def owned(home: Home) -> Iterator[IO[str]]:
    """Own the home as its one supervisor; the owner's death frees it. Raises AlreadyRunning."""
    given = os.environ.pop(OWNER, None)
    path = home.dir / "run" / "owner"
    with path.open("a+", encoding="utf-8") if given is None else os.fdopen(int(given), "a+", encoding="utf-8") as file:
        if given is None:
            _lock(home, file)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def _lock(home: Home, file: IO[str]) -> None:
    deadline = time.monotonic() + OWNING_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                raise AlreadyRunning(
                    f"a stack already runs in {home.dir} (process {file.read().strip()}); `nigredo down` ends it"
                ) from None
        time.sleep(0.02)


def owner_of(home: Home) -> int | None:
    """Return the process that owns the home; None when it belongs to no process."""
    try:
        with (home.dir / "run" / "owner").open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except (FileNotFoundError, ValueError):
        pass
    return None


async def serve(home: Home, answer: Callable[[Answer], Awaitable[Answer]]) -> asyncio.AbstractServer:
    """Answer requests until the returned server is closed. A NigredoError goes to the asker as its text."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await asyncio.wait_for(reader.readline(), 5.0))
            if not isinstance(request, dict):
                raise ValueError("no request")
            try:
                # A copy of a home may hold a link to this very socket.
                if request.pop("folder", ours) != ours:
                    raise NigredoError(f"the stack that answers runs in {home.dir}, of which this folder is a copy")
                reply = await answer(request)
            except NigredoError as error:
                reply = {"error": str(error)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), 5.0)
        except (TimeoutError, ValueError, ConnectionError):
            pass  # The asker left or does not speak our language; it learns nothing and nothing is harmed.
        finally:
            writer.close()

    ours = _folder(home)
    path = home.dir / "run" / "control"
    path.unlink(missing_ok=True)
    with _short(path) as reachable:
        if sys.version_info >= (3, 13):
            # At its end the server would look for the socket under this name, which is gone by then.
            return await asyncio.start_unix_server(one, reachable, cleanup_socket=False)
        return await asyncio.start_unix_server(one, reachable)


def ask(home: Home, request: Answer, *, deadline_s: float) -> Answer:
    """Send a request to the supervisor and return its answer.

    Raises NotRunning when nobody listens, NigredoError with the supervisor's own words when it refuses.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(deadline_s)
        try:
            with _short(home.dir / "run" / "control") as reachable:
                connection.connect(reachable)
            connection.sendall(json.dumps(request | {"folder": _folder(home)}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            if (owner := owner_of(home)) is not None:
                raise NotRunning(f"the stack in {home.dir} is about to start (process {owner}); ask again") from None
            raise NotRunning(f"no stack runs in {home.dir}; `nigredo up` starts one") from None
        except TimeoutError:
            raise NigredoError(f"the supervisor in {home.dir} did not answer within {deadline_s:g} s") from None
    if not line:
        raise NotRunning(f"the stack in {home.dir} ended before it answered")
    answer: Answer = json.loads(line)
    if "error" in answer:
        raise NigredoError(answer["error"])
    return answer


def _folder(home: Home) -> list[int]:
    """Return what tells a home from its copies, by whatever path it is reached."""
    found = home.dir.stat()
    return [found.st_dev, found.st_ino]


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for a socket that fits into the 107 bytes the kernel allows, however deep the home lies."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY) if path.parent.is_dir() else None
    if folder is None:
        raise FileNotFoundError(path)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
