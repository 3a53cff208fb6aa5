"""Kafka away, slow or gone: nothing that was taken is lost, nobody waits long, and it is over when it is over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

import httpx
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.errors import DependencyDown
from nigredo.kafka.batch_publisher import BatchPublisher, Outgoing
from nigredo.kafka.topic_reader import TopicReader
from nigredo.stack.home import Home
from nigredo.testing import Stack, any_client, eventually, running_stack
from tests.support.nodes import FORM, Load, an_address, another_node, frozen, submitted

pytestmark = pytest.mark.embedded

CONNECTIONS = 16
STOPPED_S = float(os.environ.get("NIGREDO_TEST_OUTAGE_SECONDS", "10"))
ANSWERED_WITHIN_S = 3.0
TOLERANCE_S = 1.0
"""For a machine that is busy with everything else."""
BACK_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def own() -> Iterator[Stack]:
    """A stack that may be broken: one for all tests here."""
    if home := os.environ.get("NIGREDO_TEST_HOME"):
        yield Stack(Home.open(Path(home)))
        return
    with running_stack() as stack:
        yield stack


def kafka_pid(stack: Stack) -> int:
    return int(stack.status()["parts"]["kafka"]["pid"])


@contextmanager
def stopped(stack: Stack) -> Iterator[None]:
    """Let the broker end and start again; it is ready afterwards."""
    assert stack.nigredo("stop", "kafka").code == 0
    try:
        yield
    finally:
        assert stack.nigredo("start", "kafka").code == 0


def away(stack: Stack, how: str) -> AbstractContextManager[None]:
    """Take the broker away: silent, with its connections as they were, or gone, with nobody at its port."""
    return frozen(kafka_pid(stack)) if how == "silent" else stopped(stack)


def is_honest(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("how", [pytest.param("silent", marks=pytest.mark.thorough), "gone"])
def test_a_broker_that_stops_under_load_costs_503s_and_nothing_else(own: Stack, how: str) -> None:
    with Load(own.url, CONNECTIONS) as load:
        eventually(lambda: len(load.answers) > 200, within_s=60, what="load")
        with away(own, how):
            time.sleep(STOPPED_S)
        back = time.monotonic()
        time.sleep(BACK_WITHIN_S)
        eventually(lambda: len(load.since(back + BACK_WITHIN_S)) > 100, within_s=60, what="load afterwards")

    refused = [answer for answer in load.answers if answer.status != 202]
    assert load.errors == []
    assert refused, "the broker was not away"
    assert {answer.status for answer in refused} == {503}
    assert all(answer.retry_after and int(answer.retry_after) >= 1 and answer.lead_id for answer in refused)
    assert max(answer.took_s for answer in load.answers) < ANSWERED_WITHIN_S + TOLERANCE_S
    after = load.since(back + BACK_WITHIN_S)
    assert {answer.status for answer in after} == {202}
    assert median(answer.took_s for answer in after) < 0.5
    in_topic = {str(lead_id) for ids in submitted(own).values() for lead_id in ids}
    assert [lead_id for ids in load.taken().values() for lead_id in ids if lead_id not in in_topic] == []


@pytest.mark.parametrize("how", [pytest.param("silent", marks=pytest.mark.thorough), "gone"])
def test_with_the_spool_a_broker_that_stops_is_noticed_by_nobody(own: Stack, how: str) -> None:
    with another_node(own, INGEST_SPOOL="on", RATE_LIMIT_PER_HOUR="200") as node:
        with Load(node.url, CONNECTIONS, posts_a_network=50) as load:
            eventually(lambda: len(load.answers) > 200, within_s=60, what="load")
            with away(own, how):
                gone = time.monotonic()
                time.sleep(STOPPED_S)
                deep = node.health()
            back = time.monotonic()
            time.sleep(BACK_WITHIN_S)
        eventually(lambda: node.health().json()["spool"]["records"] == 0, within_s=60, what="an empty spool")

        assert deep.status_code == 200
        assert deep.json()["spool"]["records"] > 0
        assert deep.json()["spool"]["bytes"] > 0
        assert deep.json()["spool"]["oldest_age_s"] > STOPPED_S / 2
        assert load.errors == []
        assert {answer.status for answer in load.answers} == {202}
        # Once it is known that Kafka is away, nobody waits for it.
        known = [answer for answer in load.since(gone + 2) if answer.began < back]
        assert median(answer.took_s for answer in known) < 0.5
        in_topic = submitted(own)
        for network, ids in load.taken().items():
            found = [str(lead_id) for lead_id in in_topic[network]]
            assert found == ids, "each once, in the order in which the client sent them"
        lead_id = load.answers[-1].lead_id
        row = "SELECT 1 FROM nigredo.leads WHERE id = %s"
        eventually(lambda: own.rows(row, lead_id), within_s=60, what="the row of the last one")


def test_a_spool_survives_kill_9_and_is_drained_at_the_next_start(own: Stack) -> None:
    client = an_address()
    with another_node(own, INGEST_SPOOL="on", INGEST_WORKERS="2") as node:
        with frozen(kafka_pid(own)):
            taken = [node.post(client) for _ in range(8)]
            assert {answer.status_code for answer in taken} == {202}
            node.kill()
        # With one worker less than there are files by then, what the other one left is taken along.
        node.restart()
        ids = {answer.json()["id"] for answer in taken}
        eventually(
            lambda: {str(lead_id) for lead_id in submitted(own)[client]} == ids,
            within_s=60,
            every_s=0.5,
            what="what was spooled, in the topic",
        )
        stored = "SELECT count(*) FROM nigredo.leads WHERE ip_address = %s"
        eventually(lambda: own.rows(stored, client) == [(8,)], within_s=60, what="a row for each")


def test_a_spool_that_is_full_refuses_and_is_not_ready_until_kafka_is_back(own: Stack) -> None:
    with another_node(own, INGEST_SPOOL="on", INGEST_SPOOL_MAX_BYTES="140000", BODY_MAX_BYTES="65536") as node:
        with frozen(kafka_pid(own)):
            answers = [node.post(message="x" * 9000) for _ in range(20)]
            assert [answer.status_code for answer in answers[:10]] == [202] * 10
            assert is_honest(answers[-1])
            ready = node.health("/health/ready")
            assert (ready.status_code, ready.json()["waiting_for"]) == (503, "room in the spool")
            assert node.health("/health/live").status_code == 200
        eventually(node.ready, within_s=60, what="room again")
        assert node.post().status_code == 202
        in_topic = {str(lead_id) for ids in submitted(own).values() for lead_id in ids}
        assert {answer.json()["id"] for answer in answers if answer.status_code == 202} <= in_topic


def burst(url: str, posts: int) -> list[tuple[httpx.Response, float]]:
    def post(_: int) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        answer = client.post(f"{url}/api/leads", json=FORM, headers={"X-Forwarded-For": any_client()})
        return answer, time.monotonic() - began

    # One client for all: what it costs to make one is not what is measured.
    limits = httpx.Limits(max_connections=posts)
    with httpx.Client(timeout=30, limits=limits) as client, ThreadPoolExecutor(posts) as pool:
        return list(pool.map(post, range(posts)))


def test_a_broker_that_is_gone_is_told_within_three_seconds_however_many_ask(own: Stack) -> None:
    assert own.post().status_code == 202
    with stopped(own):
        answers = burst(own.url, 64)
        eventually(lambda: not is_ready(own.url), within_s=60, what="an ingest that is not ready")
        live = httpx.get(f"{own.url}/health/live", timeout=10)

    assert all(is_honest(answer) for answer, _ in answers)
    assert max(took_s for _, took_s in answers) < ANSWERED_WITHIN_S + TOLERANCE_S
    assert live.status_code == 200
    eventually(lambda: own.post().status_code == 202, within_s=60, what="a 202 without a restart")


def test_a_broker_that_never_answers_is_told_at_once(own: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with another_node(own, ready=False, KAFKA_BOOTSTRAP_SERVERS=address) as node:
            eventually(lambda: reachable(node.url), within_s=60, what="a listener")
            answers = burst(node.url, 32)
            probes = burst_of_probes(node.url, 32)

    assert all(is_honest(answer) for answer, _ in answers)
    assert max(took_s for _, took_s in answers) < ANSWERED_WITHIN_S + TOLERANCE_S
    assert {answer.status_code for answer in probes} == {503}


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/health/ready", timeout=10).status_code == 200


def reachable(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def burst_of_probes(url: str, probes: int) -> list[httpx.Response]:
    with ThreadPoolExecutor(probes) as pool:
        return list(pool.map(lambda _: httpx.get(f"{url}/health/ready", timeout=20), range(probes)))


def half_sent(port: int, body: bytes) -> socket.socket:
    """Open a connection with a request whose body is not there yet."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST /api/leads HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {any_client()}\r\n"
    head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body[:10])
    return connection


