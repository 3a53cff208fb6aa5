"""Lazy body: ASGI middleware that lets a request reach its route before the body, which the route reads in chunks."""

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
    """The body is longer than allowed; answer 413."""


class BodyCutOff(Exception):
    """The client disconnected before the body was complete."""


class LazyBodyMiddleware:
    """An ASGI application that passes requests on as soon as their head is there.

    Falcon waits for the first chunk of a body before it routes a request: for ever when none comes, and before a
    refusal that needs no body. So Falcon gets one empty chunk at once, and a route that needs the body calls
    `read_body`. Falcon's own stream would treat a client that disconnects in the middle as one that has finished.
    """

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan events of the server."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        if scope["http_version"] == "1":
            # The server's name for 1.0, which nginx speaks to its upstreams by default.
            scope["http_version"] = "1.0"
        if scope["method"] == "WEBSOCKET":
            # Falcon uses this name internally, and would refuse the request before our middleware.
            scope["method"] = "OTHER"
        scope[_RECEIVE] = receive
        await self._application(scope, _body_later, send)


async def _body_later() -> Mapping[str, Any]:
    return _LATER


async def read_body(scope: Scope, max_bytes: int) -> bytes:
    """Return the whole body of a request that came through `LazyBodyMiddleware`.

    Raises BodyTooLong as soon as the body is longer than `max_bytes`, BodyCutOff when the client disconnects before its
    end. Waits as long as the client takes, so set a deadline.
    """
    receive: Receive = scope[_RECEIVE]
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise BodyCutOff
        body += event.get("body", b"")
        if len(body) > max_bytes:
            raise BodyTooLong
        if not event.get("more_body", False):
            return bytes(body)
