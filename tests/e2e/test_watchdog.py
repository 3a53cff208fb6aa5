"""A worker that hangs is ended and, started again, goes on without loss; one that waits for something is let be."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.errors import DependencyDown
from nigredo.kafka.consumer_groups import members
from nigredo.testing import Stack, eventually
from processors.engine.watchdog import EXIT_CODE, Restarts
from tests.support.hanging_worker import AWAY_S, PATIENCE_S

PARTITIONS = 4  # As the stack's own topics: Faust expects the same of all.
RECORDS = 300


@pytest.fixture
def topic(stack: Stack) -> Iterator[str]:
    admin = AdminClient(stack.client_config())
    name = f"nigredo.hanging-{secrets.token_hex(4)}"
    admin.create_topics([NewTopic(name, num_partitions=PARTITIONS, replication_factor=1)])[name].result(20)
    producer = Producer(stack.producer_config(delivery_timeout_s=20))
    for number in range(RECORDS):
        producer.produce(name, value=str(number).encode(), partition=number % PARTITIONS)
    assert producer.flush(20) == 0
    yield name
    admin.delete_topics([name])[name].result(20)


@contextmanager
def worker(stack: Stack, topic: str, folder: Path, how: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = stack.home.part_environment(os.environ, "hanging")
    command = [sys.executable, "-m", "tests.support.hanging_worker", topic, str(folder), how]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def done(folder: Path) -> set[str]:
    file = folder / "done"
    return set(file.read_text().splitlines()) if file.exists() else set()


def restarts(stack: Stack, folder: Path, how: str) -> int:
    settings = replace(stack.settings(), state_dir=folder / "state")
    return Restarts(settings, f"hanging-{how}-{folder.name}").count()


def forgotten(stack: Stack, folder: Path, how: str) -> bool:
    settings = stack.settings()
    try:
        return members(settings, settings.function(f"hanging-{how}-{folder.name}")) == 0
    except DependencyDown:
        return False


EXPECTED = {f"{number % PARTITIONS}:{number // PARTITIONS}" for number in range(RECORDS)}


@pytest.mark.parametrize("how", [pytest.param("loop", marks=pytest.mark.thorough), "agent"])
def test_a_worker_that_hangs_is_ended_and_the_next_one_loses_nothing(
    stack: Stack, topic: str, tmp_path: Path, how: str
) -> None:
    with worker(stack, topic, tmp_path, how) as hanging:
        assert hanging.wait(120) == EXIT_CODE
    assert (tmp_path / "hung").exists(), "ended before it hung: the machine is slower than this test is patient"
    assert done(tmp_path) < EXPECTED
    assert restarts(stack, tmp_path, how) == 1
    told = (tmp_path / "log").read_text()
    assert "the worker makes no progress and is ended" in told
    assert "hanging_worker.py" in told  # Where it hung.

    # The next one waits for nobody: while the group takes the dead one for a member, the next one makes no progress
    # either, and these tests are less patient than a group is.
    eventually(lambda: forgotten(stack, tmp_path, how), within_s=60, every_s=0.2, what="the dead member forgotten")
    with worker(stack, topic, tmp_path, how) as next_one:
        eventually(lambda: done(tmp_path) == EXPECTED, within_s=90, every_s=0.2, what="every record")
        # Idle now, with nothing left: no reason to end it.
        time.sleep(2 * PATIENCE_S)
        assert next_one.poll() is None
    assert restarts(stack, tmp_path, how) == 1


def test_a_worker_that_says_what_it_waits_for_is_let_be(stack: Stack, topic: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with worker(stack, topic, tmp_path, "waits") as waiting:
        eventually(lambda: done(tmp_path) == EXPECTED, within_s=120, every_s=0.2, what="every record")
        assert time.monotonic() - began > AWAY_S
        assert waiting.poll() is None
    assert restarts(stack, tmp_path, "waits") == 0
