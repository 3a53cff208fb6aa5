"""Lead ids of the last minute: a bounded memory that ends by itself."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ingest import leads as module
from ingest.leads import NOT_YET_MAX, NOT_YET_S, Recent


def test_a_lead_is_recent_for_a_minute_whether_others_come_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    recent, lead_id = Recent(), uuid4()
    recent.add(lead_id)

    now[0] += NOT_YET_S - 1
    assert lead_id in recent
    now[0] += 1
    assert lead_id not in recent
    assert uuid4() not in recent
    assert None not in recent


def test_the_newest_are_remembered() -> None:
    recent, ids = Recent(), [uuid4() for _ in range(NOT_YET_MAX + 1)]
    for lead_id in ids:
        recent.add(lead_id)

    assert ids[0] not in recent
    assert ids[1] in recent
