"""Problems of an endpoint that need an operator, and states that do not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from nigredo.observability.health import Health, HealthServer
from nigredo.operations.endpoint_status import EndpointHealth, Oldest, Sender, ask_sender
from nigredo.testing import free_port_base

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LEAD = UUID(int=1)
WELL = EndpointHealth(
    enabled=True,
    sender=Sender(ready=True, waiting_for=None, breaker="closed"),
    lag=0,
    oldest=None,
    attempts=100,
    failed=10,
    waiting=3,
    replays=2,
    dead=7,
    parked=0,
)


def test_a_tenth_of_failed_attempts_waiting_leads_and_dead_leads_are_no_problem() -> None:
    assert WELL.problems(NOON) == []
    assert replace(WELL, oldest=Oldest(LEAD, NOON - timedelta(minutes=10))).problems(NOON) == []
    assert replace(WELL, attempts=0, failed=0).problems(NOON) == []
    assert replace(WELL, sender=Sender(ready=True, waiting_for=None, breaker=None)).problems(NOON) == []


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (replace(WELL, enabled=False), "paused"),
        (replace(WELL, sender=Sender(ready=False, waiting_for="Kafka", breaker="closed")), "waits for Kafka"),
        (replace(WELL, sender=Sender(ready=True, waiting_for=None, breaker="open")), "breaker is open"),
        (replace(WELL, failed=11), "11%"),
        (replace(WELL, not_judged="the log ends at 7"), "not judged: the log ends at 7"),
        (replace(WELL, parked=2), "2 records are parked"),
        (replace(WELL, parked=1), "1 record is parked"),
        (replace(WELL, unread=(4, 5)), "no sender reads nigredo.leads partition 4, 5"),
        (replace(WELL, oldest=Oldest(LEAD, NOON - timedelta(minutes=10, seconds=1))), "2026-01-31 11:49:59"),
    ],
)
def test_each_problem_is_named(state: EndpointHealth, said: str) -> None:
    (problem,) = state.problems(NOON)

    assert said in problem


def test_the_answer_of_another_endpoints_sender_is_ignored() -> None:
    port, health = free_port_base(), Health("sender")
    health.add_details(lambda: {"endpoint": "crm", "breaker": "open"})
    server = HealthServer(health, "127.0.0.1", port)
    server.start()
    try:
        assert ask_sender(f"http://127.0.0.1:{port}", "crm") == Sender(False, "start", "open")
        assert ask_sender(f"http://127.0.0.1:{port}", "erp") == Sender(True, None, None)
        health.add_details(lambda: {"endpoint": "crm", "breaker": "closed", "paused": True})
        assert ask_sender(f"http://127.0.0.1:{port}", "crm") == Sender(False, "start", "closed", paused=True)
    finally:
        server.stop()
