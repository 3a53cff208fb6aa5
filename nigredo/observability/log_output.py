"""Log output to stderr: a line that cannot be written is dropped and counted, and never raises.

No guarantee of the product may depend on the log's reader: the pipe may be broken, the reader stopped, the disk full.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable

PATIENCE_S = 1.0
"""Longest wait for a stalled reader; further lines are dropped without a wait until the reader continues."""
STDERR = 2


class LogOutput:
    """Writer of whole lines to a file descriptor. Thread-safe, also in a signal handler."""

    def __init__(
        self, descriptor: int | None, *, dropped: Callable[[int], None], patience_s: float = PATIENCE_S
    ) -> None:
        """descriptor: None drops all lines. dropped: called with the number of lines after each drop."""
        self.dropped = 0
        """Lines dropped since the start."""
        self._descriptor = descriptor
        self._on_dropped = dropped
        self._patience_s = self._patience_left_s = patience_s
        # Re-entrant because a signal handler may log in the middle of a line.
        self._lock = threading.RLock()
        self._torn = False

    def write(self, lines: str) -> None:
        """Write lines, each ending in a line feed; never raises."""
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
                self._on_dropped(number)

    def flush(self) -> None:
        """Do nothing, because every write goes to the descriptor unbuffered."""

    def _write(self, descriptor: int, data: bytes) -> bool:
        # After a truncated line, the next one starts on a new line.
        rest = memoryview(b"\n" + data if self._torn else data)
        while rest:
            if not self._is_writable(descriptor):
                return False
            # A writable pipe accepts this many bytes without blocking.
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
    """Return the descriptor of stderr, or None when the process was started with stderr closed.

    A closed stderr is never written to, because another file may have received its number; if none has, the number is
    given to the null device.
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
