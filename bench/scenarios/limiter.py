"""Limiter over a full topic, beside Faust that only receives, Faust as in its tutorial, and Quix Streams."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.lab import Lab, Running
from bench.load import produce, submissions
from bench.measure import Contender, Figures, Result, pace
from bench.run import Run
from nigredo.kafka.consumer_groups import commit_offsets
from schemas.topics import LEADS, REJECTIONS, SUBMISSIONS

RECORDS = 40_000
NETWORKS = 8_000
TUTORIAL_SHARE = 0.4
QUIX = Path(sys.prefix) / "quix" / "bin" / "python"


def run(bench: Run) -> None:
    """Measure the limiter's stage: decoding, verdicts, windows and outputs, all acknowledged."""
    lab = bench.lab
    count = bench.effort.records(RECORDS)
    result = Result("limiter", "Limiter over a full topic", "records/s", {"records": count, "networks": NETWORKS})
    topic = Backlog(bench, count)
    contenders = [
        Contender("limiter", lambda number: _limiter(lab, topic, result, number)),
        Contender("Faust, receiving only", lambda number: topic.by_faust("faust_receive", number)),
    ]
    if not bench.effort.hurried:
        contenders.append(
            Contender(
                "Faust, the tutorial way",
                lambda number: topic.by_faust("faust_tutorial", number, _output(lab, number), share=TUTORIAL_SHARE),
                floor=0.18,
                floor_of="Faust, receiving only",
            )
        )
        if QUIX.exists():
            contenders.append(Contender("Quix Streams", lambda number: _quix(lab, topic, number)))
        else:
            result.extra["left out"] = "Quix Streams: could not be installed here"
            bench.tell("left out: Quix Streams, which could not be installed here")
    bench.alternate(result, contenders)


class Backlog:
    """The submissions of one round: written once, then read by every contender from the same offsets."""

    def __init__(self, bench: Run, count: int) -> None:
        self._bench = bench
        self._lab = bench.lab
        self._codec = bench.lab.codec()
        self._round = -1
        self.count = count
        self.start: dict[int, int] = {}

    def write(self, number: int) -> None:
        """Write the round's submissions, from new networks; does nothing when the round is written already."""
        if number == self._round:
            return
        self._round = number
        self.start = self._lab.end_offsets(SUBMISSIONS)
        records = submissions(self._codec, self.count, NETWORKS, salt=self._bench.salt())
        produce(self._lab, SUBMISSIONS, records)

    def begin(self, group: str) -> None:
        """Set a group's offsets to the start of the round's submissions."""
        commit_offsets(self._lab.settings(role="admin"), group, SUBMISSIONS, self.start)

    def by_faust(self, name: str, number: int, *more: str, share: float = 1.0) -> Figures:
        """Run a Faust reference over the backlog, or over a share of it."""
        self.write(number)
        group = f"bench-{name}-{self._bench.salt()}"
        self.begin(group)
        total = int(self.count * share)
        with self._lab.reference(name, self._lab.bootstrap_servers, group, SUBMISSIONS, *more) as running:
            samples = told(self._lab, running, total)
        return {"rate": pace(samples, total)}


def told(lab: Lab, running: Running, total: int) -> list[tuple[float, int]]:
    """Wait until a reference reports `total` records; return its reports as (seconds, records)."""
    lab.watch(lambda: _last(running.out), total, running=running)
    return [(at, count) for at, count in map(json.loads, _lines(running.out))]


def _last(out: Path) -> int:
    lines = _lines(out)
    return int(json.loads(lines[-1])[1]) if lines else 0


def _lines(out: Path) -> Sequence[str]:
    # The last line may be half written.
    return [line for line in out.read_text(encoding="utf-8").split("\n")[:-1] if line.startswith("[")]


def _output(lab: Lab, number: int) -> str:
    name = f"bench.verdicts-{number}-{secrets.token_hex(4)}"
    lab.create_topic(name)
    return name


def _limiter(lab: Lab, topic: Backlog, result: Result, number: int) -> Figures:
    topic.write(number)
    topic.begin(lab.settings().function("rate-limiter"))
    with ExitStack() as stack:
        ends = stack.enter_context(lab.ends(LEADS, REJECTIONS))
        before = ends()
        limiter = stack.enter_context(lab.ours("rate-limiter"))
        samples = lab.watch(lambda: ends() - before, topic.count, running=limiter)
        figures = {"rate": pace(samples, topic.count), "rss_mib": limiter.rss_bytes() / 2**20}
    result.extra["backlog over time"] = [[round(at - samples[0][0], 3), topic.count - done] for at, done in samples]
    return figures


def _quix(lab: Lab, topic: Backlog, number: int) -> Figures:
    topic.write(number)
    group, output = f"bench-quix-{number}-{lab.home.port_base}", _output(lab, number)
    topic.begin(group)
    schemas = Path(__file__).parents[2] / "schemas"
    with tempfile.TemporaryDirectory() as folder:
        arguments = (lab.bootstrap_servers, group, SUBMISSIONS, output, str(schemas), folder)
        with lab.reference("quix_limiter", *arguments, python=QUIX) as running:
            samples = told(lab, running, topic.count)
    return {"rate": pace(samples, topic.count)}
