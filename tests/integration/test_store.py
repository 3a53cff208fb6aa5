"""Rows and offsets in one transaction, against the real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from nigredo.errors import DependencyDown, RecordRefused
from nigredo.kafka.record import Record
from nigredo.log_position import LogPosition, Mark
from nigredo.postgres import pool as db
from nigredo.postgres.pool import make_pool
from nigredo.testing import Stack, eventually
from processors.engine.handler import AssignmentLost, Decoded
from processors.persistence.rows import Rows, rows_of
from processors.persistence.store import OffsetStep, Store
from schemas.events import Contact, DeliveryAttempt, Lead, RateLimitState, Rejection
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def a_lead() -> Lead:
    return Lead(
        uuid4(), "192.0.2.1", "192.0.2.1", None, None, None, Contact("Ana", "ana@example.com", "Oi", {}),
        NOON, NOON, False, 0, 0,
    )  # fmt: skip


def a_rejection(lead: Lead) -> Rejection:
    return Rejection(lead.id, "192.0.2.1", "192.0.2.1", None, None, None, lead.contact, NOON, NOON, "spam", None, 0, 0)


def at(topic: str, event: Any, key: bytes = b"") -> Decoded:
    return Record(topic, 0, 0, NOON, key, None, ()), event


class Writer:
    """Writes batches one after another to a topic of its own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.topic_id = str(uuid4())
        self._next = 0
        assert run(stack, lambda store: store.begin(self.step(0, 0)))

    def write(self, *records: Decoded) -> None:
        self.write_from(self._next, records)
        self._next += len(records)

    def write_from(self, stood_at: int, records: Sequence[Decoded]) -> None:
        step = self.step(stood_at, stood_at + len(records))
        run(self._stack, lambda store: store.write(rows_of(records), [step]))

    def step(self, stood_at: int, next_offset: int) -> OffsetStep:
        last = Mark.of(next_offset - 1, 1_796_013_316_402, b"key") if next_offset else None
        return OffsetStep("test", 0, stood_at, LogPosition(next_offset, self.topic_id, last))

    def position(self) -> Any:
        return run(self._stack, lambda store: store.position(self.topic_id, 0))

    def next_offset(self) -> Any:
        return None if (position := self.position()) is None else position.next_offset


def run(stack: Stack, work: Any, kind: type[Store] = Store) -> Any:
    async def scenario() -> Any:
        pool = make_pool(stack.settings(), "test", size_max=1)
        await pool.open()
        try:
            coroutine: Coroutine[Any, Any, Any] = work(kind(pool))
            return await coroutine
        finally:
            await pool.close()

    return asyncio.run(scenario())


@pytest.fixture
def writer(stack: Stack) -> Writer:
    return Writer(stack)


def verdict(stack: Stack, lead: Lead) -> list[tuple[Any, ...]]:
    return stack.rows("SELECT verdict FROM nigredo.form_submissions WHERE id = %s", lead.id)


def test_the_same_records_again_change_nothing(stack: Stack, writer: Writer) -> None:
    lead = a_lead()
    attempt = DeliveryAttempt(uuid4(), lead.id, "fibonacci", "http://x", 1, NOON, 5, "delivered", 200, None, 0, 0)

    for _ in range(2):
        writer.write(at(LEADS, lead), at(DELIVERIES, attempt), at(LEADS, lead))

    assert stack.rows("SELECT count(*) FROM nigredo.leads WHERE id = %s", lead.id) == [(1,)]
    assert stack.rows("SELECT count(*) FROM nigredo.webhook_logs WHERE lead_id = %s", lead.id) == [(1,)]
    assert writer.next_offset() == 6


def test_what_somebody_made_of_a_lead_is_not_overwritten(stack: Stack, writer: Writer) -> None:
    lead = a_lead()
    writer.write(at(LEADS, lead))
    stack.rows("UPDATE nigredo.leads SET status = 'called' WHERE id = %s RETURNING 1", lead.id)

    writer.write(at(LEADS, lead))

    assert stack.rows("SELECT status FROM nigredo.leads WHERE id = %s", lead.id) == [("called",)]


@pytest.mark.parametrize("lead_first", [True, False])
def test_a_lead_beats_its_rejection_whichever_is_read_first(stack: Stack, writer: Writer, lead_first: bool) -> None:
    lead = replace(a_lead(), released=True)
    records = [at(LEADS, lead), at(REJECTIONS, a_rejection(lead))]

    for record in records if lead_first else reversed(records):
        writer.write(record)

    assert verdict(stack, lead) == [("released",)]


