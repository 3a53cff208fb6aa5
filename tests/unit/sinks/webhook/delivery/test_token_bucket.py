"""Token bucket: the rate limit of an endpoint."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sinks.webhook.delivery.token_bucket import TokenBucket


@given(st.floats(0.1, 100), st.lists(st.floats(0, 3), min_size=1, max_size=200))
def test_no_time_span_exceeds_the_rate_and_one_second_s_worth(rate: float, waits: list[float]) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    taken: list[float] = []
    for wait in waits:
        now += wait
        while bucket.wait_s(now) == 0:
            bucket.take(now)
            taken.append(now)

    for first, begun in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= max(1.0, rate) + rate * (taken[last] - begun) + 1e-6


@given(st.floats(0.1, 100))
def test_waiting_for_wait_s_is_enough(rate: float) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for _ in range(300):
        now += bucket.wait_s(now) + 1e-9
        assert bucket.wait_s(now) < 1e-6
        bucket.take(now)

    assert now >= (300 - max(1.0, rate)) / rate * 0.99 - 1


@given(st.floats(0.1, 100), st.floats(0, 1))
def test_a_caller_that_keeps_a_share_for_others_gets_the_whole_rate_when_no_other_takes_any(
    rate: float, kept: float
) -> None:
    bucket, now = TokenBucket(rate, 0.0), 0.0
    for _ in range(100):
        now += bucket.wait_s(now, kept=kept) + 1e-9
        assert bucket.wait_s(now, kept=kept) < 1e-6
        bucket.take(now)

    assert now <= 100 / rate + 1


def test_no_rate_is_no_limit() -> None:
    bucket = TokenBucket(0, 0.0)
    for _ in range(10_000):
        assert bucket.wait_s(0.0) == 0
        bucket.take(0.0)


def test_attempts_without_a_limit_are_not_charged_to_a_later_limit() -> None:
    bucket = TokenBucket(0, 0.0)
    for _ in range(10_000):
        bucket.take(0.0)

    bucket.change(1, 0.0)

    assert bucket.wait_s(0.0) == 0


def test_a_changed_rate_applies_at_once() -> None:
    bucket = TokenBucket(100, 0.0)

    bucket.change(1, 0.0)
    bucket.take(0.0)

    assert bucket.wait_s(0.0) == 1.0


def test_a_clock_that_goes_back_adds_no_token() -> None:
    bucket = TokenBucket(1, 10.0)
    bucket.take(10.0)

    assert bucket.wait_s(5.0) == 1.0
    assert bucket.wait_s(10.5) == 0.5
