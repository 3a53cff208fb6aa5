"""Replay plan: selects the leads to send from records of leads and attempts. Pure.

A plan is made partition by partition. Memory in use: about 200 bytes for each requested lead of the partition, and 24
bytes for each lead to send of the finished plan, whatever else the logs hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple
from uuid import UUID


class LeadSeen(NamedTuple):
    """A record of `nigredo.leads`. A tuple, with its id as 16 bytes, because there may be millions."""

    id: bytes
    offset: int
    asked_for: bool
    erased: bool
    """Whether the record is a tombstone: an erased lead is never sent, even when requested."""


class AttemptSeen(NamedTuple):
    """An attempt at the endpoint, from `nigredo.deliveries`: the lead's id as 16 bytes, and its success."""

    id: bytes
    delivered: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """Filter on the requested leads. The two flags exclude each other."""

    include_delivered: bool = False
    failed_only: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of leads: `asked_for` is the sum of all other fields, each of which is a reason or `to_send`."""

    asked_for: int = 0
    erased: int = 0
    delivered: int = 0
    """Left out because the endpoint already has them."""
    waiting: int = 0
    """Left out because an attempt is pending: a scheduled retry or an earlier replay."""
    not_failed: int = 0
    """Left out because only leads with a failed attempt are requested."""
    to_send: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Counts)))


@dataclass(slots=True)
class References:
    """Leads of one partition as packed ids and offsets, 24 bytes each, in the order of the log."""

    partition: int
    _ids: bytearray = field(default_factory=bytearray)
    _offsets: array[int] = field(default_factory=lambda: array("q"))

    def add(self, lead_id: bytes, offset: int) -> None:
        """Append a lead. lead_id: 16 bytes."""
        self._ids += lead_id
        self._offsets.append(offset)

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[tuple[UUID, int]]:
        for number, offset in enumerate(self._offsets):
            yield UUID(bytes=bytes(self._ids[number * 16 : number * 16 + 16])), offset


def asked_for(leads: Iterable[LeadSeen]) -> tuple[dict[bytes, int], int]:
    """Return the requested leads that were not erased, each with its newest offset, and the number of erased ones.

    leads: one partition to its end, beyond the range too, because a tombstone may follow later.
    """
    found: dict[bytes, int] = {}
    erased: set[bytes] = set()
    for lead in leads:
        if lead.erased:
            if found.pop(lead.id, None) is not None:
                erased.add(lead.id)
        elif lead.asked_for or lead.id in found:
            # A lead may be written twice. The reference names the newer record, because compaction keeps that.
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
    """Return the counts, and references to the leads that are sent.

    found, erased: result of `asked_for`. tried: every attempt at the endpoint since the oldest of these leads.
    waiting: ids (16 bytes each) of leads with a pending attempt.
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
