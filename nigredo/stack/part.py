"""What the supervisor needs to know of a part: how to start it, when it is ready, how to end it."""

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
    """Blocks for a few seconds at most; returns None when ready, else what is missing in a few words."""
    ports: Sequence[int] = ()
    url: str | None = None
    prepare: Callable[[], None] | None = None
    """Runs before each start, in a thread."""
    ended: Callable[[], None] | None = None
    """Runs, in a thread, once it was ended on purpose and not by force."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    """How long it may take to end before it is killed."""
    refusal: int | None = None
    """The exit code by which it says that its settings cannot work."""
    prefix: Sequence[str] = field(default=())
    """What changes the user before the command runs."""


def http_waiting_for(port: int, path: str, *, basic_auth: tuple[str, str] | None = None) -> str | None:
    """Ask a local health route; a 200 means ready, and the body of another answer may say what is missing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CHECK_TIMEOUT_S)
    try:
        proof = {"Authorization": f"Basic {b64encode(':'.join(basic_auth).encode()).decode()}"} if basic_auth else {}
        connection.request("GET", path, headers=proof)
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
    """Raise DependencyDown when another program listens where a part will."""
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
