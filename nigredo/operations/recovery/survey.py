"""Survey of the pipeline: compares stored positions, windows and leads with the log; blocking, read-only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from nigredo.avro.encoded_window import decode_window
from nigredo.clock import from_ms, utc_now
from nigredo.components import PERSISTER, RATE_LIMITER
from nigredo.control.admin import ControlAdmin
from nigredo.control.state import ENDPOINT, key_of
from nigredo.endpoints.keys import sender_group
from nigredo.kafka.consumer_groups import members
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import Finding, LogPosition, compare
from nigredo.operations.delivery_queries import ATTEMPTS_KEPT
from nigredo.operations.recovery.lost_leads import (
    accepted_lead,
    delivered_attempts,
    delivered_leads,
    stored_leads,
    stored_verdicts,
)
from nigredo.operations.recovery.plan import (
    OUT_OF_ORDER_MAX,
    Disagreement,
    Logged,
    Restart,
    Stored,
    disagreement,
    first_unhandled,
)
from nigredo.operations.recovery.reading import (
    READ_DEADLINE_S,
    Delivered,
    Deliveries,
    Reading,
    Verdicts,
    as_ms,
    id_of,
    place,
)
from nigredo.operations.rewind import DatabaseOffsets
from nigredo.settings import Settings
from schemas.events import ControlEntry, DeliveryAttempt, Lead, Submission
from schemas.topics import (
    DELIVERIES,
    LEADS,
    RATE_LIMITS,
    SUBMISSIONS,
    TOPICS,
    WEBHOOK_DEAD,
    WEBHOOK_REPLAYS,
    retry_topics,
)

COMPONENT = "recover"
ERASURE_SHOWS_FOR = timedelta(hours=23)
"""Age up to which an erasure is sure to show in the log: a tombstone stays for a day at least."""
FirstOffsets: TypeAlias = Callable[[ControlEntry], tuple[datetime, Mapping[int, int]] | None]
"""Returns the time and the lead offsets, by partition, at which an endpoint began; None for one that gets all leads."""
NOT_IN_THE_LOG = Delivered(-1, 0)
"""A delivery that only PostgreSQL has."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition of the pipeline, as `Survey.look` found it."""

    missing_topics: Sequence[str]
    uneven: Mapping[str, tuple[int, int]]
    """Topics with fewer partitions than their source topic: (partitions present, partitions needed)."""
    restarts: Sequence[Restart]
    lost: Sequence[UUID]
    """Accepted leads, to be published again: absent from the log, stored or to be had from their submission, and not
    delivered to some endpoint."""
    only_stored: int
    """Number of stored leads absent from the log that no endpoint needs any more."""
    gone: Sequence[UUID] = ()
    """Accepted leads in neither the log nor PostgreSQL that are not published again: lost, or erased."""

    @property
    def well(self) -> bool:
        """Whether there is nothing to repair."""
        return not (self.missing_topics or self.uneven or self.restarts or self.lost)


@dataclass(slots=True)
class _Partition:
    """A partition of the submissions, and how its position or its windows disagree with the log."""

    stored: Stored
    by_position: Disagreement | None
    by_windows: Disagreement | None
    windows_end: int | None = field(default=None)
    """Offset after the last record that the windows judged; None unless the log agrees with them."""

    @property
    def found(self) -> Disagreement | None:
        """The first disagreement; None when position and windows agree with the log."""
        return self.by_position or self.by_windows


@dataclass(frozen=True, slots=True)
class SenderRestart:
    """Restart of a sender in a partition of the leads, and known deliveries of the leads that it reads again."""

    restart: Restart
    delivered_since_ms: int | None
    """Timestamp of the oldest of these deliveries in the log; None when the log has none."""
    off_record: Sequence[bytes]
    """Delivered leads (16 bytes each) whose delivery is not in the partition of `nigredo.deliveries` that the sender
    reads."""


@dataclass(frozen=True, slots=True)
class _Known:
    """Known deliveries to one endpoint."""

    in_log: Deliveries
    in_table: Deliveries
    precedes: Callable[[int, int, datetime], bool]
    """Whether a lead, by partition, offset and time, came before the endpoint began."""


