"""The process of one endpoint's sink: `nigredo-webhook-sender-{env}` for `fibonacci`, `…-{endpoint}` for others."""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from nigredo.endpoints.endpoint import COMPONENT, endpoint_of
from nigredo.observability.health import Health, health_server
from nigredo.observability.logs import configure_logging
from nigredo.process import run_process
from nigredo.settings import Settings
from sinks.webhook.worker import Worker

TAKES_TURNS_EVERY_S = 0.0005
"""How long a thread that reads the log may keep the event loop from going on each time it waits for anything; Python's
own 5 ms, several times for each lead, made live leads wait for seconds."""


def main() -> int:
    """Deliver until a signal ends it; return the exit code."""
    return run_process(COMPONENT, _run)


def _run(settings: Settings) -> None:
    sys.setswitchinterval(TAKES_TURNS_EVERY_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    endpoint = endpoint_of(settings)
    configure_logging(endpoint.function(settings))
    health = Health(endpoint.function(settings))
    worker = Worker(settings, endpoint, health)
    server = health_server(health, settings)
    if server:
        server.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await worker.run(stop)
    finally:
        if server:
            server.stop()
