"""What operators ask the logs of ingest: every field of their queries is there, and nothing of what people wrote."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, any_ipv4_client, eventually
from schemas.topics import SUBMISSIONS
from tests.support.nodes import Node, another_node

PERSON = {"name": "Zenobia Quux", "email": "zenobia.quux@example.com", "message": "Segredo guardado", "phone": "77"}
PERSONAL = ("Zenobia", "Quux", "zenobia", "Segredo", "guardado")
AGENT = "access-line-test/1.0"
ACCESS_LINE: dict[str, type] = {
    "@timestamp": str,
    "level": str,
    "message": str,
    "function": str,
    "request_id": str,
    "ip_address": str,
    "method": str,
    "route": str,
    "status_code": int,
    "duration_ms": float,
}
"""And `lead_id`, which is null where there is none."""


def post(node: Node, client: str, **fields: str) -> httpx.Response:
    """Send a form from behind a proxy that is trusted; what the client itself claims to be is not believed."""
    headers = {"X-Forwarded-For": f"203.0.113.99, {client}", "User-Agent": AGENT}
    return httpx.post(f"{node.url}/api/leads", json=PERSON | fields, headers=headers, timeout=20)


def get(node: Node, client: str, path: str) -> httpx.Response:
    return httpx.get(f"{node.url}{path}", headers={"X-Forwarded-For": client}, timeout=20)


def log_of(stack: Stack, node: Node) -> Path:
    return stack.home.dir / "logs" / f"node-{node.port}.log"


def lines_of(log_file: Path, answers: list[httpx.Response]) -> list[dict[str, Any]]:
    """Return the lines about some requests, once each has that of its end."""
    ids = {answer.headers["X-Request-Id"] for answer in answers}

    def look() -> list[dict[str, Any]] | None:
        lines = [json.loads(line) for line in log_file.read_text().splitlines() if line.endswith("}")]
        found = [line for line in lines if line.get("request_id") in ids]
        return found if {line["request_id"] for line in found if line["message"] == "request"} == ids else None

    return eventually(look, within_s=60, what="a line for each request")


def request_ids(stack: Stack) -> dict[str, str]:
    """Return the header `request_id` of every submission in the topic, by lead id."""
    reader, found = TopicReader(stack.settings(), "test"), {}
    for message in reader.read_to_end(SUBMISSIONS, reader.partitions(SUBMISSIONS), deadline_s=60):
        headers = {name: value.decode() for name, value in message.headers() or [] if isinstance(value, bytes)}
        if "request_id" in headers:
            found[headers["ce_id"]] = headers["request_id"]
    return found


def test_every_request_leaves_one_line_with_all_that_operators_query(stack: Stack) -> None:
    client = any_ipv4_client()
    with another_node(stack, RATE_LIMIT_PER_HOUR="2") as node:
        taken = [post(node, client, message=f"Segredo {number}") for number in range(2)]
        refused = [post(node, client) for _ in range(3)]
        wrong = post(node, client, email="zenobia")
        unread, nowhere = get(node, client, f"/api/leads/{uuid4()}"), get(node, client, "/Segredo")
        answers = [*taken, *refused, wrong, unread, nowhere]
        written = lines_of(log_of(stack, node), answers)
        said = log_of(stack, node).read_text()

    statuses = [answer.status_code for answer in answers]
    assert statuses == [202, 202, 429, 429, 429, 422, 401, 404]
    lines = [line for line in written if line["message"] == "request"]
    assert [line["status_code"] for line in lines] == statuses, "one for each, in their order"
    for line, answer in zip(lines, answers, strict=True):
        assert line.keys() == ACCESS_LINE.keys() | {"lead_id"}
        assert {name: type(line[name]) for name in ACCESS_LINE} == ACCESS_LINE
        assert line["request_id"] == answer.headers["X-Request-Id"]
        assert (line["level"], line["ip_address"]) == ("INFO", client)
        assert line["lead_id"] == (answer.json()["id"] if answer in taken else None)
        assert 0 < line["duration_ms"] < 20_000
    assert [line["function"] for line in (lines[0], lines[6])] == ["nigredo-create-lead-dev", "nigredo-get-lead-dev"]

    limited = [line for line in written if "rate limit exceeded" in line["message"]]
    assert [(line["ip_address"], line["user_agent"]) for line in limited] == [(client, AGENT)] * 3
    assert [line["request_id"] for line in limited] == [answer.headers["X-Request-Id"] for answer in refused]

    assert [text for text in PERSONAL if text in said] == []


def test_a_record_leads_to_the_line_of_its_request(stack: Stack) -> None:
    client = any_ipv4_client()
    with another_node(stack, RATE_LIMIT_PER_HOUR="1") as node:
        taken, refused = post(node, client), post(node, client)
        eventually(
            lambda: refused.headers["X-Request-Id"] in request_ids(stack).values(), within_s=60, what="the refusal"
        )

    assert (taken.status_code, refused.status_code) == (202, 429)
    assert request_ids(stack)[taken.json()["id"]] == taken.headers["X-Request-Id"]


def test_an_error_leaves_one_line_of_level_error_under_a_constant_text_with_what_it_was(stack: Stack) -> None:
    with another_node(stack, ready=False, KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9") as node:
        eventually(lambda: reachable(node), within_s=60, what="a listener")
        answers = [post(node, any_ipv4_client()) for _ in range(3)]
        written = lines_of(log_of(stack, node), answers)

    assert [answer.status_code for answer in answers] == [503] * 3
    errors = [line for line in written if line["level"] == "ERROR"]
    assert Counter(line["message"] for line in errors) == {"submission not taken": 3}
    assert all(line["error"] and line["@timestamp"] for line in errors)


def reachable(node: Node) -> bool:
    try:
        return node.health("/health/live").status_code == 200
    except httpx.HTTPError:
        return False
