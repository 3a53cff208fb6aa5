"""Acknowledged POSTs of ingest, beside a no-op route and beside the synchronous design that ingest replaces."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from bench.lab import Lab
from bench.load import CONNECTIONS, produce, submissions, wrk
from bench.measure import Contender, Figures, Result
from bench.references.synchronous import SCHEMA
from bench.run import Run
from schemas.topics import SUBMISSIONS

SECONDS = 4.0
WARM_UP_SECONDS = 12.0
"""Warm-up of ingest before the common warm-up round, because the broker's Java compiler runs for about this long."""
WARM_AGAIN_SECONDS = 1.0
"""Warm-up of each contender before each of its turns."""
IN_REQUEST_SECONDS = 5.0
DELAYS_MS = (0, 20, 200)
RECORDS = 40_000
AT_CONNECTIONS = (1, 4, 16, 64, 128, 256)
SWEEP_SECONDS = 2.0


def run(bench: Run) -> None:
    """Measure ingest, its references, and the broker alone."""
    lab, effort = bench.lab, bench.effort
    seconds = effort.seconds(SECONDS)
    result = Result("ingest", f"POST acknowledged, {CONNECTIONS} connections", "POST/s", {"seconds": seconds})
    with lab.database() as database:
        database.execute(SCHEMA)
    with ExitStack() as running:
        receiver = running.enter_context(lab.server("bench.references.receiver:create"))
        ingest = running.enter_context(lab.ours("ingest"))
        ours = ingest.url
        result.extra["first second after the start"] = dict(wrk(ours, seconds=1, salt=bench.salt()))
        if not effort.hurried:
            wrk(ours, seconds=WARM_UP_SECONDS, salt=bench.salt())
        noop = running.enter_context(lab.server("bench.references.noop:create"))
        synchronous = running.enter_context(lab.server("bench.references.synchronous:create"))

        def posting(url: str) -> Callable[[int], Figures]:
            def measure(_: int) -> Figures:
                # The previous contender's data is still being written to disk, and this one's caches are cold.
                wrk(url, seconds=WARM_AGAIN_SECONDS, salt=bench.salt())
                return wrk(url, seconds=seconds, salt=bench.salt())

            return measure

        def posting_with_webhook(delay_ms: int) -> Callable[[int], Figures]:
            def measure(_: int) -> Figures:
                # A new process each round, because this design's queueing varies more between starts than within one.
                webhook = f"{receiver}/{delay_ms}"
                with lab.server("bench.references.synchronous:create", WEBHOOK=webhook) as url:
                    wrk(url, seconds=WARM_AGAIN_SECONDS, salt=bench.salt())
                    return wrk(url, seconds=effort.seconds(IN_REQUEST_SECONDS), salt=bench.salt())

            return measure

        contenders = [
            Contender("ingest", posting(ours)),
            Contender("no-op route", posting(noop)),
            Contender("synchronous", posting(synchronous), floor=0.03, floor_of="no-op route"),
        ]
        contenders += [
            Contender(f"synchronous, webhook of {delay} ms in the request", posting_with_webhook(delay))
            for delay in (DELAYS_MS[:1] if effort.hurried else DELAYS_MS)
        ]
        contenders.append(Contender("bare producer", lambda _: _bare_producer(bench, lab)))
        bench.alternate(result, contenders)
        if not effort.hurried:
            result.extra["by connections"] = {
                name: [
                    {"connections": many, **wrk(url, seconds=SWEEP_SECONDS, connections=many, salt=bench.salt())}
                    for many in AT_CONNECTIONS
                ]
                for name, url in (("ingest", ours), ("no-op route", noop), ("synchronous", synchronous))
            }
        result.extra["memory of ingest, MiB"] = round(ingest.rss_bytes() / 2**20)
    bench.save(result)


def _bare_producer(bench: Run, lab: Lab) -> Figures:
    records = list(submissions(lab.codec(), bench.effort.records(RECORDS), 20_000, salt=bench.salt()))
    return {"rate": len(records) / produce(lab, SUBMISSIONS, records)}
