"""A Faust app that only delivers records and runs the consumer group; `stream_processor.py` does the rest."""

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
"""A topic that was away, or has more partitions, is assigned after this long; Faust's own five minutes are silence."""
GARBAGE_AFTER = (50_000, 20, 20)
"""Python's own 700 new objects are the records of a hundredth of a batch, which live until it is done."""


class App(faust.App):
    """A Faust app whose own commits do nothing."""

    def _new_consumer(self) -> Any:
        consumer = super()._new_consumer()

        async def commit(*_: Any, **__: Any) -> bool:
            return False

        # Faust commits on a timer, on revocation and on stop; each would commit what it thinks is done.
        setattr(consumer, "commit", commit)  # noqa: B010 - a plain assignment is no method to the type checker
        setattr(consumer, "wait_first", self._hand_over_quickly(consumer))  # noqa: B010
        return consumer

    def _hand_over_quickly(self, consumer: Any) -> Any:
        """Replace how the consumer hands a record on: Faust makes four tasks for each, to be able to give up waiting.

        There is nothing to wait for while records flow and there is room for one more; else it is done Faust's way.
        """
        faust_way = consumer.wait_first

        async def wait_first(*coros: Any, timeout: Any = None) -> Any:
            room = not any(channel.queue.full() for channel in self.topics)
            if len(coros) != 2 or not room or consumer.suspend_flow.is_set() or not self.flow_control.is_active():
                return await faust_way(*coros, timeout=timeout)
            handing_over, given_up = coros
            given_up.close()
            return await handing_over

        return wait_first


class _Worker(faust.Worker):
    """A worker that knows whether it was told to end, or only to leave its group for a while."""

    left = told_to_end = False

    def leave(self) -> None:
        """End as on a signal; may be called from another thread."""
        self.left = True
        self.loop.call_soon_threadsafe(self._schedule_shutdown, signal.SIGTERM)

    def _on_sigint(self) -> None:
        self.told_to_end = True
        super()._on_sigint()

    def _on_sigterm(self) -> None:
        self.told_to_end = True
        super()._on_sigterm()


def make_app(settings: Settings, component: str) -> App:
    """Return an app in the group of the same name, without tables, web server, or topics of its own."""
    name = settings.function(component)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    brokers = [f"kafka://{broker.strip()}" for broker in settings.kafka_bootstrap_servers.split(",")]
    return App(
        name,
        broker=brokers,
        broker_credentials=broker_credentials(settings),
        broker_client_id=name,
        store="memory://",
        # One folder a process: workers that share one overwrite each other's.
        datadir=str(settings.state_dir / name),
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=settings.topic_partitions,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        broker_commit_interval=COMMIT_NEVER_S,
        broker_session_timeout=settings.kafka_session_timeout_s,
        broker_heartbeat_interval=settings.kafka_session_timeout_s / 4,
        # With manual acknowledgement Faust would wait for ever for a batch that will be dropped.
        stream_wait_empty=False,
        stream_buffer_maxsize=STREAM_BUFFER_MAX,
        web_enabled=False,
    )


def broker_credentials(settings: Settings) -> faust.SASLCredentials | faust.SSLCredentials | None:
    """Return how the app's consumer proves an identity. Raises ConfigurationError for a file it cannot use."""
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
    """Commit positions with their proofs, for those partitions that are still ours; say whether the broker took them.

    Faust's own way knows no metadata. As there, in the thread that the consumer belongs to.
    """
    # Neither is public: the consumer that runs in a thread of its own, and the client's consumer in it.
    thread = cast(Any, app.consumer)._thread

    async def commit() -> bool:
        consumer = thread._ensure_consumer()
        ours = consumer.assignment()
        wanted = {
            # With the end that a C string needs: librdkafka hands metadata on as one.
            at: driver.OffsetAndMetadata(position.next_offset, to_metadata(position) + "\0")
            for tp, position in positions.items()
            if (at := driver.ensure_aiokafka_TP(tp)) in ours
        }
        try:
            if wanted:
                await consumer.commit(wanted)
        except driver.CommitFailedError:
            return False  # The group was assigned anew meanwhile.
        return True

    done: bool = await thread.call_thread(commit)
    return done


def run_app(app: App, settings: Settings, health: Health, leave: GroupDrain | None = None) -> None:
    """Run the app until a signal ends it. Raises NigredoError when it ended because something failed.

    leave: with it the app ends when its group is asked to leave, and the process begins anew, under the same id, when
    that is over. Nothing of the old assignment can survive that.
    """
    server = health_server(health, settings)
    if server:
        server.start()
    # What is loaded by now stays. Looking for garbage in it, and in every half-done batch, took 5 to 30 % of ours.
    gc.freeze()
    gc.set_threshold(*GARBAGE_AFTER)
    try:
        worker = _Worker(app, loglevel="warn", override_logging=False, redirect_stdouts=False, quiet=True)
        # Its spinner writes to the log even where there is no terminal.
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
        if leave and worker.left and not worker.told_to_end:
            leave.stay_away(health)
            _begin_anew()
    finally:
        if leave:
            leave.close()
        if server:
            server.stop()


def _begin_anew() -> None:
    """Replace the process by a fresh one of the same command. Its sockets close by themselves."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very command
