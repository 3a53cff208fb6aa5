"""What libraries say in the log: each text, but not again and again."""

from __future__ import annotations

import logging

from nigredo.observability.logs import SELDOM_MAX, SELDOM_S, RateLimitedFilter


def said(text: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", logging.ERROR, __file__, 1, text, values, None)


def test_a_library_that_repeats_itself_is_told_of_once_in_a_while_with_how_often_it_did() -> None:
    now = [0.0]
    seldom = RateLimitedFilter(lambda: now[0])

    assert seldom.filter(said("cannot connect to %s", "a"))
    assert not seldom.filter(said("cannot connect to %s", "b"))
    assert not seldom.filter(said("cannot connect to %s", "c"))
    assert seldom.filter(said("something else"))
    now[0] = SELDOM_S
    again = said("cannot connect to %s", "d")

    assert seldom.filter(again)
    assert again.getMessage() == "cannot connect to d (2 more like it were left out)"


def test_texts_that_are_all_different_are_all_told_and_not_remembered_for_ever() -> None:
    seldom = RateLimitedFilter(lambda: 0.0)

    assert all(seldom.filter(said(f"text {number}")) for number in range(3 * SELDOM_MAX))
    assert len(seldom._told) <= SELDOM_MAX
