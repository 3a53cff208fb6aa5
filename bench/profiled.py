"""`make bench-profile`: samples each stage under load with py-spy and reports the functions it spends its time in.

Sampling slows the process down, so no other figure of the bench comes from here. Attaching to a process requires root
or `kernel.yama.ptrace_scope=0`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from bench import report
from bench.lab import Lab, LabError, Running, open_lab
from bench.load import accepted_leads, produce, submissions, wrk
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, SUBMISSIONS

SAMPLES_PER_S = 200
SECONDS = 8.0
WARM_UP_S = 4.0
RECORDS = 60_000
LEADS_COUNT = 20_000
SHOWN = 14
RESULTS = Path(__file__).parent / "results" / "profile"
OURS = ("ingest/", "nigredo/", "processors/", "schemas/", "sinks/")
START = ("nigredo/cli/", "nigredo/process.py", "main.py", "faust_app.py")
"""Frames left out, because they only start the process and are in every sample."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables")
def main(as_json: bool) -> None:
    """Sample every stage under load and report the functions it spends its time in."""
    console = Console(stderr=True)
    try:
        with console.status("sampling"), open_lab() as lab:
            for name, stage in STAGES.items():
                lab.skip()
                console.print(f"sampling {name}", highlight=False)
                RESULTS.mkdir(parents=True, exist_ok=True)
                document = {"stage": name, "machine": report.machine(), "shares": stage(lab)}
                (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
    documents = report.load(RESULTS)
    report.put(report.PERFORMANCE, "profile", table(documents))
    print(json.dumps(documents) if as_json else table(documents))


def table(documents: Sequence[report.Document]) -> str:
    """Return each stage's functions as Markdown, with the share of samples they are in, and are on top of."""
    parts = []
    for document in documents:
        lines = [f"`{document['stage']}`:", "", "| function | share of samples | itself |", "|---|--:|--:|"]
        for name, (share, own) in list(document["shares"].items())[:SHOWN]:
            lines.append(f"| `{name}` | {share:.0%} | {own:.0%} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


@contextmanager
def _sampled(lab: Lab, running: Running, found: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Sample a process for `SECONDS` during the `with` body; only threads that hold the GIL count.

    Adds each function's shares to `found`. Raises LabError when py-spy fails.
    """
    out = lab.home.dir / "run" / f"{running.name}.profile"
    pyspy = Path(sysconfig.get_path("scripts")) / "py-spy"
    command = [str(pyspy), "record", "--gil", "--subprocesses", "-p", str(running.process.pid), "-f", "raw"]
    command += ["-r", str(SAMPLES_PER_S), "-d", f"{SECONDS:g}", "-o", str(out)]
    sampler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        _, errors = sampler.communicate(timeout=SECONDS + 30)
    if sampler.returncode != 0 or not out.exists():
        raise LabError(f"py-spy could not sample {running.name}: {errors.decode(errors='replace').strip()[-300:]}")
    found.update(_shares(out.read_text(encoding="utf-8").splitlines()))


def _shares(stacks: Sequence[str]) -> Mapping[str, tuple[float, float]]:
    """Return, for each function of the product, the share of samples it is in and the share it is on top of.

    Raises LabError without samples.
    """
    under: Counter[str] = Counter()
    on_top: Counter[str] = Counter()
    total = 0
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = [frame.rpartition(":")[0] + ")" for frame in stack.split(";")]
        ours = [frame for frame in frames if any(f"({part}" in frame for part in OURS)]
        total += int(count)
        for frame in set(ours):
            under[frame] += int(count)
        if ours:
            # A library's time counts for the product's function that called it.
            on_top[ours[-1]] += int(count)
    if not total:
        raise LabError("no samples were taken")
    return {
        frame: (count / total, on_top[frame] / total)
        for frame, count in under.most_common()
        if not any(part in frame for part in START)
    }


def _ingest(lab: Lab) -> Mapping[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    with lab.ours("ingest") as ingest:
        wrk(ingest.url, seconds=WARM_UP_S, salt=1)
        with _sampled(lab, ingest, found):
            wrk(ingest.url, seconds=SECONDS, salt=2)
    return found


def _limiter(lab: Lab) -> Mapping[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    produce(lab, SUBMISSIONS, submissions(lab.codec(), RECORDS, RECORDS // 5, salt=3))
    with lab.ours("rate-limiter") as limiter, _sampled(lab, limiter, found):
        pass
    return found


def _persister(lab: Lab) -> Mapping[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    accepted = accepted_leads(lab.codec(), LEADS_COUNT, salt=4)
    produce(lab, LEADS, accepted.leads)
    produce(lab, RATE_LIMITS, accepted.states)
    produce(lab, DELIVERIES, accepted.attempts)
    with lab.ours("persister") as persister, _sampled(lab, persister, found):
        pass
    return found


def _webhook(lab: Lab) -> Mapping[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    produce(lab, LEADS, accepted_leads(lab.codec(), LEADS_COUNT, salt=5).leads)
    with (
        lab.server("bench.references.receiver:create") as receiver,
        lab.ours("webhook-sender", FIBONACCI_WEBHOOK_URL=f"{receiver}/0") as sink,
        _sampled(lab, sink, found),
    ):
        pass
    return found


STAGES: Mapping[str, Callable[[Lab], Mapping[str, tuple[float, float]]]] = {
    "ingest": _ingest,
    "limiter": _limiter,
    "persister": _persister,
    "webhook": _webhook,
}


if __name__ == "__main__":
    main()
