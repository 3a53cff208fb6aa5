"""Webhook receiver fast enough not to limit a measurement: plain ASGI, an optional delay, first arrivals by lead.

`POST` anything: 200 after the milliseconds in the path, as in `/20`. `GET` anything: {"count", "arrivals"}, the times
in seconds of the wall clock by `webhook-id`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Event = Mapping[str, Any]
Send = Callable[[Event], Awaitable[None]]


def create() -> Callable[[Event, Callable[[], Awaitable[Event]], Send], Awaitable[None]]:
    """Return the application."""
    arrivals: dict[str, float] = {}
    count = 0

    async def receiver(scope: Event, receive: Callable[[], Awaitable[Event]], send: Send) -> None:
        nonlocal count
        if scope["type"] != "http":
            return
        if scope["method"] != "POST":
            await _answer(send, json.dumps({"count": count, "arrivals": arrivals}).encode())
            return
        now = time.time()
        while (await receive()).get("more_body"):
            pass
        count += 1
        for name, value in scope["headers"]:
            if name == b"webhook-id":
                arrivals.setdefault(value.decode(), now)
                break
        delay = scope["path"].rpartition("/")[2]
        if delay.isdigit() and int(delay):
            await asyncio.sleep(int(delay) / 1000)
        await _answer(send, b"")

    return receiver


async def _answer(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