@pytest.mark.parametrize("spool", ["off", "on"])
def test_what_is_in_flight_at_sigterm_is_answered_and_kept(own: Stack, spool: str) -> None:
    body = b"name=Ana&email=ana%40example.com&message=Oi"
    with another_node(own, INGEST_SPOOL=spool, INGEST_UNREADY_SECONDS="3") as node:
        connections = [half_sent(node.port, body) for _ in range(20)]
        assert node.post().status_code == 202  # What was opened before is at the server by now.

        os.kill(node.process.pid, signal.SIGTERM)
        eventually(lambda: node.health("/health/ready").status_code == 503, within_s=2, what="an unready node")
        late = node.post()
        live = node.health("/health/live")
        eventually(lambda: not reachable(node.url), within_s=60, what="a closed listener")
        for connection in connections:  # All at once: a body has a deadline, and a busy machine answers one by one.
            connection.sendall(body[10:])
        answers = [connection.recv(65536) for connection in connections]
        for connection in connections:
            connection.close()
        code = node.process.wait(30)

    assert live.status_code == 200
    assert late.status_code == 202
    assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 202 Accepted"] * 20
    assert code == 0
    ids = {httpx.Response(200, content=answer.split(b"\r\n\r\n")[1]).json()["id"] for answer in answers}
    in_topic = {str(lead_id) for found in submitted(own).values() for lead_id in found}
    assert ids | {late.json()["id"]} <= in_topic


