"""Start offsets of an endpoint with `start = "now"`, read from its control entry."""

from __future__ import annotations

from datetime import datetime

from schemas.events import ControlEntry

FIRST = ("since", "starts")
"""Fields of the control entry: start time of the endpoint (ISO 8601), and start offsets as `partition:offset,…`."""


def first_offsets(entry: ControlEntry) -> tuple[datetime, dict[int, int]] | None:
    """Return the start time and the start offset of each partition of an endpoint with `start = "now"`; else None.

    Also None for an endpoint started by an earlier release, which did not store these fields.
    """
    try:
        at = datetime.fromisoformat(entry.value["since"])
        starts = [start.partition(":") for start in entry.value["starts"].split(",") if start]
        return at, {int(partition): int(offset) for partition, _, offset in starts}
    except (KeyError, ValueError):
        return None
