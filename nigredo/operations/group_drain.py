"""Draining of a consumer group, because Kafka lets its offsets be set only while the group has no members.

The members leave on an entry of kind `leave` in `nigredo.control`, and rejoin when the entry is removed or expires, so
that they rejoin even if the command dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from nigredo.backoff import Backoff
from nigredo.clock import utc_now
from nigredo.control.admin import ControlAdmin
from nigredo.control.state import LEAVE
from nigredo.errors import DependencyDown
from nigredo.kafka.consumer_groups import members
from nigredo.plural import counted
from nigredo.settings import Settings

AWAY_AT_MOST = timedelta(minutes=2)
EMPTY_WITHIN_S = 60.0
"""Longer than any member takes to stop, and half of AWAY_AT_MOST, so that time is left to set the offsets."""
BACK_WITHIN_S = 90.0


@contextmanager
def drained(
    settings: Settings,
    group: str,
    actor: str,
    report: Callable[[str], None],
    *,
    note: str,
    at_most: timedelta = AWAY_AT_MOST,
) -> Iterator[Callable[[], None]]:
    """Keep a group without members while the body runs; wait afterwards until the members have rejoined.

    report: called with each step as a line for the operator. note: for the audit. at_most: how long the members stay
    away if this process dies. Yields a function that raises DependencyDown when too little of that time is left to set
    offsets. Raises DependencyDown when another command drains the group, and when the members do not leave or do not
    rejoin in time; they rejoin later in any case.
    """
    changes = ControlAdmin(settings, actor)
    if held := next((entry for entry in changes.held(LEAVE) if entry.name == group), None):
        # One entry serves both commands, so the first to end would let the members rejoin during the other.
        ends = "it is removed" if held.expires_at is None else f"{held.expires_at:%H:%M:%S} UTC"
        raise DependencyDown(f"another command keeps {group} without members, until {ends} at the latest; repeat then")
    before = _until(
        settings, group, lambda _: True, within_s=EMPTY_WITHIN_S, otherwise="its number of members is not known"
    )
    until = utc_now() + at_most
    changes.put(LEAVE, group, {"offsets": note}, expires_at=until)

    def in_time() -> None:
        if utc_now() > until - at_most / 4:
            raise DependencyDown(f"offsets of {group} were not set: too little time was left")

    try:
        report(f"asked {counted(before, 'member')} of {group} to leave, until {until:%H:%M:%S} UTC at the latest")
        _until(settings, group, lambda left: left == 0, within_s=EMPTY_WITHIN_S, otherwise="its members did not leave")
        yield in_time
    finally:
        changes.remove(LEAVE, group)
    if before:
        _until(settings, group, lambda back: back > 0, within_s=BACK_WITHIN_S, otherwise="its members did not rejoin")
        report(f"the members of {group} are back")
    else:
        report(f"{group} had no members; the next member continues from there")


def _until(settings: Settings, group: str, enough: Callable[[int], bool], *, within_s: float, otherwise: str) -> int:
    """Return the number of members as soon as `enough` accepts the number.

    otherwise: the problem to report past the deadline. Raises DependencyDown past the deadline.
    """
    deadline, backoff = time.monotonic() + within_s, Backoff(longest_s=0.5)
    while True:
        try:
            if enough(found := members(settings, group)):
                return found
            problem = otherwise
        except DependencyDown as error:
            problem = str(error)
        if time.monotonic() > deadline:
            raise DependencyDown(f"group {group}: {problem} within {within_s:g} s")
        time.sleep(backoff.next_wait_s())