class Survey:
    """Compares one pipeline with its log. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, endpoints: Sequence[str], first_offsets: FirstOffsets) -> None:
        """endpoints: names of the endpoints that receive webhooks."""
        self._settings = settings
        self._endpoints = endpoints
        self._first_offsets = first_offsets
        self._reader = TopicReader(settings, COMPONENT)
        self._ids: Mapping[str, str] = {}
        self.reading = Reading(settings, self._reader)
        self.limiter, self.persister = settings.function(RATE_LIMITER), settings.function(PERSISTER)

    def look(self) -> Condition:
        """Compare positions, windows and leads with the log; changes nothing."""
        topics = [*TOPICS, *(topic for name in self._endpoints for topic in retry_topics(name))]
        ids = self._reader.topic_ids(topics)
        if ids != self._ids:
            # A topic was created again, so its cached records are invalid.
            self._ids, self.reading = ids, Reading(self._settings, self._reader)
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
        source_of = {RATE_LIMITS: SUBMISSIONS} | dict.fromkeys(
            [DELIVERIES, WEBHOOK_DEAD, WEBHOOK_REPLAYS, *retries], LEADS
        )
        partitions = {topic: len(self._reader.partitions(topic)) for topic in (SUBMISSIONS, LEADS, *source_of)}
        return {
            topic: (partitions[topic], partitions[source])
            for topic, source in source_of.items()
            if partitions[topic] < partitions[source]
        }

    # --- the limiter --------------------------------------------------------------------------------------------------

    def limiter_restarts(self) -> list[Restart]:
        """Return the limiter's restarts; none for a partition that agrees with the log."""
        restarts, verdicts = [], None
        for part in self._limiter_partitions():
            if (found := part.found) is None:
                continue
            stored, position = part.stored, part.stored.position
            if part.by_position is None and position is not None:
                goes_to = position.next_offset
            elif found.finding is Finding.TRIMMED:
                goes_to = stored.now.start
            else:
                verdicts = self._verdicts() if verdicts is None else verdicts
                goes_to = first_unhandled(self._submissions(found, verdicts), stored.now.end)
            if position is None and part.windows_end is not None:
                # A crash between publishing a verdict and its window leaves a verdict that the windows do not know.
                goes_to = min(goes_to, part.windows_end)
            # Windows that read another log prove nothing, not even at lower offsets than the restart.
            foreign = part.by_windows is not None or found.finding is Finding.OTHER_TOPIC
            restarts.append(replace(_restart(stored, goes_to, found.reason), windows_from=0 if foreign else goes_to))
        return restarts

    def _limiter_partitions(self) -> list[_Partition]:
        partitions = self._reader.partitions(SUBMISSIONS)
        positions = self._reader.positions(self.limiter, SUBMISSIONS, partitions)
        found = []
        for number in partitions:
            stored = self._stored(self.limiter, SUBMISSIONS, number, positions[number])
            part = _Partition(stored, disagreement(stored), None)
            if (furthest := self.reading.windows(number).furthest()) is not None:
                reached = LogPosition(furthest.offset + 1, None, furthest)
                windows = self._stored(f"{RATE_LIMITS} {number}", SUBMISSIONS, number, reached)
                if compare(reached, windows.now, exact_time=False) is Finding.TRIMMED:
                    part.windows_end = windows.now.start
                else:
                    part.by_windows = disagreement(windows, exact_time=False)
                    part.windows_end = None if part.by_windows else reached.next_offset
            elif not any(positions.values()):
                # Never judged: the limiter commits its first offset when it starts.
                part.by_position = None
            found.append(part)
        return found

    def _verdicts(self) -> Verdicts:
        """Return the judged submissions by the log and by PostgreSQL, because the log may have lost verdicts too."""
        verdicts = self.reading.verdicts()
        for submission_id, partition, offset, at in stored_verdicts(self._settings):
            verdicts.ids.add(submission_id.bytes)
            verdicts.places.add(place(submission_id.bytes, partition, offset, as_ms(at)))
        return verdicts

    def _submissions(self, found: Disagreement, verdicts: Verdicts) -> Iterator[Logged]:
        """Yield a partition's submissions, newest first; a command leaves no result, so it counts as unhandled."""
        partition, before = found.stored.partition, found.handled_before
        for message in self.reading.newest_first(SUBMISSIONS, partition):
            event, offset = self.reading.event(message), message.offset() or 0
            if not isinstance(event, Submission) or (before is not None and offset >= before):
                yield Logged(offset, handled=False, proof=False)
                continue
            at = place(event.id.bytes, partition, offset, message.timestamp()[1])
            yield Logged(offset, event.id.bytes in verdicts.ids, at in verdicts.places)

    # --- senders ------------------------------------------------------------------------------------------------------

    def sender_restarts(self, name: str) -> list[Restart]:
        """Return the restarts of an endpoint's sender, by topic and partition."""
        leads, references = self.sender_repair(name, begun=False)
        return [*(sender.restart for sender in leads), *references]

    def sender_repair(self, name: str, *, begun: bool = True) -> tuple[list[SenderRestart], list[Restart]]:
        """Return the restarts of a sender in the leads, and those in its topics of references (retries, replays).

        begun: True when the sender is known to have begun, so that a group without offsets counts as having lost them.
        """
        found = self._sender_disagreements(name, begun=begun)
        leads = [each for each in found if each.stored.topic == LEADS]
        known = self._known_deliveries(name) if leads else None
        return (
            [self._sender_restart(each, known) for each in leads if known is not None],
            [_restart(each.stored, each.stored.now.start, each.reason) for each in found if each.stored.topic != LEADS],
        )

    def _sender_disagreements(self, name: str, *, begun: bool) -> list[Disagreement]:
        group, disagreements = sender_group(self._settings, name), list[Disagreement]()
        # Kafka deletes a group's offsets together with a topic, so a group without offsets may have lost them.
        begun = begun or self._entry(name) is not None
        # A sender has offsets before it joins: after the loss of all Kafka data its members are the only sign of that.
        begun = begun or members(self._settings, group) > 0
        for topic in (LEADS, *retry_topics(name), WEBHOOK_REPLAYS):
            partitions = self._reader.partitions(topic)
            positions = self._reader.positions(group, topic, partitions)
            if not begun and all(position is None for position in positions.values()):
                continue  # The sender never began, and will begin where its settings say.
            for number in partitions:
                if (found := disagreement(self._stored(group, topic, number, positions[number]))) is not None:
                    disagreements.append(found)
        return disagreements

    def _known_deliveries(self, name: str) -> _Known:
        return _Known(self.reading.deliveries(name), self._delivered_by_table(name), self._precedes_begin(name))

    def _sender_restart(self, found: Disagreement, known: _Known) -> SenderRestart:
        partition, examined = found.stored.partition, list[tuple[int, bytes]]()
        records = self._leads(found, known, examined)
        out_of_order_max = OUT_OF_ORDER_MAX if found.handled_before is None else 0
        goes_to = first_unhandled(records, found.stored.now.end, out_of_order_max=out_of_order_max)
        since_ms, off_record = list[int](), list[bytes]()
        for lead_id in {lead_id for offset, lead_id in examined if offset >= goes_to}:
            delivered = known.in_log.delivered.get(lead_id)
            if delivered is not None and delivered.partition == partition:
                since_ms.append(delivered.timestamp_ms)
            elif delivered is not None or lead_id in known.in_table.delivered:
                off_record.append(lead_id)
        return SenderRestart(_restart(found.stored, goes_to, found.reason), min(since_ms, default=None), off_record)

    def _leads(self, found: Disagreement, known: _Known, examined: list[tuple[int, bytes]]) -> Iterator[Logged]:
        """Yield the leads of a partition, newest first; append offset and id of each to `examined`."""
        partition, before, erased, proven = found.stored.partition, found.handled_before, set[bytes](), False
        in_log, in_table, too_old_ms = known.in_log, known.in_table, as_ms(utc_now() - ATTEMPTS_KEPT)
        for message in self.reading.newest_first(LEADS, partition):
            offset, at_ms = message.offset() or 0, message.timestamp()[1]
            lead_id = next(id_of(message), None)
            if lead_id is None or message.value() is None:
                erased |= {lead_id} if lead_id is not None else set()
                yield Logged(offset, handled=True, proof=False)
                continue
            examined.append((offset, lead_id))
            at = place(lead_id, partition, offset)
            proof = (at in in_log.places or at in in_table.places) and (before is None or offset < before)
            proven = proven or proof
            handled = any(lead_id in ids for ids in (erased, in_log.delivered, in_log.dead, in_table.delivered))
            handled = handled or known.precedes(partition, offset, from_ms(max(0, at_ms)))
            # So old a delivery has left no trace. Age counts only below a proof, because clocks may have been set back.
            yield Logged(offset, handled or (proven and at_ms < too_old_ms), proof)

    def _delivered_by_table(self, name: str) -> Deliveries:
        """Return the deliveries that PostgreSQL holds, because `nigredo.deliveries` may have been lost."""
        found = Deliveries()
        for row in delivered_leads(self._settings, name):
            found.delivered[row.lead_id.bytes] = NOT_IN_THE_LOG
            if row.lead_offset is not None and not row.replay:
                found.places.add(place(row.lead_id.bytes, row.lead_partition, row.lead_offset))
        return found

    def _entry(self, name: str) -> ControlEntry | None:
        found = ControlAdmin(self._settings, COMPONENT).entries().get(key_of(ENDPOINT, name))
        return None if found is None else found.entry

    def _precedes_begin(self, name: str) -> Callable[[int, int, datetime], bool]:
        """Return a predicate: whether a lead, by partition, offset and time, came before the endpoint began."""
        entry = self._entry(name)
        first = None if entry is None else self._first_offsets(entry)
        if first is None:
            return lambda *_: False
        began_at, starts = first
        # Compared by time too, because a log that was created again counts from 0.
        return lambda partition, offset, at: at < began_at and offset < starts.get(partition, 0)

    # --- the persister, and leads that are lost -----------------------------------------------------------------------

    def persister_restarts(self) -> list[Restart]:
        """Return the persister's restarts past leads that were deleted unread; any other loss needs no repair."""
        restarts = []
        for (topic, number), at in DatabaseOffsets(self._settings).standing().items():
            stored = self._stored(self.persister, topic, number, LogPosition(at)) if topic == LEADS else None
            if stored is not None and at < stored.now.start and (found := disagreement(stored)) is not None:
                restarts.append(_restart(stored, stored.now.start, found.reason))
        return restarts

    def _stored(self, group: str, topic: str, partition: int, position: LogPosition | None) -> Stored:
        asks_at = 0 if position is None else position.asks_at
        now = self._reader.now(topic, partition, asks_at, deadline_s=READ_DEADLINE_S)
        return Stored(group, topic, partition, position, now)

    def _lost(self) -> tuple[list[UUID], int, list[UUID]]:
        in_log, stored, missing = self.reading.lead_ids(), set[bytes](), list[tuple[UUID, set[str]]]()
        before = {name: self._precedes_begin(name) for name in self._endpoints}
        too_old, only_stored = utc_now() - ATTEMPTS_KEPT, 0
        for lead, delivered_to, (partition, offset) in stored_leads(self._settings):
            stored.add(lead.id.bytes)
            if lead.id.bytes not in in_log:
                wanted = {name for name in self._endpoints if not before[name](partition, offset, lead.taken_at)}
                only_stored += 1
                if wanted - delivered_to and lead.taken_at > too_old:
                    missing.append((lead.id, wanted - delivered_to))
        # The table may lag behind the log.
        logged = {name: self.reading.deliveries(name).delivered for name in self._endpoints} if missing else {}
        lost = [lead_id for lead_id, wanted in missing if any(lead_id.bytes not in logged[name] for name in wanted)]
        only_stored -= len(lost)
        gone = list[UUID]()
        lost += [lead.id for lead in self.accepted_only(in_log | stored, gone)]
        return lost, only_stored, gone

    def delivered_among(self, name: str, lost: Collection[UUID]) -> set[UUID]:
        """Return those of these leads that an endpoint accepted, by the log or by PostgreSQL."""
        in_log = self.reading.deliveries(name).delivered
        in_table = {row.lead_id for row in delivered_attempts(self._settings, name, lost)}
        return in_table | {lead_id for lead_id in lost if lead_id.bytes in in_log}

    def deliveries_of(self, name: str, ids: Collection[UUID]) -> Iterator[DeliveryAttempt]:
        """Yield one delivery of each of these leads to an endpoint, from PostgreSQL or else from the log."""
        left = set(ids)
        for attempt in delivered_attempts(self._settings, name, ids):
            left.discard(attempt.lead_id)
            yield attempt
        for attempt in self.reading.attempts(name, left) if left else ():
            if attempt.lead_id in left:
                left.discard(attempt.lead_id)
                yield attempt

    def accepted_only(self, known: set[bytes], gone: list[UUID] | None = None) -> Iterator[Lead]:
        """Yield, from their submissions, leads that windows show as accepted and whose ids are not in `known`.

        known: ids (16 bytes each) of leads in the log or in PostgreSQL. gone: receives the ids of leads that are not
        restored, because their submission is missing too or because they may have been erased: an old erasure leaves
        no trace, and an erased person must not come back.
        """
        codec, erased_before, gone = self.reading.codec(), utc_now() - ERASURE_SHOWS_FOR, [] if gone is None else gone
        accepted: dict[bytes, datetime] = {}
        for partition in self._reader.partitions(RATE_LIMITS):
            for value in self.reading.windows(partition):
                state = decode_window(codec, value)
                times = {acceptance.id.bytes: acceptance.at for acceptance in (*state.accepted, *state.exempt)}
                accepted |= {lead_id: at for lead_id, at in times.items() if lead_id not in known}
        old = [lead_id for lead_id, at in accepted.items() if at < erased_before]
        gone += [UUID(bytes=lead_id) for lead_id in old if accepted.pop(lead_id)]
        # Every partition is searched, because a moved network's window is copied but its submissions are not.
        for partition in self._reader.partitions(SUBMISSIONS):
            found = list[Lead]()
            for message in self.reading.newest_first(SUBMISSIONS, partition) if accepted else ():
                event = self.reading.event(message)
                if isinstance(event, Submission) and accepted.pop(event.id.bytes, None) is not None:
                    found.append(accepted_lead(event, message))
                if not accepted:
                    break
            yield from reversed(found)
        gone += [UUID(bytes=lead_id) for lead_id in accepted]


def _restart(stored: Stored, goes_to: int, reason: str) -> Restart:
    at = None if stored.position is None else stored.position.next_offset
    return Restart(stored.group, stored.topic, stored.partition, at, goes_to, reason)
