"""The embedded stack: its parts and the order of their start, and the run of all of them on one machine."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from nigredo.components import PERSISTER, PROCESSES, WEBHOOK_SENDER
from nigredo.control.admin import ControlAdmin
from nigredo.control.api_keys import SCOPES, as_value, stored_form
from nigredo.control.state import API_KEY
from nigredo.endpoints.endpoint import NAME, Endpoint, endpoint_of, examine_endpoints
from nigredo.endpoints.keys import FIRST_ENDPOINT
from nigredo.endpoints.secrets import read_secrets
from nigredo.errors import ConfigurationError, DependencyDown, NigredoError
from nigredo.kafka import topic_admin as topics
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.schema_ids import SchemaIds, conflict, ensure_schemas
from nigredo.postgres.migrate import migrate
from nigredo.process import WRONG_SETTINGS
from nigredo.settings import Settings
from nigredo.stack import supervisor_socket as control
from nigredo.stack.artifacts import Artifacts
from nigredo.stack.home import Home
from nigredo.stack.part import Part, check_ports, http_waiting_for
from nigredo.stack.parts.kafka import kafka_part
from nigredo.stack.parts.postgres import postgres_part
from nigredo.stack.parts.registry import registry_part
from nigredo.stack.supervised import seen
from nigredo.stack.supervisor import Step, Supervisor, Watch, end_leftovers

START_DEADLINE_S = 600.0
"""Seconds until forms must be accepted; a cold and busy machine takes minutes."""
REST_DEADLINE_S = 180.0
"""Seconds a start waits for the other parts once forms are accepted; their retries go on afterwards."""
PART_DEADLINE_S = 300.0
"""Seconds `nigredo start PART` waits."""
PROGRESS_EVERY_S = 15.0
PROGRESS_POLL_S = 0.1
SCHEMAS_EVERY_S = 30.0
GOAL = "ingest"
INFRASTRUCTURE = ("kafka", "registry", "postgres")
OWN_GRACE_S = 100.0
"""Seconds the product's processes get to stop: longer than the longest request that ingest may still answer."""
EXTERNAL = INFRASTRUCTURE
"""Parts that an operator may run outside of the stack."""
OTHER_CLUSTER = (
    "Kafka's data is not that of the last start: settings, blocks, maintenance and other API keys are gone with it, "
    "and so are leads that were neither stored nor delivered; `nigredo recover` shows what is left"
)
Tell = Callable[[str], None]


def own_part(home: Home, name: str, environment: Mapping[str, str]) -> Part:
    """Return the part of a process of the product."""
    return _part(home, name, name, home.port(name), environment)


def endpoint_parts(home: Home, environment: Mapping[str, str]) -> list[Part]:
    """Return the senders of further endpoints, in the order of their settings file.

    An endpoint with wrong settings is a part too: each start reads the settings again and reports what is wrong, and
    no other part is affected.
    """
    parts = []
    for number, (name, port) in enumerate(sender_ports(home, _endpoint_names(home, environment)).items()):
        if name != FIRST_ENDPOINT:
            # An invalid endpoint name must not become part of a file name.
            part = f"{WEBHOOK_SENDER}-{name if NAME.fullmatch(name) else f'misnamed-{number}'}"
            settings = {"WEBHOOK_ENDPOINT": name, "HEALTH_PORT": str(port)}
            parts.append(_sender(home, part, name, port, environment, **settings))
    return parts


def _endpoint_names(home: Home, environment: Mapping[str, str]) -> list[str]:
    try:
        return list(examine_endpoints(_settings(home, environment))[0])
    except ConfigurationError:
        return [FIRST_ENDPOINT]  # Its sender reports the error.


def _named_endpoints(home: Home, environment: Mapping[str, str]) -> list[str]:
    """Return the endpoints with valid names; the others get no topics, hence no schemas."""
    return [name for name in _endpoint_names(home, environment) if NAME.fullmatch(name)]


def _sender(home: Home, part: str, endpoint: str, port: int, environment: Mapping[str, str], **settings: str) -> Part:
    def check() -> None:
        _check_secret(endpoint_of(_settings(home, {**environment, "WEBHOOK_ENDPOINT": endpoint})))

    return replace(_part(home, part, WEBHOOK_SENDER, port, environment, **settings), prepare=check)


def _settings(home: Home, environment: Mapping[str, str]) -> Settings:
    return Settings.from_environment(home.part_environment(environment, "prepare"))


def sender_ports(home: Home, endpoints: Iterable[str]) -> Mapping[str, int]:
    """Return the health port of each endpoint's sender, by endpoint name.

    endpoints: names in the order of the settings file.
    """
    further = [name for name in endpoints if name != FIRST_ENDPOINT]
    ports = {name: home.further_port(number) for number, name in enumerate(further)}
    return {FIRST_ENDPOINT: home.port(WEBHOOK_SENDER)} | ports


