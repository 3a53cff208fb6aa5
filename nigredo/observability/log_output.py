"""Output of log lines to stderr. A line that cannot be written is dropped and counted, never an exception.

Nothing that the product promises may depend on the reader of its log: the pipe may be gone, its reader may be stopped,
the disk may be full.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable

PATIENCE_S = 1.0
"""Longest wait for a reader that does not read. Until it reads again, the lines after it are dropped without a wait."""
STDERR = 2


class LogOutput:
    """Writes whole lines to a descriptor. Safe in every thread."""

    def __init__(
        self, descriptor: int | None, *, dropped: Callable[[int], None], patience_s: float = PATIENCE_S
    ) -> None:
        """descriptor: None drops all lines. dropped: called with the number of lines that were just dropped."""
        self.dropped = 0
        """Lines that were not written, since the start."""
        self._descriptor = descriptor
        self._tell = dropped
        self._patience_s = self._patience_left_s = patience_s
        # A signal's handler may log in the middle of a line.
        self._lock = threading.RLock()
        self._torn = False

    def write(self, lines: str) -> None:
        """Write lines, each with its line feed; never raises."""
        with self._lock:
            try:
                written = self._descriptor is not None and self._write(
                    self._descriptor, lines.encode("utf-8", "backslashreplace")
                )
            except OSError:
                written = False
            if not written:
                number = lines.count("\n")
                self.dropped += number
                self._tell(number)

    def flush(self) -> None:
        """Do nothing: every write goes to the descriptor at once."""

    def _write(self, descriptor: int, data: bytes) -> bool:
        # After a line that was cut off, the next one begins on a line of its own.
        rest = memoryview(b"\n" + data if self._torn else data)
        while rest:
            if not self._is_writable(descriptor):
                return False
            # A writable pipe takes this much without a wait.
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]
            self._torn = bool(rest)
        return True

    def _is_writable(self, descriptor: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        found = bool(poll.poll(self._patience_left_s * 1000))
        self._patience_left_s = self._patience_s if found else 0.0
        return found


def stderr_descriptor() -> int | None:
    """Return the descriptor of stderr, or None when the process was started with it closed.

    Then another file may have got its number, and must not be written to; if none has, the null device gets it.
    """
    if sys.__stderr__ is not None:
        return STDERR
    try:
        os.fstat(STDERR)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != STDERR:
            os.dup2(null, STDERR)
            os.close(null)
    return None
