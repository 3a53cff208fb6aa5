"""Ids of spooled submissions: a record that waited on disk for Kafka goes out under the ids of the cluster that came.

Most often that is the cluster that went. One that was made anew may have other pins, and by them the number in the
record would be another schema's.
"""

from __future__ import annotations

import asyncio

from nigredo.avro.codec import MAGIC, PREFIX
from nigredo.avro.pins import Pins, files, fits
from nigredo.kafka.pinned_schemas import read_pins
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.topics import SUBMISSIONS, spec_of

log = get_logger()


class SpooledIds:
    """The pins that spooled submissions are held against. Belongs to the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._reader = TopicReader(settings, "create-lead")
        # Any of them may have spooled it: a spool outlives a release.
        self._texts = files()[spec_of(SUBMISSIONS).schema][::-1]
        self._pins = Pins()

    async def refresh(self) -> int | None:
        """Read the pins as they are; return the id under which new submissions are written. Raises DependencyDown."""
        self._pins = await asyncio.to_thread(read_pins, self._reader)
        return self._pins.written_id(self._texts[0])

    def value(self, value: bytes) -> bytes:
        """Return a record's value under an id that means its schema; as it is where no such id is found."""
        _, schema_id = PREFIX.unpack_from(value)
        payload = value[PREFIX.size :]
        pin = self._pins.get(schema_id)
        if pin is not None and fits(pin.text, payload):
            return value
        for text in self._texts:
            found = self._pins.written_id(text)
            if found is not None and fits(text, payload):
                log.warning("a spooled submission goes out under another schema id", before=schema_id, now=found)
                return PREFIX.pack(MAGIC, found) + payload
        return value
