"""The process that takes forms: `ingest.app` on granian."""

from __future__ import annotations

from math import ceil

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.log import LogLevels

from ingest.app import BODY_DEADLINE_S
from ingest.intake import GRACE_S, read_secret
from nigredo.settings import Settings
from nigredo.startup import run_process


def main() -> int:
    """Serve until a signal ends it; return the exit code."""
    return run_process("create-lead", _serve)


def _serve(settings: Settings) -> None:
    read_secret(settings.idempotency_secret_file)  # Told here, once, rather than by every worker.
    Granian(
        "ingest.app:create",
        factory=True,
        address=settings.ingest_host,
        port=settings.ingest_port,
        interface=Interfaces.ASGI,
        workers=settings.ingest_workers,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        log_level=LogLevels.warning,
        respawn_failed_workers=True,
        # A worker that is still busy this long after the signal is killed: longer than any request may take.
        workers_kill_timeout=ceil(BODY_DEADLINE_S + settings.ingest_ack_timeout_s + GRACE_S) + 1,
    ).serve()
