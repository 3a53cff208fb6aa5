"""Start offsets and topics of an endpoint: created once, before its group has members, and recorded in Kafka.

A group without an offset must never guess one: starting at the end would lose leads, at the beginning would send all
of them again. So the control topic records the partitions of `nigredo.leads` that were started, and a group that lost
an offset does not start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from nigredo.avro.codec import Codec, Undecodable
from nigredo.clock import utc_now
from nigredo.components import WEBHOOK_SENDER
from nigredo.control.state import ENDPOINT
from nigredo.endpoints.endpoint import NOW, Endpoint
from nigredo.endpoints.start import FIRST
from nigredo.errors import StartRefused
from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.kafka.publisher import Publisher, producer_config
from nigredo.kafka.topic_admin import ensure_topics
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import REPAIR
from nigredo.observability.logs import get_logger
from nigredo.plural import counted
from nigredo.process import ready_codec
from nigredo.settings import Settings
from schemas.events import ControlEntry
from schemas.topics import CONTROL, DELIVERIES, LEADS, WEBHOOK_DEAD, WEBHOOK_REPLAYS, retry_topics

log = get_logger()

READ_DEADLINE_S = 30.0
DELIVERY_TIMEOUT_S = 10.0


async def ensure_start_offsets(settings: Settings, endpoint: Endpoint) -> None:
    """Create the endpoint's retry topics, and commit a start offset for every partition that has none.

    `nigredo.leads` starts where the endpoint's settings say; retries and replays start at the beginning of their
    topics, because settled ones are compacted away. Raises StartRefused when a committed offset is lost,
    DependencyDown when Kafka is unavailable.
    """
    retries = retry_topics(endpoint.name)
    await asyncio.to_thread(ensure_topics, settings, retries)
    await _start_leads(settings, endpoint)
    await asyncio.to_thread(_start_references, settings, endpoint.function(settings), [*retries, WEBHOOK_REPLAYS])


async def _start_leads(settings: Settings, endpoint: Endpoint) -> None:
    codec = await ready_codec(settings, [CONTROL])
    reader, group, key = (
        TopicReader(settings, WEBHOOK_SENDER),
        endpoint.function(settings),
        f"{ENDPOINT}:{endpoint.name}",
    )
    partitions = await asyncio.to_thread(reader.partitions, LEADS)
    committed = await asyncio.to_thread(reader.committed, group, LEADS, partitions)
    entry = await asyncio.to_thread(_entry, reader, codec, key)
    started = set() if entry is None else {int(p) for p in entry.value["partitions"].split(",")}
    lost = [partition for partition in sorted(started) if committed.get(partition) is None]
    if lost:
        raise StartRefused(f"group {group} lost its offsets of {LEADS}, partitions {lost}; repair it with: {REPAIR}")
    new = [partition for partition in partitions if partition not in started]
    if not new:
        return
    # Partitions that were added later start at their beginning: all of their leads are newer than the endpoint.
    end = 1 if endpoint.start == NOW and not started else 0
    starts = {p: (await asyncio.to_thread(reader.watermarks, LEADS, p))[end] for p in new if committed[p] is None}
    if starts:
        await asyncio.to_thread(commit_offsets, settings, group, LEADS, starts)
    if started or endpoint.start != NOW:
        first = {} if entry is None else {name: entry.value[name] for name in FIRST if name in entry.value}
    else:
        first = {"since": utc_now().isoformat(), "starts": ",".join(f"{p}:{at}" for p, at in starts.items())}
    await _record(settings, codec, endpoint, partitions, first)


def _start_references(settings: Settings, group: str, topics: Sequence[str]) -> None:
    """Commit start offsets of the reference topics; blocking.

    Raises StartRefused when a topic has fewer partitions than `nigredo.leads`, because a lead's references and attempts
    are written to the lead's partition number.
    """
    reader = TopicReader(settings, WEBHOOK_SENDER)
    leads = reader.partitions(LEADS)
    found = {topic: reader.partitions(topic) for topic in (*topics, DELIVERIES, WEBHOOK_DEAD)}
    for topic, partitions in found.items():
        if len(partitions) < len(leads):
            raise StartRefused(
                f"{topic} has {counted(len(partitions), 'partition')} and {LEADS} {len(leads)}: add the missing ones"
            )
    for topic in topics:
        partitions = found[topic]
        committed = reader.committed(group, topic, partitions)
        starts = {p: reader.watermarks(topic, p)[0] for p in partitions if committed[p] is None}
        if starts:
            commit_offsets(settings, group, topic, starts)


def _entry(reader: TopicReader, codec: Codec, key: str) -> ControlEntry | None:
    """Return the newest decodable control entry of an endpoint; None without one or after a tombstone. Blocking."""
    found: ControlEntry | None = None
    partitions = reader.partitions(CONTROL)
    for message in reader.read_to_end(CONTROL, partitions, deadline_s=READ_DEADLINE_S):
        if message.key() != key.encode():
            continue
        value = message.value()
        try:
            entry = None if value is None else codec.decode(CONTROL, value)
        except Undecodable as error:
            # The newest entry that can be decoded is current.
            log.error("a control entry cannot be read", key=key, offset=message.offset(), error=str(error))
            continue
        found = entry if isinstance(entry, ControlEntry) else None
    return found


async def _record(
    settings: Settings, codec: Codec, endpoint: Endpoint, partitions: list[int], first: Mapping[str, str]
) -> None:
    name = endpoint.function(settings)
    value = {"partitions": ",".join(map(str, partitions)), **first}
    entry = ControlEntry(ENDPOINT, endpoint.name, value, set_by=name, set_at=utc_now(), expires_at=None)
    config = producer_config(settings, name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
    publisher = Publisher(config, in_flight_max=1)
    try:
        await publisher.publish(CONTROL, key=f"{ENDPOINT}:{endpoint.name}".encode(), value=codec.encode(CONTROL, entry))
    finally:
        await publisher.close()
