"""Lab of the bench: a temporary stack, and the processes that the scenarios start on it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import psycopg
from confluent_kafka import Consumer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.avro.codec import Codec
from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.kafka.publisher import client_config
from nigredo.settings import Settings
from nigredo.stack.home import Home
from nigredo.testing import free_port_base, run_nigredo
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS, SUBMISSIONS, TOPICS

READY_DEADLINE_S = 120.0
WATCH_EVERY_S = 0.05
PARTITIONS = 4
ROOT = Path(__file__).parents[1]
STORED_TO = """
INSERT INTO nigredo.stream_offsets (topic_id, partition, topic, next_offset) VALUES (%s, %s, %s, %s)
ON CONFLICT (topic_id, partition) DO UPDATE SET next_offset = excluded.next_offset"""
OURS = ("ingest", "rate-limiter", "persister", "webhook-sender", "fibonacci")


class LabError(Exception):
    """A measurement failed; the text gives the reason."""


@dataclass(slots=True)
class Running:
    """A process under measurement, with its log (stderr) and output (stdout) files."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    out: Path
    ready_s: float = 0.0
    url: str = ""

    def cpu_s(self) -> float:
        """Return the CPU seconds used by the process and its children."""
        return cpu_s(self.process.pid)

    def rss_bytes(self) -> int:
        """Return the resident memory of the process and its children, in bytes."""
        return rss_bytes(self.process.pid)

    def peak_bytes(self) -> int:
        """Return the sum of the peak resident memory of the process and each of its children, in bytes."""
        return sum(_peak_bytes(found.pid) for found in _family(self.process.pid))

    def stop(self) -> None:
        """End the process with SIGTERM, and with SIGKILL after 20 seconds."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@dataclass(slots=True)
class Lab:
    """A running Kafka, registry and PostgreSQL with all topics and tables, without the product's processes."""

    home: Home
    slow: str | None = None
    """The part made twice as slow on purpose; see `bench/slowed.py`. None slows no part."""
    starts: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the start of each process to its readiness."""

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address."""
        return f"127.0.0.1:{self.home.port('kafka')}"

    def settings(self, *, role: str = "nigredo_app") -> Settings:
        """Return the settings of a process on this stack."""
        return Settings.from_environment(self.home.part_environment({}, "bench", role=role))

    def codec(self) -> Codec:
        """Return a codec for every topic."""
        codec = Codec(PinnedSchemas(self.settings()))
        codec.prepare(TOPICS)
        return codec

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection]:
        """Open a connection to the database as its owner."""
        with psycopg.connect(self.home.conninfo("admin"), autocommit=True, connect_timeout=5) as connection:
            yield connection

    @contextmanager
    def ours(self, name: str, *, instance: str = "", **environment: str) -> Iterator[Running]:
        """Run one of the product's processes and wait until it is ready."""
        port = free_port()
        settings = self.home.part_environment(os.environ, "bench") | {
            "NIGREDO_STATE_DIR": str(self.home.dir / "state" / f"bench-{name}{instance}"),
            # Ingest serves its health at the port that accepts forms, and its metrics at another.
            "HEALTH_PORT": str(free_port() if name == "ingest" else port),
            "INGEST_PORT": str(port),
        }
        command = [sys.executable, "-m", "nigredo.cli", "run", name]
        if self.slow:
            command = [sys.executable, "-m", "bench.slowed", self.slow, name]
        health = f"http://127.0.0.1:{port}/health/ready"
        with self._process(name + instance, command, settings | environment, _answers(health)) as running:
            running.url = f"http://127.0.0.1:{port}"
            self.starts.setdefault(name, []).append(running.ready_s)
            yield running

    @contextmanager
    def server(self, application: str, **environment: str) -> Iterator[str]:
        """Serve a reference application as ingest is served; yield its base URL."""
        port = free_port()
        command = [sys.executable, "-m", "granian", "--interface", "asgi", "--factory", application]
        command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--loop", "uvloop", "--http", "1"]
        command += ["--no-ws", "--log-level", "warning"]
        url = f"http://127.0.0.1:{port}"
        settings = self.home.part_environment(os.environ, "bench") | environment
        with self._process(application.rpartition(".")[2].partition(":")[0], command, settings, _answers(url)):
            yield url

    @contextmanager
    def reference(self, name: str, *arguments: str, python: Path = Path(sys.executable)) -> Iterator[Running]:
        """Run a reference that reports its progress on stdout, as JSON lines."""
        command = [str(python), "-m", f"bench.references.{name}", *arguments]
        settings = self.home.part_environment(os.environ, "bench", role="admin")
        with self._process(name, command, settings, lambda: True) as running:
            yield running

    @contextmanager
    def _process(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], bool]
    ) -> Iterator[Running]:
        log = self.home.dir / "logs" / f"bench-{name}.log"
        out = self.home.dir / "run" / f"{name}-{secrets.token_hex(4)}.out"
        began = time.monotonic()
        with log.open("ab") as errors, out.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=dict(environment), stdout=output, stderr=errors)
        running = Running(name, process, log, out)
        try:
            while not ready():
                if process.poll() is not None or time.monotonic() - began > READY_DEADLINE_S:
                    raise LabError(f"{name} did not start:\n{tail(log)}")
                time.sleep(0.02)
            running.ready_s = time.monotonic() - began
            yield running
        finally:
            running.stop()
            out.unlink(missing_ok=True)

    def watch(
        self, count: Callable[[], int], total: int, *, running: Running, deadline_s: float = 180.0
    ) -> list[tuple[float, int]]:
        """Sample a growing count until it reaches `total`; return (monotonic seconds, count) for each growth.

        Raises LabError past the deadline or when the process ends.
        """
        samples: list[tuple[float, int]] = []
        began = time.monotonic()
        while True:
            now, found = time.monotonic(), count()
            if not samples or found > samples[-1][1]:
                samples.append((now, found))
            if found >= total:
                return samples
            if now - began > deadline_s:
                raise LabError(f"{running.name} came to {found} of {total} in {deadline_s:g} s:\n{tail(running.log)}")
            if running.process.poll() is not None:
                raise LabError(f"{running.name} ended by itself:\n{tail(running.log)}")
            time.sleep(WATCH_EVERY_S)

    @contextmanager
    def ends(self, *topics: str) -> Iterator[Callable[[], int]]:
        """Yield a function that returns the sum of the end offsets of all partitions of these topics."""
        consumer = Consumer(client_config(self.settings(role="admin"), "bench") | {"group.id": "bench"})
        places = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]
        try:
            yield lambda: sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
        finally:
            consumer.close()

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Return the end offset of each partition."""
        consumer = Consumer(client_config(self.settings(role="admin"), "bench") | {"group.id": "bench"})
        try:
            places = (TopicPartition(topic, number) for number in range(PARTITIONS))
            return {place.partition: consumer.get_watermark_offsets(place, timeout=10)[1] for place in places}
        finally:
            consumer.close()

    def skip(self) -> None:
        """Move every group and stored offset to the ends of the topics, so that a scenario measures its own records.

        None of the product's processes may be running.
        """
        settings = self.settings()
        commit_offsets(settings, settings.function("rate-limiter"), SUBMISSIONS, self.end_offsets(SUBMISSIONS))
        commit_offsets(settings, settings.function("webhook-sender"), LEADS, self.end_offsets(LEADS))
        admin = AdminClient(client_config(self.settings(role="admin"), "bench"))
        stored = (LEADS, REJECTIONS, RATE_LIMITS, DELIVERIES)
        described = admin.describe_topics(TopicCollection(list(stored)), request_timeout=10)
        with self.database() as database, database.cursor() as cursor:
            for topic in stored:
                topic_id = str(described[topic].result(15).topic_id)
                rows = [(topic_id, number, topic, end) for number, end in self.end_offsets(topic).items()]
                cursor.executemany(STORED_TO, rows)

    def create_topic(self, name: str, **config: str) -> None:
        """Create a topic for a reference."""
        admin = AdminClient(client_config(self.settings(role="admin"), "bench"))
        new = NewTopic(name, num_partitions=PARTITIONS, replication_factor=1, config=config)
        admin.create_topics([new], request_timeout=10)[name].result(15)

    def parts(self) -> Mapping[str, int]:
        """Return the process id of each embedded part."""
        answer = run_nigredo("--home", str(self.home.dir), "status", "--json")
        return {name: part["pid"] for name, part in json.loads(answer.out)["parts"].items() if part["pid"]}

    def parts_mib(self) -> Mapping[str, float]:
        """Return the resident memory of each embedded part and its children."""
        return {name: round(rss_bytes(pid) / 2**20, 1) for name, pid in self.parts().items()}


@contextmanager
def open_lab(*, slow: str | None = None, start_twice: bool = False) -> Iterator[Lab]:
    """Start a stack in a temporary home, without the product's processes, and remove it afterwards.

    start_twice: also measure a start with existing data.
    """
    folder = Path(tempfile.mkdtemp(prefix="nigredo-bench-"))
    lab = Lab(Home.open(folder, free_port_base()), slow)

    def nigredo(*arguments: str) -> float:
        began = time.monotonic()
        done = run_nigredo("--home", str(folder), *arguments)
        if done.code != 0:
            raise LabError(f"nigredo {' '.join(arguments)}: {done.err.strip()}")
        return time.monotonic() - began

    try:
        up = ("up", "--detach", "--port-base", str(lab.home.port_base))
        lab.starts["stack, new home"] = [nigredo(*up)]
        if start_twice:
            nigredo("down")
            lab.starts["stack, again"] = [nigredo(*up)]
        # Commit timestamps show when a row became visible. No other setting differs from a user's stack.
        with (folder / "postgres" / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("track_commit_timestamp = on\n")
        nigredo("restart", "postgres")
        for part in OURS:
            nigredo("stop", part)
        yield lab
    finally:
        run_nigredo("--home", str(folder), "down")
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a TCP port that is free at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Return the CPU seconds used by a process and its children."""
    return sum(times.user + times.system for times in (found.cpu_times() for found in _family(pid)))


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children in bytes; shared pages count in each of them."""
    return sum(found.memory_info().rss for found in _family(pid))


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def disk_bytes(folder: Path, pattern: str = "*") -> int:
    """Return the bytes on disk of the files below a folder; of preallocated files only the written blocks count."""
    total = 0
    for file in folder.rglob(pattern):
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        total += found.st_blocks * 512
    return total


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


def _answers(url: str) -> Callable[[], bool]:
    def ready() -> bool:
        try:
            # A reference without such a route answers 404, which shows that it is up.
            return httpx.get(url, timeout=2).status_code < 500
        except httpx.TransportError:
            return False

    return ready