def test_a_batch_in_an_outage_has_failed_unless_kafka_has_it_and_the_next_one_goes_through(own: Stack) -> None:
    """The processors' batches: those that were given up, and those that wait for the broker to come back."""
    topic = f"test-{uuid4()}"
    admin = AdminClient(own.client_config())
    admin.create_topics([NewTopic(topic, num_partitions=4, replication_factor=1)])[topic].result(10)
    batches = {name: [f"{name} {number}".encode() for number in range(300)] for name in ("before", "given up", "after")}

    def publish(publisher: BatchPublisher, name: str) -> asyncio.Future[None]:
        return publisher.publish_all(Outgoing(topic, value, value) for value in batches[name])

    async def scenario() -> None:
        hasty, patient = (
            BatchPublisher(own.producer_config(delivery_timeout_s=seconds), in_flight_max=10) for seconds in (3, 300)
        )
        await asyncio.wait_for(publish(hasty, "before"), 30)
        assert (await asyncio.to_thread(own.nigredo, "stop", "kafka")).code == 0
        try:
            given_up, waiting = publish(hasty, "given up"), publish(patient, "after")
            with pytest.raises(DependencyDown):
                await asyncio.wait_for(given_up, 30)
            assert not waiting.done()
        finally:
            assert (await asyncio.to_thread(own.nigredo, "start", "kafka")).code == 0
        await asyncio.wait_for(waiting, 60)
        await asyncio.wait_for(publish(hasty, "after"), 60)
        await hasty.close()
        await patient.close()

    asyncio.run(scenario())

    read = Counter(
        m.value() for m in TopicReader(own.settings(role="admin"), "test").read_to_end(topic, range(4), deadline_s=30)
    )
    assert {read[value] for value in batches["before"]} == {1}
    assert {read[value] for value in batches["after"]} == {2}
    assert {read[value] for value in batches["given up"]} == {0}
