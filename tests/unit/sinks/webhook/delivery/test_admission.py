"""Admission control: slots, rate, breaker, pause and group membership, and the order of admission."""

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
    """Attempts that wait for admission. `inside` lists the admitted ones in order; `rejected` the others."""

    def __init__(self, slots: int = 2, rate: float = 0.0) -> None:
        self.clock = Clock()
        self.admission = AdmissionControl(slots, TokenBucket(rate, 0.0), Breaker(), self.clock)
        self.admission.pause(False)
        self.admission.trust(math.inf)
        self.inside: list[str] = []
        self.rejected: list[str] = []
        self.unwanted: set[str] = set()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str, fresh: bool = True, behind: bool = False) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._enter(name, fresh=fresh, behind=behind))
        await self.settled()

    async def _enter(self, name: str, *, fresh: bool, behind: bool) -> None:
        entered = await self.admission.acquire(lambda: name not in self.unwanted, fresh=fresh, behind=behind)
        (self.inside if entered else self.rejected).append(name)

    async def end(self, outcome: Outcome = Outcome.DELIVERED, *, behind: bool = False) -> None:
        self.admission.record_result(uuid4(), AttemptResult(outcome, NOON, 1, None, None))
        self.admission.release(behind=behind)
        await self.settled()

    async def settled(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


def test_no_more_attempts_are_admitted_than_there_are_slots() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=2)
        await crowd.come("a", "b", "c", "d")
        assert crowd.inside == ["a", "b"]
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "b", "c"]


def test_replays_are_admitted_behind_leads_and_retries() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=1)
        await crowd.come("first")
        await crowd.come("replay", behind=True)
        await crowd.come("lead")
        await crowd.come("retry", fresh=False)
        for _ in range(3):
            await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["first", "lead", "retry", "replay"]


def test_replays_get_a_share_of_the_slots_while_live_leads_arrive_and_all_of_them_afterwards() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=32)
        await crowd.come("lead")
        await crowd.come(*(f"replay {number}" for number in range(40)), behind=True)
        assert crowd.inside == ["lead", "replay 0", "replay 1"]
        await crowd.end(behind=True)
        assert crowd.inside[3:] == ["replay 2"]
        await crowd.end()
        assert len(crowd.inside) == 4, "the lead's own slot is not for a replay"
        crowd.clock.now = LIVE_FOR_S
        await crowd.end(behind=True)
        return crowd

    crowd = asyncio.run(scenario())
    assert crowd.admission.in_flight == 32


def test_a_single_slot_admits_replays_too() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=1)
        await crowd.come("lead")
        await crowd.come("replay", behind=True)
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["lead", "replay"]


def test_replays_leave_a_share_of_the_rate_to_a_burst_of_leads() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=100, rate=20.0)
        await crowd.come(*(f"replay {number}" for number in range(30)), behind=True)
        assert len(crowd.inside) == 10
        await crowd.come(*(f"lead {number}" for number in range(15)))
        return crowd

    assert asyncio.run(scenario()).inside[10:] == [f"lead {number}" for number in range(10)]


def test_a_pause_admits_nothing_and_keeps_the_order() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=5)
        crowd.admission.pause(True)
        await crowd.come("a", "b", "c")
        assert crowd.inside == []
        crowd.admission.pause(False)
        await crowd.settled()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "b", "c"]


def test_an_attempt_that_is_not_wanted_any_more_is_rejected_and_takes_no_slot() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=1)
        await crowd.come("a", "b", "c")
        crowd.unwanted.add("b")
        crowd.admission.clear()
        await crowd.settled()
        assert crowd.rejected == ["b"]
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "c"]


def test_an_unwanted_attempt_does_not_wait_for_the_end_of_a_pause() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd()
        crowd.admission.pause(True)
        crowd.unwanted.add("late")
        await crowd.come("late")
        return crowd

    assert asyncio.run(scenario()).rejected == ["late"]


