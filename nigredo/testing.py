"""Test support for this repository and integrators: a real stack in a temporary home, and waiting with a deadline."""

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
"""Minutes, because a first start on a busy machine is slow; twice this stays below the timeout of one test."""


class StackDidNotStart(Exception):
    """A stack for tests that did not start; the text has the error of `nigredo up` and the last lines of the logs."""


def eventually(look: Callable[[], T | None], *, within_s: float, what: str, every_s: float = 0.02) -> T:
    """Call `look` until the value is truthy and return that value; a call that finds a part unavailable is repeated.

    what: the awaited event, for the AssertionError raised when `within_s` has passed.
    """
    deadline = time.monotonic() + within_s
    while True:
        failure: Exception | None = None
        try:
            if found := look():
                return found
        except Exception as error:
            if not _is_unavailable(error):
                raise
            failure = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not seen within {within_s:g} s: {what}") from failure
        time.sleep(every_s)


def _is_unavailable(error: Exception) -> bool:
    """Return whether an error means that a part is unavailable for now: overloaded, starting, or ended by a test."""
    if isinstance(error, KafkaException):
        return error.args[0].code() in NOBODY_ANSWERS
    if isinstance(error, psycopg.OperationalError):
        # No SQLSTATE: no connection. 57P: the server is starting or stopping (PostgreSQL, appendix A).
        return error.sqlstate is None or error.sqlstate.startswith("57P")
    return isinstance(error, (DependencyDown, httpx.ConnectError, httpx.ConnectTimeout))


@dataclass(frozen=True, slots=True)
class Command:
    """A finished `nigredo` command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack, with its addresses, clients and commands."""

    home: Home

    @property
    def url(self) -> str:
        """Base URL of ingest."""
        return self.home.url("ingest")

    @property
    def fibonacci_url(self) -> str:
        """Base URL of the stand-in for the customer's system."""
        return self.home.url("fibonacci")

    @property
    def bootstrap_servers(self) -> str:
        """Address of the broker: host and port."""
        return f"127.0.0.1:{self.home.port('kafka')}"

    @property
    def registry_url(self) -> str:
        """Base URL of the registry's Confluent API."""
        return self.home.url("registry") + "/apis/ccompat/v7"

    @property
    def registry_credentials(self) -> tuple[str, str] | None:
        """User and password for the registry; None when the registry requires no login."""
        return self.home.registry_credentials

    @property
    def registry_proof(self) -> dict[str, str]:
        """Configuration entries of the registry login for a confluent-kafka client; empty when no login is required."""
        return {"basic.auth.user.info": ":".join(self.registry_credentials)} if self.registry_credentials else {}

    def settings(self, *, role: str = "nigredo_app", **changes: str) -> Settings:
        """Return settings for code under test that connects to this stack; `changes` are environment variables."""
        return Settings.from_environment(self.home.part_environment(changes, "test", role=role))

    def client_config(self) -> dict[str, Any]:
        """Return the configuration of a librdkafka client with every permission on this stack's broker."""
        return client_config(self.settings(role="admin"), "test")

    def producer_config(self, *, delivery_timeout_s: float) -> dict[str, Any]:
        """Return the configuration of the product's producer, with permission to write to every topic."""
        return producer_config(self.settings(role="admin"), "test", delivery_timeout_s=delivery_timeout_s)

    def nigredo(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Command:
        """Run a `nigredo` command on this stack."""
        return run_nigredo("--home", str(self.home.dir), *arguments, environment=environment)

    def status(self) -> Any:
        """Return the document of `nigredo status --json`."""
        return json.loads(self.nigredo("status", "--json").out)

    def family(self) -> list[psutil.Process]:
        """Return the supervisor and every process that must not outlive it."""
        supervisor = psutil.Process(int((self.home.dir / "run" / "owner").read_text(encoding="utf-8")))
        found = [supervisor]
        for process in supervisor.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                # Left out: the background build of a Java part's cache, which serves later starts of any stack.
                if "-XX:AOTMode=create" not in process.cmdline():
                    found.append(process)
        return found

    def kill(self, part: str) -> None:
        """Kill a part's process with SIGKILL. Waits for a process first, because the part may be restarting."""

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
        """Open an autocommit connection to the database and close the connection afterwards."""
        with psycopg.connect(self.home.conninfo(role), autocommit=True, connect_timeout=5) as connection:
            yield connection

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with self.database() as connection:
            return connection.execute(query.encode(), values).fetchall()

    def received(self) -> list[dict[str, Any]]:
        """Return the webhooks received by the stand-in, oldest first."""
        found: list[dict[str, Any]] = httpx.get(f"{self.fibonacci_url}/received", timeout=10, trust_env=False).json()
        return found

    def post(self, client: str | None = None, **fields: str) -> httpx.Response:
        """Post a form; without `client`, from a client network that no other test uses."""
        return httpx.post(
            f"{self.url}/api/leads",
            data={"name": "Ana", "email": "ana@example.com", "message": "Oi"} | fields,
            headers={"X-Forwarded-For": client or any_client()},
            timeout=10,
            trust_env=False,
        )


def any_client() -> str:
    """Return an address in an IPv6 network that no other test uses (RFC 3849: for documentation)."""
    # In the compressed form that is stored: without leading zeros.
    return str(ip_address(f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1"))


_used_ipv4 = count(secrets.randbelow(2**17))


def any_ipv4_client() -> str:
    """Return an IPv4 address that no other test of this run uses (198.18.0.0/15, RFC 2544: for benchmarks)."""
    # The odd factor repeats no address, and puts consecutive addresses into different networks.
    return str(ip_address("198.18.0.0") + next(_used_ipv4) * 7919 % 2**17)


def run_nigredo(
    *arguments: str, environment: Mapping[str, str] | None = None, deadline_s: float = COMMAND_DEADLINE_S
) -> Command:
    """Run the command line as a user would; raises subprocess.TimeoutExpired after `deadline_s`."""
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
    """Return a port base whose ports are all free at the moment. Raises RuntimeError when none is found."""
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
    """Start a stack in a temporary home with this environment; stop the stack and delete its data afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="nigredo-test-"))
    stack = Stack(Home.open(folder, free_port_base()))
    try:
        with started(stack, environment=environment):
            yield stack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(stack: Stack, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run `nigredo up` with these options, and `nigredo down` afterwards. Raises StackDidNotStart."""
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
