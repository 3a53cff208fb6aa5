"""What happens is told at `/metrics` of the process that did it, and nothing of anybody is."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from nigredo.testing import Stack, any_client, eventually, free_port_base
from tests.unit.nigredo.observability.test_metrics import Told, read, value

PROCESSES = ("ingest", "rate-limiter", "persister", "webhook-sender")
POST = {"function": "nigredo-create-lead-dev", "route": "/api/leads", "method": "POST"}


def text(stack: Stack, process: str) -> str:
    """Return what a process tells."""
    answer = httpx.get(f"http://127.0.0.1:{stack.home.health_port(process)}/metrics", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return answer.text


class Watched:
    """By how much a process's numbers grew since this was made."""

    def __init__(self, stack: Stack, process: str) -> None:
        self._told: Callable[[], Told] = lambda: read(text(stack, process))
        self._before = self._told()

    def grew(self, name: str, **labels: str) -> float:
        """Return the growth of one number."""
        return (value(self._told(), name, **labels) or 0.0) - (value(self._before, name, **labels) or 0.0)


def test_a_form_is_counted_at_every_stage_it_passes(stack: Stack) -> None:
    ingest, limiter, persister, sender = (Watched(stack, process) for process in PROCESSES)

    for source in ("google", f"random-{secrets.token_hex(4)}", f"random-{secrets.token_hex(4)}"):
        assert stack.post(source=source).status_code == 202

    assert ingest.grew("nigredo_api_requests_total", status="202", **POST) == 3
    assert ingest.grew("nigredo_api_latency_seconds_count", route="/api/leads", method="POST") == 3
    assert ingest.grew("nigredo_lead_submissions_total", source="google", outcome="accepted") == 1
    assert ingest.grew("nigredo_lead_submissions_total", source="other", outcome="accepted") == 2
    # What a stage did may be seen a moment before it is counted.
    for process, name, labels in (
        (limiter, "nigredo_verdicts_total", {"outcome": "accepted"}),
        (limiter, "nigredo_records_handled_total", {"topic": "nigredo.submissions"}),
        (limiter, "nigredo_end_to_end_seconds_count", {"stage": "judged"}),
        (sender, "nigredo_webhook_success_total", {"endpoint": "fibonacci"}),
        (sender, "nigredo_end_to_end_seconds_count", {"stage": "delivered"}),
        (sender, "nigredo_webhook_attempt_seconds_count", {}),
        (persister, "nigredo_end_to_end_seconds_count", {"stage": "persisted"}),
        (persister, "nigredo_records_handled_total", {"topic": "nigredo.leads"}),
        (persister, "nigredo_batch_records_sum", {}),
    ):
        eventually(lambda p=process, n=name, of=labels: p.grew(n, **of) >= 3, within_s=60, what=f"{name} {labels}")
    eventually(
        lambda: all(
            value(read(text(stack, process)), "nigredo_consumer_lag_records", topic=topic, partition="0") == 0
            for process, topic in (("rate-limiter", "nigredo.submissions"), ("persister", "nigredo.leads"))
        ),
        within_s=60,
        what="no lag",
    )


def test_what_is_refused_is_counted_by_what_refused_it_and_is_no_error(stack: Stack) -> None:
    ingest, limiter = Watched(stack, "ingest"), Watched(stack, "rate-limiter")
    client = any_client()

    assert [stack.post(client, message=f"no. {number}").status_code for number in range(11)] == [202] * 10 + [429]
    assert stack.post(email="nobody").status_code == 422
    wrong = httpx.get(f"{stack.url}/api/leads", headers={"Authorization": "Bearer wrong"}, timeout=10)
    assert wrong.status_code == 401
    assert httpx.get(f"{stack.url}/{secrets.token_hex(8)}", timeout=10).status_code == 404

    assert ingest.grew("nigredo_rate_limit_hits_total") == 1
    assert ingest.grew("nigredo_api_requests_total", status="429", **POST) == 1
    assert ingest.grew("nigredo_api_requests_total", status="422", **POST) == 1
    assert ingest.grew("nigredo_lead_submissions_total", source="none", outcome="rate_limited") == 1
    assert ingest.grew("nigredo_auth_failures_total") == 1
    lists = {"function": "nigredo-list-leads-dev", "method": "GET"}
    assert ingest.grew("nigredo_api_requests_total", route="/api/leads", status="401", **lists) == 1
    assert ingest.grew("nigredo_api_requests_total", route="other", status="404", **lists) == 1
    for status in ("500", "503"):
        assert ingest.grew("nigredo_api_errors_total", route="/api/leads", status=status) == 0
    # The limiter judges the refused one too, and does not count it as a hit once more.
    eventually(
        lambda: limiter.grew("nigredo_verdicts_total", outcome="rate_limited") >= 1, within_s=60, what="a verdict"
    )
    assert limiter.grew("nigredo_rate_limit_hits_total") == 0


def test_maintenance_and_a_block_are_told_and_are_no_errors(stack: Stack) -> None:
    ingest = Watched(stack, "ingest")
    stack.nigredo("maintenance", "on")
    stack.nigredo("ip", "block", "203.0.113.200", "--for", "10m")
    try:
        eventually(lambda: stack.post().status_code == 503, within_s=60, what="maintenance")
        blocked = {"X-Forwarded-For": "203.0.113.200"}
        eventually(lambda: httpx.get(stack.url, headers=blocked).status_code == 403, within_s=60, what="a block")
    finally:
        stack.nigredo("maintenance", "off")
        stack.nigredo("ip", "unblock", "203.0.113.200")
    eventually(lambda: stack.post().status_code == 202, within_s=60, what="the end of maintenance")

    assert ingest.grew("nigredo_api_requests_total", status="maintenance", **POST) >= 1
    assert ingest.grew("nigredo_api_requests_total", status="503", **POST) == 0
    assert ingest.grew("nigredo_api_errors_total", route="/api/leads", status="503") == 0
    assert ingest.grew("nigredo_ip_block_rejections_total") == 1


