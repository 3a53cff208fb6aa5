"""Webhook sink for one test on the shared stack: its endpoint, receiver and processes, and the records it wrote."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from nigredo.avro.codec import Codec
from nigredo.clock import utc_now
from nigredo.control.admin import ControlAdmin
from nigredo.endpoints.endpoint import Endpoint, read_endpoints
from nigredo.endpoints.secrets import Secret, write_secrets
from nigredo.errors import NigredoError
from nigredo.kafka.cloudevents import cloud_event
from nigredo.kafka.pinned_schemas import PinnedSchemas
from nigredo.kafka.publisher import Publisher
from nigredo.kafka.topic_reader import TopicReader
from nigredo.settings import Settings
from nigredo.testing import Stack, eventually
from schemas.events import Contact, DeliveryAttempt, Event, Lead
from schemas.topics import DELIVERIES, LEADS, TOPICS, retry_topics

T = TypeVar("T")
READ_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the receiver got it."""

    at: float
    """Monotonic time in seconds."""
    headers: Mapping[str, str]
    body: str

    @property
    def lead_id(self) -> str:
        return self.headers["webhook-id"]


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def answering(status: int, *headers: str, body: bytes = b"") -> Behaviour:
    """Return a behaviour that answers at once with this status, headers and body."""

    async def answer(_: Request, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return answer


TAKING = answering(200)


class Receiver:
    """Receiver of webhooks on a loopback port, in its own thread; the test sets its `behaviour`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.behaviour: Behaviour = TAKING
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="receiver", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=hidden"

    def listen(self) -> None:
        """Listen for connections; after `refuse`, on the same port again."""
        self._server = self._do(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse new connections and close the open ones."""

        async def close() -> None:
            if self._server is not None:
                self._server.close()
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()

        self._do(close())

    def end(self) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def ids(self) -> list[str]:
        return [request.lead_id for request in list(self.requests)]

    def of(self, lead_id: str) -> list[Request]:
        return [request for request in list(self.requests) if request.lead_id == lead_id]

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                body = (await reader.readexactly(int(headers["content-length"]))).decode()
                request = Request(time.monotonic(), headers, body)
                self.requests.append(request)
                await self.behaviour(request, writer)
        writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Abort a connection with RST."""
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass
class Sink:
    """A test's own endpoint with its receiver and processes."""

    stack: Stack
    folder: Path
    receiver: Receiver
    name: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.stack.settings(**self.environment)

    @property
    def endpoint(self) -> Endpoint:
        return read_endpoints(self.settings)[self.name]

    @property
    def group(self) -> str:
        return self.endpoint.function(self.settings)

    @cached_property
    def codec(self) -> Codec:
        """Codec for every topic except the retry topics, which a process of the sink creates when it starts."""
        codec = Codec(PinnedSchemas(self.settings))
        codec.prepare(TOPICS)
        return codec

    # --- its process --------------------------------------------------------------------------------------------------

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a process of the sink and wait until it is a member of its group with partitions."""
        process, port = self.spawn(**environment)
        eventually(lambda: self._answers(process, port), within_s=60, what=f"the sink is ready: {self.log()[-800:]}")
        return process

    def spawn(self, **environment: str) -> tuple[subprocess.Popen[bytes], int]:
        """Start a process of the sink; return it and the port of its health listener."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        settings = self.stack.home.part_environment(os.environ | self.environment, "webhook-sender")
        settings |= {"HEALTH_PORT": str(port)} | environment
        command = [sys.executable, "-m", "nigredo.cli", "run", "webhook-sender", "--endpoint", self.name]
        with (self.folder / "sink.log").open("ab") as log:
            process = subprocess.Popen(command, env=settings, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.process = process
        self.processes.append(process)
        self.ports[process.pid] = port
        return process, port

    def stop(self) -> None:
        """End the sink's processes with SIGTERM, as a supervisor does."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
        self.processes.clear()

    def kill(self) -> None:
        """Kill the sink's processes."""
        for process in self.processes:
            process.kill()
            process.wait(10)
        self.processes.clear()

    def health(self, process: subprocess.Popen[bytes] | None = None) -> dict[str, Any]:
        """Return the health document of a process, by default the newest; empty while no process answers."""
        asked = process or self.process
        if asked is None:
            return {}
        with suppress(httpx.HTTPError):
            found: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.ports[asked.pid]}/health", timeout=5).json()
            return found
        return {}

    def log(self) -> str:
        file = self.folder / "sink.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _answers(self, process: subprocess.Popen[bytes], port: int) -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the sink ended with {process.returncode}: {self.log()[-800:]}")
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).status_code == 200
        return False

    # --- its records --------------------------------------------------------------------------------------------------

    def leads(self, count: int, *, partition: int | None = None) -> list[str]:
        """Write new leads to the log, as the limiter does; return their ids in that order."""
        return self.write(*(a_lead() for _ in range(count)), partition=partition)

    def write(self, *leads: Lead, partition: int | None = None) -> list[str]:
        """Write these leads to the log; return their ids."""
        self.publish(LEADS, {str(lead.id).encode(): lead for lead in leads}, partition=partition)
        return [str(lead.id) for lead in leads]

    def publish(self, topic: str, events: Mapping[bytes, Event | None], *, partition: int | None = None) -> None:
        """Write events by key, None as a tombstone; return once Kafka has acknowledged them."""
        codec, now = self.codec, utc_now()

        async def run() -> None:
            config = self.stack.producer_config(delivery_timeout_s=20)
            publisher = Publisher(config, in_flight_max=100_000)
            try:
                await asyncio.gather(
                    *(
                        publisher.publish(
                            topic,
                            key=key,
                            value=None if event is None else codec.encode(topic, event),
                            headers=[*cloud_event("test", uuid4(), "test", now), ("traceparent", TRACEPARENT)],
                            partition=partition,
                        )
                        for key, event in events.items()
                    )
                )
            finally:
                await publisher.close()

        asyncio.run(run())

    def records(self, topic: str) -> list[Message]:
        """Return every record of a topic."""
        reader = TopicReader(self.settings, "test")
        return list(reader.read_to_end(topic, reader.partitions(topic), deadline_s=READ_DEADLINE_S))

    def standing(self, topic: str) -> dict[tuple[bytes, int], Event]:
        """Return the current events of a compacted topic, by key and partition."""
        found: dict[tuple[bytes, int], Event] = {}
        codec = self.codec
        for message in self.records(topic):
            place = (message.key() or b"", message.partition() or 0)
            if (value := message.value()) is None:
                found.pop(place, None)
            else:
                found[place] = codec.decode(topic, value)
        return found

    def attempts(self, lead_id: str) -> list[DeliveryAttempt]:
        """Return the recorded delivery attempts of a lead at this endpoint."""
        codec = self.codec
        mine = [m for m in self.records(DELIVERIES) if m.key() == lead_id.encode()]
        events = [codec.decode(DELIVERIES, message.value() or b"") for message in mine]
        return [event for event in events if isinstance(event, DeliveryAttempt) and event.endpoint == self.name]

    def committed(self, topic: str = LEADS) -> dict[int, int]:
        """Return the group's committed offsets by partition, 0 without one."""
        reader = TopicReader(self.settings, "test")
        found = reader.committed(self.group, topic, reader.partitions(topic))
        return {partition: offset or 0 for partition, offset in found.items()}

    def ends(self, topic: str = LEADS) -> dict[int, int]:
        reader = TopicReader(self.settings, "test")
        return {partition: reader.watermarks(topic, partition)[1] for partition in reader.partitions(topic)}

    def members(self) -> int:
        admin = AdminClient(self.stack.client_config())
        return len(admin.describe_consumer_groups([self.group])[self.group].result(10).members)


