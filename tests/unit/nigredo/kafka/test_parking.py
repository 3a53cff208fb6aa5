"""Limits of parking: rebuilt from the dead letters after a restart, and counted by topic and stage."""

from __future__ import annotations

import asyncio

import pytest

from nigredo.clock import utc_now
from nigredo.errors import DependencyDown
from nigredo.kafka.dead_letters import Origin
from nigredo.kafka.parking import WINDOW, Before, Bounds, Parking, Run, before
from nigredo.kafka.record import Record
from nigredo.observability.health import Health

BOUNDS = Bounds(in_a_row_max=3, share_max=0.25)


def record(topic: str, offset: int = 0) -> Record:
    return Record(topic, 0, offset, utc_now(), None, None, ())


def test_the_tails_of_all_partitions_are_the_run_before_a_restart() -> None:
    parked = {0: {7, 8, 9}, 1: {4, 5, 2}, 2: {1}}

    assert before(parked, {0: 10, 1: 6, 2: 10, 3: None}).in_a_row == 3 + 2


def test_dead_letters_long_before_the_positions_are_not_counted() -> None:
    assert before({0: {1, 2, 95, 99}}, {0: 100}) == Before(in_a_row=1, of_last=4)
    assert before({0: {1, 2, 395, 399}}, {0: 400}).of_last == 2


def test_records_parked_in_a_batch_that_was_not_committed_belong_to_the_run() -> None:
    found = before({0: {99, 100, 104}, 1: {7}}, {0: 100, 1: 7})

    assert found.in_a_row == 4
    assert found.again == {(0, 100), (0, 104), (1, 7)}


def test_a_record_that_is_parked_already_may_be_parked_again_when_no_other_may() -> None:
    async def scenario() -> list[bool]:
        known = Before(in_a_row=3, again=frozenset({(0, 5)}))
        parking = Parking(BOUNDS, Health("test"), lambda _: known)
        return [await parking.allows("working", record("nigredo.leads", offset), "failed") for offset in (6, 5, 6)]

    assert asyncio.run(scenario()) == [False, True, False]


def test_a_single_record_is_parked_however_few_came_before() -> None:
    run = Run()

    for _ in range(2):
        assert run.spent(BOUNDS) is None
        run.parked()
        run.handled(3)
    assert run.spent(BOUNDS) is None


def test_a_share_before_a_restart_counts_until_as_many_good_records_came() -> None:
    run = Run()
    run.began(Before(in_a_row=0, of_last=26))

    assert run.spent(BOUNDS)
    run.handled(WINDOW)
    assert run.spent(BOUNDS) is None


def test_topics_and_stages_have_runs_of_their_own() -> None:
    async def scenario() -> list[bool]:
        parking = Parking(BOUNDS, Health("test"), lambda _: Before())
        for _ in range(3):
            assert await parking.allows("working", record("nigredo.leads"), "failed")
            parking.handled("working", {"nigredo.deliveries": 1})
            parking.handled("decoding", {"nigredo.leads": 1})
        asked = [("working", "nigredo.leads"), ("decoding", "nigredo.leads"), ("working", "nigredo.deliveries")]
        return [await parking.allows(stage, record(topic), "failed") for stage, topic in asked]

    assert asyncio.run(scenario()) == [False, True, True]


def test_dead_letters_that_cannot_be_read_are_waited_for() -> None:
    def away(_: str) -> Before:
        raise DependencyDown("Kafka does not answer")

    with pytest.raises(DependencyDown):
        asyncio.run(Parking(BOUNDS, Health("test"), away).allows("working", record("nigredo.leads"), "failed"))


def test_the_key_of_a_dead_letter_names_its_origin() -> None:
    origin = Origin("nigredo-persister-a:b", "nigredo.leads", 3, 17)

    assert Origin.of(origin.key) == origin
    assert Origin.of(b"something else") is None
    assert Origin.of(b"\xff:a:b:c") is None
    assert Origin.of(None) is None
