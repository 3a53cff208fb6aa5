"""The whole product on one machine: which parts there are, in which order they start, and the run of them all."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from nigredo import topics
from nigredo.api_keys import SCOPES, as_value, kept
from nigredo.changes import Changes
from nigredo.control import API_KEY
from nigredo.errors import ConfigurationError, DependencyDown, NigredoError
from nigredo.migrate import migrate
from nigredo.replay import FIRST_ENDPOINT
from nigredo.settings import Settings
from nigredo.stack import control
from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import Home
from nigredo.stack.kafka import kafka_part
from nigredo.stack.part import Part, http_waiting_for
from nigredo.stack.postgres import postgres_part
from nigredo.stack.processes import PROCESSES
from nigredo.stack.registry import registry_part
from nigredo.stack.supervisor import Step, Supervised, Supervisor, check_ports, end_leftovers
from sinks.webhook.endpoint import COMPONENT, Endpoint, read_endpoints
from sinks.webhook.signing import read_secrets

START_DEADLINE_S = 120.0
OWN_GRACE_S = 100.0
"""Longer than the longest request that ingest may still answer."""
EXTERNAL_POLL_S = 0.2
EXTERNAL = ("kafka", "registry", "postgres")
"""The parts that somebody else may run."""
Tell = Callable[[str], None]


def own_part(home: Home, name: str, environment: Mapping[str, str]) -> Part:
    """Describe one of our own processes."""
    return _part(home, name, name, home.port(name), environment)


def endpoint_parts(home: Home, environment: Mapping[str, str]) -> list[Part]:
    """Describe the senders of further endpoints, in the order of their settings file."""
    known = read_endpoints(Settings.from_environment(home.part_environment(environment, "prepare")))
    parts = []
    for name, port in sender_ports(home, known).items():
        if name != FIRST_ENDPOINT:
            _check_secret(known[name])
            settings = {"WEBHOOK_ENDPOINT": name, "HEALTH_PORT": str(port)}
            parts.append(_part(home, known[name].part, COMPONENT, port, environment, **settings))
    return parts


def _check_secret(endpoint: Endpoint) -> None:
    """Raise ConfigurationError, before anything starts, for a secret file that the endpoint's sender could not use."""
    try:
        read_secrets(endpoint.secret_file)
    except ConfigurationError as error:
        text = str(error).removeprefix("WEBHOOK_SECRET_FILE: ")
        raise ConfigurationError(f"WEBHOOK_ENDPOINTS_FILE: {endpoint.name}: secret_file: {text}") from error


def sender_ports(home: Home, endpoints: Iterable[str]) -> Mapping[str, int]:
    """Return where the sender of each endpoint tells of itself.

    endpoints: their names, in the order of their settings file.
    """
    further = [name for name in endpoints if name != FIRST_ENDPOINT]
    ports = {name: home.further_port(number) for number, name in enumerate(further)}
    return {FIRST_ENDPOINT: home.port(COMPONENT)} | ports


def _part(home: Home, name: str, process: str, port: int, environment: Mapping[str, str], **settings: str) -> Part:
    return Part(
        name,
        [sys.executable, "-m", "nigredo.cli", "--home", str(home.dir), "run", process],
        home.part_environment(environment, name) | settings,
        lambda: http_waiting_for(port, "/health/ready"),
        ports=tuple({port, home.health_port(name) or port}),
        url=home.url(name) if name in ("ingest", "fibonacci") else None,
        grace_s=OWN_GRACE_S,
    )


def steps(
    home: Home, artifacts: Artifacts, environment: Mapping[str, str], external: Collection[str] = ()
) -> list[Step]:
    """Return what makes up a stack, each step with what must be there before it.

    external: parts that somebody else runs, at this stack's own addresses: they are waited for, not started.
    """
    as_admin = Settings.from_environment(home.part_environment(environment, "prepare", role="admin"))

    def given(part: Part) -> Part | Callable[[], object]:
        return (lambda: _wait_for(part)) if part.name in external else part

    return [
        Step("kafka", given(kafka_part(home, artifacts, environment))),
        Step("postgres", given(postgres_part(home, environment))),
        Step("registry", given(registry_part(home, artifacts, environment)), needs=("postgres",)),
        Step("tables", lambda: migrate(as_admin), needs=("postgres",)),
        Step("topics", lambda: topics.ensure_topics(as_admin), needs=("kafka",)),
        Step("schemas", lambda: topics.ensure_schemas(as_admin), needs=("registry",)),
        Step("api key", lambda: _ensure_api_key(as_admin, home), needs=("topics", "schemas")),
        # They wait for the schemas by themselves; meanwhile they load.
        *(Step(name, own_part(home, name, environment), needs=("tables", "topics")) for name in PROCESSES),
        *(Step(part.name, part, needs=("tables", "topics")) for part in endpoint_parts(home, environment)),
    ]


