"""Liveness and readiness of a process, and the small listener that tells them to a supervisor or an orchestrator."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Health:
    """Answers whether this process is ready for work. Starts unready: `waiting_for` names what is still missing."""

    def __init__(self, function: str) -> None:
        self.function = function
        self._lock = threading.Lock()
        self._waiting_for: str | None = "start"

    def waiting(self, reason: str) -> None:
        """Say that the process cannot work at present, and why."""
        with self._lock:
            self._waiting_for = reason

    def ready(self) -> None:
        """Say that the process does its work."""
        with self._lock:
            self._waiting_for = None

    @property
    def waiting_for(self) -> str | None:
        """What the process waits for; None when it is ready."""
        with self._lock:
            return self._waiting_for


class HealthServer:
    """Serves `/health`, `/health/live` and `/health/ready` from a thread, beside whatever the process does.

    A thread and not the event loop: a loop that hangs must not take the answer about it away.
    """

    def __init__(self, health: Health, host: str, port: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                reason = health.waiting_for
                if self.path == "/health/live":
                    self._answer(200, {"status": "ok"})
                elif self.path in ("/health", "/health/ready"):
                    status = "ok" if reason is None else "waiting"
                    body = {"status": status, "function": health.function, "waiting_for": reason}
                    self._answer(200 if reason is None else 503, body)
                else:
                    self._answer(404, {"status": "unknown path"})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent: a probe every second is not news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close the port."""
        self._server.shutdown()
        self._server.server_close()
