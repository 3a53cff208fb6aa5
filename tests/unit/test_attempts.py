"""A batch is done for as long as it takes: what may pass is tried again, what never can be is found and parked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nigredo.backoff import Backoff
from nigredo.errors import DependencyDown, RecordRefused
from processors import attempts, in_order
from tests.unit.playing_faust import Rig, handled, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next_wait_s", lambda _: 0.001)
    monkeypatch.setattr(in_order, "SETTLE_S", 0.3)


def after_three_records(**troubles: Any) -> Rig:
    """Deliver three records to a handler with these troubles, and return what came of them."""

    async def scenario() -> Rig:
        rig = Rig()
        for name, trouble in troubles.items():
            assert hasattr(rig.handler, name)
            setattr(rig.handler, name, trouble)
        rig.deliver(0, 1, 2)
        await rig.finish()
        return rig

    return asyncio.run(scenario())


def test_a_dependency_that_is_away_loses_nothing_and_commits_nothing() -> None:
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


def test_a_batch_that_is_handled_part_by_part_says_so_again_and_again_to_a_watchdog() -> None:
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
    # The whole, two halves six times, and the record itself twice more.
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


def test_a_broken_release_parks_a_few_records_and_then_waits_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FAILED_IN_A_ROW_MAX", 3)

    async def scenario() -> Rig:
        rig = Rig()
        rig.handler.unforeseen = set(range(10))
        rig.deliver(*range(10))
        working = rig.start()
        await until(lambda: "a person" in (rig.health.waiting_for or ""))
        working.cancel()
        await asyncio.wait({working})
        return rig

    rig = asyncio.run(scenario())
    assert [offset for offset, _ in rig.handler.parked] == [0, 1, 2]
    assert not rig.app.committed()


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
