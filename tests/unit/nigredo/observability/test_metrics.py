"""Metrics catalogue: closed labels, children at 0 from the start, the bucket edges that alarms use."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import falcon.inspect
import prometheus_client as prometheus
import psycopg
import psycopg_pool
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from ingest.app import make_app
from ingest.submissions.service import SubmissionService
from ingest.web import instrumentation as counting
from nigredo.observability import metrics
from nigredo.observability.health import Health
from nigredo.observability.instrument import OTHER, REGISTRY, Histogram, Metric
from nigredo.observability.labels import ENDPOINTS_MAX, ROUTES
from nigredo.postgres.pool import Pool, count_failure
from nigredo.settings import Settings
from sinks.webhook.instrumentation import reason_of
from sinks.webhook.model import AttemptResult

Told = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Told:
    """Return the samples of an exposition by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(told: Told, name: str, **labels: str) -> float | None:
    """Return one sample; None when the sample is not exposed."""
    return told.get((name, frozenset(labels.items())))


@cache
def told_at_start(process: str, *, and_then: str = "", **environment: str) -> Told:
    """Return the samples that a new process exposes before any work."""
    program = (
        "import os, sys; from nigredo.observability import metrics; from nigredo.settings import Settings\n"
        f"metrics.start({process!r}, Settings.from_environment(os.environ)); {and_then}\n"
        "sys.stdout.write(metrics.exposition().decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ) | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return read(done.stdout)


def test_the_first_error_is_an_increase_because_every_known_child_starts_at_zero() -> None:
    ingest = told_at_start("ingest", NIGREDO_ENV="prod", METRIC_SOURCES="google,ads")
    persister = told_at_start("persister", NIGREDO_ENV="prod")
    sender = told_at_start("webhook-sender")

    post = {"function": "nigredo-create-lead-prod", "route": "/api/leads", "method": "POST"}
    for status in ("202", "429", "500", "503", "maintenance"):
        assert value(ingest, "nigredo_api_requests_total", status=status, **post) == 0
    assert value(ingest, "nigredo_api_errors_total", route="/api/leads/{id}", status="500") == 0
    for source in ("google", "ads", "none", "other"):
        assert value(ingest, "nigredo_lead_submissions_total", source=source, outcome="accepted") == 0
    assert value(ingest, "nigredo_rate_limit_hits_total") == 0
    for told, function in ((ingest, "nigredo-create-lead-prod"), (persister, "nigredo-persister-prod")):
        assert value(told, "nigredo_db_connection_errors_total", function=function) == 0
    assert value(sender, "nigredo_webhook_success_total", endpoint="fibonacci") == 0
    for reason in ("timeout", "connect", "4xx", "5xx", "other"):
        assert value(sender, "nigredo_webhook_failure_total", endpoint="fibonacci", reason=reason) == 0
    assert value(sender, "nigredo_webhook_breaker_open", endpoint="fibonacci") == 0


def test_a_process_exposes_its_own_metrics_and_no_others() -> None:
    persister = {name for name, _ in told_at_start("persister")}

    assert "nigredo_batch_records_bucket" in persister
    assert "process_resident_memory_bytes" in persister
    assert not {name for name in persister if name.startswith(("nigredo_api", "nigredo_webhook", "nigredo_spool"))}


@pytest.mark.parametrize("edge", ["0.1", "0.5", "1.0"])
def test_latency_has_the_edges_that_alarms_ask_about(edge: str) -> None:
    ingest = told_at_start("ingest")

    assert value(ingest, "nigredo_api_latency_seconds_bucket", route="/api/leads", method="POST", le=edge) == 0


def test_an_undeclared_value_counts_as_other_and_takes_no_memory() -> None:
    metric = Metric(
        prometheus.Counter,
        "nigredo_test_closed_total",
        "a test",
        unit="tests",
        answers="?",
        processes=[],
        labels={"route": ("/known",)},
    )

    for number in range(1000):
        metric.of(f"/wp-{number}.php").inc()
    metric.of("/known").inc()

    assert REGISTRY.get_sample_value("nigredo_test_closed_total", {"route": OTHER}) == 1000
    assert REGISTRY.get_sample_value("nigredo_test_closed_total", {"route": "/known"}) == 1
    assert sum(name == "nigredo_test_closed_total" for name, _ in read(metrics.exposition().decode())) == 2
    with pytest.raises(ValueError):
        metric.of("/known", "too many")


def test_endpoints_are_learned_up_to_a_bound() -> None:
    many = f"[metrics.know_endpoint(f'crm-{{number}}') for number in range({ENDPOINTS_MAX + 50})]"

    sender = told_at_start("webhook-sender", and_then=many + "; metrics.WEBHOOK_SUCCESS.of('crm-140').inc()")

    endpoints = {dict(labels)["endpoint"] for name, labels in sender if name == "nigredo_webhook_success_total"}
    assert {"fibonacci", "crm-0", "other"} <= endpoints
    assert len(endpoints) == ENDPOINTS_MAX + 1
    assert value(sender, "nigredo_webhook_success_total", endpoint="other") == 1
    assert value(sender, "nigredo_webhook_failure_total", endpoint="crm-0", reason="5xx") == 0


def test_a_gauge_drops_the_children_of_lost_partitions() -> None:
    metrics.CONSUMER_LAG.of("nigredo.leads", "0").set(3)
    metrics.CONSUMER_LAG.of("nigredo.leads", "1").set(4)

    metrics.CONSUMER_LAG.keep([("nigredo.leads", "1")])

    labels = {"topic": "nigredo.leads", "partition": "0"}
    assert REGISTRY.get_sample_value("nigredo_consumer_lag_records", labels) is None
    assert REGISTRY.get_sample_value("nigredo_consumer_lag_records", labels | {"partition": "1"}) == 4


def test_every_route_of_ingest_has_its_label(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    settings = Settings.from_environment({"IDEMPOTENCY_SECRET_FILE": str(secret)})
    app = make_app(settings, SubmissionService(settings, Health("test")))

    routes = {route.path for route in falcon.inspect.inspect_routes(app)}

    labels = {counting.ROUTE_LABELS.get(path, path) for path in routes if not path.startswith("/health")}
    assert labels == set(ROUTES)


def counted(*statuses: int, maintenance: bool = False, source: str | None = None) -> dict[str, float]:
    """Count POSTs answered in one turn, by status; return the increase of each sample that grew, durations left out."""
    metrics.start("ingest", Settings.from_environment({}))
    before = read(metrics.exposition().decode())

    async def turn() -> None:
        for status in statuses:
            request = SimpleNamespace(
                uri_template="/api/leads", path="/api/leads", method="POST", context=SimpleNamespace()
            )
            counting.begin(cast(Any, request))
            request.context.maintenance = maintenance
            if source is not None:
                counting.note_form(cast(Any, request), source)
            counting.count(cast(Any, request), "nigredo-create-lead-dev", status, 0.01)
        await asyncio.sleep(0)

    asyncio.run(turn())
    grown = {}
    for (name, labels), count in read(metrics.exposition().decode()).items():
        if name.endswith("_total") and name.startswith("nigredo_") and count != before.get((name, labels), 0.0):
            values = " ".join(dict(labels).get(label, "") for label in ("status", "source", "outcome")).strip()
            grown[f"{name.removeprefix('nigredo_')} {values}".strip()] = count - before.get((name, labels), 0.0)
    return grown


@given(st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.10001, 0.5, 7.0]) | st.floats(0, 100)))
def test_many_observations_at_once_are_counted_as_one_by_one(amounts: list[float]) -> None:
    buckets = (0.05, 0.1, 0.5)
    at_once, singly = (Histogram("seconds", "", registry=None, buckets=buckets) for _ in range(2))

    at_once.observe_all(amounts)
    for amount in amounts:
        singly.observe(amount)

    for observed, expected in zip(at_once.collect()[0].samples, singly.collect()[0].samples, strict=True):
        assert (observed.name, observed.labels) == (expected.name, expected.labels)
        if not observed.name.endswith("_created"):
            assert observed.value == pytest.approx(expected.value)