def _ensure_api_key(settings: Settings, home: Home) -> None:
    """Let the key that `nigredo env` prints be known, unless somebody revoked or rotated it."""
    known = home.dir / "secrets" / "api-key.known"
    if known.exists():
        return
    key = kept(home.secret("api-key"), "nigredo env", frozenset(SCOPES))
    Changes(settings, "nigredo up").put(API_KEY, key.id, as_value(key))
    known.touch(mode=0o600)


def _wait_for(part: Part) -> None:
    """Wait for a part that somebody else runs. Raises DependencyDown when it does not become ready."""
    deadline = time.monotonic() + START_DEADLINE_S
    while (reason := part.waiting_for()) is not None:
        if time.monotonic() > deadline:
            raise DependencyDown(f"{part.name}, run by somebody else, is not ready: {reason}")
        time.sleep(EXTERNAL_POLL_S)


async def run(
    home: Home,
    artifacts: Artifacts,
    environment: Mapping[str, str],
    *,
    external: Collection[str] = (),
    tell: Tell,
    when_ready: Callable[[], None],
) -> None:
    """Run the stack until it is told to stop by a signal or by `nigredo down`.

    external: as in `steps`. `tell` gets one line a step; `when_ready` runs in a thread once everything is ready. The
    home must be owned.
    Raises NigredoError when the stack cannot start; nothing is left running then.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    for name in await asyncio.to_thread(end_leftovers, home):
        tell(f"ended {name}, left behind by a stack that was killed")
    supervisor = Supervisor(home, steps(home, artifacts, environment, external))
    check_ports([supervised.part for supervised in supervisor.parts.values()])
    stopped = asyncio.Event()
    server = await control.serve(home, lambda request: _answer(supervisor, stop, stopped, request))
    began = time.monotonic()
    starting = asyncio.create_task(_start(supervisor, tell, began))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asyncio.to_thread(when_ready)
            await stopping
        else:
            starting.cancel()
    finally:
        await asyncio.gather(starting, return_exceptions=True)
        tell("stopping")
        await supervisor.stop()
        stopped.set()
        server.close()
        # Whoever asked for it hears of it before the process ends.
        await asyncio.sleep(0.1)


async def _start(supervisor: Supervisor, tell: Tell, began: float) -> None:
    """Start everything and tell of each part when it is ready."""

    async def watch(name: str, part: Supervised) -> None:
        await part.until_ready(began + START_DEADLINE_S)
        tell(f"{name} ready after {time.monotonic() - began:.1f} s")

    watching = [asyncio.create_task(watch(name, part)) for name, part in supervisor.parts.items()]
    try:
        await supervisor.start(START_DEADLINE_S)
        await asyncio.wait(watching, timeout=1.0)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def _answer(
    supervisor: Supervisor, stop: asyncio.Event, stopped: asyncio.Event, request: dict[str, Any]
) -> dict[str, Any]:
    """Do what a command asks for and return what it prints."""
    match request:
        case {"do": "status"}:
            return supervisor.status()
        case {"do": "down"}:
            stop.set()
            await stopped.wait()
            return {"ready": False, "parts": {}}
        case {"do": "stop" | "start" | "restart" as action, "part": str(name)}:
            part = supervisor.parts.get(name)
            if part is None:
                raise NigredoError(f"there is no part {name!r}; there are {', '.join(supervisor.parts)}")
            if action != "start":
                await part.stop()
            if action != "stop":
                await part.start()
                await part.until_ready(time.monotonic() + START_DEADLINE_S)
            return supervisor.status()
    raise NigredoError("the supervisor does not know this request")
