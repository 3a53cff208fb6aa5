"""Draining a consumer group, so that its offsets can be set: Kafka allows that only while a group has no members.

The members leave on an entry of kind `leave` in `nigredo.control` and join again when it is removed, at the latest when
it expires: whatever becomes of the command, they come back.
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
from nigredo.settings import Settings

AWAY_AT_MOST = timedelta(minutes=2)
EMPTY_WITHIN_S = 60.0
"""Past the longest stop of a member; half the time is left to set the offsets."""
BACK_WITHIN_S = 90.0


@contextmanager
def drained(
    settings: Settings,
    group: str,
    actor: str,
    tell: Callable[[str], None],
    *,
    note: str,
    at_most: timedelta = AWAY_AT_MOST,
) -> Iterator[Callable[[], None]]:
    """Keep a group without members while the body runs; wait for the members to come back afterwards.

    note: for the audit. at_most: how long the members stay away if this process dies. The body is handed a function
    that raises DependencyDown when too little of that time is left to set offsets. Raises DependencyDown when another
    command drains the group, and when the members do not leave, or do not come back; they come back in any case.
    """
    changes = ControlAdmin(settings, actor)
    if held := next((entry for entry in changes.held(LEAVE) if entry.name == group), None):
        # Whichever ended first would let the members come back under the other one.
        ends = "it is removed" if held.expires_at is None else f"{held.expires_at:%H:%M:%S} UTC"
        raise DependencyDown(f"another command keeps {group} without members, until {ends} at the latest; repeat then")
    before = _until(settings, group, lambda _: True, within_s=EMPTY_WITHIN_S, what="the group does not settle")
    until = utc_now() + at_most
    changes.put(LEAVE, group, {"offsets": note}, expires_at=until)

    def in_time() -> None:
        if utc_now() > until - at_most / 4:
            raise DependencyDown(f"offsets of {group} were not set: too little time was left")

    try:
        tell(f"asked the {before} members of {group} to leave, until {until:%H:%M:%S} UTC at the latest")
        _until(settings, group, lambda left: left == 0, within_s=EMPTY_WITHIN_S, what="its members did not leave")
        yield in_time
    finally:
        changes.remove(LEAVE, group)
    if before:
        _until(settings, group, lambda back: back > 0, within_s=BACK_WITHIN_S, what="its members did not come back yet")
        tell(f"the members of {group} are back")
    else:
        tell(f"{group} had no members; the next one goes on from there")


def _until(settings: Settings, group: str, enough: Callable[[int], bool], *, within_s: float, what: str) -> int:
    """Return the number of members as soon as it is enough. Raises DependencyDown past the deadline."""
    deadline, backoff = time.monotonic() + within_s, Backoff(longest_s=0.5)
    while True:
        try:
            if enough(found := members(settings, group)):
                return found
            said = what
        except DependencyDown as error:
            said = str(error)
        if time.monotonic() > deadline:
            raise DependencyDown(f"group {group}: {said} within {within_s:g} s")
        time.sleep(backoff.next_wait_s())
