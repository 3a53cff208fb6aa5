"""Liveness and readiness of a process, and the small listener that tells them to a supervisor or an orchestrator."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from nigredo.errors import ConfigurationError
from nigredo.observability import metrics
from nigredo.observability.host_guard import HEADERS, REFUSED, may_ask
from nigredo.observability.logs import OUTPUT, get_logger
from nigredo.settings import Settings

log = get_logger()


class Health:
    """Answers whether this process is ready for work. Starts unready: `waiting_for` names what is still missing."""

    def __init__(self, function: str) -> None:
        self.function = function
        self._lock = threading.Lock()
        self._waiting_for: str | None = "start"
        self._reasons_given = 0
        self._held: dict[str, str] = {}
        self._details: Callable[[], Mapping[str, Any]] = dict

    def add_details(self, details: Callable[[], Mapping[str, Any]]) -> None:
        """Let the health document say what this returns too; called from the listener's thread."""
        self._details = details

    @property
    def details(self) -> Mapping[str, Any]:
        """What the process says of itself beside whether it is ready."""
        return self._details()

    def waiting(self, reason: str) -> None:
        """Say that the process cannot work at present, and why."""
        with self._lock:
            self._waiting_for = reason
            self._reasons_given += 1

    def ready(self) -> None:
        """Say that the process does its work."""
        with self._lock:
            self._waiting_for = None

    def hold(self, what: str, reason: str) -> None:
        """Keep the process unready for a reason of its own, whatever the rest of its work does, until `release`.

        what: such as a partition that is stopped.
        """
        with self._lock:
            self._held[what] = reason

    def release(self, what: str) -> None:
        """Withdraw the reason of `hold`, if there is one."""
        with self._lock:
            self._held.pop(what, None)

    @property
    def held(self) -> Mapping[str, str]:
        """The reasons of `hold`, by what each is about."""
        with self._lock:
            return dict(self._held)

    @property
    def reasons_given(self) -> int:
        """How often the process said why it cannot work: one that says it again and again does not hang."""
        with self._lock:
            return self._reasons_given

    @property
    def waiting_for(self) -> str | None:
        """What the process waits for; None when it is ready."""
        with self._lock:
            held = list(self._held.values())
            if len(held) > 1:
                held[1:] = [f"and {len(held) - 1} more of `stopped` in its /health"]
            reasons = [*held, *([self._waiting_for] if self._waiting_for else [])]
            return "; ".join(dict.fromkeys(reasons)) or None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in a line what broke a request; nothing of a client that did not wait for its answer."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            log.error("a probe got no answer", error=type(error).__name__)


class HealthServer:
    """Serves `/health`, `/health/live`, `/health/ready` and `/metrics` from a thread, beside what the process does.

    A thread and not the event loop: a loop that hangs must not take the answer about it away.
    """

    def __init__(
        self,
        health: Health | None,
        host: str,
        port: int,
        exposition: Callable[[], bytes] = metrics.exposition,
        *,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        """health: None where another listener tells whether the process is ready.

        allowed_hosts: names that a request may call this listener by, as in `host_guard.may_ask`.
        exposition: returns what `/metrics` tells; this process's own numbers unless others are to be told.
        Raises ConfigurationError when nothing can listen there.
        """

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                names = self.headers.get_all("Host") or [""]
                if len(names) != 1 or not may_ask(names[0], allowed_hosts):
                    self._answer(421, {"status": REFUSED})
                elif self.path == "/health/live":
                    self._answer(200, {"status": "ok"})
                elif self.path in ("/health", "/health/ready") and health is not None:
                    reason = health.waiting_for
                    status = "ok" if reason is None else "waiting"
                    body = {
                        "status": status,
                        "function": health.function,
                        "waiting_for": reason,
                        "stopped": health.held,
                        "log_lines_dropped": OUTPUT.dropped,
                        **health.details,
                    }
                    self._answer(200 if reason is None else 503, body)
                elif self.path == "/metrics":
                    try:
                        numbers = exposition()
                    except Exception as error:
                        # Else the scraper sees a broken connection, and nobody why.
                        log.error("the metrics cannot be told", error=type(error).__name__)
                        self._answer(500, {"status": "the metrics cannot be told"})
                    else:
                        self._send(200, CONTENT_TYPE_PLAIN_0_0_4, numbers)
                else:
                    self._answer(404, {"status": "unknown path"})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                self._send(status, "application/json", json.dumps(body).encode())

            def _send(self, status: int, content_type: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(content)))
                for name, value in HEADERS.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent: a probe every second is not news."""

        try:
            self._server = _Listener((host, port), Handler)
        except OSError as error:
            raise ConfigurationError(f"HEALTH_PORT: {port} cannot be listened on ({error.strerror})") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close the port."""
        self._server.shutdown()
        self._server.server_close()


def health_server(
    health: Health | None, settings: Settings, exposition: Callable[[], bytes] = metrics.exposition
) -> HealthServer | None:
    """Return the listener that the settings ask for, not started yet; None for none. Raises ConfigurationError."""
    if not settings.health_port:
        return None
    host, port, names = settings.health_host, settings.health_port, settings.health_allowed_hosts
    return HealthServer(health, host, port, exposition, allowed_hosts=names)
