"""Passes on that an operator deleted rows of `nigredo.rate_limits`: to the limiter, whose word the limit is.

A trigger notes the deleted networks in `nigredo.rate_limit_resets`. They are looked for by asking, not by `LISTEN`:
the runbook's statement against idle sessions would end a session that only listens.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any
from uuid import uuid4

from nigredo.avro.codec import Codec
from nigredo.clock import truncate_to_ms
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
"""Short, since a transaction stays open meanwhile, and since what was given up is published again."""
ANSWER_WITHIN_S = 5.0
DEADLINE_S = 10.0


class ResetOutbox:
    """The chore that empties the outbox into `nigredo.submissions`, under the networks' own keys.

    A row is deleted in the transaction that read it, once Kafka has acknowledged: after a crash in between, the
    network is freed a second time. Close it after the last `run`.
    """

    name = "limit-resets"
    first_after_s = 0.0

    def __init__(self, settings: Settings, pool: Pool, codec: Codec, reachable: Reachable) -> None:
        """codec: prepared for submissions and the audit. reachable: learns whether the database answers."""
        self._function = settings.function("persister")
        self._pool = pool
        self._codec = codec
        self._reachable = reachable
        self._sql = load_queries()
        config = producer_config(settings, self._function, delivery_timeout_s=DELIVERY_TIMEOUT_S)
        self._publisher = Publisher(config, in_flight_max=2 * BATCH_MAX, answer_within_s=ANSWER_WITHIN_S)

    async def run(self) -> float:
        """Pass on what waits, at most `BATCH_MAX` rows. Raises DependencyDown."""
        answered = False
        try:
            async with transaction(self._pool, deadline_s=DEADLINE_S) as connection:
                cursor = await connection.execute(self._sql["take_resets"], {"count": BATCH_MAX})
                rows = await cursor.fetchall()
                answered = True
                self._reachable.answered()
                if rows:
                    # Of a network that was deleted several times, the newest wish: one reset is enough.
                    await self._publish({row[1]: row for row in rows})
                    await connection.execute(self._sql["delete_resets"], {"ids": [row[0] for row in rows]})
        except DependencyDown as error:
            # After the answer it may as well be Kafka that is away.
            if not answered:
                self._reachable.failed(str(error))
            raise
        if rows:
            log.info("networks were freed by SQL", rows=len(rows))
        return 0.0 if len(rows) == BATCH_MAX else random.uniform(0.8, 1.0) * ASK_EVERY_S  # noqa: S311

    async def _publish(self, wishes: dict[str, tuple[Any, ...]]) -> None:
        sent = []
        for network, (_, _, requested_by, requested_at) in wishes.items():
            key, at = network.encode(), truncate_to_ms(requested_at)
            reset = LimitReset(network, requested_by, at)
            headers = cloud_event("limit.reset", uuid4(), self._function, at)
            audit = AuditEntry(requested_by, "limit.reset", network, {"by": "sql"}, at)
            value, told = self._codec.encode(SUBMISSIONS, reset), self._codec.encode(AUDIT, audit)
            sent.append(self._publisher.publish(SUBMISSIONS, key=key, value=value, headers=headers))
            sent.append(self._publisher.publish(AUDIT, key=key, value=told))
        await asyncio.gather(*sent)

    async def close(self) -> None:
        """Release the connection to Kafka, within a few seconds."""
        await self._publisher.close()
