"""Program: a worker that hangs once. Arguments: topic, a folder of its own, how it hangs.

`loop` blocks the event loop, `agent` lets the agent wait for ever, `waits` reports an outage for a while. The worker
appends each handled record as `partition:offset` to the file `done` in its folder.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown
from nigredo.kafka.parking import Before, Bounds, Parking
from nigredo.kafka.positions.log_proof import LogProof
from nigredo.kafka.positions.log_watch import LogWatch
from nigredo.kafka.record import Record
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import LogPosition
from nigredo.observability.health import Health
from nigredo.observability.logs import configure_logging
from nigredo.settings import Settings
from processors.engine.faust_app import make_app, run_app
from processors.engine.handler import Decoded
from processors.engine.stream_processor import StreamProcessor
from processors.engine.watchdog import Watchdog
from schemas.events import Event

PATIENCE_S = 10.0
AWAY_S = 3 * PATIENCE_S


class Hanging:
    def __init__(self, folder: Path, how: str, topic_id: str) -> None:
        self._folder = folder
        self._topic_id = topic_id
        self._how = how
        self._began = time.monotonic()

    async def open(self) -> None:
        """Nothing to open."""

    async def begin(self, topic: str, partition: int, committed: LogPosition | None) -> LogPosition:
        return committed if committed is not None and committed.topic_id else LogPosition(0, self._topic_id)

    async def put_back(self, topic: str, partition: int, position: LogPosition) -> None:
        """Do nothing, because the group's offset is the only one."""

    async def decode(self, record: Record) -> Event | None:
        return None

    async def work(self, records: Sequence[Decoded], still_assigned: Callable[[], bool]) -> None:
        if self._how == "waits":
            if time.monotonic() - self._began < AWAY_S:
                raise DependencyDown("something is away")
        elif not (self._folder / "hung").exists():
            (self._folder / "hung").touch()
            if self._how == "loop":
                time.sleep(600)  # noqa: ASYNC251 - that is the point
            await asyncio.Event().wait()
        with (self._folder / "done").open("a") as file:
            file.writelines(f"{record.partition}:{record.offset}\n" for record, _ in records)

    def revoked(self) -> None:
        """Do nothing, because the handler has no state."""

    async def park(self, record: Record, reason: str, error: str) -> None:
        raise AssertionError("nothing is parked here")

    async def close(self) -> None:
        """Nothing to close."""


def main() -> None:
    """Run the worker until a signal or the watchdog ends it."""
    topic, folder, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    component = f"hanging-{how}-{folder.name}"
    settings = replace(
        Settings.from_environment(os.environ), watchdog_s=PATIENCE_S, state_dir=folder / "state", health_port=0
    )
    configure_logging(settings.function(component))
    Backoff.next_wait_s = lambda self: 0.5  # type: ignore[method-assign]
    health = Health(settings.function(component))
    app = make_app(settings, component)
    reader, watch = TopicReader(settings, component), LogWatch(settings, component, [topic])
    parking = Parking(Bounds.of(settings), health, lambda _: Before())
    handler = Hanging(folder, how, reader.topic_ids([topic])[topic])
    in_order = StreamProcessor(app, reader, watch, LogProof(settings, component), health, [topic], handler, parking)
    with Watchdog(settings, component, health, [topic], in_order):
        run_app(app, settings, health)


if __name__ == "__main__":
    main()