def test_a_tombstone_takes_the_person_out(stack: Stack, writer: Writer) -> None:
    lead = a_lead()
    writer.write(at(LEADS, lead))

    writer.write(at(LEADS, None, str(lead.id).encode()))

    assert stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead.id) == []
    assert verdict(stack, lead) == []


def test_a_writer_that_does_not_stand_where_the_database_does_writes_nothing(stack: Stack, writer: Writer) -> None:
    writer.write(at(LEADS, a_lead()))
    late = a_lead()

    for elsewhere in (0, 5):
        with pytest.raises(AssignmentLost):
            writer.write_from(elsewhere, [at(LEADS, late)])

    assert stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", late.id) == []
    assert writer.next_offset() == 1


def test_a_position_is_stored_with_its_proof_in_the_transaction_of_the_rows(stack: Stack, writer: Writer) -> None:
    assert writer.position() == LogPosition(0, writer.topic_id)

    writer.write(at(LEADS, a_lead()), at(LEADS, a_lead()))

    assert writer.position() == writer.step(0, 2).position


def test_an_emptied_database_is_written_to_only_once_the_partition_has_begun_again(
    stack: Stack, writer: Writer
) -> None:
    writer.write(at(LEADS, a_lead()))
    stack.rows("DELETE FROM nigredo.stream_offsets WHERE topic_id = %s RETURNING 1", writer.topic_id)
    lead = a_lead()

    with pytest.raises(AssignmentLost):
        writer.write(at(LEADS, lead))

    assert writer.position() is None
    assert stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead.id) == []


def test_a_partition_is_not_begun_elsewhere_once_another_process_has_moved_it_on(stack: Stack, writer: Writer) -> None:
    writer.write(at(LEADS, a_lead()), at(LEADS, a_lead()))

    assert not run(stack, lambda store: store.begin(writer.step(1, 0)))
    assert writer.next_offset() == 2
    assert run(stack, lambda store: store.begin(writer.step(2, 0)))
    assert writer.position() == LogPosition(0, writer.topic_id)


def test_a_proof_that_a_rewind_of_the_previous_release_left_behind_is_none(stack: Stack, writer: Writer) -> None:
    writer.write(*(at(LEADS, a_lead()) for _ in range(3)))
    stack.rows("UPDATE nigredo.stream_offsets SET next_offset = 1 WHERE topic_id = %s RETURNING 1", writer.topic_id)

    assert writer.position() == LogPosition(1, writer.topic_id)


def test_the_previous_release_moves_a_partition_on_beside_a_proof_of_an_earlier_record(
    stack: Stack, writer: Writer
) -> None:
    writer.write(at(LEADS, a_lead()))
    stack.rows("UPDATE nigredo.stream_offsets SET next_offset = 9 WHERE topic_id = %s RETURNING 1", writer.topic_id)

    assert writer.position() == replace(writer.step(0, 1).position, next_offset=9)


def test_a_row_the_database_cannot_take_is_refused_with_its_batch_and_without_its_values(
    stack: Stack, writer: Writer
) -> None:
    lead = a_lead()
    poison = replace(a_lead(), contact=Contact("Zenobia\0", "z@example.com", "Oi", {}))

    with pytest.raises(RecordRefused) as refused:
        writer.write(at(LEADS, lead), at(LEADS, poison))

    assert "Zenobia" not in str(refused.value)
    assert stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead.id) == []
    assert writer.next_offset() == 0


def test_an_older_window_never_replaces_a_newer_one(stack: Stack, writer: Writer) -> None:
    network = f"2001:db8:{uuid4().hex[:4]}::/64"
    newer = RateLimitState(network, 10, 3600, (), 7, NOON, 50)
    writer.write(at(RATE_LIMITS, newer))

    writer.write(at(RATE_LIMITS, replace(newer, refused=1, input_offset=40)))

    query = "SELECT submission_count FROM nigredo.rate_limits WHERE ip_address = %s"
    assert stack.rows(query, network) == [(7,)]
    writer.write(at(RATE_LIMITS, replace(newer, refused=0, input_offset=60)))
    assert stack.rows(query, network) == []


def test_a_window_of_a_topic_of_submissions_that_was_made_again_replaces_the_older_one(
    stack: Stack, writer: Writer
) -> None:
    network = f"2001:db8:{uuid4().hex[:4]}::/64"
    before = RateLimitState(network, 10, 3600, (), 7, NOON, 50)
    writer.write(at(RATE_LIMITS, before))

    writer.write(at(RATE_LIMITS, replace(before, refused=1, updated_at=NOON + timedelta(hours=2), input_offset=3)))

    query = "SELECT submission_count FROM nigredo.rate_limits WHERE ip_address = %s"
    assert stack.rows(query, network) == [(1,)]


