"""Changes to `nigredo.control` by an operator, each with an entry in `nigredo.audit`; blocking, for commands."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from nigredo.avro.codec import Codec
from nigredo.clock import utc_now
from nigredo.control.state import FALLS_BACK, beneath, covering, decode_entry, held_at, key_of
from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import Publisher, producer_config
from nigredo.kafka.topic_reader import TopicReader
from nigredo.process import ready_codec
from nigredo.settings import Settings
from schemas.events import AuditEntry, ControlEntry
from schemas.topics import AUDIT, CONTROL

READ_DEADLINE_S = 30.0
UNAUDITED_FIELDS = ("sha256",)
"""Fields of entries that are left out of the audit."""
DELIVERY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A control entry, and the partition of its record."""

    entry: ControlEntry
    partition: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one entry: set to `value`, or, when `value` is None, removed if present."""

    kind: str
    name: str
    value: Mapping[str, str] | None
    expires_at: datetime | None = None
    """End of the entry; None for a permanent one. A setting or block then falls back to its permanent entry."""


class ControlAdmin:
    """Reader and writer of `nigredo.control`. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, actor: str) -> None:
        """actor: name of the operator, for the audit."""
        self._settings = settings
        self._actor = actor
        self._name = settings.function("control")
        self._codec: Codec | None = None
        self.written: dict[int, int] = {}
        """Last offset written, by partition of the topic; a process that has applied these obeys the changes."""

    def entries(self) -> Mapping[bytes, StoredEntry]:
        """Return the current entries by key, expired ones included."""
        codec, reader = self._ready_codec(), TopicReader(self._settings, "control")
        values: dict[bytes, list[tuple[bytes, int]]] = {}
        for message in reader.read_to_end(CONTROL, reader.partitions(CONTROL), deadline_s=READ_DEADLINE_S):
            key, value = message.key(), message.value()
            if key is None:
                continue
            if value is None:
                values.pop(key, None)
            else:
                values.setdefault(key, []).append((value, message.partition() or 0))
        found: dict[bytes, StoredEntry] = {}
        for key, newest_last in values.items():
            # The newest readable value is current; older values are not decoded, so that replaced ones are not logged.
            for value, partition in reversed(newest_last):
                if (entry := decode_entry(codec, key, value)) is not None:
                    found[key] = StoredEntry(entry, partition)
                    break
        return found

    def held(self, kind: str | None = None) -> list[ControlEntry]:
        """Return the entries in effect now, of all kinds or of one, oldest first."""
        current = (stored.entry for stored in self.entries().values())
        held = held_at(utc_now(), (entry for entry in current if kind in (None, entry.kind)))
        return sorted(held, key=lambda entry: entry.set_at)

    def put(
        self, kind: str, name: str, value: Mapping[str, str], *, expires_at: datetime | None = None
    ) -> ControlEntry | None:
        """Set an entry; return the permanent entry that takes effect again after its end, if any."""
        return self.apply([Change(kind, name, value, expires_at)])[0]

    def remove(self, kind: str, name: str) -> bool:
        """Remove an entry; return whether the entry was present."""
        if key_of(kind, name) not in self.entries():
            return False
        self.apply([Change(kind, name, None)])
        return True

    def apply(self, changes: Sequence[Change]) -> list[ControlEntry | None]:
        """Write changes; return, for each change, the permanent entry that takes effect again after its end, if any.

        Returns once Kafka has acknowledged all changes and their audit entries. Raises DependencyDown when some are not
        acknowledged, with the names of those that are; repeating the call is safe.
        """
        codec, current, now = self._ready_codec(), self.entries(), utc_now()
        permanent: list[ControlEntry | None] = []
        records: list[tuple[Change, int | None, bytes | None, bytes]] = []
        for change in changes:
            existing = current.get(key_of(change.kind, change.name))
            if existing is None and change.value is None:
                permanent.append(None)
                continue
            falls_back = change.expires_at is not None and change.kind in FALLS_BACK and existing is not None
            permanent.append(beneath(existing.entry) if existing is not None and falls_back else None)
            audit = AuditEntry(self._actor, f"{change.kind}.{_action(change)}", change.name, _details(change), now)
            # An existing key keeps its partition, because another client or an earlier partition count may have hashed
            # it differently.
            partition = None if existing is None else existing.partition
            entry = self._entry(change, permanent[-1], now)
            value = None if entry is None else codec.encode(CONTROL, entry)
            records.append((change, partition, value, codec.encode(AUDIT, audit)))
        if records:
            asyncio.run(self._publish(records))
        return permanent

    def _entry(self, change: Change, permanent: ControlEntry | None, now: datetime) -> ControlEntry | None:
        if change.value is None:
            return None
        entry = ControlEntry(change.kind, change.name, change.value, self._actor, now, change.expires_at)
        return covering(entry, permanent)

    async def _publish(self, records: Sequence[tuple[Change, int | None, bytes | None, bytes]]) -> None:
        config = producer_config(self._settings, self._name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
        publisher, reader = Publisher(config, in_flight_max=2 * len(records)), TopicReader(self._settings, "control")

        async def publish(change: Change, partition: int | None, value: bytes | None, audit: bytes) -> None:
            key = key_of(change.kind, change.name)
            at = await publisher.publish(CONTROL, key=key, value=value, partition=partition)
            # An acknowledgement without an offset: the record is at or before the last offset of the partition.
            offset = at.offset if at.offset is not None else reader.watermarks(CONTROL, at.partition)[1] - 1
            self.written[at.partition] = max(offset, self.written.get(at.partition, offset))
            await publisher.publish(AUDIT, key=key, value=audit)

        try:
            answers = await asyncio.gather(*(publish(*record) for record in records), return_exceptions=True)
        finally:
            await publisher.close()
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors:
            done = [change.name for (change, *_), answer in zip(records, answers, strict=True) if answer is None]
            if isinstance(errors[0], DependencyDown) and done:
                raise DependencyDown(f"{errors[0]}; only {', '.join(done)} was changed: repeat the command")
            raise errors[0]

    def _ready_codec(self) -> Codec:
        if self._codec is None:
            self._codec = asyncio.run(ready_codec(self._settings, [CONTROL, AUDIT], deadline_s=10.0))
        return self._codec


def _action(change: Change) -> str:
    return "removed" if change.value is None else "set"


def _details(change: Change) -> Mapping[str, str]:
    details = {field: text for field, text in (change.value or {}).items() if field not in UNAUDITED_FIELDS}
    return details | ({} if change.expires_at is None else {"expires_at": change.expires_at.isoformat()})
