"""Values that the sink's packages exchange: topic-partitions, tickets, attempts and their outcomes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

PartitionId = tuple[str, int]
"""Topic name and partition number."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A record in flight: its topic-partition and offset, and the epoch of the assignment that it was consumed in."""

    epoch: int
    place: PartitionId
    offset: int


class Outcome(StrEnum):
    """Result of one delivery attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"
    """The receiver rejected the request for good (3xx or 4xx), because of the lead, the secret or the route."""
    BLOCKED = "blocked"
    """Not sent, because the receiver's address is forbidden: a mistake in the settings, never in the lead."""


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """Outcome of one attempt, with its start, duration in milliseconds and the receiver's response, if one arrived.

    retry_after_s: seconds requested by the receiver's `Retry-After` header; 0 without the header.
    """

    outcome: Outcome
    sent_at: datetime
    duration_ms: int
    status_code: int | None
    error_message: str | None
    retry_after_s: float = 0.0
    answer_excerpt: str | None = None


@dataclass(slots=True, eq=False)
class InFlightLead:
    """A lead that is being delivered: its partition and offset in `nigredo.leads`, and its attempts so far."""

    lead_partition: int
    lead_offset: int
    first_attempt_at: datetime
    number: int = 0
    """Attempts made so far."""
    replay: bool = False
    """Whether an operator requested the delivery, so that the lead is sent even if it was delivered before."""
    withdrawn: bool = False
    """Whether the person was erased meanwhile, so that no further attempt is made."""


class Origin(Protocol):
    """The record that started a delivery: the lead's own record, or a retry or replay reference to settle."""

    async def ended(self) -> None:
        """Settle the record, because the lead was delivered or is dead. Raises DependencyDown."""

    async def withdrawn(self) -> None:
        """Settle the record, because the person was erased. Raises DependencyDown."""

    async def rescheduled(self, to: PartitionId) -> None:
        """Settle the record, because a retry was written to the topic-partition `to`. Raises DependencyDown."""
