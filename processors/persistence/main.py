"""Persister process, `nigredo-persister-{env}`: connects the persister to Kafka and runs it under a watchdog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from nigredo.avro.codec import Codec
from nigredo.components import PERSISTER
from nigredo.control.drain import GroupDrain
from nigredo.kafka.dead_letters import WaitingDeadLetters, parked_before
from nigredo.kafka.materialized_view import MaterializedView
from nigredo.kafka.parking import Bounds, Parking
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_watch import LogWatch
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability.health import Health
from nigredo.postgres.pool import ping
from nigredo.process import run_process
from nigredo.settings import Settings
from processors.engine.faust_app import make_app, run_app
from processors.engine.stream_processor import StreamProcessor
from processors.engine.watchdog import Watchdog
from processors.persistence.persister import Persister
from schemas.topics import DEAD_LETTERS, STORED


def main() -> int:
    """Run the persister until a signal ends it; return the exit code."""
    return run_process(PERSISTER, _serve)


def _serve(settings: Settings) -> None:
    health = Health(settings.function(PERSISTER))
    app = make_app(settings, PERSISTER)
    watch = LogWatch(settings, PERSISTER, STORED)
    reader = TopicReader(settings, PERSISTER)
    parking = Parking(Bounds.of(settings), health, partial(parked_before, reader, settings.function(PERSISTER)))
    proof = LogProof(settings, PERSISTER)
    processor = StreamProcessor(app, reader, watch, proof, health, STORED, Persister(settings, health), parking)
    with (
        _dead_letters_reported(settings, health),
        Watchdog(settings, PERSISTER, health, STORED, processor, check=lambda: ping(settings)),
    ):
        run_app(app, settings, health, GroupDrain(settings, PERSISTER))


@contextmanager
def _dead_letters_reported(settings: Settings, health: Health) -> Iterator[None]:
    """Report the waiting dead letters of every function in the health document, also while the database is down."""
    waiting = WaitingDeadLetters(Codec(PinnedSchemas(settings)))
    health.add_details(waiting.document)
    view = MaterializedView(settings, PERSISTER, DEAD_LETTERS, waiting)
    view.open()
    try:
        yield
    finally:
        view.close()
