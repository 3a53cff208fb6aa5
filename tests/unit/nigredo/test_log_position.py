"""Positions in the log: their comparison with the log, and their text in a commit's metadata."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.log_position import (
    REPAIR,
    Finding,
    LogNow,
    LogPosition,
    Mark,
    compare,
    from_metadata,
    kept,
    proven,
    refusal,
    to_metadata,
)

TOPIC_ID = "2uV/5bGyS3OMNPtlyXgKZg"
LAST = Mark.of(41, 1_796_013_316_402, b"192.0.2.1", 3)
POSITION = LogPosition(42, TOPIC_ID, LAST)
NOW = LogNow(TOPIC_ID, 0, 100, LAST, append_time=True)


def test_a_position_whose_last_record_stands_in_the_log_agrees_with_it() -> None:
    assert compare(POSITION, NOW) is Finding.AGREES
    assert compare(POSITION, replace(NOW, end=42)) is Finding.AGREES


def test_a_position_past_the_end_does_not_agree_whether_or_not_it_is_proven() -> None:
    cut = replace(NOW, end=41, found=None)
    assert compare(POSITION, cut) is Finding.PAST_END
    assert compare(LogPosition(42), cut) is Finding.PAST_END


@pytest.mark.parametrize(
    "other",
    [
        replace(LAST, timestamp_ms=LAST.timestamp_ms + 1),
        replace(LAST, key_crc32=Mark.of(0, 0, b"192.0.2.2").key_crc32),
        replace(LAST, leader_epoch=4),
    ],
    ids=["time", "key", "epoch"],
)
def test_another_record_at_the_last_offset_does_not_agree_however_far_the_log_has_grown(other: Mark) -> None:
    assert compare(POSITION, replace(NOW, end=10_000, found=other)) is Finding.OTHER_RECORD


def test_an_epoch_that_one_of_the_clients_does_not_report_decides_nothing() -> None:
    assert compare(replace(POSITION, last=replace(LAST, leader_epoch=None)), NOW) is Finding.AGREES
    assert compare(POSITION, replace(NOW, found=replace(LAST, leader_epoch=None))) is Finding.AGREES


def test_a_topic_made_again_under_its_name_does_not_agree_even_with_nothing_handled() -> None:
    anew = LogNow("another", 0, 100, LAST)
    assert compare(POSITION, anew) is Finding.OTHER_TOPIC
    assert compare(LogPosition(0, TOPIC_ID), anew) is Finding.OTHER_TOPIC


def test_records_deleted_unread_do_not_agree_and_records_deleted_once_read_do() -> None:
    later = replace(LAST, offset=50, timestamp_ms=LAST.timestamp_ms + 5)
    assert compare(POSITION, LogNow(TOPIC_ID, 50, 100, later)) is Finding.TRIMMED
    assert compare(LogPosition(42), LogNow(TOPIC_ID, 50, 100, later)) is Finding.TRIMMED
    assert compare(POSITION, LogNow(TOPIC_ID, 42, 100, replace(later, offset=42))) is Finding.AGREES
    assert compare(POSITION, LogNow(TOPIC_ID, 42, 42)) is Finding.AGREES


def test_where_the_last_record_was_compacted_away_what_follows_must_not_be_older() -> None:
    follows = replace(LAST, offset=44, timestamp_ms=LAST.timestamp_ms + 5)
    assert compare(POSITION, replace(NOW, found=follows)) is Finding.AGREES
    older_epoch, older_time = replace(follows, leader_epoch=2), replace(follows, timestamp_ms=LAST.timestamp_ms - 1)
    assert compare(POSITION, replace(NOW, found=older_epoch)) is Finding.OTHER_RECORD
    assert compare(POSITION, replace(NOW, found=older_time)) is Finding.OTHER_RECORD
    # Producers' clocks differ: their times prove no order.
    assert compare(POSITION, replace(NOW, found=older_time, append_time=False)) is Finding.AGREES


def test_a_time_that_is_a_bound_may_lie_after_the_record_and_not_before_it() -> None:
    before, after = (replace(LAST, timestamp_ms=LAST.timestamp_ms + step) for step in (-1, 1))
    assert compare(POSITION, replace(NOW, found=before), exact_time=False) is Finding.AGREES
    assert compare(POSITION, replace(NOW, found=after), exact_time=False) is Finding.OTHER_RECORD


def test_a_position_of_an_older_release_is_believed_once_and_then_proven() -> None:
    old = LogPosition(42)
    assert old.asks_at == 41
    assert compare(old, NOW) is Finding.UNPROVEN
    assert Finding.UNPROVEN.believed
    assert proven(old, NOW) == POSITION


@pytest.mark.parametrize("position", [LogPosition(42), LogPosition(42, TOPIC_ID)])
def test_a_position_past_the_end_that_nothing_proves_stays_refused_when_the_log_has_grown(
    position: LogPosition,
) -> None:
    stored = kept(position, replace(NOW, end=40, found=None))

    assert stored is not None
    stored = from_metadata(42, to_metadata(stored))[0]
    assert compare(stored, NOW) is Finding.PAST_END
    assert "the log ends at 100, and ended before that offset earlier" in refusal(
        "group", "topic", 0, stored, NOW, Finding.PAST_END
    )
    assert kept(stored, NOW) is None


def test_a_refused_position_with_a_proof_is_kept_as_it_is() -> None:
    assert kept(POSITION, replace(NOW, end=40, found=None)) is None


def test_nothing_that_follows_a_position_proves_it() -> None:
    follows = replace(LAST, offset=42)
    assert proven(LogPosition(42), replace(NOW, found=follows)) == LogPosition(42, TOPIC_ID)
    assert proven(LogPosition(0), replace(NOW, found=replace(LAST, offset=0))) == LogPosition(0, TOPIC_ID)


@pytest.mark.parametrize("finding", [finding for finding in Finding if not finding.believed])
def test_a_refusal_names_the_position_what_was_found_and_the_command_that_repairs_it(finding: Finding) -> None:
    said = refusal("nigredo-persister-dev", "nigredo.leads", 3, POSITION, NOW, finding)
    assert said.startswith("nigredo-persister-dev stands at offset 42 of nigredo.leads partition 3, but ")
    assert said.endswith(REPAIR)
    assert "\n" not in said


def test_the_text_in_a_commits_metadata() -> None:
    said = to_metadata(POSITION, since="1796013316402")
    assert said == f"nigredo/1 topic={TOPIC_ID} last=41 ms=1796013316402 key=db610037 epoch=3 since=1796013316402 ."
    assert from_metadata(42, said) == (POSITION, {"since": "1796013316402"})


marks = st.builds(
    Mark, st.integers(0), st.integers(-1), st.integers(0, 2**32 - 1), st.none() | st.integers(0, 2**31 - 1)
)
positions = st.builds(
    LogPosition, st.integers(0), st.none() | st.just(TOPIC_ID), st.none() | marks, past_end=st.booleans()
)


@given(positions, st.integers(0))
def test_a_position_and_a_groups_own_field_survive_the_metadata(position: LogPosition, since: int) -> None:
    said = to_metadata(position, since=str(since))
    assert len(said) < 400
    assert from_metadata(position.next_offset, said) == (position, {"since": str(since)})


@given(positions, st.text())
def test_bytes_that_the_client_library_leaves_behind_the_metadata_change_nothing(
    position: LogPosition, left: str
) -> None:
    said = to_metadata(position, since="1796013316402")
    assert from_metadata(position.next_offset, said + left) == (position, {"since": "1796013316402"})
    assert from_metadata(42, "1796013316402" + left) == (LogPosition(42), {"since": "1796013316402"})


def test_plain_milliseconds_of_earlier_releases_are_the_sinks_and_prove_nothing() -> None:
    assert from_metadata(42, "1796013316402") == (LogPosition(42), {"since": "1796013316402"})


@given(st.none() | st.text().filter(lambda text: len(text) < 13))
def test_metadata_of_others_proves_nothing(text: str | None) -> None:
    assert from_metadata(42, text) == (LogPosition(42), {})


@pytest.mark.parametrize(
    "damaged", ["nigredo/1 last=x ms=1 key=2 .", "nigredo/1 last=1 ms=2 .", "nigredo/1", "nigredo/1 topic=a"]
)
def test_damaged_metadata_of_ours_proves_nothing(damaged: str) -> None:
    assert from_metadata(42, damaged)[0] == LogPosition(42)


def test_a_field_that_would_not_come_back_is_refused() -> None:
    for further in ({"last": "1"}, {"since": "1 2"}, {"SINCE": "1"}):
        with pytest.raises(ValueError, match="metadata"):
            to_metadata(POSITION, **further)
