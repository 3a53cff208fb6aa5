"""Recovery of the pipeline after a disaster to the log, as `nigredo recover` runs it; blocking.

Sets windows and offsets to the present log and publishes accepted leads again that the log lost. The persister needs a
repair only for leads deleted unread: its writes are idempotent, so it reads a foreign log from the start.
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
"""Longest absence of a group's members; rewriting many windows takes less, and they rejoin as soon as it is done."""
BATCH_MAX = 5000
CLOCKS_DIFFER_MS = 60_000
NO_FIELDS: Mapping[str, str] = MappingProxyType({})
Report = Callable[[str], None]
"""Called with each step as a line for the operator."""


class Recovery:
    """One run of the command. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, endpoints: Sequence[str], actor: str, first_offsets: FirstOffsets) -> None:
        """endpoints: names of the endpoints that receive webhooks. actor: the operator, for the audit."""
        self._settings = settings
        self._endpoints = endpoints
        self._actor = actor
        self._reader = TopicReader(settings, COMPONENT)
        self._survey = Survey(settings, endpoints, first_offsets)

    def look(self) -> Condition:
        """Return the condition of the pipeline; changes nothing."""
        return self._survey.look()

    def repair(self, report: Report) -> Condition:
        """Set topics, offsets, windows and leads to the present log; return the new condition. Safe to repeat.

        Safe to interrupt. Raises DependencyDown when Kafka, PostgreSQL or a group's members do not answer in time.
        """
        found = self._survey.look()
        if found.missing_topics:
            retries = {topic: spec for name in self._endpoints for topic, spec in retry_topics(name).items()}
            changes = ensure_topics(self._settings, dict(TOPICS) | retries)
            for change in changes + ensure_schemas(self._settings, self._endpoints):
                report(change)
            found = self._survey.look()
        if found.uneven:
            add_partitions(self._settings, {topic: wanted for topic, (_, wanted) in found.uneven.items()})
            report(f"added partitions to {', '.join(found.uneven)}")
            found = self._survey.look()
        if any(restart.group == self._survey.limiter for restart in found.restarts):
            self._repair_limiter(report)
        for name in self._endpoints:
            if any(restart.group == sender_group(self._settings, name) for restart in found.restarts):
                self._repair_sender(name, report)
        if any(restart.group == self._survey.persister for restart in found.restarts):
            self._repair_persister(report)
        if found.lost:
            self._bring_back(set(found.lost), report)
        return self._survey.look()

    def _repair_limiter(self, report: Report) -> None:
        with drained(
            self._settings, self._survey.limiter, self._actor, report, note="recover", at_most=AWAY_AT_MOST
        ) as in_time:
            # Looked up only now, because the healthy partitions were processed until the members had left.
            restarts = self._survey.limiter_restarts()
            for restart in restarts:
                rewritten = asyncio.run(self._publish(self._lowered(restart)))
                windows = counted(rewritten // 2, "window")
                report(f"{RATE_LIMITS} partition {restart.partition}: {windows} set to {restart.goes_to}")
            if any(restart.stands_at is None for restart in restarts):
                copied = asyncio.run(self._publish(self._moved()))
                report(f"{RATE_LIMITS}: {counted(copied, 'window')} copied to the networks' present partitions")
            in_time()
            for restart in restarts:
                self._commit(restart)
        report(f"{self._survey.limiter} continues: {_offsets(restarts)}")

    def _lowered(self, restart: Restart) -> Iterator[Outgoing]:
        """Yield the windows beyond a restart offset: for each a tombstone, then the window without an input offset.

        The tombstone is needed because readers keep the window with the highest input offset. No limiter runs in
        between.
        """
        codec = self._survey.reading.codec()
        for value in list(self._survey.reading.windows(restart.partition)):
            state = lowered(decode_window(codec, value), restart.windows_from)
            if state is not None:
                key = state.client_network.encode()
                yield Outgoing(RATE_LIMITS, key, None, partition=restart.partition)
                yield Outgoing(RATE_LIMITS, key, encode_window(codec, state), partition=restart.partition)

    def _moved(self) -> Iterator[Outgoing]:
        """Yield copies of windows for networks whose submissions have another partition since some were added.

        Unless the number of partitions was multiplied, networks move among the old partitions too. The window in the
        former partition stays, because the network's last submissions may still be there. A network that already has
        a window in its new partition gets no copy, because compaction would keep the copy and drop that window.
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

    def _repair_sender(self, name: str, report: Report) -> None:
        group = sender_group(self._settings, name)
        with drained(self._settings, group, self._actor, report, note="recover", at_most=AWAY_AT_MOST) as in_time:
            # The group is known to have begun, although its members, a sign of that, have left by now.
            leads, references = self._survey.sender_repair(name)
            for sender in leads:
                number, off_record = sender.restart.partition, sender.off_record
                asyncio.run(self._publish(self._republished_deliveries(name, dict.fromkeys(off_record, number))))
                if off_record:
                    deliveries = counted(len(off_record), "delivery", "deliveries")
                    report(f"{DELIVERIES} partition {number}: {deliveries} published again")
            in_time()
            for sender in leads:
                self._commit(sender.restart, _counts_since(sender))
            for restart in references:
                self._commit(restart)
        report(f"{group} continues: {_offsets([*(sender.restart for sender in leads), *references])}")

    def _republished_deliveries(self, name: str, partitions: Mapping[bytes, int]) -> Iterator[Outgoing]:
        """Yield known deliveries again, under their attempt ids. partitions: where the sender looks, by lead id."""
        codec = self._survey.reading.codec()
        for attempt in self._survey.deliveries_of(name, [UUID(bytes=lead_id) for lead_id in partitions]):
            number = partitions[attempt.lead_id.bytes]
            value = codec.encode(DELIVERIES, replace(attempt, lead_partition=number, lead_offset=NO_OFFSET))
            yield Outgoing(DELIVERIES, str(attempt.lead_id).encode(), value, partition=number)

    def _repair_persister(self, report: Report) -> None:
        group = self._survey.persister
        with drained(self._settings, group, self._actor, report, note="recover") as in_time:
            restarts = self._survey.persister_restarts()
            in_time()
            offsets = {(restart.topic, restart.partition): restart.goes_to for restart in restarts}
            DatabaseOffsets(self._settings).set_back(offsets)
        report(f"{group} continues: {_offsets(restarts)}")

    def _commit(self, restart: Restart, fields: Mapping[str, str] = NO_FIELDS) -> None:
        topic, number = restart.topic, restart.partition
        position = LogPosition(restart.goes_to, self._reader.topic_ids([topic]).get(topic))
        # Committed with its proof, because the log may lose records again before the group reads one.
        position = proven(position, self._reader.now(topic, number, position.asks_at, deadline_s=READ_DEADLINE_S))
        metadata = {number: to_metadata(position, **fields)}
        commit_offsets(self._settings, restart.group, topic, {number: restart.goes_to}, metadata)

    def _bring_back(self, lost: set[UUID], report: Report) -> None:
        """Publish accepted leads that the log lost, under their ids, so that an endpoint that has a lead skips it."""
        total, partitions = len(lost), len(self._reader.partitions(LEADS))
        with ExitStack() as away:
            for name in self._endpoints:
                delivered = self._survey.delivered_among(name, lost)
                if not delivered:
                    continue
                # The sender must leave and rejoin, because a sender reads past deliveries only when it joins.
                group = sender_group(self._settings, name)
                away.enter_context(
                    drained(self._settings, group, self._actor, report, note="recover", at_most=AWAY_AT_MOST)
                )
                to = {lead_id.bytes: partition_of(str(lead_id).encode(), partitions) for lead_id in delivered}
                asyncio.run(self._publish(self._republished_deliveries(name, to)))
            asyncio.run(self._publish(self._lost_leads(lost)))
        report(f"brought {counted(total - len(lost), 'lead')} back to {LEADS}")

    def _lost_leads(self, lost: set[UUID]) -> Iterator[Outgoing]:
        """Yield the lost leads, and remove each from the set."""
        codec, name = self._survey.reading.codec(), self._settings.function(COMPONENT)
        known = self._survey.reading.lead_ids() - {lead_id.bytes for lead_id in lost}
        stored = (lead for lead, _, _ in stored_leads(self._settings))
        for lead in chain(stored, self._survey.accepted_only(known)):
            if lead.id in lost:
                lost.discard(lead.id)  # `accepted_only` may yield a stored lead again.
                headers = cloud_event("lead.created", lead.id, name, lead.submitted_at)
                yield Outgoing(LEADS, str(lead.id).encode(), codec.encode(LEADS, lead), headers)

    async def _publish(self, records: Iterator[Outgoing]) -> int:
        """Publish the records; return their number once Kafka has acknowledged all. Raises DependencyDown."""
        name, published = self._settings.function(COMPONENT), 0
        config = producer_config(self._settings, name, delivery_timeout_s=READ_DEADLINE_S)
        publisher = BatchPublisher(config, in_flight_max=1)
        try:
            while batch := await asyncio.to_thread(lambda: list(islice(records, BATCH_MAX))):
                await publisher.publish_all(batch)
                published += len(batch)
        finally:
            await publisher.close()
        return published


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key as every producer of the product chooses it: murmur2, as in Kafka's Java client."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def _counts_since(restart: SenderRestart) -> Mapping[str, str]:
    """Return the metadata field `since`: ms from which deliveries count, before the oldest of a lead read again."""
    now_ms = as_ms(utc_now())
    since_ms = min(now_ms, now_ms if restart.delivered_since_ms is None else restart.delivered_since_ms)
    return {"since": str(max(0, since_ms - CLOCKS_DIFFER_MS))}


def _offsets(restarts: Sequence[Restart]) -> str:
    at = (f"{restart.topic}[{restart.partition}] at {restart.goes_to}" for restart in restarts)
    return ", ".join(at) or "no offset had to be set"
