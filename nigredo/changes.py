"""Changes to `nigredo.control` by a person, each with its line in `nigredo.audit`; blocking, for commands."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from nigredo.clock import utc_now
from nigredo.control import decode_entry, key_of
from nigredo.kafka import Publisher, producer_config
from nigredo.log_reader import LogReader
from nigredo.settings import Settings
from nigredo.startup import ready_codec
from schemas.codec import Codec
from schemas.events import AuditEntry, ControlEntry
from schemas.topics import AUDIT, CONTROL

READ_DEADLINE_S = 30.0
SECRETLY = ("sha256",)
"""What the audit has no use for."""
DELIVERY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Standing:
    """An entry, and the partition it was found in."""

    entry: ControlEntry
    partition: int


class Changes:
    """Reads and changes what stands in `nigredo.control`. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, actor: str) -> None:
        """actor: who changes it, for the audit."""
        self._settings = settings
        self._actor = actor
        self._name = settings.function("control")
        self._codec: Codec | None = None

    def standing(self) -> Mapping[bytes, Standing]:
        """Return what stands now, by key; what has expired too."""
        codec, reader = self._ready_codec(), LogReader(self._settings, "control")
        found: dict[bytes, Standing] = {}
        for message in reader.read_to_end(CONTROL, reader.partitions(CONTROL), deadline_s=READ_DEADLINE_S):
            key, value = message.key(), message.value()
            if key is None:
                continue
            if value is None:
                found.pop(key, None)
            elif (entry := decode_entry(codec, key, value)) is not None:
                found[key] = Standing(entry, message.partition() or 0)
        return found

    def put(self, kind: str, name: str, value: Mapping[str, str], *, expires_at: datetime | None = None) -> None:
        """Set an entry; done when Kafka has it and its audit."""
        entry = ControlEntry(kind, name, value, set_by=self._actor, set_at=utc_now(), expires_at=expires_at)
        details = {field: text for field, text in value.items() if field not in SECRETLY}
        if expires_at is not None:
            details["expires_at"] = expires_at.isoformat()
        self._write(kind, name, entry, "set", details)

    def remove(self, kind: str, name: str) -> bool:
        """Remove an entry; return whether there was one."""
        if key_of(kind, name) not in self.standing():
            return False
        self._write(kind, name, None, "removed", {})
        return True

    def _write(self, kind: str, name: str, entry: ControlEntry | None, action: str, details: Mapping[str, str]) -> None:
        codec, key = self._ready_codec(), key_of(kind, name)
        # Where the key stands already, it goes on: a hash may have been another client's, or of fewer partitions.
        stood = self.standing().get(key)
        audit = AuditEntry(self._actor, f"{kind}.{action}", name, details, utc_now())

        async def publish() -> None:
            config = producer_config(self._settings, self._name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
            publisher = Publisher(config, in_flight_max=2)
            try:
                value = None if entry is None else codec.encode(CONTROL, entry)
                await publisher.publish(CONTROL, key=key, value=value, partition=stood.partition if stood else None)
                await publisher.publish(AUDIT, key=key, value=codec.encode(AUDIT, audit))
            finally:
                await publisher.close()

        asyncio.run(publish())

    def _ready_codec(self) -> Codec:
        if self._codec is None:
            self._codec = asyncio.run(ready_codec(self._settings, [CONTROL, AUDIT], deadline_s=10.0))
        return self._codec
