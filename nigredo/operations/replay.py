"""Replay of leads to one endpoint: selects them, writes references for its sender, watches progress; blocking.

A request is a reference in `nigredo.webhook-replays`, in the partition of its lead. It is pending until the sender
settles it with a tombstone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from nigredo.avro.codec import Codec
from nigredo.clock import from_ms, utc_now
from nigredo.endpoints.keys import from_key, key_of
from nigredo.errors import ConfigurationError
from nigredo.kafka.materialized_view import MaterializedView, Row
from nigredo.kafka.publisher import Publisher, producer_config
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.replay_plan import AttemptSeen, Counts, LeadSeen, References, Rule, asked_for, select
from nigredo.operations.webhook_topics import WebhookTopics
from nigredo.plural import counted
from nigredo.settings import Settings
from schemas.events import AuditEntry, DeliveryAttempt, WebhookReplay
from schemas.topics import AUDIT, DELIVERIES, LEADS, WEBHOOK_REPLAYS

COMPONENT = "replay"
IN_FLIGHT_MAX = 1000
DELIVERY_TIMEOUT_S = 30.0
CLOCKS_DIFFER = timedelta(minutes=1)
"""Tolerated clock difference, because different machines stamp a lead and its attempts."""


@dataclass(frozen=True, slots=True)
class Range:
    """Leads requested for a replay: by append time [since, until), by (partition, first offset), or by id."""

    since: datetime | None = None
    until: datetime | None = None
    from_offsets: tuple[tuple[int, int], ...] = ()
    ids: frozenset[UUID] = frozenset()

    def describe(self) -> str:
        """Return the range in the words of the command, for the audit."""
        if self.ids:
            return f"{counted(len(self.ids), 'lead')} by id"
        if self.from_offsets:
            return "from " + ", ".join(f"{partition}:{offset}" for partition, offset in self.from_offsets)
        return f"from {self.since} to {self.until}"


@dataclass(frozen=True, slots=True)
class NextSteps:
    """Next step for a lead that an endpoint does not have: committed offsets, pending and dead leads (16-byte ids)."""

    committed: Mapping[int, int]
    waiting: Container[bytes]
    dead: Container[bytes]

    def of(self, lead_id: UUID, partition: int, offset: int) -> str:
        """Return `waiting` (an attempt is to come), `dead`, or `unknown` (no known cause for another attempt)."""
        if lead_id.bytes in self.waiting or offset >= self.committed.get(partition, 0):
            return "waiting"
        return "dead" if lead_id.bytes in self.dead else "unknown"


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan of a replay. `not_reached` counts leads of the range that live delivery has not reached yet."""

    counts: Counts
    not_reached: int
    references: tuple[References, ...]


