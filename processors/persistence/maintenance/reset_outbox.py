"""Reset outbox: publishes a limit reset to the limiter for each row an operator deleted from `nigredo.rate_limits`.

A trigger inserts the deleted networks into `nigredo.rate_limit_resets`. The outbox is polled and does not use `LISTEN`,
because the runbook's statement against idle sessions would end a session that only listens.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import uuid4

from nigredo.avro.codec import Codec
from nigredo.clock import truncate_to_ms
from nigredo.components import PERSISTER
from nigredo.errors import DependencyDown
from nigredo.kafka.cloudevents import cloud_event
from nigredo.kafka.publisher import Publisher, producer_config
from nigredo.observability.logs import get_logger
from nigredo.postgres.pool import Pool, transaction
from nigredo.settings import Settings
from processors.persistence.reachable import Reachable
from processors.persistence.store import load_queries
from schemas.events import AuditEntry, LimitReset
from schemas.topics import AUDIT, SUBMISSIONS

log = get_logger()

ASK_EVERY_S = 0.5
BATCH_MAX = 500
DELIVERY_TIMEOUT_S = 3.0
"""Short, because a transaction stays open meanwhile and records given up are published again."""
ANSWER_WITHIN_S = 5.0
DEADLINE_S = 10.0


class ResetOutbox:
    """Maintenance job that publishes the outbox's rows to `nigredo.submissions`, keyed by network.

    A row is deleted in the transaction that read it, once Kafka has acknowledged its reset; after a crash in between,
    the network's limit is reset a second time. Close the outbox after the last `run`.
    """

    name = "limit-resets"
    first_after_s = 0.0

    def __init__(self, settings: Settings, pool: Pool, codec: Codec, reachable: Reachable) -> None:
        """codec: prepared for submissions and the audit. reachable: notified whether the database answers."""
        self._function = settings.function(PERSISTER)
        self._pool = pool
        self._codec = codec
        self._reachable = reachable
        self._sql = load_queries()
        config = producer_config(settings, self._function, delivery_timeout_s=DELIVERY_TIMEOUT_S)
        self._publisher = Publisher(config, in_flight_max=2 * BATCH_MAX, answer_within_s=ANSWER_WITHIN_S)

    async def run(self) -> float:
        """Publish and delete at most `BATCH_MAX` rows; return 0 when more may be left. Raises DependencyDown."""
        answered = False
        try:
            async with transaction(self._pool, deadline_s=DEADLINE_S) as connection:
                cursor = await connection.execute(self._sql["take_resets"], {"count": BATCH_MAX})
                rows = await cursor.fetchall()
                answered = True
                self._reachable.answered()
                if rows:
                    # One reset a network is enough: the newest of its rows.
                    await self._publish({row[1]: row for row in rows})
                    await connection.execute(self._sql["delete_resets"], {"ids": [row[0] for row in rows]})
        except DependencyDown as error:
            # After the database has answered, the failure may be Kafka's.
            if not answered:
                self._reachable.failed(str(error))
            raise
        if rows:
            log.info("networks freed by SQL", rows=len(rows))
        return 0.0 if len(rows) == BATCH_MAX else random.uniform(0.8, 1.0) * ASK_EVERY_S  # noqa: S311

    async def _publish(self, by_network: dict[str, tuple[Any, ...]]) -> None:
        sent = []
        for network, (_, _, requested_by, requested_at) in by_network.items():
            key, at = network.encode(), truncate_to_ms(requested_at)
            reset = LimitReset(network, requested_by, at)
            headers = cloud_event("limit.reset", uuid4(), self._function, at)
            audit = AuditEntry(requested_by, "limit.reset", network, {"by": "sql"}, at)
            value, audit_value = self._codec.encode(SUBMISSIONS, reset), self._codec.encode(AUDIT, audit)
            sent.append(self._publisher.publish(SUBMISSIONS, key=key, value=value, headers=headers))
            sent.append(self._publisher.publish(AUDIT, key=key, value=audit_value))
        await asyncio.gather(*sent)

    async def close(self) -> None:
        """Close the producer, within a few seconds."""
        await self._publisher.close()
