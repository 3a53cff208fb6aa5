"""Stand-in receiver of the embedded stack: accepts webhooks, shows the received ones, and fails on request.

`POST /public/nigredo-event` receives a webhook; a probe (`X-Nigredo-Probe`) gets the same answer and is not stored.
`GET /received` lists the webhooks as JSON, oldest first; `DELETE /received` deletes them; `/` is a page for people.
`PUT /fault` injects faults: `{"status": 500}`, `{"delay_s": 10}`, `{"refuse": true}`, `{"fail_ids": ["…"]}`, several at
once, or `{}` for none. Received webhooks survive restarts on disk, and only the stack's own user may read them.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from nigredo.clock import utc_now
from nigredo.observability.host_guard import HEADERS, REFUSED, may_ask
from nigredo.process import run_process
from nigredo.settings import Settings
from nigredo.stack.socket_owner import owners

PATH = "/public/nigredo-event"
PROBE = "X-Nigredo-Probe"
STORED_MAX = 100_000
BODY_MAX_BYTES = 1024 * 1024
DELAY_MAX_S = 3600.0
SHOWN_MAX = 50


@dataclass(frozen=True, slots=True)
class Fault:
    """Injected fault: status of every answer, delay, cut connection, lead ids answered 500."""

    status: int | None = None
    delay_s: float = 0.0
    refuse: bool = False
    fail_ids: frozenset[str] = frozenset()

    @classmethod
    def from_json(cls, document: Any) -> Fault:
        """Return the fault of a `PUT /fault` body. Raises ValueError with the reason for an invalid one."""
        if not isinstance(document, dict) or set(document) - {"status", "delay_s", "refuse", "fail_ids"}:
            raise ValueError("must be an object with status, delay_s, refuse or fail_ids")
        status, delay_s = document.get("status"), document.get("delay_s", 0)
        refuse, fail_ids = document.get("refuse", False), document.get("fail_ids", [])
        if status is not None and (type(status) is not int or not 200 <= status <= 599):
            raise ValueError("status must be an HTTP status from 200 to 599")
        if type(delay_s) not in (int, float) or not 0 <= delay_s <= DELAY_MAX_S:
            raise ValueError(f"delay_s must be from 0 to {DELAY_MAX_S:g}")
        if type(refuse) is not bool or not isinstance(fail_ids, list) or not all(type(i) is str for i in fail_ids):
            raise ValueError("refuse must be true or false, fail_ids a list of lead ids")
        return cls(status, float(delay_s), refuse, frozenset(fail_ids))


class Receiver:
    """State and routes of the stand-in receiver.

    file: a JSON line for each received webhook; the newest `STORED_MAX` are loaded.
    """

    def __init__(self, file: Path) -> None:
        self._fault = Fault()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._received: deque[dict[str, Any]] = deque(maxlen=STORED_MAX)
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):  # The last line is incomplete after kill -9 during a write.
                    self._received.append(json.loads(line))
        self._path = file
        self._file = file.open("a", encoding="utf-8")

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the server."""
        return [
            web.post(PATH, self.receive),
            web.get("/received", self.show),
            web.delete("/received", self.clear),
            web.put("/fault", self.set_fault),
            web.get("/", self.page),
            web.get("/health", self.health),
            web.get("/health/ready", self.health),
        ]

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """Store a webhook and answer 200, or as the injected fault says; a cut connection stores nothing."""
        body = await request.text()
        fault = self._fault
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.refuse and request.transport is not None:
            request.transport.abort()
        status = fault.status or (500 if request.headers.get("webhook-id") in fault.fail_ids else 200)
        if not fault.refuse and PROBE not in request.headers:
            self._store(
                {
                    "received_at": utc_now().isoformat(),
                    "status": status,
                    "headers": {name.lower(): value for name, value in request.headers.items()},
                    "body": body,
                }
            )
        return web.json_response({"received": status < 300}, status=status)

    def _store(self, entry: dict[str, Any]) -> None:
        self._received.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    async def show(self, _: web.Request) -> web.Response:
        """List the received webhooks, oldest first."""
        return web.json_response(list(self._received))

    async def clear(self, _: web.Request) -> web.Response:
        """Delete the received webhooks, in memory and on disk."""
        self._received.clear()
        self._file.close()
        self._file = self._path.open("w", encoding="utf-8")
        return web.Response(status=204)

    async def set_fault(self, request: web.Request) -> web.Response:
        """Set or clear the injected fault; 400 for an invalid one."""
        try:
            self._fault = Fault.from_json(await request.json())
        except ValueError as error:
            return web.json_response({"status": 400, "title": "No such fault", "detail": str(error)}, status=400)
        return web.Response(status=204)

    async def health(self, _: web.Request) -> web.Response:
        """Answer 200."""
        return web.json_response({"status": "ok"})

    async def page(self, _: web.Request) -> web.Response:
        """Show the newest webhooks on an HTML page."""
        newest = list(self._received)[-SHOWN_MAX:][::-1]
        rows = "".join(
            f"<tr><td>{html.escape(entry['received_at'][:19].replace('T', ' '))}<td>{entry['status']}"
            f"<td><pre>{html.escape(_pretty(entry['body']))}</pre>"
            for entry in newest
        )
        return web.Response(
            content_type="text/html",
            text=(
                '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
                "<title>Fibonacci, a stand-in</title><style>body{font:1rem/1.5 system-ui;margin:2rem;max-width:60rem}"
                "td{vertical-align:top;padding:.3rem 1rem .3rem 0;border-top:1px solid #ccc}pre{margin:0}</style>"
                f"<h1>Webhooks received: {len(self._received)}</h1><p>The newest {SHOWN_MAX} at most; "
                '<a href="/received">all as JSON</a>.</p>'
                f"<table><tr><th>When (UTC)<th>Answered<th>Body{rows}</table></html>"
            ),
        )


