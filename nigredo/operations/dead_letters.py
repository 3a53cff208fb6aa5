"""Dead letters as an operator sees to them: found, put back where they came from, or discarded; blocking.

The original record goes back first, and only then the dead letter is ended: a command that is interrupted leaves the
letter, and a record that comes twice has the id it had.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from nigredo.avro.codec import Codec, Undecodable
from nigredo.clock import from_ms, utc_now
from nigredo.endpoints.keys import FIRST_ENDPOINT
from nigredo.errors import NigredoError
from nigredo.kafka.dead_letters import LEFT_OUT, READ_DEADLINE_S, Origin
from nigredo.kafka.publisher import Publisher, producer_config
from nigredo.kafka.record import Record, record_of
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.replay import ReplayService
from nigredo.operations.replay_plan import References
from nigredo.process import ready_codec
from nigredo.settings import Settings
from schemas.events import AuditEntry, DeadLetter, Event
from schemas.topics import AUDIT, DEAD_LETTERS, LEADS

COMPONENT = "dead-letters"
REGISTRY_WITHIN_S = 10.0
DELIVERY_TIMEOUT_S = 30.0
IN_FLIGHT_MAX = 10


class NotRetried(NigredoError):
    """A record that cannot be put back (yet); its dead letter stands."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A dead letter, its key, and the partition it stands in."""

    key: bytes
    partition: int
    letter: DeadLetter

    @property
    def id(self) -> str:
        """The name by which a command knows it: the function that parked it, and the record's place."""
        return self.key.decode(errors="replace")


Store = Callable[[Record, Event | None], None]
"""Stores a record's rows as the persister would. Raises NotRetried, DependencyDown."""


