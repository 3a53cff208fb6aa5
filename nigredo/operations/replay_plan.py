"""What a replay sends: a plan made of what the logs say. Pure: it is handed records and reads nothing itself.

It is made a partition at a time. What is kept meanwhile are the leads asked for in that partition, about 200 bytes
each, however much else the logs hold; of the finished plan, 24 bytes for each lead to send.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple
from uuid import UUID


class LeadSeen(NamedTuple):
    """One record of `nigredo.leads`. A tuple, and ids as their 16 bytes: there may be millions."""

    id: bytes
    offset: int
    asked_for: bool
    erased: bool
    """A tombstone: whatever was asked for, this lead is out."""


class AttemptSeen(NamedTuple):
    """One attempt at the endpoint, from `nigredo.deliveries`."""

    id: bytes
    delivered: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """Which of the leads asked for are sent. Both together would be a contradiction."""

    include_delivered: bool = False
    failed_only: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """How many leads were asked for, and why some are not sent. Every lead asked for is in exactly one of the rest."""

    asked_for: int = 0
    erased: int = 0
    delivered: int = 0
    """Left out because the endpoint has them."""
    waiting: int = 0
    """Left out because an attempt is already to come: in a retry topic, or asked for by an earlier replay."""
    not_failed: int = 0
    """Left out because only failed ones are wanted."""
    to_send: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Counts)))


@dataclass(slots=True)
class References:
    """Leads of one partition, compactly, in the order of the log."""

    partition: int
    _ids: bytearray = field(default_factory=bytearray)
    _offsets: array[int] = field(default_factory=lambda: array("q"))

    def add(self, lead_id: bytes, offset: int) -> None:
        """Append one."""
        self._ids += lead_id
        self._offsets.append(offset)

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[tuple[UUID, int]]:
        for number, offset in enumerate(self._offsets):
            yield UUID(bytes=bytes(self._ids[number * 16 : number * 16 + 16])), offset


def asked_for(leads: Iterable[LeadSeen]) -> tuple[dict[bytes, int], int]:
    """Return the leads asked for that were not erased, with the newest offset of each, and how many were erased.

    leads: one partition to its end, not only the range: a tombstone comes after it.
    """
    found: dict[bytes, int] = {}
    erased: set[bytes] = set()
    for lead in leads:
        if lead.erased:
            if found.pop(lead.id, None) is not None:
                erased.add(lead.id)
        elif lead.asked_for or lead.id in found:
            # A lead written twice: compaction leaves the newer one, so that is the one to refer to.
            found[lead.id] = lead.offset
            erased.discard(lead.id)
    return found, len(erased)


def select(
    partition: int,
    found: Mapping[bytes, int],
    erased: int,
    tried: Iterable[AttemptSeen],
    waiting: Container[bytes],
    rule: Rule,
) -> tuple[Counts, References]:
    """Return which of the leads asked for are sent, and what became of the others.

    tried: every attempt at the endpoint since the oldest of these leads. waiting: the leads with an attempt to come.
    """
    delivered: set[bytes] = set()
    failed: set[bytes] = set()
    for attempt in tried:
        if attempt.id in found:
            (delivered if attempt.delivered else failed).add(attempt.id)
    references = References(partition)
    left_out = {"delivered": 0, "waiting": 0, "not_failed": 0}
    for lead_id, offset in sorted(found.items(), key=lambda item: item[1]):
        if lead_id in delivered and not rule.include_delivered:
            left_out["delivered"] += 1
        elif lead_id in waiting:
            left_out["waiting"] += 1
        elif rule.failed_only and lead_id not in failed:
            left_out["not_failed"] += 1
        else:
            references.add(lead_id, offset)
    return Counts(len(found) + erased, erased, to_send=len(references), **left_out), references
