"""Connections to a receiver: aiohttp's, extended to record the status line of the response that they are reading.

aiohttp drops a whole packet that contains anything it cannot parse, including the status line (aiohttp#2304). The state
of an attempt's exchange is therefore recorded separately, in `Exchange`, as the bytes arrive.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from nigredo.networks import Network
from sinks.webhook.transport.failure import AddressRefused
from sinks.webhook.transport.ssrf_guard import is_refused
from sinks.webhook.transport.status_line import FloodOfInterimAnswers, StatusLine, is_interim

HEAD_LINE_MAX_BYTES = 64 * 1024
HEADERS_MAX = 1000
HEAD_MAX_BYTES = 1024 * 1024
"""Bound for all interim responses and the head of the final one together; beyond it the connection is aborted."""
KEEP_ALIVE_S = 30.0

RESOLVING, CONNECTING, ANSWERING = "resolving", "connecting", "answering"


class Exchange:
    """State of one attempt's exchange with the receiver: its stage and its response so far."""

    def __init__(self) -> None:
        self.stage = RESOLVING
        self._answer: StatusLine | None = None
        self._on_reused_connection = False

    def sent(self, answer: StatusLine, *, on_reused_connection: bool) -> None:
        """Record that the connection is established. answer: reads the status line on the connection."""
        self.stage, self._answer, self._on_reused_connection = ANSWERING, answer, on_reused_connection

    @property
    def status(self) -> int | None:
        """Final status of the response; None before its status line has arrived."""
        return self._answer.status if self._answer is not None else None

    @property
    def was_stale(self) -> bool:
        """Whether no byte of a response arrived on a reused connection.

        Receivers close idle connections, possibly just when the next request is sent.
        """
        return self._on_reused_connection and self._answer is not None and not self._answer.begun


CURRENT: ContextVar[Exchange] = ContextVar("exchange")
"""Exchange of the attempt that the current task makes."""


class Connection(ResponseHandler):
    """One connection. Aborted by bytes that belong to no request, because they would pass for the next response."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._requests = 0
        self._answer = StatusLine()
        self._head_bytes = 0
        self._body: StreamReader | None = None

    def set_response_params(self, **options: Any) -> None:
        """Start the next exchange. aiohttp calls this in the attempt's own task."""
        self._requests += 1
        self._answer, self._head_bytes, self._body = StatusLine(), 0, None
        CURRENT.get().sent(self._answer, on_reused_connection=self._requests > 1)
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Read the status line, then pass the bytes to aiohttp's parser."""
        if self._body is not None and self._body.is_eof() and data:
            self._end("bytes after the end of the answer")
            return
        if self._requests:
            try:
                self._answer.feed(data)
            except FloodOfInterimAnswers:
                self._end("too many interim answers (1xx)")
                return
            if self._body is None:
                self._head_bytes += len(data)
                if self._head_bytes > HEAD_MAX_BYTES:
                    self._end("headers without an end")
                    return
        super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Keep the body of the final response; interim responses have none."""
        message, body = data
        if not is_interim(message.code):
            self._body = body
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Fail the body too, because aiohttp leaves its reader waiting when a later packet cannot be parsed."""
        super().set_exception(exc, *cause)
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(exc, *cause)

    def _end(self, reason: str) -> None:
        self.set_exception(HttpProcessingError(message=reason))
        if self.transport is not None:
            self.transport.abort()


class Connector(aiohttp.TCPConnector):
    """Opens connections of type `Connection`, and only to addresses that the SSRF guard accepts."""

    def __init__(self, ssl_context: ssl.SSLContext, allowed: Sequence[Network], connections_max: int) -> None:
        """allowed: networks that the receiver may be in although they are not public."""

        def guarded(info: tuple[Any, ...]) -> socket.socket:
            # After name resolution, because a literal in the URL passes no resolver and a name may resolve differently.
            family, kind, protocol, _, address = info
            if is_refused(address[0], allowed):
                raise AddressRefused
            CURRENT.get().stage = CONNECTING
            return socket.socket(family, kind, protocol)

        super().__init__(limit=connections_max, keepalive_timeout=KEEP_ALIVE_S, ssl=ssl_context, socket_factory=guarded)
        # A private attribute of aiohttp; a test checks that it still works.
        self._factory = partial(Connection, loop=self._loop)  # type: ignore[assignment] # one of its kind


def make_session(
    ssl_context: ssl.SSLContext, allowed: Sequence[Network], connections_max: int
) -> aiohttp.ClientSession:
    """Return a session for one receiver, without proxy, netrc and cookies."""
    return aiohttp.ClientSession(
        connector=Connector(ssl_context, allowed, connections_max),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=HEAD_LINE_MAX_BYTES,
        max_field_size=HEAD_LINE_MAX_BYTES,
        max_headers=HEADERS_MAX,
    )
