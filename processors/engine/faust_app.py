"""Faust app that only delivers records and runs the consumer group; `stream_processor.py` does the rest."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, cast

import faust
from faust.transport.drivers import aiokafka
from faust.types import TP

from nigredo.control.drain import GroupDrain
from nigredo.errors import NigredoError
from nigredo.kafka.security import sasl_password, ssl_context
from nigredo.log_position import LogPosition, to_metadata
from nigredo.observability.health import Health, health_server
from nigredo.settings import Settings

COMMIT_NEVER_S = 86_400.0
STREAM_BUFFER_MAX = 4000
driver: Any = aiokafka
METADATA_MAX_AGE_MS = 5000
"""Time until a topic that was unavailable, or has new partitions, is assigned; Faust's default is five minutes."""
GARBAGE_AFTER = (50_000, 20, 20)
"""Garbage collection thresholds. Python's default of 700 new objects would collect about a hundred times in one batch,
whose records live until the batch ends."""


class App(faust.App):
    """A Faust app whose own commits do nothing."""

    def _new_consumer(self) -> Any:
        consumer = super()._new_consumer()

        async def commit(*_: Any, **__: Any) -> bool:
            return False

        # Faust commits on a timer, on revocation and on stop, each time the offsets that it takes for processed.
        setattr(consumer, "commit", commit)  # noqa: B010 - a plain assignment is no method to the type checker
        setattr(consumer, "wait_first", self._hand_over_quickly(consumer))  # noqa: B010
        return consumer

    def _hand_over_quickly(self, consumer: Any) -> Any:
        """Return a `wait_first` that queues a record without tasks; Faust's own makes four for each, to stop waiting.

        While records flow and no queue is full there is nothing to wait for; otherwise Faust's own function is called.
        """
        faust_wait_first = consumer.wait_first

        async def wait_first(*coros: Any, timeout: Any = None) -> Any:
            room = not any(channel.queue.full() for channel in self.topics)
            if len(coros) != 2 or not room or consumer.suspend_flow.is_set() or not self.flow_control.is_active():
                return await faust_wait_first(*coros, timeout=timeout)
            enqueue, suspension = coros
            suspension.close()
            return await enqueue

        return wait_first


class _Worker(faust.Worker):
    """A Faust worker that records whether it ended on a signal or only left its group on request."""

    left = signalled = False

    def leave(self) -> None:
        """Shut down as on SIGTERM; safe to call from another thread."""
        self.left = True
        self.loop.call_soon_threadsafe(self._schedule_shutdown, signal.SIGTERM)

    def _on_sigint(self) -> None:
        self.signalled = True
        super()._on_sigint()

    def _on_sigterm(self) -> None:
        self.signalled = True
        super()._on_sigterm()


def make_app(settings: Settings, component: str) -> App:
    """Return an app in the consumer group of the component's name, without tables, web server or topics of its own."""
    name = settings.function(component)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    brokers = [f"kafka://{broker.strip()}" for broker in settings.kafka_bootstrap_servers.split(",")]
    return App(
        name,
        broker=brokers,
        broker_credentials=broker_credentials(settings),
        broker_client_id=name,
        store="memory://",
        # One directory for each component, because workers that share one overwrite each other's files.
        datadir=str(settings.state_dir / name),
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=settings.topic_partitions,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        broker_commit_interval=COMMIT_NEVER_S,
        broker_session_timeout=settings.kafka_session_timeout_s,
        broker_heartbeat_interval=settings.kafka_session_timeout_s / 4,
        # Without acknowledgements Faust would wait for ever for a batch that is going to be dropped.
        stream_wait_empty=False,
        stream_buffer_maxsize=STREAM_BUFFER_MAX,
        web_enabled=False,
    )


def broker_credentials(settings: Settings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Return the credentials of the app's consumer; None without TLS and SASL.

    Raises ConfigurationError for an unusable password or certificate file.
    """
    protocol = settings.kafka_security_protocol
    context = ssl_context(settings) if protocol.endswith("SSL") else None
    if protocol.startswith("SASL_"):
        return faust.SASLCredentials(
            username=settings.kafka_sasl_username,
            password=sasl_password(settings),
            mechanism=settings.kafka_sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None


async def commit_positions(app: faust.App, positions: Mapping[TP, LogPosition]) -> bool:
    """Commit positions with their proofs for the partitions still assigned; return False when the broker refuses.

    Runs in the consumer's own thread, as Faust's commit does, which cannot pass metadata.
    """
    # Both are private in Faust: the thread that runs the consumer, and the client's consumer in it.
    thread = cast(Any, app.consumer)._thread

    async def commit() -> bool:
        consumer = thread._ensure_consumer()
        ours = consumer.assignment()
        wanted = {
            # NUL-terminated, because librdkafka passes metadata on as a C string.
            at: driver.OffsetAndMetadata(position.next_offset, to_metadata(position) + "\0")
            for tp, position in positions.items()
            if (at := driver.ensure_aiokafka_TP(tp)) in ours
        }
        try:
            if wanted:
                await consumer.commit(wanted)
        except driver.CommitFailedError:
            return False  # The group was rebalanced meanwhile.
        return True

    done: bool = await thread.call_thread(commit)
    return done


def run_app(app: App, settings: Settings, health: Health, leave: GroupDrain | None = None) -> None:
    """Run the app until a signal ends it. Raises NigredoError when the worker ends with an error.

    leave: when an operator asks the group to leave, the app ends, and once the request is withdrawn the process
    restarts under the same process id, so that no state of the old assignment survives.
    """
    server = health_server(health, settings)
    if server:
        server.start()
    # Modules loaded so far stay for good. Collecting in them and in every open batch took 5 to 30 % of the CPU time.
    gc.freeze()
    gc.set_threshold(*GARBAGE_AFTER)
    try:
        worker = _Worker(app, loglevel="warn", override_logging=False, redirect_stdouts=False, quiet=True)
        # The worker's spinner writes to the log even without a terminal.
        worker.spinner = None
        if leave:
            leave.open()
            leave.stay_away(health)
            leave.when_asked(worker.leave)
        try:
            worker.execute_from_commandline()
        except SystemExit as end:
            if end.code not in (0, None):
                raise NigredoError("the stream worker ended with an error") from end
        if leave and worker.left and not worker.signalled:
            leave.stay_away(health)
            _restart_process()
    finally:
        if leave:
            leave.close()
        if server:
            server.stop()


def _restart_process() -> None:
    """Replace the process by a new one of the same command; open sockets close with the exec."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very command
