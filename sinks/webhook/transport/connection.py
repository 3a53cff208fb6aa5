"""Connections to a receiver: aiohttp's, which also remember the status line of the answer they are reading.

aiohttp drops the whole packet in which it meets something it cannot parse, the status line with it (aiohttp#2304). What
an attempt saw of its exchange is therefore noted beside it, in `Exchange`, as the bytes pass by.
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
"""Of all interim answers and the head of the final one. The rest of a longer one is not waited for."""
KEEP_ALIVE_S = 30.0

RESOLVING, CONNECTING, ANSWERING = "resolving", "connecting", "answering"


class Exchange:
    """What one attempt has seen of its exchange with the receiver so far."""

    def __init__(self) -> None:
        self.stage = RESOLVING
        self._answer: StatusLine | None = None
        self._on_a_used_connection = False

    def sent(self, answer: StatusLine, *, on_a_used_connection: bool) -> None:
        """Note that a connection is there; answer: what reads the status line on it."""
        self.stage, self._answer, self._on_a_used_connection = ANSWERING, answer, on_a_used_connection

    @property
    def status(self) -> int | None:
        """The final status that the receiver answered; None before its line has come."""
        return self._answer.status if self._answer is not None else None

    @property
    def was_stale(self) -> bool:
        """Whether nothing was answered on a connection that had served before.

        Receivers close connections that are idle, perhaps just when the next request is sent.
        """
        return self._on_a_used_connection and self._answer is not None and not self._answer.begun


CURRENT: ContextVar[Exchange] = ContextVar("exchange")
"""Of the attempt whose task asks."""


class Connection(ResponseHandler):
    """One connection. Bytes that belong to no request end it: they would pass for the answer to the next one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._requests = 0
        self._answer = StatusLine()
        self._head_bytes = 0
        self._body: StreamReader | None = None

    def set_response_params(self, **options: Any) -> None:
        """Begin the next exchange; aiohttp calls this in the attempt's own task."""
        self._requests += 1
        self._answer, self._head_bytes, self._body = StatusLine(), 0, None
        CURRENT.get().sent(self._answer, on_a_used_connection=self._requests > 1)
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Read the status line, then let aiohttp parse."""
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
        """Note whose body follows: interim answers have none."""
        message, body = data
        if not is_interim(message.code):
            self._body = body
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Let the body fail too: aiohttp leaves its reader waiting when a later packet cannot be parsed."""
        super().set_exception(exc, *cause)
        if self._body is not None and not self._body.is_eof():
            self._body.set_exception(exc, *cause)

    def _end(self, why: str) -> None:
        self.set_exception(HttpProcessingError(message=why))
        if self.transport is not None:
            self.transport.abort()


class Connector(aiohttp.TCPConnector):
    """Makes such connections, to addresses that something may be sent to."""

    def __init__(self, ssl_context: ssl.SSLContext, allowed: Sequence[Network], connections_max: int) -> None:
        """allowed: networks that the receiver may be in although they are not public."""

        def guarded(info: tuple[Any, ...]) -> socket.socket:
            # Here, after the name was resolved: a literal in the URL passes no resolver, and a name may change.
            family, kind, protocol, _, address = info
            if is_refused(address[0], allowed):
                raise AddressRefused
            CURRENT.get().stage = CONNECTING
            return socket.socket(family, kind, protocol)

        super().__init__(limit=connections_max, keepalive_timeout=KEEP_ALIVE_S, ssl=ssl_context, socket_factory=guarded)
        # No parameter of aiohttp's; a test sees that it still means this.
        self._factory = partial(Connection, loop=self._loop)  # type: ignore[assignment] # one of its kind


def make_session(
    ssl_context: ssl.SSLContext, allowed: Sequence[Network], connections_max: int
) -> aiohttp.ClientSession:
    """Return a session for one receiver; it asks neither a proxy nor a netrc nor a cookie jar."""
    return aiohttp.ClientSession(
        connector=Connector(ssl_context, allowed, connections_max),
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=HEAD_LINE_MAX_BYTES,
        max_field_size=HEAD_LINE_MAX_BYTES,
        max_headers=HEADERS_MAX,
    )
