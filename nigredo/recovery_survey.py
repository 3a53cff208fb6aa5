"""Condition of the pipeline: positions, windows and leads compared with the log; blocking, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from confluent_kafka import Message

from nigredo.changes import Changes
from nigredo.clock import from_ms, utc_now
from nigredo.control import ENDPOINT, key_of
from nigredo.encoded_window import decoded
from nigredo.groups import members, sender_group
from nigredo.known_windows import KnownWindows
from nigredo.log_position import Finding, LogPosition, compare
from nigredo.log_reader import LogReader
from nigredo.lost_leads import stored_leads
from nigredo.recovery_plan import (
    CLOCKS_DIFFER_MS,
    Disagreement,
    Restart,
    Stored,
    Unhandled,
    disagreement,
    first_unhandled,
)
from nigredo.rewind import DatabaseOffsets
from nigredo.settings import Settings
from nigredo.startup import ready_codec
from schemas.codec import Codec, Undecodable
from schemas.events import DeliveryAttempt, Lead, Submission
from schemas.topics import (
    DELIVERIES,
    LEADS,
    RATE_LIMITS,
    REJECTIONS,
    SUBMISSIONS,
    TOPICS,
    WEBHOOK_DEAD,
    WEBHOOK_REPLAYS,
    retry_topics,
)

COMPONENT = "recover"
READ_DEADLINE_S = 30.0
ERASURE_SHOWS_FOR = timedelta(hours=23)
"""The tombstone of an erased lead stays in the log for a day at least."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The pipeline as `look` found it."""

    missing_topics: Sequence[str]
    uneven: Mapping[str, tuple[int, int]]
    """Topics with fewer partitions than the one they belong to: how many they have, and how many they need."""
    restarts: Sequence[Restart]
    lost: Sequence[UUID]
    """Accepted leads, stored in PostgreSQL, that the log has not and that some endpoint never took."""
    only_stored: int
    """Leads in PostgreSQL that the log has not, all of them delivered: nothing needs them in the log."""
    gone: Sequence[UUID] = ()
    """Accepted leads that neither the log nor PostgreSQL has and that are not brought back: lost, or erased."""

    @property
    def well(self) -> bool:
        """Whether there is nothing to repair."""
        return not (self.missing_topics or self.uneven or self.restarts or self.lost)


@dataclass(slots=True)
class _Partition:
    """A partition of the submissions: how it disagrees with the log, by position or by windows."""

    stored: Stored
    by_position: Disagreement | None
    by_windows: Disagreement | None
    windows_end: int | None = field(default=None)
    """One past the furthest record that the windows are known to have judged, if the log bears that out."""


