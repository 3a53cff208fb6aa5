"""Log lines of libraries: every text is written, repetitions are suppressed and counted."""

from __future__ import annotations

import logging

from nigredo.observability.logs import REPEAT_AFTER_S, TEXTS_MAX, RateLimitedFilter


def said(text: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", logging.ERROR, __file__, 1, text, values, None)


def test_repeated_lines_of_a_library_are_suppressed_and_counted() -> None:
    now = [0.0]
    seldom = RateLimitedFilter(lambda: now[0])

    assert seldom.filter(said("cannot connect to %s", "a"))
    assert not seldom.filter(said("cannot connect to %s", "b"))
    assert not seldom.filter(said("cannot connect to %s", "c"))
    assert seldom.filter(said("something else"))
    now[0] = REPEAT_AFTER_S
    again = said("cannot connect to %s", "d")

    assert seldom.filter(again)
    assert again.getMessage() == "cannot connect to d (similar lines suppressed: 2)"


def test_different_texts_are_all_written_and_the_cache_of_texts_is_bounded() -> None:
    seldom = RateLimitedFilter(lambda: 0.0)

    assert all(seldom.filter(said(f"text {number}")) for number in range(3 * TEXTS_MAX))
    assert len(seldom._written) <= TEXTS_MAX
