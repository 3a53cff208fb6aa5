"""Attempt log: finds the leads that failed before a restart, and writes an attempt before its log line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from nigredo.avro.codec import Undecodable
from nigredo.endpoints.endpoint import Endpoint
from nigredo.settings import Settings
from schemas.events import Contact, DeliveryAttempt, Lead
from sinks.webhook.delivery import attempt_log as module
from sinks.webhook.delivery.attempt_log import AttemptLog
from sinks.webhook.model import AttemptResult, InFlightLead, Outcome

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
A, B, C = (UUID(int=number) for number in range(3))
ENDPOINT = Endpoint(
    name="fibonacci", url="https://x.example/hooks/s3cr3t-token?key=s3cr3t", secret_file=Path("none"), rate_per_s=0,
    in_flight_max=1, timeout_s=None, enabled=True, start="now",
)  # fmt: skip


def made(lead_id: UUID, outcome: str, minute: int, endpoint: str = "fibonacci") -> DeliveryAttempt:
    return DeliveryAttempt(
        id=UUID(int=99), lead_id=lead_id, endpoint=endpoint, webhook_url="", attempt=1,
        sent_at=NOON + timedelta(minutes=minute), duration_ms=1, outcome=outcome, status_code=None, error_message=None,
        lead_partition=0, lead_offset=0, replay=False,
    )  # fmt: skip


@dataclass
class Message:
    record: DeliveryAttempt | None

    def value(self) -> Any:
        return self.record


class Topic:
    """A topic reader over fixed attempts; None stands for a record that cannot be decoded."""

    def __init__(self, *partitions: Sequence[DeliveryAttempt | None]) -> None:
        self._partitions = partitions

    def partitions(self, _: str) -> list[int]:
        return list(range(len(self._partitions)))

    def watermarks(self, _: str, partition: int) -> tuple[int, int]:
        return 0, len(self._partitions[partition])

    def between(self, _: str, partition: int, start: int, end: int) -> Iterator[Message]:
        return (Message(record) for record in self._partitions[partition][start:end])


class PlainCodec:
    def decode(self, _: str, value: Any) -> Any:
        if not value:
            raise Undecodable("no record")
        return value

    def encode(self, _: str, event: Any) -> Any:
        return event


class Published:
    def __init__(self) -> None:
        self.events: list[Any] = []

    async def publish(self, _: str, **record: Any) -> None:
        self.events.append(record["value"])


def failing(*partitions: Sequence[DeliveryAttempt | None]) -> set[UUID] | None:
    log = AttemptLog(Settings.from_environment({}), ENDPOINT, cast(Any, PlainCodec()), cast(Any, Published()))
    log._reader = cast(Any, Topic(*partitions))
    try:
        return asyncio.run(log.failing())
    finally:
        log.close()


def test_leads_that_failed_since_the_last_delivered_lead_are_failing_in_any_partition() -> None:
    assert failing([made(A, "dead", 1), made(B, "retry", 3)], [made(C, "retry", 2)]) == {A, B, C}
    assert failing([made(A, "dead", 1), made(B, "retry", 3)], [made(C, Outcome.DELIVERED, 2)]) == {B}
    assert failing([made(A, "retry", 1), made(A, Outcome.DELIVERED, 2)], []) == set()


def test_attempts_of_other_endpoints_and_undecodable_records_are_ignored() -> None:
    assert failing([None, made(A, "retry", 1), made(B, "retry", 2, "crm"), made(B, Outcome.DELIVERED, 3, "crm")]) == {A}


def test_an_endpoint_without_an_attempt_has_no_failing_leads() -> None:
    assert failing([], []) == set()


def test_failing_leads_are_unknown_when_all_of_the_newest_attempts_are_of_other_endpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "NEWEST_MAX", 2)
    others = [made(B, Outcome.DELIVERED, 3, "crm")] * 2

    assert failing([made(A, "retry", 1), *others]) is None
    assert failing([made(A, "retry", 1), *others], [made(C, "retry", 2)]) == {C}


class BrokenLog:
    def info(self, *_: Any, **__: Any) -> None:
        raise BrokenPipeError


def test_an_attempt_is_written_even_if_its_log_line_fails_and_without_the_url_s_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "log", BrokenLog())
    published = Published()
    log = AttemptLog(Settings.from_environment({}), ENDPOINT, cast(Any, PlainCodec()), cast(Any, published))
    lead = Lead(
        A, "192.0.2.1", "192.0.2.1", None, None, None, Contact("Ana", "ana@example.com", "Oi", {}), NOON, NOON, False,
        0, 0,
    )  # fmt: skip

    with pytest.raises(BrokenPipeError):
        asyncio.run(
            log.append(lead, InFlightLead(0, 0, NOON), AttemptResult(Outcome.DELIVERED, NOON, 1, 200, None), dead=False)
        )

    (record,) = published.events
    assert record.outcome == Outcome.DELIVERED
    assert record.webhook_url == "https://x.example/hooks/***"