class Survey:
    """Looks at one pipeline. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, endpoints: Sequence[str]) -> None:
        """endpoints: names of those that receive webhooks."""
        self._settings = settings
        self._endpoints = endpoints
        self._reader = LogReader(settings, COMPONENT)
        self.limiter, self.persister = settings.function("rate-limiter"), settings.function("persister")
        self._codec: Codec | None = None

    def look(self) -> Condition:
        """Compare positions, windows and leads with the log; changes nothing."""
        topics = [*TOPICS, *(topic for name in self._endpoints for topic in retry_topics(name))]
        ids = self._reader.topic_ids(topics)
        missing = [topic for topic in topics if topic not in ids]
        if missing:
            return Condition(missing, {}, [], [], 0)
        uneven = self._uneven()
        restarts = [] if uneven else self.limiter_restarts()
        for name in self._endpoints:
            restarts += [] if uneven else self.sender_restarts(name)
        restarts += self.persister_restarts()
        lost, only_stored, gone = self._lost()
        return Condition(missing, uneven, restarts, lost, only_stored, gone)

    def _uneven(self) -> dict[str, tuple[int, int]]:
        retries = [topic for name in self._endpoints for topic in retry_topics(name)]
        belong = {RATE_LIMITS: SUBMISSIONS} | dict.fromkeys(
            [DELIVERIES, WEBHOOK_DEAD, WEBHOOK_REPLAYS, *retries], LEADS
        )
        many = {topic: len(self._reader.partitions(topic)) for topic in (SUBMISSIONS, LEADS, *belong)}
        return {topic: (many[topic], many[to]) for topic, to in belong.items() if many[topic] < many[to]}

    def limiter_restarts(self) -> list[Restart]:
        """Return where the limiter has to go on, by partition; nothing for those that agree with the log."""
        wrong = [part for part in self._limiter_partitions() if part.by_position or part.by_windows]
        if not wrong:
            return []
        judged: set[bytes] | None = None
        restarts = []
        for part in wrong:
            found = part.by_position or part.by_windows
            assert found is not None  # noqa: S101 - as filtered
            if part.stored.position is None and part.windows_end is not None:
                goes_to = part.windows_end
            elif part.by_position is None and part.stored.position is not None:
                goes_to = part.stored.position.next_offset
            else:
                judged = self._judged(wrong) if judged is None else judged
                goes_to = self._first(found, self._submissions(part.stored.partition, found), judged)
            # Of windows that read another log, those at lower offsets than the restart are no proof either.
            windows_from = 0 if part.by_windows else goes_to
            restarts.append(replace(_restart(part.stored, goes_to, found.reason), windows_from=windows_from))
        return restarts

    def _limiter_partitions(self) -> list[_Partition]:
        partitions = self._reader.partitions(SUBMISSIONS)
        positions = self._reader.positions(self.limiter, SUBMISSIONS, partitions)
        found = []
        for number in partitions:
            stored = self._stored(self.limiter, SUBMISSIONS, number, positions[number])
            part = _Partition(stored, disagreement(stored), None)
            if (furthest := self.windows(number).furthest()) is not None:
                reached = LogPosition(furthest.offset + 1, None, furthest)
                windows = self._stored(f"{RATE_LIMITS} {number}", SUBMISSIONS, number, reached)
                if compare(reached, windows.now, exact_time=False) is Finding.TRIMMED:
                    part.windows_end = windows.now.start
                else:
                    part.by_windows = disagreement(windows, exact_time=False)
                    part.windows_end = None if part.by_windows else reached.next_offset
            elif not any(positions.values()):
                # Never judged: where it begins is committed when the limiter starts.
                part.by_position = None
            found.append(part)
        return found

    def windows(self, partition: int) -> KnownWindows:
        """Return the windows of a partition's networks."""
        windows = KnownWindows(self.codec())
        for message in self._reader.read_to_end(RATE_LIMITS, [partition], deadline_s=READ_DEADLINE_S):
            windows.take(message.key() or b"", message.value())
        return windows

    def _judged(self, wrong: Sequence[_Partition]) -> set[bytes]:
        """Return the ids that have a lead or a rejection, as far back as any partition has to be searched."""
        times = [found.search_from_ms for part in wrong for found in (part.by_position, part.by_windows) if found]
        since = None if None in times else from_ms(min(ms for ms in times if ms is not None) - CLOCKS_DIFFER_MS)
        ids: set[bytes] = set()
        for topic in (LEADS, REJECTIONS):
            partitions = self._reader.partitions(topic)
            for message in self._reader.read_to_end(topic, partitions, deadline_s=READ_DEADLINE_S, since=since):
                ids.update(_id_of(message))
        return ids

    def _submissions(self, partition: int, found: Disagreement) -> Iterator[Unhandled]:
        for message in self._from(found, SUBMISSIONS, partition):
            event = self._event(message)
            yield Unhandled(message.offset() or 0, event.id.bytes if isinstance(event, Submission) else None)

    def sender_restarts(self, name: str, *, begun: bool = False) -> list[Restart]:
        """Return where the sender of an endpoint has to go on, by topic and partition.

        begun: whether it is known to have begun, so that a group without any offset lost them.
        """
        group, delivered, restarts = sender_group(self._settings, name), None, list[Restart]()
        # Kafka deletes a group's offsets together with a topic, so that none at all may be a loss too.
        begun = begun or key_of(ENDPOINT, name) in Changes(self._settings, COMPONENT).standing()
        # A sender has offsets before it joins: with all of Kafka's data its members are left as the only sign of it.
        begun = begun or members(self._settings, group) > 0
        for topic in (LEADS, *retry_topics(name), WEBHOOK_REPLAYS):
            partitions = self._reader.partitions(topic)
            positions = self._reader.positions(group, topic, partitions)
            if not begun and all(position is None for position in positions.values()):
                continue  # It never began, and begins where its settings say.
            for number in partitions:
                stored = self._stored(group, topic, number, positions[number])
                found = disagreement(stored)
                if found is None:
                    continue
                if topic == LEADS:
                    delivered = self._delivered(name) if delivered is None else delivered
                    leads = self._leads(number, found)
                    restarts.append(_restart(stored, self._first(found, leads, delivered), found.reason))
                else:
                    restarts.append(_restart(stored, stored.now.start, found.reason))
        return restarts

    def persister_restarts(self) -> list[Restart]:
        """Return where the persister goes on past leads that were deleted unread: all else it finds by itself."""
        restarts = []
        for (topic, number), at in DatabaseOffsets(self._settings).standing().items():
            stored = self._stored(self.persister, topic, number, LogPosition(at)) if topic == LEADS else None
            if stored is not None and at < stored.now.start and (found := disagreement(stored)) is not None:
                restarts.append(_restart(stored, stored.now.start, found.reason))
        return restarts

    def _leads(self, partition: int, found: Disagreement) -> Iterator[Unhandled]:
        for message in self._from(found, LEADS, partition):
            ids = list(_id_of(message)) if message.value() is not None else []
            yield Unhandled(message.offset() or 0, ids[0] if ids else None)

    def _delivered(self, endpoint: str) -> set[bytes]:
        ids: set[bytes] = set()
        partitions = self._reader.partitions(DELIVERIES)
        for message in self._reader.read_to_end(DELIVERIES, partitions, deadline_s=READ_DEADLINE_S):
            event = self._event(message)
            if isinstance(event, DeliveryAttempt) and event.endpoint == endpoint and event.outcome == "delivered":
                ids.add(event.lead_id.bytes)
        return ids

    def _from(self, found: Disagreement, topic: str, partition: int) -> Iterator[Message]:
        start, now = found.stored.now.start, found.stored.now
        if found.search_from_ms is not None:
            start = self._reader.offset_at(topic, partition, from_ms(found.search_from_ms))
        return self._reader.between(topic, partition, start, now.end)

    @staticmethod
    def _first(found: Disagreement, records: Iterable[Unhandled], handled: set[bytes]) -> int:
        return first_unhandled(records, handled, found.stored.now.end)

    def _stored(self, group: str, topic: str, partition: int, position: LogPosition | None) -> Stored:
        asks_at = 0 if position is None else position.asks_at
        now = self._reader.now(topic, partition, asks_at, deadline_s=READ_DEADLINE_S)
        return Stored(group, topic, partition, position, now)

    def _lost(self) -> tuple[list[UUID], int, list[UUID]]:
        in_log, lost, only_stored, stored = self.ids_in_log(), list[UUID](), 0, set[bytes]()
        for lead, delivered_to in stored_leads(self._settings):
            stored.add(lead.id.bytes)
            if lead.id.bytes not in in_log:
                if set(self._endpoints) <= delivered_to:
                    only_stored += 1
                else:
                    lost.append(lead.id)
        gone = list[UUID]()
        lost += [lead.id for lead in self.accepted_only(in_log | stored, gone)]
        return lost, only_stored, gone

    def accepted_only(self, known: set[bytes], gone: list[UUID] | None = None) -> Iterator[Lead]:
        """Yield leads that windows say were accepted, but that neither the log nor PostgreSQL has, from submissions.

        gone: takes the ids of those whose submission is not there either, or that may have been erased: an erasure
        that is old has left no trace, and an erased person is not to come back.
        """
        codec, erased_before, gone = self.codec(), utc_now() - ERASURE_SHOWS_FOR, [] if gone is None else gone
        for partition in self._reader.partitions(RATE_LIMITS):
            accepted: dict[bytes, datetime] = {}
            for value in self.windows(partition):
                state = decoded(codec, value)
                times = {acceptance.id.bytes: acceptance.at for acceptance in (*state.accepted, *state.exempt)}
                accepted |= {lead_id: at for lead_id, at in times.items() if lead_id not in known}
            old = [lead_id for lead_id, at in accepted.items() if at < erased_before]
            gone += [UUID(bytes=lead_id) for lead_id in old if accepted.pop(lead_id)]
            if not accepted:
                continue
            since = min(accepted.values()) - timedelta(milliseconds=CLOCKS_DIFFER_MS)
            for message in self._reader.read_to_end(SUBMISSIONS, [partition], deadline_s=READ_DEADLINE_S, since=since):
                event = self._event(message)
                if isinstance(event, Submission) and accepted.pop(event.id.bytes, None) is not None:
                    yield _accepted(event, message)
            gone += [UUID(bytes=lead_id) for lead_id in accepted]

    def ids_in_log(self) -> set[bytes]:
        """Return the id of every lead in the log, as its 16 bytes."""
        ids: set[bytes] = set()
        partitions = self._reader.partitions(LEADS)
        for message in self._reader.read_to_end(LEADS, partitions, deadline_s=READ_DEADLINE_S):
            # An erased lead's tombstone counts too: the lead is not to come back.
            ids.update(_id_of(message))
        return ids

    def _event(self, message: Message) -> object:
        value = message.value()
        try:
            return None if value is None else self.codec().decode(message.topic() or "", value)
        except Undecodable:
            return None

    def codec(self) -> Codec:
        """Return a codec for leads and windows, ready from the first call on."""
        if self._codec is None:
            self._codec = asyncio.run(ready_codec(self._settings, [LEADS, RATE_LIMITS]))
        return self._codec


def _restart(stored: Stored, goes_to: int, reason: str) -> Restart:
    at = None if stored.position is None else stored.position.next_offset
    return Restart(stored.group, stored.topic, stored.partition, at, goes_to, reason)


def _accepted(event: Submission, message: Message) -> Lead:
    return Lead(
        id=event.id,
        client_network=event.client_network,
        ip_address=event.ip_address,
        user_agent=event.user_agent,
        form_id=event.form_id,
        source=event.source,
        contact=event.contact,
        taken_at=event.taken_at,
        submitted_at=from_ms(message.timestamp()[1]),
        released=False,
        submission_partition=message.partition() or 0,
        submission_offset=message.offset() or 0,
    )


def _id_of(message: Message) -> Iterator[bytes]:
    """Yield the lead id that is a record's key, as its 16 bytes; nothing for another key."""
    try:
        yield UUID((message.key() or b"").decode()).bytes
    except ValueError:
        return
