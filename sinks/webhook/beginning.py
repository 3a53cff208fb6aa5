"""An endpoint's start offsets: committed once, before its group has members, and remembered.

A group without an offset must never guess: from the end would lose leads, from the beginning would send all of them
again. So the control topic remembers which partitions were begun, and a group that lost an offset stops.
"""

from __future__ import annotations

import asyncio

from nigredo.clock import utc_now
from nigredo.errors import DependencyDown, StartRefused
from nigredo.groups import commit_offsets
from nigredo.kafka import Publisher, producer_config
from nigredo.log_reader import LogReader
from nigredo.settings import Settings
from nigredo.startup import ready_codec
from nigredo.telemetry import get_logger
from schemas.codec import Codec, Undecodable
from schemas.events import ControlEntry
from schemas.registry import RegistryUnavailable
from schemas.topics import CONTROL, LEADS
from sinks.webhook.endpoint import COMPONENT, FIRST

log = get_logger()

ENDPOINT = FIRST
KEY = f"endpoint:{ENDPOINT}"
READ_DEADLINE_S = 30.0
DELIVERY_TIMEOUT_S = 10.0


async def ensure_begun(settings: Settings) -> None:
    """Commit a start offset, the beginning, for every partition of the leads that the endpoint has not begun yet.

    Raises StartRefused when an offset that it had is gone, DependencyDown when Kafka or the registry is away.
    """
    codec = await ready_codec(settings, [CONTROL])
    reader, group = LogReader(settings, COMPONENT), settings.function(COMPONENT)
    partitions = await asyncio.to_thread(reader.partitions, LEADS)
    committed = await asyncio.to_thread(reader.committed, group, LEADS, partitions)
    begun = await asyncio.to_thread(_begun, reader, codec)
    lost = [partition for partition in sorted(begun) if committed.get(partition) is None]
    if lost:
        raise StartRefused(
            f"group {group} lost its offsets of {LEADS}, partitions {lost}; commit them with Kafka's own tools"
        )
    new = [partition for partition in partitions if partition not in begun]
    if not new:
        return
    starts = {p: (await asyncio.to_thread(reader.watermarks, LEADS, p))[0] for p in new if committed[p] is None}
    if starts:
        await asyncio.to_thread(commit_offsets, settings, group, LEADS, starts)
    await _remember(settings, codec, partitions)


def _begun(reader: LogReader, codec: Codec) -> set[int]:
    """Return the partitions that the control topic says were begun."""
    begun: set[int] = set()
    partitions = reader.partitions(CONTROL)
    for message in reader.read_to_end(CONTROL, partitions, deadline_s=READ_DEADLINE_S):
        if message.key() != KEY.encode():
            continue
        value = message.value()
        try:
            entry = None if value is None else codec.decode(CONTROL, value)
        except RegistryUnavailable as error:
            raise DependencyDown(str(error)) from error
        except Undecodable as error:
            # The last entry that can be read stands.
            log.error("a control entry cannot be read", key=KEY, offset=message.offset(), error=str(error))
            continue
        begun = {int(p) for p in entry.value["partitions"].split(",")} if isinstance(entry, ControlEntry) else set()
    return begun


async def _remember(settings: Settings, codec: Codec, partitions: list[int]) -> None:
    name = settings.function(COMPONENT)
    value = {"partitions": ",".join(map(str, partitions))}
    entry = ControlEntry("endpoint", ENDPOINT, value, set_by=name, set_at=utc_now(), expires_at=None)
    config = producer_config(settings.kafka_bootstrap_servers, name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
    publisher = Publisher(config, in_flight_max=1)
    try:
        await publisher.publish(CONTROL, key=KEY.encode(), value=codec.encode(CONTROL, entry))
    finally:
        await publisher.close()
