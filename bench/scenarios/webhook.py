"""Deliveries from a full topic, signed with two secrets and recorded, beside bare client loops to the same receiver."""

from __future__ import annotations

import base64
import subprocess
import sys
from contextlib import ExitStack

from bench.lab import LabError
from bench.load import accepted_leads, produce, wrk
from bench.measure import Contender, Figures, Result, pace
from bench.references.synchronous import SCHEMA
from bench.run import Run
from nigredo.avro.codec import Codec
from schemas.topics import DELIVERIES, LEADS
from sinks.webhook.transport.request import body_of

LEADS_COUNT = 12_000
SLOW_MS = 50
IN_FLIGHT = 64
"""Requests in flight: the sink's default, used for the bare loops too."""
IN_REQUEST_SECONDS = 3.0


def run(bench: Run) -> None:
    """Measure the sink with a receiver that answers at once, and with one that answers after `SLOW_MS`."""
    lab = bench.lab
    codec = lab.codec()
    secrets = lab.home.dir / "secrets" / "bench-webhook"
    secrets.write_text("".join(f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}\n" for n in (1, 2)))
    with lab.database() as database:
        database.execute(SCHEMA)
    with ExitStack() as running:
        receiver = running.enter_context(lab.server("bench.references.receiver:create"))
        in_request = running.enter_context(lab.server("bench.references.synchronous:create", WEBHOOK=f"{receiver}/0"))
        _at_once(bench, codec, receiver, in_request, str(secrets))
        if not bench.effort.hurried:
            _slow(bench, codec, receiver, str(secrets))


def _at_once(bench: Run, codec: Codec, receiver: str, in_request: str, secrets: str) -> None:
    count, in_flight = bench.effort.records(LEADS_COUNT), IN_FLIGHT
    settings = {"leads": count, "in flight": in_flight}
    result = Result("webhook", "Deliveries to a receiver that answers at once", "deliveries/s", settings)
    body = body_of(accepted_leads(codec, 1, salt=bench.salt()).events[0])

    def loop(client: str) -> Figures:
        command = [sys.executable, "-m", "bench.references.client_loop", client, f"{receiver}/0"]
        done = subprocess.run(
            [*command, str(in_flight), str(count)], input=body, capture_output=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise LabError(f"{client} loop failed: {done.stderr.decode(errors='replace')[-500:]}")
        return {"rate": float(done.stdout)}

    seconds = bench.effort.seconds(IN_REQUEST_SECONDS)
    contenders = [
        Contender("sink", lambda _: _sink(bench, codec, f"{receiver}/0", secrets, in_flight, count, result)),
        Contender("bare httpx-aiohttp loop", lambda _: loop("httpx-aiohttp")),
        Contender("bare aiohttp loop", lambda _: loop("aiohttp")),
        Contender("httpx in the request", lambda _: wrk(in_request, seconds=seconds, salt=bench.salt())),
    ]
    bench.alternate(result, contenders)


def _slow(bench: Run, codec: Codec, receiver: str, secrets: str) -> None:
    count = bench.effort.records(6_000)
    settings = {"leads": count, "in flight": IN_FLIGHT}
    result = Result("webhook, slow receiver", f"Deliveries to one that takes {SLOW_MS} ms", "deliveries/s", settings)
    url = f"{receiver}/{SLOW_MS}"
    contenders = [
        Contender("sink", lambda _: _sink(bench, codec, url, secrets, IN_FLIGHT, count, result)),
        # Computed and not measured: the highest rate possible with this many requests in flight.
        Contender(f"{IN_FLIGHT} in flight / {SLOW_MS} ms", lambda _: {"rate": IN_FLIGHT / (SLOW_MS / 1000)}),
    ]
    bench.alternate(result, contenders)


def _sink(bench: Run, codec: Codec, url: str, secrets: str, in_flight: int, count: int, result: Result) -> Figures:
    """Write leads, start the sink and sample its recorded delivery attempts."""
    lab = bench.lab
    produce(lab, LEADS, accepted_leads(codec, count, salt=bench.salt()).leads)
    settings = {
        "FIBONACCI_WEBHOOK_URL": url,
        "WEBHOOK_SECRET_FILE": secrets,
        "WEBHOOK_IN_FLIGHT_MAX": str(in_flight),
    }
    with ExitStack() as stack:
        ends = stack.enter_context(lab.ends(DELIVERIES))
        before = ends()
        sink = stack.enter_context(lab.ours("webhook-sender", **settings))
        samples = lab.watch(lambda: ends() - before, count, running=sink)
        figures = {"rate": pace(samples, count), "rss_mib": sink.rss_bytes() / 2**20}
    result.extra["backlog over time"] = [[round(at - samples[0][0], 3), count - done] for at, done in samples]
    return figures
