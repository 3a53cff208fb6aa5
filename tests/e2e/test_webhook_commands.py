"""How delivery stands, asked from outside, and a test request that leaves no trace."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, eventually
from schemas.topics import DELIVERIES

WITHIN_S = 60
LOGGED = "SELECT count(*) FROM nigredo.webhook_logs"


def status(stack: Stack) -> tuple[int, Any]:
    done = stack.nigredo("webhook", "status", "--json")
    return done.code, json.loads(done.out)


def attempts(stack: Stack) -> int:
    return int(status(stack)[1]["attempts_10m"])


@contextmanager
def failing(stack: Stack, **fault: Any) -> Iterator[None]:
    httpx.put(f"{stack.fibonacci_url}/fault", json=fault, timeout=10).raise_for_status()
    try:
        yield
    finally:
        httpx.put(f"{stack.fibonacci_url}/fault", json={}, timeout=10).raise_for_status()


def test_a_test_request_shows_the_answer_and_leaves_no_trace(stack: Stack) -> None:
    eventually(lambda: status(stack)[1]["lag"] == 0, within_s=WITHIN_S, every_s=0.5, what="an idle sink")
    received, logged, tried = stack.received(), stack.rows(LOGGED), attempts(stack)

    for options in ((), ("--empty-lead",)):
        done = stack.nigredo("webhook", "test", *options, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["status_code"] == 200
    with failing(stack, status=503):
        refused = stack.nigredo("webhook", "test")
        assert refused.code != 0
        assert "503" in refused.out
    with failing(stack, refuse=True):
        assert stack.nigredo("webhook", "test").code != 0

    # Whatever a probe wrote would be there once a lead that came after it is.
    lead = stack.post().json()["id"]
    row = "SELECT count(*) FROM nigredo.webhook_logs WHERE lead_id = %s AND success"
    eventually(lambda: stack.rows(row, lead) == [(1,)], within_s=WITHIN_S, what="a later lead's row")
    assert [entry["headers"]["webhook-id"] for entry in stack.received()[len(received) :]] == [lead]
    assert stack.rows(LOGGED) == [(logged[0][0] + 1,)]
    assert attempts(stack) <= tried + 1


def test_a_lead_that_waits_is_seen_with_its_failures_until_it_is_delivered(stack: Stack) -> None:
    with failing(stack, status=500):
        lead = stack.post().json()["id"]

        def failed() -> Any:
            found = json.loads(stack.nigredo("webhook", "failures", "--last", "1h", "--json").out)
            return [each for each in found if each["lead_id"] == lead]

        failure = eventually(failed, within_s=WITHIN_S, every_s=0.5, what="the failed attempt")[0]
        assert (failure["status_code"], failure["error_message"]) == (500, "HTTP 500")
        rows = "SELECT count(*) FROM nigredo.leads WHERE id = %s"
        eventually(lambda: stack.rows(rows, lead) == [(1,)], within_s=WITHIN_S, what="the lead's row")
        waits = json.loads(stack.nigredo("webhook", "undelivered", "-n", "1000", "--json").out)
        (found,) = [each for each in waits if each["lead_id"] == lead]
        assert found["state"] == "waiting"
        assert found["attempts"] >= 1
        _, document = status(stack)
        assert document["oldest_undelivered"] is not None
        assert document["lag"] + document["waiting"] >= 1

    def delivered() -> bool:
        found = json.loads(stack.nigredo("webhook", "undelivered", "-n", "1000", "--json").out)
        return lead not in {each["lead_id"] for each in found}

    # Its next attempt may be a minute away.
    eventually(delivered, within_s=150, every_s=0.5, what="the delivery")


@pytest.mark.thorough
def test_a_table_that_is_behind_hides_no_lead_and_is_said(stack: Stack) -> None:
    def undelivered() -> tuple[int, list[Any]]:
        done = stack.nigredo("webhook", "undelivered", "-n", "1000", "--json")
        return done.code, json.loads(done.out)

    assert stack.nigredo("stop", "persister").code == 0
    try:
        with failing(stack, status=500):
            lead = stack.post().json()["id"]
            eventually(lambda: attempts_at(stack, lead), within_s=WITHIN_S, every_s=0.5, what="a failed attempt")
            code, found = undelivered()
            (row,) = [each for each in found if each["lead_id"] == lead]
            assert (code, row["state"], row["status_code"]) == (1, "waiting", 500)
            assert row["attempts"] >= 1
        behind = stack.nigredo("webhook", "failures", "--json")
        assert behind.code == 1
        assert "records behind the log" in behind.err
        assert stack.nigredo("ratelimit", "list").code == 1
        eventually(
            lambda: lead not in {each["lead_id"] for each in undelivered()[1]},
            within_s=150,
            every_s=0.5,
            what="the delivery, although no table tells of it",
        )
    finally:
        assert stack.nigredo("start", "persister").code == 0
    assert stack.nigredo("webhook", "failures", "--json").code == 0


def attempts_at(stack: Stack, lead: str) -> bool:
    """Say whether the log knows of an attempt at a lead."""
    reader = TopicReader(stack.settings(), "test")
    read = reader.read_to_end(DELIVERIES, reader.partitions(DELIVERIES), deadline_s=30)
    return any((message.key() or b"").startswith(lead.encode()) for message in read)


def test_status_names_a_pause_in_its_exit_code(stack: Stack) -> None:
    eventually(lambda: status(stack)[1]["breaker"] == "closed", within_s=WITHIN_S, every_s=0.5, what="the sink's word")
    assert stack.nigredo("webhook", "pause").code == 0
    try:
        code, document = status(stack)
        assert code == 1
        assert not document["enabled"]
        assert "paused" in document["problems"]
    finally:
        assert stack.nigredo("webhook", "resume").code == 0
    assert status(stack)[1]["enabled"]


def test_a_pause_for_a_time_leaves_one_without_an_end_as_it_was(stack: Stack) -> None:
    assert stack.nigredo("webhook", "pause").code == 0
    try:
        short = stack.nigredo("webhook", "pause", "--for", "2s")
        assert (short.code, short.err) == (0, "")
        assert "and afterwards too (set by" in short.out
        time.sleep(2.5)  # The time itself is under test: nothing changes when it is over.
        code, document = status(stack)
        assert (code, document["enabled"]) == (1, False)
    finally:
        assert stack.nigredo("webhook", "resume").code == 0
        assert stack.nigredo("config", "unset", "WEBHOOK_ENABLED").code == 0
    assert status(stack)[1]["enabled"]


def test_resuming_a_sender_that_does_not_run_is_no_success(stack: Stack) -> None:
    assert stack.nigredo("stop", "webhook-sender").code == 0
    try:
        assert stack.nigredo("webhook", "pause", "--for", "1m").code == 0
        resumed = stack.nigredo("webhook", "resume")
        assert resumed.code == 1
        assert "the sender of fibonacci does not obey yet" in resumed.err
    finally:
        assert stack.nigredo("start", "webhook-sender").code == 0
        assert stack.nigredo("config", "unset", "WEBHOOK_ENABLED").code == 0


def test_an_endpoint_that_there_is_not_is_refused_in_one_line(stack: Stack) -> None:
    for command in ("status", "test", "undelivered"):
        done = stack.nigredo("webhook", command, "--endpoint", "nobody")
        assert done.code != 0
        assert "nobody" in done.err
        assert len(done.err.splitlines()) == 1