class ReplayService:
    """Replays leads to one endpoint. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, endpoint: str, actor: str) -> None:
        """actor: the operator, for the references and the audit."""
        self.endpoint = endpoint
        self._settings = settings
        self._actor = actor
        self._name = settings.function(COMPONENT)
        self._reader = TopicReader(settings, COMPONENT)
        self.topics = WebhookTopics(settings, self._reader)

    # --- a plan -------------------------------------------------------------------------------------------------------

    def plan(self, asked: Range, rule: Rule) -> Plan:
        """Return which leads of the range are sent. Raises ConfigurationError for an unknown endpoint or partition."""
        partitions = self._reader.partitions(LEADS)
        unknown = sorted({partition for partition, _ in asked.from_offsets} - set(partitions))
        if unknown:
            raise ConfigurationError(f"{LEADS} has partitions {partitions[0]} to {partitions[-1]}, not {unknown[0]}")
        # The order matters: committed offsets, then pending attempts, then deliveries. A lead that advances meanwhile
        # advances in the same order, so one of the three readings finds it.
        limits = self.topics.live_offsets(self.endpoint)
        ends = {partition: self._reader.watermarks(LEADS, partition)[1] for partition in partitions}
        waiting = self.topics.waiting(self.endpoint)
        counts, not_reached, found = Counts(), 0, []
        for partition in partitions:
            start = self._start(asked, partition)
            if start is None:
                continue
            scan = _Scan(self._reader, asked, partition, start, ends[partition], limits[partition])
            leads, erased = asked_for(scan.leads())
            selected, references = select(
                partition, leads, erased, self._tried(partition, leads, scan.oldest), waiting, rule
            )
            counts, not_reached = counts + selected, not_reached + scan.not_reached
            found.append(references)
        return Plan(counts, not_reached, tuple(found))

    def _start(self, asked: Range, partition: int) -> int | None:
        """Return the first offset to read in a partition; None when the range has nothing in the partition."""
        if asked.from_offsets:
            return dict(asked.from_offsets).get(partition)
        if asked.since is not None:
            return self._reader.offset_at(LEADS, partition, asked.since)
        return 0

    def _tried(self, partition: int, leads: Collection[bytes], oldest: datetime | None) -> Iterator[AttemptSeen]:
        for attempt in self._attempts(partition, leads, oldest):
            yield AttemptSeen(attempt.lead_id.bytes, attempt.outcome == "delivered")

    def _attempts(self, partition: int, leads: Collection[bytes], oldest: datetime | None) -> Iterator[DeliveryAttempt]:
        """Yield the endpoint's attempts at these leads, read from the same partition of `nigredo.deliveries`."""
        if not leads or oldest is None or partition not in self._reader.partitions(DELIVERIES):
            return
        start = self._reader.offset_at(DELIVERIES, partition, oldest - CLOCKS_DIFFER)
        _, end = self._reader.watermarks(DELIVERIES, partition)
        for message in self._reader.between(DELIVERIES, partition, start, end):
            known = from_key(message.key())
            if known is None or known[0].bytes not in leads:
                continue
            attempt = self.topics.decode(DELIVERIES, message.value())
            if isinstance(attempt, DeliveryAttempt) and attempt.endpoint == self.endpoint:
                yield attempt

    def prospects(self) -> NextSteps:
        """Return the next steps of undelivered leads. Raises ConfigurationError for an endpoint that never began."""
        committed = self.topics.live_offsets(self.endpoint)
        waiting = self.topics.waiting(self.endpoint)
        dead = {dead.lead_id.bytes for dead in self.topics.dead() if dead.endpoint == self.endpoint}
        return NextSteps(committed, waiting, dead)

    # --- asking the sink ----------------------------------------------------------------------------------------------

    def request(self, groups: Iterable[References], why: str, progress: Callable[[int], None] = lambda _: None) -> None:
        """Write the references; return once Kafka has acknowledged all. Safe to interrupt: written ones are sent.

        why: for the audit. progress: called with the number written so far. Raises DependencyDown.
        """
        groups = list(groups)
        codec = self.topics.codec
        asyncio.run(self._write(codec, groups, why, progress))

    async def _write(
        self, codec: Codec, groups: Sequence[References], why: str, progress: Callable[[int], None]
    ) -> None:
        config = producer_config(self._settings, self._name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
        publisher = Publisher(config, in_flight_max=IN_FLIGHT_MAX)
        now, written, batch = utc_now(), 0, []
        details = {"leads": str(sum(map(len, groups))), "why": why}
        audit = AuditEntry(self._actor, "webhook.replay", self.endpoint, details, now)
        try:
            await publisher.publish(AUDIT, key=self.endpoint.encode(), value=codec.encode(AUDIT, audit))
            for references in groups:
                for lead_id, offset in references:
                    event = WebhookReplay(lead_id, self.endpoint, self._actor, now, references.partition, offset)
                    value, key = codec.encode(WEBHOOK_REPLAYS, event), key_of(lead_id, self.endpoint)
                    batch.append(
                        publisher.publish(WEBHOOK_REPLAYS, key=key, value=value, partition=references.partition)
                    )
                    if len(batch) == IN_FLIGHT_MAX:
                        await asyncio.gather(*batch)
                        written += len(batch)
                        batch = []
                        progress(written)
            await asyncio.gather(*batch)
            progress(written + len(batch))
        finally:
            await publisher.close()

    def watch(self, groups: Iterable[References]) -> ReplayProgress:
        """Return a progress watcher over these references. Call `open` to start and `close` to stop it."""
        keys = {key_of(lead_id, self.endpoint) for references in groups for lead_id, _ in references}
        return ReplayProgress(self._settings, keys)

    def sent_again(self, groups: Iterable[References], since: datetime) -> set[bytes]:
        """Return the ids (16 bytes each) of those of these leads that a replay delivered since then.

        since: by this machine's clock. Deliveries that were no replay do not count.
        """
        return self._delivered(groups, since, lambda attempt: attempt.replay)

    def delivered_since(self, groups: Iterable[References], since: datetime) -> set[bytes]:
        """Return the ids (16 bytes each) of those of these leads delivered since then. since: by the sender's clock."""
        return self._delivered(groups, since, lambda attempt: attempt.sent_at > since)

    def _delivered(
        self, groups: Iterable[References], since: datetime, counts: Callable[[DeliveryAttempt], bool]
    ) -> set[bytes]:
        delivered: set[bytes] = set()
        for references in groups:
            leads = {lead_id.bytes for lead_id, _ in references}
            attempts = self._attempts(references.partition, leads, since)
            delivered |= {a.lead_id.bytes for a in attempts if a.outcome == "delivered" and counts(a)}
        return delivered


class _Scan:
    """Scan of one partition of the leads over a range; collects `oldest` and `not_reached` on the way."""

    def __init__(self, reader: TopicReader, asked: Range, partition: int, start: int, end: int, limit: int) -> None:
        self.oldest: datetime | None = None
        """Append time of the oldest requested lead, before which no attempt at these leads can have been made."""
        self.not_reached = 0
        self._reader = reader
        self._asked = asked
        self._ids = frozenset(lead_id.bytes for lead_id in asked.ids)
        self._offsets = (partition, start, end)
        self._limit = limit

    def leads(self) -> Iterator[LeadSeen]:
        """Yield every record. Leads past the live offset count as not requested, because live delivery sends them."""
        for message in self._reader.between(LEADS, *self._offsets):
            known = from_key(message.key())
            if known is None:
                continue  # No lead: the sender parked the record.
            at = from_ms(max(0, message.timestamp()[1]))
            erased, offset = message.value() is None, message.offset() or 0
            wanted = not erased and self._wanted(known[0].bytes, at)
            if wanted and offset >= self._limit:
                wanted, self.not_reached = False, self.not_reached + 1
            if wanted and (self.oldest is None or at < self.oldest):
                self.oldest = at
            yield LeadSeen(known[0].bytes, offset, wanted, erased)

    def _wanted(self, lead_id: bytes, at: datetime) -> bool:
        if self._ids:
            return lead_id in self._ids
        since, until = self._asked.since, self._asked.until
        return (since is None or at >= since) and (until is None or at < until)


class ReplayProgress:
    """Count of pending references, updated from `open` to `close`. Holds their keys: about 150 bytes each."""

    def __init__(self, settings: Settings, keys: Collection[bytes]) -> None:
        self._keys = frozenset(keys)
        self._pending: set[bytes] = set()
        self._left = len(self._keys)
        self._loaded = False
        self._view = MaterializedView(settings, COMPONENT, WEBHOOK_REPLAYS, self)

    def open(self) -> None:
        """Start watching the topic."""
        self._view.open()

    def close(self) -> None:
        """Stop watching."""
        self._view.close()

    @property
    def left(self) -> int:
        """Number of references that the sender has not settled yet."""
        return self._left

    def begin(self) -> None:
        """Start a new load, as `MaterializedView` requires; `left` keeps its value until the load is complete."""
        self._pending, self._loaded = set(), False

    def apply(self, rows: Sequence[Row]) -> None:
        """Apply new rows: a value is a pending reference, a tombstone a settled one."""
        for row in rows:
            if row.key is not None and row.key in self._keys:
                (self._pending.discard if row.value is None else self._pending.add)(row.key)
        if self._loaded:
            self._left = len(self._pending)

    def loaded(self) -> None:
        """Complete the load: references absent from the topic are settled."""
        self._loaded = True
        self._left = len(self._pending)
