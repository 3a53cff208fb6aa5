"""Between the server and Falcon: a body that is slow to begin, or ends too early, is seen for what it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

CUT_OFF = "nigredo.cut_off"


class Arriving:
    """An ASGI application that hands requests on as soon as their head is there.

    Falcon waits for the first piece of a body before it looks at a request: for ever when none comes, and before a
    refusal that needs no body. So it gets an empty piece at once. A client that goes away in the middle of its body
    looks to it like one that is done: that is noted in the scope.
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
        begun = False

        async def arriving() -> Mapping[str, Any]:
            nonlocal begun
            if not begun:
                begun = True
                return {"type": "http.request", "body": b"", "more_body": True}
            event = await receive()
            if event["type"] == "http.disconnect":
                scope[CUT_OFF] = True
            return event

        await self._application(scope, arriving, send)
