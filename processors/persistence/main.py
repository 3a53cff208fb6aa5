"""The process `nigredo-persister-{env}`."""

from __future__ import annotations

from nigredo.db import ping
from nigredo.health import Health
from nigredo.leave import Leave
from nigredo.log_reader import LogReader
from nigredo.log_watch import LogWatch
from nigredo.settings import Settings
from nigredo.startup import run_process
from processors.faust_app import make_app, run_app
from processors.in_order import InOrder
from processors.persistence.persister import COMPONENT, TOPICS, Persister
from processors.watchdog import Watchdog


def main() -> int:
    """Run the persister until a signal ends it; return the exit code."""
    return run_process(COMPONENT, _serve)


def _serve(settings: Settings) -> None:
    health = Health(settings.function(COMPONENT))
    app = make_app(settings, COMPONENT)
    watch = LogWatch(settings, COMPONENT, TOPICS)
    in_order = InOrder(app, LogReader(settings, COMPONENT), watch, health, TOPICS, Persister(settings))
    with Watchdog(settings, COMPONENT, health, TOPICS, in_order, check=lambda: ping(settings)):
        run_app(app, settings, health, Leave(settings, COMPONENT))
