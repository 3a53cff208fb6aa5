"""The sink's watermark: it never passes an unfinished record and never stays behind finished ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sinks.webhook.watermark import Watermark

# Offsets with gaps, as compaction leaves them, and an order in which the records finish.
offsets = st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True).map(sorted)


@given(offsets, st.data())
def test_the_mark_stands_just_before_the_oldest_unfinished_record(begun: list[int], data: st.DataObject) -> None:
    mark = Watermark(begun[0])
    for offset in begun:
        assert mark.begin(offset)
    unfinished = set(begun)
    for offset in data.draw(st.permutations(begun)):
        mark.finish(offset)
        unfinished.remove(offset)
        if unfinished:
            done_below = [o for o in begun if o < min(unfinished)]
            assert mark.next_offset == (done_below[-1] + 1 if done_below else begun[0])
        else:
            assert mark.next_offset == begun[-1] + 1
        assert mark.open == len([o for o in begun if o >= mark.next_offset])


@given(offsets, st.integers(0, 39))
def test_what_was_begun_already_is_not_begun_again(begun: list[int], which: int) -> None:
    mark = Watermark(0)
    for offset in begun:
        mark.begin(offset)

    assert not mark.begin(begun[which % len(begun)])


def test_a_record_below_the_assigned_position_is_old_news() -> None:
    mark = Watermark(10)

    assert not mark.begin(9)
    assert mark.begin(10)
    assert mark.next_offset == 10
