"""The process that takes forms: `ingest.app` on granian."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import ExitStack
from math import ceil

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.log import LogLevels

from ingest.app import BODY_DEADLINE_S
from ingest.exposition import Exposition, shared_folder
from ingest.intake import GRACE_S, read_secret
from nigredo.health import HealthServer
from nigredo.settings import Settings
from nigredo.startup import run_process


def main() -> int:
    """Serve until a signal ends it; return the exit code."""
    return run_process("create-lead", _serve)


def _serve(settings: Settings) -> None:
    read_secret(settings.idempotency_secret_file)  # Told here, once, rather than by every worker.
    # A worker begins as a new program: the library of the metrics decides when it is imported where numbers go, and
    # a copy of this process would come without its threads, yet with whatever lock one of them held.
    multiprocessing.set_start_method("spawn", force=True)
    with ExitStack() as ends:
        if settings.health_port:
            folder = ends.enter_context(shared_folder(settings.state_dir / "ingest-metrics"))
            # The library reads its one setting from the environment alone, in the workers.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
            server = HealthServer(None, settings.health_host, settings.health_port, Exposition(folder))
            server.start()
            ends.callback(server.stop)
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
