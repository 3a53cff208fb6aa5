from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nigredo.backoff import Backoff


@given(st.integers(0, 2000))
def test_waits_stay_between_a_tenth_of_the_ceiling_and_the_ceiling(failures: int) -> None:
    backoff = Backoff(first_s=0.5, longest_s=60, failures=failures)

    wait_s = backoff.next_wait_s()

    ceiling = min(60, 0.5 * 2 ** min(failures, 30))
    assert ceiling / 10 <= wait_s <= ceiling


def test_a_reset_restarts_at_the_shortest_wait() -> None:
    backoff = Backoff(first_s=1, longest_s=100, failures=10)

    backoff.reset()

    assert backoff.next_wait_s() <= 1
