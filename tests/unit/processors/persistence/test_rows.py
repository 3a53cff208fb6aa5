"""Rows of a batch: each event becomes the rows of its tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from nigredo.kafka.record import Record
from processors.persistence.rows import rows_of
from schemas.events import Acceptance, Contact, Event, Lead, RateLimitState, Rejection
from schemas.topics import LEADS, RATE_LIMITS, REJECTIONS

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
LEAD = Lead(
    uuid4(), "192.0.2.1", "192.0.2.1", "curl", "contact", "ad", Contact("Ana", "ana@example.com", "Oi", {"a": "b"}),
    NOON, NOON, False, 1, 42,
)  # fmt: skip
REJECTION = Rejection(
    LEAD.id, "192.0.2.1", "192.0.2.1", None, None, None, LEAD.contact, NOON, NOON, "rate_limited", NOON, 1, 43
)
STATE = RateLimitState("192.0.2.1", 10, 3600, (Acceptance(LEAD.id, NOON),), 2, NOON + timedelta(minutes=1), 44)


def at(topic: str, event: Event | None, *, key: bytes = b"", offset: int = 7) -> tuple[Record, Event | None]:
    return Record(topic, 3, offset, NOON, key, None, ()), event


def test_a_lead_is_a_lead_and_an_accepted_submission() -> None:
    rows = rows_of([at(LEADS, LEAD)])

    assert rows.leads[LEAD.id]["extra"] == {"a": "b"}
    assert (rows.leads[LEAD.id]["lead_partition"], rows.leads[LEAD.id]["lead_offset"]) == (3, 7)
    assert rows.form_submissions[LEAD.id]["verdict"] == "accepted"
    assert rows.form_submissions[LEAD.id]["submission_offset"] == 42


def test_the_text_form_of_events_and_records_holds_nothing_personal() -> None:
    record, _ = at(LEADS, LEAD)

    texts = f"{LEAD!r} {REJECTION!r} {replace(record, value=b'ana@example.com', key=b'k')!r}"

    assert str(LEAD.id) in texts
    assert not [word for word in ("Ana", "ana@example.com", "Oi") if word in texts]


def test_a_released_lead_says_so_and_beats_its_rejection_in_either_order() -> None:
    released = replace(LEAD, released=True)

    for order in ([at(LEADS, released), at(REJECTIONS, REJECTION)], [at(REJECTIONS, REJECTION), at(LEADS, released)]):
        assert rows_of(order).form_submissions[LEAD.id]["verdict"] == "released"


def test_a_leads_tombstone_erases_the_lead_and_its_rows_in_the_batch() -> None:
    rows = rows_of([at(LEADS, LEAD), at(LEADS, None, key=str(LEAD.id).encode())])

    assert rows.erased == {LEAD.id}
    assert rows.leads == {}
    assert rows.form_submissions == {}


def test_a_window_is_counted_with_its_refusals_from_its_oldest_acceptance() -> None:
    row = rows_of([at(RATE_LIMITS, STATE)]).rate_limits["192.0.2.1"]

    assert row["submission_count"] == 3
    assert row["window_start"] == NOON.isoformat()


def test_of_two_windows_the_higher_input_offset_counts_even_when_written_first() -> None:
    zombie = replace(STATE, refused=0, input_offset=40)

    rows = rows_of([at(RATE_LIMITS, STATE), at(RATE_LIMITS, zombie)])

    assert rows.rate_limits["192.0.2.1"]["submission_count"] == 3


def test_an_empty_window_frees_the_network() -> None:
    empty = replace(STATE, accepted=(), refused=0, input_offset=45)

    # Exempt submissions do not count.
    for free in (empty, replace(empty, exempt=STATE.accepted)):
        rows = rows_of([at(RATE_LIMITS, STATE), at(RATE_LIMITS, free)])

        assert rows.freed == {"192.0.2.1": 45}
        assert rows.rate_limits == {}
