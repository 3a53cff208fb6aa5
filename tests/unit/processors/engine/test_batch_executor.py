"""Batch executor: a batch is retried through outages, and records that can never succeed are found and parked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka.parking import Before, Bounds
from processors.engine import stream_processor
from tests.support.fake_faust import Rig, handled, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_wait_s", lambda _: 0.001)
    monkeypatch.setattr(stream_processor, "SETTLE_S", 0.3)


def after_three_records(**troubles: Any) -> Rig:
    """Deliver three records to a handler with these faults; return the rig with the results."""

    async def scenario() -> Rig:
        rig = Rig()
        for name, trouble in troubles.items():
            assert hasattr(rig.handler, name)
            setattr(rig.handler, name, trouble)
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    return asyncio.run(scenario())


def test_a_dependency_outage_loses_no_record_and_commits_nothing() -> None:
    rig = after_three_records(trouble=[DependencyDown("away")] * 4)

    assert handled(rig) == [0, 1, 2]
    assert rig.handler.parked == []
    assert {at.next_offset for offsets in rig.app.commits for at in offsets.values()} <= {0, 3}
    assert rig.app.committed() == 3


def test_an_exception_in_the_middle_of_a_batch_is_found_parked_and_the_others_are_handled() -> None:
    rig = after_three_records(poison={1})

    assert handled(rig) == [0, 2]
    assert rig.handler.parked == [(1, "failed")]
    assert rig.app.committed() == 3


def test_a_batch_handled_in_halves_keeps_reporting_to_the_watchdog() -> None:
    async def scenario() -> list[int]:
        rig, given = Rig(), list[int]()

        async def note() -> None:
            given.append(rig.health.reasons_given)

        rig.handler.before_work = note
        rig.handler.trouble = [RecordRefused("refused_by_database", "no")]
        rig.deliver(0, 1, 2)
        await rig.finish()
        return given

    _, *parts = asyncio.run(scenario())
    assert len(set(parts)) == len(parts) == 2


def test_one_bad_record_among_many_is_found_by_halving() -> None:
    async def scenario() -> tuple[Rig, int]:
        rig, calls = Rig(), 0

        async def count() -> None:
            nonlocal calls
            calls += 1

        rig.handler.before_work = count
        rig.handler.poison = {37}
        rig.deliver(*range(64))
        await rig.finish()
        return rig, calls

    rig, calls = asyncio.run(scenario())
    assert handled(rig) == [offset for offset in range(64) if offset != 37]
    assert rig.handler.parked == [(37, "failed")]
    # The whole batch, two halves six times, and the record itself twice more.
    assert calls == 1 + 2 * 6 + 2


def test_a_record_that_cannot_be_decoded_is_parked_at_once() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.undecodable = {0}
        rig.deliver(0, 1)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.handler.parked == [(0, "undecodable")]
    assert handled(rig) == [1]


def test_a_record_that_breaks_the_decoder_itself_stops_nothing() -> None:
    rig = after_three_records(unforeseen={1})

    assert rig.handler.parked == [(1, "failed")]
    assert handled(rig) == [0, 2]
    assert rig.app.committed() == 3


def bounded(in_a_row_max: int = 3, share_max: float = 1.0) -> Rig:
    return Rig(bounds=Bounds(in_a_row_max, share_max))


def parked(rig: Rig) -> list[int]:
    return [offset for offset, _ in rig.handler.parked]


async def until_stopped(rig: Rig) -> asyncio.Task[None]:
    """Run the agent until it reports that parking has reached its bound."""
    working = rig.start()
    await until(lambda: f"{rig.topic} is stopped" in (rig.health.waiting_for or ""))
    return working


@pytest.mark.parametrize("trouble", ["unforeseen", "undecodable", "refused", "poison"])
def test_a_few_records_are_parked_for_any_reason_and_then_the_topic_waits_for_an_operator(trouble: str) -> None:
    async def scenario() -> Rig:
        rig = bounded()
        setattr(rig.handler, trouble, set(range(10)))
        rig.deliver(*range(10))
        working = await until_stopped(rig)
        given = rig.health.reasons_given
        await until(lambda: rig.health.reasons_given > given + 3)
        working.cancel()
        await asyncio.wait({working})
        return rig

    rig = asyncio.run(scenario())
    assert parked(rig) == [0, 1, 2]
    assert handled(rig) == []
    assert not rig.app.committed()


@pytest.mark.parametrize("trouble", ["undecodable", "refused"])
def test_processing_resumes_by_itself_once_the_cause_is_fixed(trouble: str) -> None:
    async def scenario() -> Rig:
        rig = bounded()
        setattr(rig.handler, trouble, set(range(10)))
        rig.deliver(*range(10))
        working = await until_stopped(rig)
        setattr(rig.handler, trouble, set())
        await until(lambda: len(rig.handler.done) == 7)
        await until(lambda: rig.health.waiting_for is None)
        rig.stream.ended = True
        await working
        await rig.app.on_before_shutdown.send()
        return rig

    rig = asyncio.run(scenario())
    assert handled(rig) == [3, 4, 5, 6, 7, 8, 9]
    assert rig.app.committed() == 10


@pytest.mark.parametrize("trouble", ["undecodable", "refused", "poison"])
def test_bad_records_among_good_ones_never_stop_the_stream(trouble: str) -> None:
    async def scenario() -> Rig:
        rig = bounded(share_max=0.25)
        setattr(rig.handler, trouble, set(range(0, 200, 5)))
        rig.log.end = 200
        rig.deliver(*range(200))
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert parked(rig) == list(range(0, 200, 5))
    assert rig.app.committed() == 200
    assert rig.health.waiting_for is None


def test_good_records_between_bad_ones_do_not_hide_that_a_third_is_bad() -> None:
    async def scenario() -> Rig:
        rig = bounded(share_max=0.25)
        rig.handler.refused = set(range(0, 200, 3))
        rig.log.end = 200
        rig.deliver(*range(200))
        working = await until_stopped(rig)
        working.cancel()
        await asyncio.wait({working})
        return rig

    assert len(parked(asyncio.run(scenario()))) == 26


def test_a_restart_forgets_nothing_of_what_was_parked_before_it() -> None:
    async def scenario() -> Rig:
        rig = bounded()
        rig.before = Before(in_a_row=3)
        rig.handler.refused = set(range(10))
        rig.deliver(*range(10))
        working = await until_stopped(rig)
        working.cancel()
        await asyncio.wait({working})
        return rig

    assert parked(asyncio.run(scenario())) == []


def test_records_parked_long_ago_do_not_count_against_a_record_after_good_ones() -> None:
    async def scenario() -> Rig:
        rig = bounded()
        rig.before = Before(in_a_row=3)
        rig.handler.refused = {5}
        rig.deliver(*range(10))
        await rig.finish()
        return rig

    assert parked(asyncio.run(scenario())) == [5]


def test_a_member_stops_reporting_a_stopped_topic_once_another_member_takes_it_over() -> None:
    async def scenario() -> Rig:
        rig = bounded()
        rig.handler.refused = set(range(10))
        rig.deliver(*range(10))
        working = await until_stopped(rig)
        rig.app.partitions = 0
        await rig.app.on_partitions_revoked.send()
        await until(lambda: not rig.health.held)
        working.cancel()
        await asyncio.wait({working})
        return rig

    assert parked(asyncio.run(scenario())) == [0, 1, 2]


def test_a_record_that_is_parked_while_its_partition_goes_away_is_not_committed() -> None:
    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.undecodable = {0}
        park = rig.handler.park

        async def parks_slowly(*arguments: Any) -> None:
            await rig.app.on_partitions_revoked.send()
            await park(*arguments)

        rig.handler.park = parks_slowly  # type: ignore[method-assign]
        rig.deliver(0)
        await rig.finish()
        return rig

    rig = asyncio.run(scenario())
    assert rig.handler.parked == [(0, "undecodable")]
    assert not rig.app.committed()
