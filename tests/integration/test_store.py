"""Rows and offsets in one transaction, against the real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from nigredo.db import make_pool
from nigredo.errors import DependencyDown, RecordRefused
from nigredo.record import Record
from nigredo.testing import Stack
from processors.in_order import Decoded, Stale
from processors.persistence.rows import rows_of
from processors.persistence.store import Progress, Store
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

    def write(self, *records: Decoded) -> None:
        self.write_from(self._next, records)
        self._next += len(records)

    def write_from(self, stood_at: int, records: Sequence[Decoded]) -> None:
        step = Progress(self.topic_id, 0, "test", stood_at, stood_at + len(records))
        run(self._stack, lambda store: store.write(rows_of(records), [step]))

    def next_offset(self) -> int | None:
        return run(self._stack, lambda store: store.next_offset(self.topic_id, 0))


def run(stack: Stack, work: Any) -> Any:
    async def scenario() -> Any:
        pool = make_pool(stack.settings(), "test", size_max=1)
        await pool.open()
        try:
            coroutine: Coroutine[Any, Any, Any] = work(Store(pool))
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
        with pytest.raises(Stale):
            writer.write_from(elsewhere, [at(LEADS, late)])

    assert stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", late.id) == []
    assert writer.next_offset() == 1


def test_a_row_the_database_cannot_take_is_refused_with_its_batch_and_without_its_values(
    stack: Stack, writer: Writer
) -> None:
    lead = a_lead()
    poison = replace(a_lead(), contact=Contact("Zenobia\0", "z@example.com", "Oi", {}))

    with pytest.raises(RecordRefused) as refused:
        writer.write(at(LEADS, lead), at(LEADS, poison))

    assert "Zenobia" not in str(refused.value)
    assert stack.rows("SELECT 1 FROM nigredo.leads WHERE id = %s", lead.id) == []
    assert writer.next_offset() is None


def test_an_older_window_never_replaces_a_newer_one(stack: Stack, writer: Writer) -> None:
    network = f"2001:db8:{uuid4().hex[:4]}::/64"
    newer = RateLimitState(network, 10, 3600, (), 7, NOON, 50)
    writer.write(at(RATE_LIMITS, newer))

    writer.write(at(RATE_LIMITS, replace(newer, refused=1, input_offset=40)))

    query = "SELECT submission_count FROM nigredo.rate_limits WHERE ip_address = %s"
    assert stack.rows(query, network) == [(7,)]
    writer.write(at(RATE_LIMITS, replace(newer, refused=0, input_offset=60)))
    assert stack.rows(query, network) == []


def test_a_database_that_is_away_is_told_as_such(stack: Stack) -> None:
    settings = replace(stack.settings(), database_url="host=127.0.0.1 port=1 dbname=x user=x", db_pool_timeout_s=0.5)

    async def scenario() -> None:
        pool = make_pool(settings, "test", size_max=1)
        await pool.open()
        try:
            await Store(pool).next_offset("x", 0)
        finally:
            await pool.close()

    with pytest.raises(DependencyDown):
        asyncio.run(scenario())