TRACEPARENT = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


def a_lead() -> Lead:
    """Return a lead of an invented person."""
    now = utc_now()
    contact = Contact("Ana Lima", "ana@example.com", "Please call me", {})
    return Lead(uuid4(), "2001:db8::/64", "2001:db8::1", None, None, None, contact, now, now, False, 0, 0)


@contextmanager
def sink(stack: Stack, folder: Path, *, more: str = "", start: str = "now", **environment: str) -> Iterator[Sink]:
    """Set up an endpoint and its receiver; the test starts the processes. Removes everything afterwards."""
    name, receiver = f"t-{secrets.token_hex(4)}", Receiver()
    receiver.listen()
    write_secrets(folder / "secret", [Secret(secrets.token_bytes(32))])
    file = folder / "endpoints.toml"
    table = {"url": receiver.url, "secret_file": str(folder / "secret"), "start": start}
    lines = [f"[endpoints.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), more]
    file.write_text("\n".join(lines) + "\n")
    # A long timeout, because the receiver shares the machine with the tests and must not time out under load.
    short = {"WEBHOOK_RETRY_SCHEDULE": "0.2s,0.5s,1s,1s,2s", "WEBHOOK_TIMEOUT_SECONDS": "30"}
    found = Sink(stack, folder, receiver, name, short | {"WEBHOOK_ENDPOINTS_FILE": str(file)} | environment)
    try:
        yield found
    finally:
        found.kill()
        receiver.end()
        _forget(found)


def _forget(found: Sink) -> None:
    admin = AdminClient(found.stack.client_config())
    with suppress(NigredoError):
        ControlAdmin(found.stack.settings(), "test").remove("endpoint", found.name)
    for future in admin.delete_topics(list(retry_topics(found.name))).values():
        with suppress(Exception):
            future.result(10)
    eventually(lambda: _deleted(admin, found.group), within_s=30, every_s=0.5, what="the group is gone")


def _deleted(admin: AdminClient, group: str) -> bool:
    """Delete a group and return whether it is gone; the broker allows it once it has noticed that members are dead."""
    with suppress(Exception):
        admin.delete_consumer_groups([group])[group].result(10)
    return group not in {listing.group_id for listing in admin.list_consumer_groups().result(10).valid}
