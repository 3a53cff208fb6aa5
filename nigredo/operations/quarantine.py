"""Refused submissions as they stand in `nigredo.rejections`: found, and put through; blocking, for commands."""

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
    """A refused submission and its place in `nigredo.rejections`."""

    rejection: Rejection
    partition: int
    offset: int


class Quarantine:
    """Reads the rejections and asks the limiter for releases. Every call may raise DependencyDown."""

    def __init__(self, commands: LimiterCommands) -> None:
        self._commands = commands

    def kept(
        self, *, ids: Collection[UUID] | None = None, since: datetime | None = None
    ) -> Mapping[UUID, QuarantinedSubmission]:
        """Return what is in quarantine, by id: all of it, or these ids, or what was refused since."""
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
        """Put these submissions through; return where in `nigredo.leads` each lead that came of it is.

        One that is not in the answer was put through by somebody else meanwhile, or was not at all: `kept` tells.
        Raises DependencyDown when the limiter does not come to it in time; it will all the same.
        """
        reader = self._commands.reader
        ends = {partition: reader.watermarks(LEADS, partition)[1] for partition in reader.partitions(LEADS)}
        releases = [
            RejectionRelease(
                one.rejection.id,
                one.rejection.client_network,
                self._commands.actor,
                utc_now(),
                one.partition,
                one.offset,
            )
            for one in kept
        ]
        self._commands.wait_handled(self._commands.release(releases), deadline_s=deadline_s)
        ids = {str(one.rejection.id).encode(): one.rejection.id for one in kept}
        answers = reader.read_to_end(LEADS, sorted(ends), deadline_s=READ_DEADLINE_S, offsets=ends)
        return {
            ids[key]: (message.partition() or 0, message.offset() or 0)
            for message in answers
            if (key := message.key() or b"") in ids and message.value() is not None
        }
