"""Load of the bench: records for topics, and forms POSTed by the load generator `wrk` or at a constant rate."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from pathlib import Path
from uuid import uuid4

import aiohttp
from confluent_kafka import KafkaError, Producer

from bench.lab import Lab, LabError
from bench.measure import Figures
from nigredo.avro.codec import Codec
from nigredo.avro.encoded_window import encode_window
from nigredo.clock import utc_now
from nigredo.kafka.publisher import producer_config
from schemas.events import (
    Acceptance,
    Contact,
    DeliveryAttempt,
    Lead,
    RateLimitState,
    Submission,
)
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, SUBMISSIONS

WRK_SCRIPT = Path(__file__).with_name("post.lua")
CONNECTIONS = 64
MESSAGE = "Olá! We would like to hear more about your offer, and when somebody could call us back. " * 2
Record = tuple[bytes, bytes]
"""Key and value."""


def wrk(url: str, *, seconds: float, connections: int = CONNECTIONS, salt: int = 0) -> Figures:
    """Post forms as fast as `connections` allow, each from an address of its own; answers of 2xx and 303 count.

    Raises LabError when the generator is not installed or fails, or when no form was accepted.
    """
    if shutil.which("wrk") is None:
        raise LabError("needs the load generator `wrk` (Debian, Ubuntu: apt install wrk)")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{ceil(seconds)}s", "--timeout", "10s", "-s", str(WRK_SCRIPT), url]
    done = subprocess.run(
        [*command, "--", str(salt)], capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    if done.returncode != 0:
        raise LabError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if found["ok"] <= 0:
        raise LabError(f"{url} accepted nothing: {found}")
    return {
        "rate": found["ok"] / found["seconds"],
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "refused": found["refused"],
    }


def contact(number: int) -> Contact:
    """Return the contact data of an invented person."""
    return Contact(f"Ana {number}", f"ana{number}@example.com", MESSAGE, {"company": "Example Ltda"})


def submissions(codec: Codec, count: int, networks: int, *, salt: int) -> Iterator[Record]:
    """Yield encoded submissions with their keys, spread at random over networks; each salt has its own networks."""
    chosen, now = random.Random(salt), utc_now()
    for number in range(count):
        network = f"10.{salt % 256}.{(which := chosen.randrange(networks)) // 256 % 256}.{which % 256}"
        if networks > 65_536:
            network = f"{11 + salt % 64}.{which // 65_536 % 256}.{which // 256 % 256}.{which % 256}"
        event = Submission(
            id=uuid4(),
            client_network=network,
            ip_address=network,
            user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
            form_id="contact",
            source="site",
            contact=contact(number),
            taken_at=now,
            limit=10,
            window_s=3600,
            exempt=False,
            edge_verdict=None,
        )
        yield network.encode(), codec.encode(SUBMISSIONS, event)


def windows(codec: Codec, count: int) -> Iterator[Record]:
    """Yield encoded windows with their keys, one a network, each with three acceptances and the input offset 0."""
    now = utc_now()
    for number in range(count):
        network = f"{11 + number // 16_777_216}.{number // 65_536 % 256}.{number // 256 % 256}.{number % 256}"
        counted = tuple(Acceptance(uuid4(), now) for _ in range(3))
        yield network.encode(), encode_window(codec, RateLimitState(network, 10, 3600, counted, 0, now, 0))


@dataclass(frozen=True, slots=True)
class Accepted:
    """Leads with the windows and delivery attempts that the persister stores beside them."""

    leads: Sequence[Record]
    states: Sequence[Record]
    attempts: Sequence[Record]
    events: Sequence[Lead]

    @property
    def count(self) -> int:
        """Number of records: leads, windows and attempts."""
        return len(self.leads) + len(self.states) + len(self.attempts)


def accepted_leads(codec: Codec, count: int, *, salt: int) -> Accepted:
    """Return leads of `count` networks, one each, with the window and the delivery attempt of each.

    The windows have the input offset 0, because the limiter refuses windows of submissions that never existed.
    """
    now = utc_now()
    leads, states, attempts, events = [], [], [], []
    for number in range(count):
        network = f"{100 + salt % 100}.{number // 65_536 % 256}.{number // 256 % 256}.{number % 256}"
        lead = Lead(
            id=uuid4(),
            client_network=network,
            ip_address=network,
            user_agent="Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0",
            form_id="contact",
            source="site",
            contact=contact(number),
            taken_at=now,
            submitted_at=now + timedelta(milliseconds=5),
            released=False,
            submission_partition=number % 4,
            submission_offset=number,
        )
        state = RateLimitState(network, 10, 3600, (Acceptance(lead.id, now),), 0, now, 0)
        attempt = DeliveryAttempt(
            id=uuid4(),
            lead_id=lead.id,
            endpoint="fibonacci",
            webhook_url="http://127.0.0.1:8082/public/nigredo-event",
            attempt=1,
            sent_at=now,
            duration_ms=12,
            outcome="delivered",
            status_code=200,
            error_message=None,
            lead_partition=number % 4,
            lead_offset=number,
        )
        key = str(lead.id).encode()
        leads.append((key, codec.encode(LEADS, lead)))
        states.append((network.encode(), codec.encode(RATE_LIMITS, state)))
        attempts.append((key, codec.encode(DELIVERIES, attempt)))
        events.append(lead)
    return Accepted(leads, states, attempts, events)


def produce(lab: Lab, topic: str, records: Iterable[Record]) -> float:
    """Write records to a topic with a bare producer loop; return the seconds until all are acknowledged.

    Raises LabError when a record is not acknowledged.
    """
    failed: list[str] = []
    config = producer_config(lab.settings(), "bench", delivery_timeout_s=60)
    producer = Producer(config | {"queue.buffering.max.messages": 2_000_000, "queue.buffering.max.kbytes": 2_000_000})
    began = time.perf_counter()

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error.name())

    for key, value in records:
        producer.produce(topic, key=key, value=value, on_delivery=delivered)
        producer.poll(0)
    left = producer.flush(120)
    if left or failed:
        raise LabError(f"{left + len(failed)} records were not acknowledged by {topic}")
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Sent:
    """One form of an open-loop load. Times are seconds of the wall clock; `due` is when it should have been sent."""

    due: float
    slip_s: float
    answered: float
    lead_id: str


async def open_loop(url: str, *, rate: float, seconds: float, salt: int) -> list[Sent]:
    """Post forms at a constant rate, independent of the answers, and measure each from the moment it was due.

    A slow answer delays no other request and hides none (no coordinated omission). `slip_s` is the delay of this
    sender itself: it is part of the latency and reported beside it. Raises LabError for any answer but a 202.
    """
    count, sent = int(rate * seconds), []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as session:

        async def one(number: int, due: float) -> None:
            await asyncio.sleep(max(0.0, due - time.time()))
            began = time.time()
            fields = {"name": "Ana", "email": "ana@example.com", "message": MESSAGE}
            address = f"{20 + salt % 100}.{number // 65_536 % 256}.{number // 256 % 256}.{number % 256}"
            async with session.post(url, data=fields, headers={"X-Forwarded-For": address}) as response:
                answer = await response.json(content_type=None)
                if response.status != 202:
                    raise LabError(f"ingest answered {response.status} under {rate:g} requests a second")
                sent.append(Sent(due, began - due, time.time(), answer["id"]))

        start = time.time() + 0.5
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number, start + number / rate))
    return sent
