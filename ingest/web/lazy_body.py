"""Between the server and Falcon: a body is read by us, piece by piece, and not before somebody wants it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_RECEIVE = "nigredo.receive"
_LATER: Mapping[str, Any] = {"type": "http.request", "body": b"", "more_body": True}


class BodyTooLong(Exception):
    """The body has more bytes than it may."""


class BodyCutOff(Exception):
    """The client went away before its body was whole."""


class LazyBodyMiddleware:
    """An ASGI application that hands requests on as soon as their head is there.

    Falcon waits for the first piece of a body before it looks at a request: for ever when none comes, and before a
    refusal that needs no body. So it gets an empty piece at once, and nothing else: whoever wants the body calls
    `read_body`. Falcon's own stream would take a client that goes away in the middle for one that is done.
    """

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's start and end."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        if scope["http_version"] == "1":
            # The server's name for 1.0, which nginx speaks to what is behind it unless told otherwise.
            scope["http_version"] = "1.0"
        if scope["method"] == "WEBSOCKET":
            # Falcon's own word for something else: it would refuse it before any of ours saw it.
            scope["method"] = "OTHER"
        scope[_RECEIVE] = receive
        await self._application(scope, _body_later, send)


async def _body_later() -> Mapping[str, Any]:
    return _LATER


async def read_body(scope: Scope, most: int) -> bytes:
    """Return the whole body of a request that came through `Arriving`.

    Raises BodyTooLong as soon as it has more than `most` bytes, BodyCutOff when it ends before it is whole. Waits as
    long as the client takes: set a deadline.
    """
    receive: Receive = scope[_RECEIVE]
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise BodyCutOff
        body += event.get("body", b"")
        if len(body) > most:
            raise BodyTooLong
        if not event.get("more_body", False):
            return bytes(body)
