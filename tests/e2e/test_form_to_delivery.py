"""A form on its whole way: through HTTP, Kafka, PostgreSQL, to the customer's system."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable

import httpx
from standardwebhooks import Webhook

from nigredo.testing import Stack, any_client, eventually

LEAD = """
SELECT name, email, message, status, source, ip_address, created_at FROM nigredo.leads WHERE id = %s
"""


PROMISED_S = 2.0


def webhook_of(stack: Stack, lead_id: str) -> dict[str, object] | None:
    return next((hook for hook in stack.received() if hook["headers"]["webhook-id"] == lead_id), None)


def test_a_form_posted_by_curl_is_stored_and_delivered_within_two_seconds(
    stack: Stack, tool: Callable[[str], str]
) -> None:
    client, took = any_client(), []
    command = [tool("curl"), "-sS", "-w", "\n%{http_code}", "-H", f"X-Forwarded-For: {client}"]
    command += ["-d", "name=Ana", "-d", "email=ana@example.com", "-d", "message=Oi", f"{stack.url}/api/leads"]
    # The promise is about this product, not about who else uses the machine: one of three must keep it.
    for _ in range(3):
        began = time.monotonic()
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        answer, _, code = told.rpartition("\n")
        assert code == "202"
        body = json.loads(answer)
        lead_id = body["id"]
        row = eventually(lambda i=lead_id: stack.rows(LEAD, i), within_s=60, what="the lead's row")[0]
        hook = eventually(lambda i=lead_id: webhook_of(stack, i), within_s=60, what="the lead's webhook")
        took.append(time.monotonic() - began)

    assert min(took) < PROMISED_S, took
    assert body["status"] == "accepted"
    assert row[:5] == ("Ana", "ana@example.com", "Oi", "new", None)
    assert row[5] == client
    taken_at = row[6].strftime("%Y-%m-%dT%H:%M:%SZ")
    assert hook["body"] == (
        f'{{"event_type":"lead.created","timestamp":"{taken_at}","lead":'
        f'{{"id":"{lead_id}","name":"Ana","email":"ana@example.com","message":"Oi"}}}}'
    )
    assert Webhook(stack.home.secret("webhook-fibonacci")).verify(str(hook["body"]), hook["headers"])


def test_kcat_reads_the_lead_on_every_topic_it_passed(stack: Stack, tool: Callable[[str], str]) -> None:
    kcat = tool("kcat")
    lead_id = stack.post().json()["id"]
    eventually(lambda: webhook_of(stack, lead_id), within_s=60, what="the lead's webhook")

    def read(topic: str) -> str:
        command = [kcat, "-C", "-q", "-e", "-b", stack.bootstrap_servers, "-t", topic, "-f", "%k %h %s\n"]
        told = os.environ | stack.home.user_environment()
        done = subprocess.run(command, capture_output=True, timeout=30, check=True, env=told)
        return done.stdout.decode("utf-8", "replace")

    assert f"ce_id={lead_id}" in read("nigredo.submissions")
    assert f"{lead_id} ce_specversion=1.0" in read("nigredo.leads")
    eventually(lambda: lead_id in read("nigredo.deliveries"), within_s=60, what="the delivery attempt")


def test_an_attempt_is_a_row_in_the_webhook_log(stack: Stack) -> None:
    lead_id = stack.post().json()["id"]

    rows = eventually(
        lambda: stack.rows(
            "SELECT success, status_code, error_message, attempt, endpoint, webhook_url"
            " FROM nigredo.webhook_logs WHERE lead_id = %s",
            lead_id,
        ),
        within_s=60,
        what="the attempt's row",
    )

    url = f"{stack.fibonacci_url}/public/nigredo-event"
    assert rows == [(True, 200, None, 1, "fibonacci", url)]


def test_json_and_further_fields_are_taken(stack: Stack) -> None:
    form = {"name": "João", "email": "joao@example.com", "message": "Olá\r\n€", "budget": 12, "source": "landing"}

    answer = httpx.post(f"{stack.url}/api/leads", json=form, headers={"X-Forwarded-For": any_client()}, timeout=10)

    assert answer.status_code == 202
    lead_id = answer.json()["id"]
    assert answer.headers["location"] == f"/api/leads/{lead_id}"
    query = "SELECT name, message, extra, source FROM nigredo.leads WHERE id = %s"
    row = eventually(lambda: stack.rows(query, lead_id), within_s=60, what="the lead's row")[0]
    assert row == ("João", "Olá\n€", {"budget": "12"}, "landing")


def test_a_failing_receiver_gets_the_same_body_and_id_again_until_it_takes_it(stack: Stack) -> None:
    httpx.put(f"{stack.fibonacci_url}/fault", json={"status": 503}, timeout=5).raise_for_status()
    try:
        lead_id = stack.post().json()["id"]
        eventually(lambda: webhook_of(stack, lead_id), within_s=60, what="the first attempt")
    finally:
        httpx.put(f"{stack.fibonacci_url}/fault", json={}, timeout=5).raise_for_status()

    def attempts() -> list[dict[str, object]]:
        return [hook for hook in stack.received() if hook["headers"]["webhook-id"] == lead_id]

    eventually(lambda: attempts()[-1]["status"] == 200, within_s=60, what="the delivery")
    assert len(attempts()) >= 2
    assert len({str(hook["body"]) for hook in attempts()}) == 1


def test_leads_that_the_receiver_cannot_take_hold_up_no_others(stack: Stack) -> None:
    """More of them than may be under way at once (WEBHOOK_IN_FLIGHT_MAX, 64), and all before the others."""
    assert stack.nigredo("stop", "webhook-sender").code == 0
    refused = [stack.post().json()["id"] for _ in range(80)]
    good = [stack.post().json()["id"] for _ in range(40)]
    httpx.put(f"{stack.fibonacci_url}/fault", json={"fail_ids": refused}, timeout=5).raise_for_status()

    def delivered() -> set[str]:
        return {hook["headers"]["webhook-id"] for hook in stack.received() if hook["status"] == 200}

    try:
        assert stack.nigredo("start", "webhook-sender").code == 0
        eventually(lambda: set(good) <= delivered(), within_s=60, what="the leads that can be taken")
    finally:
        httpx.put(f"{stack.fibonacci_url}/fault", json={}, timeout=5).raise_for_status()
    # Within seconds, unless the machine is so busy that they come to the third retry, after a minute.
    eventually(lambda: set(refused) <= delivered(), within_s=90, every_s=0.2, what="the others, once they can be taken")


def test_a_restarted_limiter_and_sender_deliver_nothing_twice(stack: Stack) -> None:
    taken = [stack.post().json()["id"] for _ in range(60)]
    assert stack.nigredo("restart", "rate-limiter").code == 0
    taken += [stack.post().json()["id"] for _ in range(60)]
    assert stack.nigredo("restart", "webhook-sender").code == 0

    def delivered() -> list[str]:
        return [hook["headers"]["webhook-id"] for hook in stack.received() if hook["status"] == 200]

    eventually(lambda: set(taken) <= set(delivered()), within_s=60, what="every delivery")
    times = Counter(delivered())
    assert [lead_id for lead_id in taken if times[lead_id] > 1] == []


def test_personal_data_is_in_no_log(stack: Stack) -> None:
    person = "Zenobia Quartz"
    lead_id = stack.post(name=person, email="zenobia.q@example.com", message="My secret wish").json()["id"]
    stack.post(name=person, email="not an address zenobia.q", message="My secret wish")

    def logs() -> dict[str, str]:
        return {log.name: log.read_text(errors="replace") for log in (stack.home.dir / "logs").glob("*.log")}

    for name in ("ingest.log", "webhook-sender.log"):
        eventually(lambda n=name: lead_id in logs()[n], within_s=60, what=f"the lead's line in {name}")
    for text in logs().values():
        assert "Zenobia" not in text
        assert "zenobia.q" not in text
        assert "secret wish" not in text
