"""Recovery plan of a group whose stored positions the log does not bear out: restart offsets and lowered windows. Pure.

The log as it is decides. A restart never skips a record that was not handled: it goes to the first one that is not
known to be, and handling a record again is harmless (ids are known, rows and deliveries are recognised by them).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from nigredo.known_windows import OF_NO_RECORD
from nigredo.log_position import Finding, LogNow, LogPosition, compare, refusal
from schemas.events import RateLimitState

CLOCKS_DIFFER_MS = 60_000
"""A search begins this much earlier: leads have their producer's time, and a broker's clock may be corrected."""


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
    """A stored position that the log does not bear out, and where the search for the restart offset begins."""

    stored: Stored
    reason: str
    search_from_ms: int | None
    """Records that are older were handled; None: from the start of the log."""


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


class Unhandled(NamedTuple):
    """A record of a partition in the order of the log, and the id that its result would carry; None without one."""

    offset: int
    id: bytes | None


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
    same_topic = finding in (Finding.PAST_END, Finding.OTHER_RECORD)
    search_from = position.last.timestamp_ms - CLOCKS_DIFFER_MS if same_topic and position.last is not None else None
    return Disagreement(stored, reason, search_from)


def first_unhandled(records: Iterable[Unhandled], handled: Container[bytes], end: int) -> int:
    """Return the offset of the first record whose id is not among those handled; the end when there is none.

    Records without an id, such as commands, have no result of their own and do not hold the restart back.
    """
    return next((record.offset for record in records if record.id is not None and record.id not in handled), end)


def lowered(state: RateLimitState, input_offset: int) -> RateLimitState | None:
    """Return a window that lets its partition be judged from an offset on; None when it does so already.

    Acceptances, refusals and time stay: what was accepted counts, and its id gets the verdict that it had. The record
    before it need not be of this network, so that the window names no record of the log any more.
    """
    if state.input_offset < input_offset:
        return None
    return replace(state, input_offset=OF_NO_RECORD)
