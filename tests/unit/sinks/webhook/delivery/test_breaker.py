"""Circuit breaker: when the breaker opens, how many attempts an open one allows, and how it ramps up again."""

from __future__ import annotations

from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sinks.webhook.delivery.breaker import ASKED_LONGEST_S, OPEN_AFTER, PAUSE_LONGEST_S, Breaker

MOST = 16


def opened(now: float = 0.0, **how: float) -> Breaker:
    breaker = Breaker()
    for _ in range(OPEN_AFTER):
        breaker.failed(now, uuid4(), asked_s=how.get("asked_s", 0.0))
    return breaker


def test_a_run_of_failing_leads_opens_the_breaker() -> None:
    breaker = Breaker()
    for _ in range(OPEN_AFTER - 1):
        breaker.failed(0.0, uuid4())
    assert breaker.closed

    breaker.failed(0.0, uuid4())

    assert not breaker.closed
    assert breaker.allows(0.0, MOST) == 0


def test_one_failing_lead_never_opens_the_breaker() -> None:
    breaker, poison = Breaker(), uuid4()

    for number in range(1000):
        breaker.failed(float(number), poison)

    assert breaker.closed
    assert not breaker.others_fail(poison)
    assert breaker.others_fail(uuid4())


def test_a_failure_that_no_lead_can_cause_opens_the_breaker_at_once() -> None:
    breaker = Breaker()

    breaker.failed(0.0, uuid4(), at_once=True)

    assert not breaker.closed


def test_an_accepted_lead_resets_the_run_of_failures() -> None:
    breaker = Breaker()
    for _ in range(OPEN_AFTER - 1):
        breaker.failed(0.0, uuid4())
    breaker.succeeded()

    breaker.failed(0.0, uuid4())

    assert breaker.closed


def test_leads_that_failed_before_the_start_count_but_do_not_open_the_breaker_by_themselves() -> None:
    breaker, lead = Breaker(), uuid4()
    assert not breaker.informed

    breaker.recall([uuid4() for _ in range(3 * OPEN_AFTER)])

    assert breaker.informed
    assert breaker.closed
    assert breaker.others_fail(lead)
    breaker.failed(0.0, lead)
    assert not breaker.closed


def test_an_accepted_lead_informs_the_breaker_as_well_as_the_attempt_log() -> None:
    breaker = Breaker()
    breaker.recall([uuid4()])

    breaker.succeeded()

    assert breaker.informed
    assert not breaker.others_fail(uuid4())


def test_a_failed_probe_lengthens_the_pause_up_to_a_bound() -> None:
    breaker, now = opened(), 0.0
    pauses = []
    for _ in range(30):
        pauses.append(breaker.probe_in_s(now))
        now += pauses[-1]
        assert breaker.allows(now, MOST) == 1
        breaker.failed(now, uuid4())

    assert max(pauses) <= PAUSE_LONGEST_S
    assert sum(pauses[10:]) > 3 * sum(pauses[:5])


def test_attempts_in_flight_when_the_breaker_opened_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    probe_at = breaker.probe_in_s(0.0)

    for _ in range(50):
        breaker.failed(0.0, uuid4(), asked_s=500)

    assert breaker.probe_in_s(0.0) == probe_at


@given(st.floats(0, 2 * ASKED_LONGEST_S))
def test_the_pause_lasts_as_long_as_the_receiver_asked(asked_s: float) -> None:
    breaker = opened(asked_s=asked_s)

    assert breaker.probe_in_s(0.0) >= min(asked_s, ASKED_LONGEST_S)


def test_the_number_of_attempts_grows_one_by_one_after_an_accepted_probe() -> None:
    breaker = opened()
    now = breaker.probe_in_s(0.0)

    allowed = []
    for _ in range(MOST + 2):
        breaker.succeeded()
        allowed.append(breaker.allows(now, MOST))

    assert allowed == [*range(1, MOST + 1), MOST, MOST]


class Life(RuleBasedStateMachine):
    """Any sequence of events: the breaker is never stuck, and allows no burst after it was open."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.accepted_since_open = MOST

    @rule(seconds=st.floats(0.001, 100))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def accept(self) -> None:
        self.accepted_since_open = self.accepted_since_open + 1 if self.breaker.closed else 1
        self.breaker.succeeded()
        assert self.breaker.closed

    @rule(lead=st.integers(0, 30), asked_s=st.sampled_from([0.0, 5.0]))
    def fail(self, lead: int, asked_s: float) -> None:
        self.breaker.failed(self.now, UUID(int=lead), asked_s=asked_s)

    @invariant()
    def never_stuck(self) -> None:
        wait_s = self.breaker.probe_in_s(self.now)
        assert 0 <= wait_s <= PAUSE_LONGEST_S
        assert self.breaker.allows(self.now + wait_s, MOST) >= 1

    @invariant()
    def no_burst(self) -> None:
        allowed = self.breaker.allows(self.now, MOST)
        assert allowed <= (min(MOST, self.accepted_since_open) if self.breaker.closed else 1)


TestLife = Life.TestCase
