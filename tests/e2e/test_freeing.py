"""Freeing a client network: by the runbook's SQL and by command, at every node and in the limiter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from nigredo import cli
from nigredo.cli import ratelimit
from nigredo.kafka.topic_reader import TopicReader
from nigredo.stack.home import postgres_bin
from nigredo.testing import Stack, any_client, any_ipv4_client, eventually
from schemas.events import AuditEntry, LimitReset
from schemas.topics import AUDIT, SUBMISSIONS
from tests.e2e.test_control import nigredo
from tests.e2e.test_limit import codec_of
from tests.e2e.test_limit_across_workers import decoded

FORM = {"name": "Ana", "email": "ana@example.com", "message": "Oi"}
VERDICTS = "SELECT verdict, count(*) FROM nigredo.form_submissions WHERE ip_address = %s GROUP BY 1"
PROMISED_S = 2.0


def post(url: str, address: str) -> int:
    return httpx.post(f"{url}/api/leads", json=FORM, headers={"X-Forwarded-For": address}, timeout=10).status_code


@contextmanager
def second_node(stack: Stack) -> Iterator[str]:
    """Run one more ingest beside the stack's own; yield its address."""
    port = stack.home.port_base + 30
    environment = stack.home.part_environment(os.environ, "second-ingest")
    environment |= {"INGEST_PORT": str(port), "NIGREDO_STATE_DIR": str(stack.home.dir / "second-node")}
    command, url = [sys.executable, "-m", "nigredo.cli", "run", "ingest"], f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    with (stack.home.dir / "logs" / "second-ingest.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        eventually(ready, within_s=60, every_s=0.1, what="a second node")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def psql(stack: Stack, statement: str) -> str:
    """Run a statement as an operator does."""
    environment = {"PATH": os.environ["PATH"], "PGPASSFILE": str(stack.home.dir / "secrets" / "pgpass")}
    command = [str(postgres_bin() / "psql"), "-h", "127.0.0.1", "-p", str(stack.home.port("postgres"))]
    command += ["-U", "admin", "-d", "fibonacci", "-c", statement]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def resets(stack: Stack, *networks: str) -> list[LimitReset]:
    found = (event for event, *_ in decoded(stack, codec_of(stack), SUBMISSIONS))
    return [event for event in found if isinstance(event, LimitReset) and event.client_network in networks]


def audited(stack: Stack, action: str, subject: str) -> list[AuditEntry]:
    codec = codec_of(stack)
    codec.prepare([AUDIT])
    found = (event for event, *_ in decoded(stack, codec, AUDIT))
    return [e for e in found if isinstance(e, AuditEntry) and (e.action, e.subject) == (action, subject)]


def counted(stack: Stack, network: str) -> list[tuple[Any, ...]]:
    return stack.rows("SELECT submission_count FROM nigredo.rate_limits WHERE ip_address = %s", network)


def fill(stack: Stack, url: str, address: str, network: str) -> None:
    """Bring a client to its limit, and wait until the database shows it."""
    assert [post(url, address) for _ in range(11)] == [202] * 10 + [429]
    eventually(lambda: counted(stack, network) == [(11,)], within_s=60, what="the network's row")


def test_the_runbooks_delete_frees_the_network_at_every_node_and_in_the_limiter(stack: Stack) -> None:
    with second_node(stack) as second:
        nodes, took = (stack.url, second), []
        # The promise is about this product, not about who else uses the machine: one of three must keep it.
        for _ in range(3):
            address = any_ipv4_client()
            fill(stack, stack.url, address, address)
            eventually(lambda address=address: post(second, address) == 429, within_s=60, what="429 at the other node")

            assert psql(stack, f"DELETE FROM nigredo.rate_limits WHERE ip_address = '{address}';") == "DELETE 1"
            begun = time.monotonic()
            for node in nodes:
                eventually(lambda n=node, a=address: post(n, a) == 202, within_s=60, what="a free network")
            took.append(time.monotonic() - begun)
            # Two were taken just now: eight more, and not nine.
            assert [post(stack.url, address) for _ in range(8)] == [202] * 8
            eventually(lambda a=address: accepted(stack, a) == 20, within_s=60, what="twenty leads")
            for node in nodes:
                eventually(lambda n=node, a=address: post(n, a) == 429, within_s=60, what="the limit again")
            assert [reset.requested_by for reset in resets(stack, address)] == ["admin"]
            assert [entry.actor for entry in audited(stack, "limit.reset", address)] == ["admin"]
            assert accepted(stack, address) == 20
        assert min(took) < PROMISED_S, took


def accepted(stack: Stack, address: str) -> int:
    return int(dict(stack.rows(VERDICTS, address)).get("accepted", 0))


def test_one_statement_frees_many_and_an_operator_needs_no_right_but_to_delete(stack: Stack) -> None:
    networks, role = [any_ipv4_client() for _ in range(3)], f"operator_{uuid4().hex[:8]}"
    with stack.database() as database:
        for network in networks:
            database.execute(A_ROW, [network, "now"])
        database.execute(f"CREATE ROLE {role}".encode())
        try:
            database.execute(f"GRANT {role} TO CURRENT_USER".encode())
            database.execute(f"GRANT USAGE ON SCHEMA nigredo TO {role}".encode())
            database.execute(f"GRANT SELECT, DELETE ON nigredo.rate_limits TO {role}".encode())
            database.execute(f"SET ROLE {role}".encode())
            database.execute("DELETE FROM nigredo.rate_limits WHERE ip_address = ANY(%s)", [networks])
        finally:
            database.execute("RESET ROLE")
            database.execute(f"REVOKE ALL ON nigredo.rate_limits FROM {role}".encode())
            database.execute(f"REVOKE ALL ON SCHEMA nigredo FROM {role}".encode())
            database.execute(f"DROP ROLE {role}".encode())

    eventually(lambda: len(resets(stack, *networks)) == 3, within_s=60, every_s=0.3, what="three resets")
    eventually(
        lambda: stack.rows("SELECT count(*) FROM nigredo.rate_limit_resets") == [(0,)], within_s=60, what="no rest"
    )


A_ROW = b"""
INSERT INTO nigredo.rate_limits (ip_address, submission_count, window_start, updated_at, input_partition, input_offset)
VALUES (%s, 10, %s::timestamptz, now(), 0, 0)
"""


@pytest.mark.parametrize(
    ("before", "statement", "noted"),
    [
        ("SELECT 1", "DELETE FROM nigredo.rate_limits WHERE ip_address = %s", 1),
        ("SELECT 1", "TRUNCATE nigredo.rate_limits", 1),
        ("SET LOCAL nigredo.bookkeeping = 'on'", "DELETE FROM nigredo.rate_limits WHERE ip_address = %s", 0),
        ("SET LOCAL nigredo.bookkeeping = 'on'", "TRUNCATE nigredo.rate_limits", 0),
        ("SET LOCAL nigredo.bookkeeping = 'off'", "DELETE FROM nigredo.rate_limits WHERE ip_address = %s", 1),
        # The previous version's persister, still running while this one is brought out.
        (
            "SET LOCAL application_name = 'nigredo-persister-dev'",
            "DELETE FROM nigredo.rate_limits WHERE ip_address = %s",
            0,
        ),
    ],
)
def test_what_is_deleted_is_noted_unless_it_is_bookkeeping(
    stack: Stack, before: str, statement: str, noted: int
) -> None:
    network = any_ipv4_client()
    with stack.database() as database, database.transaction(force_rollback=True):
        database.execute(A_ROW, [network, "now"])
        database.execute(before.encode())
        database.execute(statement.encode(), [network] if "%s" in statement else [])
        found = database.execute("SELECT count(*) FROM nigredo.rate_limit_resets WHERE ip_address = %s", [network])

        assert found.fetchone() == (noted,)


def test_a_reset_waits_for_kafka_and_is_not_lost(stack: Stack) -> None:
    address = any_ipv4_client()
    fill(stack, stack.url, address, address)
    nigredo(stack, "stop", "kafka")
    try:
        psql(stack, f"DELETE FROM nigredo.rate_limits WHERE ip_address = '{address}';")
        # Longer than a try of the relay, so that one has failed.
        time.sleep(4)
        assert stack.rows("SELECT requested_by FROM nigredo.rate_limit_resets WHERE ip_address = %s", address)
    finally:
        nigredo(stack, "start", "kafka")

    eventually(lambda: free(stack, address), within_s=90, every_s=0.3, what="a free network")
    eventually(
        lambda: not stack.rows("SELECT 1 FROM nigredo.rate_limit_resets WHERE ip_address = %s", address),
        within_s=60,
        what="an empty outbox",
    )


def free(stack: Stack, address: str) -> bool:
    try:
        return post(stack.url, address) == 202
    except httpx.TransportError:
        return False


def test_the_command_frees_the_network_of_any_address_in_it(stack: Stack) -> None:
    address = any_client()
    network = address.removesuffix("1") + "/64"
    fill(stack, stack.url, address, network)

    out = json.loads(nigredo(stack, "ratelimit", "reset", address.removesuffix("1") + "dead:beef", "--json"))

    assert out == {"freed": [network]}
    eventually(lambda: post(stack.url, address) == 202, within_s=60, what="a free network")
    assert len(audited(stack, "limit.reset", network)) == 1


def test_the_command_frees_all_who_are_counted_in_a_large_network_once_it_is_confirmed(stack: Stack) -> None:
    number = uuid4().int
    prefix = f"100.{64 + number % 64}.{number // 64 % 256}"  # RFC 6598; no other test has addresses there.
    inside, outside = [f"{prefix}.7", f"{prefix}.200"], any_ipv4_client()
    for address in (*inside, outside):
        fill(stack, stack.url, address, address)

    refused = stack.nigredo("ratelimit", "reset", f"{prefix}.0/24")
    assert (refused.code, post(stack.url, inside[0])) == (1, 429)
    freed = json.loads(nigredo(stack, "ratelimit", "reset", f"{prefix}.0/24", "--yes", "--json"))

    assert freed == {"freed": sorted(inside)}
    for address in inside:
        eventually(lambda a=address: post(stack.url, a) == 202, within_s=60, what="a free network")
    assert post(stack.url, outside) == 429


def test_the_command_says_when_the_limiter_does_not_come_to_it(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ratelimit, "APPLY_DEADLINE_S", 2.0)
    monkeypatch.setattr(
        sys, "argv", ["nigredo", "--home", str(stack.home.dir), "ratelimit", "reset", any_ipv4_client()]
    )
    nigredo(stack, "stop", "rate-limiter")
    try:
        code = cli.main()
    finally:
        nigredo(stack, "start", "rate-limiter")

    told = capsys.readouterr().err
    assert code == 1
    assert "did not come to it within 2 s" in told
    assert len(told.strip().splitlines()) == 1


def test_a_simulation_says_what_then_happens_and_sends_nothing(stack: Stack) -> None:
    address = any_ipv4_client()
    assert [post(stack.url, address) for _ in range(7)] == [202] * 7
    eventually(lambda: counted(stack, address) == [(7,)], within_s=60, what="seven counted ones")
    reader = TopicReader(stack.settings(), "test")
    ends = {p: reader.watermarks(SUBMISSIONS, p) for p in reader.partitions(SUBMISSIONS)}

    told = json.loads(nigredo(stack, "ratelimit", "simulate", address, "5", "--json"))

    assert {p: reader.watermarks(SUBMISSIONS, p) for p in ends} == ends
    assert (told["counted"], told["verdicts"]) == (7, ["accepted"] * 3 + ["rate_limited"] * 2)
    assert told["next_accepted_at"] is not None
    assert [post(stack.url, address) for _ in range(5)] == [202] * 3 + [429] * 2
    assert "Nothing is sent" in " ".join(nigredo(stack, "ratelimit", "simulate", "--help").split())


def test_the_list_is_the_runbooks_and_the_limit_is_the_setting(stack: Stack) -> None:
    address = any_ipv4_client()
    fill(stack, stack.url, address, address)

    listed = json.loads(nigredo(stack, "ratelimit", "list", "--limit", "1000", "--json"))
    assert [(each["submission_count"]) for each in listed if each["ip_address"] == address] == [11]

    nigredo(stack, "ratelimit", "set-limit", "12", "--for", "1m")
    try:
        eventually(lambda: post(stack.url, address) == 202, within_s=60, what="a higher limit")
        assert "RATE_LIMIT_PER_HOUR=12  (set by" in nigredo(stack, "config", "get", "RATE_LIMIT_PER_HOUR")
    finally:
        nigredo(stack, "config", "unset", "RATE_LIMIT_PER_HOUR")
    refused = stack.nigredo("ratelimit", "set-limit", "1000")
    assert refused.code == 2
    assert "from 1 to 200" in refused.err
    assert stack.nigredo("ratelimit", "reset", "nobody").code == 2
