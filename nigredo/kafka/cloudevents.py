"""CloudEvents headers of Kafka records, in binary mode beside the Avro value."""

from __future__ import annotations

from datetime import datetime
from functools import cache, lru_cache
from uuid import UUID

CONTENT_TYPE = b"application/avro"
REQUEST_ID = "request_id"
"""Header of a submission with its request id, under the same name as the field in the access log."""


def cloud_event(kind: str, event_id: UUID, source: str, at: datetime) -> list[tuple[str, bytes]]:
    """Return the headers that the Kafka binding of CloudEvents 1.0 requires, so that any consumer can route by them.

    kind: event type such as `lead.created`. source: the publishing function.
    """
    return [*_constant(kind, source), ("ce_id", str(event_id).encode()), ("ce_time", _time(at))]


@cache
def _constant(kind: str, source: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", kind.encode()),
        ("ce_source", f"/{source}".encode()),
        ("content-type", CONTENT_TYPE),
    )


# Cached, because under load many events share a millisecond.
@lru_cache(maxsize=64)
def _time(at: datetime) -> bytes:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