def test_a_5xx_is_an_error_but_maintenance_is_none() -> None:
    assert counted(503, source="google") == {
        "api_requests_total 503": 1,
        "api_errors_total 503": 1,
        "lead_submissions_total google failed": 1,
    }
    assert counted(503, maintenance=True) == {"api_requests_total maintenance": 1}
    assert counted(429, source="google") == {
        "api_requests_total 429": 1,
        "rate_limit_hits_total": 1,
        "lead_submissions_total google rate_limited": 1,
    }
    assert counted(422) == {"api_requests_total 422": 1}


def test_what_is_answered_in_one_turn_is_counted_one_by_one() -> None:
    assert counted(503, 429, 503, 422, source="google") == {
        "api_requests_total 503": 2,
        "api_requests_total 429": 1,
        "api_requests_total 422": 1,
        "api_errors_total 503": 2,
        "rate_limit_hits_total": 1,
        "lead_submissions_total google failed": 2,
        "lead_submissions_total google rate_limited": 1,
    }


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (psycopg.OperationalError("connection lost"), 1),
        (psycopg_pool.PoolTimeout("none free"), 1),
        (psycopg.errors.AdminShutdown(), 1),
        (TimeoutError(), 1),
        (psycopg.errors.QueryCanceled(), 0),
        (psycopg.errors.UndefinedTable(), 0),
        (psycopg.errors.DeadlockDetected(), 0),
    ],
)
def test_only_what_went_wrong_with_a_connection_is_a_connection_error(error: Exception, counts: int) -> None:
    metrics.start("persister", Settings.from_environment({}))
    labels = {"function": "nigredo-persister-dev"}
    pool = SimpleNamespace(kwargs={"application_name": "nigredo-persister-dev"})
    before = REGISTRY.get_sample_value("nigredo_db_connection_errors_total", labels) or 0.0

    count_failure(cast(Pool, pool), error)

    assert REGISTRY.get_sample_value("nigredo_db_connection_errors_total", labels) == before + counts


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (500, "HTTP 500", "5xx"),
        (404, "HTTP 404", "4xx"),
        (302, "HTTP 302", "other"),
        (None, "Connection timeout: no whole answer within 5 s", "timeout"),
        (None, "ETIMEDOUT: Connection timed out", "timeout"),
        (None, "ECONNREFUSED: Connection refused", "connect"),
        (None, "the connection broke: RemoteProtocolError", "connect"),
    ],
)
def test_a_failed_attempt_has_one_of_five_reasons(status: int | None, message: str, reason: str) -> None:
    assert reason_of(AttemptResult("retry", datetime.now(UTC), 12, status, message)) == reason