@pytest.mark.embedded
def test_a_database_that_is_away_is_counted_where_it_is_missed(stack: Stack) -> None:
    ingest, persister = Watched(stack, "ingest"), Watched(stack, "persister")
    key = {"Authorization": f"Bearer {stack.home.secret('api-key')}"}
    assert stack.nigredo("stop", "postgres").code == 0
    try:
        assert httpx.get(f"{stack.url}/api/leads", headers=key, timeout=20).status_code == 503
        assert stack.post().status_code == 202
        eventually(
            lambda: persister.grew("nigredo_db_connection_errors_total", function="nigredo-persister-dev") > 5,
            within_s=90,
            what="connection errors of the persister",
        )
    finally:
        assert stack.nigredo("start", "postgres").code == 0
    assert ingest.grew("nigredo_db_connection_errors_total", function="nigredo-create-lead-dev") >= 1
    assert ingest.grew("nigredo_api_errors_total", route="/api/leads", status="503") == 1
    eventually(
        lambda: httpx.get(f"{stack.url}/api/leads", headers=key, timeout=20).status_code == 200,
        within_s=60,
        what="leads that can be read again",
    )
    eventually(lambda: stack.status()["ready"], within_s=60, what="everything ready again")


def test_no_exposition_tells_anything_of_a_person(stack: Stack) -> None:
    secret = secrets.token_hex(6)
    answer = stack.post(
        "203.0.113.77", name=f"name{secret}", email=f"mail{secret}@example.com", message=f"text{secret}",
        source=f"source{secret}", form_id=f"form{secret}",
    )  # fmt: skip
    assert answer.status_code == 202
    lead_id = answer.json()["id"]
    httpx.get(f"{stack.url}/api/leads/{lead_id}?q={secret}", headers={"Authorization": f"Bearer {secret}"})
    httpx.request(secret[:8].upper(), f"{stack.url}/{secret}")
    eventually(
        lambda: stack.rows("SELECT 1 FROM nigredo.webhook_logs WHERE lead_id = %s", lead_id),
        within_s=60,
        what="the delivery",
    )

    for process in PROCESSES:
        told = text(stack, process).lower()
        assert "nigredo_" in told
        for personal in (secret, secret[:8], lead_id, "203.0.113.77"):
            assert personal not in told, process


def test_the_public_port_does_not_tell_them(stack: Stack) -> None:
    assert httpx.get(f"{stack.url}/metrics", timeout=10).status_code == 404
    assert stack.nigredo("env").out.count(f"NIGREDO_METRICS=http://127.0.0.1:{stack.home.port('ingest-metrics')}") == 1


def test_prometheus_own_tool_finds_nothing_to_complain_of(stack: Stack, tool: Callable[[str], str]) -> None:
    for process in PROCESSES:
        checked = subprocess.run(
            [tool("promtool"), "check", "metrics"],
            input=text(stack, process), capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert (checked.returncode, checked.stderr) == (0, ""), process


@contextmanager
def two_workers(stack: Stack) -> Iterator[tuple[psutil.Process, str, str]]:
    """Run one more server of ingest with two workers; yield its process, its address and that of its metrics."""
    base = free_port_base()
    environment = stack.home.part_environment(os.environ, "ingest") | {
        "INGEST_WORKERS": "2",
        "INGEST_PORT": str(base),
        "HEALTH_PORT": str(base + 1),
    }
    command = [sys.executable, "-m", "nigredo.cli", "run", "ingest"]
    with (stack.home.dir / "logs" / "second-ingest.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield psutil.Process(process.pid), f"http://127.0.0.1:{base}", f"http://127.0.0.1:{base + 1}/metrics"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def test_two_workers_add_up_also_after_one_was_killed(stack: Stack) -> None:
    with two_workers(stack) as (server, url, metrics_url):

        def answers() -> bool:
            try:
                return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        def get(times: int) -> None:
            for _ in range(times):
                # A connection each, so that the kernel deals them out to both workers.
                assert httpx.get(f"{url}/thanks", timeout=10).status_code == 200

        def counted() -> float:
            found = value(
                read(httpx.get(metrics_url, timeout=10).text), "nigredo_api_requests_total",
                function="nigredo-list-leads-dev", route="/thanks", method="GET", status="200",
            )  # fmt: skip
            return found or 0.0

        def workers() -> list[psutil.Process]:
            found = []
            for child in server.children():
                with suppress(psutil.NoSuchProcess):  # One that was killed is a zombie for a while.
                    if "spawn_main" in " ".join(child.cmdline()):
                        found.append(child)
            return found

        eventually(answers, within_s=90, what="a server of two workers")
        get(40)
        assert [counted() for _ in range(3)] == [40, 40, 40]

        before = {worker.pid for worker in workers()}
        assert len(before) == 2
        workers()[0].kill()
        eventually(lambda: len({w.pid for w in workers()} - before) == 1, within_s=60, what="a new worker")
        assert counted() == 40

        def serve_again() -> bool:
            try:
                return httpx.get(f"{url}/health/live", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        began = time.monotonic()
        # In a row: the new worker listens too, and is up.
        eventually(
            lambda: all(serve_again() for _ in range(20)) and time.monotonic() - began > 2, within_s=60, what="answers"
        )
        get(10)
        assert counted() == 50