def _check_secret(endpoint: Endpoint) -> None:
    """Raise ConfigurationError when the endpoint's sender could not use its secret file."""
    try:
        read_secrets(endpoint.secret_file)
    except ConfigurationError as error:
        if endpoint.name == FIRST_ENDPOINT:
            raise
        text = str(error).removeprefix("WEBHOOK_SECRET_FILE: ")
        raise ConfigurationError(f"WEBHOOK_ENDPOINTS_FILE: {endpoint.name}: secret_file: {text}") from error


def _part(home: Home, name: str, process: str, port: int, environment: Mapping[str, str], **settings: str) -> Part:
    return Part(
        name,
        [sys.executable, "-m", "nigredo.cli", "--home", str(home.dir), "run", process],
        home.part_environment(environment, name) | settings,
        lambda: http_waiting_for(port, "/health/ready"),
        ports=tuple({port, home.health_port(name) or port}),
        url=home.url(name) if name in ("ingest", "fibonacci") else None,
        grace_s=OWN_GRACE_S,
        refusal=WRONG_SETTINGS,
    )


def steps(
    home: Home,
    artifacts: Artifacts,
    environment: Mapping[str, str],
    external: Collection[str] = (),
    tell: Tell = lambda _: None,
) -> list[Step]:
    """Return the steps that start a stack, each with the steps it needs.

    external: parts run outside, at this stack's addresses; the stack waits for them and does not start them.
    """
    as_admin = Settings.from_environment(home.part_environment(environment, "prepare", role="admin"))

    def start_or_check(part: Part) -> Part | Callable[[], object]:
        return (lambda: _check_external(part)) if part.name in external else part

    # The stand-in receiver first, because another program on its port would receive personal data.
    needs = {PERSISTER: ("tables", "topics"), WEBHOOK_SENDER: ("topics", "fibonacci")}
    senders = [_sender(home, WEBHOOK_SENDER, FIRST_ENDPOINT, home.port(WEBHOOK_SENDER), environment)]
    senders += endpoint_parts(home, environment)
    processes = [own_part(home, name, environment) for name in PROCESSES if name != WEBHOOK_SENDER]
    return [
        Step("kafka", start_or_check(kafka_part(home, artifacts, environment))),
        Step("postgres", start_or_check(postgres_part(home, environment))),
        Step("registry", start_or_check(registry_part(home, artifacts, environment)), needs=("postgres",)),
        Step("tables", lambda: migrate(as_admin), needs=("postgres",)),
        Step("topics", lambda: topics.ensure_topics(as_admin), needs=("kafka",)),
        Step(
            "schemas",
            lambda: ensure_schemas(as_admin, _named_endpoints(home, environment), deadline_s=0.0),
            needs=("registry", "topics"),
        ),
        Step("api key", lambda: _ensure_api_key(as_admin, home, tell), needs=("schemas",)),
        # Processes wait for the pinned schemas by themselves, and find those of an earlier start, so that forms are
        # accepted without PostgreSQL and without the registry.
        *(
            Step(part.name, part, needs=needs.get(part.name, ("topics",)), awaits=("schemas",))
            for part in (*processes, *senders)
        ),
    ]


def watches(home: Home, environment: Mapping[str, str]) -> list[Watch]:
    """Return the checks of the running stack that no part makes by itself."""
    ids = SchemaIds(Settings.from_environment(home.part_environment(environment, "prepare", role="admin")))
    look = Watch("schema ids", lambda: conflict(ids.findings()), "schemas", SCHEMAS_EVERY_S, part="registry")
    return [look]


def _ensure_api_key(settings: Settings, home: Home, tell: Tell) -> None:
    """Put the API key of `nigredo env` into this cluster once, so that a revoked key stays revoked.

    A cluster that lost its data has another id: it gets the key again, and the loss is reported.
    """
    mark, cluster = home.dir / "secrets" / "api-key.known", TopicReader(settings, "stack").cluster_id()
    before = mark.read_text(encoding="utf-8").strip() if mark.exists() else None
    if before == cluster:
        return
    # The empty mark of an earlier release stands for the present cluster.
    if before != "":
        key = stored_form(home.secret("api-key"), "nigredo env", frozenset(SCOPES))
        ControlAdmin(settings, "nigredo up").put(API_KEY, key.id, as_value(key))
    unfinished = mark.with_suffix(".unfinished")
    unfinished.touch(mode=0o600)
    unfinished.write_text(cluster, encoding="utf-8")
    unfinished.replace(mark)
    if before:
        tell(OTHER_CLUSTER)


