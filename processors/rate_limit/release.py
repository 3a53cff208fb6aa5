"""Releases of quarantined submissions: each becomes a lead outside the limit, once, however often it is requested.

The topic `nigredo.rejections` ensures this: a release is ignored unless the newest record of its id is the rejection,
and it ends with a tombstone there. After a crash in between, the rejection is still current and the same lead is
published again.
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
"""Seconds after which an unfinished look-up parks the release."""
KAFKA_SILENT_S = 10.0
"""Shorter than `READ_WITHIN_S`, because an outage of Kafka is waited out and must not park a release."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A rejection current in `nigredo.rejections`, and the partition that its tombstone goes to."""

    rejection: Rejection
    partition: int

    @property
    def key(self) -> bytes:
        """The rejection's record key: its id."""
        return str(self.rejection.id).encode()

    def lead(self) -> Lead:
        """Return the lead that the release publishes."""
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
    """Return the current rejections of these releases, by lead id; the caller removes each once it is released.

    Reads each partition that the releases name once, from the first offset named to its current end. Raises
    RecordRefused past `READ_WITHIN_S`, because parking a release, which may be requested again, is better than holding
    up the limiter. Raises DependencyDown.
    """
    if not releases:
        return {}
    try:
        found = await asyncio.to_thread(_read, reader, codec, releases)
    except EndNotReached as error:
        raise RecordRefused("release_out_of_reach", str(error)) from error
    for release in releases:
        if release.lead_id not in found:
            log.info(
                "release ignored, no current rejection", lead_id=str(release.lead_id), requested_by=release.requested_by
            )
    return found


def _read(reader: TopicReader, codec: Codec, releases: Sequence[RejectionRelease]) -> dict[UUID, Quarantined]:
    wanted: dict[int, dict[bytes, RejectionRelease]] = defaultdict(dict)
    first: dict[int, int] = {}
    for release in releases:
        partition, offset = release.rejection_partition, release.rejection_offset
        if partition is not None and offset is not None:
            wanted[partition][str(release.lead_id).encode()] = release
            first[partition] = min(first.get(partition, offset), offset)
    existing = reader.partitions(REJECTIONS) if wanted else []
    asked = [partition for partition in wanted if partition in existing]
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
        # Ignore another network's rejection, because it is not ordered with the records of this network.
        if rejection is not None and rejection.client_network == release.client_network:
            found[release.lead_id] = Quarantined(rejection, partition)
    return found


def _decoded(codec: Codec, value: bytes) -> Rejection | None:
    try:
        event = codec.decode(REJECTIONS, value)
    except Undecodable as error:
        log.error("rejection not decoded", error=str(error))
        return None
    return event if isinstance(event, Rejection) else None