@dataclass(frozen=True, slots=True)
class Guard:
    """Access control of the stand-in receiver.

    Received webhooks are personal data, so the routes that show, delete or fault them are for the stack's own user and
    root. Any local process may deliver or ask for the health.
    """

    allowed_hosts: frozenset[str]
    own_uid: int
    owners: Callable[[int], set[int]]
    """Returns the ids of the users whose sockets have a local port, as `socket_owner.owners` does."""

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a forbidden request: 421 for a foreign Host, 403 for another user; None when allowed."""
        if not may_ask(request.headers.get("Host"), self.allowed_hosts):
            return web.json_response({"status": 421, "title": REFUSED}, status=421)
        if request.path == PATH or request.path.startswith("/health"):
            return None
        peer = request.transport.get_extra_info("peername") if request.transport else None
        if peer is None or not ip_address(peer[0]).is_loopback:
            return None
        found = self.owners(peer[1])
        if not found or found - {self.own_uid, 0}:
            title = "what was received is shown to the user who runs the stack"
            return web.json_response({"status": 403, "title": title}, status=403)
        return None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a forbidden request, and pass every other on."""
        return self.refusal(request) or await handler(request)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:
        return body


def main() -> int:
    """Serve until a signal stops the process; return the exit code."""
    return run_process("fibonacci-stub", _serve)


def _serve(settings: Settings) -> None:
    address = urlsplit(settings.webhook_url)
    names = frozenset({*settings.health_allowed_hosts, (address.hostname or "").lower()})
    guard = Guard(names, os.geteuid(), partial(owners, listening=False))
    app = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[guard.middleware])
    app.on_response_prepare.append(_add_headers)
    app.add_routes(Receiver(settings.state_dir / "fibonacci" / "received.jsonl").routes())
    web.run_app(app, host=address.hostname, port=address.port, access_log=None, print=None, shutdown_timeout=2.0)
