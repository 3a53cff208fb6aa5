"""End-to-end latency under a constant load: from POST to ack, row and receiver, by one clock; and a lead's cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import httpx

from bench.lab import Lab, LabError, Running, cpu_s, disk_bytes
from bench.load import Sent, open_loop
from bench.measure import Result
from bench.run import Run

RATES = (50, 200, 500)
COSTED = 200
SECONDS = 15.0
WARM_UP_S = 5.0
DRAIN_DEADLINE_S = 60.0
PERCENTILES = (50, 90, 99, 99.9)
COMMITTED = """
SELECT id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM nigredo.leads
WHERE created_at >= to_timestamp(%s)
"""


def run(bench: Run) -> None:
    """Measure latencies of the whole product at several rates, and the cost of 1,000 leads at one of them."""
    lab = bench.lab
    seconds = bench.effort.seconds(SECONDS)
    result = Result("end to end", "POST to ack, row and receiver", "ms", {"seconds": seconds})
    with ExitStack() as stack:
        receiver = stack.enter_context(lab.server("bench.references.receiver:create"))
        running = [
            stack.enter_context(lab.ours("ingest")),
            stack.enter_context(lab.ours("rate-limiter")),
            stack.enter_context(lab.ours("persister")),
            stack.enter_context(lab.ours("webhook-sender", FIBONACCI_WEBHOOK_URL=f"{receiver}/0")),
        ]
        url = running[0].url + "/api/leads"
        if not bench.effort.hurried:
            _one_rate(bench, lab, url, receiver, rate=COSTED, seconds=WARM_UP_S)
        latencies: dict[str, Mapping[str, Mapping[str, float]]] = {}
        for rate in RATES[:1] if bench.effort.hurried else RATES:
            before = _spent(lab, running)
            sent, found = _one_rate(bench, lab, url, receiver, rate=rate, seconds=seconds)
            latencies[f"{rate}/s"] = found
            if rate == COSTED:
                result.extra["cost of 1,000 leads"] = _cost(before, _spent(lab, running), len(sent))
            bench.measured(result.scenario, f"{rate} POST/s", 1, {f"{k} p50": v["p50"] for k, v in found.items()})
        result.extra["latency, ms"] = latencies
    result.extra["start-up, s"] = {name: [round(s, 2) for s in times] for name, times in lab.starts.items()}
    bench.save(result)


def _one_rate(
    bench: Run, lab: Lab, url: str, receiver: str, *, rate: int, seconds: float
) -> tuple[Sequence[Sent], Mapping[str, Mapping[str, float]]]:
    began = time.time()
    sent = asyncio.run(open_loop(url, rate=rate, seconds=seconds, salt=bench.salt()))
    due = {one.lead_id: one.due for one in sent}
    arrived: Mapping[str, float] = {}
    stored: dict[str, float] = {}
    deadline = time.monotonic() + DRAIN_DEADLINE_S
    with lab.database() as database:
        while True:
            arrived = httpx.get(receiver, timeout=30).json()["arrivals"]
            stored = {str(lead_id): float(at) for lead_id, at in database.execute(COMMITTED, [began - 5])}
            if due.keys() <= arrived.keys() and due.keys() <= stored.keys():
                break
            if time.monotonic() > deadline:
                missing = len(due.keys() - arrived.keys()), len(due.keys() - stored.keys())
                raise LabError(f"not received {missing[0]}, not stored {missing[1]} of {len(due)} leads")
            time.sleep(0.5)
    return sent, {
        "sender late": _distribution([one.slip_s for one in sent]),
        "ack": _distribution([one.answered - one.due for one in sent]),
        "row": _distribution([stored[lead_id] - at for lead_id, at in due.items()]),
        "receiver": _distribution([arrived[lead_id] - at for lead_id, at in due.items()]),
    }


def _distribution(seconds: Sequence[float]) -> Mapping[str, float]:
    ordered = sorted(seconds)
    last = len(ordered) - 1
    found = {f"p{p:g}": round(ordered[min(last, int(p / 100 * len(ordered)))] * 1000, 2) for p in PERCENTILES}
    return found | {"max": round(ordered[-1] * 1000, 2)}


def _spent(lab: Lab, running: Sequence[Running]) -> Mapping[str, float]:
    spent = {f"CPU s, {process.name}": process.cpu_s() for process in running}
    spent |= {f"CPU s, {part}": cpu_s(pid) for part, pid in lab.parts().items()}
    with lab.database() as database:
        row = database.execute("SELECT pg_database_size(current_database())").fetchone()
    spent["KiB on disk, Kafka"] = disk_bytes(lab.home.dir / "kafka", "*.log") / 1024
    spent["KiB on disk, PostgreSQL"] = (row[0] if row else 0) / 1024
    return spent


def _cost(before: Mapping[str, float], after: Mapping[str, float], leads: int) -> Mapping[str, float]:
    return {name: round((after[name] - before[name]) * 1000 / leads, 2) for name in after}
