"""What tests of the product, ours or somebody else's, need: a real stack in a temporary home, and waiting."""

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import psycopg
from confluent_kafka import KafkaException

from nigredo.errors import DependencyDown
from nigredo.kafka.publisher import NOBODY_ANSWERS, client_config, producer_config
from nigredo.settings import Settings
from nigredo.stack.home import PORTS, Home

T = TypeVar("T")

COMMAND_DEADLINE_S = 180.0
START_DEADLINE_S = 400.0
"""A busy machine takes minutes for a first start. Two of them stay below the time after which a test counts as hung."""


class StackDidNotStart(Exception):
    """A stack for tests did not come up; the text has what `nigredo up` said, and the ends of its logs."""


def eventually(look: Callable[[], T | None], *, within_s: float, what: str, every_s: float = 0.02) -> T:
    """Return the first truthy value of `look`; one that nobody answered saw nothing.

    Raises AssertionError naming `what` when there is none in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        failure: Exception | None = None
        try:
            if found := look():
                return found
        except Exception as error:
            if not _nobody_answered(error):
                raise
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not seen within {within_s:g} s: {what}") from failure
        time.sleep(every_s)


def _nobody_answered(error: Exception) -> bool:
    """Say whether a look ended so because the machine, or a part that a test ended, needs its time."""
    if isinstance(error, KafkaException):
        return error.args[0].code() in NOBODY_ANSWERS
    if isinstance(error, psycopg.OperationalError):
        # No state: no connection. 57P: the server is starting or stopping (PostgreSQL, appendix A).
        return error.sqlstate is None or error.sqlstate.startswith("57P")
    return isinstance(error, (DependencyDown, httpx.ConnectError, httpx.ConnectTimeout))


@dataclass(frozen=True, slots=True)
class Command:
    """A finished `nigredo` command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack and the ways into it."""

    home: Home

    @property
    def url(self) -> str:
        """Where forms are posted."""
        return self.home.url("ingest")

    @property
    def fibonacci_url(self) -> str:
        """Where the stand-in for the customer's system listens."""
        return self.home.url("fibonacci")

    @property
    def bootstrap_servers(self) -> str:
        """The broker."""
        return f"127.0.0.1:{self.home.port('kafka')}"

    @property
    def registry_url(self) -> str:
        """The registry's Confluent API."""
        return self.home.url("registry") + "/apis/ccompat/v7"

    @property
    def registry_credentials(self) -> tuple[str, str] | None:
        """User and password for the registry; None where it asks for none."""
        return self.home.registry_credentials

    @property
    def registry_proof(self) -> dict[str, str]:
        """The same for a client of confluent-kafka, to be added to its settings."""
        return {"basic.auth.user.info": ":".join(self.registry_credentials)} if self.registry_credentials else {}

    def settings(self, *, role: str = "nigredo_app", **changes: str) -> Settings:
        """Return settings for code under test that is to work on this stack."""
        return Settings.from_environment(self.home.part_environment(changes, "test", role=role))

    def client_config(self) -> dict[str, Any]:
        """Return the settings of any librdkafka client that may do everything on this stack's broker."""
        return client_config(self.settings(role="admin"), "test")

    def producer_config(self, *, delivery_timeout_s: float) -> dict[str, Any]:
        """Return the settings of a producer such as the product's own that may write to every topic."""
        return producer_config(self.settings(role="admin"), "test", delivery_timeout_s=delivery_timeout_s)

    def nigredo(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Command:
        """Run a command on this stack."""
        return run_nigredo("--home", str(self.home.dir), *arguments, environment=environment)

    def status(self) -> Any:
        """Return what `nigredo status --json` says."""
        return json.loads(self.nigredo("status", "--json").out)

    def family(self) -> list[psutil.Process]:
        """Return the supervisor and every process that must not outlive it."""
        supervisor = psutil.Process(int((self.home.dir / "run" / "owner").read_text(encoding="utf-8")))
        found = [supervisor]
        for process in supervisor.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                # A Java part's cache is made in the background, for later starts of any stack.
                if "-XX:AOTMode=create" not in process.cmdline():
                    found.append(process)
        return found

    def kill(self, part: str) -> None:
        """Kill a part's process with SIGKILL, once there is one: after an earlier kill its place is empty at first."""

        def killed() -> bool:
            pid = self.status()["parts"][part]["pid"]
            if pid is None:
                return False
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
            return False

        eventually(killed, within_s=60, what=f"a {part} to kill")

    @contextmanager
    def database(self, role: str = "admin") -> Iterator[psycopg.Connection]:
        """Open the database."""
        with psycopg.connect(self.home.conninfo(role), autocommit=True, connect_timeout=5) as connection:
            yield connection

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.database() as connection:
            return connection.execute(query.encode(), values).fetchall()

    def received(self) -> list[dict[str, Any]]:
        """Return the webhooks that the stand-in received, oldest first."""
        found: list[dict[str, Any]] = httpx.get(f"{self.fibonacci_url}/received", timeout=10, trust_env=False).json()
        return found

    def post(self, client: str | None = None, **fields: str) -> httpx.Response:
        """Post a form, from a client network of its own unless told."""
        return httpx.post(
            f"{self.url}/api/leads",
            data={"name": "Ana", "email": "ana@example.com", "message": "Oi"} | fields,
            headers={"X-Forwarded-For": client or any_client()},
            timeout=10,
            trust_env=False,
        )


def any_client() -> str:
    """Return an address in an IPv6 network that no other test uses (RFC 3849: for documentation)."""
    # In the form in which it is stored: without leading zeros.
    return str(ip_address(f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1"))


_used_ipv4 = count(secrets.randbelow(2**17))


def any_ipv4_client() -> str:
    """Return an IPv4 address that no other test of this run uses (198.18.0.0/15, RFC 2544: for benchmarks)."""
    # The factor is odd, so no address comes twice; those that follow each other are in networks of their own.
    return str(ip_address("198.18.0.0") + next(_used_ipv4) * 7919 % 2**17)


def run_nigredo(
    *arguments: str, environment: Mapping[str, str] | None = None, deadline_s: float = COMMAND_DEADLINE_S
) -> Command:
    """Run the command line as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "nigredo.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=deadline_s,
        env=dict(os.environ) | dict(environment or {}),
        check=False,
    )
    return Command(done.returncode, done.stdout, done.stderr)


def free_port_base() -> int:
    """Return a port base whose ports nobody uses at present."""
    for _ in range(200):
        base = 20_000 + secrets.randbelow(10_000)
        if all(_is_free(base + number) for number in range(len(PORTS))):
            return base
    raise RuntimeError("no free ports for a stack")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def running_stack(environment: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Start a stack in a temporary home, with these settings, and end it, with all its data, afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="nigredo-test-"))
    stack = Stack(Home.open(folder, free_port_base()))
    try:
        with started(stack, environment=environment):
            yield stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(stack: Stack, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run `nigredo up` with these options, and `down` afterwards. Raises StackDidNotStart."""
    home = stack.home
    up = ("--home", str(home.dir), "up", "--detach", "--port-base", str(home.port_base), *options)
    try:
        try:
            command = run_nigredo(*up, environment=environment, deadline_s=START_DEADLINE_S)
        except subprocess.TimeoutExpired as error:
            raise StackDidNotStart(f"not ready after {START_DEADLINE_S:g} s\n{_log_tails(home)}") from error
        if command.code != 0:
            raise StackDidNotStart(f"{command.err.strip()}\n{_log_tails(home)}")
        yield
    finally:
        stack.nigredo("down")


def _log_tails(home: Home) -> str:
    tails = []
    for log in sorted((home.dir / "logs").glob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        tails.append(f"--- {log.name}\n" + "\n".join(lines))
    return "\n".join(tails)
