"""Limiter commands from outside: read its windows, send resets and releases, wait until they are processed; blocking.

A command is a record in `nigredo.submissions` under the client network's key, so that the command takes effect at the
same point between submissions for every reader of the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from uuid import uuid4

from nigredo.avro.codec import Codec, Undecodable
from nigredo.clock import utc_now
from nigredo.components import RATE_LIMITER
from nigredo.errors import DependencyDown
from nigredo.kafka.cloudevents import cloud_event
from nigredo.kafka.publisher import AckedPosition, Publisher, producer_config
from nigredo.kafka.topic_reader import TopicReader
from nigredo.process import ready_codec
from nigredo.settings import Settings
from schemas.events import AuditEntry, LimitReset, RateLimitState, RejectionRelease
from schemas.topics import AUDIT, RATE_LIMITS, REJECTIONS, SUBMISSIONS

READ_DEADLINE_S = 120.0
DELIVERY_TIMEOUT_S = 10.0
AT_ONCE = 1000
LOOK_EVERY_S = 0.2


class LimiterCommands:
    """Client of the rate limiter. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, actor: str) -> None:
        """actor: the operator, for the commands and the audit."""
        self.actor = actor
        self.reader = TopicReader(settings, "control")
        self._settings = settings
        self._name = settings.function("control")
        self._codec: Codec | None = None

    @property
    def codec(self) -> Codec:
        """Codec for submissions, windows, rejections and the audit; prepared on first use."""
        if self._codec is None:
            topics = [SUBMISSIONS, RATE_LIMITS, REJECTIONS, AUDIT]
            self._codec = asyncio.run(ready_codec(self._settings, topics, deadline_s=10.0))
        return self._codec

    def windows(self, wanted: Callable[[str], bool]) -> Mapping[str, RateLimitState]:
        """Return the newest windows that the limiter wrote, by client network; `wanted` selects the networks."""
        codec, found = self.codec, dict[str, RateLimitState]()
        partitions = self.reader.partitions(RATE_LIMITS)
        for message in self.reader.read_to_end(RATE_LIMITS, partitions, deadline_s=READ_DEADLINE_S):
            network, value = (message.key() or b"").decode(errors="replace"), message.value()
            if not wanted(network):
                continue
            if value is None:
                found.pop(network, None)
                continue
            try:
                state = codec.decode(RATE_LIMITS, value)
            except Undecodable:
                continue
            known = found.get(network)
            # The window with the highest input offset counts, not the one written last.
            if isinstance(state, RateLimitState) and (known is None or known.input_offset <= state.input_offset):
                found[network] = state
        return found

    def reset(self, networks: Sequence[str]) -> list[AckedPosition]:
        """Request a reset of client networks; return once Kafka has acknowledged the commands and their audit."""
        resets = [LimitReset(network, self.actor, utc_now()) for network in networks]
        return self._publish(
            [(reset, AuditEntry(self.actor, "limit.reset", reset.client_network, {}, utc_now())) for reset in resets]
        )

    def release(self, releases: Sequence[RejectionRelease]) -> list[AckedPosition]:
        """Request the release of refused submissions; return once Kafka has acknowledged commands and audit."""
        return self._publish(
            [
                (release, AuditEntry(self.actor, "rejection.release", str(release.lead_id), {}, utc_now()))
                for release in releases
            ]
        )

    def _publish(self, commands: Sequence[tuple[LimitReset | RejectionRelease, AuditEntry]]) -> list[AckedPosition]:
        codec = self.codec

        async def publish() -> list[AckedPosition]:
            config = producer_config(self._settings, self._name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
            publisher, positions = Publisher(config, in_flight_max=2 * AT_ONCE), list[AckedPosition]()
            try:
                for batch in (commands[start : start + AT_ONCE] for start in range(0, len(commands), AT_ONCE)):
                    sent, audited = [], []
                    for command, audit in batch:
                        key, value = command.client_network.encode(), codec.encode(SUBMISSIONS, command)
                        headers = cloud_event(audit.action, uuid4(), self._name, audit.at)
                        sent.append(publisher.publish(SUBMISSIONS, key=key, value=value, headers=headers))
                        key, value = audit.subject.encode(), codec.encode(AUDIT, audit)
                        audited.append(publisher.publish(AUDIT, key=key, value=value))
                    positions += await asyncio.gather(*sent)
                    await asyncio.gather(*audited)
                return positions
            finally:
                await publisher.close()

        return asyncio.run(publish())

    def _end(self, partition: int) -> int:
        # Used where the producer reports no offset: an acknowledged record lies below the end.
        return self.reader.watermarks(SUBMISSIONS, partition)[1]

    def wait_handled(self, positions: Sequence[AckedPosition], *, deadline_s: float) -> None:
        """Wait until the limiter has committed past these records, so that their results are in Kafka.

        Raises DependencyDown past the deadline; the commands stay valid and take effect once the limiter reads them.
        """
        deadline, group = time.monotonic() + deadline_s, self._settings.function(RATE_LIMITER)
        open_ends: dict[int, int] = {}
        for position in positions:
            end = position.offset + 1 if position.offset is not None else self._end(position.partition)
            open_ends[position.partition] = max(open_ends.get(position.partition, 0), end)
        while open_ends:
            committed = self.reader.committed(group, SUBMISSIONS, sorted(open_ends))
            open_ends = {p: end for p, end in open_ends.items() if (committed[p] or 0) < end}
            if open_ends and time.monotonic() > deadline:
                raise DependencyDown(
                    f"Kafka has the command, but the rate limiter did not come to it within {deadline_s:g} s: "
                    "the command takes effect as soon as the limiter runs"
                )
            if open_ends:
                time.sleep(LOOK_EVERY_S)
