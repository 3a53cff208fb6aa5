"""Rate limiter process, `nigredo-rate-limiter-{env}`: connects the limiter to Kafka and runs it under a watchdog."""

from __future__ import annotations

import time
from functools import partial

from nigredo.backoff import Backoff
from nigredo.components import RATE_LIMITER
from nigredo.control.drain import GroupDrain
from nigredo.errors import DependencyDown
from nigredo.kafka.dead_letters import parked_before
from nigredo.kafka.parking import Bounds, Parking
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_watch import LogWatch
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability.health import Health
from nigredo.process import run_process
from nigredo.settings import Settings
from processors.engine.faust_app import make_app, run_app
from processors.engine.stream_processor import StreamProcessor
from processors.engine.watchdog import Watchdog
from processors.rate_limit.limiter import Limiter, check_offsets
from schemas.topics import SUBMISSIONS

START_DEADLINE_S = 60.0
BATCH_MAX = 4000
"""Records in a batch; large, because a batch waits for the broker twice, whatever its size."""


def main() -> int:
    """Run the limiter until a signal ends it; return the exit code."""
    return run_process(RATE_LIMITER, _serve)


def _serve(settings: Settings) -> None:
    _until_checked(settings)
    health = Health(settings.function(RATE_LIMITER))
    app = make_app(settings, RATE_LIMITER)
    reader, handler = TopicReader(settings, RATE_LIMITER), Limiter(settings, health)
    watch = LogWatch(settings, RATE_LIMITER, [SUBMISSIONS])
    parking = Parking(Bounds.of(settings), health, partial(parked_before, reader, settings.function(RATE_LIMITER)))
    proof = LogProof(settings, RATE_LIMITER)
    processor = StreamProcessor(app, reader, watch, proof, health, [SUBMISSIONS], handler, parking, batch_max=BATCH_MAX)
    with Watchdog(settings, RATE_LIMITER, health, [SUBMISSIONS], processor):
        run_app(app, settings, health, GroupDrain(settings, RATE_LIMITER))


def _until_checked(settings: Settings) -> None:
    backoff, deadline = Backoff(longest_s=2.0), time.monotonic() + START_DEADLINE_S
    while True:
        try:
            return check_offsets(settings)
        except DependencyDown:
            if time.monotonic() > deadline:
                raise
            time.sleep(backoff.next_wait_s())
