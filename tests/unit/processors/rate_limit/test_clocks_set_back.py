"""Broker clocks that jump: the limiter's verdicts equal those of a limiter that never evicts, across restarts too.

The limiter is the real one; the log and the topic of windows are lists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from nigredo.kafka.batch_publisher import Outgoing
from nigredo.kafka.record import Record
from nigredo.log_position import LogNow, LogPosition
from nigredo.observability.health import Health
from nigredo.rate_limit.window import ACCEPTED, judge
from nigredo.settings import Settings
from processors.engine.handler import AssignmentLost
from processors.rate_limit.limiter import Limiter
from schemas.events import RateLimitState, Submission
from schemas.topics import LEADS, RATE_LIMITS, SUBMISSIONS
from tests.support.submission_logs import NOON, submission
from tests.unit.processors.rate_limit.test_release import CODEC
from tests.unit.processors.rate_limit.test_window_store import WindowRecord

LIMIT = 2
NETWORKS = ("192.0.2.1", "192.0.2.2", "192.0.2.3")


class Log:
    """Submissions, and the windows and lead keys that the limiter published for them."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.windows: list[WindowRecord] = []
        self.leads: list[bytes | None] = []

    def publish_all(self, records: Iterable[Outgoing]) -> asyncio.Future[None]:
        for record in records:
            if record.topic == RATE_LIMITS:
                self.windows.append(WindowRecord((record.key or b"").decode(), record.value))
            elif record.topic == LEADS:
                self.leads.append(record.key)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    # The part of a `TopicReader` that the limiter uses.

    def partitions(self, _: str) -> list[int]:
        return [0]

    def committed(self, *_: object) -> dict[int, int]:
        return {0: 0}

    def now(self, _: str, __: int, asks_at: int, *, deadline_s: float) -> LogNow:
        found = [record.position("id").last for record in self.records[asks_at : asks_at + 1]]
        return LogNow("id", 0, len(self.records), next(iter(found), None), append_time=True)

    def read_to_end(self, *_: object, **__: object) -> Iterator[Any]:
        return iter(self.windows)


def a_limiter(log: Log) -> Limiter:
    limiter = Limiter(Settings.from_environment({}), Health("test"))
    inside = cast(Any, limiter)
    inside._reader = inside._publisher = log
    inside._codec = CODEC
    return limiter


def records_of(steps: list[tuple[str, int]]) -> list[Record]:
    records, at = [], NOON
    for offset, (network, jump_s) in enumerate(steps):
        at += timedelta(seconds=jump_s)
        records.append(Record(SUBMISSIONS, 0, offset, at, network.encode(), None, ()))
    return records


def never_forgetting(records: list[Record], events: list[Submission]) -> list[bytes]:
    """Return the lead keys that a limiter without eviction publishes."""
    states: dict[str, RateLimitState] = {}
    accepted = []
    for record, event in zip(records, events, strict=True):
        verdict = judge(states.get(event.client_network), event, at=record.timestamp, offset=record.offset)
        states[event.client_network] = verdict.state
        if verdict.outcome == ACCEPTED:
            accepted.append(str(event.id).encode())
    return accepted


async def judged(records: list[Record], events: list[Submission], batches: list[int], restarts: set[int]) -> Log:
    """Judge all records with the limiter, batch by batch; restarts: numbers of the batches before which it restarts."""
    log, position, number = Log(records), LogPosition(0, "id"), 0
    limiter = a_limiter(log)
    position = await limiter.begin(SUBMISSIONS, 0, position)
    while position.next_offset < len(records):
        if number in restarts:
            limiter = a_limiter(log)
            position = await limiter.begin(SUBMISSIONS, 0, position)
        start = position.next_offset
        batch = list(zip(records, events, strict=True))[start : start + batches[number % len(batches)]]
        for _ in range(len(batch) + 2):
            try:
                await limiter.work(batch, lambda: True)
                break
            except AssignmentLost:
                position = await limiter.begin(SUBMISSIONS, 0, position)
        else:
            raise AssertionError("windows are loaded again and again")
        position = batch[-1][0].position("id")
        number += 1
    return log


# Small steps, and jumps of hours and days both ways. Few lengths of jumps, so that a jump back undoes a jump ahead and
# needs windows evicted in between.
far_s = st.sampled_from((5_000, 7_200, 90_000))
jumps_s = st.one_of(st.integers(0, 900), st.integers(-700, 0), far_s, far_s.map(lambda jump_s: -jump_s))
steps = st.lists(st.tuples(st.sampled_from(NETWORKS), jumps_s), min_size=1, max_size=40)


@settings(deadline=None)
@given(steps, st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sets(st.integers(0, 20)))
def test_the_same_log_gets_the_same_verdicts_however_its_clock_jumps_and_whenever_the_limiter_starts(
    drawn: list[tuple[str, int]], batches: list[int], restarts: set[int]
) -> None:
    records = records_of(drawn)
    events = [replace(submission(limit=LIMIT), client_network=network) for network, _ in drawn]

    log = asyncio.run(judged(records, events, batches, restarts))

    assert log.leads == never_forgetting(records, events)


def test_a_clock_two_hours_ahead_and_back_gives_no_network_its_limit_twice() -> None:
    first = [("192.0.2.1", 1)] * LIMIT
    ahead = [("192.0.2.2", 7200), ("192.0.2.3", 1)]
    back = [("192.0.2.1", -7000)] * LIMIT
    records = records_of([*first, *ahead, *back])
    events = [replace(submission(limit=LIMIT), client_network=(record.key or b"").decode()) for record in records]

    log = asyncio.run(judged(records, events, [1], set()))

    assert log.leads == [str(event.id).encode() for event in events[: LIMIT + len(ahead)]]
