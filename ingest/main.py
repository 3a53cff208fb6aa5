"""Entry point of the ingest process: `ingest.app` on granian, with its workers, limits and metrics."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from contextlib import ExitStack, suppress
from math import ceil
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels

from ingest.app import BODY_DEADLINE_S, LEAVING_SIGNAL
from ingest.submissions.deduplication import read_secret
from ingest.worker_metrics import MultiprocessExposition, parent_folder, shared_folder
from nigredo.components import CREATE_LEAD
from nigredo.observability.health import health_server
from nigredo.observability.logs import get_logger
from nigredo.process import run_process
from nigredo.settings import Settings

log = get_logger()

BACKLOG = 4096
HEAD_MAX_BYTES = 32 * 1024
OTHER_FILES = 256
"""Files that a worker has open besides its client connections: Kafka, the database, the spool, the libraries."""


class Server(Granian):  # type: ignore[misc, valid-type] # one of two classes, by the build of Python
    """granian, with workers that report not ready for `unready_s` seconds before they stop listening."""

    def __init__(self, *arguments: Any, unready_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unready_s = unready_s
        self._leaving = False

    def signal_handler_interrupt(self, *_: Any) -> None:
        """Report not ready and stop `unready_s` later; stop at once when called a second time."""
        if self._leaving or not self._unready_s:
            super().signal_handler_interrupt()
            return
        self._leaving = True
        # Workers without a pid are skipped, because pid 0 would signal the whole process group.
        for pid in [worker.pid for worker in multiprocessing.active_children() if worker.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, LEAVING_SIGNAL)
        later = threading.Timer(self._unready_s, super().signal_handler_interrupt)
        later.daemon = True
        later.start()


def main() -> int:
    """Serve until a signal ends the process; return the exit code."""
    return run_process(CREATE_LEAD, _serve)


def longest_end_s(settings: Settings) -> int:
    """Return how many seconds a worker may be busy after the signal, with a request that started just before it."""
    return ceil(settings.ingest_header_timeout_s + BODY_DEADLINE_S + settings.ingest_answer_within_s) + 1


def _serve(settings: Settings) -> None:
    # Checked here, so that an error is reported once and not by every worker.
    read_secret(settings.idempotency_secret_file)
    files = _open_files_max()
    connections = min(settings.ingest_connections_max, files - OTHER_FILES)
    log.info("connection limit set", open_files=files, connections=connections)
    # Ignored here and inherited, because the signal would kill a worker that has no handler for it yet.
    signal.signal(LEAVING_SIGNAL, signal.SIG_IGN)
    # Workers are spawned, not forked: the metrics library chooses its files when it is imported, and a fork would copy
    # locks that other threads hold, without these threads.
    multiprocessing.set_start_method("spawn", force=True)
    with ExitStack() as ends:
        if settings.health_port:
            folder = ends.enter_context(shared_folder(parent_folder(settings.state_dir)))
            # The metrics library reads this setting from the environment only, in the workers.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
            if server := health_server(None, settings, MultiprocessExposition(folder)):
                server.start()
                ends.callback(server.stop)
        Server(
            "ingest.app:create",
            factory=True,
            address=settings.ingest_host,
            port=settings.ingest_port,
            interface=Interfaces.ASGI,
            workers=settings.ingest_workers,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(
                header_read_timeout=int(settings.ingest_header_timeout_s * 1000), max_buffer_size=HEAD_MAX_BYTES
            ),
            backlog=BACKLOG,
            # The maximum of open connections, not of requests. The default is the backlog, and that many slow
            # connections would block all other clients.
            backpressure=connections,
            websockets=False,
            log_level=LogLevels.warning,
            respawn_failed_workers=True,
            # Seconds from the signal until a worker that is still busy is killed.
            workers_kill_timeout=longest_end_s(settings),
            unready_s=settings.ingest_unready_s,
        ).serve()


def _open_files_max() -> int:
    """Raise the soft limit on open files as far as it goes without privileges, and return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or hard == resource.RLIM_INFINITY:
        wanted = 2**20 if hard == resource.RLIM_INFINITY else hard
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(OTHER_FILES + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
