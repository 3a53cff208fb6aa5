"""Log of a stopped broker, on disk: the newest batches of a topic cut off, as a loss of power leaves it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

HEADER = struct.Struct(">qi")
"""A record batch begins with its first offset and the number of bytes after these two (Kafka, record batch v2)."""
INDEXES = (".index", ".timeindex", ".txnindex", ".snapshot")
CLEAN_SHUTDOWN = ".kafka_cleanshutdown"


class Batch(NamedTuple):
    """A record batch in a segment: its place in the file and its first offset."""

    segment: Path
    position: int
    base_offset: int


def batches(partition: Path) -> Iterator[Batch]:
    """Yield the whole batches of a partition's folder, oldest first."""
    for segment in sorted(partition.glob("*.log")):
        content, position = segment.read_bytes(), 0
        while position + HEADER.size <= len(content):
            base_offset, follow_bytes = HEADER.unpack_from(content, position)
            end = position + HEADER.size + follow_bytes
            if follow_bytes <= 0 or end > len(content):
                break
            yield Batch(segment, position, base_offset)
            position = end


def cut_tail(data: Path, topic: str, *, share: float) -> dict[int, int]:
    """Cut the newest batches of each partition of a topic; return where those that lost some end now.

    data: the log folder of a broker that does not run. share: how much of each partition goes, at least one batch.
    """
    ends = {}
    for partition in sorted(data.glob(f"{topic}-[0-9]*")):
        found = list(batches(partition))
        if not found:
            continue
        first_lost = found[min(len(found) - 1, int(len(found) * (1 - share)))]
        for segment, _ in groupby(found, lambda batch: batch.segment):
            if segment > first_lost.segment:
                segment.unlink()
        with first_lost.segment.open("r+b") as log:
            log.truncate(first_lost.position)
        # Made again when the broker starts, which looks after its segments only without the mark of a clean end.
        for file in [file for file in partition.iterdir() if file.suffix in INDEXES]:
            file.unlink()
        ends[int(partition.name.rpartition("-")[2])] = first_lost.base_offset
    (data / CLEAN_SHUTDOWN).unlink(missing_ok=True)
    return ends
