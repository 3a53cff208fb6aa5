"""Quarantine: lists the refused submissions in `nigredo.rejections` and releases them as leads; blocking."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from nigredo.avro.codec import Undecodable
from nigredo.clock import utc_now
from nigredo.operations.limit_commands import READ_DEADLINE_S, LimiterCommands
from schemas.events import Rejection, RejectionRelease
from schemas.topics import LEADS, REJECTIONS


@dataclass(frozen=True, slots=True)
class QuarantinedSubmission:
    """A refused submission with its partition and offset in `nigredo.rejections`."""

    rejection: Rejection
    partition: int
    offset: int


class Quarantine:
    """Reads rejections and requests releases from the limiter. Every call may raise DependencyDown."""

    def __init__(self, commands: LimiterCommands) -> None:
        self._commands = commands

    def kept(
        self, *, ids: Collection[UUID] | None = None, since: datetime | None = None
    ) -> Mapping[UUID, QuarantinedSubmission]:
        """Return the submissions in quarantine by id: all, or only these ids, or only those refused since a time."""
        reader, wanted = self._commands.reader, None if ids is None else {str(each).encode() for each in ids}
        newest: dict[bytes, tuple[bytes, int, int]] = {}
        partitions = reader.partitions(REJECTIONS)
        for message in reader.read_to_end(REJECTIONS, partitions, deadline_s=READ_DEADLINE_S, since=since):
            key, value = message.key() or b"", message.value()
            if wanted is not None and key not in wanted:
                continue
            if value is None:
                newest.pop(key, None)
            else:
                newest[key] = (value, message.partition() or 0, message.offset() or 0)
        found = {}
        for value, partition, offset in newest.values():
            rejection = self._decoded(value)
            if rejection is not None:
                found[rejection.id] = QuarantinedSubmission(rejection, partition, offset)
        return found

    def _decoded(self, value: bytes) -> Rejection | None:
        try:
            event = self._commands.codec.decode(REJECTIONS, value)
        except Undecodable:
            return None
        return event if isinstance(event, Rejection) else None

    def release(self, kept: Collection[QuarantinedSubmission], *, deadline_s: float) -> Mapping[UUID, tuple[int, int]]:
        """Release these submissions; return the (partition, offset) in `nigredo.leads` of each new lead, by id.

        An id missing from the answer was released by another command meanwhile, or was not released: `kept` shows
        which. Raises DependencyDown when the limiter does not process the commands in time; they stay valid.
        """
        reader = self._commands.reader
        ends = {partition: reader.watermarks(LEADS, partition)[1] for partition in reader.partitions(LEADS)}
        releases = [
            RejectionRelease(
                each.rejection.id,
                each.rejection.client_network,
                self._commands.actor,
                utc_now(),
                each.partition,
                each.offset,
            )
            for each in kept
        ]
        self._commands.wait_handled(self._commands.release(releases), deadline_s=deadline_s)
        ids = {str(each.rejection.id).encode(): each.rejection.id for each in kept}
        answers = reader.read_to_end(LEADS, sorted(ends), deadline_s=READ_DEADLINE_S, offsets=ends)
        return {
            ids[key]: (message.partition() or 0, message.offset() or 0)
            for message in answers
            if (key := message.key() or b"") in ids and message.value() is not None
        }
