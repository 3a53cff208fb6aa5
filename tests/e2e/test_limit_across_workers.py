"""The limit with workers that join, are killed, and freeze: every verdict is the one that the log alone gives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from nigredo.avro.codec import Codec, Undecodable
from nigredo.kafka.record import record_of
from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, any_client, eventually
from schemas.events import Lead, Rejection, Submission
from schemas.topics import LEADS, REJECTIONS, SUBMISSIONS
from tests.e2e.test_limit import codec_of, submission

NETWORKS = 60
SUBMISSIONS_EACH = 50


@contextmanager
def second_worker(stack: Stack, name: str = "rate-limiter") -> Iterator[subprocess.Popen[bytes]]:
    """Run one more limiter or persister in the same group, with a state folder of its own."""
    environment = stack.home.part_environment(os.environ, f"second-{name}")
    environment["NIGREDO_STATE_DIR"] = str(stack.home.dir / "second")
    command = [sys.executable, "-m", "nigredo.cli", "run", name]
    with (stack.home.dir / "logs" / f"second-{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def decoded(stack: Stack, codec: Codec, topic: str) -> Iterator[tuple[object, int, int, datetime]]:
    reader = TopicReader(stack.settings(), "test")
    for message in reader.read_to_end(topic, reader.partitions(topic), deadline_s=30):
        record = record_of(message)
        try:
            event = codec.decode(topic, record.value or b"")
        except Undecodable:
            continue
        yield event, record.partition, record.offset, record.timestamp


def judged_from_the_log(stack: Stack, codec: Codec, networks: set[str]) -> dict[UUID, bool]:
    """Judge the submissions of these networks once more, with nothing but the definition of the limit."""
    accepted: dict[str, list[datetime]] = defaultdict(list)
    verdicts: dict[UUID, bool] = {}
    records = sorted(decoded(stack, codec, SUBMISSIONS), key=lambda found: (found[1], found[2]))
    for event, _, _, at in records:
        if isinstance(event, Submission) and event.client_network in networks:
            recent = [earlier for earlier in accepted[event.client_network] if at - earlier < timedelta(hours=1)]
            verdicts[event.id] = len(recent) < event.limit
            accepted[event.client_network] = recent + ([at] if verdicts[event.id] else [])
    return verdicts


@pytest.mark.parametrize(
    "trouble",
    [pytest.param(signal.SIGKILL, marks=pytest.mark.thorough), signal.SIGSTOP],
    ids=["killed", "frozen"],
)
def test_workers_that_join_and_vanish_change_no_verdict(stack: Stack, trouble: signal.Signals) -> None:
    codec = codec_of(stack)
    clients = [any_client() for _ in range(NETWORKS)]
    sent = [submission(client) for client in clients for _ in range(SUBMISSIONS_EACH)]
    random.Random(7).shuffle(sent)
    producer = Producer(stack.producer_config(delivery_timeout_s=20))

    def publish(some: list[Submission]) -> None:
        for event in some:
            producer.produce(SUBMISSIONS, key=event.client_network.encode(), value=codec.encode(SUBMISSIONS, event))
        assert producer.flush(20) == 0

    third = len(sent) // 3
    group = TopicReader(stack.settings(), "test")
    with second_worker(stack) as worker:
        publish(sent[:third])
        eventually(lambda: second_has_partitions(stack), within_s=60, what="the second worker's share")
        publish(sent[third : 2 * third])
        worker.send_signal(trouble)
        publish(sent[2 * third :])
        if trouble == signal.SIGSTOP:
            # Its partitions are judged by the other one once its session is over; then it wakes up as a zombie.
            eventually(lambda: lag(stack, group) == 0, within_s=60, every_s=0.5, what="the end of the log")
            worker.send_signal(signal.SIGCONT)
        eventually(lambda: lag(stack, group) == 0, within_s=60, every_s=0.5, what="the end of the log")

    networks = {event.client_network for event in sent}
    expected = judged_from_the_log(stack, codec, networks)
    assert len(expected) == len(sent)
    leads = [e.id for e, *_ in decoded(stack, codec, LEADS) if isinstance(e, Lead) and e.client_network in networks]
    refused = [
        e.id for e, *_ in decoded(stack, codec, REJECTIONS) if isinstance(e, Rejection) and e.client_network in networks
    ]
    assert set(leads) == {lead_id for lead_id, accepted in expected.items() if accepted}
    assert set(refused) == {lead_id for lead_id, accepted in expected.items() if not accepted}
    assert len(set(leads)) == NETWORKS * 10
    stored = "SELECT count(*) FROM nigredo.leads WHERE id = ANY(%s)"
    eventually(lambda: stack.rows(stored, list(set(leads))) == [(NETWORKS * 10,)], within_s=60, what="their rows")


def second_has_partitions(stack: Stack) -> bool:
    """Say whether the group has two members that both have partitions."""

    admin = AdminClient(stack.client_config())
    name = "nigredo-rate-limiter-dev"
    members = admin.describe_consumer_groups([name])[name].result(10).members
    return len(members) == 2 and all(member.assignment.topic_partitions for member in members)


def lag(stack: Stack, reader: TopicReader) -> int:
    partitions = reader.partitions(SUBMISSIONS)
    committed = reader.committed("nigredo-rate-limiter-dev", SUBMISSIONS, partitions)
    return sum(reader.watermarks(SUBMISSIONS, p)[1] - (committed[p] or 0) for p in partitions)
