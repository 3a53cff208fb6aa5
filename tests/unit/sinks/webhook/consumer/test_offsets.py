"""Offset tracker: the committable position never passes an unfinished record nor stays behind finished ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nigredo.log_position import LogPosition, Mark
from sinks.webhook.consumer.offsets import OffsetTracker, Watermark
from sinks.webhook.model import PartitionId, Ticket


def record(offset: int) -> Mark:
    """Return the mark of the record at an offset, derived from the offset alone."""
    return Mark.of(offset, 1_000 + offset, b"%d" % offset, 1)


# Offsets with gaps, as compaction leaves them, and an order in which the records finish.
offsets = st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True).map(sorted)


@given(offsets, st.data())
def test_the_position_is_just_before_the_oldest_unfinished_record(begun: list[int], data: st.DataObject) -> None:
    mark = Watermark(LogPosition(begun[0]))
    for offset in begun:
        assert mark.begin(record(offset))
    unfinished = set(begun)
    for offset in data.draw(st.permutations(begun)):
        mark.finish(offset)
        unfinished.remove(offset)
        if unfinished:
            done_below = [o for o in begun if o < min(unfinished)]
            assert mark.next_offset == (done_below[-1] + 1 if done_below else begun[0])
            assert mark.position.last == (record(done_below[-1]) if done_below else None)
        else:
            assert mark.next_offset == begun[-1] + 1
        assert mark.open == len([o for o in begun if o >= mark.next_offset])


@given(offsets, st.integers(0, 39))
def test_a_record_is_not_begun_twice(begun: list[int], which: int) -> None:
    mark = Watermark(LogPosition(0))
    for offset in begun:
        mark.begin(record(offset))

    assert not mark.begin(record(begun[which % len(begun)]))


def test_a_record_below_the_assigned_position_is_ignored() -> None:
    mark = Watermark(LogPosition(10))

    assert not mark.begin(record(9))
    assert mark.begin(record(10))
    assert mark.next_offset == 10


PLACES = [("nigredo.leads", 0), ("nigredo.leads", 1)]


class Sink(RuleBasedStateMachine):
    """A sink that begins and finishes records in any order, is rebalanced, killed and restarted.

    The log has gaps. `done` holds the records that any owner finished; `committed` the positions of the next owner.
    """

    def __init__(self) -> None:
        super().__init__()
        self.progress = OffsetTracker()
        self.log: dict[PartitionId, list[int]] = {place: [] for place in PLACES}
        self.committed: dict[PartitionId, LogPosition] = dict.fromkeys(PLACES, LogPosition(0, "id"))
        self.read_up_to: dict[PartitionId, int] = {}
        self.done: set[tuple[PartitionId, int]] = set()
        self.in_flight: list[Ticket] = []
        self.stale: list[Ticket] = []

    def _next(self, place: PartitionId) -> int | None:
        return next((offset for offset in self.log[place] if offset >= self.read_up_to[place]), None)

    @rule(place=st.sampled_from(PLACES), gap=st.integers(0, 3))
    def append(self, place: PartitionId, gap: int) -> None:
        self.log[place].append((self.log[place][-1] + 1 if self.log[place] else 0) + gap)

    @rule(places=st.sets(st.sampled_from(PLACES)))
    def assign(self, places: set[PartitionId]) -> None:
        self.stale += self.in_flight
        self.in_flight = []
        self.read_up_to = {place: self.committed[place].next_offset for place in places}
        self.progress.assigned({place: self.committed[place] for place in places})

    @rule()
    def revoke(self) -> None:
        self.commit()
        self.stale += self.in_flight
        self.in_flight = []
        self.read_up_to = {}
        self.progress.revoked()

    @rule()
    def kill(self) -> None:
        """Restart without a commit. Records in flight are forgotten, although they may have been done."""
        self.progress = OffsetTracker()
        self.in_flight, self.stale, self.read_up_to = [], [], {}

    @precondition(lambda self: self.read_up_to)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.read_up_to)))
        offset = self._next(place)
        if offset is None:
            return
        self.read_up_to[place] = offset + 1
        ticket = self.progress.begin(place, record(offset))
        assert ticket is not None, "a record to process was ignored"
        assert self.progress.begin(place, record(offset)) is None
        self.in_flight.append(ticket)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        ticket = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        self.done.add((ticket.place, ticket.offset))
        assert self.progress.finish(ticket)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def finish_late(self, data: st.DataObject) -> None:
        """Finish a record of an earlier assignment, which must not move the current position."""
        ticket = self.stale.pop(data.draw(st.integers(0, len(self.stale) - 1)))
        before = self.progress.positions()
        assert not self.progress.holds(ticket)
        assert not self.progress.finish(ticket)
        assert self.progress.positions() == before

    @rule()
    def commit(self) -> None:
        for place, position in self.progress.positions().items():
            assert position.next_offset >= self.committed[place].next_offset
            self.committed[place] = position

    @precondition(lambda self: self.read_up_to)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Stop a partition: its position does not move any more, and its tickets are ignored."""
        place = data.draw(st.sampled_from(sorted(self.read_up_to)))
        self.progress.drop(place)
        del self.read_up_to[place]
        self.stale += [ticket for ticket in self.in_flight if ticket.place == place]
        self.in_flight = [ticket for ticket in self.in_flight if ticket.place != place]

    @invariant()
    def nothing_unfinished_is_passed(self) -> None:
        for place, position in (self.committed | self.progress.positions()).items():
            done = [offset for offset in self.log[place] if offset < position.next_offset]
            assert all((place, offset) in self.done for offset in done)
            assert position == LogPosition(position.next_offset, "id", record(done[-1]) if done else None)

    @invariant()
    def nothing_stalls(self) -> None:
        """Consecutive finished records can be committed at once."""
        for place, position in self.progress.positions().items():
            open_here = [ticket.offset for ticket in self.in_flight if ticket.place == place]
            oldest = min(open_here, default=self.read_up_to[place])
            finished = [offset for offset in self.log[place] if offset < oldest]
            assert position.next_offset >= (finished[-1] + 1 if finished else 0)
            assert self.progress.open(place) == len(
                [offset for offset in self.log[place] if oldest <= offset < self.read_up_to[place]]
            )


TestSink = Sink.TestCase
