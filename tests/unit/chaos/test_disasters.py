"""The tools of the disasters themselves: a log is cut between two batches, and the judge sees a form that is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from tests.chaos.disaster_campaign import Word, every_pair, plan
from tests.chaos.evidence import Evidence, LeadRow
from tests.chaos.judgement import judge_afterwards
from tests.chaos.load import Form
from tests.chaos.log_files import CLEAN_SHUTDOWN, HEADER, batches, cut_tail
from tests.unit.chaos.test_judgement import NETWORK, evidence

TOPIC = "nigredo.leads"


def batch(base_offset: int, content: bytes) -> bytes:
    return HEADER.pack(base_offset, len(content)) + content


def partition(data: Path, number: int, *segments: bytes) -> Path:
    folder = data / f"{TOPIC}-{number}"
    folder.mkdir(parents=True)
    for which, content in enumerate(segments):
        (folder / f"{which:020}.log").write_bytes(content)
        (folder / f"{which:020}.index").touch()
    return folder


def test_the_newest_batches_are_cut_and_the_older_ones_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / CLEAN_SHUTDOWN).touch()
    folder = partition(tmp_path, 0, b"".join(batch(10 * n, bytes(n + 1)) for n in range(10)))

    assert cut_tail(tmp_path, TOPIC, share=0.3) == {0: 70}

    assert [one.base_offset for one in batches(folder)] == [10 * n for n in range(7)]
    assert not list(folder.glob("*.index"))
    assert not (tmp_path / CLEAN_SHUTDOWN).exists()


def test_a_cut_reaches_over_segments_and_leaves_partitions_without_records_alone(tmp_path: Path) -> None:
    folder = partition(tmp_path, 0, batch(0, b"a") + batch(1, b"b"), batch(2, b"c"), b"")
    partition(tmp_path, 1, b"")

    assert cut_tail(tmp_path, TOPIC, share=0.5) == {0: 1}

    assert [one.base_offset for one in batches(folder)] == [0]


def test_a_torn_batch_is_no_batch(tmp_path: Path) -> None:
    folder = partition(tmp_path, 0, batch(0, b"whole") + batch(1, b"torn")[:-1])

    assert [one.base_offset for one in batches(folder)] == [0]


def test_forms_that_are_all_handled_are_found_to_be() -> None:
    assert judge_afterwards(after_a_disaster()).broken == []


def without_its_lead(evidence: Evidence) -> None:
    del evidence.leads[0]


def without_its_row(evidence: Evidence) -> None:
    evidence.lead_rows.clear()


def without_its_webhook(evidence: Evidence) -> None:
    evidence.received.clear()


def without_its_submission(evidence: Evidence) -> None:
    del evidence.submissions[0]


def refused(evidence: Evidence) -> None:
    evidence.verdict_rows = dict.fromkeys(evidence.verdict_rows, "rate_limited")


def stored_as_another(evidence: Evidence) -> None:
    evidence.lead_rows = {lead_id: LeadRow("Ana", "x@y.z", "", NETWORK) for lead_id in evidence.lead_rows}


def sent_in_two_ways(evidence: Evidence) -> None:
    evidence.received.append(replace(evidence.received[0], body='{"lead": {"id": "other"}}'))


def parked(evidence: Evidence) -> None:
    evidence.parked = 1


@pytest.mark.parametrize(
    "harm",
    [
        without_its_lead,
        without_its_row,
        without_its_webhook,
        without_its_submission,
        refused,
        stored_as_another,
        sent_in_two_ways,
        parked,
    ],
)
def test_what_became_of_a_form_that_was_not_handled_is_told(harm: Callable[[Evidence], None]) -> None:
    found = after_a_disaster()
    harm(found)

    assert judge_afterwards(found).broken


def test_forms_of_before_the_disaster_are_no_matter_of_the_judge() -> None:
    found = after_a_disaster()
    found.lead_rows[str(uuid4())] = LeadRow("Ana", "x@y.z", "", NETWORK)

    assert judge_afterwards(found).broken == []


def after_a_disaster() -> Evidence:
    """Return the evidence of one form that is handled; the others were sent before the disaster."""
    found = evidence()
    found.answers.taken = dict(list(found.answers.taken.items())[:1])
    found.answers.forms = {0: Form(0, NETWORK, "keyed")}
    found.lead_rows = {lead_id: replace(row, message=row.message.strip()) for lead_id, row in found.lead_rows.items()}
    return found


def test_a_seed_plans_each_disaster_in_each_timing_before_one_comes_again() -> None:
    many = len(every_pair())

    assert {(disaster.name, timing) for disaster, timing in plan(7, many)} == {
        (disaster.name, timing) for disaster, timing in every_pair()
    }
    assert plan(7, 5) == plan(7, 5) != plan(8, 5)


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("rate-limiter waits: …; repair it with: nigredo recover", "recover"),
        ("schemas waits: …: `nigredo schemas repair`", "schemas repair"),
        ("kafka waits: start", None),
    ],
)
def test_the_way_back_is_the_command_that_the_product_names(text: str, cure: str | None) -> None:
    assert Word(status_well=False, webhook_well=False, text=text).cure == cure
