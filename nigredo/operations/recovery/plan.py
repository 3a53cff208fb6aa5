"""Recovery plan for a group whose stored positions contradict the log: restart offsets and lowered windows. No I/O.

The present log decides. A restart offset is that of the first record without a known result, so that no record is
skipped. Processing a record again is harmless, because ids, rows and deliveries are deduplicated. No timestamp bounds
a search, because clocks may have been set back together with the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from nigredo.log_position import Finding, LogNow, LogPosition, compare, refusal
from nigredo.rate_limit.latest_windows import OF_NO_RECORD
from schemas.events import RateLimitState

OUT_OF_ORDER_MAX = 10_000
"""Twice the number of leads that a sender may finish above one that is still open."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A group's stored position in a partition (None when lost), and the present state of that partition."""

    group: str
    topic: str
    partition: int
    position: LogPosition | None
    now: LogNow


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A stored position that the log contradicts; `finding` is None when the position itself is missing."""

    stored: Stored
    reason: str
    finding: Finding | None

    @property
    def handled_before(self) -> int | None:
        """First offset from which no record of the present log was handled; None when the position proves nothing."""
        same_log = self.finding in (Finding.PAST_END, Finding.OTHER_RECORD)
        return self.stored.position.next_offset if same_log and self.stored.position is not None else None


@dataclass(frozen=True, slots=True)
class Restart:
    """Restart of a group in one partition: from the committed offset `stands_at` (None when lost) to `goes_to`."""

    group: str
    topic: str
    partition: int
    stands_at: int | None
    goes_to: int
    reason: str
    windows_from: int = 0
    """Limiter only: windows with this input offset or a higher one are rewritten."""


class Logged(NamedTuple):
    """A record of a partition, and the evidence that it was handled."""

    offset: int
    handled: bool
    """Whether the record's id has a result, from this record or another, or the record needs no result."""
    proof: bool
    """Whether a result names this record by offset, which proves that this part of the log was handled as it is."""


def disagreement(stored: Stored, *, exact_time: bool = True) -> Disagreement | None:
    """Return how a stored position disagrees with the log; None when both agree.

    exact_time: as for `log_position.compare`.
    """
    position = stored.position
    if position is None:
        return Disagreement(stored, f"{stored.group} has no offset for {stored.topic} {stored.partition}", None)
    finding = compare(position, stored.now, exact_time=exact_time)
    if finding.believed:
        return None
    reason = refusal(stored.group, stored.topic, stored.partition, position, stored.now, finding)
    return Disagreement(stored, reason, finding)


def first_unhandled(newest_first: Iterable[Logged], end: int, *, out_of_order_max: int = 0) -> int:
    """Return the offset of the first record without a known result; `end` when every record has a result.

    newest_first: the log from its end backwards, consumed only as far as needed. A group handles records in order, so
    that all records before a proof were handled too, except for the last `out_of_order_max` of them.
    """
    first, left, proven = end, out_of_order_max, False
    for record in newest_first:
        proven = proven or record.proof
        if proven and left == 0:
            break
        left -= proven
        if not record.handled:
            first = record.offset
    return first


def lowered(state: RateLimitState, input_offset: int) -> RateLimitState | None:
    """Return the window with its input offset removed, so that the limiter can judge again from `input_offset` on.

    None when the window allows that already. Acceptances, refusals and time stay, so that accepted submissions still
    count and their ids get the same verdict. The new window names no record of the log, because the record before
    `input_offset` may belong to another network.
    """
    if state.input_offset < input_offset:
        return None
    return replace(state, input_offset=OF_NO_RECORD)