def test_a_cancelled_attempt_releases_its_slot() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=1)
        await crowd.come("a", "b", "c")
        crowd.tasks["b"].cancel()
        # Admitted and cancelled in the same iteration of the event loop.
        crowd.admission.release(behind=False)
        crowd.tasks["c"].cancel()
        await crowd.settled()
        await crowd.come("d")
        return crowd

    crowd = asyncio.run(scenario())
    assert crowd.inside == ["a", "d"]
    assert crowd.admission.in_flight == 1


def test_the_rate_limit_holds_back_attempts_that_have_a_slot() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=10, rate=100.0)
        crowd.admission.limit(20.0)
        crowd.clock.now = 10.0
        await crowd.come(*map(str, range(25)))
        return crowd

    # A second's worth at once, then one after the other.
    assert len(asyncio.run(scenario()).inside) == 10


def test_the_rate_limit_admits_again_as_time_passes() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=10, rate=1.0)
        await crowd.come("a", "b")
        assert crowd.inside == ["a"]
        crowd.clock.now = 1.0
        await crowd.end()
        return crowd

    assert asyncio.run(scenario()).inside == ["a", "b"]


def test_an_open_breaker_admits_one_probe_preferably_the_newest_lead_without_an_attempt() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=50)
        await crowd.come(*(f"lead {number}" for number in range(OPEN_AFTER)))
        for _ in range(OPEN_AFTER):
            await crowd.end(Outcome.RETRY)
        crowd.inside.clear()
        await crowd.come("tried", fresh=False)
        await crowd.come("fresh", "fresher")
        assert crowd.inside == []
        crowd.clock.now = 60.0
        crowd.admission.clear()
        await crowd.come("last")
        assert crowd.inside == ["last"]
        await crowd.end(Outcome.DELIVERED)
        return crowd

    crowd = asyncio.run(scenario())
    assert crowd.inside == ["last", "tried"]
    assert crowd.admission.breaker.closed


def test_a_forbidden_address_opens_the_breaker_at_once() -> None:
    async def scenario() -> Crowd:
        crowd = Crowd(slots=2)
        await crowd.come("a")
        await crowd.end(Outcome.BLOCKED)
        return crowd

    assert not asyncio.run(scenario()).admission.breaker.closed


def test_a_member_frozen_past_its_session_sends_nothing_until_the_broker_confirms_the_membership() -> None:
    """The member may have lost its partitions, and has hundreds of leads in flight when it wakes."""

    async def scenario() -> None:
        crowd = Crowd(slots=2)
        crowd.admission.trust(6.0)
        await crowd.come("a", "b", "c", "d")
        crowd.clock.now = 6.0  # The member wakes; the attempts in flight end first.
        await crowd.end()
        await crowd.end()
        await crowd.come("e", behind=True)
        crowd.admission.pause(True)
        crowd.admission.pause(False)
        await crowd.settled()
        assert crowd.inside == ["a", "b"]

        crowd.unwanted |= {"c"}  # Either the member learns that a lead is not its own any more ...
        crowd.admission.clear()
        crowd.admission.trust(11.0)  # ... or that the other leads still are.
        await crowd.settled()
        assert (crowd.rejected, crowd.inside) == (["c"], ["a", "b", "d", "e"])

    asyncio.run(scenario())


def test_nothing_is_sent_before_the_membership_is_first_confirmed() -> None:
    async def scenario() -> None:
        clock, entered = Clock(), asyncio.Event()
        admission = AdmissionControl(1, TokenBucket(0.0, 0.0), Breaker(), clock)
        admission.pause(False)

        async def enter() -> None:
            if await admission.acquire(lambda: True, fresh=True, behind=False):
                entered.set()

        task = asyncio.create_task(enter())
        await asyncio.sleep(0)
        assert not entered.is_set()
        admission.trust(1.0)
        await task
        assert entered.is_set()

    asyncio.run(scenario())
