"""Undelivered leads by tables and log: records that the tables do not hold yet are neither missing nor repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from nigredo.errors import DependencyDown
from nigredo.operations import delivery_queries as deliveries
from nigredo.operations.delivery_queries import Begun, Undelivered, undelivered
from nigredo.operations.recovery.beyond import Gap, LoggedLead, UnloggedLeads, behind, beyond
from nigredo.settings import Settings
from schemas.events import DeliveryAttempt
from schemas.topics import LEADS

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SETTINGS = Settings.from_environment({})
NOTHING = UnloggedLeads({}, set(), {})


def row(number: int, **more: Any) -> Undelivered:
    found = Undelivered(UUID(int=number), NOON + timedelta(seconds=number), 0, number, None, None, None, None)
    return replace(found, **more)


def logged(number: int) -> LoggedLead:
    return LoggedLead(UUID(int=number), 0, number, NOON + timedelta(seconds=number))


def attempt(number: int, outcome: str, at_s: int, status: int = 500) -> DeliveryAttempt:
    fields = dict.fromkeys(DeliveryAttempt.__dataclass_fields__)
    sent_at = NOON + timedelta(seconds=at_s)
    known = {"lead_id": UUID(int=number), "outcome": outcome, "sent_at": sent_at, "status_code": status}
    return DeliveryAttempt(**fields | known)  # type: ignore[arg-type] # other fields do not matter here


def found(
    monkeypatch: pytest.MonkeyPatch, table: Sequence[Undelivered], log: UnloggedLeads, begun: Begun | None = None,
    delivered: Sequence[int] = (), limit: int = 20,
) -> list[Undelivered]:  # fmt: skip
    def rows(_: Settings, kind: type[Any], statement: str, values: dict[str, Any]) -> Sequence[Any]:
        if kind is Undelivered:
            return list(table)[: values["limit"]]
        return [kind(UUID(int=number)) for number in delivered]

    monkeypatch.setattr(deliveries, "_rows", rows)
    return list(undelivered(SETTINGS, "fibonacci", NOON, limit, log, begun))


def test_leads_of_the_log_alone_are_listed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    log = UnloggedLeads({UUID(int=n): logged(n) for n in (1, 3)}, (), {})

    assert [each.lead_offset for each in found(monkeypatch, [row(2), row(3)], log)] == [1, 2, 3]


def test_leads_that_the_log_shows_delivered_or_erased_are_replaced_by_the_next_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = UnloggedLeads({}, {UUID(int=1)}, {UUID(int=2): [attempt(2, "retry", 5), attempt(2, "delivered", 6, 200)]})

    listed = found(monkeypatch, [row(1), row(2), row(3), row(4)], log, limit=1)

    assert [each.lead_offset for each in listed] == [3]


def test_a_lead_of_the_log_whose_delivery_is_in_the_table_already_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    log = UnloggedLeads({UUID(int=n): logged(n) for n in (1, 2)}, (), {})

    assert [each.lead_offset for each in found(monkeypatch, [], log, delivered=[1])] == [2]


def test_attempts_that_only_the_log_has_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = row(1, attempts=2, last_sent_at=NOON + timedelta(seconds=20), status_code=503)
    made = [attempt(1, "retry", 20, 503), attempt(1, "retry", 30, 500)]

    (listed,) = found(monkeypatch, [stored], UnloggedLeads({}, (), {UUID(int=1): made}))

    assert (listed.attempts, listed.status_code) == (3, 500)


def test_leads_from_before_an_endpoint_began_are_left_out_and_a_new_log_hides_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = UnloggedLeads({UUID(int=n): logged(n) for n in (1, 7)}, (), {})
    begun = Begun(NOON + timedelta(seconds=5), {0: 10})

    assert [each.lead_offset for each in found(monkeypatch, [], log, begun)] == [7]


def test_tables_too_far_behind_the_log_are_reported_instead_of_guessing() -> None:
    far = [Gap(LEADS, 0, 10, 150_010), Gap(LEADS, 1, 0, 100_000)]

    assert behind(far) == 250_000
    with pytest.raises(DependencyDown, match="250000 records behind the log"):
        beyond(SETTINGS, None, "fibonacci", far)  # type: ignore[arg-type] # nothing is read
    assert beyond(SETTINGS, None, "fibonacci", []) == NOTHING  # type: ignore[arg-type]
