"""Entry point of one endpoint's webhook sender: `nigredo-webhook-sender-{env}` for the endpoint `fibonacci`,
`nigredo-webhook-sender-{env}-{endpoint}` for the others."""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from nigredo.components import WEBHOOK_SENDER
from nigredo.endpoints.endpoint import endpoint_of
from nigredo.observability.health import Health, health_server
from nigredo.observability.logs import configure_logging
from nigredo.process import run_process
from nigredo.settings import Settings
from sinks.webhook.worker import Worker

THREAD_SWITCH_INTERVAL_S = 0.0005
"""Longest time a thread that reads the log may hold the GIL while the event loop waits for it. With Python's default of
5 ms, spent several times per lead, live leads waited for seconds."""


def main() -> int:
    """Deliver leads until SIGINT or SIGTERM; return the exit code."""
    return run_process(WEBHOOK_SENDER, _run)


def _run(settings: Settings) -> None:
    sys.setswitchinterval(THREAD_SWITCH_INTERVAL_S)
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
