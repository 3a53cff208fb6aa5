"""Whether figures are made into ratios fairly."""

from __future__ import annotations

import pytest

from bench.measure import Contender, Figures, Result, alternate, compare, pace, spread


def played(order: list[str], name: str, rates: list[float]) -> Contender:
    def measure(number: int) -> Figures:
        order.append(f"{name}{number}")
        return {"rate": rates[number]}

    return Contender(name, measure)


def result() -> Result:
    return Result("played", "Played", "things/s", {})


def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    found, saved = result(), []
    contenders = [played(order, "ours", [1, 10, 20]), played(order, "theirs", [900, 20, 20])]

    alternate(found, contenders, rounds=2, measured=lambda *_: None, save=lambda r: saved.append(r.rates("ours")[:]))

    assert order == ["ours0", "theirs0", "ours1", "theirs1", "ours2", "theirs2"]
    (ratio,) = found.ratios()
    assert (ratio.subject, ratio.reference) == ("ours", "theirs")
    # The median of 10/20 and 20/20, round by round.
    assert (ratio.lowest, ratio.median, ratio.highest) == (0.5, 0.75, 1.0)
    # Every round was saved, and the end.
    assert saved == [[10], [10, 20], [10, 20]]


def test_what_an_interrupt_leaves_is_a_result() -> None:
    found, order = result(), []

    def interrupted(number: int) -> Figures:
        if number == 2:
            raise KeyboardInterrupt
        return {"rate": 5.0}

    contenders = [played(order, "ours", [1, 10, 20]), Contender("theirs", interrupted)]
    with pytest.raises(KeyboardInterrupt):
        alternate(found, contenders, rounds=5, measured=lambda *_: None, save=lambda _: None)

    (ratio,) = found.ratios()
    assert ratio.median == 2.0


def test_a_reference_below_what_its_like_reaches_is_named() -> None:
    found = result()
    contenders = [
        Contender("ours", lambda _: {"rate": 100.0}),
        Contender("limit", lambda _: {"rate": 1000.0}),
        Contender("badly written", lambda _: {"rate": 20.0}, floor=0.03, floor_of="limit"),
        Contender("fair", lambda _: {"rate": 40.0}, floor=0.03, floor_of="limit"),
    ]

    alternate(found, contenders, rounds=1, measured=lambda *_: None, save=lambda _: None)

    assert found.unfair == ["badly written reached 0.020 of limit; a fair one reaches 0.03"]


def test_a_wide_spread_is_marked_as_noisy() -> None:
    steady, wild = result(), result()
    steady.figures = {"a": [{"rate": r} for r in (10, 11, 10, 10, 50)], "b": [{"rate": 10.0}] * 5}
    wild.figures = {"a": [{"rate": r} for r in (10, 20, 30, 40, 50)], "b": [{"rate": 10.0}] * 5}

    # One outlier of five moves neither the median nor the middle half.
    assert not compare(steady, "a", "b").noisy
    assert compare(wild, "a", "b").noisy
    assert spread([1.0, 2.0]) == 0.0


def test_the_pace_leaves_the_start_out() -> None:
    # Ten seconds to start and to come to 20 of 100, one second for the rest.
    samples = [(0.0, 0), (10.0, 20), (10.5, 60), (11.0, 100), (12.0, 100)]

    assert pace(samples, 100) == 80.0


def test_no_pace_is_told_from_a_single_step() -> None:
    with pytest.raises(ValueError, match="too few samples"):
        pace([(0.0, 0), (1.0, 100)], 100)
