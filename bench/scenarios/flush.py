"""Acknowledged POSTs with a broker that flushes to disk before it acknowledges, beside the page cache alone."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from bench.lab import Lab
from bench.load import CONNECTIONS, wrk
from bench.measure import Contender, Figures, Result
from bench.run import Run
from nigredo.kafka.publisher import client_config
from schemas.topics import SUBMISSIONS

SECONDS = 4.0
WARM_UP_SECONDS = 12.0
NEVER = "9223372036854775807"
"""Kafka's default for `flush.messages`: the operating system decides when to write."""
CALL_TIMEOUT_S = 10.0


def run(bench: Run) -> None:
    """Measure ingest with each flush setting of `nigredo.submissions`, in turn."""
    lab, seconds = bench.lab, bench.effort.seconds(SECONDS)
    result = Result("flush", f"POST acknowledged, {CONNECTIONS} connections", "POST/s", {"seconds": seconds})
    with lab.ours("ingest") as ingest:
        wrk(ingest.url, seconds=bench.effort.seconds(WARM_UP_SECONDS), salt=bench.salt())

        def posting(flush_messages: str) -> Callable[[int], Figures]:
            def measure(_: int) -> Figures:
                _flush(lab, flush_messages)
                wrk(ingest.url, seconds=1, salt=bench.salt())
                return wrk(ingest.url, seconds=seconds, salt=bench.salt())

            return measure

        try:
            bench.alternate(
                result,
                [Contender("flush each batch", posting("1")), Contender("page cache", posting(NEVER))],
            )
        finally:
            _flush(lab, NEVER)
    bench.save(result)


def _flush(lab: Lab, messages: str) -> None:
    admin = AdminClient(client_config(lab.settings(role="admin"), "bench"))
    entry = ConfigEntry("flush.messages", messages, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, SUBMISSIONS, incremental_configs=[entry])
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(CALL_TIMEOUT_S)
