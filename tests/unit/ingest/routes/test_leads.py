"""Ids of leads in flight: by the time in the id, and by a bounded cache of ids without a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID, uuid4

import pytest

from ingest.routes import leads as module
from ingest.routes.leads import NOT_YET_MAX, NOT_YET_S, RecentKeyedIds
from ingest.submissions.lead_ids import AT_ONCE, issued_within, uuid7s

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
SKEW = timedelta(seconds=5)


def test_ids_are_of_version_7_differ_and_tell_the_time() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    ids = list(islice(uuid7s(), 3 * AT_ONCE))
    after = datetime.now(UTC)

    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert len({one.int & (2**62 - 1) for one in ids}) == len(ids)
    for one in ids:
        assert before <= datetime.fromtimestamp((one.int >> 80) / 1000, UTC) <= after


def given_at(at: datetime) -> UUID:
    return UUID(int=(int(at.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62))


@pytest.mark.parametrize(
    ("ago_s", "may_come"), [(0, True), (29.9, True), (30.1, False), (-4.9, True), (-5.1, False), (86_400, False)]
)
def test_an_id_may_be_on_its_way_for_a_while_after_it_was_given(ago_s: float, may_come: bool) -> None:
    lead_id = given_at(NOON - timedelta(seconds=ago_s))

    assert issued_within(lead_id, timedelta(seconds=30), NOON, skew=SKEW) is may_come


@pytest.mark.parametrize("made_up", [uuid4(), UUID(int=0), UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")])
def test_an_id_that_tells_no_time_or_an_impossible_one_is_not_on_its_way(made_up: UUID) -> None:
    assert not issued_within(made_up, timedelta(seconds=30), NOON, skew=SKEW)


def test_a_keyed_lead_is_recent_for_half_a_minute_whether_others_come_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    recent, lead_id = RecentKeyedIds(), uuid4()
    recent.add(lead_id)

    now[0] += NOT_YET_S - 1
    assert lead_id in recent
    now[0] += 1
    assert lead_id not in recent
    assert uuid4() not in recent
    assert None not in recent


def test_the_newest_are_remembered() -> None:
    recent, ids = RecentKeyedIds(), [uuid4() for _ in range(NOT_YET_MAX + 1)]
    for lead_id in ids:
        recent.add(lead_id)

    assert ids[0] not in recent
    assert ids[1] in recent
