"""Status line of a response, read from the bytes as they arrive, so that the status is known before the rest. Pure.

A receiver that answers 2xx has accepted the lead, whatever the client library makes of the headers and the body.
"""

from __future__ import annotations

import re

INTERIM_MAX = 100
"""Most interim responses (1xx) before the final one. Receivers send a few; a flood would block the event loop."""
UNREAD_MAX_BYTES = 64 * 1024
"""Most buffered bytes of an unfinished status line or interim response."""

_LINE = re.compile(rb"HTTP/\d{1,2}(?:\.\d{1,2})?[ \t]+(\d{3})(?!\d)[^\n]*\n", re.IGNORECASE)
_END_OF_HEAD = re.compile(rb"\n\r?\n")
SWITCHING_PROTOCOLS = 101


class FloodOfInterimAnswers(Exception):
    """The receiver sends more than INTERIM_MAX interim responses."""


def is_interim(status: int) -> bool:
    """Return whether another response follows one with this status: 1xx except 101."""
    return 100 <= status < 200 and status != SWITCHING_PROTOCOLS


class StatusLine:
    """Parser of one response, until its final status is known."""

    def __init__(self) -> None:
        self.status: int | None = None
        """Final status, once its whole line has arrived."""
        self.begun = False
        """Whether any byte of a response has arrived."""
        self._unread = b""
        self._interim = 0
        self._is_http = True

    def feed(self, data: bytes) -> None:
        """Parse the next bytes. Raises FloodOfInterimAnswers."""
        self.begun = self.begun or bool(data)
        if self.status is not None or not self._is_http:
            return
        # Some receivers send empty lines first.
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
            # A complete line that is not a status line.
            self._is_http = b"\n" not in self._unread
        if len(self._unread) > UNREAD_MAX_BYTES:
            self._is_http, self._unread = False, b""
