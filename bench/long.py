"""`make bench-long`: measures the growth of cost and memory with records and networks; resumes after an interruption.

Every step has its own stack, so that memory is not shared between steps. A step already measured with this version of
the code is not measured again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
from rich.console import Console

from bench import report
from bench.lab import PARTITIONS, ROOT, Lab, LabError, Running, cpu_s, disk_bytes, open_lab
from bench.load import Record, accepted_leads, produce, submissions, windows, wrk
from bench.measure import pace
from nigredo.avro.codec import Codec
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, REJECTIONS, SUBMISSIONS

SIZES = (10_000, 100_000, 1_000_000)
FEW, MANY = 100, 1_000_000
DEADLINE_S = 1_200.0
AT_A_TIME = 20_000
ROUNDS = 3
IDLE_BELOW = 0.25
"""Least share of the CPU time that each of two workers must have used; below it, the work was not shared."""
RESULTS = Path(__file__).parent / "results" / "long"


@dataclass(frozen=True, slots=True)
class Step:
    """A measurement of one stage with an amount of work."""

    stage: str
    records: int
    networks: int

    @property
    def file(self) -> Path:
        """The file of the step's findings."""
        return RESULTS / f"{self.stage}-{self.records}-{self.networks}.json"


STEPS = [
    *(Step("ingest", size, size) for size in SIZES),
    *(Step("limiter", size, networks) for networks in (FEW, MANY) for size in SIZES),
    *(Step("persister", size, size // 3) for size in SIZES),
    *(Step("webhook", size, size) for size in SIZES[:2]),
    Step("limiters", SIZES[1], MANY),
    *(Step("windows", size, size) for size in SIZES),
]


@click.command()
@click.option("--largest", type=int, default=SIZES[-1], show_default=True, help="Leave out what is larger")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table")
def main(largest: int, as_json: bool) -> None:
    """Measure how cost and memory grow with records and networks."""
    console, began, code = Console(stderr=True), time.monotonic(), 0
    version, steps = _version(), [step for step in STEPS if step.records <= largest]
    try:
        for number, step in enumerate(steps, 1):
            name = f"{number} of {len(steps)}: {step.stage}, {step.records:,} records, {step.networks:,} networks"
            if _kept(step, version):
                console.print(f"{time.monotonic() - began:6.0f} s  {name}: kept", highlight=False)
                continue
            console.print(f"{time.monotonic() - began:6.0f} s  {name}", highlight=False)
            with console.status("Ctrl-C keeps the steps before this one"), open_lab() as lab:
                found = _STAGES[step.stage](lab, step)
            document = {"version": version, "machine": report.machine(), **asdict(step), **found}
            RESULTS.mkdir(parents=True, exist_ok=True)
            step.file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        code = 130
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        code = 1
    documents = [kept for step in steps if (kept := _kept(step, version))]
    if len(documents) == len(STEPS):
        report.put(report.PERFORMANCE, "long", table(documents) + "\n")
    print(json.dumps(documents) if as_json else table(documents))
    sys.exit(code)


def _version() -> str:
    """Return the short hash of the last commit that changed more than results and documents; "unknown" without git."""
    command = ["git", "log", "-1", "--format=%h", "--", ".", ":!bench/results", ":!*.md"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _kept(step: Step, version: str) -> report.Document | None:
    if not step.file.exists():
        return None
    found: report.Document = json.loads(step.file.read_text(encoding="utf-8"))
    return found if found["version"] == version else None


def table(documents: list[report.Document]) -> str:
    """Return the findings as Markdown; `growth` is the CPU time per record relative to the smallest step's."""
    lines = [
        "| stage | records | networks | records/s | CPU s per 1,000 | growth | MiB | at most | KiB on disk per 1,000 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    documents = sorted(documents, key=lambda one: (one["stage"], one["networks"] != FEW, one["records"]))
    loaded = [one for one in documents if "loaded" in one]
    smallest: dict[tuple[str, bool], float] = {}
    for one in documents:
        cost = smallest.setdefault((one["stage"], one["networks"] == FEW), one["cpu_s_per_1000"])
        lines.append(
            f"| {one['stage']} | {one['records']:,} | {one['networks']:,} | {one['rate']:,.0f} "
            f"| {one['cpu_s_per_1000']:.3f} | {one['cpu_s_per_1000'] / cost:.2f} | {one['memory_mib']:,.0f} "
            f"| {one['peak_mib']:,.0f} | {one['disk_kib_per_1000']:,.0f} |"
        )
    for one in documents:
        if turns := one.get("rounds"):
            gains = sorted(turn["speed_up"] for turn in turns)
            lines += [
                "",
                f"Two limiters on {PARTITIONS} partitions: {median(gains):.2f} times the rate of one "
                f"({gains[0]:.2f} to {gains[-1]:.2f} in {len(gains)} turns). Of {one['machine']['cores']} cores "
                f"one kept {_cores(turns, 'one')} busy, two {_cores(turns, 'two')}.",
            ]
    if loaded:
        lines += [
            "",
            "| windows | loaded by | ready in s | with none | bytes of memory each |",
            "|--:|---|--:|--:|--:|",
        ]
    for one in loaded:
        for name, by in one["loaded"].items():
            took = f"{by['ready_s']:.1f} | {by['with_none_s']:.1f}"
            lines.append(f"| {one['records']:,} | {name} | {took} | {by['bytes_each']:,.0f} |")
    return "\n".join(lines)


def _cores(turns: Sequence[Mapping[str, Mapping[str, float]]], which: str) -> str:
    limiters, kafka = (fmean(turn[which][name] for turn in turns) for name in ("limiters_cores", "kafka_cores"))
    return f"{limiters:.1f} (and Kafka {kafka:.1f})"


@contextmanager
def _costs(lab: Lab, step: Step, running: Sequence[Running], found: dict[str, object]) -> Iterator[None]:
    """Add rate, CPU time, memory and disk use of the `with` body to `found`."""
    cpu, disk, began = sum(one.cpu_s() for one in running), _disk(lab), time.monotonic()
    yield
    took = time.monotonic() - began
    thousands = step.records / 1000
    found |= {
        "rate": step.records / took,
        "seconds": took,
        "cpu_s_per_1000": (sum(one.cpu_s() for one in running) - cpu) / thousands,
        "memory_mib": sum(one.rss_bytes() for one in running) / 2**20,
        "peak_mib": sum(one.peak_bytes() for one in running) / 2**20,
        "disk_kib_per_1000": (_disk(lab) - disk) / 1024 / thousands,
        "memory_of_parts_mib": lab.parts_mib(),
    }


def _disk(lab: Lab) -> int:
    return disk_bytes(lab.home.dir / "kafka", "*.log") + disk_bytes(lab.home.dir / "postgres")


def _ingest(lab: Lab, step: Step) -> Mapping[str, object]:
    found: dict[str, object] = {}
    with lab.ours("ingest") as ingest, lab.ends(SUBMISSIONS) as ends:
        # Warm up first. The load generator takes seconds and not requests, so the rate gives the length of a run.
        warm = wrk(ingest.url, seconds=2)
        salts, before = count(1), ends()
        with _costs(lab, step, [ingest], found):
            while (left := step.records - (ends() - before)) > 0:
                # A salt has 16 million addresses, and each run of the generator starts at its salt's first one.
                wrk(ingest.url, seconds=min(600, max(1, left // warm["rate"])), salt=next(salts))
        found["taken"] = ends() - before
    return found


def _limiter(lab: Lab, step: Step) -> Mapping[str, object]:
    produce(lab, SUBMISSIONS, submissions(lab.codec(), step.records, step.networks, salt=0))
    found: dict[str, object] = {}
    with lab.ends(LEADS, REJECTIONS) as ends, lab.ours("rate-limiter") as limiter, _costs(lab, step, [limiter], found):
        lab.watch(ends, step.records, running=limiter, deadline_s=DEADLINE_S)
    return found


def _limiters(lab: Lab, step: Step) -> Mapping[str, object]:
    """Measure one worker, and two that share the partitions, in turn, because only side-by-side figures compare."""
    found: dict[str, object] = {}
    rounds: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        one = _shared(lab, step, found, workers=1, salt=2 * number + 1)
        two = _shared(lab, step, found, workers=2, salt=2 * number + 2)
        rounds.append({"one": one, "two": two, "speed_up": two["rate"] / one["rate"]})
    return found | {"rate": median(turn["two"]["rate"] for turn in rounds), "rounds": rounds}


def _shared(lab: Lab, step: Step, found: dict[str, object], *, workers: int, salt: int) -> Mapping[str, float]:
    """Measure workers, all assigned before the first record, on a backlog that is written at once.

    Raises LabError when one worker did less than its share.
    """
    # Encode first, because encoding during the measurement would take a core from the workers.
    records = list(submissions(lab.codec(), step.records, step.networks, salt=salt))
    lab.skip()
    with ExitStack() as stack:
        ends = stack.enter_context(lab.ends(LEADS, REJECTIONS))
        running = [stack.enter_context(lab.ours("rate-limiter", instance=f"-{n}")) for n in range(workers)]
        before = ends()
        produce(lab, SUBMISSIONS, submissions(lab.codec(), FEW, FEW, salt=100 + salt))
        lab.watch(lambda: ends() - before, FEW, running=running[0])
        kafka = lab.parts()["kafka"]
        with _costs(lab, step, running, found):
            broker_s, each_s, began = cpu_s(kafka), [one.cpu_s() for one in running], time.monotonic()
            produce(lab, SUBMISSIONS, records)
            total = step.records + FEW
            samples = lab.watch(lambda: ends() - before, total, running=running[0], deadline_s=DEADLINE_S)
            took, kafka_s = time.monotonic() - began, cpu_s(kafka) - broker_s
            shares_s = [one.cpu_s() - used for one, used in zip(running, each_s, strict=True)]
        if min(shares_s) < IDLE_BELOW * sum(shares_s):
            raise LabError(f"the work was not shared: CPU seconds of each worker {[round(one, 1) for one in shares_s]}")
        return {
            "rate": pace(samples, total),
            "limiters_cores": sum(shares_s) / took,
            "kafka_cores": kafka_s / took,
        }


def _windows(lab: Lab, step: Step) -> Mapping[str, object]:
    """Measure the time to load windows, in the limiter and in ingest's edge limiter, and the memory of each window."""
    processes: Mapping[str, Mapping[str, str]] = {"rate-limiter": {}, "ingest": {"EDGE_NETWORKS_MAX": "10000000"}}

    def start() -> Mapping[str, tuple[float, int, int, float]]:
        found = {}
        for name, settings in processes.items():
            with lab.ours(name, **settings) as running:
                found[name] = running.ready_s, running.rss_bytes(), running.peak_bytes(), running.cpu_s()
        return found

    codec, disk = lab.codec(), _disk(lab)
    produce(lab, SUBMISSIONS, submissions(codec, FEW, FEW, salt=0))
    lab.skip()
    none = start()
    produce(lab, RATE_LIMITS, windows(codec, step.records))
    all_of_them = start()
    loaded = {
        name: {
            "ready_s": ready_s,
            "with_none_s": none[name][0],
            "bytes_each": (rss - none[name][1]) / step.records,
        }
        for name, (ready_s, rss, _, _) in all_of_them.items()
    }
    ready_s, rss, peak, cpu = all_of_them["rate-limiter"]
    return {
        "loaded": loaded,
        "rate": step.records / ready_s,
        "seconds": ready_s,
        "cpu_s_per_1000": (cpu - none["rate-limiter"][3]) / step.records * 1000,
        "memory_mib": rss / 2**20,
        "peak_mib": peak / 2**20,
        "disk_kib_per_1000": (_disk(lab) - disk) / 1024 / step.records * 1000,
        "memory_of_parts_mib": lab.parts_mib(),
    }


def _persister(lab: Lab, step: Step) -> Mapping[str, object]:
    codec, leads, found = lab.codec(), step.records // 3, dict[str, object]()
    produce(lab, SUBMISSIONS, submissions(codec, 100, 100, salt=0))
    for salt, done in enumerate(range(0, leads, AT_A_TIME)):
        accepted = accepted_leads(codec, min(AT_A_TIME, leads - done), salt=salt)
        for topic, records in (
            (LEADS, accepted.leads),
            (RATE_LIMITS, accepted.states),
            (DELIVERIES, accepted.attempts),
        ):
            produce(lab, topic, records)
    with lab.database() as database, lab.ours("persister") as persister, _costs(lab, step, [persister], found):

        def stored() -> int:
            row = database.execute("SELECT coalesce(sum(next_offset), 0) FROM nigredo.stream_offsets").fetchone()
            return int(row[0]) if row else 0

        lab.watch(stored, 3 * leads, running=persister, deadline_s=DEADLINE_S)
    return found


def _webhook(lab: Lab, step: Step) -> Mapping[str, object]:
    produce(lab, LEADS, _leads(lab.codec(), step.records))
    found: dict[str, object] = {}
    with (
        lab.ends(DELIVERIES) as ends,
        lab.server("bench.references.receiver:create") as receiver,
        lab.ours("webhook-sender", FIBONACCI_WEBHOOK_URL=f"{receiver}/0") as sink,
        _costs(lab, step, [sink], found),
    ):
        lab.watch(ends, step.records, running=sink, deadline_s=DEADLINE_S)
    return found


def _leads(codec: Codec, records: int) -> Iterator[Record]:
    for salt, done in enumerate(range(0, records, AT_A_TIME)):
        yield from accepted_leads(codec, min(AT_A_TIME, records - done), salt=salt).leads


_STAGES: Mapping[str, Callable[[Lab, Step], Mapping[str, object]]] = {
    "ingest": _ingest,
    "limiter": _limiter,
    "persister": _persister,
    "webhook": _webhook,
    "limiters": _limiters,
    "windows": _windows,
}


if __name__ == "__main__":
    main()
