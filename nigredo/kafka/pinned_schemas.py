"""Schema look-up by the pins in the cluster's own log (`nigredo.schemas`), and the writing of pins.

The registry is asked only for an id that is not pinned, which means a record written by a foreign producer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from nigredo.avro.pins import Pin, PinBroken, Pins, pin_of, text_of
from nigredo.avro.registry import SchemaUnknown
from nigredo.avro.registry_client import open_registry
from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import Publisher, producer_config
from nigredo.kafka.topic_reader import TopicReader
from nigredo.settings import Settings
from schemas.topics import SCHEMAS

PARTITION = 0
READ_DEADLINE_S = 10.0
UNKNOWN_AFTER_S = 5.0
"""An id found neither in the pins nor in the registry for this long is unknown."""
UNKNOWN_CACHED_S = 60.0
"""An unknown id is not looked up again for this long."""
UNKNOWN_MAX = 1000
"""Unknown ids cached at a time."""
DELIVERY_TIMEOUT_S = 10.0


class PinnedSchemas:
    """The `Schemas` of a `Codec`, from the pins and then the registry. Thread-safe; every call may block."""

    def __init__(self, settings: Settings, component: str = "schemas") -> None:
        self._reader = TopicReader(settings, component)
        self._registry = open_registry(settings)
        self._pins = Pins()
        self._unknown: dict[int, float] = {}

    def id_of(self, subject: str, schema: Any) -> int:
        """Return the id to write for a schema. Raises SchemaUnknown while it is not pinned, DependencyDown."""
        text = text_of(schema)
        found = self._pins.written_id(text)
        if found is None:
            self._pins = read_pins(self._reader)
            found = self._pins.written_id(text)
        if found is None:
            raise SchemaUnknown(f"{SCHEMAS} has no id for the schema of {subject} yet: `nigredo topics ensure`")
        return found

    def schema_of(self, schema_id: int) -> Any:
        """Return the schema of an id. Blocks, retrying for at most `UNKNOWN_AFTER_S` beyond the calls themselves.

        Raises SchemaUnknown when neither the pins nor the registry have the id after the retries, and for a schema that
        is not Avro; DependencyDown while Kafka or the registry does not answer.
        """
        if (pin := self._pins.get(schema_id)) is not None:
            return json.loads(pin.text)
        if self._unknown.get(schema_id, 0.0) > time.monotonic():
            raise SchemaUnknown("neither pinned nor known to the registry")
        backoff, deadline = Backoff(longest_s=1.0), time.monotonic() + UNKNOWN_AFTER_S
        while True:
            self._pins = read_pins(self._reader)
            if (pin := self._pins.get(schema_id)) is not None:
                return json.loads(pin.text)
            try:
                kind, text = self._registry.kind_of(schema_id)
            except SchemaUnknown:
                wait_s = backoff.next_wait_s()
                if time.monotonic() + wait_s > deadline:
                    break
                time.sleep(wait_s)
            else:
                if kind != "AVRO":
                    raise SchemaUnknown(f"{kind}, not Avro")
                return json.loads(text)
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown[schema_id] = time.monotonic() + UNKNOWN_CACHED_S
        raise SchemaUnknown("neither pinned nor known to the registry")


def read_pins(reader: TopicReader) -> Pins:
    """Return the cluster's current pins. Blocks. Raises DependencyDown, also for pins that contradict each other."""
    pins = Pins()
    reader.partitions(SCHEMAS)  # Raises for a missing topic, which must not look like an empty partition.
    for message in reader.read_to_end(SCHEMAS, [PARTITION], deadline_s=READ_DEADLINE_S):
        try:
            pins.add(pin_of(message.key(), message.value()))
        except PinBroken as error:
            raise DependencyDown(f"{SCHEMAS} offset {message.offset()}: {error}") from error
    return pins


def write_pins(settings: Settings, pins: Sequence[Pin]) -> None:
    """Write pins in this order and return once Kafka has acknowledged all. Blocks. Raises DependencyDown."""
    if not pins:
        return

    async def publish() -> None:
        name = settings.function("schemas")
        config = producer_config(settings, name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
        publisher = Publisher(config, in_flight_max=1)
        try:
            for pin in pins:
                # One after the other, so that after a crash the next run writes the missing rest.
                await publisher.publish(SCHEMAS, key=pin.key, value=pin.value, partition=PARTITION)
        finally:
            await publisher.close()

    asyncio.run(publish())
