"""The process `nigredo-persister-{env}`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from nigredo.db import ping
from nigredo.dead_letters import WaitingDeadLetters, parked_before
from nigredo.health import Health
from nigredo.leave import Leave
from nigredo.log_proof import LogProof
from nigredo.log_reader import LogReader
from nigredo.log_watch import LogWatch
from nigredo.parking import Bounds, Parking
from nigredo.pinned import PinnedSchemas
from nigredo.settings import Settings
from nigredo.startup import run_process
from nigredo.view import TopicView
from processors.faust_app import make_app, run_app
from processors.in_order import InOrder
from processors.persistence.persister import COMPONENT, Persister
from processors.watchdog import Watchdog
from schemas.codec import Codec
from schemas.topics import DEAD_LETTERS, STORED


def main() -> int:
    """Run the persister until a signal ends it; return the exit code."""
    return run_process(COMPONENT, _serve)


def _serve(settings: Settings) -> None:
    health = Health(settings.function(COMPONENT))
    app = make_app(settings, COMPONENT)
    watch = LogWatch(settings, COMPONENT, STORED)
    reader = LogReader(settings, COMPONENT)
    parking = Parking(Bounds.of(settings), health, partial(parked_before, reader, settings.function(COMPONENT)))
    proof = LogProof(settings, COMPONENT)
    in_order = InOrder(app, reader, watch, proof, health, STORED, Persister(settings, health), parking)
    with (
        _dead_letters_told(settings, health),
        Watchdog(settings, COMPONENT, health, STORED, in_order, check=lambda: ping(settings)),
    ):
        run_app(app, settings, health, Leave(settings, COMPONENT))


@contextmanager
def _dead_letters_told(settings: Settings, health: Health) -> Iterator[None]:
    """Tell how many dead letters wait, of every function: also while the database is away."""
    waiting = WaitingDeadLetters(Codec(PinnedSchemas(settings)))
    health.tell_also(waiting.document)
    view = TopicView(settings, COMPONENT, DEAD_LETTERS, waiting)
    view.open()
    try:
        yield
    finally:
        view.close()
