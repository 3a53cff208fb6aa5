"""Who may attempt now."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from uuid import uuid4

from sinks.webhook.delivery.admission import LIVE_FOR_S, AdmissionControl
from sinks.webhook.delivery.breaker import OPEN_AFTER, Breaker
from sinks.webhook.delivery.token_bucket import TokenBucket
from sinks.webhook.model import AttemptResult, Outcome

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Attempts that wait at a gate; `inside` names those that were let through, in that order."""

    def __init__(self, places: int = 2, rate: float = 0.0) -> None:
        self.clock = Clock()
        self.gate = AdmissionControl(places, TokenBucket(rate, 0.0), Breaker(), self.clock)
        self.gate.pause(False)
        self.gate.trust(math.inf)
        self.inside: list[str] = []
        self.sent_away: list[str] = []
        self.unwanted: set[str] = set()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, fresh: bool = True, behind: bool = False) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._enter(name, fresh=fresh, behind=behind))
        await self.settled()

    async def _enter(self, name: str, *, fresh: bool, behind: bool) -> None:
        entered = await self.gate.acquire(lambda: name not in self.unwanted, fresh=fresh, behind=behind)
        (self.inside if entered else self.sent_away).append(name)

    async def end(self, outcome: str = Outcome.DELIVERED, *, behind: bool = False) -> None:
        self.gate.told(uuid4(), AttemptResult(outcome, NOON, 1, None, None))
        self.gate.release(behind=behind)
        await self.settled()

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


def test_no_more_are_let_through_than_there_are_places() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=2)
        await crowd.come("a", "b", "c", "d")
        assert crowd.inside == ["a", "b"]
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "b", "c"]


def test_replays_go_behind_whatever_else_waits() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=1)
        await crowd.come("first")
        await crowd.come("replay", behind=True)
        await crowd.come("lead")
        await crowd.come("retry", fresh=False)
        for _ in range(3):
            await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["first", "lead", "retry", "replay"]


def test_while_live_leads_come_replays_get_a_part_of_the_places_and_all_of_them_once_none_comes_any_more() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=32)
        await crowd.come("lead")
        await crowd.come(*(f"replay {number}" for number in range(40)), behind=True)
        assert crowd.inside == ["lead", "replay 0", "replay 1"]
        await crowd.end(behind=True)
        assert crowd.inside[3:] == ["replay 2"]
        await crowd.end()
        assert len(crowd.inside) == 4, "the lead's own place is not for a replay"
        crowd.clock.now = LIVE_FOR_S
        await crowd.end(behind=True)
        return crowd

    crowd = asyncio.run(scenario())
    assert crowd.gate.under_way == 32


def test_a_single_place_is_for_replays_too() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=1)
        await crowd.come("lead")
        await crowd.come("replay", behind=True)
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["lead", "replay"]


def test_replays_leave_a_part_of_the_rate_to_leads_that_come_together() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=100, rate=20.0)
        await crowd.come(*(f"replay {number}" for number in range(30)), behind=True)
        assert len(crowd.inside) == 10
        await crowd.come(*(f"lead {number}" for number in range(15)))
        return crowd

    assert asyncio.run(scenario()).inside[10:] == [f"lead {number}" for number in range(10)]


def test_while_paused_nobody_goes_and_then_in_order() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=5)
        crowd.gate.pause(True)
        await crowd.come("a", "b", "c")
        assert crowd.inside == []
        crowd.gate.pause(False)
        await crowd.settled()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "b", "c"]


def test_whoever_is_not_wanted_any_more_is_sent_away_and_takes_no_place() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=1)
        await crowd.come("a", "b", "c")
        crowd.unwanted.add("b")
        crowd.gate.clear()
        await crowd.settled()
        assert crowd.sent_away == ["b"]
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "c"]


def test_whoever_comes_unwanted_does_not_wait_for_the_end_of_a_pause() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd()
        crowd.gate.pause(True)
        crowd.unwanted.add("late")
        await crowd.come("late")
        return crowd

    assert asyncio.run(scenario()).sent_away == ["late"]


def test_whoever_is_cancelled_gives_its_place_back() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=1)
        await crowd.come("a", "b", "c")
        crowd.tasks["b"].cancel()
        # Let through and cancelled in the same moment.
        crowd.gate.release(behind=False)
        crowd.tasks["c"].cancel()
        await crowd.settled()
        await crowd.come("d")
        return crowd

    crowd = asyncio.run(scenario())
    assert crowd.inside == ["a", "d"]
    assert crowd.gate.under_way == 1


def test_the_rate_holds_back_what_has_a_place() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=10, rate=100.0)
        crowd.gate.limit(20.0)
        crowd.clock.now = 10.0
        await crowd.come(*map(str, range(25)))
        return crowd

    # A second's worth at once, then one after the other.
    assert len(asyncio.run(scenario()).inside) == 10


def test_the_rate_lets_through_again_as_time_passes() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=10, rate=1.0)
        await crowd.come("a", "b")
        assert crowd.inside == ["a"]
        crowd.clock.now = 1.0
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "b"]


def test_an_open_breaker_lets_one_probe_through_and_rather_the_newest_that_was_not_tried() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=50)
        await crowd.come(*(f"lead {number}" for number in range(OPEN_AFTER)))
        for _ in range(OPEN_AFTER):
            await crowd.end(Outcome.RETRY)
        crowd.inside.clear()
        await crowd.come("tried", fresh=False)
        await crowd.come("fresh", "fresher")
        assert crowd.inside == []
        crowd.clock.now = 60.0
        crowd.gate.clear()
        await crowd.come("last")
        assert crowd.inside == ["last"]
        await crowd.end(Outcome.DELIVERED)
        return crowd

    crowd = asyncio.run(scenario())
    assert crowd.inside == ["last", "tried"]
    assert crowd.gate.breaker.closed


def test_an_address_that_is_refused_opens_the_breaker_at_once() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(places=2)
        await crowd.come("a")
        await crowd.end(Outcome.BLOCKED)
        return crowd

    assert not asyncio.run(scenario()).gate.breaker.closed


def test_a_member_that_was_frozen_past_its_session_sends_nothing_until_the_group_was_heard_from() -> None:
    """It may have lost its partitions, and has hundreds of leads in hand when it wakes."""

    async def scenario() -> None:
        crowd = Crowd(places=2)
        crowd.gate.trust(6.0)
        await crowd.come("a", "b", "c", "d")
        crowd.clock.now = 6.0  # It wakes; what was under way ends first.
        await crowd.end()
        await crowd.end()
        await crowd.come("e", behind=True)
        crowd.gate.pause(True)
        crowd.gate.pause(False)
        await crowd.settled()
        assert crowd.inside == ["a", "b"]

        crowd.unwanted |= {"c"}  # Either it hears that something is not its own any more ...
        crowd.gate.clear()
        crowd.gate.trust(11.0)  # ... or that the rest still is.
        await crowd.settled()
        assert (crowd.sent_away, crowd.inside) == (["c"], ["a", "b", "d", "e"])

    asyncio.run(scenario())


def test_before_the_group_was_ever_heard_from_nothing_is_sent() -> None:
    async def scenario() -> None:
        clock, entered = Clock(), asyncio.Event()
        gate = AdmissionControl(1, TokenBucket(0.0, 0.0), Breaker(), clock)
        gate.pause(False)

        async def enter() -> None:
            if await gate.acquire(lambda: True, fresh=True, behind=False):
                entered.set()

        task = asyncio.create_task(enter())
        await asyncio.sleep(0)
        assert not entered.is_set()
        gate.trust(1.0)
        await task
        assert entered.is_set()

    asyncio.run(scenario())
