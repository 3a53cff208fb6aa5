"""Replay plan: exactly the requested leads are sent and no excluded one, whatever the logs look like."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.endpoints.keys import from_key, key_of
from nigredo.operations.replay_plan import AttemptSeen, Counts, LeadSeen, References, Rule, asked_for, select

# Few ids, so that leads, their tombstones, duplicates and attempts often share an id.
IDS = [UUID(int=number).bytes for number in range(8)]
ids = st.sampled_from(IDS)
logs = st.lists(st.tuples(ids, st.booleans(), st.sampled_from([True, False, False])), max_size=30).map(
    lambda rows: [LeadSeen(i, offset * 3, asked and not gone, gone) for offset, (i, asked, gone) in enumerate(rows)]
)
attempts = st.lists(st.builds(AttemptSeen, ids, st.booleans()), max_size=20)
rules = st.sampled_from([Rule(), Rule(include_delivered=True), Rule(failed_only=True)])


def planned(
    log: list[LeadSeen], tried: list[AttemptSeen], waiting: set[bytes], rule: Rule
) -> tuple[Counts, list[tuple[UUID, int]]]:
    found, erased = asked_for(log)
    counts, references = select(0, found, erased, tried, waiting, rule)
    return counts, list(references)


def naive(log: list[LeadSeen], tried: list[AttemptSeen], waiting: set[bytes], rule: Rule) -> dict[UUID, int]:
    """Return the plan by a slow reference implementation, one lead at a time: newest offset by lead."""
    sent = {}
    for lead_id in IDS:
        records = [record for record in log if record.id == lead_id]
        gone = max((number for number, record in enumerate(records) if record.erased), default=-1)
        left = records[gone + 1 :]
        outcomes = {attempt.delivered for attempt in tried if attempt.id == lead_id}
        if (
            any(record.asked_for for record in left)
            and lead_id not in waiting
            and (rule.include_delivered or True not in outcomes)
            and (not rule.failed_only or False in outcomes)
        ):
            sent[UUID(bytes=lead_id)] = left[-1].offset
    return sent


@given(logs, attempts, st.sets(ids), rules)
def test_the_plan_equals_a_slow_one_made_lead_by_lead(
    log: list[LeadSeen], tried: list[AttemptSeen], waiting: set[bytes], rule: Rule
) -> None:
    counts, references = planned(log, tried, waiting, rule)

    assert dict(references) == naive(log, tried, waiting, rule)
    assert len(references) == counts.to_send
    assert [offset for _, offset in references] == sorted(offset for _, offset in references)


@given(logs, attempts, st.sets(ids), rules)
def test_every_lead_asked_for_is_accounted_for_once(
    log: list[LeadSeen], tried: list[AttemptSeen], waiting: set[bytes], rule: Rule
) -> None:
    counts, _ = planned(log, tried, waiting, rule)

    parts = counts.erased + counts.delivered + counts.waiting + counts.not_failed + counts.to_send
    assert counts.asked_for == parts
    assert counts.asked_for == len({record.id for record in log if record.asked_for})


@given(logs, attempts, st.sets(ids), rules)
def test_the_same_replay_again_sends_nothing(
    log: list[LeadSeen], tried: list[AttemptSeen], waiting: set[bytes], rule: Rule
) -> None:
    _, references = planned(log, tried, waiting, rule)
    asked = {lead_id.bytes for lead_id, _ in references}

    # Both while the leads wait and, unless delivered leads are included, after their delivery.
    assert planned(log, tried, waiting | asked, rule)[1] == []
    if not rule.include_delivered:
        assert planned(log, tried + [AttemptSeen(lead_id, True) for lead_id in asked], waiting, rule)[1] == []


@given(logs, attempts, st.sets(ids))
def test_failed_only_never_sends_a_delivered_lead_nor_one_that_was_not_tried(
    log: list[LeadSeen], tried: list[AttemptSeen], waiting: set[bytes]
) -> None:
    _, references = planned(log, tried, waiting, Rule(failed_only=True))

    sent = {lead_id.bytes for lead_id, _ in references}
    assert not sent & {attempt.id for attempt in tried if attempt.delivered}
    assert sent <= {attempt.id for attempt in tried if not attempt.delivered}


def test_packed_references_equal_a_plain_list_of_them() -> None:
    references = References(3)
    wanted = [(UUID(int=2**128 - 1 - number), 2**40 + number) for number in range(5)]
    for lead_id, offset in wanted:
        references.add(lead_id.bytes, offset)

    assert list(references) == wanted
    assert len(references) == 5


@given(st.uuids(), st.sampled_from(["fibonacci", "crm", "a-1"]))
def test_a_key_names_the_lead_and_the_endpoint(lead_id: UUID, endpoint: str) -> None:
    assert from_key(key_of(lead_id, endpoint)) == (lead_id, endpoint)


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"no-lead", b"no-lead:crm"])
def test_a_foreign_key_names_no_lead(key: bytes | None) -> None:
    assert from_key(key) is None
