"""The status line of an answer, read from the bytes as they come: a status is known before the rest is parsed. Pure.

A receiver that says 2xx has taken the lead, whatever the client library makes of its headers and of its body.
"""

from __future__ import annotations

import re

INTERIM_MAX = 100
"""Interim answers (1xx) before the final one. Real receivers send a few; a flood of them would hold the event loop."""
UNREAD_MAX_BYTES = 64 * 1024
"""Of one status line or interim answer that does not end."""

_LINE = re.compile(rb"HTTP/\d{1,2}(?:\.\d{1,2})?[ \t]+(\d{3})(?!\d)[^\n]*\n", re.IGNORECASE)
_END_OF_HEAD = re.compile(rb"\n\r?\n")
SWITCHING_PROTOCOLS = 101


class FloodOfInterimAnswers(Exception):
    """The receiver sends interim answers without an end."""


def is_interim(status: int) -> bool:
    """Say whether another answer follows one with this status."""
    return 100 <= status < 200 and status != SWITCHING_PROTOCOLS


class StatusLine:
    """Reads one answer until its final status is known."""

    def __init__(self) -> None:
        self.status: int | None = None
        """The final status, once its whole line has come."""
        self.begun = False
        """Whether any byte of an answer has come."""
        self._unread = b""
        self._interim = 0
        self._is_http = True

    def feed(self, data: bytes) -> None:
        """Read on. Raises FloodOfInterimAnswers."""
        self.begun = self.begun or bool(data)
        if self.status is not None or not self._is_http:
            return
        # Some receivers send an empty line first.
        self._unread = (self._unread + data).lstrip(b"\r\n")
        while self._unread and (line := _LINE.match(self._unread)):
            status = int(line[1])
            if not is_interim(status):
                self.status, self._unread = status, b""
                return
            end = _END_OF_HEAD.search(self._unread)
            if end is None:
                break
            self._unread = self._unread[end.end() :].lstrip(b"\r\n")
            self._interim += 1
            if self._interim > INTERIM_MAX:
                self._unread = b""
                raise FloodOfInterimAnswers
        else:
            # A whole line that is no status line.
            self._is_http = b"\n" not in self._unread
        if len(self._unread) > UNREAD_MAX_BYTES:
            self._is_http, self._unread = False, b""
