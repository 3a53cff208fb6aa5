"""Requests to a running supervisor over a Unix socket in its home, one JSON line each way; ownership of the home."""

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
"""Environment variable with the descriptor of the locked owner file, which passes ownership to a started process."""
OWNING_S = 0.5
"""Seconds to retry the lock, because `owner_of` holds it for a moment to check the owner."""


class NotRunning(NigredoError):
    """No supervisor answers in this home."""


class AlreadyRunning(NigredoError):
    """Another supervisor owns this home."""


@contextmanager
def owned(home: Home) -> Iterator[IO[str]]:
    """Own the home as its only supervisor; the kernel releases the lock when the owner dies. Raises AlreadyRunning."""
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
    """Return the id of the process that owns the home; None when no process does."""
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
    """Answer requests until the returned server is closed. A NigredoError is sent to the client as its text."""

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await asyncio.wait_for(reader.readline(), 5.0))
            if not isinstance(request, dict):
                raise ValueError("no request")
            try:
                # A copied home may hold a hard link to this socket.
                if request.pop("folder", own_folder) != own_folder:
                    raise NigredoError(f"the stack that answers runs in {home.dir}, of which this folder is a copy")
                reply = await answer(request)
            except NigredoError as error:
                reply = {"error": str(error)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), 5.0)
        except (TimeoutError, ValueError, ConnectionError):
            pass  # The client left or sent no valid request: no answer is due.
        finally:
            writer.close()

    own_folder = _folder_id(home)
    path = home.dir / "run" / "control"
    path.unlink(missing_ok=True)
    with _short_path(path) as reachable:
        if sys.version_info >= (3, 13):
            # At its end the server would delete the socket by this path, which is invalid by then.
            return await asyncio.start_unix_server(serve_connection, reachable, cleanup_socket=False)
        return await asyncio.start_unix_server(serve_connection, reachable)


def ask(home: Home, request: Answer, *, deadline_s: float) -> Answer:
    """Send a request to the supervisor and return its answer.

    Raises NotRunning when no supervisor listens, NigredoError with its text when it refuses or is late.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(deadline_s)
        try:
            with _short_path(home.dir / "run" / "control") as reachable:
                connection.connect(reachable)
            connection.sendall(json.dumps(request | {"folder": _folder_id(home)}).encode() + b"\n")
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


def _folder_id(home: Home) -> list[int]:
    """Return device and inode of a home, which differ from those of its copies and are equal through every link."""
    found = home.dir.stat()
    return [found.st_dev, found.st_ino]


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Yield a path to a socket that fits the kernel's limit of 107 bytes, however long the home's path is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY) if path.parent.is_dir() else None
    if folder is None:
        raise FileNotFoundError(path)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
