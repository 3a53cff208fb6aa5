"""Kafka headers of the events: CloudEvents attributes in binary mode, beside the Avro value."""

from __future__ import annotations

from datetime import datetime
from functools import cache, lru_cache
from uuid import UUID

CONTENT_TYPE = b"application/avro"
REQUEST_ID = "request_id"
"""The header of a submission that leads to the line of its request in the log, by the name it has there."""


def cloud_event(kind: str, event_id: UUID, source: str, at: datetime) -> list[tuple[str, bytes]]:
    """Return the headers that CloudEvents 1.0's Kafka binding requires, so that any consumer can route by them.

    kind: such as `lead.created`. source: the function that published it.
    """
    return [*_alike(kind, source), ("ce_id", str(event_id).encode()), ("ce_time", _time(at))]


@cache
def _alike(kind: str, source: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", kind.encode()),
        ("ce_source", f"/{source}".encode()),
        ("content-type", CONTENT_TYPE),
    )


# Under load many events have the same millisecond.
@lru_cache(maxsize=64)
def _time(at: datetime) -> bytes:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
