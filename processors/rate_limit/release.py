"""Releases of refused submissions: outside the limit, and once, however often they are asked for.

What makes it once is `nigredo.rejections` itself: a release is void unless the newest record of its id is the
rejection, and it ends with a tombstone there. A crash in between leaves the rejection, and the same lead comes again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from nigredo.avro.codec import Codec, Undecodable
from nigredo.errors import RecordRefused
from nigredo.kafka.topic_reader import EndNotReached, TopicReader
from nigredo.observability.logs import get_logger
from schemas.events import Lead, Rejection, RejectionRelease
from schemas.topics import REJECTIONS

log = get_logger()

READ_WITHIN_S = 30.0
KAFKA_SILENT_S = 10.0
"""Shorter: an outage of Kafka is waited for, and is no reason to park a release."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A rejection that stands in `nigredo.rejections`, and the partition where its tombstone belongs."""

    rejection: Rejection
    partition: int

    @property
    def key(self) -> bytes:
        """The record's key."""
        return str(self.rejection.id).encode()

    def lead(self) -> Lead:
        """Return what its release makes of it."""
        refused = self.rejection
        return Lead(
            id=refused.id,
            client_network=refused.client_network,
            ip_address=refused.ip_address,
            user_agent=refused.user_agent,
            form_id=refused.form_id,
            source=refused.source,
            contact=refused.contact,
            taken_at=refused.taken_at,
            submitted_at=refused.submitted_at,
            released=True,
            submission_partition=refused.submission_partition,
            submission_offset=refused.submission_offset,
        )


async def find_quarantined(
    reader: TopicReader, codec: Codec, releases: Sequence[RejectionRelease]
) -> dict[UUID, Quarantined]:
    """Return which of these releases' submissions are still refused: take each out of the answer when it is released.

    Reads each partition they name once, from the first place they name to its present end. Raises RecordRefused when
    that takes longer than its deadline: the release is parked rather than holding the limit up, and may be repeated.
    Raises DependencyDown.
    """
    if not releases:
        return {}
    try:
        found = await asyncio.to_thread(_read, reader, codec, releases)
    except EndNotReached as error:
        raise RecordRefused("release_out_of_reach", str(error)) from error
    for release in releases:
        if release.lead_id not in found:
            log.info("a release is void", lead_id=str(release.lead_id), requested_by=release.requested_by)
    return found


def _read(reader: TopicReader, codec: Codec, releases: Sequence[RejectionRelease]) -> dict[UUID, Quarantined]:
    wanted: dict[int, dict[bytes, RejectionRelease]] = defaultdict(dict)
    first: dict[int, int] = {}
    for release in releases:
        partition, offset = release.rejection_partition, release.rejection_offset
        if partition is not None and offset is not None:
            wanted[partition][str(release.lead_id).encode()] = release
            first[partition] = min(first.get(partition, offset), offset)
    known = reader.partitions(REJECTIONS) if wanted else []
    asked = [partition for partition in wanted if partition in known]
    newest: dict[tuple[int, bytes], bytes | None] = {}
    for message in reader.read_to_end(
        REJECTIONS, asked, deadline_s=KAFKA_SILENT_S, offsets=first, within_s=READ_WITHIN_S
    ):
        partition, key = message.partition() or 0, message.key() or b""
        if key in wanted[partition]:
            newest[partition, key] = message.value()
    found = {}
    for (partition, key), value in newest.items():
        release = wanted[partition][key]
        rejection = None if value is None else _decoded(codec, value)
        # Another network's rejection is decided in another order than this one's records.
        if rejection is not None and rejection.client_network == release.client_network:
            found[release.lead_id] = Quarantined(rejection, partition)
    return found


def _decoded(codec: Codec, value: bytes) -> Rejection | None:
    try:
        event = codec.decode(REJECTIONS, value)
    except Undecodable as error:
        log.error("a rejection cannot be read", error=str(error))
        return None
    return event if isinstance(event, Rejection) else None
