"""Values that the sink's packages exchange: topic-partitions, tickets, attempts and their outcomes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

PartitionId = tuple[str, int]
"""A topic and the number of a partition."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A record in flight, and the epoch of the assignment under which its handling began."""

    epoch: int
    place: PartitionId
    offset: int


class Outcome(StrEnum):
    """Result of one delivery attempt."""

    DELIVERED = "delivered"
    RETRY = "retry"
    REFUSED = "refused"
    """The receiver says that it will never accept the request: the lead's fault, or that of a secret or a route."""
    BLOCKED = "blocked"
    """Not sent, because the receiver's address is forbidden: an operator's mistake, never a lead's."""


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """Outcome of one attempt, with its start, duration in milliseconds and the receiver's answer, if one arrived.

    retry_after_s: seconds asked for by the receiver's `Retry-After`; 0 without one.
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
    """A lead between its first attempt and its end: the lead's offset in `nigredo.leads`, and the attempts made."""

    lead_partition: int
    lead_offset: int
    first_attempt_at: datetime
    number: int = 0
    """Attempts made so far."""
    replay: bool = False
    """Whether an operator requested the delivery, so that a lead is sent although it was delivered before."""
    withdrawn: bool = False
    """Whether the person was erased meanwhile, so that nothing more is sent."""


class Origin(Protocol):
    """The record that led to a lead's delivery: the lead itself, or a reference to it that has to be settled."""

    async def ended(self) -> None:
        """Settle it, because the lead was delivered or is dead. Raises DependencyDown."""

    async def withdrawn(self) -> None:
        """Settle it, because the person was erased. Raises DependencyDown."""

    async def rescheduled(self, to: PartitionId) -> None:
        """Settle it, because a retry record in another topic took its place. Raises DependencyDown."""
