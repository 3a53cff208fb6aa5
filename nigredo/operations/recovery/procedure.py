"""Recovery of the pipeline after a disaster to the log: the way back to work; blocking.

Windows and offsets are set to the log as it is, and accepted leads that the log lost are brought back. The persister
needs no repair: its writes are idempotent, so it reads a log that is not its own from the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from itertools import chain, islice
from types import MappingProxyType
from uuid import UUID

from aiokafka.partitioner import murmur2

from nigredo.avro.encoded_window import decode_window, encode_window
from nigredo.clock import utc_now
from nigredo.endpoints.keys import sender_group
from nigredo.kafka.batch_publisher import BatchPublisher, Outgoing
from nigredo.kafka.cloudevents import cloud_event
from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.kafka.publisher import producer_config
from nigredo.kafka.topic_admin import add_partitions, ensure_topics
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import LogPosition, proven, to_metadata
from nigredo.operations.group_drain import drained
from nigredo.operations.recovery.lost_leads import NO_OFFSET, stored_leads
from nigredo.operations.recovery.plan import Restart, lowered
from nigredo.operations.recovery.reading import READ_DEADLINE_S, as_ms
from nigredo.operations.recovery.survey import COMPONENT, Condition, FirstOffsets, SenderRestart, Survey
from nigredo.operations.rewind import DatabaseOffsets
from nigredo.operations.schema_ids import ensure_schemas
from nigredo.plural import counted
from nigredo.rate_limit.latest_windows import OF_NO_RECORD
from nigredo.settings import Settings
from schemas.topics import (
    DELIVERIES,
    LEADS,
    RATE_LIMITS,
    SUBMISSIONS,
    TOPICS,
    retry_topics,
)

AWAY_AT_MOST = timedelta(minutes=10)
"""Longer than the rewriting of many windows takes; the members come back earlier when it is done."""
BATCH_MAX = 5000
CLOCKS_DIFFER_MS = 60_000
NO_FIELDS: Mapping[str, str] = MappingProxyType({})
Tell = Callable[[str], None]


class Recovery:
    """One run of the command. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, endpoints: Sequence[str], actor: str, first_offsets: FirstOffsets) -> None:
        """endpoints: names of those that receive webhooks. actor: who repairs, for the audit."""
        self._settings = settings
        self._endpoints = endpoints
        self._actor = actor
        self._reader = TopicReader(settings, COMPONENT)
        self._survey = Survey(settings, endpoints, first_offsets)

    def look(self) -> Condition:
        """Return the condition of the pipeline; changes nothing."""
        return self._survey.look()

    def repair(self, tell: Tell) -> Condition:
        """Set everything to the log as it is; return the condition afterwards. Safe to interrupt and to repeat.

        Raises DependencyDown when Kafka, PostgreSQL or a group's members do not answer in time.
        """
        found = self._survey.look()
        if found.missing_topics:
            retries = {topic: spec for name in self._endpoints for topic, spec in retry_topics(name).items()}
            changes = ensure_topics(self._settings, dict(TOPICS) | retries)
            for change in changes + ensure_schemas(self._settings, self._endpoints):
                tell(change)
            found = self._survey.look()
        if found.uneven:
            add_partitions(self._settings, {topic: wanted for topic, (_, wanted) in found.uneven.items()})
            tell(f"added partitions to {', '.join(found.uneven)}")
            found = self._survey.look()
        if any(restart.group == self._survey.limiter for restart in found.restarts):
            self._repair_limiter(tell)
        for name in self._endpoints:
            if any(restart.group == sender_group(self._settings, name) for restart in found.restarts):
                self._repair_sender(name, tell)
        if any(restart.group == self._survey.persister for restart in found.restarts):
            self._repair_persister(tell)
        if found.lost:
            self._bring_back(set(found.lost), tell)
        return self._survey.look()

    def _repair_limiter(self, tell: Tell) -> None:
        with drained(
            self._settings, self._survey.limiter, self._actor, tell, note="recover", at_most=AWAY_AT_MOST
        ) as in_time:
            # Only now: until its members had left, partitions that were well went on.
            restarts = self._survey.limiter_restarts()
            for restart in restarts:
                rewritten = asyncio.run(self._publish(self._lowered(restart)))
                windows = counted(rewritten // 2, "window")
                tell(f"{RATE_LIMITS} partition {restart.partition}: {windows} set to {restart.goes_to}")
            if any(one.stands_at is None for one in restarts):
                copied = asyncio.run(self._publish(self._moved()))
                tell(f"{RATE_LIMITS}: {counted(copied, 'window')} copied to where the networks' submissions are now")
            in_time()
            for restart in restarts:
                self._commit(restart)
        tell(f"{self._survey.limiter} goes on: {_offsets(restarts)}")

    def _lowered(self, restart: Restart) -> Iterator[Outgoing]:
        """Yield windows that are past a restart: a tombstone, then the same window without an input offset.

        Of several windows of a network the one that read furthest wins, so that only a tombstone makes room for a
        lower one. No limiter runs in between.
        """
        codec = self._survey.reading.codec()
        for value in list(self._survey.reading.windows(restart.partition)):
            state = lowered(decode_window(codec, value), restart.windows_from)
            if state is not None:
                key = state.client_network.encode()
                yield Outgoing(RATE_LIMITS, key, None, partition=restart.partition)
                yield Outgoing(RATE_LIMITS, key, encode_window(codec, state), partition=restart.partition)

    def _moved(self) -> Iterator[Outgoing]:
        """Yield the windows of networks whose submissions go to other partitions since some were added.

        A number that was not multiplied moves networks among the old ones too. The window in the network's former
        partition stays: its last submissions may still be there. A network that has a window in its new one keeps
        that: of two under one key, compaction leaves the later record, whatever its offset says.
        """
        codec, partitions = self._survey.reading.codec(), self._reader.partitions(SUBMISSIONS)
        known = [set(map(self._network, self._survey.reading.windows(number))) for number in partitions]
        for partition in partitions:
            for value in list(self._survey.reading.windows(partition)):
                state = decode_window(codec, value)
                key = state.client_network.encode()
                target = partition_of(key, len(partitions))
                if target != partition and key not in known[target]:
                    known[target].add(key)
                    moved = replace(state, input_offset=OF_NO_RECORD)
                    yield Outgoing(RATE_LIMITS, key, encode_window(codec, moved), partition=target)

    def _network(self, value: bytes) -> bytes:
        return decode_window(self._survey.reading.codec(), value).client_network.encode()

    def _repair_sender(self, name: str, tell: Tell) -> None:
        group = sender_group(self._settings, name)
        with drained(self._settings, group, self._actor, tell, note="recover", at_most=AWAY_AT_MOST) as in_time:
            # Found to need it, and without members by now, which were a sign of it.
            leads, references = self._survey.sender_repair(name)
            for one in leads:
                number, off_record = one.restart.partition, one.off_record
                asyncio.run(self._publish(self._on_record_again(name, dict.fromkeys(off_record, number))))
                if off_record:
                    deliveries = counted(len(off_record), "delivery", "deliveries")
                    tell(f"{DELIVERIES} partition {number}: put {deliveries} on record again")
            in_time()
            for one in leads:
                self._commit(one.restart, _counts_since(one))
            for restart in references:
                self._commit(restart)
        tell(f"{group} goes on: {_offsets([*(one.restart for one in leads), *references])}")

    def _on_record_again(self, name: str, partitions: Mapping[bytes, int]) -> Iterator[Outgoing]:
        """Yield known deliveries of leads, under the attempts' ids, to the partitions in which the sender looks."""
        codec = self._survey.reading.codec()
        for attempt in self._survey.deliveries_of(name, [UUID(bytes=lead_id) for lead_id in partitions]):
            number = partitions[attempt.lead_id.bytes]
            value = codec.encode(DELIVERIES, replace(attempt, lead_partition=number, lead_offset=NO_OFFSET))
            yield Outgoing(DELIVERIES, str(attempt.lead_id).encode(), value, partition=number)

    def _repair_persister(self, tell: Tell) -> None:
        group = self._survey.persister
        with drained(self._settings, group, self._actor, tell, note="recover") as in_time:
            restarts = self._survey.persister_restarts()
            in_time()
            DatabaseOffsets(self._settings).set_back({(one.topic, one.partition): one.goes_to for one in restarts})
        tell(f"{group} goes on: {_offsets(restarts)}")

    def _commit(self, restart: Restart, fields: Mapping[str, str] = NO_FIELDS) -> None:
        topic, number = restart.topic, restart.partition
        position = LogPosition(restart.goes_to, self._reader.topic_ids([topic]).get(topic))
        # With its proof at once: the log may lose records before the group reads one.
        position = proven(position, self._reader.now(topic, number, position.asks_at, deadline_s=READ_DEADLINE_S))
        metadata = {number: to_metadata(position, **fields)}
        commit_offsets(self._settings, restart.group, topic, {number: restart.goes_to}, metadata)

    def _bring_back(self, lost: set[UUID], tell: Tell) -> None:
        """Publish accepted leads that the log lost, under their ids: an endpoint that took one skips it."""
        many, partitions = len(lost), len(self._reader.partitions(LEADS))
        with ExitStack() as away:
            for name in self._endpoints:
                took = {row.bytes: partition_of(str(row).encode(), partitions) for row in self._survey.took(name, lost)}
                if not took:
                    continue
                # A sender reads what was delivered when it joins.
                group = sender_group(self._settings, name)
                away.enter_context(
                    drained(self._settings, group, self._actor, tell, note="recover", at_most=AWAY_AT_MOST)
                )
                asyncio.run(self._publish(self._on_record_again(name, took)))
            asyncio.run(self._publish(self._lost_leads(lost)))
        tell(f"brought {counted(many - len(lost), 'lead')} back to {LEADS}")

    def _lost_leads(self, lost: set[UUID]) -> Iterator[Outgoing]:
        """Yield leads that are lost, and take them out of the set."""
        codec, name = self._survey.reading.codec(), self._settings.function(COMPONENT)
        known = self._survey.reading.lead_ids() - {lead_id.bytes for lead_id in lost}
        stored = (lead for lead, _, _ in stored_leads(self._settings))
        for lead in chain(stored, self._survey.accepted_only(known)):
            if lead.id in lost:
                lost.discard(lead.id)  # Stored leads are accepted ones too.
                headers = cloud_event("lead.created", lead.id, name, lead.submitted_at)
                yield Outgoing(LEADS, str(lead.id).encode(), codec.encode(LEADS, lead), headers)

    async def _publish(self, records: Iterator[Outgoing]) -> int:
        """Return how many records were published, once Kafka has all of them. Raises DependencyDown."""
        name, many = self._settings.function(COMPONENT), 0
        config = producer_config(self._settings, name, delivery_timeout_s=READ_DEADLINE_S)
        publisher = BatchPublisher(config, in_flight_max=1)
        try:
            while batch := await asyncio.to_thread(lambda: list(islice(records, BATCH_MAX))):
                await publisher.publish_all(batch)
                many += len(batch)
        finally:
            await publisher.close()
        return many


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key as every producer of the product chooses it: murmur2, in Kafka's own way."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def _counts_since(restart: SenderRestart) -> Mapping[str, str]:
    """Return since when deliveries count as made: from before the oldest one of a lead that comes again."""
    now_ms = as_ms(utc_now())
    since_ms = min(now_ms, now_ms if restart.delivered_since_ms is None else restart.delivered_since_ms)
    return {"since": str(max(0, since_ms - CLOCKS_DIFFER_MS))}


def _offsets(restarts: Sequence[Restart]) -> str:
    return ", ".join(f"{one.topic}[{one.partition}] at {one.goes_to}" for one in restarts) or "nothing had to be set"
