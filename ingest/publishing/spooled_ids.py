"""Schema ids of spooled submissions: a record from the spool is published under the ids of the cluster that came back.

That is most often the same cluster. A recreated cluster may pin other ids, so that the id in the record
would mean another schema.
"""

from __future__ import annotations

import asyncio

from nigredo.avro.codec import MAGIC, PREFIX
from nigredo.avro.pins import Pins, files, fits
from nigredo.components import CREATE_LEAD
from nigredo.kafka.pinned_schemas import read_pins
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings
from schemas.topics import SUBMISSIONS, spec_of

log = get_logger()


class SpooledIds:
    """Renumbers spooled submissions by the cluster's schema pins. Belongs to the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._reader = TopicReader(settings, CREATE_LEAD)
        # Every version, newest first, because a spool outlives a release.
        self._texts = files()[spec_of(SUBMISSIONS).schema][::-1]
        self._pins = Pins()

    async def refresh(self) -> int | None:
        """Read the current pins; return the id for new submissions, None when none is pinned. Raises DependencyDown."""
        self._pins = await asyncio.to_thread(read_pins, self._reader)
        return self._pins.written_id(self._texts[0])

    def value(self, value: bytes) -> bytes:
        """Return a record's value under the id pinned for its schema; unchanged where no pin fits."""
        _, schema_id = PREFIX.unpack_from(value)
        payload = value[PREFIX.size :]
        pin = self._pins.get(schema_id)
        if pin is not None and fits(pin.text, payload):
            return value
        for text in self._texts:
            found = self._pins.written_id(text)
            if found is not None and fits(text, payload):
                log.warning("spooled submission renumbered to another schema id", before=schema_id, now=found)
                return PREFIX.pack(MAGIC, found) + payload
        return value
