"""Liveness and readiness of a process, and the HTTP listener that reports both to a supervisor or orchestrator."""

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
    """Readiness of this process. Starts unready; `waiting_for` gives the reason while the process is not ready."""

    def __init__(self, function: str) -> None:
        self.function = function
        self._lock = threading.Lock()
        self._waiting_for: str | None = "start"
        self._reasons_given = 0
        self._held: dict[str, str] = {}
        self._details: Callable[[], Mapping[str, Any]] = dict

    def add_details(self, details: Callable[[], Mapping[str, Any]]) -> None:
        """Add the items that `details` returns to the health document; called in the listener's thread."""
        self._details = details

    @property
    def details(self) -> Mapping[str, Any]:
        """Items that the process adds to its health document, by name."""
        return self._details()

    def waiting(self, reason: str) -> None:
        """Report that the process cannot work at present, with the reason."""
        with self._lock:
            self._waiting_for = reason
            self._reasons_given += 1

    def ready(self) -> None:
        """Report that the process is working. Reasons of `hold` still count."""
        with self._lock:
            self._waiting_for = None

    def hold(self, subject: str, reason: str) -> None:
        """Keep the process unready until `release` of the same subject, regardless of `ready`.

        subject: the stopped part of the work, such as a partition.
        """
        with self._lock:
            self._held[subject] = reason

    def release(self, subject: str) -> None:
        """Remove the reason that `hold` gave for this subject, if any."""
        with self._lock:
            self._held.pop(subject, None)

    @property
    def held(self) -> Mapping[str, str]:
        """Reasons given by `hold`, by subject."""
        with self._lock:
            return dict(self._held)

    @property
    def reasons_given(self) -> int:
        """Number of `waiting` calls. An increase is a sign of life: a process that reports reasons does not hang."""
        with self._lock:
            return self._reasons_given

    @property
    def waiting_for(self) -> str | None:
        """Reason why the process is not ready, several joined by semicolons; None when it is ready."""
        with self._lock:
            held = list(self._held.values())
            if len(held) > 1:
                held[1:] = [f"and {len(held) - 1} more under `stopped` in /health"]
            reasons = [*held, *([self._waiting_for] if self._waiting_for else [])]
            return "; ".join(dict.fromkeys(reasons)) or None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a failed request in one line; a client that closed the connection early is not logged."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            log.error("probe not answered", error=type(error).__name__)


class HealthServer:
    """HTTP listener for `/health`, `/health/live`, `/health/ready` and `/metrics`, in a thread of its own.

    A thread instead of the event loop, so that health is still answered while the loop hangs.
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
        """health: None when another listener of the process reports readiness; then `/health` answers 404.

        allowed_hosts: further host names that requests may use, as in `host_guard.may_ask`.
        exposition: returns the body of `/metrics`; by default the metrics of this process alone.
        Raises ConfigurationError when the listener cannot bind to host and port.
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
                        samples = exposition()
                    except Exception as error:
                        # A 500 instead of a broken connection, so that scraper and log both show the fault.
                        log.error("metrics not exposed", error=type(error).__name__)
                        self._answer(500, {"status": "the metrics cannot be exposed"})
                    else:
                        self._send(200, CONTENT_TYPE_PLAIN_0_0_4, samples)
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
                """Log no access lines, because probes come every second."""

        try:
            self._server = _Listener((host, port), Handler)
        except OSError as error:
            raise ConfigurationError(f"HEALTH_PORT: {port} cannot be listened on ({error.strerror})") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Start answering requests."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering requests and close the port."""
        self._server.shutdown()
        self._server.server_close()


def health_server(
    health: Health | None, settings: Settings, exposition: Callable[[], bytes] = metrics.exposition
) -> HealthServer | None:
    """Return the configured listener, not started yet; None when HEALTH_PORT is 0. Raises ConfigurationError."""
    if not settings.health_port:
        return None
    host, port, names = settings.health_host, settings.health_port, settings.health_allowed_hosts
    return HealthServer(health, host, port, exposition, allowed_hosts=names)
