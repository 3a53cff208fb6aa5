"""Dead letters for operators: list, retry or discard parked records; blocking.

A retry first processes or publishes the original record and then removes the dead letter, so that an interrupted
command leaves the dead letter. A record that is retried twice has the same id and is deduplicated.
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
from nigredo.components import PERSISTER, WEBHOOK_SENDER
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
    """The record cannot be retried, or not yet; its dead letter stays."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A dead letter with its key and its partition of `nigredo.dead-letters`."""

    key: bytes
    partition: int
    letter: DeadLetter

    @property
    def id(self) -> str:
        """Id for commands: the function that parked the record, and the record's topic, partition and offset."""
        return self.key.decode(errors="replace")


Store = Callable[[Record, Event | None], None]
"""Stores a record's rows as the persister would. Raises NotRetried, DependencyDown."""


class DeadLetters:
    """Lists, retries and discards dead letters. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, actor: str, store: Store) -> None:
        """actor: the operator, for the audit. store: stores the record of a dead letter that the persister parked."""
        self._settings = settings
        self._actor = actor
        self._store = store
        self._reader = TopicReader(settings, COMPONENT)

    @cached_property
    def _codec(self) -> Codec:
        return asyncio.run(ready_codec(self._settings, [AUDIT, DEAD_LETTERS], deadline_s=REGISTRY_WITHIN_S))

    def waiting(self) -> list[Parked]:
        """Return the dead letters that are parked, oldest first. All of them are in memory at once."""
        parked: dict[tuple[bytes, int], bytes] = {}
        partitions = self._reader.partitions(DEAD_LETTERS)
        for message in self._reader.read_to_end(DEAD_LETTERS, partitions, deadline_s=READ_DEADLINE_S):
            at = (message.key() or b"", message.partition() or 0)
            if (value := message.value()) is None:
                parked.pop(at, None)
            else:
                parked[at] = value
        found = [Parked(key, partition, self._letter(key, value)) for (key, partition), value in parked.items()]
        return sorted(found, key=lambda each: each.letter.parked_at)

    def _letter(self, key: bytes, value: bytes) -> DeadLetter:
        try:
            event = self._codec.decode(DEAD_LETTERS, value)
        except Undecodable:
            event = None
        if isinstance(event, DeadLetter):
            return event
        # Written by an unknown producer: listed, so that an operator can discard it.
        origin = Origin.of(key) or Origin("?", "?", 0, 0)
        nothing: dict[str, Any] = {"key": None, "value": None, "headers": ()}
        return DeadLetter(
            origin.function, "unreadable", "the dead letter itself cannot be read", origin.topic, origin.partition,
            origin.offset, origin_timestamp=from_ms(0), parked_at=from_ms(0), **nothing,
        )  # fmt: skip

    # --- the record ---------------------------------------------------------------------------------------------------

    def original(self, parked: Parked) -> Record:
        """Return the original record. Raises NotRetried when no copy of the record is left."""
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
        raise NotRetried("its value was too large for a dead letter, and its topic does not hold the record any more")

    def payload(self, parked: Parked) -> Mapping[str, Any]:
        """Return a record's event, or its value as hex, as a JSON-serialisable mapping. Raises NotRetried."""
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
            reason = str(error) if isinstance(error, Undecodable) else "its topic is unknown to the product"
            raise NotRetried(f"it cannot be read yet: {reason}") from error

    # --- retry, or discard --------------------------------------------------------------------------------------------

    def retry(self, parked: Sequence[Parked], done: Callable[[Parked, str | None], None]) -> None:
        """Retry the records one by one; `done` is called with each and None, or the reason why the retry failed.

        A record that the persister could not store is stored at once. A lead that a sender could not read is sent
        again by that sender alone. All others are appended to their topic again.
        """
        asyncio.run(self._each(parked, "dead-letters.retry", self._retry, done))

    def discard(self, parked: Sequence[Parked], done: Callable[[Parked, str | None], None]) -> None:
        """Remove the dead letters without a retry; `done` is called with each and None."""

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
            for each in parked:
                try:
                    await work(publisher, each)
                except NotRetried as error:
                    done(each, str(error))
                    continue
                details = {"reason": each.letter.reason, "parked_at": each.letter.parked_at.isoformat()}
                audit = AuditEntry(self._actor, action, each.id, details, utc_now())
                await publisher.publish(AUDIT, key=each.key, value=codec.encode(AUDIT, audit))
                await publisher.publish(DEAD_LETTERS, key=each.key, value=None, partition=each.partition)
                done(each, None)
        finally:
            await publisher.close()

    async def _retry(self, publisher: Publisher, parked: Parked) -> None:
        record, function = await asyncio.to_thread(self.original, parked), parked.letter.function
        event = await asyncio.to_thread(self._read, record)
        if record.topic == LEADS and record.value is not None:
            await asyncio.to_thread(self._refuse_erased, record)
        sender = self._settings.function(WEBHOOK_SENDER)
        if function == self._settings.function(PERSISTER):
            # Stored directly, because a lead that is appended again would be delivered again too.
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
        """Raise NotRetried when the lead was erased after this record, so that an erased person is not restored."""
        _, end = self._reader.watermarks(record.topic, record.partition)
        for message in self._reader.between(record.topic, record.partition, record.offset, end):
            if message.key() == record.key and message.value() is None:
                raise NotRetried("the lead was erased since; discard it")


def chosen(parked: Sequence[Parked], *, topic: str | None, reason: str | None, since: datetime | None) -> list[Parked]:
    """Return the dead letters that match all filters: origin topic, reason, parked since a time; None matches any."""
    return [
        each
        for each in parked
        if topic in (None, each.letter.origin_topic)
        and reason in (None, each.letter.reason)
        and (since is None or each.letter.parked_at >= since)
    ]
