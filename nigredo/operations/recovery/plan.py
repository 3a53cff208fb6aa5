"""Recovery plan of a group whose stored positions the log does not bear out: restart offsets and lowered windows. Pure.

The log as it is decides. A restart never skips a record that was not handled: it goes to the first one that is not
known to be, and handling a record again is harmless (ids are known, rows and deliveries are recognised by them). No
timestamp bounds a search: clocks may have been set back together with the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from nigredo.log_position import Finding, LogNow, LogPosition, compare, refusal
from nigredo.rate_limit.latest_windows import OF_NO_RECORD
from schemas.events import RateLimitState

OUT_OF_ORDER_MAX = 10_000
"""Twice as many leads as a sender finishes above one that is still open."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A group's stored position in a partition, None when it is lost, and the partition as the log has it now."""

    group: str
    topic: str
    partition: int
    position: LogPosition | None
    now: LogNow


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A stored position that the log does not bear out; `finding` is None when there is no position."""

    stored: Stored
    reason: str
    finding: Finding | None

    @property
    def handled_before(self) -> int | None:
        """The offset from which on no record of this log was handled; None when the position says nothing of it."""
        same_log = self.finding in (Finding.PAST_END, Finding.OTHER_RECORD)
        return self.stored.position.next_offset if same_log and self.stored.position is not None else None


@dataclass(frozen=True, slots=True)
class Restart:
    """Where a group goes on in a partition."""

    group: str
    topic: str
    partition: int
    stands_at: int | None
    goes_to: int
    reason: str
    windows_from: int = 0
    """Of the limiter: windows with this input offset or a higher one are rewritten."""


class Logged(NamedTuple):
    """A record of a partition, and what is known of its result."""

    offset: int
    handled: bool
    """Whether its id has a result, whichever record that came from, or it needs none."""
    proof: bool
    """Whether a result names this very record: then this part of the log was handled as it is."""


def disagreement(stored: Stored, *, exact_time: bool = True) -> Disagreement | None:
    """Return how a stored position disagrees with the log; None when the log bears it out.

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
    """Return the offset of the first record that is not known to be handled; the end when there is none.

    newest_first: the log from its end backwards, taken only as far as needed: a group handles in order, so that
    everything before a proof was handled too, but for the last `out_of_order_max` records.
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
    """Return a window that lets its partition be judged from an offset on; None when it does so already.

    Acceptances, refusals and time stay: what was accepted counts, and its id gets the verdict that it had. The record
    before it need not be of this network, so that the window names no record of the log any more.
    """
    if state.input_offset < input_offset:
        return None
    return replace(state, input_offset=OF_NO_RECORD)
