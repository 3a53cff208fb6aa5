"""A part of the stack as the supervisor sees it: how to start a process, check its readiness and stop it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nigredo.errors import DependencyDown

READY: None = None
CHECK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Part:
    """One supervised process."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    waiting_for: Callable[[], str | None]
    """Readiness check: blocks for a few seconds at most; returns None when ready, else the missing condition."""
    ports: Sequence[int] = ()
    url: str | None = None
    prepare: Callable[[], None] | None = None
    """Called in a thread before each start."""
    ended: Callable[[], None] | None = None
    """Called in a thread after an intended stop that did not need SIGKILL."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    """Seconds between `stop_signal` and SIGKILL."""
    refusal: int | None = None
    """Exit code by which the process reports settings that cannot work."""
    prefix: Sequence[str] = field(default=())
    """Command line put before `command`, such as `setpriv` to change the user."""


def http_waiting_for(port: int, path: str, *, basic_auth: tuple[str, str] | None = None) -> str | None:
    """Ask a local health route: None for a 200, else what is missing, from the answer's body where it says so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CHECK_TIMEOUT_S)
    try:
        headers = {"Authorization": f"Basic {b64encode(':'.join(basic_auth).encode()).decode()}"} if basic_auth else {}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read(10_000)
        if response.status == http.client.OK:
            return READY
        reason = json.loads(body).get("waiting_for") if body.startswith(b"{") else None
        return str(reason or f"answers {response.status}")
    except (OSError, http.client.HTTPException, ValueError):
        return "start"
    finally:
        connection.close()


def check_ports(parts: Sequence[Part]) -> None:
    """Raise DependencyDown when another program listens on a port of these parts."""
    for part in parts:
        for port in part.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise DependencyDown(
                        f"port {port}, for {part.name}, is in use by another program; end it or choose --port-base"
                    ) from error