class DeadLetters:
    """Reads and ends dead letters. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, actor: str, store: Store) -> None:
        """actor: the person who asks, for the audit."""
        self._settings = settings
        self._actor = actor
        self._store = store
        self._reader = TopicReader(settings, COMPONENT)

    @cached_property
    def _codec(self) -> Codec:
        return asyncio.run(ready_codec(self._settings, [AUDIT, DEAD_LETTERS], deadline_s=REGISTRY_WITHIN_S))

    def waiting(self) -> list[Parked]:
        """Return the dead letters that stand, the oldest first. All of them are in memory at once."""
        standing: dict[tuple[bytes, int], bytes] = {}
        partitions = self._reader.partitions(DEAD_LETTERS)
        for message in self._reader.read_to_end(DEAD_LETTERS, partitions, deadline_s=READ_DEADLINE_S):
            at = (message.key() or b"", message.partition() or 0)
            if (value := message.value()) is None:
                standing.pop(at, None)
            else:
                standing[at] = value
        found = [Parked(key, partition, self._letter(key, value)) for (key, partition), value in standing.items()]
        return sorted(found, key=lambda parked: parked.letter.parked_at)

    def _letter(self, key: bytes, value: bytes) -> DeadLetter:
        try:
            event = self._codec.decode(DEAD_LETTERS, value)
        except Undecodable:
            event = None
        if isinstance(event, DeadLetter):
            return event
        # Of another writer: shown, so that it can be discarded.
        origin = Origin.of(key) or Origin("?", "?", 0, 0)
        nothing: dict[str, Any] = {"key": None, "value": None, "headers": ()}
        return DeadLetter(
            origin.function, "unreadable", "the dead letter itself cannot be read", origin.topic, origin.partition,
            origin.offset, origin_timestamp=from_ms(0), parked_at=from_ms(0), **nothing,
        )  # fmt: skip

    # --- the record ---------------------------------------------------------------------------------------------------

    def original(self, parked: Parked) -> Record:
        """Return the record as it was. Raises NotRetried when it is kept nowhere any more."""
        letter = parked.letter
        if letter.reason == "unreadable":
            raise NotRetried(letter.error)
        if letter.value is None and LEFT_OUT in letter.error:
            return self._from_source(letter)
        headers = tuple((header.key, header.value) for header in letter.headers)
        place = (letter.origin_topic, letter.origin_partition, letter.origin_offset)
        return Record(*place, letter.origin_timestamp, letter.key, letter.value, headers)

    def _from_source(self, letter: DeadLetter) -> Record:
        topic, partition, offset = letter.origin_topic, letter.origin_partition, letter.origin_offset
        low, end = self._reader.watermarks(topic, partition)
        if low <= offset < end:
            for message in self._reader.between(topic, partition, offset, offset + 1):
                found = record_of(message)
                same_time = found.timestamp == letter.origin_timestamp
                if found.offset == offset and found.key == letter.key and same_time:
                    return found
        raise NotRetried("its value was too large for a dead letter, and the record is gone from its topic")

    def payload(self, parked: Parked) -> Mapping[str, Any]:
        """Return what a record says, as JSON can hold it. Raises NotRetried."""
        record = self.original(parked)
        try:
            event = self._read(record)
        except NotRetried as error:
            return {"unreadable": str(error), "hex": (record.value or b"").hex()}
        return {"event": None if event is None else json.loads(json.dumps(asdict(event), default=str))}

    def _read(self, record: Record) -> Event | None:
        try:
            return None if record.value is None else self._codec.decode(record.topic, record.value)
        except (Undecodable, KeyError) as error:
            reason = str(error) if isinstance(error, Undecodable) else "its topic is none of the product's"
            raise NotRetried(f"it cannot be read yet: {reason}") from error

    # --- back, or away ------------------------------------------------------------------------------------------------

    def retry(self, parked: Sequence[Parked], done: Callable[[Parked, str | None], None]) -> None:
        """Put records back one by one; `done` is told of each, with the reason why it could not be.

        A record that the persister could not store is stored at once, a lead that a sender could not read is sent
        once more by that sender alone; all others are appended to their topic again.
        """
        asyncio.run(self._each(parked, "dead-letters.retry", self._put_back, done))

    def discard(self, parked: Sequence[Parked], done: Callable[[Parked, str | None], None]) -> None:
        """End dead letters without their records."""

        async def nothing(_: Publisher, __: Parked) -> None:
            return None

        asyncio.run(self._each(parked, "dead-letters.discard", nothing, done))

    async def _each(
        self, parked: Sequence[Parked], action: str, work: Any, done: Callable[[Parked, str | None], None]
    ) -> None:
        codec = await asyncio.to_thread(lambda: self._codec)
        name = self._settings.function(COMPONENT)
        config = producer_config(self._settings, name, delivery_timeout_s=DELIVERY_TIMEOUT_S)
        publisher = Publisher(config, in_flight_max=IN_FLIGHT_MAX)
        try:
            for one in parked:
                try:
                    await work(publisher, one)
                except NotRetried as error:
                    done(one, str(error))
                    continue
                details = {"reason": one.letter.reason, "parked_at": one.letter.parked_at.isoformat()}
                audit = AuditEntry(self._actor, action, one.id, details, utc_now())
                await publisher.publish(AUDIT, key=one.key, value=codec.encode(AUDIT, audit))
                await publisher.publish(DEAD_LETTERS, key=one.key, value=None, partition=one.partition)
                done(one, None)
        finally:
            await publisher.close()

    async def _put_back(self, publisher: Publisher, parked: Parked) -> None:
        record, function = await asyncio.to_thread(self.original, parked), parked.letter.function
        event = await asyncio.to_thread(self._read, record)
        if record.topic == LEADS and record.value is not None:
            await asyncio.to_thread(self._refuse_erased, record)
        sender = self._settings.function("webhook-sender")
        if function == self._settings.function("persister"):
            # Appended again, the lead would be sent again too.
            await asyncio.to_thread(self._store, record, event)
        elif record.topic == LEADS and (function == sender or function.startswith(f"{sender}-")):
            await asyncio.to_thread(self._send, function.removeprefix(sender).removeprefix("-"), record)
        else:
            headers = [(name, value) for name, value in record.headers if value is not None]
            await publisher.publish(
                record.topic, key=record.key, value=record.value, headers=headers, partition=record.partition
            )

    def _send(self, endpoint: str, record: Record) -> None:
        references = References(record.partition)
        references.add(UUID((record.key or b"").decode()).bytes, record.offset)
        ReplayService(self._settings, endpoint or FIRST_ENDPOINT, self._actor).request([references], "dead letters")

    def _refuse_erased(self, record: Record) -> None:
        """Raise NotRetried when the lead was erased after its record: nothing may bring the person back."""
        _, end = self._reader.watermarks(record.topic, record.partition)
        for message in self._reader.between(record.topic, record.partition, record.offset, end):
            if message.key() == record.key and message.value() is None:
                raise NotRetried("the lead was erased since; discard it")


def chosen(parked: Sequence[Parked], *, topic: str | None, reason: str | None, since: datetime | None) -> list[Parked]:
    """Return those of a topic, of a reason, parked since a time; None for any."""
    return [
        one
        for one in parked
        if topic in (None, one.letter.origin_topic)
        and reason in (None, one.letter.reason)
        and (since is None or one.letter.parked_at >= since)
    ]