def _check_external(part: Part) -> None:
    """Raise DependencyDown when a part that is run outside is not ready."""
    if (reason := part.waiting_for()) is not None:
        raise DependencyDown(f"{part.name}, run from outside, is not ready: {reason}")


async def run(
    home: Home,
    artifacts: Artifacts,
    environment: Mapping[str, str],
    *,
    external: Collection[str] = (),
    tell: Tell,
    when_accepting: Callable[[], None],
    when_ready: Callable[[], None],
) -> bool:
    """Run the stack until a signal or `nigredo down` stops it; return whether forms were accepted.

    external: as in `steps`. tell: prints one line of progress. when_accepting: called once when forms are accepted
    but other parts are not ready in time. when_ready: called once when everything is ready. Both run in a thread that
    the end does not wait for. The home must be owned.
    Raises NigredoError when no form can be accepted; no part is left running then.
    """
    stop, tell = asyncio.Event(), _suppressing_errors(tell)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    for name in await asyncio.to_thread(end_leftovers, home):
        tell(f"ended {name}, left behind by a stack that was killed")
    supervisor = Supervisor(home, steps(home, artifacts, environment, external, tell), GOAL, watches(home, environment))
    check_ports([part.part for name, part in supervisor.parts.items() if name in (*INFRASTRUCTURE, GOAL)])
    stopped = asyncio.Event()
    given = {name: environment[name] for name in Settings.names() if name in environment}

    async def answer(request: control.Answer) -> control.Answer:
        if request.get("do") == "environment":
            return {"environment": given}
        return await _answer(supervisor, stop, stopped, request)

    server = await control.serve(home, answer)
    supervisor.begin()
    reporting = asyncio.create_task(_report_progress(supervisor, tell))
    starting = asyncio.create_task(_start(supervisor, tell, when_accepting, when_ready))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
    finally:
        accepted = supervisor.accepted
        for task in (starting, reporting):
            task.cancel()
        await asyncio.gather(starting, reporting, return_exceptions=True)
        tell("stopping")
        await supervisor.stop()
        stopped.set()
        server.close()
        # Gives `nigredo down` its answer before the process ends.
        await asyncio.sleep(0.1)
    return accepted


async def _start(
    supervisor: Supervisor, tell: Tell, when_accepting: Callable[[], None], when_ready: Callable[[], None]
) -> None:
    """Wait for each stage of the start, report it, and call its hook."""
    await supervisor.until_accepting(START_DEADLINE_S)
    await supervisor.until_settled(REST_DEADLINE_S)
    if not supervisor.ready:
        tell("forms are accepted, and these parts are not ready; they are tried again:")
        for line in supervisor.missing():
            tell(f"  {line}")
        _in_thread(when_accepting)
        await seen(lambda: supervisor.ready)
        tell("everything is ready")
    _in_thread(when_ready)


def _in_thread(call: Callable[[], None]) -> None:
    threading.Thread(target=call, name=call.__name__, daemon=True).start()


def _suppressing_errors(tell: Tell) -> Tell:
    """Return `tell` without its errors, because the terminal or pipe may be closed and the stack must go on."""

    def tell_if_open(line: str) -> None:
        with suppress(OSError, ValueError):
            tell(line)

    return tell_if_open


async def _report_progress(supervisor: Supervisor, tell: Tell) -> None:
    """Print each part when it is first ready, and after `PROGRESS_EVERY_S` of silence the causes of the wait."""
    began, reported = time.monotonic(), set[str]()
    quiet_since = began
    while not supervisor.ready:
        now = time.monotonic()
        for name, part in supervisor.parts.items():
            if part.ready and name not in reported:
                reported.add(name)
                tell(f"{name} ready after {now - began:.1f} s")
                quiet_since = now
        if not supervisor.settled and now - quiet_since > PROGRESS_EVERY_S:
            tell(f"still waiting after {now - began:.0f} s: {'; '.join(supervisor.causes())}")
            quiet_since = now
        await asyncio.sleep(PROGRESS_POLL_S)
    for name in [name for name in supervisor.parts if name not in reported]:
        tell(f"{name} ready after {time.monotonic() - began:.1f} s")


async def _answer(
    supervisor: Supervisor, stop: asyncio.Event, stopped: asyncio.Event, request: dict[str, Any]
) -> dict[str, Any]:
    """Execute a command's request and return the document it prints. Raises NigredoError for a part that fails."""
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
                by = request.get("by")
                await part.stop(by if isinstance(by, str) else None)
            if action != "stop":
                await part.start()
                await part.until_ready(PART_DEADLINE_S)
            return supervisor.status()
    raise NigredoError("the supervisor does not know this request")
