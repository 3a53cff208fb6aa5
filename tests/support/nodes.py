"""Ingest nodes beside a stack's own, each with its own settings and state folder, and load for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

import httpx
import psutil

from nigredo.avro.codec import Undecodable
from nigredo.kafka.topic_reader import TopicReader
from nigredo.testing import Stack, any_client, eventually, free_port_base
from schemas.events import Submission
from schemas.topics import SUBMISSIONS
from tests.e2e.test_limit import codec_of

FORM = {"name": "Ana", "email": "ana@example.com", "message": "Oi"}
START_DEADLINE_S = 60


@dataclass(slots=True)
class Node:
    """A running ingest process, with one worker or several."""

    url: str
    port: int
    workers: int
    log_file: Path
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes] = field(init=False)
    _logged_before: int = 0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._logged_before = self.log_file.stat().st_size if self.log_file.exists() else 0
        self.process = self.start()

    def post(self, client: str | None = None, *, timeout_s: float = 20, **fields: str) -> httpx.Response:
        headers = {"X-Forwarded-For": client or any_client()}
        return httpx.post(f"{self.url}/api/leads", json=FORM | fields, headers=headers, timeout=timeout_s)

    def health(self, path: str = "/health") -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=10)

    def ready(self) -> bool:
        """Return whether all workers are ready, by the log too, because an answer is from one worker alone."""
        begun = self.log_file.read_bytes()[self._logged_before :].count(b'"accepting forms"')
        with suppress(httpx.HTTPError):
            return begun >= self.workers and self.health("/health/ready").status_code == 200
        return False

    def kill(self) -> None:
        """Kill the server and its workers with SIGKILL."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)


@contextmanager
def another_node(stack: Stack, *, ready: bool = True, **settings: str) -> Iterator[Node]:
    """Run a further ingest process against a stack; `ready=False` does not wait for its readiness."""
    port = free_port_base()
    environment = stack.home.part_environment(os.environ, "another-node") | {
        "NIGREDO_STATE_DIR": str(stack.home.dir / f"node-{port}"),
        "INGEST_PORT": str(port),
        "HEALTH_PORT": str(port + 1),
        **settings,
    }
    log_file = stack.home.dir / "logs" / f"node-{port}.log"

    def start() -> subprocess.Popen[bytes]:
        with log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "nigredo.cli", "run", "ingest"], env=environment, stdout=log, stderr=log
            )

    workers = int(settings.get("INGEST_WORKERS", "1"))
    node = Node(f"http://127.0.0.1:{port}", port, workers, log_file, start)
    try:
        if ready:
            eventually(node.ready, within_s=START_DEADLINE_S, what=f"a node that is ready, see {log_file}")
        yield node
    finally:
        if node.process.poll() is None:
            node.kill()


def an_address() -> str:
    """Return an address in a network of its own, in the form that records have."""
    return str(ip_address(any_client()))


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Suspend a process with SIGSTOP inside the `with` body."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one POST. `began` is monotonic time in seconds."""

    began: float
    took_s: float
    status: int
    lead_id: str | None
    retry_after: str | None
    network: str


PAUSE_S = 0.08
"""With 16 connections 200 requests a second at most: a busy site, which starves no machine."""


@dataclass(slots=True)
class Load:
    """Load that POSTs over `connections` connections, one request after another in each, inside the `with` body."""

    url: str
    connections: int
    posts_a_network: int = 1
    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.connections)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        with httpx.Client(timeout=20) as client:
            network, left = an_address(), self.posts_a_network
            while not self._stop.is_set():
                if left == 0:
                    network, left = an_address(), self.posts_a_network
                left -= 1
                began = time.monotonic()
                try:
                    answer = client.post(f"{self.url}/api/leads", json=FORM, headers={"X-Forwarded-For": network})
                except httpx.HTTPError as error:
                    self.errors.append(type(error).__name__)
                    continue
                took_s = time.monotonic() - began
                lead_id, again = answer.json().get("id"), answer.headers.get("Retry-After")
                self.answers.append(Answer(began, took_s, answer.status_code, lead_id, again, network))
                # Pause, because a person is slower and answers of 503 must not flood the node.
                self._stop.wait(PAUSE_S)

    def since(self, moment: float) -> list[Answer]:
        return [answer for answer in list(self.answers) if answer.began >= moment]

    def taken(self) -> dict[str, list[str]]:
        """Return the lead ids of the 202 answers, by network, in the order in which their requests began."""
        found: dict[str, list[str]] = defaultdict(list)
        for answer in sorted(self.answers, key=lambda one: one.began):
            if answer.status == 202 and answer.lead_id is not None:
                found[answer.network].append(answer.lead_id)
        return found


def submitted(stack: Stack) -> dict[str, list[UUID]]:
    """Return the ids in the submissions topic by client address, in the log's order."""
    codec, reader = codec_of(stack), TopicReader(stack.settings(), "test")
    found: dict[str, list[UUID]] = defaultdict(list)
    messages = reader.read_to_end(SUBMISSIONS, reader.partitions(SUBMISSIONS), deadline_s=60)
    # Partitions are read in parallel; within a partition, and so within a network, the order is the log's.
    for message in messages:
        with suppress(Undecodable):
            event = codec.decode(SUBMISSIONS, message.value() or b"")
            if isinstance(event, Submission):
                found[event.ip_address].append(event.id)
    return found