def test_a_table_that_somebody_locks_is_waited_for_until_the_statement_times_out_and_then_tried_again(
    stack: Stack, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "STATEMENT_TIMEOUT_S", 1.0)
    lead = a_lead()
    with stack.database() as somebody, somebody.transaction():
        somebody.execute("LOCK TABLE nigredo.leads IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DependencyDown, match="QueryCanceled"):
            writer.write(at(LEADS, lead))
    assert writer.next_offset() == 0

    writer.write(at(LEADS, lead))

    assert stack.rows("SELECT count(*) FROM nigredo.leads WHERE id = %s", lead.id) == [(1,)]
    assert writer.next_offset() == 1


class Counting(Store):
    """Counts the transactions that were begun."""

    begun = 0

    async def _move(self, connection: Any, step: OffsetStep) -> None:
        Counting.begun += 1
        await super()._move(connection, step)


def test_a_deadlock_with_somebody_elses_transaction_is_tried_again(stack: Stack, writer: Writer) -> None:
    """Postgres ends one of the two; which one is up to the clock, so it is done until it was ours."""
    writer.write(at(LEADS, a_lead()))
    for stood_at in range(1, 20):
        lead, Counting.begun = a_lead(), 0
        step = writer.step(stood_at, stood_at + 1)
        rows = rows_of([at(LEADS, lead)])
        with ThreadPoolExecutor(1) as threads, stack.database() as somebody:
            with suppress(psycopg.errors.DeadlockDetected), somebody.transaction():
                somebody.execute(
                    "INSERT INTO nigredo.leads "
                    "(id, name, email, message, ip_address, created_at, lead_partition, lead_offset) "
                    "VALUES (%s, 'Ana', 'ana@example.com', 'Oi', '192.0.2.1', now(), 0, 0)",
                    (lead.id,),
                )
                ours = threads.submit(run, stack, partial(written, rows, step), Counting)
                eventually(lambda: waits_for_a_lock(stack), within_s=60, what="our transaction waiting for theirs")
                somebody.execute(
                    "UPDATE nigredo.stream_offsets SET topic = topic WHERE topic_id = %s", (writer.topic_id,)
                )
                raise psycopg.Rollback
            ours.result(60)
        assert stack.rows("SELECT count(*) FROM nigredo.leads WHERE id = %s", lead.id) == [(1,)]
        assert writer.next_offset() == stood_at + 1
        if Counting.begun > 1:
            return
    raise AssertionError("the deadlock never hit our transaction")


def written(rows: Rows, step: OffsetStep, store: Store) -> Coroutine[Any, Any, None]:
    return store.write(rows, [step])


def waits_for_a_lock(stack: Stack) -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    return bool(stack.rows(waiting, stack.settings().function("test")))


def test_a_serialization_failure_is_tried_again_a_few_times_and_then_waited_for(stack: Stack, writer: Writer) -> None:
    class Failing(Store):
        tries = 0
        fails = 2

        async def _write(self, connection: Any, rows: Any) -> None:
            Failing.tries += 1
            if Failing.tries <= Failing.fails:
                await connection.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
            await super()._write(connection, rows)

    lead = a_lead()
    step = writer.step(0, 1)
    run(stack, lambda store: store.write(rows_of([at(LEADS, lead)]), [step]), Failing)
    assert (Failing.tries, writer.next_offset()) == (3, 1)

    Failing.tries, Failing.fails = 0, 9
    with pytest.raises(DependencyDown, match="SerializationFailure"):
        run(stack, lambda store: store.write(rows_of([]), [writer.step(1, 2)]), Failing)
    assert writer.next_offset() == 1


def test_the_pool_keeps_to_the_limits_of_the_runbook(stack: Stack) -> None:
    async def scenario() -> tuple[int, int, float, float]:
        pool = make_pool(stack.settings(), "test")
        return pool.min_size, pool.max_size, pool.max_idle, pool.timeout

    assert asyncio.run(scenario()) == (0, 10, 30.0, 2.0)


def test_a_database_that_is_away_is_told_as_such(stack: Stack) -> None:
    settings = replace(stack.settings(), database_url="host=127.0.0.1 port=1 dbname=x user=x", db_pool_timeout_s=0.5)

    async def scenario() -> None:
        pool = make_pool(settings, "test", size_max=1)
        await pool.open()
        try:
            await Store(pool).position("x", 0)
        finally:
            await pool.close()

    with pytest.raises(DependencyDown):
        asyncio.run(scenario())
