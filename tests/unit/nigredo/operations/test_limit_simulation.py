"""Simulated verdicts equal those that the limit would give to real submissions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from uuid import uuid4

import pytest

from nigredo.control.state import Control, NetworkSet
from nigredo.operations.limit_simulation import simulated
from nigredo.settings import Settings
from schemas.events import Acceptance, RateLimitState

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
ADDRESS = ip_address("192.0.2.1")
CONTROL = Control(Settings.from_environment({"RATE_LIMIT_PER_HOUR": "3"}))


def state(*minutes_ago: int) -> RateLimitState:
    accepted = tuple(Acceptance(uuid4(), NOON - timedelta(minutes=ago)) for ago in minutes_ago)
    return RateLimitState("192.0.2.1", 3, 3600, accepted, 0, NOON - timedelta(minutes=1), 7)


@pytest.mark.parametrize(
    ("known", "count", "counted", "verdicts", "next_at"),
    [
        (None, 2, 0, ["accepted"] * 2, NOON),
        (None, 4, 0, ["accepted"] * 3 + ["rate_limited"], NOON + timedelta(hours=1)),
        (state(40, 20), 2, 2, ["accepted", "rate_limited"], NOON + timedelta(minutes=20)),
        # An acceptance older than the window has expired.
        (state(70, 40, 20), 1, 2, ["accepted"], NOON + timedelta(minutes=20)),
        (state(40, 30, 20), 1, 3, ["rate_limited"], NOON + timedelta(minutes=20)),
    ],
)
def test_simulated_verdicts_follow_the_window(
    known: RateLimitState | None, count: int, counted: int, verdicts: list[str], next_at: datetime
) -> None:
    result = simulated(known, ADDRESS, "192.0.2.1", count, CONTROL, at=NOON)

    assert (result.counted, result.verdicts, result.next_at) == (counted, verdicts, next_at)


def test_an_exempt_address_is_never_refused() -> None:
    exempt = Control(replace(CONTROL.settings, rate_limit_exempt=(ip_network("192.0.2.0/24"),)))

    result = simulated(state(40, 30, 20), ADDRESS, "192.0.2.1", 5, exempt, at=NOON)

    assert (result.counted, result.verdicts, result.next_at) == (3, ["accepted"] * 5, NOON)


def test_a_blocked_address_and_maintenance_refuse_every_submission() -> None:
    blocked = replace(CONTROL, blocked=NetworkSet([ip_network("192.0.2.0/24")]))
    maintenance = replace(CONTROL, settings=replace(CONTROL.settings, maintenance_mode=True))

    for control, verdict in ((blocked, "blocked"), (maintenance, "maintenance")):
        result = simulated(None, ADDRESS, "192.0.2.1", 2, control, at=NOON)
        assert (result.verdicts, result.next_at) == ([verdict] * 2, None)
